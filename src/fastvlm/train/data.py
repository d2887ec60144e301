"""Where batches come from: a weighted mixture of sources, each batch a function of its number.

Sources in a recipe's `data` list; `weight` (1 if not given) is a source's share of the batches:
  {generator: documents, kinds: {words: 2, letter: 1}, sizes: [[256, 256]], options: {...}}    made on the fly
  {llava: conversations.json, images: folder}                                                  LLaVA's JSON or JSONL

A sample that cannot be read is counted and named, and its batch is made without it; it is never replaced by another one.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm.train.recipe import RecipeError

logger = logging.getLogger(__name__)

MAX_BROKEN_SHARE = 0.02  # of the samples read, past the first 50
IMAGE_MARK = "<image>"


class BrokenSample(ValueError):
    """One sample that cannot be used; says which and why."""


class BatchSource:
    """Batches of samples by number.

    Args:
        mixture: sources as above.
        batch_size: samples a batch.
        seed: any string; two sources with the same seed and mixture give the same batches.
    """

    def __init__(self, mixture: list[dict[str, Any]], *, batch_size: int, seed: str):
        if not mixture:
            raise RecipeError("the stage has no data")
        self.batch_size, self.seed = batch_size, seed
        weights = np.array([source.get("weight", 1.0) for source in mixture], float)
        self.weights = weights / weights.sum()
        self.sources = [_open(source, seed) for source in mixture]
        self.read = self.broken = 0

    def batch(self, index: int, part: slice = slice(None)) -> list[Any]:
        """The samples of batch `index`, or a part of them; fewer where some are broken. All come from one source.

        Raises:
            RuntimeError: too many samples were broken so far.
        """
        rng = np.random.default_rng(_hash(f"{self.seed}/{index}"))
        source = self.sources[rng.choice(len(self.sources), p=self.weights)]
        samples = []
        for draw in source(rng, index, self.batch_size)[part]:
            self.read += 1
            try:
                samples.append(draw())
            except BrokenSample as error:
                self.broken += 1
                logger.warning("broken sample: %s", error)
        if self.read > 50 and self.broken > MAX_BROKEN_SHARE * self.read:
            raise RuntimeError(f"{self.broken} of {self.read} samples are broken; see the log for their names, and mend or remove them")
        return samples


_Draws = Callable[[np.random.Generator, int, int], list[Callable[[], Any]]]


def _open(source: dict[str, Any], seed: str) -> _Draws:
    for name, opener in _OPENERS.items():
        if name in source:
            return opener(source, seed)
    raise RecipeError(f"data source {source} names none of {', '.join(_OPENERS)}")


def _generator(source: dict[str, Any], seed: str) -> _Draws:
    if source["generator"] != "documents":
        raise RecipeError(f"unknown generator {source['generator']!r}; available: documents")
    from fastvlm.data import documents

    kinds = source.get("kinds") or dict.fromkeys(documents.default_kinds(), 1.0)
    names, shares = list(kinds), np.array(list(kinds.values()), float)
    sizes = source.get("sizes", [[512, 512]])
    options = source.get("options", {})

    def draws(rng: np.random.Generator, index: int, count: int) -> list[Callable[[], Any]]:
        width, height = sizes[rng.integers(len(sizes))]  # one size a batch, so that the pictures stack
        draw = partial(documents.generate, split="train", width=width, height=height, **options)
        return [partial(draw, int(rng.integers(2**62)), kind=names[rng.choice(len(names), p=shares / shares.sum())]) for _ in range(count)]

    return draws


def _llava(source: dict[str, Any], seed: str) -> _Draws:
    path = Path(source["llava"])
    images = Path(source.get("images", path.parent))
    entries = read_llava(path)

    def draws(rng: np.random.Generator, index: int, count: int) -> list[Callable[[], Any]]:
        # Batch numbers of a mixture are shared, so epochs are drawn, not walked: an entry is as likely as any other.
        chosen = rng.choice(len(entries), size=count, replace=count > len(entries))
        return [partial(llava_messages, entries[i], images, f"{path.name}[{i}]") for i in chosen]

    return draws


_OPENERS: dict[str, Callable[[dict[str, Any], str], _Draws]] = {"generator": _generator, "llava": _llava}


def read_llava(path: Path) -> list[dict[str, Any]]:
    """Entries of a LLaVA conversation file: one JSON list, or one object a line (.jsonl)."""
    text = path.read_text(encoding="utf-8")
    try:
        entries = [json.loads(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}: not JSON: line {error.lineno}: {error.msg}") from None
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{path}: expected a list of entries with `conversations`")
    return entries


def llava_messages(entry: dict[str, Any], images: Path, name: str) -> list[dict[str, Any]]:
    """One LLaVA entry as messages; each `<image>` stays where it stands in the text.

    Args:
        entry: {"conversations": [{"from": "human" | "gpt" | "system", "value": ...}], "image": path or list of paths}.
        images: folder that the paths are relative to.
        name: what to call the entry in an error.

    Raises:
        BrokenSample: roles, markers or pictures do not fit.
    """
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, list) or not turns:
        raise BrokenSample(f"{name}: no `conversations`")
    listed = entry.get("image") or []
    paths = [listed] if isinstance(listed, str) else list(listed)
    for path in paths:
        if not (images / path).is_file():
            raise BrokenSample(f"{name}: no picture {path}")
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
    remaining = iter(paths)
    messages: list[dict[str, Any]] = []
    for turn in turns:
        role, value = roles.get(turn.get("from")), turn.get("value")
        if role is None or not isinstance(value, str):
            raise BrokenSample(f"{name}: a turn needs `from` (human, gpt or system) and a text `value`")
        if role != "user":
            messages.append({"role": role, "content": value})
            continue
        content: list[dict[str, Any]] = []
        for index, text in enumerate(value.split(IMAGE_MARK)):
            if index:
                path = next(remaining, None)
                if path is None:
                    raise BrokenSample(f"{name}: more {IMAGE_MARK} marks than pictures ({len(paths)})")
                content.append({"type": "image", "image": str(images / path)})
            if text.strip():
                content.append({"type": "text", "text": text.strip("\n")})
        messages.append({"role": role, "content": content})
    if next(remaining, None) is not None:
        raise BrokenSample(f"{name}: fewer {IMAGE_MARK} marks than pictures ({len(paths)})")
    if messages[-1]["role"] != "assistant":
        raise BrokenSample(f"{name}: the last turn is not the assistant's")
    return messages


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
