"""{generator: documents, kinds: {words: 2, letter: 1}, sizes: [[256, 256]], options: {...}}: documents made on the fly, without end.

`kinds` gives shares (default: all that nano is trained on), `sizes` the pictures' in pixels, one a batch; `options` go to `generate`;
pictures are enlarged `scale` times when they are drawn. With `captions: true` a sample is the picture and what it shows at a glance,
asked for as `prompts` says (`_records`), instead of the document with all its text and questions.
"""

from functools import partial
from typing import Any

import numpy as np

from fastvlm.data import documents
from fastvlm.records import BrokenSample
from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import Draw
from fastvlm.train.sources._records import Reader, record_reader

FIELDS = ("kinds", "sizes", "options", "scale", "captions", "prompts")


class _Documents:
    def __init__(self, kinds: dict[str, float], sizes: list[list[int]], options: dict[str, Any], scale: float, captioned: Reader | None):
        self.captioned = captioned
        self.names, shares = list(kinds), np.array(list(kinds.values()), float)
        self.shares, self.sizes, self.options, self.scale = shares / shares.sum(), sizes, options, scale

    def draws(self, rng: np.random.Generator, position: int, count: int) -> list[Draw]:
        width, height = self.sizes[rng.integers(len(self.sizes))]  # one size a batch, so that the pictures stack
        draws = []
        for _ in range(count):
            seed, kind = int(rng.integers(2**62)), self.names[rng.choice(len(self.names), p=self.shares)]
            options = {"split": "train", "kind": kind, "width": width, "height": height, **self.options}
            draws.append(Draw(f"{kind} {seed}", partial(self._draw, seed, **options)))
        return draws

    def _draw(self, seed: int, **options: Any) -> Any:
        try:
            document = documents.generate(seed, **options)
        except documents.DoesNotFit as error:
            raise BrokenSample(str(error)) from None
        if self.scale != 1:
            document = document.scaled(self.scale)
        return document if self.captioned is None else self.captioned({"image": document.image, "caption": document.caption}, seed)


def open_source(entry: dict[str, Any], seed: str) -> _Documents:
    if entry["generator"] != "documents":
        raise RecipeError(f"unknown generator {entry['generator']!r}; available: documents")
    kinds = entry.get("kinds") or dict.fromkeys(documents.default_kinds(), 1.0)
    if unknown := sorted(set(kinds) - set(documents.kinds())):
        raise RecipeError(f"unknown kinds {', '.join(unknown)}; available: {', '.join(documents.kinds())}")
    if entry.get("prompts") and not entry.get("captions"):
        raise RecipeError("prompts are for captions: set captions to true as well")
    captioned = record_reader(entry, seed) if entry.get("captions") else None
    return _Documents(kinds, entry.get("sizes", [[512, 512]]), entry.get("options", {}), entry.get("scale", 1), captioned)
