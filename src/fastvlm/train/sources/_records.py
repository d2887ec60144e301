"""The fields `columns` and `prompts` of sources whose samples are records (`fastvlm.records`).

`columns` renames: {question: query, answer: label} takes the record's `query` as the question. `prompts: captions` asks for a caption in
one of 300 ways, before or after the picture (paper, section 4, stage 1.5); without it a caption follows its picture directly, which is what
the template `plain` is for.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvlm.records import TEXT_FIELDS, record_messages
from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import stable_hash

PROMPTS = ("captions",)
Reader = Callable[[dict[str, Any], int], list[dict[str, Any]]]


def record_reader(entry: dict[str, Any], seed: str, *, images: Path | None = None) -> Reader:
    """(record, position) -> messages, by the entry's `columns` and `prompts`. Paths of pictures are relative to `images`."""
    columns, prompts = entry.get("columns") or {}, entry.get("prompts")
    if unknown := sorted(set(columns) - {*TEXT_FIELDS, "image", "images", "answer", "answers"}):
        raise RecipeError(f"columns: unknown part {unknown[0]!r}; known: {', '.join(TEXT_FIELDS)}, answer, answers, image, images")
    if prompts is not None and prompts not in PROMPTS:
        raise RecipeError(f"prompts is {prompts!r}; expected {', '.join(PROMPTS)}")

    def read(record: dict[str, Any], position: int) -> list[dict[str, Any]]:
        renamed = {**record, **{name: record[column] for name, column in columns.items() if column in record}}
        rng = random.Random(stable_hash(f"{seed}/{position}")) if prompts else None
        return record_messages(renamed, images=images, rng=rng)

    return read
