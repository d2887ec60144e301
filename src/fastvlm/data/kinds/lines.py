"""One to many lines of text in one face, set left, centred or right: for learning to transcribe in order."""

from fastvlm.data.documents import Sheet


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    sheet.choose_colors()
    margin = rng.uniform(0.02, 0.1) * page.width
    style = page.style(1.0, bold=rng.random() < 0.15, italic=rng.random() < 0.1)
    spacing = rng.uniform(1.1, 2.2)
    step = page.line_height(style, spacing)
    room = int((page.height - 2 * margin) / step)
    count = min(max(1, room), rng.choice([1, 1, 2, 3, rng.randint(1, 6), rng.randint(1, 40)]))
    anchor = rng.choice(["l", "l", "l", "m", "r"])
    x = {"l": margin, "m": page.width / 2, "r": page.width - margin}[anchor]
    width = page.width - 2 * margin
    y = rng.uniform(margin, max(margin, page.height - margin - count * step)) + style.size_px
    short = rng.random() < 0.5
    for _ in range(count):
        text = " ".join(writer.mixed() for _ in range(rng.randint(1, 4))) if short or rng.random() < 0.3 else writer.sentence()
        text = page.fit(text, style, width) or page.fit(writer.word(), style, width) or "a"
        page.text(x, y, text, style, anchor)
        y += step
