"""Documents drawn by other programs, to test a reader on: HTML by headless Chromium, and Writer documents by LibreOffice and pdftoppm.

    python benchmarks/make_rendered.py --out benchmarks/rendered       # needs chromium, soffice and pdftoppm; some ten minutes, and goes on where it stopped

Nothing here comes from `fastvlm.data`: content, layouts and phrasing are written a second time, and fonts are those that Debian has, a third of them families that nano is not
trained on. What stands in a picture is asked of the program that drew it (the page's own DOM, the words of the PDF), so the truth cannot differ from what was drawn.
The pictures are in the repository, because other versions draw other pixels; `fastvlm evaluate --task rendered` scores a model on them.

`val` may be looked at while training; `test` is for the end. Both have the same templates with other content, fonts and sizes.
"""

import argparse
import html
import io
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rendered_content import Pool

PER_KIND = {"val": 7, "test": 7}
MODEL_SIZE = 512
X_HEIGHT = (5.8, 12.5)  # of the commonest text, in pixels at the model's size
LEAST_X_HEIGHT = 5.0  # of any text
_ATTEMPTS = 12

SANS = ["Liberation Sans", "DejaVu Sans", "Open Sans", "Roboto", "Lato", "Carlito", "Noto Sans", "Inter"]
SANS_UNSEEN = ["Karla", "Cabin", "PT Sans", "Karmilla", "National Park", "Allerta"]
SERIF = ["Liberation Serif", "DejaVu Serif", "Noto Serif", "Caladea", "EB Garamond"]
SERIF_UNSEEN = ["Roboto Slab", "PT Serif", "Quattrocento", "Century Catalogue"]
MONO = ["Liberation Mono", "DejaVu Sans Mono", "Courier Prime", "Noto Sans Mono"]
MONO_UNSEEN = ["Inconsolata", "PT Mono", "OCR B"]


@dataclass
class Drawn:
    """What a template makes: a page's HTML (or a Writer document) and questions as (question, answer, kind)."""

    body: str
    css: str = ""
    width: int = 480
    questions: list[tuple[str, str, str]] = field(default_factory=list)
    writer: str = ""  # a flat ODT instead of HTML
    font_px: float = 0.0  # of the body text of a Writer document, in points


@dataclass
class Word:
    text: str
    box: tuple[float, float, float, float]
    x_height: float
    block: int


def e(text: object) -> str:
    return html.escape(str(text))


def sans(rng: random.Random) -> str:
    return rng.choice(SANS if rng.random() < 0.65 else SANS_UNSEEN)


def serif(rng: random.Random) -> str:
    return rng.choice(SERIF if rng.random() < 0.65 else SERIF_UNSEEN)


def mono(rng: random.Random) -> str:
    return rng.choice(MONO if rng.random() < 0.65 else MONO_UNSEEN)


def accent(rng: random.Random) -> str:
    return rng.choice(["#1f4e79", "#2e7d32", "#b71c1c", "#4a148c", "#00695c", "#37474f", "#e65100", "#0d47a1", "#333333", "#8d6e63"])


# ---- templates in HTML, by kind


def receipt_till(rng: random.Random, p: Pool) -> Drawn:
    store, items = p.store(), p.items(rng.randint(3, 8))
    sub = p.sum(items)
    rate = rng.choice([5, 6, 7.25, 8, 8.25, 10, 20])
    tax = round(sub * rate / 100, 2)
    total = round(sub + tax, 2)
    number, day, clock, clerk = p.number("R"), p.date(), p.time(), p.first()
    paid = rng.choice(["CASH", "VISA", "MASTERCARD", "DEBIT"])
    money = p.money
    rows = "".join(f"<tr><td>{e(n)}</td><td class=r>{e(q)}</td><td class=r>{e(money(q * c))}</td></tr>" for n, q, c in items)
    address, town, phone = p.street(), p.town(), p.phone()
    sep = rng.choice(["<hr>", "<div class=d></div>"])
    body = f"""<div class=c><div class=big>{e(store)}</div><div>{e(address)}</div><div>{e(town)}</div><div>Tel: {e(phone)}</div></div>{sep}
<table><tr><td>Receipt #</td><td class=r>{number}</td></tr><tr><td>Date</td><td class=r>{day}</td></tr><tr><td>Time</td><td class=r>{clock}</td></tr><tr><td>Cashier</td><td class=r>{clerk}</td></tr></table>{sep}
<table><tr><th>Item</th><th class=r>Qty</th><th class=r>Price</th></tr>{rows}</table>{sep}
<table><tr><td>Subtotal</td><td class=r>{money(sub)}</td></tr><tr><td>Tax ({rate}%)</td><td class=r>{money(tax)}</td></tr><tr class=tot><td>TOTAL</td><td class=r>{money(total)}</td></tr>
<tr><td>{paid}</td><td class=r>{money(total)}</td></tr></table>{sep}<div class=c>{rng.choice(["Thank you for your visit!", "THANK YOU", "Please come again", "Have a great day!"])}</div>"""
    css = f"""body{{font:{rng.choice([14, 15, 16])}px/1.35 '{mono(rng) if rng.random() < 0.6 else sans(rng)}';padding:14px 18px}} .c{{text-align:center}} .big{{font-size:1.4em;font-weight:bold}}
table{{width:100%;border-collapse:collapse}} td,th{{padding:1px 0;text-align:left}} .r{{text-align:right}} .tot td{{font-weight:bold;font-size:1.2em;padding:3px 0}}
hr{{border:0;border-top:1px dashed #444;margin:7px 0}} .d{{border-top:2px solid #222;margin:7px 0}}"""
    pick = rng.choice(items)
    return Drawn(body, css, rng.randint(290, 360), [
        ("What is the total?", money(total), "field"), ("What is the name of the store?", store, "field"), ("What is the date on the receipt?", day, "field"),
        rng.choice([("What is the receipt number?", number, "field"), ("Who was the cashier?", clerk, "field"), ("What is the phone number?", phone, "field")]),
        (f"How much is {pick[0]}?", money(pick[1] * pick[2]), "cell"), ("How much tax was charged?", money(tax), "field"), ("Was it paid in cash?", "Yes" if paid == "CASH" else "No", "yes_no"),
    ])  # fmt: skip


def receipt_cafe(rng: random.Random, p: Pool) -> Drawn:
    store, items = p.cafe(), p.dishes(rng.randint(2, 6))
    total = p.sum(items)
    tip = round(total * rng.choice([0.1, 0.15, 0.18]), 2)
    day, clock, server, table = p.date(), p.time(), p.first(), rng.randint(1, 30)
    rows = "".join(f"<div class=row><span>{q} x {e(n)}</span><span>{p.money(q * c)}</span></div>" for n, q, c in items)
    color = accent(rng)
    body = f"""<div class=head>{e(store)}</div><div class=sub>{e(p.street())}, {e(p.city())}</div>
<div class=row><span>Table {table}</span><span>{day} {clock}</span></div><div class=row><span>Server: {server}</span><span>Guests: {rng.randint(1, 8)}</span></div><div class=line></div>{rows}<div class=line></div>
<div class=row><span>Food and drinks</span><span>{p.money(total)}</span></div><div class=row><span>Tip</span><span>{p.money(tip)}</span></div>
<div class="row tot"><span>Amount paid</span><span>{p.money(total + tip)}</span></div><div class=sub>{e(p.site(store))}</div>"""
    css = f"""body{{font:{rng.choice([15, 16, 17])}px/1.5 '{rng.choice([sans, serif])(rng)}';padding:18px 22px}} .head{{font-size:1.5em;color:{color};text-align:center;font-weight:600}} .sub{{text-align:center;color:#666;margin:4px 0 8px}}
.row{{display:flex;justify-content:space-between}} .line{{border-top:1px solid #bbb;margin:8px 0}} .tot{{font-weight:bold;font-size:1.15em;border-top:2px solid {color};margin-top:6px;padding-top:4px}}"""
    pick = rng.choice(items)
    return Drawn(body, css, rng.randint(310, 400), [
        ("What is the amount paid?", p.money(total + tip), "field"), ("How much was the tip?", p.money(tip), "field"), ("Who was the server?", server, "field"),
        ("What is the name of the restaurant?", store, "field"), (f"What is the price of {pick[0]}?", p.money(pick[1] * pick[2]), "cell"), (f"Was {p.other_dish(items)} ordered?", "No", "yes_no"),
    ])  # fmt: skip


def invoice_split(rng: random.Random, p: Pool) -> Drawn:
    seller, buyer, items = p.company(), p.company(), p.services(rng.randint(2, 5))
    number, day, due = p.number("INV"), p.date(), p.date(later=True)
    sub = p.sum(items)
    rate = rng.choice([7, 8, 10, 19, 20])
    tax = round(sub * rate / 100, 2)
    m = p.money
    color = accent(rng)
    rows = "".join(f"<tr><td>{e(n)}</td><td class=r>{q}</td><td class=r>{m(c)}</td><td class=r>{m(q * c)}</td></tr>" for n, q, c in items)
    email = p.email(seller)
    body = f"""<div class=top><div><div class=name>{e(seller)}</div><div>{e(p.street())}</div><div>{e(p.town())}</div><div>{email}</div></div><div class=word>INVOICE</div></div>
<div class=top><div><div class=lab>Bill To</div><div>{e(buyer)}</div><div>{e(p.street())}</div><div>{e(p.town())}</div></div>
<table class=meta><tr><td class=lab>Invoice #</td><td class=r>{number}</td></tr><tr><td class=lab>Date</td><td class=r>{day}</td></tr><tr><td class=lab>Due Date</td><td class=r>{due}</td></tr></table></div>
<table class=items><tr><th>Description</th><th class=r>Qty</th><th class=r>Price</th><th class=r>Amount</th></tr>{rows}</table>
<table class=sum><tr><td>Subtotal</td><td class=r>{m(sub)}</td></tr><tr><td>Tax ({rate}%)</td><td class=r>{m(tax)}</td></tr><tr class=tot><td>Total Due</td><td class=r>{m(sub + tax)}</td></tr></table>
<div class=foot>{rng.choice(["Thank you for your business!", "Payment is due within 30 days.", "Please make checks payable to " + e(seller) + "."])}</div>"""
    stripe = rng.choice(["tr:nth-child(odd) td{background:#f3f5f8}", "td{border-bottom:1px solid #ddd}", "td,th{border:1px solid #999}"])
    css = f"""body{{font:{rng.choice([13, 14, 15])}px/1.45 '{sans(rng)}';padding:{rng.randint(18, 34)}px;color:#222}} .top{{display:flex;justify-content:space-between;align-items:flex-start;margin-bottom:14px}} .name{{font-size:1.35em;font-weight:bold;color:{color}}}
.word{{font-size:1.9em;font-weight:bold;color:{color};letter-spacing:{rng.choice([0, 1, 2])}px}} .lab{{font-weight:bold}} table{{border-collapse:collapse}} .meta td{{padding:0 0 0 16px}} .r{{text-align:right}}
.items{{width:100%}} .items th{{background:{color};color:#fff;padding:4px 6px;text-align:left}} .items th.r{{text-align:right}} .items td{{padding:4px 6px}} .items {stripe}
.sum{{margin:10px 0 10px auto}} .sum td{{padding:2px 6px 2px 26px}} .tot td{{font-weight:bold;border-top:2px solid #333}} .foot{{color:#555;margin-top:8px}}"""
    pick = rng.choice(items)
    return Drawn(body, css, rng.randint(440, 520), [
        ("What is the invoice number?", number, "field"), ("What is the total amount due?", m(sub + tax), "field"), ("What is the due date?", due, "field"), ("Who is the invoice from?", seller, "field"),
        ("Who is the invoice billed to?", buyer, "field"), (f"What is the unit price of {pick[0]}?", m(pick[2]), "cell"), (f"Is the invoice number {p.wrong(number)}?", "No", "yes_no"),
    ])  # fmt: skip


def invoice_band(rng: random.Random, p: Pool) -> Drawn:
    seller, buyer, items = p.company(), p.person(), p.services(rng.randint(1, 4))
    number, day, due = p.number(""), p.date(), p.date(later=True)
    total = p.sum(items)
    m = p.money
    color = accent(rng)
    rows = "".join(f"<tr><td>{i}</td><td>{e(n)}</td><td class=r>{m(q * c)}</td></tr>" for i, (n, q, c) in enumerate(items, 1))
    phone, iban = p.phone(), p.iban()
    body = f"""<div class=band><span>{e(seller)}</span></div><div class=in><h1>Invoice {number}</h1><p><b>Customer:</b> {e(buyer)}<br><b>Address:</b> {e(p.street())}, {e(p.city())}<br><b>Invoice date:</b> {day}<br><b>Payment due:</b> {due}</p>
<table><tr><th>No.</th><th>Service</th><th class=r>Amount</th></tr>{rows}<tr class=tot><td></td><td>Total</td><td class=r>{m(total)}</td></tr></table>
<p>Bank account: {iban}<br>Questions? Call {phone}</p></div>"""
    css = f"""body{{font:{rng.choice([14, 15, 16])}px/1.5 '{rng.choice([sans, sans, serif])(rng)}';padding:0}} .band{{background:{color};color:#fff;font-size:1.5em;padding:14px 24px;font-weight:bold}} .in{{padding:8px 24px 16px}} h1{{font-size:1.3em;margin:8px 0}}
table{{width:100%;border-collapse:collapse}} th{{text-align:left;border-bottom:2px solid {color};padding:4px}} td{{padding:4px;border-bottom:1px solid #ccc}} .r{{text-align:right}} .tot td{{font-weight:bold}}"""
    return Drawn(body, css, rng.randint(400, 480), [
        ("What is the invoice number?", number, "field"), ("What is the total?", m(total), "field"), ("Who is the customer?", buyer, "field"), ("When is the payment due?", due, "field"),
        ("What is the invoice date?", day, "field"), ("Which company issued the invoice?", seller, "field"), (f"Is the total {m(total)}?", "Yes", "yes_no"),
    ])  # fmt: skip


def letter_html(rng: random.Random, p: Pool) -> Drawn:
    sender, receiver, firm = p.person(), p.person(), p.company()
    day, role = p.date(words=True), p.role()
    subject, paragraphs, asked = p.letter()
    has_subject = rng.random() < 0.6
    surname = receiver.split()[-1]
    center = rng.random() < 0.5
    text = "".join(f"<p>{e(t)}</p>" for t in paragraphs)
    body = f"""<div class=head><div class=firm>{e(firm)}</div><div>{e(p.street())}, {e(p.town())}</div></div><p>{day}</p><p>{e(receiver)}<br>{e(p.street())}<br>{e(p.town())}</p>
{f"<p><b>Subject: {e(subject)}</b></p>" if has_subject else ""}<p>Dear {rng.choice(["Mr.", "Ms.", "Dr."])} {e(surname)},</p>{text}<p>{rng.choice(["Sincerely,", "Kind regards,", "Yours faithfully,", "Best regards,"])}</p><p>{e(sender)}<br>{e(role)}</p>"""
    css = f"""body{{font:{rng.choice([13, 14, 15, 16])}px/1.4 '{rng.choice([serif, sans])(rng)}';padding:{rng.randint(22, 36)}px}} .head{{text-align:{"center" if center else "left"};margin-bottom:12px}} .firm{{font-size:1.5em;color:{accent(rng)};font-weight:bold}}
p{{margin:0 0 10px}} {rng.choice([".head{border-bottom:2px solid #888;padding-bottom:6px}", ""])}"""
    questions = [
        ("Who is the letter from?", sender, "field"), ("Who is the letter addressed to?", receiver, "field"), ("What is the date of the letter?", day, "field"), ("What company is in the letterhead?", firm, "field"), ("What is the job title of the person who signed?", role, "field"), asked,
    ]  # fmt: skip
    if has_subject:
        questions.insert(2, ("What is the subject of the letter?", subject, "field"))
    return Drawn(body, css, rng.randint(400, 500), questions[:6])


def memo_html(rng: random.Random, p: Pool) -> Drawn:
    sender, receiver, day = p.person(), p.person(), p.date()
    subject, paragraphs, asked = p.letter()
    rows = [("To:", receiver), ("From:", sender), ("Date:", day), ("Subject:", subject)]
    table = "".join(f"<tr><td class=l>{a}</td><td>{e(b)}</td></tr>" for a, b in rows)
    body = f"<h1>{rng.choice(['MEMORANDUM', 'Memo', 'Internal Memo'])}</h1><table>{table}</table><hr>" + "".join(
        f"<p>{e(t)}</p>" for t in paragraphs
    )
    css = f"body{{font:{rng.choice([14, 15, 16])}px/1.45 '{rng.choice([sans, serif, mono])(rng)}';padding:26px}} h1{{font-size:1.5em;margin:0 0 10px}} .l{{font-weight:bold;padding-right:18px}} td{{padding:1px 0}} p{{margin:0 0 10px}}"
    return Drawn(body, css, rng.randint(380, 480), [
        ("Who is the memo from?", sender, "field"), ("Who is the memo to?", receiver, "field"), ("What is the subject?", subject, "field"), ("What is the date?", day, "field"), asked, (f"Was it written by {receiver}?", "No", "yes_no"),
    ])  # fmt: skip


def form_web(rng: random.Random, p: Pool) -> Drawn:
    title, fields = p.form(rng.randint(5, 8))
    color = accent(rng)
    two = rng.random() < 0.5
    items = "".join(f"<div class=f><label>{e(name)}</label><div class=v>{e(value)}</div></div>" for name, value in fields)
    tick, on = rng.choice(["Subscribe to newsletter", "I accept the terms", "Send me a copy", "Remember me"]), rng.random() < 0.5
    body = f"<h1>{e(title)}</h1><div class=g>{items}</div><div class=t><span class=box>{'✔' if on else ''}</span> {tick}</div><div class=b>Submit</div>"
    body = body.replace(
        "✔", '<svg width="11" height="11" viewBox="0 0 10 10"><path d="M1 5 L4 8 L9 1" stroke="#000" stroke-width="2" fill="none"/></svg>'
    )
    css = f"""body{{font:{rng.choice([14, 15])}px/1.35 '{sans(rng)}';padding:22px;background:{rng.choice(["#fff", "#fafafa", "#f4f6fb"])};color:#222}} h1{{font-size:1.5em;margin:0 0 12px;color:{color}}}
.g{{display:grid;grid-template-columns:{"1fr 1fr" if two else "1fr"};gap:8px 14px}} label{{font-weight:{rng.choice([400, 600])};color:#444}} .v{{border:1px solid #aaa;border-radius:{rng.choice([0, 4, 6])}px;padding:4px 8px;background:#fff;margin-top:2px;white-space:nowrap}}
.t{{margin:12px 0}} .box{{display:inline-block;width:13px;height:13px;border:1.5px solid #333;line-height:11px;vertical-align:-2px}} .b{{display:inline-block;background:{color};color:#fff;padding:6px 18px;border-radius:4px;font-weight:bold}}"""
    return Drawn(
        body,
        css,
        rng.randint(440, 520) if two else rng.randint(320, 400),
        [*p.ask_form(title, fields), (f'Is "{tick}" checked?', "Yes" if on else "No", "yes_no")],
    )


def form_paper(rng: random.Random, p: Pool) -> Drawn:
    title, fields = p.form(rng.randint(5, 9))
    look = rng.choice(["grid", "under", "grid"])
    options = rng.choice(
        [
            ("Preferred contact", ["Phone", "Email", "Mail"]),
            ("Marital status", ["Single", "Married"]),
            ("Type of visit", ["New patient", "Follow-up"]),
            ("Room", ["Single", "Double"]),
        ]
    )
    chosen = rng.choice(options[1])
    rows = "".join(f"<tr><td class=l>{e(n)}{':' if look == 'under' else ''}</td><td class=v>{e(v)}</td></tr>" for n, v in fields)
    boxes = " ".join(
        f'<span class=o><svg width="12" height="12"><rect x="1" y="1" width="10" height="10" fill="none" stroke="#000"/>{"<path d=" + chr(34) + "M2 2 L10 10 M10 2 L2 10" + chr(34) + " stroke=" + chr(34) + "#000" + chr(34) + " stroke-width=" + chr(34) + "1.6" + chr(34) + "/>" if o == chosen else ""}</svg> {o}</span>'
        for o in options[1]
    )
    number = p.number("F")
    body = f"<div class=h><b>{e(title)}</b><span>Form {number}</span></div><table>{rows}</table><div class=q>{options[0]}: {boxes}</div>"
    css = f"""body{{font:{rng.choice([14, 15, 16])}px/1.4 '{rng.choice([serif, sans])(rng)}';padding:24px}} .h{{display:flex;justify-content:space-between;align-items:baseline;margin-bottom:12px}} .h b{{font-size:1.35em}} table{{width:100%;border-collapse:collapse}}
td{{padding:4px 6px}} {"td{border:1px solid #555} .l{background:#eee;width:38%}" if look == "grid" else ".v{border-bottom:1px solid #555} .l{width:1%;white-space:nowrap}"} .q{{margin-top:12px}} .o{{margin-left:10px;white-space:nowrap}} svg{{vertical-align:-1px}}"""
    return Drawn(
        body,
        css,
        rng.randint(380, 460),
        [
            *p.ask_form(title, fields),
            ("What is the form number?", number, "field"),
            (f"Which option is marked for {options[0].lower()}?", chosen, "field"),
        ],
    )


def table_plain(rng: random.Random, p: Pool) -> Drawn:
    title, heads, rows, right = p.table(rng.randint(4, 8))
    color = accent(rng)
    cell = lambda j, x, tag="td": f"<{tag}{' class=r' if j in right else ''}>{e(x)}</{tag}>"  # noqa: E731
    body = (
        f"<h2>{e(title)}</h2><table><tr>{''.join(cell(j, h, 'th') for j, h in enumerate(heads))}</tr>"
        + "".join(f"<tr>{''.join(cell(j, c) for j, c in enumerate(row))}</tr>" for row in rows)
        + "</table>"
    )
    if rng.random() < 0.4:
        body += f"<p class=n>{rng.choice(['Source: company records.', 'All figures are provisional.', 'Prices include tax.', 'Updated weekly.'])}</p>"
    look = rng.choice([
        "td,th{border:1px solid #888}", "th{border-bottom:2px solid #333} td{border-bottom:1px solid #ddd}", f"th{{background:{color};color:#fff}} tr:nth-child(even) td{{background:#eef2f7}}",
        "table{border-top:2px solid #000;border-bottom:2px solid #000} th{border-bottom:1px solid #000}",
    ])  # fmt: skip
    css = f"body{{font:{rng.choice([14, 15, 16])}px/1.35 '{rng.choice([sans, sans, serif])(rng)}';padding:20px}} h2{{font-size:1.3em;margin:0 0 10px}} table{{border-collapse:collapse;width:100%}} td,th{{padding:{rng.choice([4, 5, 7])}px 8px;text-align:left;white-space:nowrap}} .r{{text-align:right}} {look} .n{{color:#555}}"
    return Drawn(body, css, rng.randint(400, 500), p.ask_table(title, heads, rows))


def card(rng: random.Random, p: Pool) -> Drawn:
    org, name = p.organisation(), p.person()
    kind = rng.choice(["EMPLOYEE ID", "STUDENT CARD", "LIBRARY CARD", "Member Card", "VISITOR PASS", "DRIVER LICENSE"])
    number = p.number(rng.choice(["", "ID", "M"]))
    color = accent(rng)
    pool = [
        ("Date of Birth", p.date()),
        ("Expires", p.date(later=True)),
        ("Issued", p.date()),
        ("Department", p.department()),
        ("Class", rng.choice("ABCD")),
        ("Phone", p.phone()),
        ("Nationality", p.country()),
        ("Position", p.role()),
    ]
    rows = [("Name", name), ("ID No.", number), *rng.sample(pool, rng.randint(2, 4))]
    stacked = rng.random() < 0.4
    lines = "".join(
        f"<div class=l>{a}</div><div class=v>{e(b)}</div>"
        if stacked
        else f"<div><span class=l>{a}:</span> <span class=v>{e(b)}</span></div>"
        for a, b in rows
    )
    photo = f'<svg width="92" height="116" viewBox="0 0 92 116"><rect width="92" height="116" fill="#cfd8dc"/><circle cx="46" cy="46" r="21" fill="#8d6e63"/><path d="M8 116 C10 78 82 78 84 116 Z" fill="{color}"/></svg>'
    left = rng.random() < 0.6
    body = f"<div class=card><div class=h><div class=o>{e(org)}</div><div>{kind}</div></div><div class=m>{photo if left else ''}<div class=i>{lines}</div>{'' if left else photo}</div></div>"
    css = f"""body{{font:{rng.choice([14, 15, 16])}px/1.4 '{sans(rng)}';padding:{rng.choice([0, 12])}px;background:#fff}} .card{{border:1.5px solid {color};border-radius:{rng.choice([0, 10])}px;overflow:hidden;background:{rng.choice(["#fff", "#f7fbff", "#fffdf5"])}}}
.h{{background:{color};color:#fff;padding:9px 14px}} .o{{font-size:1.3em;font-weight:bold}} .m{{display:flex;gap:14px;padding:12px 14px;align-items:flex-start}} .i{{flex:1}} .l{{color:#666}} .v{{font-weight:{rng.choice([400, 600])}}}"""
    asks = {"Date of Birth": "What is the date of birth?", "Expires": "When does the card expire?", "Issued": "When was the card issued?", "Department": "What is the department?", "Class": "What class is given?", "Phone": "What is the phone number?", "Nationality": "What is the nationality?", "Position": "What is the position?"}  # fmt: skip
    return Drawn(body, css, rng.randint(390, 460), [
        ("What is the name on the card?", name, "field"), ("What is the ID number?", number, "field"), ("Which organization issued the card?", org, "field"), *[(asks[a], b, "field") for a, b in rows[2:4]], (f"Is the name on the card {p.person()}?", "No", "yes_no"),
    ])  # fmt: skip


def sign_hours(rng: random.Random, p: Pool) -> Drawn:
    store = p.store() if rng.random() < 0.5 else p.cafe()
    hours = p.hours()
    dark = rng.random() < 0.5
    phone = p.phone()
    rows = "".join(f"<tr><td>{a}</td><td class=r>{b}</td></tr>" for a, b in hours)
    body = f"<div class=s>{e(store)}</div><div class=o>{rng.choice(['OPENING HOURS', 'Opening Hours', 'WE ARE OPEN', 'Store Hours'])}</div><table>{rows}</table><div class=f>{phone}</div>"
    color = accent(rng)
    css = f"""body{{font:{rng.choice([18, 20, 22])}px/1.4 '{sans(rng)}';padding:24px 30px;text-align:center;{f"background:{color};color:#fff" if dark else f"background:#fff;color:#222;border:6px solid {color}"}}} .s{{font:bold {rng.choice([28, 32, 36])}px '{rng.choice(["Lobster Two", "Bebas Neue", "Roboto Slab", "Lato", "Liberation Serif"])}'}}
.o{{margin:8px 0;letter-spacing:1px}} table{{width:100%}} td{{text-align:left}} td.r{{text-align:right}} .f{{margin-top:10px}}"""
    pick = rng.choice(hours)
    return Drawn(body, css, rng.randint(360, 460), [
        ("What is the name of the shop?", store, "field"), (f"What are the opening hours on {pick[0]}?", pick[1], "field"), ("What is the phone number?", phone, "field"), (f"When is it open on {hours[0][0]}?", hours[0][1], "field"), ("Is it closed on any day?", "Yes" if any(b == "Closed" for _, b in hours) else "No", "yes_no"),
    ])  # fmt: skip


def sign_notice(rng: random.Random, p: Pool) -> Drawn:
    head, lines, questions = p.notice()
    color = rng.choice(["#c62828", "#f9a825", "#1565c0", "#2e7d32", "#212121"])
    ink = "#000" if color == "#f9a825" else "#fff"
    body = f"<div class=h>{e(head)}</div><div class=t>{''.join(f'<div>{e(x)}</div>' for x in lines)}</div>"
    whole = rng.random() < 0.5
    css = f"""body{{font:{rng.choice([20, 22, 24])}px/1.4 '{sans(rng)}';padding:0;text-align:center;{f"background:{color};color:{ink}" if whole else "border:5px solid #222"}}} .h{{background:{color};color:{ink};font-size:{rng.choice([1.7, 2.0, 2.3])}em;font-weight:bold;padding:14px}} .t{{padding:16px 20px 22px}}"""
    return Drawn(body, css, rng.randint(380, 520), questions)


def screen_settings(rng: random.Random, p: Pool) -> Drawn:
    title, rows = p.settings(rng.randint(5, 8))
    dark = rng.random() < 0.4
    switch, on = rng.choice(["Wi-Fi", "Bluetooth", "Dark mode", "Notifications"]), rng.random() < 0.5
    color = accent(rng)
    knob = f'<svg width="38" height="20"><rect width="38" height="20" rx="10" fill="{"#34a853" if on else "#9e9e9e"}"/><circle cx="{28 if on else 10}" cy="10" r="8" fill="#fff"/></svg>'
    lines = "".join(f"<div class=r><span>{e(a)}</span><span class=v>{e(b)}</span></div>" for a, b in rows)
    body = f"<div class=bar>{title}</div><div class=in><div class=r><span>{switch}</span>{knob}</div>{lines}</div>"
    css = f"""body{{font:{rng.choice([15, 16])}px/1.4 '{sans(rng)}';padding:0;{"background:#1e1f22;color:#e8e8e8" if dark else "background:#fff;color:#202124"}}} .bar{{background:{"#2b2d31" if dark else color};color:#fff;padding:11px 16px;font-size:1.15em;font-weight:600}} .in{{padding:4px 16px 10px}}
.r{{display:flex;justify-content:space-between;align-items:center;padding:8px 0;border-bottom:1px solid {"#3a3b3f" if dark else "#e0e0e0"}}} .v{{color:{"#aaa" if dark else "#5f6368"}}}"""
    picks = rng.sample(rows, 3)
    return Drawn(
        body,
        css,
        rng.randint(320, 420),
        [
            *[(f"What is the {a.lower() if not a.isupper() else a}?", b, "field") for a, b in picks],
            (f"Is {switch} switched on?", "Yes" if on else "No", "yes_no"),
            ("What is the title of the screen?", title, "field"),
        ],
    )


def screen_mail(rng: random.Random, p: Pool) -> Drawn:
    sender, receiver = p.person(), p.person()
    subject, paragraphs, asked = p.letter()
    address, day = p.email(sender), f"{p.date(words=True)}, {p.time()}"
    body = f"<div class=s>{e(subject)}</div><div class=m><b>{e(sender)}</b> &lt;{address}&gt;<br>to {e(receiver)}<br>{day}</div><p>Hi {e(receiver.split()[0])},</p>{''.join(f'<p>{e(t)}</p>' for t in paragraphs)}<p>Best,<br>{e(sender.split()[0])}</p><span class=b>Reply</span> <span class=b>Forward</span>"
    css = f"body{{font:{rng.choice([14, 15, 16])}px/1.45 '{sans(rng)}';padding:18px 22px;color:#202124}} .s{{font-size:1.4em;margin-bottom:8px}} .m{{color:#444;border-bottom:1px solid #ddd;padding-bottom:8px;margin-bottom:8px}} p{{margin:0 0 9px}} .b{{border:1px solid #888;border-radius:14px;padding:4px 14px;margin-right:6px;display:inline-block}}"
    return Drawn(body, css, rng.randint(400, 500), [
        ("Who sent the email?", sender, "field"), ("What is the subject of the email?", subject, "field"), ("What is the sender's email address?", address, "field"), ("Who is the email to?", receiver, "field"), asked, (f"Is the email from {p.person()}?", "No", "yes_no"),
    ])  # fmt: skip


def screen_order(rng: random.Random, p: Pool) -> Drawn:
    number, name, items = p.number(""), p.person(), p.items(rng.randint(1, 3))
    total = p.sum(items)
    status = rng.choice(["Shipped", "Delivered", "Processing", "Cancelled"])
    arrives = p.date(later=True, words=True)
    color = accent(rng)
    rows = "".join(f"<div class=r><span>{e(n)}</span><span>{p.money(q * c)}</span></div>" for n, q, c in items)
    body = f"<div class=nav>{e(p.store())}</div><div class=in><h2>Order #{number}</h2><div>Status: <span class=chip>{status}</span></div><div>Arriving: {arrives}</div><div>Ship to: {e(name)}</div><div class=box>{rows}<div class='r t'><span>Total</span><span>{p.money(total)}</span></div></div><span class=btn>Track package</span></div>"
    css = f"body{{font:{rng.choice([15, 16])}px/1.6 '{sans(rng)}';padding:0}} .nav{{background:{color};color:#fff;padding:10px 18px;font-weight:bold}} .in{{padding:10px 18px 18px}} h2{{margin:4px 0;font-size:1.35em}} .chip{{background:#e3f2e6;color:#1b5e20;border-radius:10px;padding:1px 10px}} .box{{border:1px solid #ccc;border-radius:6px;padding:8px 12px;margin:10px 0}} .r{{display:flex;justify-content:space-between}} .t{{font-weight:bold;border-top:1px solid #ccc;margin-top:4px;padding-top:4px}} .btn{{background:{color};color:#fff;padding:6px 16px;border-radius:4px}}"
    return Drawn(body, css, rng.randint(340, 440), [
        ("What is the order number?", number, "field"), ("What is the status of the order?", status, "field"), ("What is the total?", p.money(total), "field"), ("When will the order arrive?", arrives, "field"), ("Who is the order shipped to?", name, "field"), ("Has the order been delivered?", "Yes" if status == "Delivered" else "No", "yes_no"),
    ])  # fmt: skip


def chart_bars(rng: random.Random, p: Pool) -> Drawn:
    title, names, values, unit = p.series(rng.randint(3, 6))
    w, h, color = rng.randint(400, 480), rng.randint(280, 360), accent(rng)
    size = rng.choice([14, 15, 16])
    top = max(values) * 1.15
    left, base, head = 20, h - 34, 56
    slot = (w - left - 20) / len(names)
    marks = "".join(
        f'<rect x="{left + (i + 0.18) * slot:.1f}" y="{base - (base - head) * v / top:.1f}" width="{0.64 * slot:.1f}" height="{(base - head) * v / top:.1f}" fill="{color}"/>'
        for i, v in enumerate(values)
    )
    texts = "".join(
        f'<text data-block=2 x="{left + (i + 0.5) * slot:.1f}" y="{base - (base - head) * v / top - 6:.1f}" text-anchor="middle">{p.shown(v)}{unit}</text>'
        for i, v in enumerate(values)
    )
    texts += "".join(
        f'<text data-block=3 x="{left + (i + 0.5) * slot:.1f}" y="{base + size + 4}" text-anchor="middle">{e(n)}</text>'
        for i, n in enumerate(names)
    )
    body = f'<svg width="{w}" height="{h}"><text x="{w / 2}" y="30" text-anchor="middle" class="t">{e(title)}</text>{marks}<line x1="{left}" y1="{base}" x2="{w - 20}" y2="{base}" stroke="#333"/>{texts}</svg>'
    return Drawn(body, _chart_css(rng, size), w, _ask_chart(rng, title, names, [f"{p.shown(v)}{unit}" for v in values], values, "bars"))


def chart_lying(rng: random.Random, p: Pool) -> Drawn:
    title, names, values, unit = p.series(rng.randint(3, 6))
    size = rng.choice([14, 15, 16])
    w, color = rng.randint(400, 480), accent(rng)
    left, step = 0.62 * size * max(map(len, names)) + 18, size * 2.1
    h = int(60 + step * len(names))
    top = max(values)
    room = w - left - 80
    marks = "".join(
        f'<text x="{left - 8:.1f}" y="{48 + (i + 0.68) * step:.1f}" text-anchor="end">{e(n)}</text><rect x="{left:.1f}" y="{48 + (i + 0.18) * step:.1f}" width="{room * v / top:.1f}" height="{0.66 * step:.1f}" fill="{color}"/><text x="{left + room * v / top + 6:.1f}" y="{48 + (i + 0.68) * step:.1f}">{p.shown(v)}{unit}</text>'
        for i, (n, v) in enumerate(zip(names, values, strict=True))
    )  # fmt: skip
    body = f'<svg width="{w}" height="{h}"><text x="16" y="30" class="t">{e(title)}</text>{marks}</svg>'
    return Drawn(body, _chart_css(rng, size), w, _ask_chart(rng, title, names, [f"{p.shown(v)}{unit}" for v in values], values, "bars"))


def chart_line(rng: random.Random, p: Pool) -> Drawn:
    title, names, values, unit = p.series(rng.randint(4, 6), ordered=True)
    w, h, color = rng.randint(400, 480), rng.randint(280, 340), accent(rng)
    size = rng.choice([14, 15, 16])
    top = max(values) * 1.2
    left, base, head = 24, h - 34, 60
    slot = (w - left - 20) / len(names)
    points = [(left + (i + 0.5) * slot, base - (base - head) * v / top) for i, v in enumerate(values)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in points)
    texts = "".join(
        f'<text data-block=2 x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{p.shown(v)}{unit}</text>'
        for (x, y), v in zip(points, values, strict=True)
    )
    texts += "".join(
        f'<text data-block=3 x="{x:.1f}" y="{base + size + 4}" text-anchor="middle">{e(n)}</text>'
        for (x, _), n in zip(points, names, strict=True)
    )
    grid = "".join(
        f'<line x1="{left}" y1="{base - (base - head) * k / 4}" x2="{w - 20}" y2="{base - (base - head) * k / 4}" stroke="#e3e3e3"/>'
        for k in range(1, 5)
    )
    body = f'<svg width="{w}" height="{h}"><text x="{w / 2}" y="30" text-anchor="middle" class="t">{e(title)}</text>{grid}<line x1="{left}" y1="{base}" x2="{w - 20}" y2="{base}" stroke="#333"/><polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.5"/>{dots}{texts}</svg>'
    return Drawn(body, _chart_css(rng, size), w, _ask_chart(rng, title, names, [f"{p.shown(v)}{unit}" for v in values], values, "points"))


def _chart_css(rng: random.Random, size: int) -> str:
    return f"body{{padding:0;background:#fff}} svg{{display:block}} text{{font:{size}px '{sans(rng)}';fill:#222}} .t{{font-size:{size * 1.3:.1f}px;font-weight:bold}}"


def _ask_chart(
    rng: random.Random, title: str, names: list[str], printed: list[str], values: list[float], what: str
) -> list[tuple[str, str, str]]:
    i, j = rng.sample(range(len(names)), 2)
    return [
        ("What is the title of the chart?", title, "field"), (f"What is the value for {names[i]}?", printed[i], "chart"), (f"What is the value of {names[j]}?", printed[j], "chart"), ("Which one has the highest value?", names[values.index(max(values))], "chart"),
        (f"Is the value for {names[i]} higher than for {names[j]}?", "Yes" if values[i] > values[j] else "No", "yes_no"), (f"How many {what} are there?", str(len(names)), "count"),
    ]  # fmt: skip


# ---- templates for LibreOffice Writer


def letter_writer(rng: random.Random, p: Pool) -> Drawn:
    sender, receiver, firm, day = p.person(), p.person(), p.company(), p.date(words=True)
    subject, paragraphs, asked = p.letter()
    w = Writer(
        rng, rng.choice([serif, sans])(rng), rng.choice([15, 16, 17]), width_mm=rng.choice([148, 140]), height_mm=rng.choice([185, 200])
    )
    w.paragraph(firm, bold=True, scale=1.3, align=rng.choice(["start", "center", "end"]))
    w.paragraph(f"{p.street()}, {p.city()}", after=0.5)
    w.paragraph(day, align=rng.choice(["start", "end"]), after=0.5)
    w.paragraph(receiver)
    w.paragraph(p.street())
    w.paragraph(p.town(), after=0.5)
    w.paragraph(f"Re: {subject}", bold=True, after=0.5)
    w.paragraph(f"Dear {receiver.split()[0]},", after=0.4)
    for text in paragraphs:
        w.paragraph(text, after=0.4, align=rng.choice(["start", "justify"]))
    w.paragraph(rng.choice(["Yours sincerely,", "Kind regards,", "With best wishes,"]), after=0.8)
    w.paragraph(sender)
    return w.drawn([
        ("Who is the letter from?", sender, "field"), ("Who is the letter addressed to?", receiver, "field"), ("What is the date?", day, "field"), ("What is the letter about?", subject, "field"), ("What is the name of the company?", firm, "field"), asked,
    ])  # fmt: skip


def invoice_writer(rng: random.Random, p: Pool) -> Drawn:
    seller, buyer, items = p.company(), p.company(), p.services(rng.randint(2, 4))
    number, day, due, total = p.number("INV"), p.date(), p.date(later=True), p.sum(items)
    w = Writer(rng, sans(rng), rng.choice([12, 13]), width_mm=150, height_mm=rng.choice([130, 150]))
    w.paragraph(seller, bold=True, scale=1.3)
    w.paragraph(f"{p.street()}, {p.city()}", after=0.6)
    w.paragraph(f"Invoice {number}", bold=True, scale=1.15, after=0.3)
    w.paragraph(f"Date: {day}")
    w.paragraph(f"Due date: {due}")
    w.paragraph(f"Bill to: {buyer}", after=0.6)
    w.table(
        [
            ["Description", "Qty", "Price", "Amount"],
            *[[n, str(q), p.money(c), p.money(q * c)] for n, q, c in items],
            ["Total", "", "", p.money(total)],
        ],
        [5, 1.2, 2.4, 2.6],
        {1, 2, 3},
    )
    w.paragraph("")
    w.paragraph("Please pay within 30 days. Thank you.")
    return w.drawn([
        ("What is the invoice number?", number, "field"), ("What is the total?", p.money(total), "field"), ("Who is the invoice for?", buyer, "field"), ("Which company issued the invoice?", seller, "field"), ("What is the due date?", due, "field"), (f"What is the amount for {items[0][0]}?", p.money(items[0][1] * items[0][2]), "cell"),
    ])  # fmt: skip


def form_writer(rng: random.Random, p: Pool) -> Drawn:
    title, fields = p.form(rng.randint(5, 8))
    w = Writer(rng, rng.choice([sans, serif])(rng), rng.choice([12, 13]), width_mm=140, height_mm=rng.choice([110, 130]))
    w.paragraph(title, bold=True, scale=1.35, align=rng.choice(["start", "center"]), after=0.6)
    w.table([[a, b] for a, b in fields], [2.4, 4], set(), header=False)
    return w.drawn([*p.ask_form(title, fields), (f"Is the {fields[0][0].lower()} {p.wrong(fields[0][1])}?", "No", "yes_no")])


def table_writer(rng: random.Random, p: Pool) -> Drawn:
    title, heads, rows, right = p.table(rng.randint(4, 8))
    w = Writer(rng, rng.choice([sans, serif])(rng), rng.choice([12, 13]), width_mm=150, height_mm=rng.choice([90, 110]))
    w.paragraph(title, bold=True, scale=1.25, after=0.5)
    w.table([heads, *rows], [3.2, *[2.2] * (len(heads) - 1)], right)
    return w.drawn(p.ask_table(title, heads, rows))


class Writer:
    """A flat ODT: one page, paragraphs and tables."""

    def __init__(self, rng: random.Random, font: str, size_pt: float, width_mm: int, height_mm: int) -> None:
        self.rng, self.font, self.size, self.width, self.height = rng, font, size_pt, width_mm, height_mm
        self.margin = rng.choice([10, 12, 15])
        self.styles: list[str] = []
        self.content: list[str] = []

    def _style(self, family: str, properties: str) -> str:
        name = f"s{len(self.styles)}"
        self.styles.append(f'<style:style style:name="{name}" style:family="{family}">{properties}</style:style>')
        return name

    def _paragraph(
        self, text: str, bold: bool = False, scale: float = 1.0, align: str = "start", after: float = 0.0, color: str = "#000000"
    ) -> str:
        style = self._style("paragraph", f'<style:paragraph-properties fo:text-align="{align}" fo:margin-bottom="{after * self.size:.1f}pt" fo:line-height="115%"/>'
            f'<style:text-properties style:font-name="F" fo:font-family="\'{self.font}\'" fo:font-size="{self.size * scale:.1f}pt" fo:font-weight="{"bold" if bold else "normal"}" fo:color="{color}" fo:language="en" fo:country="US"/>')  # fmt: skip
        return f'<text:p text:style-name="{style}">{e(text)}</text:p>'

    def paragraph(self, text: str, **options: object) -> None:
        self.content.append(self._paragraph(text, **options))  # type: ignore[arg-type]

    def table(self, rows: list[list[str]], widths: list[float], right: set[int], header: bool = True) -> None:
        look = self.rng.choice(["grid", "lines"])
        shade = self.rng.choice(["#dde6f0", "#eeeeee", "#ffffff"])
        border = 'fo:border="0.5pt solid #444444"' if look == "grid" else 'fo:border-bottom="0.5pt solid #888888"'
        plain = self._style("table-cell", f'<style:table-cell-properties fo:padding="1.2mm" {border}/>')
        head = self._style("table-cell", f'<style:table-cell-properties fo:padding="1.2mm" {border} fo:background-color="{shade}"/>')
        columns = "".join(
            f'<table:table-column table:style-name="{self._style("table-column", f"<style:table-column-properties style:rel-column-width={chr(34)}{int(w * 1000)}*{chr(34)}/>")}"/>'
            for w in widths
        )
        out = []
        for i, row in enumerate(rows):
            cells = "".join(
                f'<table:table-cell table:style-name="{head if header and i == 0 else plain}" office:value-type="string">{self._paragraph(cell, bold=(header and i == 0) or (not header and j == 0), align="end" if j in right else "start")}</table:table-cell>'
                for j, cell in enumerate(row)
            )  # fmt: skip
            out.append(f"<table:table-row>{cells}</table:table-row>")
        self.content.append(f'<table:table table:name="T">{columns}{"".join(out)}</table:table>')

    def drawn(self, questions: list[tuple[str, str, str]]) -> Drawn:
        spaces = " ".join(
            f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{long}:1.0"'
            for name, long in (
                ("office", "office"),
                ("style", "style"),
                ("text", "text"),
                ("table", "table"),
                ("fo", "xsl-fo-compatible"),
                ("svg", "svg-compatible"),
            )
        )
        text = f"""<?xml version="1.0" encoding="UTF-8"?><office:document {spaces} office:version="1.3" office:mimetype="application/vnd.oasis.opendocument.text">
<office:font-face-decls><style:font-face style:name="F" svg:font-family="'{self.font}'"/></office:font-face-decls>
<office:automatic-styles><style:page-layout style:name="pm"><style:page-layout-properties fo:page-width="{self.width}mm" fo:page-height="{self.height}mm" fo:margin="{self.margin}mm"/></style:page-layout>{"".join(self.styles)}</office:automatic-styles>
<office:master-styles><style:master-page style:name="Standard" style:page-layout-name="pm"/></office:master-styles><office:body><office:text>{"".join(self.content)}</office:text></office:body></office:document>"""
        return Drawn("", writer=text, questions=questions, font_px=self.size)


Template = Callable[[random.Random, Pool], Drawn]
TEMPLATES: dict[str, list[Template]] = {
    "chart": [chart_bars, chart_lying, chart_line],
    "form": [form_web, form_paper, form_writer],
    "id_card": [card],
    "invoice": [invoice_split, invoice_band, invoice_writer],
    "letter": [letter_html, letter_writer, memo_html],
    "receipt": [receipt_till, receipt_cafe],
    "screenshot": [screen_settings, screen_mail, screen_order],
    "sign": [sign_hours, sign_notice],
    "table": [table_plain, table_writer],
}

# ---- drawing, and asking what was drawn

_SCRIPT = """
<script id="ask">
const words = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const exOf = new Map();
function ex(element) {
  const style = getComputedStyle(element), key = style.fontFamily + style.fontSize + style.fontWeight;
  if (!exOf.has(key)) {
    const context = document.createElement('canvas').getContext('2d');
    context.font = `${style.fontWeight} ${parseFloat(style.fontSize) * 20}px ${style.fontFamily}`;
    exOf.set(key, context.measureText('x').actualBoundingBoxAscent / 20);
  }
  return exOf.get(key);
}
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  if (node.parentElement.closest('script, style')) continue;
  const block = node.parentElement.closest('[data-block]');
  for (const match of node.data.matchAll(/\\S+/g)) {
    const range = document.createRange();
    range.setStart(node, match.index); range.setEnd(node, match.index + match[0].length);
    const b = range.getBoundingClientRect();
    words.push([match[0], b.left, b.top, b.right, b.bottom, ex(node.parentElement), block ? +block.dataset.block : 0]);
  }
}
const b = document.body.getBoundingClientRect();
const out = document.createElement('pre'); out.id = 'truth'; out.hidden = true;
out.textContent = JSON.stringify({words, body: [b.left, b.top, b.right, b.bottom]});
document.documentElement.appendChild(out);
</script>"""


def draw_html(drawn: Drawn, folder: Path, scale: float) -> tuple[Image.Image, list[Word]]:
    """The picture that Chromium draws, and its words with boxes in pixels."""
    page, picture = folder / "page.html", folder / "page.png"
    css = f"html{{margin:0;background:#fff}} body{{margin:0;width:{drawn.width}px;box-sizing:border-box}} {drawn.css}"
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><style>{css}</style><body>{drawn.body}</body>{_SCRIPT}</html>',
        encoding="utf-8",
    )
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
        "--hide-scrollbars", f"--force-device-scale-factor={scale}", "--window-size=800,1200", "--dump-dom", f"--screenshot={picture}", page.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r'<pre id="truth"[^>]*>(.*?)</pre>', dom, re.S)
    if found is None:
        raise RuntimeError(f"Chromium gave no words of the page; it printed {dom[:200]!r}")
    known = json.loads(html.unescape(found.group(1)))
    words = [
        Word(text, (x0 * scale, y0 * scale, x1 * scale, y1 * scale), ex * scale, block)
        for text, x0, y0, x1, y1, ex, block in known["words"]
    ]
    box = tuple(round(side * scale) for side in known["body"])
    return Image.open(picture).convert("RGB").crop(box), words


def draw_writer(drawn: Drawn, folder: Path, dpi: int) -> tuple[Image.Image, list[Word]]:
    """The picture that LibreOffice and pdftoppm draw, and the words of the PDF."""
    source = folder / "page.fodt"
    source.write_text(drawn.writer, encoding="utf-8")
    subprocess.run(
        [
            "soffice",
            f"-env:UserInstallation={(folder / 'office').as_uri()}",
            "--headless",
            "--convert-to",
            "pdf",
            "--outdir",
            str(folder),
            str(source),
        ],
        check=True,
        capture_output=True,
        timeout=180,
    )
    pdf = folder / "page.pdf"
    subprocess.run(["pdftoppm", "-png", "-r", str(dpi), str(pdf), str(folder / "sheet")], check=True)
    pages = sorted(folder.glob("sheet*.png"))
    picture = Image.open(pages[0]).convert("RGB")
    for path in pages:
        path.unlink()
    if len(pages) != 1:
        raise ValueError("more than one page")
    bbox = subprocess.run(["pdftotext", "-bbox", str(pdf), "-"], check=True, capture_output=True, text=True).stdout
    scale = dpi / 72
    words = []
    for x0, y0, x1, y1, text in re.findall(r'<word xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*?)</word>', bbox):
        box = tuple(float(side) * scale for side in (x0, y0, x1, y1))
        words.append(Word(html.unescape(text), box, 0.5 * drawn.font_px * scale, 0))  # type: ignore[arg-type]
    return picture, words


def lines_of(words: list[Word]) -> list[str]:
    """Lines in reading order: block by block, from top to bottom; what stands side by side is one line."""
    lines: list[str] = []
    for block in sorted({word.block for word in words}):
        rows: list[list[Word]] = []
        own = sorted((w for w in words if w.block == block), key=lambda w: (w.box[1] + w.box[3]) / 2)
        if block == 2:  # the values of a chart, at their marks' heights
            rows = [own]
            own = []
        for word in own:
            top, bottom = word.box[1], word.box[3]
            for row in reversed(rows[-3:]):
                low, high = max(top, row[0].box[1]), min(bottom, row[0].box[3])
                if high - low > 0.5 * min(bottom - top, row[0].box[3] - row[0].box[1]):
                    row.append(word)
                    break
            else:
                rows.append([word])
        rows.sort(key=lambda row: sum(w.box[1] + w.box[3] for w in row) / len(row))
        lines += [" ".join(w.text for w in sorted(row, key=lambda w: w.box[0])) for row in rows]
    return lines


def squeeze(text: str) -> str:
    return " ".join(text.split())


def make(kind: str, split: str, number: int, out: Path, folder: Path) -> dict[str, Any]:
    """Draw until the text has a readable size; save the picture and return its entry."""
    template = TEMPLATES[kind][number % len(TEMPLATES[kind])]
    reason = ""
    for attempt in range(_ATTEMPTS):
        rng = random.Random(f"rendered/{split}/{kind}/{number}/{attempt}")
        drawn = template(rng, Pool(rng, split))
        try:
            if drawn.writer:
                image, words = draw_writer(drawn, folder, rng.choice([72, 96, 100, 110, 150]))
            else:
                image, words = draw_html(drawn, folder, rng.choice([1, 1, 1, 1.25, 1.5, 2]))
        except ValueError as error:
            reason = str(error)
            continue
        scale = MODEL_SIZE / max(image.size)
        heights = sorted(w.x_height * scale for w in words for _ in w.text)
        lines = lines_of(words)
        text = "\n".join(lines)
        extractive = [answer for _, answer, asked in drawn.questions if asked in ("field", "cell", "chart", "line")]
        if absent := [answer for answer in extractive if answer not in squeeze(text)]:
            reason = f"{absent} broken apart in:\n{text}"
            continue
        inside = all(w.box[0] >= 0 and w.box[1] >= 0 and w.box[2] <= image.width + 1 and w.box[3] <= image.height + 1 for w in words)
        if inside and heights[0] >= LEAST_X_HEIGHT and X_HEIGHT[0] <= heights[len(heights) // 2] <= X_HEIGHT[1]:
            break
        reason = f"x-heights from {heights[0]:.1f} px, {heights[len(heights) // 2]:.1f} in the middle"
    else:
        raise RuntimeError(f"{template.__name__} {number} of {split} cannot be drawn: {reason}")
    questions = [{"question": q, "answer": a, "kind": k} for q, a, k in drawn.questions]
    if kind != "chart":
        questions.append({"question": "What does the first line say?", "answer": lines[0], "kind": "line"})
    questions = [questions[0], *rng.sample(questions[1:], min(5, len(questions) - 1))]
    name = f"{split}/{kind}-{number}.{'jpg' if rng.random() < 0.3 else 'png'}"
    save(image, out / name)
    return {
        "id": f"{kind}-{number}", "kind": kind, "image": name, "drawn_by": "LibreOffice" if drawn.writer else "Chromium", "template": template.__name__, "x_height_px": round(heights[len(heights) // 2], 1),
        "text": text, "questions": questions,
    }  # fmt: skip


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        image.save(path, quality=88)
        return
    buffer = io.BytesIO()
    image.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    path.write_bytes(buffer.getvalue())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rendered", help="folder to write (default: %(default)s)")
    parser.add_argument("--splits", nargs="+", default=list(PER_KIND), choices=list(PER_KIND))
    parser.add_argument("--kinds", nargs="+", default=list(TEMPLATES), choices=list(TEMPLATES))
    args = parser.parse_args()
    if missing := [name for name in ("chromium", "soffice", "pdftoppm", "pdftotext") if shutil.which(name) is None]:
        print(f"not found: {', '.join(missing)}; on Debian: apt-get install chromium libreoffice-writer poppler-utils", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        for split in args.splits:
            path = args.out / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            entries = {entry["id"]: entry for entry in map(json.loads, lines)}
            for kind, number in itertools.product(args.kinds, range(PER_KIND[split])):
                if f"{kind}-{number}" not in entries:
                    entry = make(kind, split, number, args.out, Path(temporary))
                    entries[entry["id"]] = entry
                    path.write_text(
                        "".join(json.dumps(entries[name], ensure_ascii=False) + "\n" for name in sorted(entries)), encoding="utf-8"
                    )
                    print(f"{split} {entry['id']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
