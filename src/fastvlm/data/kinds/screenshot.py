"""Screens: settings, chats, articles, dialogs, files, code, mail, dashboards, log-ins, shop pages, at whole pixels or scaled."""

from fastvlm.data.canvas import mix, random_color
from fastvlm.data.documents import Sheet, dark_color
from fastvlm.data.kinds._parts import Flow, contrast
from fastvlm.data.words import WEEKDAYS

ASPECT = (0.5, 1.9)
SIZES = ((512, 512), (640, 384), (768, 448), (384, 640), (384, 768), (768, 576))
BODY_STYLES = ("sans", "sans", "sans", "sans", "mono", "serif")
MIN_LINES, MIN_COLUMNS = 8, 28

LAYOUTS = {
    "train": ("settings", "chat", "article", "dialog", "files", "code", "dashboard", "login", "shop", "terminal", "list"),
    "val": ("mail", "weather"),
    "heldout": ("profile", "tasks"),
}


def draw(sheet: Sheet) -> None:
    page, rng = sheet.page, sheet.rng
    name = sheet.choose_layout(LAYOUTS)
    dark = rng.random() < 0.3 or (name in ("code", "terminal") and rng.random() < 0.6)
    accent = rng.choice([(0, 102, 204), (26, 115, 232), (220, 53, 69), (40, 167, 69), (111, 66, 193), dark_color(rng)])
    if dark:
        level = rng.randint(12, 45)
        page.set_colors((level, level, level + rng.randint(0, 12)), (rng.randint(205, 255),) * 3, mix(accent, (255, 255, 255), 0.35))
    else:
        level = rng.choice([255, 255, 255, rng.randint(236, 252)])
        page.set_colors((level, level, level), (rng.choice([0, 17, 33, 51]),) * 3, accent)
    margin = rng.uniform(0.02, 0.06) * page.width
    flow = Flow(sheet, margin, page.width - margin, 0.0, page.height - 0.02 * page.height, spacing=rng.uniform(1.25, 1.6))
    if rng.random() < 0.6:
        _title_bar(sheet, flow)
    flow.y += 0.5 * flow.body.size_px
    _DRAWERS[name](sheet, flow)


def _title_bar(sheet: Sheet, flow: Flow) -> None:
    """A window's or a page's bar: a title or address, buttons as shapes."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    size = flow.body.size_px
    height = 1.9 * size
    bar = rng.choice([page.accent, mix(page.paper, page.ink, 0.08), mix(page.paper, page.ink, 0.16)])
    page.fill(0, 0, page.width, height, bar)
    color = contrast(bar)
    x = flow.left
    look = rng.choice(["dots", "cross", "none", "menu"])
    radius = 0.26 * size
    if look == "dots":
        for k, tone in enumerate([(255, 95, 86), (255, 189, 46), (39, 201, 63)]):
            page.draw.ellipse((x + k * 3 * radius, height / 2 - radius, x + (k * 3 + 2) * radius, height / 2 + radius), fill=tone)
        x += 10 * radius
    elif look == "menu":
        for k in range(3):
            page.fill(x, height * (0.34 + 0.16 * k), x + 0.8 * size, height * (0.34 + 0.16 * k) + max(1.0, size / 12), color)
        x += 1.3 * size
    elif look == "cross":
        end = flow.right
        page.draw.line((end - 2 * radius, height / 2 - radius, end, height / 2 + radius), fill=color, width=max(1, round(size / 12)))
        page.draw.line((end - 2 * radius, height / 2 + radius, end, height / 2 - radius), fill=color, width=max(1, round(size / 12)))
    style = page.style(1.0, bold=rng.random() < 0.5).colored(color)
    if rng.random() < 0.3:
        text = writer.url()
        page.rounded(
            x,
            0.22 * height,
            flow.right - 2.5 * size,
            0.8 * height,
            0.25 * height,
            mix(bar, (255, 255, 255), 0.5 if sum(bar) > 380 else 0.1),
        )
        key, x = "website", x + 0.5 * size
    else:
        text = rng.choice(
            [
                f"{writer.of_class('noun').capitalize()} - {writer.place()}",
                writer.of_class("plural").capitalize(),
                f"{writer.place()} {writer.trade()}",
                f"{writer.of_class('other')}.{rng.choice(['txt', 'pdf', 'docx', 'csv'])}",
            ]
        )
        key = "title"
    text = page.fit(text, style, flow.right - x - 3 * size)
    if text:
        page.text(x, height / 2 + style.cap_height_px / 2, sheet.field(key, text), style)
    flow.y = height


def _head(sheet: Sheet, flow: Flow, text: str, scale: float = 1.4) -> None:
    style = flow.style(scale, bold=sheet.rng.random() < 0.8, heading=True)
    text = sheet.page.fit(text, style, flow.width)
    if text:
        flow.line(text, style)
        sheet.fields.setdefault("heading", text)
        flow.space(0.3)


def _muted(sheet: Sheet) -> tuple[int, int, int]:
    return mix(sheet.page.ink, sheet.page.paper, 0.35)


def _button(sheet: Sheet, x: float, y: float, text: str, *, filled: bool = True, anchor: str = "l") -> tuple[float, float]:
    """A button; returns its width and height."""
    page = sheet.page
    style = page.style(1.0, bold=sheet.look("bold_button", [0, 1]) == 1)
    width, height = page.measure(text, style) + 2 * style.size_px, 1.75 * style.size_px
    x = x - width if anchor == "r" else x
    radius = height * sheet.look("button_radius", [0.0, 0.15, 0.5])
    if filled:
        page.rounded(x, y, x + width, y + height, radius, page.accent)
        style = style.colored(contrast(page.accent))
    else:
        page.frame(x, y, x + width, y + height, 1.0, radius=radius)
    page.text(x + width / 2, y + height / 2 + style.cap_height_px / 2, text, style, "m")
    return width, height


def _setting(sheet: Sheet) -> tuple[str, str]:
    rng, writer = sheet.rng, sheet.writer
    return rng.choice(
        [
            lambda: ("Language", rng.choice(["English", "German", "French", "Spanish", "Italian"])), lambda: ("Version", f"{rng.randint(1, 20)}.{rng.randint(0, 30)}.{rng.randint(0, 9)}"),
            lambda: ("Storage", f"{writer.amount(rng.uniform(1, 900), 1)} GB"), lambda: ("Network", f"{writer.place()}-{rng.randint(1, 99)}"), lambda: ("Battery", f"{rng.randint(1, 100)}%"),
            lambda: ("User", writer.name()), lambda: ("Email", writer.email()), lambda: ("Device", f"{writer.place()} {writer.code_word()}"), lambda: ("Time zone", f"UTC{rng.choice('+-')}{rng.randint(1, 12)}"),
            lambda: ("Brightness", f"{rng.randint(0, 100)}%"), lambda: ("Last backup", writer.date()), lambda: ("Theme", rng.choice(["Light", "Dark", "Auto"])), lambda: ("Serial number", writer.identifier()),
            lambda: (writer.of_class("noun").capitalize(), rng.choice(["On", "Off", writer.of_class("other"), writer.number()])), lambda: (f"{writer.of_class('adjective').capitalize()} {writer.of_class('other')}", writer.code_word()),
            lambda: ("IP address", ".".join(str(rng.randint(1, 254)) for _ in range(4))), lambda: ("Volume", f"{rng.randint(0, 100)}%"), lambda: ("Phone", writer.phone()),
        ]
    )()  # fmt: skip


def _settings(sheet: Sheet, flow: Flow) -> None:
    page, rng = sheet.page, sheet.rng
    _head(
        sheet,
        flow,
        rng.choice(
            ["Settings", "Preferences", "About", "System", "Account", "Device", "General", sheet.writer.of_class("noun").capitalize()]
        ),
    )
    height = flow.body.size_px * rng.uniform(1.7, 2.4)
    with_rules, with_toggles = rng.random() < 0.7, rng.random() < 0.4
    seen: set[str] = set()
    while flow.y + height < flow.bottom:
        name, value = _setting(sheet)
        toggles = with_toggles and value in ("On", "Off")
        if name in seen or page.measure(name + value, flow.body) + 2 * flow.body.size_px > flow.width:
            if len(seen) > 12:
                break
            seen.add(name + "?")
            continue
        seen.add(name)
        baseline = flow.y + height / 2 + flow.body.cap_height_px / 2
        page.text(flow.left, baseline, name, flow.body)
        if toggles:
            width, tall = 1.9 * flow.body.size_px, 1.0 * flow.body.size_px
            middle = flow.y + height / 2
            on = value == "On"
            page.rounded(
                flow.right - width,
                middle - tall / 2,
                flow.right,
                middle + tall / 2,
                tall / 2,
                page.accent if on else mix(page.paper, page.ink, 0.3),
            )
            knob = flow.right - tall if on else flow.right - width
            page.draw.ellipse((knob + 2, middle - tall / 2 + 2, knob + tall - 2, middle + tall / 2 - 2), fill=(255, 255, 255))
            sheet.ask(
                rng.choice(("Is {name} switched on?", "Is {name} on?", "Is the switch for {name} on?", "Is {name} enabled?")).format(
                    name=name
                ),
                "Yes" if on else "No",
                "yes_no",
            )
        else:
            page.text(flow.right, baseline, value, flow.body.colored(_muted(sheet)), "r")
            sheet.field(_key(name), value, name)
        flow.y += height
        if with_rules:
            page.horizontal_rule(flow.left, flow.right, flow.y, 1.0, mix(page.paper, page.ink, 0.15))
        if len(seen) > 14:
            break


def _key(label: str) -> str:
    return label.lower().replace(" ", "_")


def _chat(sheet: Sheet, flow: Flow) -> None:
    """Bubbles left and right; each is its own block, so that lines stay together."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    _head(sheet, flow, sheet.field("name", writer.name()), 1.2)
    size = flow.body.size_px
    last = ""
    count = 0
    mine_color, theirs_color = page.accent, mix(page.paper, page.ink, 0.1)
    while flow.room() > 2.5:
        mine = rng.random() < 0.5
        text = writer.plain_sentence() if rng.random() < 0.7 else " ".join(writer.word() for _ in range(rng.randint(1, 4)))
        lines = page.wrap(text, flow.body, flow.width * 0.66)
        tall = len(lines) * flow.step() + 0.7 * size
        if flow.y + tall > flow.bottom:
            break
        wide = max(page.measure(line, flow.body) for line in lines) + 1.2 * size
        x0 = flow.right - wide if mine else flow.left
        color = mine_color if mine else theirs_color
        page.rounded(x0, flow.y, x0 + wide, flow.y + tall, min(0.8 * size, tall / 2), color)
        inner = Flow(sheet, x0 + 0.6 * size, x0 + wide, flow.y + 0.35 * size, flow.bottom, flow.spacing)
        for line in lines:
            baseline = inner.baseline(flow.body)
            page.text(inner.left, baseline, line, flow.body.colored(contrast(color)))
            inner.y += flow.step()
        flow.y += tall + rng.uniform(0.3, 0.7) * size
        last, count = " ".join(lines), count + 1
    if count:
        sheet.ask(rng.choice(("What is the last message?", "What does the last message say?", "Read the newest message.")), last, "field")
        sheet.ask(
            rng.choice(("How many messages are shown?", "Count the messages.", "How many chat bubbles are there?")), str(count), "count"
        )


def _article(sheet: Sheet, flow: Flow) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    heading = flow.style(rng.uniform(1.4, 1.9), bold=True, heading=True)
    title = writer.plain_sentence().rstrip(".!")
    lines = page.wrap(title, heading, flow.width)
    if len(lines) <= 2:
        for line in lines:
            flow.line(line, heading)
        sheet.field("heading", title)
    if rng.random() < 0.7:
        author = sheet.field("author", writer.name())
        flow.line(
            f"{rng.choice(['By', 'by', 'Written by', 'Author:'])} {author}{rng.choice([', ', ' - ', ' | '])}{sheet.field('date', writer.date())}",
            flow.body.colored(_muted(sheet)),
        )
        sheet.ask(rng.choice(("Who wrote the article?", "Who is the author?", "Author?", "Who is it by?")), author, "field")
        sheet.fields.pop("author")
    flow.space(0.4)
    while flow.room() >= 2:
        if rng.random() < 0.2:
            flow.line(
                page.fit(f"{writer.of_class('adjective').capitalize()} {writer.of_class('plural')}", flow.body, flow.width),
                flow.style(1.15, bold=True),
            )
        text = " ".join(writer.plain_sentence() for _ in range(rng.randint(1, 4)))
        lines = page.wrap(text, flow.body, flow.width)
        for line in lines[: flow.room()]:
            flow.line(line)
        flow.space(rng.choice([0.4, 0.8]))
        if rng.random() < 0.15:
            break


def _dialog(sheet: Sheet, flow: Flow) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    size = flow.body.size_px
    page.fill(0, flow.y, page.width, page.height, mix(page.paper, page.ink, 0.25))
    inset = rng.uniform(0.02, 0.1) * page.width
    title = rng.choice(
        [
            "Error",
            "Warning",
            "Delete file?",
            "Save changes?",
            "Update available",
            "Confirm",
            "Connection lost",
            "Sign out?",
            "Low battery",
            "Information",
            f"{writer.of_class('noun').capitalize()} failed",
        ]
    )
    heading = flow.style(1.2, bold=True)
    body = flow.style(1.0)
    text = " ".join(writer.plain_sentence() for _ in range(rng.randint(1, 3)))
    inner = Flow(sheet, inset + size, page.width - inset - size, flow.y + size * rng.uniform(1.5, 3), page.height - size, flow.spacing)
    lines = page.wrap(text, body, inner.width)
    tall = flow.step(heading) + len(lines) * flow.step() + 4.2 * size
    if inner.y + tall > page.height:
        lines = lines[: max(1, len(lines) - int((inner.y + tall - page.height) / flow.step()) - 1)]
        tall = flow.step(heading) + len(lines) * flow.step() + 4.2 * size
    page.rounded(inset, inner.y - 0.7 * size, page.width - inset, inner.y - 0.7 * size + tall, sheet.look("radius", [0, 4, 10]), page.paper)
    inner.bottom = inner.y + tall
    inner.line(sheet.field("heading", title), heading)
    for line in lines:
        inner.line(line, body)
    inner.space(0.6)
    code = f"{rng.choice(['Error', 'Code', 'Error code'])} {writer.code_word()}" if rng.random() < 0.4 else ""
    if code and page.measure(code, body) < inner.width and inner.bottom - inner.y > 3.6 * size:
        inner.line(code, body.colored(_muted(sheet)))
        sheet.ask(rng.choice(("What is the error code?", "Which code is shown?", "Error code?")), code.split()[-1], "field")
    buttons = rng.choice(
        [
            ("Cancel", "OK"),
            ("No", "Yes"),
            ("Close",),
            ("Retry", "Cancel"),
            ("Later", "Update"),
            ("Discard", "Save"),
            ("Keep", "Delete"),
            ("OK",),
            ("Back", "Next"),
        ]
    )
    x = inner.right
    for i, word in enumerate(reversed(buttons)):
        width, _ = _button(sheet, x, inner.y, word, filled=i == 0, anchor="r")
        x -= width + 0.6 * size
    sheet.ask(rng.choice(("How many buttons are there?", "Number of buttons?")), str(len(buttons)), "count")
    sheet.ask(
        rng.choice(("What does the coloured button say?", "What is written on the filled button?", "Text of the coloured button?")),
        buttons[-1],
        "field",
    )


def _files(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    _head(sheet, flow, rng.choice(["Documents", "Downloads", "Files", "My files", writer.of_class("plural").capitalize()]), 1.2)
    heads = ["Name", "Size", rng.choice(["Modified", "Date", "Changed"])]
    rows = []
    for _ in range(min(18, max(1, flow.room() - 2))):
        name = f"{writer.of_class('other')}{rng.choice(['', '_', '-', ' '])}{writer.of_class('noun') if rng.random() < 0.3 else rng.randint(1, 99)}.{rng.choice(['pdf', 'txt', 'docx', 'xlsx', 'png', 'jpg', 'zip', 'csv', 'mp3', 'md'])}"
        rows.append([name, f"{writer.amount(rng.uniform(1, 999), rng.choice([0, 1]))} {rng.choice(['KB', 'MB', 'GB'])}", writer.date()])
    if rng.random() < 0.4:
        heads, rows = heads[:2], [row[:2] for row in rows]
    flow.table(
        heads,
        rows,
        "lrr"[: len(heads)],
        manner=rng.choice(["plain", "zebra", "lines", "rules"]),
        header_style=flow.body.colored(_muted(sheet)),
        row_spacing=1.55,
    )
    sheet.tables.append([heads, *rows])
    row = rng.choice(rows)
    sheet.ask(rng.choice(("How large is {name}?", "What is the size of {name}?", "Size of {name}?")).format(name=row[0]), row[1], "cell")
    sheet.ask(rng.choice(("How many files are listed?", "How many files are there?", "Count the files.")), str(len(rows)), "count")


def _code(sheet: Sheet, flow: Flow) -> None:
    """Source code with line numbers or without, in a fixed-width face, some words in colour."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    style = page.style(1.0, mono=True)
    flow.body = style
    colors = [page.ink, page.accent, mix(page.ink, (200, 60, 60), 0.6), mix(page.ink, (60, 160, 60), 0.6)]
    numbered = rng.random() < 0.4
    w = lambda: writer.of_class("other")  # noqa: E731
    makers = (
        lambda: f"def {w()}_{w()}({w()}, {w()}={rng.randint(0, 99)}):", lambda: f"    return {w()} + {rng.randint(1, 999)}", lambda: f"    {w()} = {w()}({w()}, {rng.randint(0, 20)})", lambda: f"import {w()}", lambda: f"for {w()} in range({rng.randint(2, 99)}):",
        lambda: f"    if {w()} > {rng.randint(0, 99)}:", lambda: f"        print(\"{w()} {w()}\")", lambda: f"const {w()} = {rng.randint(0, 9999)};", lambda: f"{w()}[{rng.randint(0, 9)}] = '{w()}'", lambda: f"# {w()} {w()} {w()}", lambda: f"class {w().capitalize()}:",
        lambda: f"<div class=\"{w()}\">{w()}</div>", lambda: f"SELECT {w()} FROM {w()} WHERE {w()} = {rng.randint(1, 999)};", lambda: f"    self.{w()} = {w()}", lambda: f"while {w()} != {w()}:", lambda: f"{{\"{w()}\": {rng.randint(0, 99)}, \"{w()}\": true}}",
    )  # fmt: skip
    number = rng.choice([1, 1, rng.randint(2, 400)])
    for _ in range(min(flow.room(), 30)):
        text = rng.choice(makers)()
        indent = len(text) - len(text.lstrip())
        text = text.strip()
        start = flow.left + (page.measure(f"{number + 40}", style) + style.size_px if numbered else 0.0)
        x = start + indent * page.measure("m", style)
        text = page.fit(text, style, flow.right - x)
        if not text:
            continue
        baseline = flow.baseline(style)
        if numbered:
            page.text(start - style.size_px * 0.8, baseline, str(number), style.colored(_muted(sheet)), "r")
        page.text(x, baseline, text, style.colored(rng.choice(colors) if rng.random() < 0.6 else page.ink))
        number += 1
        flow.y += flow.step(style)


def _terminal(sheet: Sheet, flow: Flow) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    style = page.style(1.0, mono=True)
    flow.body = style
    prompt = f"{writer.first_name().lower()}@{writer.of_class('other')}:~$"
    w = lambda: writer.of_class("other")  # noqa: E731
    last = ""
    for _ in range(min(flow.room(), 30)):
        if rng.random() < 0.35 or not last:
            last = rng.choice(
                [
                    f"cd {w()}",
                    f"ls -l {w()}",
                    f"python {w()}.py --{w()} {rng.randint(1, 99)}",
                    f'git commit -m "{w()}"',
                    f"cat {w()}.txt",
                    f"mkdir {w()}",
                    f"ping {writer.host()}",
                    f"grep {w()} *.log",
                    f"ssh {w()}@{writer.host()}",
                ]
            )
            text = f"{prompt} {last}"
        else:
            text = rng.choice(
                [
                    f"{w()}.{rng.choice(['txt', 'log', 'py'])}  {rng.randint(10, 99999)}",
                    f"{w()}: {w()} {rng.randint(0, 999)}",
                    f"[{rng.randint(1, 99)}%] {w()} {w()}",
                    f"Error: {w()} not found",
                    f"{rng.randint(10, 99)} files changed",
                    f"OK {writer.time()}",
                ]
            )
        text = page.fit(text, style, flow.width)
        if text:
            flow.line(text, style)


def _login(sheet: Sheet, flow: Flow) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    size = flow.body.size_px
    inset = rng.uniform(0.0, 0.12) * page.width
    flow.left, flow.right = flow.left + inset, flow.right - inset
    _head(
        sheet,
        flow,
        rng.choice(
            ["Sign in", "Log in", "Welcome back", "Create account", f"{writer.place()} {writer.trade()}", "Register", "Reset password"]
        ),
    )
    if rng.random() < 0.4:
        flow.line(page.fit(writer.plain_sentence(), flow.body, flow.width), flow.body.colored(_muted(sheet)))
    for key, label, value in (
        ("user", rng.choice(["Username", "User", "User name"]), writer.of_class("other") + writer.digits(1, 4)),
        ("email", rng.choice(["Email", "E-mail", "Email address"]), writer.email()),
        ("phone", "Phone", writer.phone()),
    ):
        if rng.random() < 0.75 and page.measure(value, flow.body) < flow.width - size and flow.room() > 4:
            flow.pair(label, sheet.field(key, value, label), "boxed")
    if flow.room() > 3:
        flow.line(rng.choice(["Password", "Passcode"]))
        page.frame(flow.left, flow.y, flow.right, flow.y + 1.6 * size, 1.0)
        for k in range(rng.randint(5, 10)):
            page.draw.ellipse(
                (flow.left + size * (0.5 + 0.6 * k), flow.y + 0.65 * size, flow.left + size * (0.8 + 0.6 * k), flow.y + 0.95 * size),
                fill=page.ink,
            )
        flow.y += 2.1 * size
    if flow.room() > 1.2 and rng.random() < 0.6:
        on = rng.random() < 0.5
        flow.checkbox(rng.choice(["Remember me", "Stay signed in", "Keep me logged in"]), on)
        flow.y += flow.step()
        sheet.ask(rng.choice(("Is the box ticked?", "Is the checkbox checked?")), "Yes" if on else "No", "yes_no")
    if flow.bottom - flow.y > 2 * size:
        _, tall = _button(sheet, flow.left, flow.y, rng.choice(["Sign in", "Log in", "Continue", "Next", "Submit", "Join"]))
        flow.y += tall + 0.5 * size
    if flow.room() > 1:
        flow.line(
            page.fit(
                rng.choice(["Forgot password?", "Need help?", "No account yet? Register", "Terms and privacy"]), flow.body, flow.width
            ),
            flow.body.colored(page.accent),
        )


def _cards(sheet: Sheet, flow: Flow) -> None:
    """A dashboard: figures in boxes, two or three a row; a box's label above or below its figure."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    _head(
        sheet,
        flow,
        rng.choice(["Dashboard", "Overview", "Summary", f"{writer.of_class('noun').capitalize()} report", "Statistics", "Today"]),
    )
    size = flow.body.size_px
    columns = 2 if flow.width < 34 * flow.body.x_height_px or rng.random() < 0.5 else 3
    gap = size
    width = (flow.width - gap * (columns - 1)) / columns
    figure = flow.style(rng.uniform(1.3, 1.8), bold=True)
    label_below = rng.random() < 0.3
    tall = flow.step() + flow.step(figure) + 0.9 * size
    seen: set[str] = set()
    while flow.y + tall < flow.bottom and len(seen) < 12:
        items = []
        for _ in range(columns):
            name = rng.choice(
                [
                    writer.of_class("plural").capitalize(),
                    "Total",
                    "Revenue",
                    "Users",
                    "Orders",
                    "Visits",
                    "Costs",
                    "Profit",
                    "Sales",
                    "Errors",
                    "Members",
                    writer.of_class("noun").capitalize(),
                ]
            )
            value = rng.choice(
                [
                    lambda: writer.count(rng.randint(1, 99999)),
                    lambda: writer.money(rng.uniform(1, 99999)),
                    writer.percent,
                    lambda: writer.amount(rng.uniform(0, 99), 1),
                ]
            )()
            if name in seen or page.measure(value, figure) > width - size or page.measure(name, flow.body) > width - size:
                continue
            seen.add(name)
            items.append((name, value))
        if not items:
            seen.add(str(len(seen)))
            continue
        for k in range(len(items)):
            x = flow.left + k * (width + gap)
            if sheet.look("card", ["frame", "shade"]) == "frame":
                page.frame(x, flow.y, x + width, flow.y + tall, 1.0, mix(page.paper, page.ink, 0.2), radius=sheet.look("radius", [0, 4, 8]))
            else:
                page.fill(x, flow.y, x + width, flow.y + tall, page.shade)
        inner = Flow(sheet, flow.left + 0.5 * size, flow.right, flow.y + 0.4 * size, flow.bottom, flow.spacing)
        rows = [([name for name, _ in items], flow.body.colored(_muted(sheet))), ([value for _, value in items], figure)]
        for texts, style in reversed(rows) if label_below else rows:
            inner.cells([(inner.left + k * (width + gap), "l", text) for k, text in enumerate(texts)], style)
        for name, value in items:
            sheet.field(_key(name), value, name)
        flow.y += tall + gap * 0.7


def _shop(sheet: Sheet, flow: Flow) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    size = flow.body.size_px
    side = min(0.34 * page.height, 0.45 * flow.width)
    tone = random_color(rng, 120, 220)
    page.fill(flow.left, flow.y, flow.left + side, flow.y + side, tone)
    page.draw.ellipse(
        (flow.left + 0.2 * side, flow.y + 0.25 * side, flow.left + 0.8 * side, flow.y + 0.85 * side), fill=mix(tone, page.accent, 0.6)
    )
    column = flow.column(flow.left + side + size, flow.right)
    name = writer.product().capitalize()
    for line in page.wrap(name, column.style(1.3, bold=True, heading=True), column.width)[:2]:
        column.line(line, column.style(1.3, bold=True, heading=True))
    sheet.field("price", writer.money(rng.uniform(1, 900)))
    column.line(sheet.fields["price"], column.style(rng.uniform(1.1, 1.5), bold=True, color=page.accent))
    column.line(
        rng.choice(["In stock", "Sold out", f"Only {rng.randint(2, 9)} left", "Free delivery", f"{rng.randint(2, 2000)} reviews"]),
        column.body.colored(_muted(sheet)),
    )
    if column.y + 2 * size < page.height:
        _button(sheet, column.left, column.y + 0.3 * size, rng.choice(["Add to cart", "Buy now", "Add to bag", "Order"]))
    flow.y = max(flow.y + side, column.y + 2.4 * size) + 0.8 * size
    for label, value in {
        rng.choice(["Brand", "Maker"]): writer.place(),
        "Weight": f"{writer.amount(rng.uniform(0.1, 30), 1)} kg",
        "Model": writer.code_word(),
        "Color": writer.of_class("other"),
        "Delivery": writer.date(),
    }.items():
        if flow.room() > 1:
            flow.pair(label + ":", sheet.field(_key(label), value, label))
    while flow.room() > 2:
        flow.paragraph(page.fit(writer.plain_sentence(), flow.body, flow.width * 1.5))
        if rng.random() < 0.5:
            break


def _list(sheet: Sheet, flow: Flow) -> None:
    """Entries with a second line, as search results and feeds have."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    _head(
        sheet, flow, rng.choice(["Results", "Inbox", "News", "Notifications", "Contacts", "Orders", f"{rng.randint(2, 900)} results"]), 1.2
    )
    bold = flow.style(1.0, bold=True)
    entries: list[tuple[str, str]] = []
    while flow.room() >= 2 and len(entries) < 12:
        title = page.fit(
            rng.choice([writer.company, writer.name, lambda: writer.plain_sentence().rstrip("."), writer.url])(), bold, flow.width * 0.7
        )
        when = rng.choice([writer.time, writer.date, lambda: rng.choice(WEEKDAYS)[:3]])()
        if not title or page.measure(title, bold) + page.measure(when, flow.body) + flow.body.size_px > flow.width:
            continue
        baseline = flow.baseline(bold)
        page.text(flow.left, baseline, title, bold.colored(page.accent) if sheet.look("links", [0, 1]) else bold)
        if sheet.look("times", [0, 1]):
            page.text(flow.right, baseline, when, flow.body.colored(_muted(sheet)), "r")
        flow.y += flow.step(bold)
        flow.line(page.fit(writer.plain_sentence(), flow.body, flow.width) or writer.word(), flow.body.colored(_muted(sheet)))
        flow.space(0.5)
        entries.append((title, when))
    if entries:
        sheet.ask(
            rng.choice(("What is the first entry?", "Which entry is at the top of the list?", "Title of the first entry?")),
            entries[0][0],
            "field",
        )
        sheet.ask(rng.choice(("How many entries are shown?", "Count the entries.")), str(len(entries)), "count")


def _mail(sheet: Sheet, flow: Flow) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    subject = f"{writer.of_class('gerund').capitalize()} {writer.of_class('plural')}"
    flow.line(sheet.field("subject", subject), flow.style(1.4, bold=True, heading=True))
    for key, label, value in (("sender", "From", writer.name()), ("recipient", "To", writer.email()), ("date", "Date", writer.date())):
        flow.pair(label + ":", sheet.field(key, value, label), "tab", tab=flow.left + 5 * flow.body.size_px)
    flow.rule()
    while flow.room() > 2:
        lines = page.wrap(writer.plain_sentence(), flow.body, flow.width)
        for line in lines[: flow.room()]:
            flow.line(line)
        flow.space(0.4)
        if rng.random() < 0.2:
            break


def _weather(sheet: Sheet, flow: Flow) -> None:
    rng, writer = sheet.rng, sheet.writer
    flow.line(sheet.field("city", writer.city()), flow.style(1.4, bold=True))
    flow.line(f"{rng.randint(-15, 38)}° {rng.choice(['Sunny', 'Cloudy', 'Rain', 'Snow', 'Windy', 'Fog'])}", flow.style(1.8))
    rows = [
        [day, f"{rng.randint(0, 38)}°", f"{rng.randint(-15, 20)}°", f"{rng.randint(0, 100)}%"]
        for day in WEEKDAYS[: max(1, min(7, flow.room() - 2))]
    ]
    flow.table(("Day", "High", "Low", "Rain"), rows, "lrrr", manner="lines")
    sheet.tables.append([["Day", "High", "Low", "Rain"], *rows])
    row = rng.choice(rows)
    sheet.ask(f"What is the high on {row[0]}?", row[1], "cell")


def _profile(sheet: Sheet, flow: Flow) -> None:
    """A person's page: a name, a line about them, figures, then details."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    size = flow.body.size_px
    side = 3.4 * size
    page.draw.ellipse((flow.left, flow.y, flow.left + side, flow.y + side), fill=mix(page.paper, page.accent, 0.6))
    column = flow.column(flow.left + side + size, flow.right)
    column.line(sheet.field("name", writer.name()), column.style(1.3, bold=True, heading=True))
    column.line(
        sheet.field("occupation", f"{writer.trade()} {rng.choice(['manager', 'adviser', 'engineer', 'assistant'])}"),
        column.body.colored(_muted(sheet)),
    )
    flow.y = max(flow.y + side, column.y) + 0.6 * size
    figures = [
        (name, writer.count(rng.randint(1, 9999)))
        for name in rng.sample(["Posts", "Followers", "Following", "Likes", "Photos", "Points"], 3)
    ]
    for texts, style in (([value for _, value in figures], flow.style(1.1, bold=True)), ([name for name, _ in figures], flow.body)):
        flow.cells([(flow.left + k * flow.width / 3, "l", text) for k, text in enumerate(texts)], style)
    for name, value in figures:
        sheet.field(_key(name), value, name)
    flow.rule(gap=0.5)
    for key, label, maker in (
        ("city", "City", writer.city),
        ("email", "Email", writer.email),
        ("phone", "Phone", writer.phone),
        ("employer", "Company", writer.company),
        ("start_date", "Start date", writer.date),
        ("website", "Website", writer.url),
    ):
        value = maker()
        if flow.room() > 1 and page.measure(label + value, flow.body) + 2 * size < flow.width:
            flow.pair(label, sheet.field(key, value, label), "spread")
    while flow.room() > 2.5:
        for line in page.wrap(writer.plain_sentence(), flow.body, flow.width)[: flow.room() - 1]:
            flow.line(line)


def _tasks(sheet: Sheet, flow: Flow) -> None:
    """A list of things to do, with boxes and dates."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    _head(sheet, flow, rng.choice(["To do", "Tasks", "My day", "Checklist", f"Tasks for {rng.choice(WEEKDAYS)}"]))
    done = total = 0
    entries: list[tuple[str, str]] = []
    while flow.room() > 1.4 and total < 14:
        name, when = f"{writer.of_class('other').capitalize()} {writer.of_class('plural')}", writer.date()
        if page.measure(name + when, flow.body) + 4 * flow.body.size_px > flow.width or name in [known for known, _ in entries]:
            name = writer.of_class("other").capitalize()
            if page.measure(name + when, flow.body) + 4 * flow.body.size_px > flow.width or name in [known for known, _ in entries]:
                break
        checked = rng.random() < 0.5
        baseline = flow.baseline(flow.body)
        flow.checkbox(name, checked)
        page.text(flow.right, baseline, when, flow.body.colored(_muted(sheet)), "r")
        flow.y += flow.step() * 1.15
        done, total = done + checked, total + 1
        entries.append((name, when))
        if rng.random() < 0.5:
            sheet.ask(
                rng.choice(("Is {name} done?", "Is {name} ticked?", "Is the task {name} finished?")).format(name=name),
                "Yes" if checked else "No",
                "yes_no",
            )
    sheet.ask(rng.choice(("How many tasks are listed?", "Count the tasks.")), str(total), "count")
    sheet.ask(rng.choice(("How many tasks are ticked?", "How many tasks are done?")), str(done), "count")
    if entries:
        name, when = rng.choice(entries)
        sheet.ask(rng.choice(("When is {name} due?", "What is the date for {name}?")).format(name=name), when, "cell")


_DRAWERS = {
    "settings": _settings, "chat": _chat, "article": _article, "dialog": _dialog, "files": _files, "code": _code, "terminal": _terminal, "dashboard": _cards, "login": _login, "shop": _shop, "list": _list, "mail": _mail,
    "weather": _weather, "profile": _profile, "tasks": _tasks,
}  # fmt: skip
