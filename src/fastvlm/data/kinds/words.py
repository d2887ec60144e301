"""Words, numbers and codes in many sizes and faces, scattered over the picture in rows: for learning letters."""

from fastvlm.data import canvas
from fastvlm.data.documents import Sheet


def draw(sheet: Sheet) -> None:
    page, rng, writer = sheet.page, sheet.rng, sheet.writer
    sheet.choose_colors()
    margin = rng.uniform(0.01, 0.06) * page.width
    sizes = rng.choice([(1.0, 1.0), (0.8, 1.6), (0.7, 2.6)])
    gap = rng.uniform(1.0, 1.8)
    density = rng.uniform(0.5, 1.0)
    many_faces = rng.random() < 0.5
    y = margin
    while True:
        if many_faces and rng.random() < 0.5:
            page.families = canvas.choose_families(rng, sheet.split)
        style = page.style(rng.uniform(*sizes), bold=rng.random() < 0.25, italic=rng.random() < 0.12)
        if rng.random() < 0.15:
            style = style.colored(page.accent)
        y += style.size_px * gap
        if y + 0.35 * style.size_px > page.height - 2:
            break
        if rng.random() > density:
            continue
        right = page.width - margin
        x = margin + rng.random() ** 2 * 0.6 * (right - margin)
        while x < right:
            text = writer.mixed() if rng.random() < 0.75 else writer.sentence()
            text = page.fit(text, style, right - x)
            if not text:
                break
            x += page.text(x, y, text, style) + style.size_px * rng.uniform(0.6, 6.0)
            if rng.random() < 0.4:
                break
    if not page.runs:
        page.text(margin, page.height / 2, writer.word(), page.style(1.0))
