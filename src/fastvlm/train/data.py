"""Where batches come from: a weighted mixture of sources, each batch a function of its number.

Sources in a recipe's `data` list:
  {generator: documents, weight: 1, kinds: {words: 2, letter: 1}, sizes: [[256, 256]], options: {...}}   made on the fly
"""

import hashlib
from typing import Any

import numpy as np

from fastvlm.train.recipe import RecipeError


class BatchSource:
    """Batches of samples by number.

    Args:
        mixture: sources as above; `weight` is the share of batches (1 if it is not given).
        seed: any string; two sources with the same seed and mixture give the same batches.
    """

    def __init__(self, mixture: list[dict[str, Any]], *, batch_size: int, seed: str, processor: Any = None):
        if not mixture:
            raise RecipeError("the stage has no data")
        self.mixture, self.batch_size, self.seed, self.processor = mixture, batch_size, seed, processor
        weights = np.array([source.get("weight", 1.0) for source in mixture], float)
        self.weights = weights / weights.sum()

    def batch(self, index: int) -> list[Any]:
        """The samples of batch `index`: one source and one picture size, so that they stack."""
        rng = np.random.default_rng(_hash(f"{self.seed}/{index}"))
        source = self.mixture[rng.choice(len(self.mixture), p=self.weights)]
        return _GENERATORS[source["generator"]](source, rng, self.batch_size)


def _documents(source: dict[str, Any], rng: np.random.Generator, count: int) -> list[Any]:
    from fastvlm.data import documents

    kinds = source.get("kinds") or dict.fromkeys(documents.default_kinds(), 1.0)
    shares = np.array(list(kinds.values()), float)
    sizes = source.get("sizes", [[512, 512]])
    width, height = sizes[rng.integers(len(sizes))]
    names = list(kinds)
    return [
        documents.generate(
            int(rng.integers(2**62)),
            split="train",
            kind=names[rng.choice(len(names), p=shares / shares.sum())],
            width=width,
            height=height,
            **source.get("options", {}),
        )
        for _ in range(count)
    ]


_GENERATORS = {"documents": _documents}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
