"""What documents are put together from: lines that follow each other, label and value pairs, tables, addresses.

    flow = Flow(sheet, left, right, top, bottom)
    flow.line("Invoice", flow.style(1.6, bold=True))
    flow.pair("Date", "4 May 2025")
    flow.table(header, rows, aligns)

Lengths are pixels of the page.
"""

import random
from collections.abc import Sequence
from typing import Any

from fastvlm.data import canvas
from fastvlm.data.canvas import Color, PageFull, Style, random_color
from fastvlm.data.documents import Sheet

ASCENT = 0.8  # share of a line's size above the baseline


class Flow:
    """A column of the page that is filled from the top. `y` is the top of the next line; what passes `bottom` raises `PageFull`."""

    def __init__(self, sheet: Sheet, left: float, right: float, top: float, bottom: float, spacing: float = 1.3) -> None:
        self.sheet, self.page, self.rng = sheet, sheet.page, sheet.rng
        self.left, self.right, self.y, self.bottom, self.spacing = left, right, top, bottom, spacing
        self.body = sheet.page.style(1.0)

    @property
    def width(self) -> float:
        return self.right - self.left

    def style(self, scale: float = 1.0, **options: Any) -> Style:
        return self.page.style(scale, **options)

    def step(self, style: Style | None = None) -> float:
        return (style or self.body).size_px * self.spacing

    def room(self, style: Style | None = None) -> int:
        """How many more lines of this style fit."""
        return int((self.bottom - self.y) / self.step(style))

    def column(self, left: float, right: float) -> "Flow":
        """A flow beside this one that begins at the same height."""
        flow = Flow(self.sheet, left, right, self.y, self.bottom, self.spacing)
        flow.body = self.body
        return flow

    def baseline(self, style: Style) -> float:
        """Of the next line; raises `PageFull` if there is no room for it."""
        if self.y + style.size_px * 1.02 > self.bottom:
            raise PageFull("no room for another line")
        return self.y + (self.step(style) - style.size_px) / 2 + ASCENT * style.size_px

    def space(self, lines: float = 1.0) -> None:
        self.y += lines * self.body.size_px

    def line(self, text: str, style: Style | None = None, anchor: str = "l", indent: float = 0.0) -> None:
        """One line, made smaller if it is too wide."""
        style = self.page.shrink(text, style or self.body, self.width - indent)
        x = {"l": self.left + indent, "m": (self.left + self.right) / 2, "r": self.right}[anchor]
        self.page.text(x, self.baseline(style), text, style, anchor)
        self.y += self.step(style)

    def paragraph(self, text: str, style: Style | None = None, anchor: str = "l", hang: float = 0.0) -> list[str]:
        """Wrapped text; returns its lines."""
        style = style or self.body
        lines = self.page.wrap(text, style, self.width - hang)
        for line in lines:
            x = {"l": self.left + hang, "m": (self.left + self.right) / 2, "r": self.right}[anchor]
            self.page.text(x, self.baseline(style), line, style, anchor)
            self.y += self.step(style)
        return lines

    def cells(self, texts: Sequence[tuple[float, str, str]], style: Style | None = None) -> None:
        """Texts (x, anchor, text) side by side on one line."""
        style = style or self.body
        baseline = self.baseline(style)
        for x, anchor, text in texts:
            self.page.text(x, baseline, text, style, anchor)
        self.y += self.step(style)

    def rule(self, thickness: float = 1.0, dash: float = 0.0, color: Color | None = None, gap: float = 0.25) -> None:
        self.y += gap * self.body.size_px
        self.page.horizontal_rule(self.left, self.right, self.y, thickness, color, dash)
        self.y += gap * self.body.size_px + thickness

    def pair(
        self,
        label: str,
        value: str,
        manner: str = "colon",
        style: Style | None = None,
        value_style: Style | None = None,
        tab: float | None = None,
    ) -> None:
        """A label and its value.

        Args:
            manner: "colon" (Label: value), "tab" (value at x = `tab`), "spread" (value at the right edge), "leader" (spread, with dots between),
                "stacked" (value below), "underlined" (value on a line to write on), "boxed" (value in a box below).
        """
        style = style or self.body
        value_style = value_style or style
        page = self.page
        if manner in ("stacked", "boxed"):
            small = page.shrink(label, style, self.width)
            page.text(self.left, self.baseline(small), label, small)
            self.y += self.step(small)
            if manner == "boxed":
                height = value_style.size_px * 1.6
                self.input_box(self.left, self.right, value, value_style, height)
                self.y += height + 0.35 * style.size_px
            else:
                shown = page.shrink(value, value_style, self.width)
                page.text(self.left, self.baseline(shown), value, shown)
                self.y += self.step(shown) + 0.25 * style.size_px
            return
        baseline = self.baseline(style if style.size_px > value_style.size_px else value_style)
        step = max(self.step(style), self.step(value_style))
        if manner in ("spread", "leader"):
            room = self.width - page.measure(value, value_style) - style.size_px
            shown = page.shrink(label, style, room)
            end = self.left + page.text(self.left, baseline, label, shown)
            page.text(self.right, baseline, value, value_style, "r")
            if manner == "leader":
                x, stop = end + 0.4 * style.size_px, self.right - page.measure(value, value_style) - 0.4 * style.size_px
                dot = max(0.8, style.size_px / 16)
                while x < stop:
                    page.fill(x, baseline - dot, x + dot, baseline, page.rule_color)
                    x += style.size_px * 0.35
        else:
            end = self.left + page.measure(label, style)
            x = end + 0.35 * style.size_px if manner == "colon" else max(tab or 0.0, end + 0.5 * style.size_px)
            if manner == "underlined":
                page.horizontal_rule(x - 0.2 * style.size_px, self.right, baseline + 0.22 * style.size_px, max(0.7, style.size_px / 18))
                step = max(step, 1.45 * style.size_px)
            shown = page.shrink(value, value_style, self.right - x)
            page.text(self.left, baseline, label, style)
            page.text(x, baseline, value, shown)
        self.y += step

    def input_box(self, left: float, right: float, value: str, style: Style, height: float) -> None:
        """A text field of a form from y downwards, with its value."""
        page = self.page
        if self.y + height > self.bottom:
            raise PageFull("no room for a box")
        look = self.sheet.look("box", ["frame", "frame", "rounded", "filled", "line"])
        if look == "filled":
            page.fill(left, self.y, right, self.y + height, page.shade)
        elif look == "line":
            page.horizontal_rule(left, right, self.y + height)
        else:
            page.frame(
                left, self.y, right, self.y + height, max(1.0, style.size_px / 16), radius=0.2 * height if look == "rounded" else 0.0
            )
        pad = (0.45 if look != "line" else 0.1) * style.size_px
        shown = page.shrink(value, style, right - left - 2 * pad)
        page.text(left + pad, self.y + height / 2 + shown.cap_height_px / 2, value, shown)

    def checkbox(self, label: str, checked: bool, style: Style | None = None, x: float | None = None) -> float:
        """A box to tick and its label on the current line; returns where it ends. The caller moves down."""
        style = style or self.body
        page = self.page
        x = self.left if x is None else x
        baseline = self.baseline(style)
        side = style.cap_height_px * 1.05
        look = self.sheet.look("tick", ["cross", "tick", "fill", "radio"])
        thickness = max(1.0, style.size_px / 14)
        if look == "radio":
            page.draw.ellipse((x, baseline - side, x + side, baseline), outline=style.color, width=round(thickness))
            if checked:
                page.draw.ellipse((x + 0.28 * side, baseline - 0.72 * side, x + 0.72 * side, baseline - 0.28 * side), fill=style.color)
        else:
            page.frame(x, baseline - side, x + side, baseline, thickness, style.color)
            if checked and look == "fill":
                page.fill(x + 0.22 * side, baseline - 0.78 * side, x + 0.78 * side, baseline - 0.22 * side, style.color)
            elif checked and look == "cross":
                page.draw.line(
                    (x + 0.15 * side, baseline - 0.85 * side, x + 0.85 * side, baseline - 0.15 * side),
                    fill=style.color,
                    width=round(thickness),
                )
                page.draw.line(
                    (x + 0.15 * side, baseline - 0.15 * side, x + 0.85 * side, baseline - 0.85 * side),
                    fill=style.color,
                    width=round(thickness),
                )
            elif checked:
                points = [
                    (x + 0.15 * side, baseline - 0.5 * side),
                    (x + 0.42 * side, baseline - 0.18 * side),
                    (x + 0.9 * side, baseline - 0.95 * side),
                ]
                page.draw.line(points, fill=style.color, width=round(thickness * 1.4))
        end = x + side + 0.4 * style.size_px
        return end + page.text(end, baseline, label, style)

    def table(
        self,
        header: Sequence[str],
        rows: list[list[str]],
        aligns: str,
        *,
        manner: str = "rules",
        style: Style | None = None,
        header_style: Style | None = None,
        stretch: bool = True,
        pad: float = 0.5,
        row_spacing: float = 1.45,
        last_bold: bool = False,
    ) -> list[float]:
        """A table; cells of `rows` that were too wide lose words, in place. Returns the right edges of the columns.

        Args:
            aligns: a letter a column: "l", "r" or "m".
            manner: "plain", "rules" (below the header), "lines" (below each row), "grid", "zebra", "filled" (header on colour), "filled-zebra", "filled-grid".
        """
        page = self.page
        style = style or self.body
        header_style = header_style or style
        count = len(aligns)
        gap = pad * style.size_px
        everything = ([list(header)] if header else []) + rows
        room = self.width - 2 * gap * count

        def natural() -> list[float]:
            widths = [0.0] * count
            for i, row in enumerate(everything):
                shown = header_style if header and i == 0 else style
                for j, cell in enumerate(row):
                    widths[j] = max(widths[j], page.measure(cell, shown))
            return widths

        widths = natural()
        for _ in range(6):
            if sum(widths) <= room:
                break
            # The widest column of words loses a word where it is too wide.
            wide = max(range(count), key=lambda j: widths[j] if any(" " in row[j] for row in rows) and aligns[j] == "l" else 0.0)
            limit = widths[wide] - (sum(widths) - room)
            for row in rows:
                if page.measure(row[wide], style) > limit:
                    row[wide] = page.fit(row[wide], style, limit) or row[wide].split()[0]
            new = natural()
            if new == widths:
                break
            widths = new
        if sum(widths) > room:
            raise PageFull("table is too wide")
        spare = room - sum(widths) if stretch else 0.0
        text_columns = [j for j in range(count) if aligns[j] == "l"] or list(range(count))
        even = self.rng.random() < 0.5
        for j in range(count):
            widths[j] += spare / count if even else spare / len(text_columns) if j in text_columns else 0.0
        edges = [self.left]
        for width in widths:
            edges.append(edges[-1] + width + 2 * gap)
        step = style.size_px * row_spacing
        thin = max(0.7, style.size_px / 18)
        top = self.y
        if top + step * len(everything) > self.bottom:
            raise PageFull("no room for the table")
        if self.sheet.split == "train" and self.rng.random() < 0.3:
            # Roomy rows, as style sheets pad them, from the space that is left.
            spare = (self.bottom - top) / len(everything) - step
            step += min(0.35 * spare, self.rng.uniform(0.0, 0.7) * step)
        dark = manner.startswith("filled")
        for i, row in enumerate(everything):
            is_header = bool(header) and i == 0
            y0, y1 = self.y, self.y + step
            shown = header_style if is_header else style
            if is_header and dark:
                page.fill(edges[0], y0, edges[-1], y1, page.accent)
                shown = shown.colored(contrast(page.accent))
            elif "zebra" in manner and i % 2 == 0 and not is_header:
                page.fill(edges[0], y0, edges[-1], y1, page.shade)
            if last_bold and i == len(everything) - 1:
                shown = page.style(1.0, bold=True)
                shown = Style(shown.face, style.size_px, style.color)
            baseline = (y0 + y1) / 2 + shown.cap_height_px / 2
            for j, cell in enumerate(row):
                x = {"l": edges[j] + gap, "r": edges[j + 1] - gap, "m": (edges[j] + edges[j + 1]) / 2}[aligns[j]]
                page.text(x, baseline, cell, shown, aligns[j])
            if (is_header and manner == "rules") or manner == "lines":
                page.horizontal_rule(edges[0], edges[-1], y1, thin * (1.6 if is_header else 1.0))
            self.y = y1
        if "grid" in manner:
            for i in range(len(everything) + 1):
                page.horizontal_rule(edges[0], edges[-1], top + i * step, thin)
            for edge in edges:
                page.vertical_rule(edge, top, self.y, thin)
        elif manner in ("rules", "zebra") and self.sheet.look("table_end", [True, False]):
            page.horizontal_rule(edges[0], edges[-1], self.y, thin)
        self.y += 0.3 * style.size_px
        return edges[1:]


TABLE_MANNERS = ("plain", "rules", "rules", "lines", "grid", "zebra", "filled", "filled-zebra", "filled-grid")


def contrast(color: Color) -> Color:
    """White or black, whichever is readable on the colour."""
    return (255, 255, 255) if 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140 else (0, 0, 0)


def margins(sheet: Sheet, low: float = 0.02, high: float = 0.09) -> Flow:
    """A flow over the page, less its margins."""
    page, rng = sheet.page, sheet.rng
    x = rng.uniform(low, high) * page.width
    y = rng.uniform(low, high) * page.height
    return Flow(sheet, x, page.width - x, y, page.height - y * 0.6, spacing=rng.uniform(1.15, 1.5))


def logo(sheet: Sheet, x: float, y: float, side: float) -> None:
    """A shape in the accent colour, without text."""
    page, rng = sheet.page, sheet.rng
    color = page.accent
    way = rng.random()
    if way < 0.3:
        page.draw.ellipse((x, y, x + side, y + side), fill=color)
        page.draw.ellipse((x + side * 0.3, y + side * 0.3, x + side * 0.9, y + side * 0.9), fill=canvas.mix(color, page.paper, 0.6))
    elif way < 0.6:
        page.draw.polygon([(x, y + side), (x + side / 2, y), (x + side, y + side)], fill=color)
    else:
        page.rounded(x, y, x + side, y + side, side * 0.2, color)
        page.draw.line(
            (x + side * 0.2, y + side * 0.7, x + side * 0.5, y + side * 0.3, x + side * 0.8, y + side * 0.7),
            fill=page.paper,
            width=max(1, round(side / 8)),
        )


def barcode(sheet: Sheet, x0: float, x1: float, y0: float, y1: float) -> None:
    """Bars of random width."""
    rng = sheet.rng
    x = x0
    unit = max(1.0, (x1 - x0) / 95)
    while x < x1 - 3 * unit:
        bar = unit * rng.choice([1, 1, 2, 3])
        sheet.page.fill(x, y0, x + bar, y1, sheet.page.ink)
        x += bar + unit * rng.choice([1, 1, 2])


def portrait(sheet: Sheet, x0: float, y0: float, x1: float, y1: float) -> None:
    """Head and shoulders on a plain ground, where a photograph would be."""
    page, rng = sheet.page, sheet.rng
    ground = random_color(rng, 150, 230)
    skin = rng.choice([(241, 205, 178), (222, 176, 140), (176, 125, 90), (120, 80, 56)])
    hair = rng.choice([(40, 28, 20), (90, 60, 30), (170, 130, 70), (120, 120, 120)])
    coat = random_color(rng, 20, 170)
    w, h = x1 - x0, y1 - y0
    page.fill(x0, y0, x1, y1, ground)
    page.draw.ellipse((x0 + 0.27 * w, y0 + 0.12 * h, x0 + 0.73 * w, y0 + 0.62 * h), fill=hair)
    page.draw.ellipse((x0 + 0.31 * w, y0 + 0.2 * h, x0 + 0.69 * w, y0 + 0.66 * h), fill=skin)
    page.draw.pieslice((x0 + 0.1 * w, y0 + 0.66 * h, x0 + 0.9 * w, y0 + 1.34 * h - 1), 180, 360, fill=coat)
    page.frame(x0, y0, x1, y1, 1.0)


def pick_labels(rng: random.Random, labels: dict[str, Sequence[str]], case: str | None = None) -> dict[str, str]:
    """One printed label a key, all in one case, no two alike where that can be."""
    case = case or rng.choice(["as is", "as is", "as is", "upper", "title", "lower"])
    picked: dict[str, str] = {}
    taken: set[str] = set()
    for key, choices in labels.items():
        free = [label for label in choices if label.lower() not in taken] or list(choices)
        label = rng.choice(free)
        taken.add(label.lower())
        picked[key] = in_case(label, case)
    return picked


def in_case(text: str, case: str) -> str:
    """The text "as is", in "upper", "lower" or "title" case."""
    return text.upper() if case == "upper" else text.lower() if case == "lower" else text.title() if case == "title" else text
