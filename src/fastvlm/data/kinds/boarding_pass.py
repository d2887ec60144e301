"""Boarding passes and tickets: kept out of the data that `nano` is trained on, to show that fine-tuning teaches a new kind."""

import random
from collections.abc import Sequence

from fastvlm.data.canvas import mix
from fastvlm.data.documents import Sheet
from fastvlm.data.kinds._parts import Flow, barcode, contrast, pick_labels
from fastvlm.data.questions import FIELDS

ASPECT = (1.4, 2.6)
SIZES = ((512, 256), (640, 320), (768, 384), (512, 320), (512, 512))
BODY_STYLES = ("sans", "sans", "mono", "narrow")
MIN_LINES, MIN_COLUMNS = 9, 34

LAYOUTS = {
    "train": ("airline", "strip", "printed", "rail", "counter", "ferry", "coach"),
    "val": ("mobile",),
    "heldout": ("charter", "express"),
}


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    name = sheet.choose_layout(LAYOUTS)
    sheet.choose_colors(light_only=True)
    label = pick_labels(rng, {key: FIELDS[key].labels for key in FIELDS}, rng.choice(["as is", "upper", "upper", "lower"]))
    margin = 0.035 * page.width
    flow = Flow(sheet, margin, page.width - margin, 0.04 * page.height, page.height * 0.97, spacing=1.25)
    carrier = f"{writer.place()} {rng.choice(['Air', 'Airways', 'Airlines', 'Rail', 'Express', 'Lines'])}"
    title = rng.choice(["Boarding pass", "BOARDING PASS", "Ticket", "TICKET", "Boarding card"])
    big = flow.style(1.25, bold=True, heading=True)
    has_banner = name in ("airline", "ferry", "mobile", "charter")
    if has_banner:
        page.fill(0, 0, page.width, flow.y + flow.step(big) * 1.1, page.accent)
        big = big.colored(contrast(page.accent))
    baseline = flow.baseline(big)
    page.text(flow.left, baseline, sheet.field("organization", carrier), big)
    page.text(flow.right, baseline, sheet.field("title", title), page.shrink(title, big, flow.width * 0.45), "r")
    flow.y += flow.step(big) * 1.25
    values = {
        "passenger": f"{writer.last_name()}/{writer.first_name()}".upper() if rng.random() < 0.5 else writer.name(),
        "flight": f"{rng.choice('ABCDEFGKLMQRSTUVX')}{rng.choice('ABCDEFGKLMQRSTUVX')} {rng.randint(10, 9999)}",
        "origin": writer.city(),
        "destination": writer.city(),
        "date": writer.date(),
        "boarding_time": writer.time(),
        "departure_time": writer.time(),
        "gate": f"{rng.choice('ABCDEF')}{rng.randint(1, 60)}",
        "seat": f"{rng.randint(1, 42)}{rng.choice('ABCDEF')}",
        "travel_class": rng.choice(["Economy", "Business", "First", "Second", "Y", "J"]),
        "booking_reference": "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=6)),
    }
    small = flow.style(0.85, color=mix(page.ink, page.paper, 0.3))
    bold = flow.style(rng.choice([1.0, 1.15]), bold=True)
    groups: Sequence[Sequence[str]] = {
        "airline": (
            ("passenger", "booking_reference"),
            ("origin", "destination"),
            ("flight", "date", "boarding_time"),
            ("gate", "seat", "travel_class"),
        ),
        "strip": (("passenger",), ("origin", "destination", "flight"), ("date", "departure_time", "gate", "seat")),
        "printed": (("passenger", "flight"), ("origin", "destination"), ("date", "boarding_time", "gate", "seat")),
        "rail": (("passenger", "travel_class"), ("origin", "departure_time"), ("destination", "seat"), ("date", "booking_reference")),
        "mobile": (("origin", "destination"), ("passenger",), ("gate", "seat", "boarding_time"), ("date", "flight")),
        "charter": (("flight", "date", "gate"), ("passenger", "seat"), ("origin", "destination", "boarding_time")),
        "express": (("origin", "destination"), ("departure_time", "seat", "travel_class"), ("passenger", "booking_reference")),
    }.get(name) or _draw_groups(rng, list(values))
    for group in groups:
        width = flow.width / len(group)
        shown = [page.shrink(values[key], bold, width * 0.93) for key in group]
        style = min(shown, key=lambda s: s.size_px)
        flow.cells(
            [(flow.left + i * width, "l", label[key]) for i, key in enumerate(group)],
            min((page.shrink(label[key], small, width * 0.93) for key in group), key=lambda s: s.size_px),
        )
        flow.cells([(flow.left + i * width, "l", sheet.field(key, values[key], label[key])) for i, key in enumerate(group)], style)
        flow.space(0.25)
    if flow.bottom - flow.y > 2 * flow.body.size_px:
        barcode(
            sheet,
            flow.left,
            flow.left + flow.width * rng.uniform(0.4, 0.9),
            flow.y + 2,
            min(flow.bottom, flow.y + rng.uniform(2, 4) * flow.body.size_px),
        )


def _draw_groups(rng: random.Random, keys: list[str]) -> list[list[str]]:
    """Four rows of one to three fields each, in any order: where a field stands is not what tells it."""
    rng.shuffle(keys)
    groups = []
    for _ in range(4):
        count = rng.choice((1, 2, 2, 3, 3))
        groups.append(keys[:count])
        keys = keys[count:]
    return [group for group in groups if group]
