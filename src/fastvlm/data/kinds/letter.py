"""Letters and memos: sender, address, date, subject, salutation, running text, closing."""

from typing import Any

from fastvlm.data.documents import Sheet
from fastvlm.data.kinds._parts import Flow, logo, margins, pick_labels
from fastvlm.data.questions import FIELDS
from fastvlm.data.words import MONTHS, WEEKDAYS

ASPECT = (0.62, 1.3)
SIZES = ((512, 704), (512, 768), (576, 768), (512, 512), (640, 768))
BODY_STYLES = ("serif", "serif", "sans", "sans", "mono")
MIN_LINES, MIN_COLUMNS = 17, 32

LAYOUTS = {
    "train": ("business", "personal", "memo", "notice", "email", "formal", "fax", "note", "circular", "typed", "footed"),
    "val": ("modern", "reminder"),
    "heldout": ("block", "office"),
}
# head: where the sender stands. order: what follows. close: where the closing stands.
_PRESETS: dict[str, dict[str, Any]] = {
    "business": {"head": "top-left", "order": ("recipient", "date", "subject"), "close": "l"},
    "personal": {"head": "right", "order": ("date",), "close": "r"},
    "memo": {"head": "none", "order": ("title", "to-from"), "close": "none"},
    "notice": {"head": "center", "order": ("date", "subject"), "close": "l"},
    "email": {"head": "none", "order": ("to-from",), "close": "l"},
    "formal": {"head": "right", "order": ("recipient", "date", "reference", "subject"), "close": "l"},
    "fax": {"head": "center", "order": ("title", "to-from"), "close": "l"},
    "note": {"head": "none", "order": ("date",), "close": "r"},
    "circular": {"head": "logo", "order": ("subject", "date"), "close": "l"},
    "typed": {"head": "right", "order": ("date", "recipient", "subject"), "close": "l"},
    "footed": {"head": "center", "order": ("date", "recipient"), "close": "l", "foot": True},
    "modern": {"head": "logo", "order": ("date", "recipient", "subject"), "close": "l"},
    "reminder": {"head": "top-left", "order": ("reference", "recipient", "date", "subject"), "close": "r"},
    "block": {"head": "top-left", "order": ("date", "recipient", "reference", "subject"), "close": "l"},
    "office": {"head": "center", "order": ("recipient", "subject", "date"), "close": "r"},
}
_SALUTATIONS = (
    "Dear {name},",
    "Dear {name},",
    "Dear {name}:",
    "Hello {name},",
    "Hi {first},",
    "Dear {first},",
    "{name},",
    "To {name},",
    "Good morning {first},",
    "Greetings {first},",
)
_CLOSINGS = (
    "Yours sincerely,", "Sincerely,", "Kind regards,", "Best regards,", "Yours faithfully,", "With best wishes,", "Regards,", "Warm regards,", "Respectfully,", "Yours truly,", "Many thanks,", "Best wishes,", "Cheers,",
    "With kind regards", "Thank you,",
)  # fmt: skip
# Every word here is of all splits or of the training split, tested.
_USUAL = (
    "We are pleased to inform you that your {noun} has been approved.", "We are writing to inform you that the {noun} will begin on {day}.", "I am writing to you about the {noun} of {date}.",
    "I am writing in reply to your letter of {date}.", "If you have any questions, please call us on {phone}.", "If you have any questions, please do not hesitate to contact me.",
    "Please let us know by {date} if this suits you.", "Please let me know whether you can come.", "We would like to invite you to {city} on {date}.", "It will take place at {time} on {date}.",
    "Your payment of {money} is due on {date}.", "We have received your payment of {money}.", "We have not yet received your payment of {money}.", "Please send the amount of {money} to us by {date}.",
    "The price of the {product} is {money}.", "We are sorry for the delay.", "We apologise for the trouble that this has caused.", "As agreed, we will send you {n} {plural}.",
    "From {date} on our number will be {phone}.", "I would be grateful if you could send me the {noun}.", "I hope this letter finds you well.", "It was a pleasure to meet you in {city}.",
    "Your contract with {company} ends on {date}.", "Please return the signed form by {date}.", "Please bring your {noun} with you.", "The rent will rise to {money} a month from {date}.",
    "There will be a {noun} in the building on {day}.", "You can reach me at any time on {phone}.", "Please quote the number {code} when you write to us.", "We will be happy to answer your questions.",
    "We have been a customer of {company} for {n} years.", "This is to confirm your booking for {date}.", "See you in {city} next {day}.", "We met at {company} in {month}.",
)  # fmt: skip
_ROLES = (
    "Manager",
    "Director",
    "Secretary",
    "Head of {trade}",
    "Assistant",
    "Engineer",
    "Treasurer",
    "Office Manager",
    "Sales Manager",
    "Chair",
    "President",
    "Coordinator",
    "Team Lead",
    "Accountant",
    "Owner",
    "Editor",
    "Adviser",
)
_SUBJECTS = (
    "Your {noun} of {date}", "{adjective} {plural}", "Order {code}", "Change of {noun}", "{gerund} {plural}", "Invitation to {place}", "Your request {code}", "Account {code}", "Meeting in {city}", "Notice of {noun}",
    "New {plural} from {month}", "Contract {code}", "{noun} at {company}", "Your {plural}",
)  # fmt: skip


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    look = _PRESETS[sheet.choose_layout(LAYOUTS)]
    sheet.choose_colors(light_only=True)
    flow = margins(sheet, 0.03, 0.11)
    label = pick_labels(rng, {key: FIELDS[key].labels for key in FIELDS})
    bold = flow.style(1.0, bold=True)
    sender = sheet.field("sender", writer.name())
    first, last = writer.first_name(), writer.last_name()
    day = sheet.field("date", writer.date())
    company = writer.company()
    gap = rng.choice([0.3, 0.5, 0.9])

    if look.get("foot"):
        _set_foot(sheet, flow)
    usual = sheet.split == "train" and rng.random() < 0.4  # sentences that letters are made of, instead of made-up ones
    justified = sheet.split == "train" and rng.random() < 0.15

    # Sender
    if look["head"] != "none":
        anchor = {"right": "r", "center": "m"}.get(look["head"], "l")
        heading = flow.style(
            rng.uniform(1.0, 1.7), bold=rng.random() < 0.6, heading=True, color=page.accent if rng.random() < 0.4 else None
        )
        left = flow.left
        if look["head"] == "logo":
            side = 2.4 * flow.body.size_px
            logo(sheet, flow.left, flow.y, side)
            flow.left += 1.3 * side
        if look["head"] == "right":
            flow.line(sender, bold if rng.random() < 0.3 else flow.body, anchor)
        else:
            flow.line(sheet.field("sender_company", company), heading, anchor)
        lines = [sheet.field("address", writer.street()), writer.town_line()]
        if rng.random() < 0.6:
            lines.append(
                sheet.field("phone", writer.phone(), label["phone"])
                if rng.random() < 0.4
                else f"{label['phone']}: {sheet.field('phone', writer.phone(), label['phone'])}"
            )
        if rng.random() < 0.5:
            lines.append(sheet.field("email", writer.email(), label["email"]))
        if look["head"] != "right" and rng.random() < 0.3:
            small = flow.style(0.9)
            text = page.fit(f"{lines[0]}, {lines[1]}", small, flow.width)
            if text == f"{lines[0]}, {lines[1]}":
                lines[:2] = [text]
        for text in lines:
            flow.line(text, anchor=anchor)
        flow.left = left
        if look["head"] != "right" and rng.random() < 0.5:
            flow.rule(1.2, color=page.accent)
        flow.space(gap)

    # What stands before the text
    subject = _subject(sheet)
    for part in look["order"]:
        if part == "title":
            title = rng.choice(
                ["Memo", "MEMO", "Memorandum", "MEMORANDUM", "Internal memo", "Note", "FAX", "Message", "Notice", "Internal note"]
            )
            flow.line(sheet.field("title", title), flow.style(rng.uniform(1.3, 1.9), bold=True, heading=True))
        elif part == "to-from":
            pairs = [
                ("recipient", rng.choice(["To", "To", "TO", "Recipient"]), f"{first} {last}" if rng.random() < 0.8 else writer.email()),
                ("sender", rng.choice(["From", "From", "FROM", "Sender"]), sender),
                ("date", rng.choice(["Date", "Date", "DATE", "Sent"]), day),
                ("subject", rng.choice(["Subject", "Re", "RE", "Subject", "SUBJECT"]), subject),
            ]
            if rng.random() < 0.5:
                pairs[0], pairs[1] = pairs[1], pairs[0]
            manner = rng.choice(["colon", "tab"])
            tab = flow.left + max(page.measure(name + ":", bold) for _, name, _ in pairs) + flow.body.size_px
            for key, name, value in pairs:
                flow.pair(
                    name + ":",
                    sheet.field(key, value, name),
                    manner,
                    bold if sheet.look("bold_labels", [0, 1]) else None,
                    flow.body,
                    tab=tab,
                )
            flow.rule(1.0)
        elif part == "recipient":
            flow.line(sheet.field("recipient", f"{first} {last}"))
            if rng.random() < 0.3:
                flow.line(writer.company())
            flow.line(writer.street())
            flow.line(writer.town_line())
            flow.space(gap)
        elif part == "date":
            shown = day if rng.random() < 0.7 else f"{rng.choice(['Date', 'Date'])}: {day}"
            if rng.random() < 0.2:
                town = sheet.field("city", writer.city())
                shown = f"{town}, {day}"
            flow.line(shown, anchor="r" if sheet.look("date_right", [0, 0, 1]) or look["head"] == "right" else "l")
            flow.space(gap)
        elif part == "reference":
            code = sheet.field("reference", writer.identifier(), label["reference"])
            flow.line(f"{label['reference']}: {code}" if not label["reference"].endswith(".") else f"{label['reference']} {code}")
            flow.space(gap * 0.5)
        elif part == "subject":
            shown = page.fit(subject, bold, flow.width * 0.8)
            sheet.field("subject", shown)
            flow.line(rng.choice(["", "", "Subject: ", "Re: ", "RE: "]) + shown, bold)
            flow.space(gap)

    # Text
    full_name = f"{rng.choice(['Mr', 'Ms', 'Mrs', 'Dr', 'Mr.', 'Ms.'])} {last}" if rng.random() < 0.6 else f"{first} {last}"
    has_salutation = look["close"] != "none"
    if has_salutation:
        greeting = rng.choice(_SALUTATIONS)
        flow.line(greeting.format(name=full_name, first=first))
        if "recipient" not in sheet.fields:
            sheet.field("recipient", full_name if "{name}" in greeting else first)
        flow.space(gap)
    reserved = (4.5 if has_salutation else 1.0) * flow.step()
    paragraphs = 0
    dense = rng.random() < 0.6
    while flow.bottom - flow.y - reserved > flow.step() and (dense or paragraphs < rng.randint(1, 4)):
        text = " ".join(_usual_sentence(sheet) if usual else writer.plain_sentence() for _ in range(rng.randint(1, 4)))
        if rng.random() < 0.25:
            text = _fact(sheet, text)
        lines = page.wrap(text, flow.body, flow.width)
        fitting = int((flow.bottom - flow.y - reserved) / flow.step())
        if len(lines) > fitting:
            # Only whole sentences.
            while text and len(page.wrap(text, flow.body, flow.width)) > fitting:
                text = text[: text[:-1].rfind(". ") + 1] if ". " in text[:-1] else ""
            lines = page.wrap(text, flow.body, flow.width)
            for key in ("amount", "due_date", "contact"):
                if key in sheet.fields and sheet.fields[key] not in text:
                    sheet.fields.pop(key) if paragraphs == 0 or not any(sheet.fields[key] in run.text for run in page.runs) else None
            if not lines:
                break
            dense = False
        for i, line in enumerate(lines):
            words = line.split()
            if justified and i < len(lines) - 1 and len(words) > 2:
                spare = (flow.width - sum(page.measure(word, flow.body) for word in words)) / (len(words) - 1)
                x, cells = flow.left, []
                for word in words:
                    cells.append((x, "l", word))
                    x += page.measure(word, flow.body) + spare
                flow.cells(cells)
            else:
                flow.line(line)
        flow.space(gap)
        paragraphs += 1

    # Closing
    if has_salutation:
        anchor = look["close"]
        indent = flow.width * 0.55 if anchor == "r" else 0.0
        flow.line(rng.choice(_CLOSINGS), indent=indent)
        if flow.room() > 3 and rng.random() < 0.7:
            flow.space(rng.uniform(0.3, 1.2))
        flow.line(sender, indent=indent)
        if flow.room() >= 1 and rng.random() < 0.6:
            role = rng.choice(_ROLES).format(trade=writer.trade())
            flow.line(sheet.field("sender_role", role), indent=indent)
    for key in list(sheet.fields):
        value = sheet.fields[key]
        if not any(value in " ".join(run.text.split()) for run in page.runs):
            del sheet.fields[key]
    sheet.ask(
        rng.choice(
            (
                "Who signed the letter?",
                "Who signed it?",
                "Who is the sender?",
                "What is the name of the sender?",
                "From whom is the letter?",
            )
        ),
        sender,
        "field",
    )


def _set_foot(sheet: Sheet, flow: Flow) -> None:
    """How to reach the sender, at the bottom of the page."""
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    parts = [sheet.field("phone", writer.phone()), sheet.field("website", writer.url())]
    style = flow.style(0.85)
    text = rng.choice([" | ", " - ", "   "]).join(parts)
    style = page.shrink(text, style, flow.width)
    baseline = flow.bottom - 0.25 * style.size_px
    flow.bottom = baseline - 1.3 * style.size_px
    if rng.random() < 0.5:
        page.horizontal_rule(flow.left, flow.right, flow.bottom + 0.15 * style.size_px)
    page.text((flow.left + flow.right) / 2, baseline, text, style, "m")


def _usual_sentence(sheet: Sheet) -> str:
    """A sentence that letters are made of, with something of this document in it. Its own words belong to the training split or to all."""
    rng, writer = sheet.rng, sheet.writer
    return rng.choice(_USUAL).format(
        noun=writer.of_class("noun"), plural=writer.of_class("plural"), adjective=writer.of_class("adjective"), day=rng.choice(WEEKDAYS), month=rng.choice(MONTHS), date=writer.date(), time=writer.time(),
        name=writer.name(), company=writer.company(), city=writer.city(), code=writer.identifier(), money=writer.money(rng.uniform(5, 3000)), n=rng.randint(2, 60), phone=writer.phone(), product=writer.product(),
    )  # fmt: skip


def _subject(sheet: Sheet) -> str:
    writer = sheet.writer
    text = sheet.rng.choice(_SUBJECTS).format(
        noun=writer.of_class("noun"), date=writer.date(), adjective=writer.of_class("adjective").capitalize(), plural=writer.of_class("plural"), code=writer.identifier(), gerund=writer.of_class("gerund").capitalize(),
        place=writer.place(), city=writer.city(), month=sheet.rng.choice(("January", "March", "May", "July", "October")), company=writer.company(),
    )  # fmt: skip
    return text[0].upper() + text[1:]


def _fact(sheet: Sheet, text: str) -> str:
    """A sentence that carries a value which can be asked for, put before others."""
    rng, writer = sheet.rng, sheet.writer
    key = rng.choice(["amount", "due_date", "contact"])
    if key in sheet.fields:
        return text
    if key == "amount":
        value = sheet.field(key, writer.money(rng.choice([rng.uniform(5, 99), rng.uniform(100, 9999)])))
        start = rng.choice([f"The amount is {value}.", f"Please pay the amount of {value}.", f"The sum is {value} in all."])
    elif key == "due_date":
        value = sheet.field(key, writer.date())
        start = rng.choice([f"Please pay by {value}.", f"It is due by {value}.", f"The payment is due on {value}."])
    else:
        value = sheet.field(key, writer.name())
        start = rng.choice([f"Your contact is {value}.", f"Please call {value}.", f"You can ask {value} about it."])
    return f"{start} {text}"
