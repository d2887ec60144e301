"""Invoices and bills between companies: parties, numbers and dates, a table of goods and services, totals, how to pay."""

import random
from typing import Any

from fastvlm.data.canvas import Style, mix
from fastvlm.data.documents import Sheet
from fastvlm.data.kinds._parts import TABLE_MANNERS, Flow, contrast, logo, margins, pick_labels
from fastvlm.data.questions import FIELDS

ASPECT = (0.62, 1.3)
SIZES = ((512, 704), (512, 768), (576, 768), (512, 512), (640, 768))
BODY_STYLES = ("sans", "sans", "serif", "narrow")
MIN_LINES, MIN_COLUMNS = 19, 38

LAYOUTS = {
    "train": (
        "classic",
        "modern",
        "banner",
        "letterhead",
        "compact",
        "ledger",
        "web",
        "columns",
        "split",
        "split-head",
        "split-banner",
        "agency",
    ),
    "val": ("mirror", "bill"),
    "heldout": ("studio", "workshop"),
}
# head: name of the seller and the word "Invoice". parties: how seller and buyer are set ("split": the buyer on the left, numbers and dates on the right).
# meta: numbers and dates. totals: where the sums stand.
_PRESETS: dict[str, dict[str, Any]] = {
    "classic": {"head": "left-right", "parties": "side", "meta": "colon", "totals": "right"},
    "modern": {"head": "title-first", "parties": "side", "meta": "strip", "totals": "right"},
    "banner": {"head": "banner", "parties": "side", "meta": "spread-right", "totals": "right"},
    "letterhead": {"head": "center", "parties": "buyer", "meta": "tab", "totals": "wide"},
    "compact": {"head": "left", "parties": "inline", "meta": "row", "totals": "wide"},
    "ledger": {"head": "center", "parties": "inline", "meta": "colon", "totals": "table"},
    "web": {"head": "title-first", "parties": "buyer", "meta": "tab", "totals": "table"},
    "columns": {"head": "left-right", "parties": "buyer", "meta": "strip", "totals": "wide"},
    "split": {"head": "left-right", "parties": "split", "meta": "spread", "totals": "right"},
    "split-head": {"head": "block", "parties": "split", "meta": "tab", "totals": "right"},
    "split-banner": {"head": "banner", "parties": "split", "meta": "right", "totals": "right"},
    "agency": {"head": "block", "parties": "split", "meta": "spread", "totals": "table"},
    "mirror": {"head": "right-left", "parties": "side", "meta": "tab", "totals": "right"},
    "bill": {"head": "center", "parties": "side", "meta": "row", "totals": "table"},
    "studio": {"head": "right-left", "parties": "buyer", "meta": "colon", "totals": "right"},
    "workshop": {"head": "boxed", "parties": "side", "meta": "tab", "totals": "wide"},
}
_HEADS = (
    ("Description", "Qty", "Unit price", "Amount"), ("Item", "Quantity", "Price", "Total"), ("Service", "Hours", "Rate", "Amount"), ("Article", "Pcs", "Each", "Sum"), ("Product", "Qty", "Price", "Total"),
    ("Description", "Units", "Cost", "Line total"), ("DESCRIPTION", "QTY", "PRICE", "AMOUNT"), ("Position", "No.", "Unit", "Total"),
)  # fmt: skip
_NOTES = (
    "Thank you for your business.", "Please pay within {n} days.", "Payment is due within {n} days.", "Please quote the invoice number.", "All prices include VAT.", "Late payment: {n}% interest per month.",
    "Goods remain our property until paid.", "Thank you for your order.", "Please transfer the amount to the account above.",
)  # fmt: skip


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    look = _PRESETS[sheet.choose_layout(LAYOUTS)]
    sheet.choose_colors(light_only=True)
    flow = margins(sheet)
    label = pick_labels(rng, {key: FIELDS[key].labels for key in FIELDS})
    bold = flow.style(1.0, bold=True)
    small = flow.style(rng.choice([0.85, 1.0]))
    word = rng.choice(
        [
            "Invoice",
            "INVOICE",
            "Invoice",
            "Bill",
            "Tax invoice",
            "TAX INVOICE",
            "Proforma invoice",
            "Statement",
            "Credit note",
            "Sales invoice",
        ]
    )
    big = flow.style(rng.uniform(1.3, 2.2), bold=rng.random() < 0.7, heading=True, color=page.accent if rng.random() < 0.5 else None)
    seller = sheet.field("seller", writer.company())
    name_style = flow.style(rng.uniform(1.0, 1.5), bold=rng.random() < 0.8, heading=True)

    # Head
    step = max(flow.step(big), flow.step(name_style))
    if look["head"] == "banner":
        page.fill(0, 0, page.width, flow.y + step * 1.1, page.accent)
        big, name_style = big.colored(contrast(page.accent)), name_style.colored(contrast(page.accent))
    if look["head"] in ("left-right", "right-left", "banner"):
        first, second = (seller, word) if look["head"] != "right-left" else (word, seller)
        first_style, second_style = (name_style, big) if look["head"] != "right-left" else (big, name_style)
        if look["head"] == "left-right" and rng.random() < 0.4:
            side = 1.3 * name_style.size_px
            logo(sheet, flow.left, flow.y, side)
            start = flow.left + 1.3 * side
        else:
            start = flow.left
        first_style = page.shrink(first, first_style, (flow.right - start) * 0.55)
        second_style = page.shrink(second, second_style, (flow.right - start) * 0.42)
        baseline = flow.baseline(big)
        page.text(start, baseline, first, first_style)
        page.text(flow.right, baseline, second, second_style, "r")
        flow.y += step * 1.1
    elif look["head"] == "title-first":
        flow.line(word, big)
        flow.line(seller, name_style)
    elif look["head"] == "boxed":
        top = flow.y
        flow.space(0.3)
        flow.line(seller, name_style, "m")
        flow.line(word, big, "m")
        flow.space(0.2)
        page.frame(flow.left, top, flow.right, flow.y, 1.2, page.accent)
        flow.space(0.3)
    elif look["head"] != "block":
        anchor = "m" if look["head"] == "center" else "l"
        flow.line(seller, name_style, anchor)
        if look["head"] == "left":
            flow.line(word, big)
    if rng.random() < 0.5 and flow.room() > 14:
        flow.rule(1.2, color=page.accent)
    seller_lines = [sheet.field("address", writer.street()), writer.town_line()]
    if rng.random() < 0.6:
        seller_lines.append(f"{label['phone']}: {sheet.field('phone', writer.phone(), label['phone'])}")
    if rng.random() < 0.5:
        seller_lines.append(sheet.field("email", writer.email(), label["email"]))
    if rng.random() < 0.3:
        seller_lines.append(f"{label['vat_id']}: {sheet.field('vat_id', writer.identifier(), label['vat_id'])}")
    if flow.room() < 22:
        seller_lines = seller_lines[:2]
        sheet.fields = {key: value for key, value in sheet.fields.items() if key in ("seller", "address")}
    buyer_lines = [
        sheet.field("customer", writer.company() if rng.random() < 0.6 else writer.name(), label["customer"]),
        writer.street(),
        writer.town_line(),
    ]
    if rng.random() < 0.2:
        buyer_lines.append(sheet.field("country", writer.country()))

    # Numbers and dates
    day = writer.day()
    meta = [("invoice_number", writer.identifier()), ("date", writer.print_date(day))]
    if rng.random() < 0.75:
        meta.append(("due_date", writer.date(after=day)))
    if rng.random() < 0.35 and flow.room() > 18:
        meta.append((rng.choice(["order_number", "customer_number", "reference"]), writer.identifier()))
    if rng.random() < 0.2 and flow.room() > 18:
        meta.append(("contact", writer.name()))
    for key, value in meta:
        sheet.field(key, value, label[key])

    def set_meta(column: Flow) -> None:
        manner = {"colon": "colon", "tab": "tab", "spread-right": "spread"}.get(look["meta"], "colon")
        tab = column.left + max(page.measure(label[key], column.body) for key, _ in meta) + 1.2 * column.body.size_px
        for key, value in meta:
            column.pair(label[key] + (":" if manner == "colon" else ""), value, manner, tab=tab)

    def set_strip() -> None:
        width = flow.width / len(meta)
        for bolded, texts in ((True, [label[key] for key, _ in meta]), (False, [value for _, value in meta])):
            shown = flow.style(1.0, bold=bolded)
            for text in texts:
                shown = page.shrink(text, shown, width * 0.95)
            flow.cells([(flow.left + i * width, "l", text) for i, text in enumerate(texts)], shown)
        flow.space(0.3)

    # Parties
    if look["parties"] == "split":
        if look["head"] == "block":
            _set_sides(flow, [(seller, name_style), *((text, small) for text in seller_lines)], [(word, big)])
            if rng.random() < 0.4:
                flow.rule(rng.uniform(0.8, 2.0), color=rng.choice([page.accent, page.rule_color]))
        elif rng.random() < 0.8:
            for text in seller_lines:
                flow.line(text, small)
        else:
            for key in ("address", "phone", "email", "vat_id"):
                sheet.fields.pop(key, None)
        flow.space(rng.uniform(0.3, 1.0))
        head = bold.colored(page.accent) if rng.random() < 0.3 else bold
        _set_split(
            sheet,
            flow,
            look["meta"],
            (label["customer"] + rng.choice(["", ":"]), head),
            buyer_lines,
            [(label[key], value) for key, value in meta],
        )
    elif look["head"] == "center" and look["parties"] != "side":
        for text in seller_lines:
            flow.line(text, small, "m")
        flow.line(word, big, "l" if rng.random() < 0.5 else "m")
        if look["parties"] == "inline":
            flow.pair(label["customer"] + ":", buyer_lines[0])
            flow.line(page.fit(", ".join(buyer_lines[1:3]), flow.body, flow.width).rstrip(","))
            sheet.fields.pop("country", None)
        else:
            flow.line(label["customer"] + rng.choice(["", ":"]), bold)
            for text in buyer_lines:
                flow.line(text)
    elif look["parties"] == "side":
        # Two columns on common lines: each line is read across.
        right = [label["customer"] + rng.choice(["", ":"]), *buyer_lines]
        left = [rng.choice(["From", "Seller", "Supplier", "Issued by"]) + (":" if right[0].endswith(":") else ""), *seller_lines]
        if look["head"] == "center":
            flow.line(word, big, "m")
        middle = flow.left + flow.width * rng.uniform(0.5, 0.56)
        for i in range(max(len(left), len(right))):
            first, second = left[i] if i < len(left) else "", right[i] if i < len(right) else ""
            style = bold if i == 0 else flow.body
            style = page.shrink(first, style, middle - flow.left - flow.body.size_px)
            style = page.shrink(second, style, flow.right - middle)
            flow.cells([(x, "l", text) for x, text in ((flow.left, first), (middle, second)) if text], style)
    else:
        if look["parties"] == "buyer":
            for text in seller_lines:
                flow.line(text, small)
        else:
            text = page.fit(", ".join(seller_lines), small, flow.width)
            flow.line(text.rstrip(","), small)
            if len(text) < len(", ".join(seller_lines)):
                for key in ("phone", "email", "vat_id"):
                    if sheet.fields.get(key) and sheet.fields[key] not in text:
                        del sheet.fields[key]
        flow.space(0.4)
        if look["parties"] == "inline":
            flow.pair(label["customer"] + ":", buyer_lines[0])
            flow.line(page.fit(", ".join(buyer_lines[1:3]), flow.body, flow.width))
            sheet.fields.pop("country", None)
        else:
            flow.line(label["customer"] + ":", bold)
            for text in buyer_lines:
                flow.line(text)
    flow.space(0.5)
    if look["parties"] == "split":
        if rng.random() < 0.3:
            _stamp(sheet, flow)
    elif look["meta"] == "strip":
        set_strip()
    elif look["meta"] == "row":
        texts = [f"{label[key]}: {value}" for key, value in meta]
        while texts:
            count = len(texts)
            while count > 1 and page.measure("   ".join(texts[:count]), flow.body) > flow.width:
                count -= 1
            if _even(flow, texts[:count]):
                flow.cells([(flow.left + i * flow.width / count, "l", text) for i, text in enumerate(texts[:count])])
            else:
                flow.line("   ".join(texts[:count]))
            texts = texts[count:]
    elif look["meta"] == "spread-right":
        column = flow.column(flow.left + flow.width * 0.45, flow.right)
        set_meta(column)
        flow.y = column.y
    else:
        set_meta(flow)
    flow.space(0.5)

    # Goods and services
    reserved = 6.5
    step = 1.45 * flow.body.size_px
    most = max(1, int((flow.bottom - flow.y - reserved * flow.step()) / step) - 1)
    number = max(1, min(most, rng.choice([1, 2, 3, 4, 5, rng.randint(1, 12)])))
    columns = rng.choice([4, 4, 4, 3, 2])
    heads = list(rng.choice(_HEADS))
    caps = rng.random() < 0.8
    show = writer.money if rng.random() < 0.35 else writer.amount
    rows, total = [], 0.0
    for _ in range(number):
        quantity = rng.choice([1, 1, 2, 3, 4, 5, 8, 10, 12, 20, 25, 40, 100])
        price = round(rng.choice([rng.uniform(1, 50), rng.uniform(20, 300), rng.uniform(100, 4000)]), 2)
        if rng.random() < 0.4:
            price = float(max(1, round(price)))
        name = writer.service() if rng.random() < 0.75 else writer.product()
        name = name[0].upper() + name[1:] if caps else name
        total = round(total + quantity * price, 2)
        rows.append([name, str(quantity), show(price), show(quantity * price)])
    kept = {4: (0, 1, 2, 3), 3: (0, 1, 3), 2: (0, 3)}[columns]
    rows = [[row[i] for i in kept] for row in rows]
    heads = [heads[i] for i in kept]
    if rng.random() < 0.2:
        heads = ["#", *heads]
        rows = [[str(i + 1), *row] for i, row in enumerate(rows)]
    aligns = ("l" if heads[0] == "#" else "") + "l" + {4: "rrr", 3: "mr", 2: "r"}[columns]
    flow.table(
        heads,
        rows,
        aligns,
        manner=rng.choice(TABLE_MANNERS),
        header_style=bold,
        pad=rng.uniform(0.3, 0.6),
        row_spacing=rng.uniform(1.35, 1.6),
    )
    sheet.tables.append([heads, *rows])
    at = 1 if heads[0] == "#" else 0

    # Totals
    sums: list[tuple[str, str]] = []
    rate = rng.choice([5, 7, 8, 10, 19, 20, 21, 25])
    if rng.random() < 0.8:
        sums.append(("subtotal", show(total)))
        if rng.random() < 0.2:
            extra = round(rng.uniform(3, 60), 2)
            sums.append(("shipping", show(extra)))
            total = round(total + extra, 2)
        tax = round(total * rate / 100, 2)
        sums.append(("tax", show(tax)))
        total = round(total + tax, 2)
    sums.append(("total", writer.money(total)))
    if not any(character.isdigit() for character in label["tax"]) and rng.random() < 0.5:
        label["tax"] += f" {rate}%" if sheet.split != "train" or rng.random() < 0.4 else f" ({rate}%)"
    for key, value in sums:
        sheet.field(key, value, label[key])
    final = flow.style(rng.choice([1.0, 1.15, 1.3]), bold=True)
    if look["totals"] == "table":
        flow.table((), [[label[key], value] for key, value in sums], "rr", manner=rng.choice(["plain", "lines", "grid"]), last_bold=True)
    else:
        start = flow.left + flow.width * (rng.uniform(0.4, 0.55) if look["totals"] == "right" else 0.0)
        column = flow.column(start, flow.right)
        for key, value in sums:
            style = column.body if key != "total" else page.shrink(f"{label[key]}   {value}", final, column.width)
            if key == "total" and rng.random() < 0.4:
                column.rule(1.0, gap=0.1)
            column.pair(
                label[key] + ("" if look["totals"] == "right" else rng.choice(["", ":"])),
                value,
                "spread" if look["totals"] == "right" else "leader" if sheet.look("dots", [0, 1]) else "spread",
                style,
            )
        flow.y = column.y
    flow.space(0.4)
    if flow.room() > 1.5 and rng.random() < 0.5:
        flow.pair(label["iban"] + ":", sheet.field("iban", _iban(rng), label["iban"]), style=flow.style(1.0))
    if flow.room() > 1.5 and rng.random() < 0.7:
        flow.paragraph(rng.choice(_NOTES).format(n=rng.choice([7, 10, 14, 21, 30, 45, 60])), small)

    # Questions of this kind
    names = [row[at] for row in rows]
    for row in rng.sample(rows, min(3, len(rows))):
        if names.count(row[at]) > 1:
            continue
        sheet.ask(rng.choice(_ASK_AMOUNT).format(name=row[at]), row[-1], "cell")
        if columns == 4:
            sheet.ask(rng.choice(_ASK_UNIT).format(name=row[at]), row[-2], "cell")
        if columns >= 3:
            sheet.ask(rng.choice(_ASK_QUANTITY).format(name=row[at]), row[at + 1], "cell")
    sheet.ask(rng.choice(_ASK_COUNT), str(len(rows)), "count")
    sheet.ask(rng.choice(_ASK_FIRST), names[0], "cell")
    sheet.ask(rng.choice(_ASK_LAST), names[-1], "cell")


def _set_sides(flow: Flow, left: list[tuple[str, Style]], right: list[tuple[str, Style]]) -> None:
    """Lines with their styles at the left edge, and at the right edge beside them."""
    page = flow.page
    for i in range(max(len(left), len(right))):
        row = [(flow.left, "l", *left[i])] if i < len(left) else []
        if i < len(right):
            row.append((flow.right, "r", *right[i]))
        room = flow.width / len(row) * 0.96
        row = [(x, anchor, text, page.shrink(text, style, room)) for x, anchor, text, style in row]
        baseline = flow.baseline(max((style for *_, style in row), key=lambda style: style.size_px))
        for x, anchor, text, style in row:
            page.text(x, baseline, text, style, anchor)
        flow.y += max(flow.step(style) for *_, style in row)


def _set_split(sheet: Sheet, flow: Flow, manner: str, head: tuple[str, Style], buyer: list[str], meta: list[tuple[str, str]]) -> None:
    """The buyer on the left and numbers and dates on the right, on common lines: each line is read across.

    Args:
        manner: "spread" (labels at the middle, values at the right edge), "tab" (values in a column), "right" (label and value end at the right edge).
    """
    page, rng = flow.page, sheet.rng
    middle = flow.left + flow.width * rng.uniform(0.48, 0.58)
    label_style = flow.style(1.0, bold=rng.random() < 0.4, color=rng.choice([page.ink, page.ink, mix(page.ink, page.paper, 0.35)]))
    value_style = flow.style(1.0, bold=rng.random() < 0.15)
    colon = rng.choice(["", ":", ":"])
    tab = middle + max(page.measure(label + colon, label_style) for label, _ in meta) + rng.uniform(0.5, 1.5) * flow.body.size_px
    below = int(rng.random() < 0.3)  # the numbers begin beside the buyer's name, not beside the heading
    left = [head, *((text, flow.body) for text in buyer)]
    for i in range(max(len(left), len(meta) + below)):
        step = flow.step(flow.body)
        baseline = flow.baseline(flow.body)
        if i < len(left):
            text, style = left[i]
            page.text(flow.left, baseline, text, page.shrink(text, style, middle - flow.left - 0.5 * flow.body.size_px))
        if below <= i < len(meta) + below:
            name, value = meta[i - below]
            name += colon
            if manner == "right":
                name, value = "", f"{name} {value}"
            room = flow.right - (
                tab if manner == "tab" else middle + (page.measure(name, label_style) + 0.5 * flow.body.size_px if name else 0.0)
            )
            shown = page.shrink(value, value_style, room)
            if name:
                page.text(middle, baseline, name, label_style)
            page.text(tab if manner == "tab" else flow.right, baseline, value, shown, "l" if manner == "tab" else "r")
        flow.y += step


def _stamp(sheet: Sheet, flow: Flow) -> None:
    """What became of the bill, on a coloured tag."""
    page, rng = flow.page, sheet.rng
    word = sheet.field("status", rng.choice(["PAID", "Paid", "UNPAID", "Unpaid", "OVERDUE", "DRAFT", "DUE", "OPEN", "Open", "CANCELLED"]))
    style = flow.style(1.0, bold=rng.random() < 0.8)
    color = rng.choice([(40, 140, 70), (190, 40, 40), (200, 120, 0), page.accent])
    width, height = page.measure(word, style) + 1.4 * style.size_px, 1.5 * style.size_px
    x = flow.right - width if rng.random() < 0.6 else flow.left
    page.rounded(x, flow.y, x + width, flow.y + height, height * rng.choice([0.15, 0.5]), color)
    page.text(x + width / 2, flow.y + height / 2 + style.cap_height_px / 2, word, style.colored(contrast(color)), "m")
    flow.y += height + 0.5 * style.size_px


def _even(flow: Flow, texts: list[str]) -> bool:
    """Whether texts of equal columns would not touch."""
    return all(flow.page.measure(text, flow.body) < flow.width / len(texts) * 0.95 for text in texts)


def _iban(rng: random.Random) -> str:
    country = rng.choice(["DE", "GB", "FR", "CH", "NL", "ES", "IT", "AT", "BE", "PL"])
    digits = "".join(rng.choices("0123456789", k=rng.choice([14, 16, 18, 20])))
    text = f"{country}{digits}"
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4)) if rng.random() < 0.8 else text


_ASK_AMOUNT = (
    "How much is charged for {name}?",
    "What is the amount for {name}?",
    "What does {name} cost in total?",
    "Line total for {name}?",
    "How much is {name}?",
    "What is the total of {name}?",
    "How much must be paid for {name}?",
)
_ASK_UNIT = (
    "What is the unit price of {name}?",
    "What does one {name} cost?",
    "Price per unit of {name}?",
    "What is the price of {name}?",
    "What is the rate for {name}?",
)
_ASK_QUANTITY = (
    "What is the quantity of {name}?",
    "How many of {name}?",
    "Quantity of {name}?",
    "How many units of {name} are billed?",
    "How many {name} were ordered?",
)
_ASK_COUNT = (
    "How many items are billed?",
    "How many lines does the invoice have?",
    "How many positions are there?",
    "Count the items on the invoice.",
    "How many rows of goods are listed?",
    "Number of items?",
)
_ASK_FIRST = (
    "What is the first item?",
    "Which item is listed first?",
    "What is in the first row of the table?",
    "Name the first position.",
)
_ASK_LAST = ("What is the last item?", "Which item is listed last?", "Name the last position.")
