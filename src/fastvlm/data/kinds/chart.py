"""Simple charts: upright and lying bars, lines, with axes, names, values and legends.

Charts are read: title, then the legend, then the axis or the values, then the names below. Values above bars stand in one line, from left to right.
"""

from typing import Any

from fastvlm.data.canvas import Color, PageFull, mix
from fastvlm.data.documents import Sheet, dark_color
from fastvlm.data.kinds._parts import Flow
from fastvlm.data.words import MONTHS, WEEKDAYS

ASPECT = (0.9, 1.8)
SIZES = ((512, 384), (512, 512), (640, 448), (768, 512), (576, 448))
BODY_STYLES = ("sans", "sans", "sans", "serif")
MIN_LINES, MIN_COLUMNS = 10, 30

LAYOUTS = {
    "train": ("bars", "bars-axis", "bars-plain", "lying", "lying-axis", "line", "line-dots", "two-lines"),
    "val": ("bars-boxed", "line-area"),
    "heldout": ("bars-right", "lying-framed", "line-marked"),
}
# shape; where values can be read: on the mark, on the axis, or both; grid lines.
_PRESETS: dict[str, dict[str, Any]] = {
    "bars": {"shape": "bar", "values": "mark", "grid": False, "frame": "bottom"},
    "bars-axis": {"shape": "bar", "values": "axis", "grid": True, "frame": "bottom"},
    "bars-plain": {"shape": "bar", "values": "mark", "grid": False, "frame": "none"},
    "lying": {"shape": "lying", "values": "mark", "grid": False, "frame": "left"},
    "lying-axis": {"shape": "lying", "values": "axis", "grid": True, "frame": "left"},
    "line": {"shape": "line", "values": "axis", "grid": True, "frame": "bottom"},
    "line-dots": {"shape": "line", "values": "mark", "grid": False, "frame": "bottom"},
    "two-lines": {"shape": "line", "values": "axis", "grid": True, "frame": "both", "series": 2},
    "bars-boxed": {"shape": "bar", "values": "axis", "grid": False, "frame": "box"},
    "line-area": {"shape": "line", "values": "axis", "grid": True, "frame": "box"},
    "bars-right": {"shape": "bar", "values": "mark", "grid": True, "frame": "box"},
    "lying-framed": {"shape": "lying", "values": "mark", "grid": True, "frame": "box"},
    "line-marked": {"shape": "line", "values": "mark", "grid": True, "frame": "both"},
}


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    look = _PRESETS[sheet.choose_layout(LAYOUTS)]
    sheet.numbered_lines = False
    sheet.choose_colors()
    margin = rng.uniform(0.03, 0.07)
    flow = Flow(sheet, margin * page.width, page.width * (1 - margin), margin * page.height, page.height * (1 - margin), 1.35)
    measure = rng.choice(
        [
            writer.of_class("plural").capitalize(),
            "Sales",
            "Visitors",
            "Revenue",
            "Orders",
            "Costs",
            "Output",
            "Members",
            "Rainfall",
            "Score",
            writer.of_class("noun").capitalize(),
        ]
    )
    unit = rng.choice(["", "", "", "%", "kg", "km", "h", "t", "mm", "USD"])
    by = rng.choice(["month", "day", "year", "city", "team", "product", "country", "quarter", "group"])
    title = rng.choice(
        [
            f"{measure} per {by}",
            f"{measure} by {by}",
            measure,
            f"{measure} {rng.randint(2000, 2029)}",
            f"{measure} of {writer.company()}",
            f"{measure}, {writer.city()}",
        ]
    )
    title_style = flow.style(rng.uniform(1.15, 1.6), bold=rng.random() < 0.7, heading=True)
    title = page.fit(title, title_style, flow.width) or measure
    flow.line(sheet.field("title", title), title_style, rng.choice("mml"))
    sheet.labels["title"] = "title"

    # Data
    count = rng.randint(3, 8)
    small = flow.style(1.0)
    names = _names(sheet, by, count)
    if look["shape"] != "lying":
        while count > 2 and max(page.measure(name, small) for name in names[:count]) > flow.width * 0.8 / count - 0.4 * small.size_px:
            count -= 1
        if max(page.measure(name, small) for name in names[:count]) > flow.width * 0.8 / count:
            raise PageFull("names of the chart")
    else:
        names = [page.fit(name, small, flow.width * 0.35) or name.split()[0] for name in names]
        if max(page.measure(name, small) for name in names) > flow.width * 0.45:
            raise PageFull("names of the chart")
        count = min(count, int((flow.bottom - flow.y - 2.5 * flow.step()) / (1.5 * small.size_px)))
        if count < 2:
            raise PageFull("bars of the chart")
    names = names[:count]
    top = rng.choice([5, 10, 20, 25, 40, 50, 60, 80, 100, 200, 250, 400, 500, 800, 1000, 2000, 5000])
    decimals = 1 if top <= 20 and rng.random() < 0.5 else 0
    series = look.get("series", 1)
    values = [[round(rng.uniform(0.08, 1.0) * top, decimals) for _ in range(count)] for _ in range(series)]
    if look["values"] == "axis":
        # To be read off an axis, values lie on it or half way between two of its lines.
        tick = top / rng.choice([4, 5])
        values = [[max(tick / 2, round(value / (tick / 2)) * tick / 2) for value in row] for row in values]
    show = lambda value: writer.amount(value, decimals if look["values"] == "mark" else 0 if float(value).is_integer() else 1)  # noqa: E731
    suffix = "%" if unit == "%" else ""
    printed = [[show(value) + suffix for value in row] for row in values]
    colors = [page.accent if sum(abs(a - b) for a, b in zip(page.accent, page.paper, strict=True)) > 150 else page.ink]
    colors.append(mix(dark_color(rng), page.paper, 0.1) if sum(page.paper) > 380 else mix((255, 170, 60), page.paper, 0.1))
    legends = [writer.of_class("noun").capitalize() for _ in range(series)]

    # Legend, for several series
    page.new_block()
    if series > 1:
        x = flow.left + 0.1 * flow.width
        baseline = flow.baseline(small)
        for name, color in zip(legends, colors, strict=False):
            page.fill(x, baseline - 0.45 * small.size_px, x + small.size_px, baseline - 0.2 * small.size_px, color)
            x += 1.4 * small.size_px
            x += page.text(x, baseline, name, small) + 1.5 * small.size_px
        flow.y += flow.step(small)
    flow.space(0.8)
    axis_name = unit if unit and unit != "%" and rng.random() < 0.7 else ""
    if axis_name:
        flow.line(axis_name, small.colored(mix(page.ink, page.paper, 0.3)))
        page.new_block()
    plot = _lying if look["shape"] == "lying" else _upright
    plot(sheet, flow, look, names, values, printed, top, colors, suffix)

    # Questions
    for k in range(series):
        of = f" of {legends[k]}" if series > 1 else ""
        for i in rng.sample(range(count), min(4, count)):
            if names.count(names[i]) == 1:
                kind = "chart" if look["values"] == "mark" else "reading"
                sheet.ask(rng.choice(_ASK_VALUE).format(name=names[i], of=of), printed[k][i], kind)
        for asks, chosen in ((_ASK_MOST, max(values[k])), (_ASK_LEAST, min(values[k]))):
            if values[k].count(chosen) == 1:
                sheet.ask(rng.choice(asks).format(of=of), names[values[k].index(chosen)], "chart")
        if look["values"] == "mark" and values[k].count(max(values[k])) == 1:
            sheet.ask(
                rng.choice(("What is the highest value?", "What is the largest value?", "How high is the highest value?", "Maximum?")),
                printed[k][values[k].index(max(values[k]))],
                "chart",
            )
        i, j = rng.sample(range(count), 2)
        if values[k][i] != values[k][j] and names.count(names[i]) == names.count(names[j]) == 1:
            sheet.ask(
                rng.choice(_ASK_COMPARE).format(first=names[i], second=names[j], of=of),
                "Yes" if values[k][i] > values[k][j] else "No",
                "yes_no",
            )
        if series == 1:
            sheet.tables.append([[by.capitalize(), measure], *([name, value] for name, value in zip(names, printed[0], strict=True))])
    what = "points" if look["shape"] == "line" else "bars"
    sheet.ask(
        rng.choice(("How many {what} are there?", "How many {what} does the chart have?", "Count the {what}.", "Number of {what}?")).format(
            what=what
        ),
        str(count),
        "count",
    )
    sheet.ask(
        rng.choice(
            ("What kind of chart is it?", "Is it a bar chart or a line chart?", "What type of chart is this?", "Bar chart or line chart?")
        ),
        "Line chart" if look["shape"] == "line" else "Bar chart",
        "category",
    )
    if series > 1:
        sheet.ask(rng.choice(("How many lines are in the chart?", "How many series are there?")), str(series), "count")


def _names(sheet: Sheet, by: str, count: int) -> list[str]:
    rng, writer = sheet.rng, sheet.writer
    start = rng.randrange(12)
    if by == "month":
        return [MONTHS[(start + i) % 12][:3] for i in range(count)]
    if by == "day":
        return [WEEKDAYS[(start + i) % 7][: rng.choice([3, 3, 9]) if i < 0 else 3] for i in range(min(count, 7))] + [
            f"D{i}" for i in range(max(0, count - 7))
        ]
    if by == "year":
        year = rng.randint(1970, 2020)
        return [str(year + i) for i in range(count)]
    if by == "quarter":
        return [f"Q{i % 4 + 1} {20 + i // 4!s}" if count > 4 else f"Q{i + 1}" for i in range(count)]
    maker = {
        "city": writer.city,
        "team": lambda: writer.of_class("other").capitalize(),
        "product": lambda: writer.goods("products").split()[-1].capitalize(),
        "country": writer.country,
        "group": lambda: rng.choice("ABCDEFGHKLMNPRST") + rng.choice(["", str(rng.randint(1, 9))]),
    }[by]
    names = list(dict.fromkeys(maker() for _ in range(4 * count)))
    # a split's list can be shorter than the chart: the rest are numbered
    return (names + [f"{name[:6]} {i}" for i, name in enumerate(names * count, 2)])[:count]


def _frame(sheet: Sheet, look: dict[str, Any], x0: float, y0: float, x1: float, y1: float) -> None:
    page = sheet.page
    color = mix(page.ink, page.paper, 0.3)
    if look["frame"] == "box":
        page.frame(x0, y0, x1, y1, 1.0, color)
    if look["frame"] in ("bottom", "both"):
        page.horizontal_rule(x0, x1, y1, 1.2, color)
    if look["frame"] in ("left", "both"):
        page.vertical_rule(x0, y0, y1, 1.2, color)


def _upright(
    sheet: Sheet,
    flow: Flow,
    look: dict[str, Any],
    names: list[str],
    values: list[list[float]],
    printed: list[list[str]],
    top: float,
    colors: list[Color],
    suffix: str,
) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    small = flow.style(1.0)
    with_axis = look["values"] == "axis"
    steps = rng.choice([4, 5])
    ticks = [top * i / steps for i in range(steps + 1)]
    tick_texts = [
        writer.amount(tick, 0 if all(float(t).is_integer() for t in ticks) else 1 if all(float(t * 10).is_integer() for t in ticks) else 2)
        + suffix
        for tick in ticks
    ]
    x0 = flow.left + (max(page.measure(text, small) for text in tick_texts) + 0.5 * small.size_px if with_axis else 0.0)
    x1, y0 = flow.right, flow.y + (0.0 if with_axis else 0.6 * small.size_px)
    y1 = flow.bottom - 1.5 * small.size_px
    if y1 - y0 < (6 if not with_axis else steps * 1.05) * small.size_px:
        raise PageFull("plot is too low")
    scale = (y1 - y0) / (top * (1.0 if with_axis else 1.02))
    grid = mix(page.paper, page.ink, 0.18)
    if look["grid"]:
        for tick in ticks[1:]:
            page.horizontal_rule(x0, x1, y1 - tick * scale, 0.8, grid)
    _frame(sheet, look, x0, y0, x1, y1)
    if with_axis:
        for tick, text in zip(ticks, tick_texts, strict=True):
            page.text(x0 - 0.3 * small.size_px, y1 - tick * scale + small.cap_height_px / 2, text, small, "r")
        page.new_block()
    slot = (x1 - x0) / len(names)
    if look["shape"] == "bar":
        share = rng.uniform(0.45, 0.85)
        many_colors = rng.random() < 0.25
        for i, value in enumerate(values[0]):
            color = mix(dark_color(rng), page.paper, 0.15) if many_colors and sum(page.paper) > 380 else colors[0]
            middle = x0 + (i + 0.5) * slot
            page.fill(middle - slot * share / 2, y1 - value * scale, middle + slot * share / 2, y1, color)
    else:
        for row, color in zip(values, colors, strict=False):
            points = [(x0 + (i + 0.5) * slot, y1 - value * scale) for i, value in enumerate(row)]
            page.draw.line(points, fill=color, width=max(1, round(small.size_px / rng.choice([5, 7, 9]))), joint="curve")
            radius = small.size_px * rng.uniform(0.15, 0.3)
            if look["values"] == "mark" or rng.random() < 0.6:
                for x, y in points:
                    page.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    if look["values"] == "mark":
        widest = max(page.measure(text, small) for text in printed[0])
        if widest > slot * 0.98:
            raise PageFull("values of the chart are too wide")
        row = values[0]
        for i, (value, text) in enumerate(zip(row, printed[0], strict=True)):
            y = y1 - value * scale - (0.3 if look["shape"] == "bar" else 0.5) * small.size_px
            below = y1 - value * scale + 0.5 * small.size_px + small.cap_height_px
            if look["shape"] == "line" and value < min(row[max(0, i - 1) : i] + row[i + 1 : i + 2]) and below < y1 - 2:
                y = below  # in a valley the line would cross a number above its point
            page.text(x0 + (i + 0.5) * slot, y, text, small, "m", row=1)
        page.new_block()
    for i, name in enumerate(names):
        page.text(x0 + (i + 0.5) * slot, y1 + 1.15 * small.size_px, name, small, "m")


def _lying(
    sheet: Sheet,
    flow: Flow,
    look: dict[str, Any],
    names: list[str],
    values: list[list[float]],
    printed: list[list[str]],
    top: float,
    colors: list[Color],
    suffix: str,
) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    small = flow.style(1.0)
    with_axis = look["values"] == "axis"
    x0 = flow.left + max(page.measure(name, small) for name in names) + 0.5 * small.size_px
    room = 0.0 if with_axis else max(page.measure(text, small) for text in printed[0]) + 0.8 * small.size_px
    x1, y0 = flow.right, flow.y
    y1 = flow.bottom - (1.5 * small.size_px if with_axis else 0.3 * small.size_px)
    steps = rng.choice([4, 5])
    ticks = [top * i / steps for i in range(steps + 1)]
    tick_texts = [
        writer.amount(tick, 0 if all(float(t).is_integer() for t in ticks) else 1 if all(float(t * 10).is_integer() for t in ticks) else 2)
        + suffix
        for tick in ticks
    ]
    if with_axis:
        x1 -= page.measure(tick_texts[-1], small) / 2
        if sum(page.measure(text, small) for text in tick_texts) * 1.2 > x1 - x0:
            raise PageFull("ticks of the chart are too wide")
    scale = (x1 - x0 - room) / top
    if scale * top < 4 * small.size_px:
        raise PageFull("plot is too narrow")
    if look["grid"]:
        for tick in ticks[1:]:
            page.vertical_rule(x0 + tick * scale, y0, y1, 0.8, mix(page.paper, page.ink, 0.18))
    _frame(sheet, look, x0, y0, x1, y1)
    slot = (y1 - y0) / len(names)
    share = rng.uniform(0.45, 0.85)
    for i, (name, value, text) in enumerate(zip(names, values[0], printed[0], strict=True)):
        middle = y0 + (i + 0.5) * slot
        page.fill(x0, middle - slot * share / 2, x0 + value * scale, middle + slot * share / 2, colors[0])
        baseline = middle + small.cap_height_px / 2
        page.text(x0 - 0.3 * small.size_px, baseline, name, small, "r")
        if not with_axis:
            page.text(x0 + value * scale + 0.35 * small.size_px, baseline, text, small)
    if with_axis:
        page.new_block()
        for tick, text in zip(ticks, tick_texts, strict=True):
            page.text(x0 + tick * scale, y1 + 1.15 * small.size_px, text, small, "m")


_ASK_VALUE = (
    "What is the value for {name}{of}?", "What is the value of {name}{of}?", "How high is {name}{of}?", "How much is {name}{of}?", "Which value does {name} have{of}?", "Value for {name}{of}?", "What does the chart show for {name}{of}?",
    "Read the value of {name}{of}.", "What number belongs to {name}{of}?",
)  # fmt: skip
_ASK_MOST = (
    "Which has the highest value{of}?",
    "Which one is the largest{of}?",
    "Where is the value highest{of}?",
    "What has the greatest value{of}?",
    "Which name belongs to the highest value{of}?",
    "Which is the maximum{of}?",
)
_ASK_LEAST = (
    "Which has the lowest value{of}?",
    "Which one is the smallest{of}?",
    "Where is the value lowest{of}?",
    "What has the least value{of}?",
    "Which name belongs to the lowest value{of}?",
    "Which is the minimum{of}?",
)
_ASK_COMPARE = (
    "Is {first} higher than {second}{of}?",
    "Is the value of {first} above that of {second}{of}?",
    "Is {first} larger than {second}{of}?",
    "Does {first} have more than {second}{of}?",
)
