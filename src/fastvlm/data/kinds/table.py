"""Tables: price lists, timetables, results, stock, with a title; headers, rules and stripes in many manners."""

import datetime
from typing import Any

from fastvlm.data.canvas import PageFull
from fastvlm.data.documents import Sheet
from fastvlm.data.kinds._parts import TABLE_MANNERS, margins
from fastvlm.data.questions import nth
from fastvlm.data.words import MONTHS, WEEKDAYS

ASPECT = (0.7, 2.0)
SIZES = ((512, 512), (640, 448), (768, 512), (512, 640), (576, 448), (768, 768))
BODY_STYLES = ("sans", "sans", "serif", "mono", "narrow")
MIN_LINES, MIN_COLUMNS = 6, 28

LAYOUTS = {
    "train": ("titled", "bare", "captioned", "sectioned", "wide", "narrow", "dense"),
    "val": ("report", "list"),
    "heldout": ("bulletin", "register"),
}
# title: where it stands. manners: which rules. width: how much of the page. after: what follows.
_PRESETS: dict[str, dict[str, Any]] = {
    "titled": {"title": "l", "manners": TABLE_MANNERS, "width": 1.0, "after": "none"},
    "bare": {"title": "none", "manners": TABLE_MANNERS, "width": 1.0, "after": "none"},
    "captioned": {"title": "below", "manners": ("rules", "lines", "plain"), "width": 1.0, "after": "none"},
    "sectioned": {"title": "l", "manners": ("filled", "filled-grid", "filled-zebra"), "width": 1.0, "after": "note"},
    "wide": {"title": "banner", "manners": ("grid", "zebra"), "width": 1.0, "after": "none"},
    "narrow": {"title": "l", "manners": ("plain", "lines", "grid"), "width": 0.75, "after": "none"},
    "dense": {"title": "m", "manners": ("grid", "filled-grid"), "width": 1.0, "after": "note"},
    "report": {"title": "l", "manners": ("rules", "zebra"), "width": 0.85, "after": "paragraph"},
    "list": {"title": "m", "manners": ("plain", "lines"), "width": 0.9, "after": "none"},
    "bulletin": {"title": "m", "manners": ("rules", "filled-zebra", "zebra", "lines"), "width": 0.9, "after": "paragraph"},
    "register": {"title": "below", "manners": ("grid", "filled-grid", "filled"), "width": 0.95, "after": "note"},
}


def _columns(sheet: Sheet) -> tuple[list[str], list, str]:
    """Headers, makers of cells, alignments: the first column names the row."""
    rng, writer = sheet.rng, sheet.writer
    day = writer.day()
    names = {
        "person": (("Name", "Employee", "Student", "Player", "Member", "Teacher", "Driver"), writer.name),
        "last": (("Name", "Surname", "Staff"), writer.last_name),
        "product": (("Product", "Item", "Article", "Goods", "Description"), lambda: writer.product().capitalize()),
        "service": (("Service", "Task", "Job", "Part"), lambda: writer.service().capitalize()),
        "city": (("City", "Town", "Station", "Stop", "Branch", "Destination"), writer.city),
        "country": (("Country", "Nation", "Market"), writer.country),
        "company": (("Company", "Supplier", "Client", "Firm"), writer.company),
        "month": (("Month", "Period"), lambda: MONTHS[rng.randrange(12)]),
        "weekday": (("Day", "Weekday"), lambda: rng.choice(WEEKDAYS)),
        "word": (("Subject", "Topic", "Category", "Group", "Class", "Team"), lambda: writer.of_class("noun").capitalize()),
        "code": (("Code", "ID", "No.", "Ref", "Model"), writer.identifier),
        "date": (("Date", "Day"), lambda: writer.print_date(day + datetime.timedelta(days=rng.randint(0, 300)))),
    }
    decimals = rng.choice([0, 1, 2])
    values = {
        "amount": (("Amount", "Price", "Cost", "Total", "Value", "Sum", "Fee"), lambda: writer.amount(rng.uniform(1, 2000)), "r"),
        "money": (("Price", "Cost", "Sales", "Budget", "Balance"), lambda: writer.money(rng.uniform(1, 900)), "r"),
        "count": (
            ("Qty", "Stock", "Units", "Pieces", "Points", "Visits", "Orders", "Score"),
            lambda: writer.count(rng.choice([rng.randint(0, 30), rng.randint(0, 999), rng.randint(0, 20000)])),
            "r",
        ),
        "percent": (("Share", "Rate", "Growth", "Change", "%"), writer.percent, "r"),
        "measure": (("Weight", "Length", "Width", "Height", "Speed", "Mean"), lambda: writer.amount(rng.uniform(0, 300), decimals), "r"),
        "time": (("Time", "Start", "End", "Departure", "Arrival", "Opens"), writer.time, "r"),
        "room": (("Room", "Gate", "Platform", "Track", "Seat"), lambda: rng.choice(["A", "B", "C", ""]) + str(rng.randint(1, 40)), "m"),
        "yes": (("Active", "Paid", "Done", "In stock", "Passed"), lambda: rng.choice(["Yes", "No"]), "m"),
        "status": (("Status", "State"), lambda: rng.choice(["Open", "Closed", "Pending", "Late", "On time", "New", "Sent", "Ready"]), "l"),
        "year": (("Year", "Since"), lambda: str(rng.randint(1950, 2029)), "m"),
        "grade": (("Grade", "Class", "Level", "Size"), lambda: rng.choice(["A", "B", "C", "D", "A+", "B-", "S", "M", "L", "XL"]), "m"),
        "code": (("Code", "SKU", "Ref.", "ID"), writer.identifier, "l"),
        "city": (("City", "Place", "Town"), writer.city, "l"),
        "word": (("Type", "Kind", "Note", "Color"), lambda: writer.of_class("other"), "l"),
        "date": (("Date", "Due", "Delivered"), lambda: writer.print_date(day + datetime.timedelta(days=rng.randint(0, 300))), "l"),
    }
    count = rng.choices([1, 2, 3, 4, 5, 6], [2, 5, 6, 5, 3, 1])[0]
    if rng.random() < 0.2:
        # One measure over several years or months.
        heads = [str(rng.randint(1990, 2020) + i) for i in range(1)]
        year = int(heads[0])
        heads = [str(year + i) for i in range(count)] if rng.random() < 0.5 else [MONTHS[(year + i) % 12][:3] for i in range(count)]
        kind = rng.choice(["count", "amount", "percent", "measure"])
        name, maker = names[rng.choice(["product", "city", "country", "company", "last", "word"])]
        return [rng.choice(name), *heads], [maker] + [values[kind][1]] * count, "l" + values[kind][2] * count
    name, maker = rng.choice(list(names.values()))
    heads, makers, aligns = [rng.choice(name)], [maker], "l"
    for kind in rng.sample(list(values), count):
        options = [head for head in values[kind][0] if head not in heads]
        if options:
            heads.append(rng.choice(options))
            makers.append(values[kind][1])
            aligns += values[kind][2]
    return heads, makers, aligns


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    look = _PRESETS[sheet.choose_layout(LAYOUTS)]
    sheet.choose_colors()
    flow = margins(sheet)
    bold = flow.style(1.0, bold=rng.random() < 0.8)
    noun = writer.of_class("noun")
    title = rng.choice([f"{writer.of_class('adjective')} {writer.of_class('plural')}", f"{noun} {rng.randint(1990, 2029)}", f"List of {writer.of_class('plural')}", f"{writer.place()} {writer.trade()}", f"{noun} per {writer.of_class('other')}",
        f"Table {rng.randint(1, 20)}: {noun}", f"Price list {rng.randint(2000, 2029)}", f"Timetable {writer.city()}", f"Results of {rng.choice(WEEKDAYS)}", f"{rng.choice(MONTHS)} {noun}"])  # fmt: skip
    title = title[0].upper() + title[1:]
    if rng.random() < 0.15:
        title = title.upper()
    big = flow.style(rng.uniform(1.1, 1.9), bold=rng.random() < 0.7, heading=True, color=page.accent if rng.random() < 0.3 else None)
    if look["title"] in ("l", "m"):
        flow.line(sheet.field("title", title), big, look["title"])
        flow.space(rng.uniform(0.1, 0.6))
    elif look["title"] == "banner":
        page.fill(0, 0, page.width, flow.y + flow.step(big) * 1.1, page.shade)
        flow.line(sheet.field("title", title), big)
        flow.space(0.6)
    heads, makers, aligns = _columns(sheet)
    heads = list(heads)
    if rng.random() < 0.15:
        heads = [head.upper() for head in heads]
    spacing = rng.uniform(1.3, 2.0)
    reserved = {"none": 0.5, "note": 2.0, "paragraph": 4.0}[look["after"]] + (2.0 if look["title"] == "below" else 0.0)
    most = int((flow.bottom - flow.y - reserved * flow.step()) / (flow.body.size_px * spacing)) - 1
    number = max(2, min(most, 22, rng.choice([2, 4, 6, rng.randint(3, 12), most, most, rng.randint(most // 2, max(2, most))])))
    rows: list[list[str]] = []
    for _ in range(number):
        row = [maker() for maker in makers]
        if not any(row[0] == other[0] for other in rows):
            rows.append(row)
    if rng.random() < 0.25 and heads[0] in ("Month", "Period"):
        rows = [[month, *row[1:]] for month, row in zip(MONTHS, rows, strict=False)]
    if rng.random() < 0.12:
        aligns = "l" + "m" * (len(aligns) - 1)
    if rng.random() < 0.1:
        aligns = "l" * len(aligns)
    width = flow.width * (look["width"] if rng.random() < 0.7 else 1.0)
    column = flow.column(flow.left, flow.left + width)
    before = [row[:] for row in rows]
    while True:
        try:
            runs, y = len(page.runs), column.y
            column.table(
                heads,
                rows,
                aligns,
                manner=rng.choice(look["manners"]),
                header_style=bold,
                pad=rng.uniform(0.3, 0.7),
                row_spacing=spacing,
                stretch=rng.random() < 0.85,
            )
            break
        except PageFull:
            # Too many columns for the width: the last goes. Nothing was drawn yet when the widths do not fit.
            if len(page.runs) != runs or len(heads) <= 2:
                raise
            column.y = y
            heads, aligns = heads[:-1], aligns[:-1]
            rows = [row[: len(heads)] for row in before]
    flow.y = column.y
    sheet.tables.append([heads, *rows])
    if look["title"] == "below":
        flow.space(0.3)
        flow.line(sheet.field("title", title), flow.style(1.0, italic=True), rng.choice("lm"))
    if look["after"] == "note" and flow.room() >= 1.5:
        flow.line(page.fit(rng.choice(["Source: ", "Note: ", "* "]) + writer.plain_sentence(), flow.body, flow.width), flow.style(0.85))
    elif look["after"] == "paragraph" and flow.room() >= 2:
        text = writer.plain_sentence()
        if len(page.wrap(text, flow.body, flow.width)) <= flow.room():
            flow.paragraph(text)
    ask_about_table(sheet, heads, rows)


def ask_about_table(sheet: Sheet, heads: list[str], rows: list[list[str]]) -> None:
    """Cells by row and column, counts, first and last rows, the row that holds a value."""
    rng = sheet.rng
    names = [row[0] for row in rows]
    for _ in range(4):
        row, j = rng.choice(rows), rng.randrange(1, len(heads)) if len(heads) > 1 else 0
        if names.count(row[0]) == 1 and j:
            sheet.ask(rng.choice(_ASK_CELL).format(row=row[0], column=heads[j]), row[j], "cell")
    j = rng.randrange(len(heads))
    i = rng.randrange(len(rows))
    sheet.ask(rng.choice(_ASK_PLACE).format(nth=nth(i + 1), n=i + 1, column=heads[j]), rows[i][j], "cell")
    sheet.ask(rng.choice(_ASK_ROWS), str(len(rows)), "count")
    sheet.ask(rng.choice(_ASK_COLUMNS), str(len(heads)), "count")
    sheet.ask(rng.choice(_ASK_FIRST).format(column=heads[0]), names[0], "cell")
    sheet.ask(rng.choice(_ASK_LAST).format(column=heads[0]), names[-1], "cell")
    sheet.ask(rng.choice(_ASK_HEAD).format(nth=nth(j + 1)), heads[j], "cell")
    if len(heads) > 1:
        j = rng.randrange(1, len(heads))
        values = [row[j] for row in rows]
        i = rng.randrange(len(rows))
        if values.count(values[i]) == 1:
            sheet.ask(rng.choice(_ASK_WHICH).format(first=heads[0], column=heads[j], value=values[i]), names[i], "cell")


_ASK_CELL = (
    "What is the {column} of {row}?", "What is the {column} for {row}?", "{column} of {row}?", "What does the table give as {column} for {row}?", "Which {column} does {row} have?", "{row}: {column}?", "Find the {column} of {row}.",
    "What {column} is listed for {row}?", "Read the {column} of {row}.", 'What is in the column "{column}" for {row}?', "In the row {row}, what is the {column}?",
)  # fmt: skip
_ASK_PLACE = (
    "What is the {column} in the {nth} row?",
    "Row {n}, {column}?",
    "What does the {nth} row give for {column}?",
    'What is in row {n} of the column "{column}"?',
    "Give the {column} of the {nth} row.",
)
_ASK_ROWS = (
    "How many rows does the table have?",
    "How many rows are there, without the header?",
    "How many entries are listed?",
    "Count the rows.",
    "How many entries does the table have?",
    "Number of rows?",
)
_ASK_COLUMNS = ("How many columns does the table have?", "How many columns are there?", "Count the columns.", "Number of columns?")
_ASK_FIRST = (
    "What is the first {column}?",
    "Which {column} is listed first?",
    "What is in the first cell below {column}?",
    "Which {column} is at the top?",
)
_ASK_LAST = ("What is the last {column}?", "Which {column} is listed last?", "Which {column} is at the bottom?")
_ASK_HEAD = (
    "What is the header of the {nth} column?",
    "What is the {nth} column called?",
    "Which heading does the {nth} column have?",
    "Title of the {nth} column?",
)
_ASK_WHICH = (
    "Which {first} has {column} {value}?",
    "Which row has {value} as {column}?",
    'For which {first} is the {column} "{value}"?',
    "Who or what has the {column} {value}?",
)
