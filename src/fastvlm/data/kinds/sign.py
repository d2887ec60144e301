"""Shop and street signs, door plates, posters and labels: few words, large, in colour."""

from fastvlm.data.canvas import PageFull
from fastvlm.data.documents import Sheet, dark_color
from fastvlm.data.kinds._parts import Flow, contrast, logo
from fastvlm.data.words import WEEKDAYS

ASPECT = (0.7, 2.4)
SIZES = ((512, 384), (512, 256), (384, 512), (512, 512), (640, 384), (768, 384))
BODY_STYLES = ("sans", "sans", "sans", "serif", "narrow", "mono")
MIN_LINES, MIN_COLUMNS = 5, 18

LAYOUTS = {
    "train": ("shop", "hours", "offer", "direction", "door", "warning", "menu", "price-tag", "market"),
    "val": ("poster", "notice"),
    "heldout": ("cafe", "event"),
}


def draw(sheet: Sheet) -> None:
    page, rng = sheet.page, sheet.rng
    name = sheet.choose_layout(LAYOUTS)
    _paint(sheet)
    margin = rng.uniform(0.04, 0.1)
    flow = Flow(
        sheet,
        margin * page.width,
        page.width * (1 - margin),
        margin * page.height,
        page.height * (1 - margin * 0.6),
        spacing=rng.uniform(1.15, 1.5),
    )
    flow.body = page.style(rng.uniform(1.0, 1.8))
    _DRAWERS[name](sheet, flow)
    if rng.random() < 0.5:
        inset = rng.uniform(0.008, 0.03) * page.width
        page.frame(
            inset, inset, page.width - inset - 1, page.height - inset - 1, rng.uniform(1, 4), page.ink, radius=rng.choice([0, 0, 12])
        )


def _paint(sheet: Sheet) -> None:
    """Strong colours: white on colour, colour on white, black on yellow, chalk on a board."""
    page, rng = sheet.page, sheet.rng
    color = dark_color(rng)
    way = rng.random()
    if way < 0.35:
        page.set_colors(color, contrast(color), contrast(color))
    elif way < 0.6:
        page.set_colors((255, 255, 255), color, dark_color(rng))
    elif way < 0.7:
        page.set_colors((rng.randint(235, 255), rng.randint(190, 220), rng.randint(0, 60)), (0, 0, 0), (150, 0, 0))
    elif way < 0.85:
        dark = rng.randint(10, 50)
        page.set_colors((dark, dark, dark), rng.choice([(255, 255, 255), (250, 235, 160), (240, 240, 230)]), (230, 190, 60))
    else:
        sheet.choose_colors()


def _large(sheet: Sheet, flow: Flow, text: str, most: float = 1.0, share: float = 0.3) -> None:
    """A line as large as the width allows, up to `share` of the page's height."""
    page, rng = sheet.page, sheet.rng
    style = page.style(1.0, bold=rng.random() < 0.7, heading=True)
    wide = page.measure(text, style)
    scale = min(most * flow.width / wide, share * page.height / (style.size_px * flow.spacing)) * rng.uniform(0.55, 0.97)
    if scale < 1:
        raise PageFull(text)
    flow.line(text, page.style(scale, bold=style.face.is_bold, heading=True), sheet.look("anchor", ["m", "m", "m", "l"]))


def _line(sheet: Sheet, flow: Flow, text: str, scale: float = 1.0) -> None:
    flow.line(text, sheet.page.style(flow.body.x_height_px / sheet.page.x_height_px * scale), sheet.look("anchor", ["m", "m", "m", "l"]))


def _shop_name(sheet: Sheet) -> str:
    rng, writer = sheet.rng, sheet.writer
    name = (
        writer.company()
        if rng.random() < 0.4
        else f"{writer.place()} {writer.trade()}"
        if rng.random() < 0.7
        else f"{rng.choice(['The', 'Cafe', 'Bar', 'Hotel', 'Casa', 'Studio'])} {writer.place()}"
    )
    return sheet.field("store", name.upper() if rng.random() < 0.3 else name)


def _ask_where(sheet: Sheet) -> None:
    sheet.ask(
        sheet.rng.choice(
            (
                "What is the name on the sign?",
                "What does the sign say at the top?",
                "Which shop is it?",
                "What is the place called?",
                "Name on the sign?",
            )
        ),
        sheet.fields["store"],
        "field",
    )


def _contact(sheet: Sheet, flow: Flow, count: int) -> None:
    rng, writer = sheet.rng, sheet.writer
    for key in rng.sample(["phone", "website", "address", "email"], count):
        if flow.room() < 1.2:
            return
        value = sheet.field(key, {"phone": writer.phone, "website": writer.url, "address": writer.street, "email": writer.email}[key]())
        _line(sheet, flow, f"{rng.choice(['Tel. ', 'Call ', 'Tel: ', ''])}{value}" if key == "phone" else value)


def _hours(sheet: Sheet, flow: Flow, most: int) -> None:
    """Days and times, as pairs on one line each."""
    rng, writer = sheet.rng, sheet.writer
    short = rng.random() < 0.5
    days = [day[:3] if short else day for day in WEEKDAYS]
    names = rng.choice([days, [f"{days[0]} - {days[4]}", days[5], days[6]], [f"{days[0]}-{days[5]}", days[6]], days[1:]])[:most]
    printed = []
    for name in names:
        if rng.random() < 0.12:
            value = rng.choice(["closed", "Closed", "CLOSED"])
        elif writer.uses_24_hours:
            value = f"{rng.randint(6, 11):02}:{rng.choice(['00', '30', '15'])}{rng.choice([' - ', '-'])}{rng.randint(12, 23)}:{rng.choice(['00', '30', '45'])}"
        else:
            value = f"{rng.randint(6, 11)}{rng.choice(['', ':30'])} am - {rng.randint(1, 11)}{rng.choice(['', ':30'])} pm"
        flow.pair(name, value, sheet.look("hours", ["spread", "colon", "tab", "leader"]), tab=flow.left + flow.width * 0.45)
        printed.append((name, value))
    name, value = rng.choice(printed)
    sheet.ask(
        rng.choice(
            (
                "When is it open on {day}?",
                "Opening hours on {day}?",
                "What are the hours for {day}?",
                "What time is given for {day}?",
                "From when to when is it open on {day}?",
            )
        ).format(day=name),
        value,
        "field",
    )
    closed = any(value.lower() == "closed" for _, value in printed)
    sheet.ask(rng.choice(("Is it closed on any day?", "Is there a day on which it is closed?")), "Yes" if closed else "No", "yes_no")
    for name, value in printed:
        sheet.fields[name.lower().replace(" ", "")] = value


def _draw_shop(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    if rng.random() < 0.3:
        side = 0.16 * sheet.page.height
        logo(sheet, (flow.left + flow.right - side) / 2 if sheet.look("anchor", ["m", "m", "m", "l"]) == "m" else flow.left, flow.y, side)
        flow.y += side * 1.15
    _large(sheet, flow, _shop_name(sheet), share=0.35)
    if rng.random() < 0.7:
        _line(
            sheet,
            flow,
            f"{writer.product().capitalize()} {rng.choice(['&', 'and', '-'])} {writer.product()}"
            if rng.random() < 0.5
            else f"{rng.choice(['since', 'Since', 'est.', 'EST.'])} {rng.randint(1850, 2024)}",
        )
    _contact(sheet, flow, rng.randint(0, 3))
    _ask_where(sheet)


def _draw_hours(sheet: Sheet, flow: Flow) -> None:
    rng = sheet.rng
    if rng.random() < 0.6:
        _large(sheet, flow, _shop_name(sheet), share=0.22)
        _ask_where(sheet)
    _line(
        sheet, flow, rng.choice(["Opening hours", "OPEN", "Hours", "Opening times", "WE ARE OPEN", "Business hours"]), rng.uniform(1.0, 1.3)
    )
    _hours(sheet, flow, max(1, flow.room()))
    if flow.room() > 2:
        _contact(sheet, flow, 1)


def _draw_offer(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    words = rng.choice(
        [
            "SALE",
            "Special offer",
            "TODAY",
            "Offer of the week",
            "New!",
            "2 for 1",
            "Last chance",
            "SUMMER SALE",
            f"-{rng.randint(5, 90)}%",
            f"{rng.randint(5, 90)}% OFF",
            "Save now",
            "Clearance",
        ]
    )
    _large(sheet, flow, words, share=0.35)
    _line(sheet, flow, sheet.field("offer", writer.product().capitalize()), rng.uniform(1.0, 1.3))
    if rng.random() < 0.85:
        price = sheet.field("price", writer.money(rng.uniform(0.3, 99) if rng.random() < 0.8 else rng.randint(1, 30) - 0.01))
        if rng.random() < 0.4:
            _large(sheet, flow, price, share=0.28)
        else:
            _line(sheet, flow, f"{rng.choice(['only ', 'now ', 'Only ', ''])}{price}", 1.2)
    if rng.random() < 0.5 and flow.room() > 1:
        _line(sheet, flow, f"{rng.choice(['until', 'Valid until', 'ends'])} {sheet.field('expiry_date', writer.date())}")
    if rng.random() < 0.4:
        _contact(sheet, flow, 1)


def _draw_direction(sheet: Sheet, flow: Flow) -> None:
    """Places with arrows, drawn as shapes."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    count = rng.randint(2, 5)
    style = page.style(rng.uniform(1.2, 2.2), bold=rng.random() < 0.6)
    directions: list[tuple[str, str, str]] = []
    for _ in range(count):
        if flow.y + flow.step(style) > flow.bottom:
            break
        name = rng.choice(
            [
                writer.city,
                writer.trade,
                writer.place,
                lambda: f"Exit {rng.randint(1, 60)}",
                lambda: f"Platform {rng.randint(1, 20)}",
                lambda: f"Gate {rng.choice('ABCDEF')}{rng.randint(1, 40)}",
            ]
        )()
        right = f"{rng.randint(1, 240)} {rng.choice(['km', 'km', 'mi', 'm', 'min'])}" if rng.random() < 0.6 else ""
        side = style.cap_height_px
        way = rng.choice(["left", "right", "straight"])
        baseline = flow.baseline(style)
        _arrow(sheet, flow.left, baseline - side, side, way, style.color)
        shown = page.shrink(name, style, flow.width - 1.8 * side - (page.measure(right, style) + side if right else 0))
        page.text(flow.left + 1.6 * side, baseline, name, shown)
        if right:
            page.text(flow.right, baseline, right, style, "r")
            if name not in [known for known, _, _ in directions]:
                sheet.ask(
                    rng.choice(("How far is it to {name}?", "What distance is given for {name}?", "Distance to {name}?")).format(name=name),
                    right,
                    "field",
                )
        directions.append((name, right, way))
        flow.y += flow.step(style)
    name, right, way = rng.choice(directions)
    if sum(known == name for known, _, _ in directions) == 1:
        sheet.ask(
            rng.choice(
                ("Where does the arrow for {name} point: left, right or straight?", "Which way is {name}: left, right or straight?")
            ).format(name=name),
            way,
            "pointing",
        )
    sheet.ask(rng.choice(("How many places are on the sign?", "How many directions are given?")), str(len(directions)), "count")


def _arrow(sheet: Sheet, x: float, y: float, side: float, way: str, color: tuple[int, int, int]) -> None:
    middle, head = y + side / 2, side * 0.4
    width = max(1, round(side * 0.14))
    draw_ = sheet.page.draw
    if way == "straight":
        draw_.line((x + side / 2, y + side, x + side / 2, y + head / 2), fill=color, width=width)
        draw_.polygon([(x + side / 2 - head, y + head), (x + side / 2 + head, y + head), (x + side / 2, y - head * 0.2)], fill=color)
        return
    tip, tail = (x, x + side) if way == "left" else (x + side, x)
    draw_.line((tail, middle, (tip + tail) / 2, middle), fill=color, width=width)
    draw_.polygon([(tip, middle), ((tip + tail) / 2, middle - head), ((tip + tail) / 2, middle + head)], fill=color)


def _draw_door(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    room = sheet.field("room", f"{rng.choice(['', '', 'A', 'B', 'C'])}{rng.randint(1, 499)}")
    _large(sheet, flow, rng.choice([room, f"Room {room}", f"Office {room}"]), share=0.4)
    for _ in range(rng.randint(1, 3)):
        if flow.room() < 1.2:
            break
        name = writer.titled_name() if rng.random() < 0.5 else writer.name()
        sheet.fields.setdefault("name", name)
        _line(sheet, flow, name, rng.uniform(1.0, 1.2))
    if rng.random() < 0.6 and flow.room() > 1:
        _line(sheet, flow, sheet.field("department", writer.trade()))
    if rng.random() < 0.3 and flow.room() > 1:
        _line(sheet, flow, f"{rng.choice(['Please knock', 'Reception', 'Please ring the bell', 'Private', 'Staff only'])}")


def _draw_warning(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    _large(
        sheet,
        flow,
        rng.choice(
            [
                "WARNING",
                "CAUTION",
                "NOTICE",
                "ATTENTION",
                "DANGER",
                "STOP",
                "PRIVATE",
                "NO ENTRY",
                "NO PARKING",
                "IMPORTANT",
                "SAFETY FIRST",
                "WET FLOOR",
            ]
        ),
        share=0.35,
    )
    lines = sheet.page.wrap(writer.plain_sentence(), flow.body, flow.width)
    for line in lines[: max(1, flow.room() - 1)]:
        _line(sheet, flow, line)
    if rng.random() < 0.4:
        _contact(sheet, flow, 1)


def _draw_menu(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    _large(
        sheet,
        flow,
        _shop_name(sheet) if rng.random() < 0.5 else rng.choice(["Menu", "MENU", "Today", "Lunch", "Drinks", "Specials", "Breakfast"]),
        share=0.2,
    )
    rows: list[tuple[str, str]] = []
    manner = sheet.look("menu", ["spread", "leader"])
    for _ in range(min(flow.room() - 1, rng.randint(3, 10))):
        price = writer.money(rng.uniform(1, 30)) if sheet.look("menu_money", [0, 1]) else writer.amount(rng.uniform(1, 30))
        name = sheet.page.fit(
            writer.product().capitalize(), flow.body, flow.width - sheet.page.measure(price, flow.body) - 1.5 * flow.body.size_px
        )
        if name and name not in [known for known, _ in rows]:
            flow.pair(name, price, manner)
            rows.append((name, price))
    for name, price in rng.sample(rows, min(2, len(rows))):
        sheet.ask(
            rng.choice(("How much is {name}?", "What does {name} cost?", "Price of {name}?", "What is the price of {name}?")).format(
                name=name
            ),
            price,
            "cell",
        )
    sheet.ask(rng.choice(("How many dishes are listed?", "How many items are on the menu?", "Number of items?")), str(len(rows)), "count")
    sheet.tables.append([[name, price] for name, price in rows])


def _draw_price_tag(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    _line(sheet, flow, sheet.field("offer", writer.product().capitalize()), 1.2)
    _large(sheet, flow, sheet.field("price", writer.money(rng.uniform(0.2, 300))), share=0.45)
    if flow.room() > 1:
        _line(sheet, flow, f"{rng.choice(['Art.', 'Item', 'SKU', 'No.'])} {sheet.field('reference', writer.identifier())}")
    if flow.room() > 1 and rng.random() < 0.5:
        _line(sheet, flow, f"{writer.amount(rng.uniform(0.1, 20))} / {rng.choice(['kg', '100 g', 'l', '100 ml', 'piece'])}")


def _draw_event(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    title = (
        f"{writer.of_class('adjective').capitalize()} {writer.of_class('plural')}"
        if rng.random() < 0.6
        else f"{writer.place()} {rng.choice(['Festival', 'Market', 'Concert', 'Fair', 'Open day', 'Exhibition', 'Run'])}"
    )
    _large(sheet, flow, sheet.field("title", title), share=0.3)
    _line(sheet, flow, sheet.field("date", writer.date()), rng.uniform(1.0, 1.3))
    if rng.random() < 0.7:
        _line(sheet, flow, sheet.field("time", writer.time()))
    if flow.room() > 1:
        _line(sheet, flow, sheet.field("place", f"{writer.place()} {rng.choice(['Hall', 'Park', 'Centre', 'Theatre', 'House', 'Square'])}"))
    if flow.room() > 1 and rng.random() < 0.6:
        _line(sheet, flow, f"{rng.choice(['Tickets', 'Entry', 'Admission'])} {sheet.field('price', writer.money(rng.randint(2, 90)))}")
    _contact(sheet, flow, rng.randint(0, 1))


_DRAWERS = {
    "shop": _draw_shop, "hours": _draw_hours, "offer": _draw_offer, "direction": _draw_direction, "door": _draw_door, "warning": _draw_warning, "menu": _draw_menu, "price-tag": _draw_price_tag,
    "market": lambda sheet, flow: (_draw_shop if sheet.rng.random() < 0.5 else _draw_menu)(sheet, flow),
    "poster": _draw_event, "notice": lambda sheet, flow: (_draw_hours if sheet.rng.random() < 0.5 else _draw_offer)(sheet, flow),
}  # fmt: skip


def _draw_cafe(sheet: Sheet, flow: Flow) -> None:
    """A name, then hours in two lines, then what is served."""
    writer = sheet.writer
    _large(sheet, flow, _shop_name(sheet), share=0.3)
    _ask_where(sheet)
    _hours(sheet, flow, 2)
    _line(sheet, flow, sheet.field("offer", f"{writer.product().capitalize()}, {writer.product()}"))
    _contact(sheet, flow, 1)


def _draw_evening(sheet: Sheet, flow: Flow) -> None:
    """When and where first, then what."""
    rng, writer = sheet.rng, sheet.writer
    _line(sheet, flow, f"{sheet.field('date', writer.date())}, {sheet.field('time', writer.time())}")
    _large(
        sheet,
        flow,
        sheet.field(
            "title", f"{writer.of_class('noun').capitalize()} {rng.choice(['of', 'for', 'with', 'and'])} {writer.of_class('plural')}"
        ),
        share=0.3,
    )
    _line(sheet, flow, sheet.field("name", writer.name()), 1.1)
    _line(sheet, flow, sheet.field("place", f"{writer.place()} {rng.choice(['Hall', 'House', 'Gallery', 'Club'])}, {writer.city()}"))
    _contact(sheet, flow, 1)


_DRAWERS["cafe"] = _draw_cafe
_DRAWERS["event"] = _draw_evening
