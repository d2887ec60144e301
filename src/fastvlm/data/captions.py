"""What a document's picture shows at a glance, in a sentence: for the first stage of training.

    describe("receipt", "grocery", (255, 255, 255), (0, 0, 0), 18, ["camera", "noise"])
    # -> "A receipt photographed on a table, dark text on white, about 20 lines, with grain."

Nothing in it has to be read.
"""

from collections.abc import Collection

from fastvlm.data.canvas import Color

NOUNS = {
    "boarding_pass": "a boarding pass",
    "form": "a filled-in form",
    "id_card": "an identity card",
    "invoice": "an invoice",
    "letter": "a letter",
    "lines": "some lines of text",
    "paragraph": "a page of text",
    "receipt": "a receipt",
    "screenshot": "a screenshot of a computer program",
    "sign": "a sign",
    "table": "a table",
    "words": "single words",
}
_COLORS = {
    "white": (250, 250, 250),
    "cream": (245, 235, 210),
    "gray": (200, 200, 200),
    "yellow": (235, 225, 90),
    "orange": (235, 150, 50),
    "pink": (240, 190, 205),
    "red": (190, 40, 40),
    "purple": (120, 60, 150),
    "blue": (60, 100, 190),
    "light blue": (195, 215, 245),
    "green": (50, 130, 70),
    "light green": (200, 235, 200),
    "brown": (120, 80, 40),
    "black": (15, 15, 15),
}
_SEEN = {"camera": "photographed on a table", "perspective": "seen from the side", "rotation": "scanned at a slant"}
_FLAWS = {"fold": "with a fold", "light": "unevenly lit", "blur": "blurred", "noise": "with grain"}


def color_name(color: Color) -> str:
    """The nearest of the colours that have a name here."""
    return min(_COLORS, key=lambda name: sum((a - b) ** 2 for a, b in zip(_COLORS[name], color, strict=True)))


def describe(kind: str, layout: str, paper: Color, ink: Color, lines: int, degradations: Collection[str]) -> str:
    """Kind, where it lies, colours, length and what ails the picture.

    Args:
        lines: of text; said to the next five, above ten to the next ten.
        degradations: the document's, `degrade.Plan.names`.
    """
    noun = _chart(layout) if kind == "chart" else NOUNS.get(kind, f"a {kind.replace('_', ' ')}")
    seen = next((words for name, words in _SEEN.items() if name in degradations), "")
    is_dark = sum(paper) < sum(ink)
    colors = f"{'light' if is_dark else 'dark'} text on {color_name(paper)}"
    step = 5 if lines <= 10 else 10
    length = f"about {max(step, round(lines / step) * step)} lines" if lines > 3 else "only a few words"
    flaw = next((words for name, words in _FLAWS.items() if name in degradations), "")
    sentence = ", ".join(filter(None, (f"{noun} {seen}".strip(), colors, length, flaw)))
    return f"{sentence[0].upper()}{sentence[1:]}."


def _chart(layout: str) -> str:
    if "line" in layout:
        return "a line chart"
    return "a bar chart with lying bars" if layout.startswith("lying") else "a bar chart"
