"""Identity, staff, student, member and library cards: a photograph, a name, numbers and dates."""

from typing import Any

from fastvlm.data.canvas import mix
from fastvlm.data.documents import Sheet
from fastvlm.data.kinds._parts import Flow, barcode, contrast, logo, pick_labels, portrait
from fastvlm.data.questions import FIELDS

ASPECT = (1.35, 1.75)
SIZES = ((512, 320), (640, 384), (576, 384), (512, 512), (768, 512))
BODY_STYLES = ("sans", "sans", "sans", "narrow", "mono", "serif")
MIN_LINES, MIN_COLUMNS = 8, 32

LAYOUTS = {
    "train": ("photo-left", "photo-right", "banner", "stripe", "plain", "licence", "passport", "badge"),
    "val": ("member", "library"),
    "heldout": ("campus", "visitor"),
}
# photo: its side. head: how the issuer stands. manner: how fields are set.
_PRESETS: dict[str, dict[str, Any]] = {
    "photo-left": {"photo": "l", "head": "banner", "manner": "colon"},
    "photo-right": {"photo": "r", "head": "plain", "manner": "stacked"},
    "banner": {"photo": "l", "head": "banner", "manner": "stacked"},
    "stripe": {"photo": "r", "head": "stripe", "manner": "tab"},
    "plain": {"photo": "none", "head": "plain", "manner": "tab"},
    "licence": {"photo": "l", "head": "stripe", "manner": "numbered"},
    "passport": {"photo": "l", "head": "plain", "manner": "stacked"},
    "badge": {"photo": "r", "head": "banner", "manner": "colon"},
    "member": {"photo": "none", "head": "stripe", "manner": "colon"},
    "library": {"photo": "r", "head": "banner", "manner": "tab"},
    "campus": {"photo": "l", "head": "stripe", "manner": "tab"},
    "visitor": {"photo": "r", "head": "plain", "manner": "colon"},
}
_TITLES = ("Identity card", "IDENTITY CARD", "Staff card", "Employee ID", "Student card", "STUDENT ID", "Member card", "Membership", "Library card", "Visitor", "VISITOR PASS", "Driving licence", "Access card", "Press card", "Season ticket",
    "Health card", "Club card", "Security pass", "National ID", "Resident permit", "Contractor", "Volunteer")  # fmt: skip


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    look = _PRESETS[sheet.choose_layout(LAYOUTS)]
    sheet.choose_colors()
    label = pick_labels(rng, {key: FIELDS[key].labels for key in FIELDS})
    margin = rng.uniform(0.03, 0.06) * page.width
    top = rng.uniform(0.03, 0.07) * page.height
    if rng.random() < 0.4:
        page.frame(2, 2, page.width - 3, page.height - 3, rng.uniform(1, 3), page.accent, radius=rng.choice([0, 0, page.height * 0.04]))
    if rng.random() < 0.3:
        _guilloche(sheet)
    flow = Flow(sheet, margin, page.width - margin, top, page.height - top * 0.5, spacing=rng.uniform(1.15, 1.45))
    organization = sheet.field(
        "organization",
        writer.company()
        if rng.random() < 0.7
        else f"{writer.city()} {rng.choice(['University', 'College', 'Hospital', 'Library', 'School', 'Club'])}",
    )
    title = sheet.field("title", rng.choice(_TITLES))
    big = flow.style(rng.uniform(1.0, 1.5), bold=rng.random() < 0.8, heading=True)
    colors = page.ink
    if look["head"] in ("banner", "stripe"):
        colors = contrast(page.accent)
        height = flow.step(big) * (2.1 if look["head"] == "banner" else 1.1) + (top if look["head"] == "banner" else 0)
        page.fill(0, 0 if look["head"] == "banner" else flow.y, page.width, flow.y * (look["head"] == "stripe") + height, page.accent)
    flow.line(organization, big.colored(colors), "l" if sheet.look("head_left", [0, 1]) else "m")
    if look["head"] == "stripe":
        flow.space(0.2)
    flow.line(
        title,
        flow.style(1.0, bold=rng.random() < 0.4).colored(colors if look["head"] == "banner" else page.ink),
        "l" if sheet.look("head_left", [0, 1]) else "m",
    )
    flow.space(0.5)

    # Photograph
    if look["photo"] != "none":
        height = min(rng.uniform(0.42, 0.58) * page.height, page.height - flow.y - top)
        width = height * rng.uniform(0.72, 0.85)
        x = margin if look["photo"] == "l" else page.width - margin - width
        portrait(sheet, x, flow.y, x + width, flow.y + height)
        if look["photo"] == "l":
            flow.left = x + width + margin * 0.7
        else:
            flow.right = x - margin * 0.7
    elif rng.random() < 0.5:
        side = page.height * 0.2
        logo(sheet, page.width - margin - side, flow.y, side)
        flow.right = page.width - margin * 1.5 - side

    # Fields
    first, last = writer.first_name(), writer.last_name()
    makers = {
        "id_number": writer.identifier, "date_of_birth": writer.date, "expiry_date": writer.date, "issue_date": writer.date, "department": writer.trade, "nationality": writer.country, "sex": lambda: rng.choice(["F", "M", "X"]),
        "position": lambda: rng.choice([f"{writer.trade()} {rng.choice(['Manager', 'Lead', 'Assistant'])}", "Engineer", "Nurse", "Teacher", "Technician", "Guest", "Student"]), "height": lambda: f"{rng.randint(150, 200)} cm",
        "blood_type": lambda: rng.choice(["A+", "A-", "B+", "B-", "AB+", "AB-", "0+", "0-"]), "licence_class": lambda: rng.choice(["A", "B", "C", "BE", "Gold", "Silver", "Standard", "Premium"]), "phone": writer.phone, "email": writer.email,
        "address": writer.street, "city": writer.city, "room": lambda: str(rng.randint(1, 450)), "contact": writer.name,
    }  # fmt: skip
    chosen: list[tuple[str, str]] = [("name", f"{first} {last}")] if rng.random() < 0.65 else [("last_name", last), ("first_name", first)]
    chosen.append(("id_number", makers.pop("id_number")()))
    chosen += [(key, makers[key]()) for key in rng.sample(list(makers), rng.randint(2, 7))]
    manner = look["manner"]
    bare_name = manner != "numbered" and rng.random() < 0.4 and chosen[0][0] == "name"
    upper = rng.random() < 0.25
    label_style = flow.style(rng.choice([1.0, 0.85]), color=mix(page.ink, page.paper, rng.choice([0.0, 0.35])))
    value_style = flow.style(1.0, bold=rng.random() < 0.4)
    tab = flow.left + max(page.measure(label[key], label_style) for key, _ in chosen) + flow.body.size_px
    for i, (key, value) in enumerate(chosen):
        each = 2.3 * flow.step() if manner == "stacked" else flow.step()
        if flow.bottom - flow.y < each * 1.02 and i > 1:
            break
        value = value.upper() if upper and key not in ("email",) else value
        if bare_name and i == 0:
            flow.line(sheet.field(key, value), flow.style(1.25, bold=True))
            flow.space(0.2)
            continue
        shown = f"{i + 1}. {label[key]}" if manner == "numbered" else label[key]
        room = (
            flow.width
            if manner == "stacked"
            else flow.right - max(tab if manner == "tab" else 0, flow.left + page.measure(shown + ":", label_style) + flow.body.size_px)
        )
        if page.measure(value, value_style) > room:
            continue
        flow.pair(
            shown + (":" if manner in ("colon", "numbered") else ""),
            value,
            "colon" if manner == "numbered" else manner,
            label_style,
            value_style,
            tab=tab,
        )
        sheet.field(key, value, label[key])
    if flow.bottom - flow.y > 1.8 * flow.body.size_px and rng.random() < 0.4 and look["photo"] != "l":
        barcode(sheet, flow.left, flow.left + flow.width * 0.7, flow.y + 3, flow.y + 1.5 * flow.body.size_px)
    sheet.ask(
        rng.choice(("What kind of card is it?", "What sort of card is this?", "What is this card?", "Which card is it?")), title, "field"
    )


def _guilloche(sheet: Sheet) -> None:
    """Faint waves, as printed against copying."""
    import math

    page, rng = sheet.page, sheet.rng
    color = mix(page.paper, page.accent, 0.12)
    phase, length = rng.uniform(0, 6), rng.uniform(30, 90)
    for k in range(12):
        y0 = page.height * k / 12
        points = [(x, y0 + 12 * math.sin(x / length + phase + k * 0.4)) for x in range(0, page.width + 8, 8)]
        page.draw.line(points, fill=color, width=1)
