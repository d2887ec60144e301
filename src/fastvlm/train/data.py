"""Where batches come from: a weighted mixture of sources, each batch a function of its number.

Sources are entries of a recipe's `data` list; a kind of source is a file of `fastvlm.train.sources`. `weight` (1 if not given) is a
source's share of the batches: all samples of a batch come from one source. What is on disk is walked through, in a new order each epoch.

A sample that cannot be read or used is counted and named, and its batch is made without it; it is never replaced by another one.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm.image_io import ImageError
from fastvlm.plugins import list_plugins, load_plugin
from fastvlm.prompts import PromptError
from fastvlm.records import BrokenSample
from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import COMMON_FIELDS, Source, stable_hash

logger = logging.getLogger(__name__)

MAX_BROKEN_SHARE = 0.02  # of the samples read, past the first 50
SOURCES = "fastvlm.train.sources"


class TooManyBroken(ValueError):
    """The data is not what the recipe takes it for."""


class BatchSource:
    """Batches of samples by number.

    Args:
        mixture: entries of `data`.
        batch_size: samples a batch.
        seed: any string; two sources with the same seed and mixture give the same batches.
        log: file that takes a line for each broken sample; the logger has them too.
    """

    def __init__(self, mixture: list[dict[str, Any]], *, batch_size: int, seed: str, log: Path | None = None):
        if not mixture:
            raise RecipeError("the stage has no data")
        self.batch_size, self.seed, self.log = batch_size, seed, log
        weights = np.array([entry.get("weight", 1.0) for entry in mixture], float)
        if not (weights >= 0).all() or not weights.sum():
            raise RecipeError(f"the weights of the data are {weights.tolist()}; expected numbers from 0 on, not all 0")
        self.weights = weights / weights.sum()
        self.sources = [open_source(entry, f"{seed}/{number}") for number, entry in enumerate(mixture)]
        self.read = self.broken = 0
        self._counts = [np.zeros(len(mixture), np.int64)]  # batches that each source gave before batch k

    def batch(self, index: int, part: slice = slice(None), prepare: Callable[[Any], Any] | None = None) -> list[Any]:
        """The samples of batch `index`, or a part of them, as `prepare` returns them; fewer where some are broken.

        Raises:
            TooManyBroken: of the samples read so far.
        """
        number, rng = self._choose(index)
        position = self._batches_before(index, number) * self.batch_size
        samples = []
        for draw in self.sources[number].draws(rng, position, self.batch_size)[part]:
            self.read += 1
            try:
                sample = draw.read()
                samples.append(sample if prepare is None else prepare(sample))
            except (BrokenSample, ImageError, PromptError) as error:
                self.broken += 1
                self._name_broken(f"{draw.name}: {error}")
        if self.read > 50 and self.broken > MAX_BROKEN_SHARE * self.read:
            raise TooManyBroken(f"{self.broken} of {self.read} samples are broken; see the log for their names, and mend or remove them")
        return samples

    def _choose(self, index: int) -> tuple[int, np.random.Generator]:
        rng = np.random.default_rng(stable_hash(f"{self.seed}/{index}"))
        return int(rng.choice(len(self.sources), p=self.weights)), rng

    def _batches_before(self, index: int, number: int) -> int:
        """How many batches before `index` came from source `number`: where a walk through it stands."""
        if len(self.sources) == 1:
            return index
        while len(self._counts) <= index:
            counts = self._counts[-1].copy()
            counts[self._choose(len(self._counts) - 1)[0]] += 1
            self._counts.append(counts)
        return int(self._counts[index][number])

    def _name_broken(self, line: str) -> None:
        logger.warning("broken sample: %s", line)
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:  # one short write, which no other process can cut in two
                file.write(line.replace("\n", " ") + "\n")


def open_source(entry: dict[str, Any], seed: str) -> Source:
    """Open one entry of `data`.

    Raises:
        RecipeError: of no known kind, with unknown fields, or with files that cannot be opened.
    """
    kinds = list_plugins(SOURCES)
    named = [kind for kind in kinds if kind in entry]
    if len(named) != 1:
        raise RecipeError(f"data source {entry} names {'several' if named else 'none'} of {', '.join(kinds)}; expected one")
    plugin = load_plugin(SOURCES, named[0])
    known = {named[0], *plugin.FIELDS, *COMMON_FIELDS}
    if unknown := sorted(set(entry) - known):
        raise RecipeError(f"data source {entry}: unknown field {unknown[0]!r}; known: {', '.join(sorted(known))}")
    source: Source = plugin.open_source(entry, seed)
    return source
