"""Where samples come from: one file a kind of source, named by the field of a recipe's `data` entry.

    data:
      - {llava: conversations.jsonl, images: pictures, weight: 3}     # the file `llava.py` opens it
      - {parquet: "captions/*.parquet", prompts: captions}

Each file defines `FIELDS` (the other fields that an entry may have) and `open_source(entry, seed) -> Source`. Samples on disk are never
read as a whole: a source knows where each one lies, and reads it when it is drawn.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastvlm.train.recipe import RecipeError

COMMON_FIELDS = ("weight",)
BLOCK = 4096
RECORD_FIELDS = ("columns", "prompts")  # of sources whose samples are records, see `_records`


@dataclass(frozen=True)
class Draw:
    """A sample that has not been read yet."""

    name: str
    read: Callable[[], Any]  # a document or messages; raises BrokenSample


class Source(Protocol):
    def draws(self, rng: np.random.Generator, position: int, count: int) -> list[Draw]:
        """The next `count` samples.

        Args:
            rng: of the batch; for sources that have no end.
            position: samples drawn from this source before; for sources that are walked through.
        """


class Walk:
    """Samples on disk in an order that is new in each epoch: blocks are shuffled, and samples within a block, so that a file which is
    read in pieces (a row group of parquet) is read once an epoch.

    Args:
        blocks: the number of samples in each.
        name: (block, row) -> what to call it in an error.
        read: (block, row, position) -> the sample.
    """

    def __init__(
        self, blocks: Sequence[int], name: Callable[[int, int], str], read: Callable[[int, int, int], Any], *, seed: str, label: str
    ):
        self.sizes = np.asarray(blocks, np.int64)
        self.name, self.read, self.seed = name, read, seed
        self.total = int(self.sizes.sum())
        if not self.total:
            raise RecipeError(f"{label} holds no samples")
        self._order = functools.lru_cache(maxsize=2)(self._order_of_blocks)
        self._rows = functools.lru_cache(maxsize=4)(self._order_of_rows)

    def draws(self, rng: np.random.Generator, position: int, count: int) -> list[Draw]:
        return [self._draw(position + offset) for offset in range(count)]

    def _draw(self, position: int) -> Draw:
        epoch, offset = divmod(position, self.total)
        order, ends = self._order(epoch)
        place = int(np.searchsorted(ends, offset, side="right"))
        block = int(order[place])
        row = int(self._rows(epoch, block)[offset - (int(ends[place]) - int(self.sizes[block]))])
        return Draw(self.name(block, row), functools.partial(self.read, block, row, position))

    def _order_of_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng(stable_hash(f"{self.seed}/{epoch}")).permutation(len(self.sizes))
        return order, np.cumsum(self.sizes[order])

    def _order_of_rows(self, epoch: int, block: int) -> np.ndarray:
        return np.random.default_rng(stable_hash(f"{self.seed}/{epoch}/{block}")).permutation(int(self.sizes[block]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_order", "_rows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = functools.lru_cache(maxsize=2)(self._order_of_blocks)
        self._rows = functools.lru_cache(maxsize=4)(self._order_of_rows)


def equal_blocks(count: int) -> list[int]:
    """For samples that can be read one by one: `count` in blocks of `BLOCK`."""
    return [min(BLOCK, count - start) for start in range(0, count, BLOCK)]


def files_of(pattern: str | Sequence[str], what: str) -> list[Path]:
    """The files that a pattern such as `shards/*.tar`, or a list of them, names, sorted."""
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found: list[Path] = []
    for one in patterns:
        path = Path(one).expanduser()
        if path.is_file():
            found.append(path)
            continue
        matches = sorted(match for match in path.parent.glob(path.name) if match.is_file())
        if not matches:
            raise RecipeError(f"no {what} file matches {one!r}")
        found += matches
    return found


def stable_hash(text: str) -> int:
    """64 bits that depend on the text alone, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
