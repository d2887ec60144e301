"""A page of running text, with headings, bullets and justified lines now and then: for learning dense transcription."""

from fastvlm.data.documents import Sheet


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    sheet.choose_colors()
    left = rng.uniform(0.02, 0.1) * page.width
    right = page.width - rng.uniform(0.02, 0.1) * page.width
    bottom = page.height - rng.uniform(0.01, 0.08) * page.height
    style = page.style(1.0)
    step = page.line_height(style, rng.uniform(1.1, 1.6))
    gap = rng.choice([0.0, 0.4, 0.8, 1.0]) * step
    indent = rng.choice([0.0, 0.0, 2.0]) * style.size_px
    justified = rng.random() < 0.3
    hyphen_bullet = rng.choice(["•", "-", "*", ""])
    y = rng.uniform(0.01, 0.08) * page.height + style.size_px
    if rng.random() < 0.4:
        heading = page.style(rng.uniform(1.2, 1.9), bold=rng.random() < 0.7, heading=True)
        title = page.fit(writer.sentence().rstrip("."), heading, right - left)
        if title:
            y += heading.size_px - style.size_px
            page.text(left, y, title, heading)
            y += heading.size_px * 0.5 + step
    while y < bottom:
        bulleted = rng.random() < 0.15
        text = " ".join(writer.sentence() for _ in range(1 if bulleted else rng.randint(1, 5)))
        hang = style.size_px * 1.2 if bulleted and hyphen_bullet else 0.0
        lines = page.wrap(text, style, right - left - hang - indent)
        for i, line in enumerate(lines):
            if y > bottom:
                break
            x = left + hang + (indent if i == 0 and not bulleted else 0.0)
            if hang and i == 0:
                page.text(left, y, hyphen_bullet, style)
            words = line.split()
            if justified and i < len(lines) - 1 and len(words) > 2:
                spare = right - x - sum(page.measure(word, style) for word in words)
                for word in words:
                    x += page.text(x, y, word, style) + spare / (len(words) - 1)
            else:
                page.text(x, y, line, style)
            y += step
        y += gap
    if not page.runs:
        page.text(left, page.height / 2, writer.word(), style)
