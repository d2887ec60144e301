"""A page that is drawn on and remembers every character: its box, its line, its place in the reading order.

    page = Page(512, 512, random.Random(1), split="train", x_height_px=(6, 12))
    style = page.style(1.0)
    page.text(20, 40, "Total: 12.50", style)
    ground_truth = page.ground_truth()

Text is drawn the way rasterisers draw it after a picture was resized for a model: glyphs at one to three times the final size (or below it, for
pictures that are enlarged), at fractional positions, then resized line by line with a filter of the page's choice. Glyph pictures, advances and kerning are
cached, so a line costs one paste a character.
"""

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from fastvlm.data import fonts

Color = tuple[int, int, int]

_EM = 200  # pixels per em at which advances, kerning and heights are measured
_DRAWN_SIZES = (7, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64)  # few, so that glyph pictures are found again
_HAS_KERNING = features.check("raqm")
_FILTERS = (
    Image.Resampling.BICUBIC,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BOX,
)
_FALLBACKS = {"train": "Arimo-Regular.ttf", "val": "Oxygen-Sans.ttf", "heldout": "ClearSans-Regular.ttf"}


class PageFull(Exception):
    """Text would leave the page. The layout is drawn again with other choices; see `documents.generate`."""


class Typeface:
    """Metrics of one font file in em: advances, kerning, heights. Made once a process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._font = ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC)
        self._shaper = ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.RAQM) if _HAS_KERNING else None
        ascent, descent = self._font.getmetrics()
        self.ascent_em, self.descent_em = ascent / _EM, descent / _EM
        self.x_height_em = -self._font.getbbox("x", anchor="ls")[1] / _EM
        self.cap_height_em = -self._font.getbbox("H", anchor="ls")[1] / _EM
        self.is_monospaced = self._font.getlength("i") == self._font.getlength("W")
        self._advances: dict[str, float] = {}
        self._kerning: dict[str, float] = {}
        self._shaped: dict[str, float] = {}

    def _shaped_em(self, text: str) -> float:
        length = self._shaped.get(text)
        if length is None:
            assert self._shaper is not None
            length = self._shaper.getlength(text, features=["-liga", "-clig", "-dlig", "-calt"]) / _EM
            if len(text) == 1:
                self._shaped[text] = length
        return length

    def advance_em(self, character: str) -> float:
        advance = self._advances.get(character)
        if advance is None:
            advance = self._advances[character] = self._font.getlength(character) / _EM
        return advance

    def kerning_em(self, pair: str) -> float:
        kerning = self._kerning.get(pair)
        if kerning is None:
            kerning = 0.0
            if self._shaper is not None and not self.is_monospaced:
                kerning = self._shaped_em(pair) - self._shaped_em(pair[0]) - self._shaped_em(pair[1])
                kerning = max(-0.2, min(0.2, kerning))
            self._kerning[pair] = kerning
        return kerning


class Strike:
    """Glyph pictures of one font file at one whole size in pixels."""

    def __init__(self, path: str, size: int) -> None:
        self._font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        self._glyphs: dict[tuple[str, int], tuple] = {}
        self._advances: dict[str, float] = {}

    def glyph(self, character: str, quarters: int = 0) -> tuple:
        """(mask or None without ink, left, top, width, height of the ink, from the pen on the baseline), drawn `quarters` of a pixel to the right."""
        glyph = self._glyphs.get((character, quarters))
        if glyph is None:
            mask, (left, top) = self._font.getmask2(character, "L", anchor="ls", start=(quarters / 4, 0.0))
            ink = mask.getbbox()
            if ink is None:
                glyph = (None, 0, 0, 0, 0)
            else:
                mask = mask.crop(ink)
                glyph = (mask, left + ink[0], top + ink[1], ink[2] - ink[0], ink[3] - ink[1])
            self._glyphs[character, quarters] = glyph
        return glyph

    def advance(self, character: str) -> float:
        """The hinted advance in whole pixels of this size."""
        advance = self._advances.get(character)
        if advance is None:
            advance = self._advances[character] = self._font.getlength(character)
        return advance


@functools.lru_cache(maxsize=1024)
def typeface(path: str) -> Typeface:
    return Typeface(path)


@functools.lru_cache(maxsize=768)
def strike(path: str, size: int) -> Strike:
    return Strike(path, size)


@dataclass(frozen=True)
class Style:
    """How a run of text looks: a face at `size_px` (em, may be fractional), its colour, and extra space between letters."""

    face: fonts.Face
    size_px: float
    color: Color = (0, 0, 0)
    letter_spacing_px: float = 0.0

    @property
    def typeface(self) -> Typeface:
        return typeface(self.face.path)

    @property
    def x_height_px(self) -> float:
        return self.typeface.x_height_em * self.size_px

    @property
    def cap_height_px(self) -> float:
        return self.typeface.cap_height_em * self.size_px

    def colored(self, color: Color) -> "Style":
        return replace(self, color=color)


@dataclass(frozen=True)
class Line:
    """One line in reading order. `box` is (x0, y0, x1, y1) in pixels; `x_height_px` the smallest of its runs."""

    text: str
    box: tuple[float, float, float, float]
    x_height_px: float


@dataclass
class Run:
    """Text drawn by one call, with the ink box of every character that has ink."""

    text: str
    x: float
    baseline: float
    chars: list[str]
    boxes: list[tuple[float, float, float, float]]
    x_height_px: float
    block: int
    row: int | None = None


@dataclass
class GroundTruth:
    """What stands on a page. `boxes` is (len(chars), 4) float32; `rows[i]` is the number of line i's characters."""

    text: str
    chars: str
    boxes: np.ndarray
    lines: list[Line]
    rows: list[int]


@dataclass
class Families:
    """The faces of a page: for the body, for headings, and of fixed width."""

    body: Sequence[fonts.Face]
    heading: Sequence[fonts.Face]
    mono: Sequence[fonts.Face]


class Page:
    """A picture of `width` x `height` pixels and the text that was drawn on it.

    Args:
        x_height_px: the smallest and the largest height of a small x for body text; the page draws one between them as `self.x_height_px`.
        families: faces to use; drawn from the split's when None.
        is_resized: the picture will be resized as a whole, so its glyphs mostly stand on whole pixels, as browsers draw them.
    """

    def __init__(
        self,
        width: int,
        height: int,
        rng: random.Random,
        *,
        split: str = "train",
        x_height_px: tuple[float, float] = (6, 14),
        families: Families | None = None,
        is_resized: bool = False,
    ) -> None:
        self.width, self.height, self.rng, self.split = width, height, rng, split
        self.min_x_height_px = x_height_px[0]
        low, high = x_height_px
        # Small text is more frequent in training: there is more of it on a page, and it is harder to read.
        self.x_height_px = low * (max(high, low) / low) ** (rng.random() ** (1.5 if split == "train" else 1.0))
        self.families = families or choose_families(rng, split)
        self.paper: Color = (255, 255, 255)
        self.ink: Color = (0, 0, 0)
        self.accent: Color = (40, 70, 140)
        self.rule_color: Color = (120, 120, 120)
        self.shade: Color = (235, 235, 235)
        self.image = Image.new("RGB", (width, height), self.paper)
        self._draw = ImageDraw.Draw(self.image)
        self._fallback = str(fonts.SHIPPED / _FALLBACKS[split])
        self.runs: list[Run] = []
        self._block = 0
        # How the rasteriser works. Scale 1: whole pixels, hinted, as a screenshot at its own size.
        way = rng.random()
        self.raster_scale = 1.0 if way < 0.25 else rng.uniform(1.2, 3.0) if way < 0.9 else rng.uniform(0.65, 0.95)
        if is_resized and rng.random() < 0.7:
            self.raster_scale = 1.0
        self.uses_hinted_advances = rng.random() < (0.6 if self.raster_scale == 1.0 else 0.3)
        self._filter = rng.choice(_FILTERS)
        gamma = rng.choice([1.0, 1.0, rng.uniform(0.65, 1.35)])
        self._ink_curve = None if gamma == 1.0 else [round(255 * (i / 255) ** gamma) for i in range(256)]
        # Kerning comes from a library that not every machine has: the held-out documents must be the same without it.
        self.kerns = rng.random() < 0.7 and split != "heldout" and _HAS_KERNING
        # Headings whose letters stand apart, as style sheets have them, in em.
        self.heading_spacing_em = rng.choice([0.0] * 6 + [0.03, 0.06, 0.1]) if split == "train" else 0.0
        # Chromium without a screen: advances are not rounded, and glyphs stand on quarters of a pixel.
        self.places_by_quarters = split == "train" and self.raster_scale == 1.0 and rng.random() < 0.6
        if self.places_by_quarters:
            self.uses_hinted_advances = False

    # ---- colours

    def set_colors(self, paper: Color, ink: Color, accent: Color | None = None) -> None:
        """Fill the page; everything that is drawn later takes these colours."""
        self.paper, self.ink = paper, ink
        self.accent = accent or ink
        self.rule_color = mix(paper, ink, self.rng.uniform(0.25, 0.8))
        self.shade = mix(paper, self.rng.choice([ink, self.accent]), self.rng.uniform(0.05, 0.13))
        self.image.paste(paper, (0, 0, self.width, self.height))

    # ---- text

    def style(
        self,
        scale: float = 1.0,
        *,
        bold: bool = False,
        italic: bool = False,
        heading: bool = False,
        mono: bool = False,
        color: Color | None = None,
    ) -> Style:
        """A style whose x-height is `scale` times the page's, but not below its minimum."""
        faces = self.families.mono if mono else self.families.heading if heading else self.families.body
        wanted = [f for f in faces if f.is_bold == bold and f.is_italic == italic] or [f for f in faces if f.is_bold == bold] or list(faces)
        face = wanted[0]
        x_height = max(self.x_height_px * scale, self.min_x_height_px)
        size = x_height / typeface(face.path).x_height_em
        if self.raster_scale == 1.0:
            size = float(round(size)) if round(size) >= size or x_height > self.min_x_height_px * 1.05 else float(round(size) + 1)
        return Style(face, size, color or self.ink, self.heading_spacing_em * size if heading else 0.0)

    def line_height(self, style: Style, spacing: float = 1.25) -> float:
        return style.size_px * spacing

    def measure(self, text: str, style: Style) -> float:
        """Width of the text in pixels: the sum of its advances and kerning."""
        return self._pens(text, style)[-1]

    def _pens(self, text: str, style: Style) -> list[float]:
        """Where the pen stands before each character and after the last, in pixels from the start."""
        face, size, spacing = style.typeface, style.size_px, style.letter_spacing_px
        missing = style.face.missing
        if self.uses_hinted_advances:
            drawn, scale = self._raster(style)
            hinted = strike(face.path, drawn)
            advances = [hinted.advance(c) / scale if c not in missing else typeface(self._fallback).advance_em(c) * size for c in text]
        elif missing:
            advances = [face.advance_em(c) * size if c not in missing else typeface(self._fallback).advance_em(c) * size for c in text]
        else:
            advance_em = face.advance_em
            advances = [advance_em(c) * size for c in text]
        if self.kerns and not face.is_monospaced:
            kerning_em = face.kerning_em
            for i in range(len(text) - 1):
                advances[i] += kerning_em(text[i : i + 2]) * size
        if spacing:
            advances = [advance + spacing for advance in advances]
        return list(itertools.accumulate(advances, initial=0.0))

    def _raster(self, style: Style) -> tuple[int, float]:
        """The whole size at which glyphs are drawn, and how many of those pixels make one of the page's."""
        wanted = style.size_px * self.raster_scale
        if self.raster_scale == 1.0:
            drawn = round(wanted)
        else:
            drawn = min(_DRAWN_SIZES, key=lambda size: abs(size - wanted)) if wanted < _DRAWN_SIZES[-1] else round(wanted / 16) * 16
        return drawn, drawn / style.size_px

    def text(self, x: float, baseline: float, text: str, style: Style, anchor: str = "l", row: int | None = None) -> float:
        """Draw one run of text; returns its width in pixels.

        Args:
            x, baseline: where it starts ("l"), ends ("r") or has its middle ("m").
            row: runs of one block with the same number are one row, whatever their heights (the values above the bars of a chart).

        Raises:
            PageFull: its ink would leave the page.
        """
        pens = self._pens(text, style)
        width = pens[-1]
        x -= {"l": 0.0, "r": width, "m": width / 2}[anchor]
        drawn, scale = self._raster(style)
        face_strike = strike(style.face.path, drawn)
        missing = style.face.missing
        left_edge, baseline_edge = int(x) - 2, round(baseline * scale) / scale if scale == 1.0 else baseline
        # Glyphs in source pixels, from the left edge of the target region and from the baseline.
        placed, top, bottom, right = [], 0, 0, 0
        shift = (x - left_edge) * scale
        for character, pen in zip(text, pens, strict=False):
            glyphs = strike(self._fallback, drawn) if character in missing else face_strike
            position = shift + pen * scale
            quarters = round(position * 4) if self.places_by_quarters else round(position) * 4
            mask, glyph_left, glyph_top, glyph_width, glyph_height = glyphs.glyph(character, quarters % 4)
            if mask is None and not character.isspace():  # a thin stroke, hinted away at this size
                mask, glyph_left, glyph_top, glyph_width, glyph_height = strike(self._fallback, drawn).glyph(character, quarters % 4)
            if mask is None:
                continue
            u = quarters // 4 + glyph_left
            placed.append((character, mask, u, glyph_top, u + glyph_width, glyph_top + glyph_height))
            top, bottom, right = min(top, glyph_top), max(bottom, glyph_top + glyph_height), max(right, u + glyph_width)
        if not placed:
            return width
        # The target region in whole page pixels around the ink, with a pixel of room for the filter.
        y0, y1 = int(baseline_edge + top / scale) - 2, int(baseline_edge + bottom / scale) + 3
        x1 = left_edge + int(right / scale) + 3
        if placed[0][2] < 0:
            placed = [(c, m, max(0, u0), v0, max(0, u0) + u1 - u0, v1) for c, m, u0, v0, u1, v1 in placed]
        rise = round((baseline_edge - y0) * scale)
        source_width, source_height = (x1 - left_edge) * scale, (y1 - y0) * scale
        source = Image.new("L", (int(np.ceil(source_width)), int(np.ceil(source_height))))
        core = source.im
        chars, boxes = [], []
        inverse = 1 / scale
        for character, mask, u0, v0, u1, v1 in placed:
            core.paste(255, (u0, v0 + rise, u1, v1 + rise), mask)
            chars.append(character)
            boxes.append((left_edge + u0 * inverse, y0 + (v0 + rise) * inverse, left_edge + u1 * inverse, y0 + (v1 + rise) * inverse))
        if (
            min(b[0] for b in boxes) < 0
            or boxes[-1][2] > self.width
            or min(b[1] for b in boxes) < 0
            or max(b[3] for b in boxes) > self.height
        ):
            raise PageFull(f"{text!r} leaves a page of {self.width}x{self.height}")
        if scale != 1.0:
            source = source.resize((x1 - left_edge, y1 - y0), self._filter, box=(0, 0, source_width, source_height))
        if self._ink_curve is not None:
            source = source.point(self._ink_curve)
        self.image.paste(style.color, (left_edge, y0), source)
        self.runs.append(Run(text, x, baseline, chars, boxes, style.x_height_px, self._block, row))
        return width

    def wrap(self, text: str, style: Style, width: float) -> list[str]:
        """Break text at blanks into lines of at most `width` pixels; a longer word is cut by characters."""
        space = self.measure(" ", style)
        lines: list[str] = []
        line: list[str] = []
        used = 0.0
        for word in text.split():
            wide = self.measure(word, style)
            while wide > width and len(word) > 1:
                cut = max(1, int(len(word) * width / wide) - 1)
                if line:
                    lines.append(" ".join(line))
                    line, used = [], 0.0
                lines.append(word[:cut])
                word = word[cut:]
                wide = self.measure(word, style)
            if line and used + space + wide > width:
                lines.append(" ".join(line))
                line, used = [], 0.0
            used += wide + (space if line else 0.0)
            line.append(word)
        if line:
            lines.append(" ".join(line))
        return lines

    def fit(self, text: str, style: Style, width: float) -> str:
        """The words of `text` that fit into `width` pixels (at least nothing: the empty string)."""
        words = text.split()
        while words and self.measure(" ".join(words), style) > width:
            words.pop()
        return " ".join(words)

    def shrink(self, text: str, style: Style, width: float) -> Style:
        """The style, made smaller until `text` fits into `width` pixels, but not below the page's least x-height.

        Raises:
            PageFull: it does not fit at any size.
        """
        wide = self.measure(text, style)
        if wide <= width:
            return style
        size = style.size_px * width / wide * 0.98
        if self.raster_scale == 1.0:
            size = float(int(size))
        if size <= 0 or size * style.typeface.x_height_em < self.min_x_height_px * 0.98:
            raise PageFull(f"{text!r} is too wide for {width:.0f} px")
        smaller = replace(style, size_px=size, letter_spacing_px=0.0)
        if self.measure(text, smaller) > width:
            raise PageFull(f"{text!r} is too wide for {width:.0f} px")
        return smaller

    def new_block(self) -> None:
        """What is drawn from here on is read after everything drawn before, whatever its height on the page."""
        self._block += 1

    # ---- shapes

    def fill(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        """A filled rectangle; edges between pixels are blended."""
        x0, x1 = max(0.0, min(x0, x1)), min(float(self.width), max(x0, x1))
        y0, y1 = max(0.0, min(y0, y1)), min(float(self.height), max(y0, y1))
        if x1 <= x0 or y1 <= y0:
            return
        left, top, right, bottom = int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))
        if self.raster_scale == 1.0 or (x0 == left and x1 == right and y0 == top and y1 == bottom):
            self.image.paste(color, (round(x0), round(y0), max(round(x0) + 1, round(x1)), max(round(y0) + 1, round(y1))))
            return
        columns, rows = _coverage(x0, x1, left, right), _coverage(y0, y1, top, bottom)
        mask = Image.fromarray(np.outer(rows, columns).astype(np.uint8))
        self.image.paste(color, (left, top), mask)

    def horizontal_rule(
        self, x0: float, x1: float, y: float, thickness: float = 1.0, color: Color | None = None, dash: float = 0.0
    ) -> None:
        color = color or self.rule_color
        if not dash:
            self.fill(x0, y - thickness / 2, x1, y + thickness / 2, color)
            return
        x = x0
        while x < x1:
            self.fill(x, y - thickness / 2, min(x1, x + dash), y + thickness / 2, color)
            x += 2 * dash

    def vertical_rule(self, x: float, y0: float, y1: float, thickness: float = 1.0, color: Color | None = None) -> None:
        self.fill(x - thickness / 2, y0, x + thickness / 2, y1, color or self.rule_color)

    def frame(
        self, x0: float, y0: float, x1: float, y1: float, thickness: float = 1.0, color: Color | None = None, radius: float = 0.0
    ) -> None:
        """The outline of a rectangle, its corners round if `radius` is above 0."""
        color = color or self.rule_color
        if radius >= 1:
            self._draw.rounded_rectangle((x0, y0, x1, y1), radius, outline=color, width=max(1, round(thickness)))
            return
        self.horizontal_rule(x0, x1, y0, thickness, color)
        self.horizontal_rule(x0, x1, y1, thickness, color)
        self.vertical_rule(x0, y0, y1, thickness, color)
        self.vertical_rule(x1, y0, y1, thickness, color)

    def rounded(self, x0: float, y0: float, x1: float, y1: float, radius: float, color: Color) -> None:
        """A filled rectangle with round corners."""
        self._draw.rounded_rectangle((x0, y0, x1, y1), radius, fill=color)

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        """For shapes without text: polygons, ellipses, lines."""
        return self._draw

    # ---- what stands on the page

    def ground_truth(self) -> GroundTruth:
        """Blocks in the order in which they were begun; in a block rows from top to bottom, in a row from left to right, joined by one space."""
        rows: list[list[Run]] = []
        for run in sorted(self.runs, key=lambda run: (run.block, run.row if run.row is not None else -1, run.baseline)):
            row = rows[-1][0] if rows else None
            if row is not None and row.block == run.block and (run.row is not None or row.row is not None):
                same = run.row == row.row
            else:
                same = (
                    row is not None and row.block == run.block and run.baseline - row.baseline < 0.6 * min(row.x_height_px, run.x_height_px)
                )
            if same:
                rows[-1].append(run)
            else:
                rows.append([run])
        chars: list[str] = []
        boxes: list[tuple[float, float, float, float]] = []
        lines, counts = [], []
        for members in rows:
            members.sort(key=lambda run: run.x)
            own = [box for run in members for box in run.boxes]
            chars += [character for run in members for character in run.chars]
            boxes += own
            edges = np.array(own)
            box = (*edges[:, :2].min(0).tolist(), *edges[:, 2:].max(0).tolist())
            lines.append(Line(" ".join(" ".join(run.text.split()) for run in members), box, min(run.x_height_px for run in members)))
            counts.append(len(own))
        text = "\n".join(line.text for line in lines)
        return GroundTruth(text, "".join(chars), np.array(boxes, np.float32).reshape(-1, 4), lines, counts)


def random_color(rng: random.Random, low: int, high: int) -> Color:
    """A colour with each channel from `low` to `high`."""
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def mix(first: Color, second: Color, share: float) -> Color:
    """`share` of the second colour in the first."""
    r, g, b = (round(a + (c - a) * share) for a, c in zip(first, second, strict=True))
    return r, g, b


def _coverage(low: float, high: float, first: int, last: int) -> np.ndarray:
    """How much of each pixel of first..last lies in low..high, times 16 (the outer product of two is then 0..256, cut to 255)."""
    edges = np.arange(first, last)
    return np.minimum(15.97, 16 * np.clip(np.minimum(edges + 1, high) - np.maximum(edges, low), 0, 1))


@functools.lru_cache(maxsize=8)
def _weighted_families(split: str, styles: tuple[str, ...]) -> tuple[list[str], list[int]]:
    names = [name for name in fonts.families(split) if fonts.FAMILIES[name].style in styles]
    if not names:
        names = list(fonts.families(split))
    return names, [fonts.FAMILIES[name].weight for name in names]


def choose_families(rng: random.Random, split: str, body: tuple[str, ...] = ("sans", "serif", "mono", "narrow")) -> Families:
    """Families for one page. `body` are the styles that may be its body text."""
    weights = {"sans": 10, "serif": 7, "mono": 3, "narrow": 1}
    style = rng.choices(body, [weights[s] for s in body])[0]
    pools = {name: _weighted_families(split, (name,)) for name in ("sans", "serif", "mono")}
    names, shares = _weighted_families(split, (style,))
    known = fonts.families(split)
    own = known[rng.choices(names, shares)[0]]
    heading = own if rng.random() < 0.7 else known[rng.choices(*pools[rng.choice(["sans", "sans", "serif"])])[0]]
    mono = own if style == "mono" else known[rng.choices(*pools["mono"])[0]]
    return Families(_shuffled(rng, own), _shuffled(rng, heading), _shuffled(rng, mono))


def _shuffled(rng: random.Random, faces: Sequence[fonts.Face]) -> list[fonts.Face]:
    """The faces in random order: a family may have several of one weight (condensed, semi-bold), and the first that fits is taken."""
    return rng.sample(list(faces), len(faces))
