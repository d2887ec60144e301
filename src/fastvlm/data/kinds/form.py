"""Forms that were filled in: labels with values, boxes to tick, sections; known fields and made-up ones."""

from typing import Any

from fastvlm.data.canvas import Style, mix
from fastvlm.data.documents import Sheet
from fastvlm.data.kinds._parts import Flow, contrast, in_case, margins, pick_labels
from fastvlm.data.questions import FIELDS

ASPECT = (0.62, 1.4)
SIZES = ((512, 704), (512, 768), (512, 512), (640, 512), (768, 640))
BODY_STYLES = ("sans", "sans", "sans", "serif", "mono", "narrow")
MIN_LINES, MIN_COLUMNS = 16, 32

LAYOUTS = {
    "train": ("paper", "web", "web-left", "table", "two-columns", "dotted", "cards", "plain", "office", "clinic", "quad", "ruled"),
    "val": ("sheet", "panel"),
    "heldout": ("registration", "declaration"),
}
# manner: how a field is set. columns: side by side. sections: headings between groups. head: how the title stands.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"manner": "underlined", "columns": 1, "sections": "bold", "head": "m"},
    "web": {"manner": "boxed", "columns": 1, "sections": "none", "head": "l"},
    "web-left": {"manner": "box-right", "columns": 1, "sections": "bold", "head": "l"},
    "table": {"manner": "grid", "columns": 1, "sections": "none", "head": "m"},
    "two-columns": {"manner": "stacked", "columns": 2, "sections": "none", "head": "l"},
    "dotted": {"manner": "leader", "columns": 1, "sections": "bold", "head": "l"},
    "cards": {"manner": "boxed", "columns": 2, "sections": "filled", "head": "banner"},
    "plain": {"manner": "colon", "columns": 1, "sections": "bold", "head": "l"},
    "office": {"manner": "tab", "columns": 1, "sections": "filled", "head": "m"},
    "clinic": {"manner": "underlined", "columns": 1, "sections": "filled", "head": "l"},
    "quad": {"manner": "quad", "columns": 1, "sections": "bold", "head": "m"},
    "ruled": {"manner": "tab", "columns": 1, "sections": "none", "head": "l"},
    "sheet": {"manner": "tab", "columns": 1, "sections": "bold", "head": "banner"},
    "panel": {"manner": "boxed", "columns": 2, "sections": "none", "head": "m"},
    "registration": {"manner": "box-right", "columns": 1, "sections": "filled", "head": "banner"},
    "declaration": {"manner": "stacked", "columns": 2, "sections": "bold", "head": "m"},
}
_TITLES = (
    "{noun} form", "Application for {noun}", "{place} registration", "Registration form", "Membership application", "Request for {noun}", "{adjective} {noun} report", "Order form", "Personal details", "Patient record",
    "Change of address", "Claim form", "Delivery note", "Visitor record", "{place} {trade}", "Inspection report", "Enrolment form", "Survey", "Job application", "Booking form", "Declaration", "Contact details", "Questionnaire",
    "Application form", "Form {code}", "Service request", "Damage report", "Leave request", "Expense claim", "Equipment loan",
)  # fmt: skip
_SECTIONS = (
    "Personal details",
    "Contact",
    "Details",
    "Part A",
    "Part B",
    "1. Applicant",
    "2. Details",
    "Section 1",
    "Section 2",
    "General",
    "Further information",
    "Your details",
    "About you",
    "Other",
    "Data",
    "Additional",
)
_YES_NO = (
    "Member", "Smoker", "Insured", "Newsletter", "New customer", "Student", "Urgent", "Retired", "Married", "Allergies", "Car owner", "Full time", "Remote", "Terms accepted", "First visit", "Invoice needed", "Parking", "Vegetarian",
    "Returning", "Own risk", "Gift", "Express", "Confidential", "Volunteer",
)  # fmt: skip


def _values(sheet: Sheet) -> dict[str, tuple[str, str]]:
    """Known fields of forms: label and value by key."""
    rng, writer = sheet.rng, sheet.writer
    first, last = writer.first_name(), writer.last_name()
    case = rng.choice(["as is", "as is", "title", "upper", "lower"])
    label = pick_labels(rng, {key: FIELDS[key].labels for key in FIELDS}, case)
    birth = (
        f"{rng.randint(1, 28):02}/{rng.randint(1, 12):02}/{rng.randint(1935, 2010)}"
        if rng.random() < 0.3
        else writer.print_date(writer.day())
    )
    makers = {
        "date_of_birth": lambda: birth, "email": writer.email, "phone": writer.phone, "address": writer.street, "city": writer.city, "postcode": writer.postcode, "country": writer.country, "nationality": writer.country,
        "occupation": lambda: writer.trade().rstrip("s") + " " + rng.choice(["worker", "manager", "clerk", "assistant", "engineer"]), "employer": writer.company, "department": writer.trade, "date": writer.date,
        "form_number": writer.identifier, "reference": writer.identifier, "customer_number": writer.identifier, "order_number": writer.identifier, "iban": lambda: writer.identifier() + writer.digits(4, 8),
        "amount": lambda: writer.money(rng.uniform(5, 5000)), "start_date": writer.date, "quantity": lambda: str(rng.randint(1, 500)), "weight": lambda: f"{writer.amount(rng.uniform(0.5, 120), 1)} kg",
        "room": lambda: str(rng.randint(1, 450)), "floor": lambda: str(rng.randint(1, 30)), "status": lambda: rng.choice(["Open", "Closed", "Pending", "Approved", "Rejected", "Paid", "New", "Active"]),
        "contact": writer.name, "website": writer.url, "height": lambda: f"{rng.randint(150, 200)} cm", "time": writer.time, "vat_id": writer.identifier, "position": lambda: f"{writer.trade()} {rng.choice(['Manager', 'Lead', 'Assistant'])}",
        "delivery_date": writer.date, "expiry_date": writer.date, "payment_method": lambda: rng.choice(["Card", "Cash", "Bank transfer", "Cheque", "PayPal", "Direct debit"]), "blood_type": lambda: rng.choice(["A+", "A-", "B+", "B-", "AB+", "AB-", "0+", "O-"]),
        "sex": lambda: rng.choice(["F", "M", "Female", "Male", "X"]), "notes": lambda: writer.plain_sentence(),
    }  # fmt: skip
    chosen = {"name": f"{first} {last}"} if rng.random() < 0.6 else {"first_name": first, "last_name": last}
    for key in rng.sample(list(makers), rng.randint(5, 16)):
        chosen[key] = makers[key]()
    out = {key: (label[key], value) for key, value in chosen.items()}
    for _ in range(rng.randint(0, 5)):
        # A field that nobody knows: a label of random words, any value.
        words = [writer.of_class(rng.choice(["noun", "other", "adjective"])) for _ in range(rng.randint(1, 2))]
        name = " ".join(words).capitalize()
        value = rng.choice(
            [
                writer.code,
                writer.number,
                lambda: writer.of_class("other"),
                lambda: f"{writer.of_class('adjective')} {writer.of_class('noun')}",
                writer.name,
                writer.date,
            ]
        )()
        out["_".join(words)] = (in_case(name, case), " ".join(value.split()))
    return out


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    look = _PRESETS[sheet.choose_layout(LAYOUTS)]
    sheet.choose_colors()
    flow = margins(sheet)
    bold = flow.style(1.0, bold=True)
    title = rng.choice(_TITLES).format(
        noun=writer.of_class("noun"), place=writer.place(), adjective=writer.of_class("adjective").capitalize(), trade=writer.trade(), code=writer.identifier()
    )  # fmt: skip
    title = title[0].upper() + title[1:]
    if rng.random() < 0.25:
        title = title.upper()
    big = page.shrink(title, flow.style(rng.uniform(1.2, 2.0), bold=rng.random() < 0.8, heading=True), flow.width)
    if look["head"] == "banner":
        page.fill(0, 0, page.width, flow.y + flow.step(big) * 1.15, page.accent)
        flow.line(title, big.colored(contrast(page.accent)), rng.choice("lm"))
        flow.space(0.6)
    else:
        flow.line(title, big, look["head"])
        if rng.random() < 0.3 and flow.room() > 14:
            flow.line(
                page.fit(
                    rng.choice(
                        [
                            "Please complete all fields.",
                            "Please print clearly.",
                            "Fields marked * are required.",
                            "To be filled in by the applicant.",
                            writer.plain_sentence(),
                        ]
                    ),
                    flow.body,
                    flow.width,
                )
                or title,
                anchor=look["head"],
            )
        if rng.random() < 0.4:
            flow.rule(1.0)
        flow.space(0.4)
    sheet.field("title", title)

    order = list(_values(sheet).items())
    ticks = [(name, rng.random() < 0.5) for name in rng.sample(_YES_NO, rng.choice([0, 0, 1, 2, 3]))]
    colon = rng.choice(["", ":", ":", " *" if rng.random() < 0.3 else ""])
    label_style = bold if rng.random() < 0.35 else flow.body
    if rng.random() < 0.3:
        label_style = label_style.colored(mix(page.ink, page.paper, 0.35))
    value_style = flow.body
    if rng.random() < 0.15:
        value_style = page.style(1.0, mono=True)
    elif rng.random() < 0.15:
        value_style = value_style.colored((20, 30, 140) if sum(page.paper) > 380 else page.ink)  # filled in with a blue pen
    groups = [order] if look["sections"] == "none" or len(order) < 6 else [order[: len(order) // 2], order[len(order) // 2 :]]
    names = rng.sample(_SECTIONS, len(groups))
    printed: list[str] = []
    reserved = len(ticks) * flow.step() * 1.3 + (flow.step() * 2 if rng.random() < 0.5 else 0)
    for group, name in zip(groups, names, strict=True):
        if flow.bottom - flow.y - reserved < 4 * flow.step() and printed:
            break
        if look["sections"] == "filled":
            page.fill(flow.left, flow.y, flow.right, flow.y + flow.step(bold) * 1.05, page.shade)
            flow.line(name, bold, indent=0.3 * bold.size_px)
            flow.space(0.3)
        elif look["sections"] == "bold" and len(groups) > 1:
            flow.line(name, bold.colored(page.accent) if rng.random() < 0.3 else bold)
        printed += _set_fields(sheet, flow, group, look, colon, label_style, value_style, reserved)
        flow.space(0.3)
    for name, value in ticks:
        if flow.room() < 1:
            break
        if rng.random() < 0.5 or sheet.look("yes_no", [0, 1]):
            flow.checkbox(name, value)
            sheet.ask(rng.choice(_ASK_TICK).format(name=name), "Yes" if value else "No", "yes_no")
        else:
            end = flow.left + page.text(flow.left, flow.baseline(flow.body), name + ":", flow.body) + flow.body.size_px
            end = flow.checkbox("Yes", value, x=end) + flow.body.size_px
            flow.checkbox("No", not value, x=end)
            sheet.ask(rng.choice(_ASK_TICK).format(name=name), "Yes" if value else "No", "yes_no")
        flow.y += flow.step() * 1.2
    if sheet.split == "train" and rng.random() < 0.35:
        _options(sheet, flow, colon)
    if flow.room() >= 2 and rng.random() < 0.5 and "signature_date" not in sheet.fields:
        day = writer.date()
        if page.measure(f"Date: {day}  Signature", flow.body) * 1.3 < flow.width:
            flow.y += 0.4 * flow.step()
            baseline = flow.baseline(flow.body)
            page.text(
                flow.left, baseline, f"{'Date' if rng.random() < 0.7 else 'Signed on'}: {sheet.field('signature_date', day)}", flow.body
            )
            x = flow.left + flow.width * 0.55
            end = x + page.text(x, baseline, "Signature:", flow.body)
            page.horizontal_rule(end + 4, flow.right, baseline + 2)
    elif flow.room() >= 2 and look["manner"] in ("boxed", "box-right"):
        word = rng.choice(["Submit", "Send", "Save", "Continue", "Register", "Next", "Apply"])
        height, width = flow.body.size_px * 1.8, page.measure(word, bold) + 2.4 * flow.body.size_px
        page.rounded(flow.left, flow.y + 2, flow.left + width, flow.y + 2 + height, height * 0.2, page.accent)
        page.text(flow.left + width / 2, flow.y + 2 + height / 2 + bold.cap_height_px / 2, word, bold.colored(contrast(page.accent)), "m")
    sheet.ask(rng.choice(_ASK_COUNT), str(len(printed)), "count")


def _options(sheet: Sheet, flow: Flow, colon: str) -> None:
    """A question with some answers side by side, one of them ticked."""
    page, rng = sheet.page, sheet.rng
    label, choices = rng.choice(_OPTIONS)
    size = flow.body.size_px
    widths = [page.measure(choice, flow.body) + 2.6 * size for choice in choices]
    beside = page.measure(label + colon, flow.body) + size + sum(widths) < flow.width
    if flow.room() < (1 if beside else 2) or sum(widths) > flow.width:
        return
    x = flow.left
    if beside:
        x += page.text(flow.left, flow.baseline(flow.body), label + colon, flow.body) + size
    else:
        flow.line(label + colon)
    chosen = rng.randrange(len(choices))
    for i, choice in enumerate(choices):
        x = flow.checkbox(choice, i == chosen, x=x) + size
    flow.y += flow.step() * 1.2
    sheet.ask(rng.choice(_ASK_OPTION).format(label=label), choices[chosen], "field")
    i = rng.randrange(len(choices))
    sheet.ask(rng.choice(_ASK_TICK).format(name=choices[i]), "Yes" if i == chosen else "No", "yes_no")


def _set_fields(
    sheet: Sheet, flow: Flow, group: list, look: dict[str, Any], colon: str, label_style: Style, value_style: Style, reserved: float
) -> list[str]:
    """Set as many fields as fit; returns their keys."""
    page, rng = sheet.page, sheet.rng
    manner = look["manner"]
    printed: list[str] = []

    def left_over() -> float:
        return flow.bottom - flow.y - reserved

    if manner == "grid":
        rows, keys = [], []
        step = flow.body.size_px * 1.6
        for key, (label, value) in group[: max(2, int(left_over() / step) - 1)]:
            wide = page.measure(label + colon, label_style) + page.measure(value, value_style) + 3 * flow.body.size_px
            if wide < flow.width:
                rows.append([label + colon, value])
                keys.append((key, label))
        flow.table((), rows, "ll", manner=rng.choice(["grid", "lines", "zebra", "grid"]), row_spacing=1.6, pad=0.5)
        for (key, label), row in zip(keys, rows, strict=True):
            sheet.field(key, row[1], label)
        return [key for key, _ in keys]
    if manner == "quad":
        # Label and value twice a row.
        quads: list[list[str]] = []
        width = flow.width / 2 - 1.6 * flow.body.size_px
        pairs = [(key, name, value) for key, (name, value) in group if page.measure(name + colon + value, label_style) < width]
        step = flow.body.size_px * 1.6
        pairs = pairs[: 2 * max(1, int(left_over() / step) - 1)]
        pairs = pairs[: len(pairs) // 2 * 2]
        for (_, first, one), (_, second, other) in zip(pairs[::2], pairs[1::2], strict=True):
            quads.append([first + colon, one, second + colon, other])
        if quads:
            flow.table((), quads, "llll", manner=sheet.look("quad", ["grid", "grid", "lines", "plain"]), row_spacing=1.6, pad=0.4)
        printed_cells = {cell for row in quads for cell in row}
        for key, name, value in pairs:
            if value in printed_cells:  # a table cuts what is too wide
                sheet.field(key, value, name)
                printed.append(key)
        return printed
    if look["columns"] == 2:
        gutter = 1.5 * flow.body.size_px
        width = (flow.width - gutter) / 2
        fitting = [
            item
            for item in group
            if max(page.measure(item[1][0] + colon, label_style), page.measure(item[1][1], value_style)) < width - flow.body.size_px
        ]
        each = flow.step(label_style) + (flow.body.size_px * 2.2 if manner == "boxed" else flow.step(value_style) + 0.3 * flow.body.size_px)
        for i in range(0, len(fitting), 2):
            if left_over() < each and printed:
                break
            ends = []
            for j, (key, (label, value)) in enumerate(fitting[i : i + 2]):
                left = flow.left + j * (width + gutter)
                column = flow.column(left, left + width)
                column.pair(label + colon, sheet.field(key, value, label), manner, label_style, value_style)
                ends.append(column.y)
                printed.append(key)
            flow.y = max(ends)
        return printed
    each = {
        "boxed": flow.step(label_style) + 2.2 * flow.body.size_px,
        "stacked": 2.2 * flow.step(),
        "underlined": 1.5 * flow.body.size_px,
        "box-right": 2.0 * flow.body.size_px,
    }.get(manner, flow.step())
    labels = [page.measure(label + colon, label_style) for _, (label, _) in group]
    tab = flow.left + min(max(labels), flow.width * 0.42) + flow.body.size_px
    for key, (label, value) in group:
        if left_over() < each and printed:
            break
        room = flow.right - max(tab, flow.left + page.measure(label + colon, label_style) + flow.body.size_px) - 1.2 * flow.body.size_px
        if page.measure(value, value_style) > (flow.width - 1.2 * flow.body.size_px if manner in ("boxed", "stacked") else room):
            continue
        if manner == "box-right":
            height = flow.body.size_px * 1.65
            start = max(tab, flow.left + page.measure(label + colon, label_style) + 0.5 * flow.body.size_px)
            page.text(flow.left, flow.y + height / 2 + value_style.cap_height_px / 2, label + colon, label_style)
            column = flow.column(start, flow.right)
            column.input_box(start, flow.right, value, value_style, height)
            flow.y += height + 0.35 * flow.body.size_px
        else:
            flow.pair(label + colon, value, manner, label_style, value_style, tab=tab)
        sheet.field(key, value, label)
        printed.append(key)
    return printed


_ASK_TICK = (
    'Is "{name}" ticked?', "Is the box {name} checked?", "Is {name} marked?", "Was {name} ticked?", 'Is the box next to "{name}" ticked?', "{name}: yes or no?", "Is {name} selected?", "Did the person tick {name}?",
)  # fmt: skip
_OPTIONS = (
    ("Preferred contact", ("Phone", "Email", "Post")), ("Contact by", ("Phone", "Email")), ("Payment", ("Cash", "Card", "Cheque")), ("Gender", ("Male", "Female", "Other")), ("Sex", ("M", "F")),
    ("Marital status", ("Single", "Married", "Other")), ("Type", ("New", "Renewal", "Change")), ("Priority", ("Low", "Medium", "High")), ("Size", ("S", "M", "L", "XL")), ("Title", ("Mr", "Mrs", "Ms", "Dr")),
    ("Shift", ("Morning", "Afternoon", "Night")), ("Delivery", ("Standard", "Express")), ("Employment", ("Full time", "Part time")), ("Membership", ("Basic", "Silver", "Gold")), ("Rating", ("1", "2", "3", "4", "5")),
    ("Room type", ("Single", "Double", "Suite")), ("Method", ("Collect", "Deliver")), ("Do you agree?", ("Yes", "No")), ("Language", ("English", "French", "German")), ("Frequency", ("Weekly", "Monthly", "Yearly")),
)  # fmt: skip
_ASK_OPTION = (
    "Which {label} is ticked?", "Which option is selected for {label}?", 'What is ticked for "{label}"?', "What is selected as {label}?", "{label}?", "Which box is ticked for {label}?", "What is the {label}?", "Which {label} was chosen?",
    'Which answer is marked for "{label}"?',
)  # fmt: skip
_ASK_COUNT = ("How many fields are filled in?", "How many fields does the form have?", "Count the filled fields.", "Number of fields?")
