"""Pictures of documents made by code, with exact ground truth.

    document = generate(7, kind="paragraph", width=512, height=512)
    document.image.save("page.png")
    document.text                      # what stands in it, line by line
    document.chars, document.boxes     # every character and its box in pixels

The same arguments give the same document. The fonts, layouts and words of the splits "train", "val" and "heldout" are disjoint. Kinds are files of
`fastvlm.data.kinds`; degradations are in `degrade`, typesetting in `canvas`, content in `words`.
"""

import functools
import hashlib
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from fastvlm.data import canvas, degrade, fonts
from fastvlm.data.canvas import Line, Page, PageFull
from fastvlm.data.captions import describe
from fastvlm.data.questions import QA, ask_about, ask_plainly
from fastvlm.data.words import Writer
from fastvlm.plugins import list_plugins, load_plugin

T = TypeVar("T")

KINDS_PACKAGE = "fastvlm.data.kinds"

# Kinds that `nano` never sees: for showing that fine-tuning teaches a new one.
NANO_EXCLUDED_KINDS = ("boarding_pass",)

# Kinds that are text without the form of a document: for learning to read, not part of the held-out set.
READING_KINDS = ("words", "lines", "paragraph")

MIN_X_HEIGHT_PX = 5.0


class DoesNotFit(ValueError):
    """A document of this kind found no room in a picture of this size."""


@dataclass
class Document:
    """A picture and what stands in it.

    Attributes:
        image: RGB, of the size that was asked for.
        text: lines in reading order, joined by newlines; items of one visual row are joined by one space.
        chars, boxes: every visible character (no blanks) in reading order, and its ink's box (len(chars), 4) float32, x0 y0 x1 y1 in pixels of `image`.
        lines: text, box and x-height of each line; `chars` is the concatenation of the lines' non-blank characters.
        fields: what a form calls things ("total", "date") and the value exactly as printed.
        tables: rows of cells as printed, the header first.
        layout: the name of the layout; `degradations`: what was done to the picture, ("clean",) if nothing.
        caption: what the picture shows at a glance.
    """

    image: Image.Image
    kind: str
    text: str
    chars: str
    boxes: np.ndarray
    lines: list[Line]
    fields: dict[str, str]
    tables: list[list[list[str]]]
    qa: list[QA]
    split: str
    seed: int
    layout: str
    degradations: tuple[str, ...]
    font_families: tuple[str, ...]
    caption: str

    def scaled(self, factor: float) -> "Document":
        """The same in so many times as many pixels, bicubic, as a model sees a picture that is smaller than its input."""
        width, height = (round(side * factor) for side in self.image.size)
        lines = []
        for line in self.lines:
            x0, y0, x1, y1 = (factor * edge for edge in line.box)
            lines.append(Line(line.text, (x0, y0, x1, y1), factor * line.x_height_px))
        image = self.image.resize((width, height), Image.Resampling.BICUBIC)
        return replace(self, image=image, boxes=self.boxes * np.float32(factor), lines=lines)


class Sheet:
    """What a kind draws on: the page, a writer of content, and places for the ground truth that is not text."""

    def __init__(self, page: Page, writer: Writer, rng: random.Random, split: str) -> None:
        self.page, self.writer, self.rng, self.split = page, writer, rng, split
        self.fields: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.qa: list[QA] = []
        self.labels: dict[str, str] = {}
        self.looks: dict[str, Any] = {}
        self.layout = ""
        self.numbered_lines = True

    def look(self, name: str, choices: Sequence[T]) -> T:
        """A choice that stays the same on the whole sheet."""
        if name not in self.looks:
            self.looks[name] = self.rng.choice(list(choices))
        return self.looks[name]

    def field(self, key: str, value: str, label: str | None = None) -> str:
        """Remember a field's value as it is printed, and its printed label; returns the value."""
        self.fields[key] = value
        if label:
            self.labels[key] = label.rstrip(":.").strip()
        return value

    def choose_layout(self, layouts: Mapping[str, Sequence[str]]) -> str:
        """One of the split's layouts; `layouts` maps each split to its own names."""
        self.layout = self.rng.choice(list(layouts[self.split]))
        return self.layout

    def ask(self, question: str, answer: str, kind: str) -> None:
        self.qa.append(QA(question, answer, kind))

    def choose_colors(self, *, light_only: bool = False) -> None:
        """Paper and ink for the page: mostly white and black, sometimes coloured paper, coloured ink, or light on dark."""
        rng, page = self.rng, self.page
        way = rng.random() ** (1.6 if self.split == "train" else 1.0)  # what people photograph and print is mostly black on white
        if light_only:
            way *= 0.9
        accent = dark_color(rng)
        if way < 0.5:
            paper = (255, 255, 255)
            gray = rng.choice([0, 0, 0, 20, 34, 51, rng.randint(0, 85)])
            ink = (gray, gray, gray)
        elif way < 0.7:
            low = rng.randint(225, 254)
            paper = (rng.randint(low, 255), rng.randint(low, 255), rng.randint(low - 10, 255))
            ink = canvas.mix((rng.randint(0, 60),) * 3, accent, rng.random() * 0.5)
        elif way < 0.8:
            paper = canvas.random_color(rng, 190, 255)  # coloured paper
            ink = canvas.mix((0, 0, 0), accent, rng.random() * 0.5)
        elif way < 0.9:
            paper = (255, 255, 255)
            ink = accent
        else:
            dark = rng.randint(0, 50)
            paper = (dark, min(60, dark + rng.randint(0, 10)), min(70, dark + rng.randint(0, 20)))
            light = rng.randint(190, 255)
            ink = rng.choice([(light, light, light), (light, light, light), canvas.random_color(rng, 170, 255)])
            accent = canvas.random_color(rng, 120, 255)
        page.set_colors(paper, ink, accent)


def dark_color(rng: random.Random) -> canvas.Color:
    """A saturated colour that is readable on white and under white."""
    while True:
        color = (rng.randint(0, 200), rng.randint(0, 200), rng.randint(0, 220))
        if 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 120:
            return color


@functools.cache
def _kind_names() -> tuple[str, ...]:
    return tuple(list_plugins(KINDS_PACKAGE))


@functools.cache
def _kind(name: str) -> ModuleType:
    return load_plugin(KINDS_PACKAGE, name)


def kinds() -> list[str]:
    """Names of all kinds."""
    return list(_kind_names())


def default_kinds() -> list[str]:
    """The kinds that a draw without `kind` takes: all but `NANO_EXCLUDED_KINDS`."""
    return [name for name in kinds() if name not in NANO_EXCLUDED_KINDS]


def largest_x_height(kind: str, width: int, height: int) -> float:
    """The largest x-height in pixels at which a kind fits into a picture; below 6 or so it is better drawn in a larger one.

    A kind says how many lines and columns of text it needs. A line takes about 2.6 x-heights, a letter 1.05.
    """
    module = _kind(kind)
    aspect = getattr(module, "ASPECT", None)
    shape = width / height if aspect is None else min(max(width / height, aspect[0]), aspect[1])
    return _x_height_of(module, min(width, height * shape), min(height, width / shape))


def _x_height_of(module: ModuleType, page_width: float, page_height: float) -> float:
    return min(page_height / (2.6 * getattr(module, "MIN_LINES", 1)), page_width / (1.05 * getattr(module, "MIN_COLUMNS", 1)))


_VIEW_ASPECT = (0.8, 1.2)  # times the least and the largest width / height of a kind's pages


def _draw_view(rng: random.Random, module: ModuleType, width: int, height: int, x_height_px: float) -> degrade.View:
    """A picture of a shape that suits the kind, or somewhat longer or wider, in which its text has the x-height at least."""
    low, high = getattr(module, "ASPECT", (0.5 * width / height, 2.0 * width / height))
    for _ in range(6):
        view = degrade.View.draw(rng, width, height, (_VIEW_ASPECT[0] * low, _VIEW_ASPECT[1] * high))
        if _x_height_of(module, *view.size) >= 1.15 * x_height_px:
            return view
    return degrade.View(width, height, width, height, 1.0)


_SIZES = ((512, 512), (512, 512), (512, 768), (768, 512), (384, 640), (640, 384), (768, 768))
_ATTEMPTS = 24


def generate(
    seed: int,
    *,
    split: str = "train",
    kind: str | None = None,
    width: int | None = None,
    height: int | None = None,
    x_height_px: tuple[float, float] = (6.0, 14.0),
    degradation: float | None = None,
) -> Document:
    """Make one document.

    Args:
        seed: any integer; with the other arguments it decides everything.
        split: "train", "val" or "heldout": disjoint fonts, layouts and content words.
        kind: a name of `kinds()`; None draws one of `default_kinds()`.
        width, height: of the picture, at least 128; None takes a size that suits the kind.
        x_height_px: least and most height of a small x of body text in the final picture, at least `MIN_X_HEIGHT_PX`.
        degradation: 0 for clean pictures, 1 for degraded ones; None mixes 4 clean to 6 degraded.

    Raises:
        ValueError: an unknown kind or split, or a size that is too small for the text asked for.
    """
    if split not in fonts.SPLITS:
        raise ValueError(f"unknown split {split!r}; available: {', '.join(fonts.SPLITS)}")
    first = random.Random(f"{split}/{seed}")
    if kind is None:
        if width is None or height is None:
            kind = first.choice(default_kinds())
        else:
            kind = first.choice(
                [name for name in default_kinds() if largest_x_height(name, width, height) >= 1.1 * max(MIN_X_HEIGHT_PX, x_height_px[0])]
            )
    module = _kind(kind)
    if width is None or height is None:
        drawn = first.choice(getattr(module, "SIZES", _SIZES))
        width, height = width or drawn[0], height or drawn[1]
    if min(width, height) < 128:
        raise ValueError(f"a picture of {width}x{height} is too small for a document: use at least 128x128")
    low, high = max(MIN_X_HEIGHT_PX, x_height_px[0]), max(x_height_px)
    high = max(low, min(high, largest_x_height(kind, width, height)))
    aspect = getattr(module, "ASPECT", None)
    if aspect is not None and split == "train":
        aspect = _VIEW_ASPECT[0] * aspect[0] * 0.98, _VIEW_ASPECT[1] * aspect[1] * 1.02
    for attempt in range(_ATTEMPTS):
        rng = random.Random(f"{split}/{kind}/{seed}/{attempt}")
        # Pictures to learn from come in sizes and shapes of their own, as a user's do. The other splits are as they were frozen.
        view, most = degrade.View(width, height, width, height, 1.0), high
        if split == "train":
            view = _draw_view(rng, module, width, height, low)
        plan = degrade.Plan.draw(rng, view.picture_width, view.picture_height, aspect=aspect, level=degradation)
        if split == "train":
            most = max(low, min(high, _x_height_of(module, plan.page_width * view.scale, plan.page_height * view.scale)))
        # The page is drawn larger by what the camera takes away, and with smaller text after each failure to fit it in.
        scale = 1 / (plan.page_scale() * view.scale)
        reach = low + (most - low) * (1 - attempt / _ATTEMPTS)
        families = canvas.choose_families(rng, split, getattr(module, "BODY_STYLES", ("sans", "serif", "mono", "narrow")))
        page = Page(
            plan.page_width,
            plan.page_height,
            rng,
            split=split,
            x_height_px=(low * scale, max(low, reach) * scale),
            families=families,
            is_resized=view.scale != 1.0,
        )
        sheet = Sheet(page, Writer(rng, split), rng, split)
        try:
            module.draw(sheet)
        except PageFull:
            continue
        return _finish(sheet, plan, view, kind, seed)
    raise DoesNotFit(f"a {kind!r} does not fit into {width}x{height} with an x-height of {low} px: ask for a larger picture")


def _finish(sheet: Sheet, plan: degrade.Plan, view: degrade.View, kind: str, seed: int) -> Document:
    page = sheet.page
    truth = page.ground_truth()
    image, boxes = view.apply(*plan.apply(page.image, truth.boxes, page.paper))
    scale = plan.page_scale() * view.scale
    lines, start = [], 0
    for line, count in zip(truth.lines, truth.rows, strict=True):
        own = boxes[start : start + count]
        box = (*own[:, :2].min(0).tolist(), *own[:, 2:].max(0).tolist())
        lines.append(Line(line.text, box, line.x_height_px * scale))
        start += count
    qa = sheet.qa + ask_about(sheet.rng, truth, sheet.fields, sheet.labels, sheet.tables, sheet.numbered_lines)
    if sheet.split == "train":
        qa += ask_plainly(sheet.rng, kind, sheet.fields, sheet.labels)
    caption = describe(kind, sheet.layout, page.paper, page.ink, len(lines), plan.names)
    families = tuple(sorted({face.family for faces in (page.families.body, page.families.heading, page.families.mono) for face in faces}))
    return Document(
        image,
        kind,
        truth.text,
        truth.chars,
        boxes,
        lines,
        sheet.fields,
        sheet.tables,
        qa,
        sheet.split,
        seed,
        sheet.layout,
        tuple(plan.names),
        families,
        caption,
    )


def contact_sheet(made: Sequence[Document], *, columns: int = 3, boxes: bool = False) -> Image.Image:
    """Pictures side by side, to look at; `boxes` draws the box of every character."""
    cell_width, cell_height = max(d.image.width for d in made), max(d.image.height for d in made)
    sheet = Image.new("RGB", (columns * cell_width, -(-len(made) // columns) * cell_height), (127, 127, 127))
    for number, document in enumerate(made):
        picture = document.image.copy()
        if boxes:
            draw = ImageDraw.Draw(picture)
            for x0, y0, x1, y1 in document.boxes.tolist():
                draw.rectangle((x0, y0, x1, y1), outline=(255, 0, 0))
        sheet.paste(picture, (number % columns * cell_width, number // columns * cell_height))
    return sheet


# ---- data sets on disk

_PART = 100  # documents a part: what one worker writes at a time, and what an interruption can cost


@dataclass(frozen=True)
class DatasetOptions:
    """What decides the content of a data set; stored in its `dataset.json`, and compared when a broken-off run goes on.

    Attributes:
        count: documents.
        questions: a document, drawn from all that it has, the transcription among them.
        kinds: names of `kinds()`; None is `default_kinds()`.
        width, height: pixels; None takes sizes that suit the kinds.
    """

    count: int
    seed: int = 0
    split: str = "train"
    kinds: tuple[str, ...] | None = None
    width: int | None = None
    height: int | None = None
    x_height_px: tuple[float, float] = (6.0, 14.0)
    degradation: float | None = None
    questions: int = 6
    image_format: str = "png"

    def __post_init__(self) -> None:
        if self.count < 1 or self.questions < 1:
            raise ValueError(f"a data set needs at least one document and one question each, not {self.count} and {self.questions}")
        if self.image_format not in ("png", "jpg"):
            raise ValueError(f"pictures are written as png or jpg, not {self.image_format!r}")
        if unknown := sorted(set(self.kinds or ()) - set(kinds())):
            raise ValueError(f"unknown kinds {', '.join(unknown)}; available: {', '.join(kinds())}")


def write_dataset(out_dir: Path | str, options: DatasetOptions, *, workers: int = 1, progress: bool = True) -> Path:
    """Write documents as a LLaVA data set; a run that was broken off goes on where it stopped.

    Writes `images/`, `conversations.jsonl` (LLaVA's entries: id, image, conversations; also kind, split, seed), `truth.jsonl` (the same ids with text, lines, fields,
    tables, all questions, and every character with its box) and `dataset.json`. The files do not depend on `workers`.

    Args:
        workers: processes.
        progress: a line on stderr after each part.

    Returns:
        The path of `conversations.jsonl`.

    Raises:
        ValueError: the folder holds another data set.
    """
    folder = Path(out_dir)
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    settings = json.dumps(asdict(options), indent=2) + "\n"
    stored = folder / "dataset.json"
    if stored.exists() and stored.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{folder} holds another data set (see its dataset.json): give another folder, or delete it")
    stored.write_text(settings, encoding="utf-8")
    numbers = range(-(-options.count // _PART))
    waiting = [number for number in numbers if not _part_path(parts, number).exists()]
    done, started = options.count - sum(_part_size(options, number) for number in waiting), time.perf_counter()
    jobs = [(str(folder), options, number) for number in waiting]
    if workers > 1 and len(jobs) > 1:
        # Fonts are found once, here: a forked worker has them already.
        fonts.discover()
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")) as pool:
            results: Iterator[int] = pool.map(_write_part, *zip(*jobs, strict=True))
            done = _report(results, done, options.count, started, progress)
    else:
        _report((_write_part(*job) for job in jobs), done, options.count, started, progress)
    for name in ("conversations", "truth"):
        with open(folder / f"{name}.jsonl.new", "w", encoding="utf-8") as file:
            for number in numbers:
                file.write(_part_path(parts, number, name).read_text(encoding="utf-8"))
        (folder / f"{name}.jsonl.new").rename(folder / f"{name}.jsonl")
    return folder / "conversations.jsonl"


def _report(sizes: Iterator[int], done: int, count: int, started: float, progress: bool) -> int:
    made = 0
    for size in sizes:
        done, made = done + size, made + size
        if progress:
            rate = made / (time.perf_counter() - started)
            print(
                f"\r{done}/{count} documents, {rate:.0f}/s, {(count - done) / rate:.0f} s left ",
                end="\n" if done >= count else "",
                file=sys.stderr,
                flush=True,
            )
    return done


def _part_size(options: DatasetOptions, number: int) -> int:
    return min(_PART, options.count - number * _PART)


def _part_path(parts: Path, number: int, name: str = "conversations") -> Path:
    return parts / f"{number:06}.{name}.jsonl"


def _write_part(folder: str, options: DatasetOptions, number: int) -> int:
    """Write one part; the file of its conversations comes last, and says that the part is whole. Returns its documents."""
    parts = Path(folder) / "parts"
    conversations, truths = [], []
    for index in range(number * _PART, number * _PART + _part_size(options, number)):
        rng = random.Random(f"{options.seed}/{index}")
        names = options.kinds or tuple(default_kinds())
        document = generate(
            rng.getrandbits(48), split=options.split, kind=names[index % len(names)], width=options.width, height=options.height, x_height_px=options.x_height_px, degradation=options.degradation
        )  # fmt: skip
        path = f"images/{index // 1000:04}/{index:07}.{options.image_format}"
        (Path(folder) / path).parent.mkdir(exist_ok=True)
        document.image.save(Path(folder) / path, compress_level=3, quality=92)  # each format takes its own
        conversations.append(llava_entry(document, f"{index:07}", path, options.questions, rng))
        truths.append({"id": f"{index:07}", "image": path, **truth(document)})
    for name, entries in (("truth", truths), ("conversations", conversations)):
        final = _part_path(parts, number, name)
        new = final.with_suffix(".new")
        new.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
        new.rename(final)
    return len(conversations)


def llava_entry(document: Document, name: str, image: str, questions: int, rng: random.Random) -> dict[str, Any]:
    """One entry of a LLaVA conversation file: `questions` of the document's, its transcription in half of the entries at least."""
    chosen = rng.sample(document.qa, min(questions, len(document.qa)))
    if rng.random() < 0.5 and not any(qa.kind == "transcription" for qa in chosen):
        chosen[0] = next(qa for qa in document.qa if qa.kind == "transcription")
    turns = []
    for number, qa in enumerate(chosen):
        turns.append({"from": "human", "value": ("<image>\n" if number == 0 else "") + qa.question})
        turns.append({"from": "gpt", "value": qa.answer})
    return {"id": name, "image": image, "conversations": turns, "kind": document.kind, "split": document.split, "seed": document.seed}


def truth(document: Document) -> dict[str, Any]:
    """Everything about a document but its picture, as JSON can hold it; coordinates in tenths of a pixel at most."""
    return {
        "kind": document.kind,
        "layout": document.layout,
        "split": document.split,
        "seed": document.seed,
        "size": list(document.image.size),
        "degradations": list(document.degradations),
        "caption": document.caption,
        "text": document.text,
        "lines": [
            {"text": line.text, "box": [round(v, 1) for v in line.box], "x_height_px": round(line.x_height_px, 1)}
            for line in document.lines
        ],
        "fields": document.fields,
        "tables": document.tables,
        "qa": [asdict(qa) for qa in document.qa],
        "chars": document.chars,
        "boxes": [[round(v, 1) for v in box] for box in document.boxes.tolist()],
    }


def truth_hash(document: Document) -> str:
    """SHA-256 of what a reader is asked and must answer: text, fields, tables and questions, not positions."""
    known = {key: value for key, value in truth(document).items() if key in ("kind", "layout", "text", "fields", "tables", "qa")}
    return hashlib.sha256(json.dumps(known, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def picture_hash(document: Document) -> str:
    """SHA-256 of the picture's size and pixels."""
    return hashlib.sha256(f"{document.image.size}".encode() + document.image.tobytes()).hexdigest()
