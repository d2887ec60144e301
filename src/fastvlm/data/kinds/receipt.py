"""Till receipts: a shop's head, goods with prices, totals, the way of payment."""

from typing import Any

from fastvlm.data.documents import Sheet
from fastvlm.data.kinds._parts import Flow, barcode, logo, pick_labels
from fastvlm.data.questions import FIELDS

ASPECT = (0.45, 1.0)
SIZES = ((384, 640), (384, 768), (320, 640), (448, 704), (512, 512), (512, 768))
BODY_STYLES = ("mono", "mono", "mono", "narrow", "sans", "sans", "serif")
MIN_LINES, MIN_COLUMNS = 15, 26

LAYOUTS = {
    "train": ("till", "grocery", "cafe", "department", "pharmacy", "market", "web", "short", "corner", "tablet", "diner"),
    "val": ("kiosk", "bar"),
    "heldout": ("bistro", "counter"),
}
# head: where the shop's name stands. meta: how date, time and numbers are set. items: what a line of goods looks like. title: a word such as "RECEIPT" is printed.
_PRESETS: dict[str, dict[str, Any]] = {
    "till": {"head": "m", "meta": "pairs", "items": "name-price", "totals": "spread"},
    "grocery": {"head": "m", "meta": "row", "items": "two-lines", "totals": "spread"},
    "cafe": {"head": "l", "meta": "spread", "items": "qty-first", "totals": "spread"},
    "department": {"head": "logo", "meta": "pairs", "items": "columns", "totals": "right"},
    "pharmacy": {"head": "m", "meta": "bottom", "items": "code", "totals": "spread"},
    "market": {"head": "l", "meta": "row", "items": "name-price", "totals": "leader"},
    "web": {"head": "logo", "meta": "spread", "items": "columns", "totals": "spread"},
    "short": {"head": "m", "meta": "row", "items": "name-price", "totals": "leader"},
    "corner": {"head": "m", "meta": "pairs", "items": "at", "totals": "spread", "title": True},
    "tablet": {"head": "m", "meta": "spread", "items": "four-columns", "totals": "spread", "title": True},
    "diner": {"head": "m", "meta": "spread", "items": "qty-first", "totals": "spread", "title": True},
    "kiosk": {"head": "r", "meta": "pairs", "items": "qty-first", "totals": "leader"},
    "bar": {"head": "m", "meta": "bottom", "items": "columns", "totals": "right"},
    "bistro": {"head": "m", "meta": "spread", "items": "qty-last", "totals": "right"},
    "counter": {"head": "boxed", "meta": "bottom", "items": "qty-first", "totals": "spread"},
}
_THANKS = (
    "Thank you!", "Thank you for your visit", "Thanks for shopping with us", "Please come again", "Have a nice day", "THANK YOU", "See you soon!", "Please keep this receipt", "Customer copy",
    "No refund without receipt", "Thank you and goodbye", "Come back soon",
)  # fmt: skip


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    look = _PRESETS[sheet.choose_layout(LAYOUTS)]
    sheet.choose_colors(light_only=True)
    x = rng.uniform(0.03, 0.09) * page.width
    y = rng.uniform(0.015, 0.05) * page.height
    flow = Flow(sheet, x, page.width - x, y, page.height - y * 0.5, spacing=rng.uniform(1.08, 1.4))
    label = pick_labels(rng, {key: FIELDS[key].labels for key in FIELDS})
    bold = flow.style(1.0, bold=rng.random() < 0.7)

    # Head
    store = sheet.field("store", writer.company() if rng.random() < 0.7 else f"{writer.place()} {writer.trade()}")
    if rng.random() < 0.35:
        store = sheet.field("store", store.upper())
    head = page.shrink(store, flow.style(rng.uniform(1.0, 1.7), bold=rng.random() < 0.8, heading=True), flow.width)
    anchor = look["head"] if look["head"] in "lmr" else "l" if look["head"] == "logo" else "m"
    if look["head"] == "logo":
        side = 2.2 * flow.body.size_px
        logo(sheet, flow.left, flow.y, side)
        flow.left += side * 1.3
    top = flow.y
    flow.line(store, head, anchor)
    lines = [sheet.field("address", writer.street()), sheet.field("city", writer.city())]
    if rng.random() < 0.6:
        lines[1] = f"{lines[1]} {sheet.field('postcode', writer.postcode())}"
    if rng.random() < 0.6:
        lines.append(f"{label['phone']}{rng.choice([':', ''])} {sheet.field('phone', writer.phone(), label['phone'])}")
    if rng.random() < 0.3:
        lines.append(f"{label['vat_id']}: {sheet.field('vat_id', writer.identifier(), label['vat_id'])}")
    for text in lines:
        flow.line(text, anchor=anchor)
    if look["head"] == "boxed":
        page.frame(flow.left - 0.4 * x, top, flow.right + 0.4 * x, flow.y + 0.2 * flow.body.size_px, 1.2)
        flow.space(0.4)
    if look["head"] == "logo":
        flow.left = x

    def separate() -> None:
        way = sheet.look("separator", ["dashed", "dashed", "solid", "none", "double"])
        if way == "none":
            flow.space(0.5)
        else:
            flow.rule(max(0.8, flow.body.size_px / 18), dash=3.0 if way == "dashed" else 0.0)
            if way == "double":
                flow.rule(0.8, gap=0.05)

    if look.get("title") and rng.random() < 0.6:
        flow.space(0.3)
        title = sheet.field(
            "title",
            rng.choice(
                ["RECEIPT", "Receipt", "SALES RECEIPT", "Sales receipt", "CASH RECEIPT", "TAX INVOICE", "ORDER", "Bill", "GUEST CHECK"]
            ),
        )
        flow.line(title, page.shrink(title, flow.style(rng.uniform(1.0, 1.5), bold=True), flow.width), "m")

    # Date, time, numbers
    day = sheet.field("date", writer.date(), label["date"])
    clock = sheet.field("time", writer.time(), label["time"])
    meta = [("date", day), ("time", clock), ("receipt_number", sheet.field("receipt_number", writer.identifier(), label["receipt_number"]))]
    if rng.random() < 0.6:
        meta.append(("cashier", sheet.field("cashier", writer.first_name(), label["cashier"])))
    if rng.random() < 0.3:
        key = rng.choice(["table_number", "till"])
        meta.append((key, sheet.field(key, str(rng.randint(1, 60)), label[key])))

    def set_meta() -> None:
        separate()
        if look["meta"] in ("row", "bottom"):
            shown = f"{label['date']}: {day}" if sheet.look("named_date", [True, False]) else day
            flow.cells([(flow.left, "l", shown), (flow.right, "r", clock)], page.shrink(f"{shown}  {clock}", flow.body, flow.width))
            rest = meta[2:]
        else:
            rest = meta
        for key, value in rest:
            flow.pair(label[key] + ("" if look["meta"] == "spread" else ":"), value, "spread" if look["meta"] == "spread" else "colon")

    if look["meta"] != "bottom":
        set_meta()
    else:
        sheet.fields = dict(sheet.fields)
    separate()

    # Goods
    reserved = 6.5 + (4 if look["meta"] == "bottom" else 0)
    lines_each = 2 if look["items"] in ("two-lines", "at") else 1
    most = max(1, int((flow.room() - reserved) / lines_each))
    number = max(1, min(most, rng.choice([2, 3, 4, 5, 6, rng.randint(1, 14), rng.randint(5, 25)])))
    rows, total = [], 0.0
    for _ in range(number):
        quantity = rng.choice([1, 1, 1, 1, 2, 2, 3, 4, 6, 10])
        price = rng.choice([rng.uniform(0.3, 9), rng.uniform(1, 40), rng.uniform(5, 200)])
        price = round(price, 2) if rng.random() < 0.6 else round(price) - 0.01 if price > 1 else 0.99
        rows.append((quantity, writer.product() if rng.random() < 0.9 else writer.service(), price, round(quantity * price, 2)))
        total = round(total + quantity * price, 2)
    caps = rng.random() < 0.25
    with_currency = rng.random() < 0.3
    show = writer.money if with_currency else writer.amount
    printed: list[tuple[str, str, str]] = []
    if look["items"] == "four-columns":
        four = rng.choice([("Item", "Qty", "Price", "Total"), ("ITEM", "QTY", "PRICE", "AMOUNT"), ("Description", "Qty", "Each", "Amount")])
        cells = [[name.title() if not caps else name.upper(), str(n), show(price), show(sum_)] for n, name, price, sum_ in rows]
        flow.table(
            four, cells, "lmrr", manner=rng.choice(["plain", "rules", "lines"]), header_style=bold, pad=0.15, row_spacing=flow.spacing
        )
        printed = [(cell[0], cell[1], cell[3]) for cell in cells]
        sheet.tables.append([list(four), *cells])
    elif look["items"] == "columns":
        heads = rng.choice(
            [
                ("Item", "Qty", "Price"),
                ("Description", "Qty", "Amount"),
                ("Article", "Pcs", "Total"),
                ("ITEM", "QTY", "TOTAL"),
                ("Product", "No.", "Sum"),
            ]
        )
        cells = [[name.upper() if caps else name.capitalize(), str(quantity), show(sum_)] for quantity, name, _, sum_ in rows]
        flow.table(
            heads, cells, "lmr", manner="plain" if rng.random() < 0.5 else "rules", header_style=bold, pad=0.15, row_spacing=flow.spacing
        )
        printed = [(cell[0], cell[1], cell[2]) for cell in cells]
        sheet.tables.append([list(heads), *cells])
    else:
        suffix = rng.choice(["", "", " A", " B", " T"])
        for quantity, name, price, sum_ in rows:
            name = name.upper() if caps else name.capitalize() if rng.random() < 0.9 else name
            value = show(sum_) + suffix
            room = flow.width - page.measure(value, flow.body) - 0.8 * flow.body.size_px
            if look["items"] == "two-lines":
                name = page.fit(name, flow.body, flow.width) or name.split()[0]
                flow.line(name)
                detail = f"{quantity} x {writer.amount(price)}"
                flow.pair(f"  {detail}".strip(), value, "spread")
            elif look["items"] == "at":
                # One line for a single piece, another below for more.
                name = page.fit(name, flow.body, room) or name.split()[0]
                if quantity == 1:
                    flow.pair(name, value, "spread")
                else:
                    flow.line(name)
                    detail = sheet.look("at", ["{} @ {}", "{} x {}", "{} @ {} each"]).format(quantity, show(price))
                    indented = flow.column(flow.left + sheet.look("indent", [0.0, 1.0, 2.0]) * flow.body.size_px, flow.right)
                    indented.pair(detail, value, "spread")
                    flow.y = indented.y
            else:
                before = {"qty-first": f"{quantity} x ", "code": f"{rng.randint(1000, 99999)} "}.get(look["items"], "")
                if look["items"] == "qty-first":
                    before = sheet.look("times", ["{} x ", "{}x ", "{} "]).format(quantity)
                after = f" x{quantity}" if look["items"] == "qty-last" and quantity > 1 else ""
                name = page.fit(name, flow.body, room - page.measure(before + after + " ", flow.body)) or name.split()[0]
                flow.pair(before + name + after, value, "leader" if look["totals"] == "leader" and rng.random() < 0.1 else "spread")
            printed.append((name, str(quantity), show(sum_)))
        sheet.tables.append([[name, quantity, value] for name, quantity, value in printed])
    separate()

    # Totals
    money = writer.money
    rate = rng.choice([0.05, 0.07, 0.08, 0.1, 0.19, 0.2, 0.21, 0.25])
    tax = round(total * rate, 2)
    sums: list[tuple[str, float]] = []
    if rng.random() < 0.6:
        sums += [("subtotal", total), ("tax", tax)]
        if sheet.split == "train" and not any(character.isdigit() for character in label["tax"]) and rng.random() < 0.4:
            label["tax"] += f" ({rate:.0%})"
        total = round(total + tax, 2)
    if rng.random() < 0.15:
        cut = round(total * rng.uniform(0.05, 0.2), 2)
        sums.append(("discount", -cut))
        total = round(total - cut, 2)
    manner = {"spread": "spread", "leader": "leader", "right": "tab"}[look["totals"]]
    tab = flow.left + flow.width * 0.62
    for key, sum_ in sums:
        flow.pair(label[key], sheet.field(key, show(sum_), label[key]), manner, tab=tab)
    big = page.style(rng.choice([1.0, 1.0, 1.2, 1.4]), bold=rng.random() < 0.8)
    shown = money(total)
    if page.measure(label["total"] + shown, big) + 2 * big.size_px > flow.width or manner == "tab":
        big = bold
    flow.pair(label["total"], sheet.field("total", shown, label["total"]), manner, big, tab=tab)
    way = rng.choice(["Cash", "Card", "Visa", "Mastercard", "Debit", "Contactless", "Gift card", "Cash"])
    if flow.room() > 2 and rng.random() < 0.7:
        sheet.field("payment_method", way.upper() if caps else way)
        if way == "Cash" and flow.room() > 3:
            given = float(int(total / 5 + 1) * 5)
            flow.pair(sheet.fields["payment_method"], sheet.field("cash", show(given)), manner, tab=tab)
            flow.pair(label["change"], sheet.field("change", show(given - total), label["change"]), manner, tab=tab)
        else:
            flow.pair(label["payment_method"], sheet.fields["payment_method"], "spread" if manner == "tab" else manner)
            if way != "Cash" and flow.room() > 1 and rng.random() < 0.5:
                flow.pair(
                    label["card_number"],
                    sheet.field(
                        "card_number", f"{rng.choice(['****', 'XXXX', '**** **** ****'])} {rng.randint(1000, 9999)}", label["card_number"]
                    ),
                    "spread",
                )
    if look["meta"] == "bottom":
        set_meta()
    if flow.room() > 1:
        flow.space(0.5)
        if flow.room() >= 1:
            flow.line(rng.choice(_THANKS), anchor="m")
    if flow.room() > 3 and rng.random() < 0.35:
        barcode(
            sheet,
            flow.left + 0.12 * flow.width,
            flow.right - 0.12 * flow.width,
            flow.y + 3,
            flow.y + rng.uniform(1.2, 2.4) * flow.body.size_px,
        )

    # Questions of this kind
    for name, pieces, value in rng.sample(printed, min(3, len(printed))):
        if sum(other[0] == name for other in printed) > 1:
            continue
        sheet.ask(rng.choice(_ASK_PRICE).format(name=name), value, "cell")
        if look["items"] in ("columns", "four-columns", "qty-first", "two-lines"):
            sheet.ask(rng.choice(_ASK_QUANTITY).format(name=name), pieces, "cell")
    sheet.ask(rng.choice(_ASK_COUNT), str(len(printed)), "count")
    sheet.ask(rng.choice(_ASK_FIRST), printed[0][0], "cell")
    sheet.ask(rng.choice(_ASK_LAST), printed[-1][0], "cell")
    sheet.ask(rng.choice(_ASK_PAID_CASH), "Yes" if way == "Cash" and "payment_method" in sheet.fields else "No", "yes_no")


_ASK_PRICE = (
    "How much is {name}?", "What does {name} cost?", "What is the price of {name}?", "How much was {name}?", "Price of {name}?", "What amount is printed for {name}?", "How much was paid for {name}?",
)  # fmt: skip
_ASK_QUANTITY = (
    "How many {name} were bought?",
    "What is the quantity of {name}?",
    "Quantity of {name}?",
    "How many times was {name} bought?",
)
_ASK_COUNT = (
    "How many items are listed?",
    "How many different items were bought?",
    "Count the items.",
    "How many products are on the receipt?",
    "Number of items?",
    "How many lines of goods are there?",
)
_ASK_FIRST = ("What is the first item?", "Which item is listed first?", "What was bought first?", "Name the first item.")
_ASK_LAST = ("What is the last item?", "Which item is listed last?", "Name the last item.")
_ASK_PAID_CASH = ("Was it paid in cash?", "Did the customer pay cash?", "Was cash used?", "Is this a cash payment?")
