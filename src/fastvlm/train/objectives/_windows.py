"""Windows of a picture's tokens, and the text that stands in each: reading in small pieces, before whole pages are read.

Which of 64 tokens holds the next character is hard to find out while nothing can be read from a token yet, and what is in a token is hard
to read while the right one is not found. A window of one token leaves only the second question, one row of tokens little of the first.
"""

import itertools
import random
from typing import Any

import numpy as np

from fastvlm.config import PATCH_SIZE
from fastvlm.train.objectives._places import centres


def window_text(document: Any, at: np.ndarray, box: tuple[int, int, int, int]) -> tuple[str, np.ndarray]:
    """What stands in a window, line by line, and the numbers of its visible characters: those that have their centres in it.

    Args:
        document: `fastvlm.data.documents.Document`.
        at: `centres` of its characters.
        box: x0, y0, x1, y1 in pixels.
    """
    x0, y0, x1, y1 = box
    x, y = at.T
    is_in = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    lines, start = [], 0
    for line in document.lines:
        letters = [index for index, letter in enumerate(line.text) if not letter.isspace()]
        kept = [letters[index] for index in np.flatnonzero(is_in[start : start + len(letters)])]
        start += len(letters)
        if kept:
            lines.append(_joined(line.text, kept))
    return "\n".join(lines), np.flatnonzero(is_in)


def _joined(text: str, kept: list[int]) -> str:
    """The kept letters of a line; one space where blanks or letters are between them."""
    pieces = [text[kept[0]]]
    for before, at in itertools.pairwise(kept):
        pieces.append(text[at] if at == before + 1 else " " + text[at])
    return "".join(pieces)


def draw_windows(document: Any, shapes: dict[str, int], rng: random.Random) -> list[tuple[np.ndarray, str, np.ndarray]]:
    """Windows with text in them: (numbers of their tokens, text, numbers of its visible characters).

    Args:
        shapes: rows x columns -> how many a document, such as {"1x1": 8, "1x8": 2}; fewer where fewer have text.
    """
    columns, rows = document.image.width // PATCH_SIZE, document.image.height // PATCH_SIZE
    numbers = np.arange(rows * columns).reshape(rows, columns)
    at, drawn = centres(document), []
    for shape, count in shapes.items():
        high, wide = (min(side, most) for side, most in zip(map(int, shape.split("x")), (rows, columns), strict=True))
        corners = [(row, column) for row in range(rows - high + 1) for column in range(columns - wide + 1)]
        for row, column in rng.sample(corners, len(corners)):
            if count == 0:
                break
            box = (column * PATCH_SIZE, row * PATCH_SIZE, (column + wide) * PATCH_SIZE, (row + high) * PATCH_SIZE)
            text, letters = window_text(document, at, box)
            if text:
                drawn.append((numbers[row : row + high, column : column + wide].ravel(), text, letters))
                count -= 1
    return drawn
