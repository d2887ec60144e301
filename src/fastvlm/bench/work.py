"""What is measured: one picture and one question, as files that every measured process reads.

    work = make_work("out", model="nano", threads=2)
    work.pixel_values().shape, work.input_ids.shape        # (1, 3, 512, 512), (104,)

The prompt and the pixels come from our processor once, so that every program that runs the same checkpoint gets the same arrays.
"""

import dataclasses
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastvlm.bundle import Bundle
    from fastvlm.checkpoint import Checkpoint
    from fastvlm.processor import Processor

WORK_FILE = "work.json"
PHOTO_SIZE = (3000, 4000)  # what a phone's camera makes
QUESTION = (
    "Read this page. Who wrote it, to whom, on which day, and what is it about? Answer in short sentences, give every amount with its "
    "currency, every date as it is printed, and say which words cannot be read."
)


class WorkError(ValueError):
    """A program did other work than it was asked to: its time would be compared with something else."""


@dataclass(frozen=True)
class Work:
    """One picture and one question for one checkpoint.

    Attributes:
        folder: holds this, the arrays and what the programs leave for each other.
        model: what `fastvlm.load` takes.
        load_options: its keyword arguments.
        picture: the file.
        prompt: the question's text.
        image_tokens, prompt_tokens: of the picture; of the whole prompt, the picture's included.
        max_new_tokens: tokens to produce.
    """

    folder: Path
    model: str
    load_options: dict[str, Any]
    picture: str
    prompt: str
    image_tokens: int
    prompt_tokens: int
    image_token_id: int
    threads: int
    max_new_tokens: int

    @classmethod
    def read(cls, folder: Path) -> "Work":
        values = json.loads((folder / WORK_FILE).read_text())
        return cls(**{**values, "folder": folder})

    def write(self) -> None:
        values = {**dataclasses.asdict(self), "folder": str(self.folder)}
        (self.folder / WORK_FILE).write_text(json.dumps(values, indent=1))

    @cached_property
    def input_ids(self) -> np.ndarray:
        """(prompt_tokens,) int64."""
        return np.load(self.folder / "input_ids.npy")

    def pixel_values(self) -> np.ndarray:
        """(N, 3, height, width) float32."""
        return np.load(self.folder / "pixel_values.npy")

    @property
    def messages(self) -> list[dict[str, Any]]:
        content = [{"type": "image", "image": self.picture}, {"type": "text", "text": self.prompt}]
        return [{"role": "user", "content": content}]

    def source(self) -> "Checkpoint | Bundle":
        return open_source(self.model, self.load_options.get("revision"))

    def checkpoint(self) -> "Checkpoint":
        """The checkpoint, for peers that read its weights. Raises `WorkError` for a bundle, which has them in one runtime's form."""
        from fastvlm.checkpoint import Checkpoint

        source = self.source()
        if not isinstance(source, Checkpoint):
            raise WorkError(f"{self.model} is a bundle, whose weights other programs cannot read; name the checkpoint it was made from")
        return source

    def check(self, **seen: Any) -> None:
        """Compare what a program did with what was asked: counts by their names here. Raises `WorkError`."""
        for name, value in seen.items():
            wanted = getattr(self, name)
            if value != wanted:
                raise WorkError(f"it worked on {value} {name.replace('_', ' ')}, not on {wanted}")

    def leave(self, name: str, array: np.ndarray) -> None:
        """Keep an array for comparison with other programs'."""
        np.save(self.folder / f"{name}.npy", np.asarray(array, np.float32))

    def left(self, name: str) -> np.ndarray | None:
        """What was left under this name, or None."""
        path = self.folder / f"{name}.npy"
        return np.load(path) if path.is_file() else None


def make_work(
    folder: str | Path,
    *,
    model: str,
    threads: int,
    load_options: dict[str, Any] | None = None,
    image: str | Path | None = None,
    text_tokens: int = 40,
    max_new_tokens: int = 32,
    resolution: int | None = None,
) -> Work:
    """Prepare `folder`.

    Args:
        image: a picture's file; None draws a page of 3000 x 4000 pixels, as a phone would photograph it.
        text_tokens: length of the prompt beside the picture, the template's own tokens included; the question is cut to fit.
        resolution: side in pixels that the picture is brought to; None is the checkpoint's.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    processor = open_source(model, (load_options or {}).get("revision")).processor()
    picture = folder / "picture.jpg"
    if image is None:
        picture.write_bytes(draw_page())
    else:
        picture = Path(image).resolve()
    work = Work(
        folder=folder,
        model=str(model),
        load_options={**(load_options or {}), "resolution": resolution, "threads": threads},
        picture=str(picture),
        prompt=fit_question(processor, text_tokens),
        image_tokens=0,
        prompt_tokens=0,
        image_token_id=processor.image_token_id,
        threads=threads,
        max_new_tokens=max_new_tokens,
    )
    inputs = processor(work.messages, resolution=resolution)
    np.save(folder / "input_ids.npy", inputs.input_ids.reshape(-1))
    pixel_values = inputs.pixel_values
    assert pixel_values is not None
    np.save(folder / "pixel_values.npy", pixel_values)
    ids = inputs.input_ids.reshape(-1)
    work = dataclasses.replace(work, image_tokens=int((ids == processor.image_token_id).sum()), prompt_tokens=len(ids))
    work.write()
    return work


def open_source(model: str | Path, revision: str | None = None) -> "Checkpoint | Bundle":
    """What `fastvlm.load` would open: both have `config` and `processor()`."""
    from fastvlm.bundle import Bundle, is_bundle
    from fastvlm.checkpoint import open_checkpoint

    return Bundle.open(model) if is_bundle(model) else open_checkpoint(model, revision=revision)


def fit_question(processor: "Processor", text_tokens: int) -> str:
    """The longest beginning of `QUESTION`, in words, whose prompt has at most `text_tokens` tokens; at least one word."""
    words = QUESTION.split()
    for count in range(len(words), 1, -1):
        question = " ".join(words[:count])
        messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        if processor(messages).input_ids.size <= text_tokens:
            return question
    return words[0]


def draw_page() -> bytes:
    """A page as a JPEG of `PHOTO_SIZE`; always the same."""
    from PIL import Image

    from fastvlm.data.documents import generate

    width, height = PHOTO_SIZE
    page = generate(1, kind="letter", width=width // 2, height=height // 2, x_height_px=(12.0, 14.0), degradation=0).image
    file = io.BytesIO()
    page.resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
