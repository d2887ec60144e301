"""Pictures and texts to quantise with and to measure with.

    for pixel_values in calibration_pictures(processor, folder=None, count=12): ...
    for sample in guard_samples(processor, config, count=10, positions=200): ...

Documents made by `fastvlm.data`: training fonts and words to quantise with, held-out ones to measure with. A folder of the user's own
pictures takes the place of the former, and a quarter of it is kept for the latter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastvlm.bundle import BundleError
from fastvlm.data import documents
from fastvlm.data.heldout import KINDS
from fastvlm.image_io import ImageError, load_image
from fastvlm.processor import Processor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
CROP_PX = 512
HELD_OUT = 4  # every fourth picture of a folder


@dataclass
class Sample:
    """A prompt about a picture, and a text that answers it.

    Attributes:
        pixel_values: (N, 3, H, W).
        input_ids: (S,) int64, the prompt.
        forced_ids: (positions,) int64; what the model is made to say, to compare what it would say at each place.
    """

    pixel_values: np.ndarray
    input_ids: np.ndarray
    forced_ids: np.ndarray


def folder_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below, sorted."""
    if not folder.is_dir():
        raise BundleError(f"--calibration names {str(folder)!r}, which is no folder; name one with pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(found) < HELD_OUT:
        raise BundleError(f"{folder} has {len(found)} pictures; at least {HELD_OUT} are needed, and a hundred are better")
    return found


def calibration_pictures(processor: Processor, folder: Path | None, count: int) -> Iterator[np.ndarray]:
    """`count` crops (1, 3, H, W) in the model's own scale, at most `CROP_PX` wide and high.

    Ranges of activations are those of edges and surfaces, which a crop has as well; four crops cost what one picture of 1024 x 1024 does,
    and a quarter of the memory.
    """
    if folder is None:
        images = (_document(number, "train", processor).image for number in range(count))
    else:
        paths = [path for number, path in enumerate(folder_pictures(folder)) if number % HELD_OUT]
        images = (_open(paths[number % len(paths)]) for number in range(count))
    rng = np.random.default_rng(0)
    for image in images:
        pixel_values = processor.image_processor(image)[:1]
        height, width = (min(side, CROP_PX) for side in pixel_values.shape[2:])
        top, left = (int(rng.integers(0, side - part + 1)) for side, part in zip(pixel_values.shape[2:], (height, width), strict=True))
        yield np.ascontiguousarray(pixel_values[:, :, top : top + height, left : left + width])


def guard_samples(processor: Processor, folder: Path | None, count: int, positions: int) -> Iterator[Sample]:
    """`count` samples of `positions` forced tokens each."""
    own = [] if folder is None else folder_pictures(folder)[::HELD_OUT]
    for number in range(count):
        document = _document(number, "heldout", processor)
        image = _open(own[number]) if number < len(own) else document.image
        content = [{"type": "image", "image": image}, {"type": "text", "text": document.qa[0].question}]
        inputs = processor([{"role": "user", "content": content}])
        assert inputs.pixel_values is not None
        yield Sample(inputs.pixel_values, inputs.input_ids[0], _tokens(document, processor, positions))


def _tokens(document: documents.Document, processor: Processor, count: int) -> np.ndarray:
    """The document's text and what it answers, over and over until there are enough tokens."""
    text = "\n".join([document.text, *(f"{qa.question} {qa.answer}" for qa in document.qa)]) or "text"
    ids = processor.tokenizer.encode(text, is_start=False)
    return np.resize(np.array(ids, np.int64), count)


def _document(number: int, split: str, processor: Processor) -> documents.Document:
    side = min(max(processor.image_processor.size, 512), 1024)  # smaller ones hold no document, larger ones take seconds to draw
    kind = KINDS[number % len(KINDS)]
    return documents.generate(number, split=split, kind=kind, width=side, height=side)


def _open(path: Path) -> Image.Image:
    try:
        return load_image(path)
    except ImageError as error:
        raise BundleError(f"{path}: {error}") from error
