"""What the runtimes that run bundles share: prompts as arrays, and the book-keeping of a cache's columns.

    columns = Columns.empty(batch_size)
    inputs_embeds, position_ids = prompt_arrays(table, input_ids, image_features, image_token_id, columns)

Rows of unequal length are padded on the left; `columns.mask` says which columns hold tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastvlm.bundle import EmbeddingTable


@dataclass
class Columns:
    """Which columns of a cache hold real tokens: `mask` (B, length) bool."""

    mask: np.ndarray

    @classmethod
    def empty(cls, batch_size: int) -> "Columns":
        return cls(np.zeros((batch_size, 0), np.bool_))

    @property
    def batch_size(self) -> int:
        return self.mask.shape[0]

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    def append(self, is_real: np.ndarray) -> np.ndarray:
        """Add columns (B, S) bool; returns the position (B, S) int64 of each among its row's real ones."""
        seen = self.mask.sum(1, keepdims=True)
        self.mask = np.concatenate((self.mask, is_real), axis=1)
        return np.maximum(seen + is_real.cumsum(1) - 1, 0).astype(np.int64)


def check_prompts(input_ids: Sequence[np.ndarray], cached_rows: int | None) -> None:
    """What `Runtime.prefill` refuses; `cached_rows` are those of the cache that is to be appended to."""
    if not input_ids or min(map(len, input_ids)) == 0:
        raise ValueError("prefill needs at least one row, and at least one id in each")
    if cached_rows is not None and (len(input_ids) != 1 or cached_rows != 1):
        raise ValueError(f"a cache of {cached_rows} rows cannot take {len(input_ids)} more prompts; appending works for one row")


def check_pixels(pixel_values: np.ndarray) -> None:
    shape = pixel_values.shape
    if len(shape) != 4 or shape[0] == 0 or shape[1] != 3 or shape[2] % 64 or shape[3] % 64 or 0 in shape:
        raise ValueError(f"pixel_values have the shape {shape}; expected (N, 3, height, width) with N above 0 and multiples of 64 as sides")


def prompt_arrays(
    table: EmbeddingTable, input_ids: Sequence[np.ndarray], image_features: Sequence[np.ndarray | None], image_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (B, S, D) float32 with features over the image tokens, and which columns (B, S) are real.

    Raises:
        ValueError: the number of image tokens of a row is not the number of its features.
    """
    columns = max(map(len, input_ids))
    rows = []
    is_real = np.zeros((len(input_ids), columns), np.bool_)
    for row, (ids, features) in enumerate(zip(input_ids, image_features, strict=True)):
        ids = np.asarray(ids, np.int64)
        is_image = ids == image_token_id
        embeds = table[np.where(is_image, 0, ids)]
        num_features = 0 if features is None else features.reshape(-1, features.shape[-1]).shape[0]
        if num_features != is_image.sum():
            raise ValueError(f"{is_image.sum()} image tokens in input_ids but {num_features} image features; they must be equal")
        if features is not None:
            embeds[is_image] = features.reshape(-1, features.shape[-1])
        is_real[row, columns - len(ids) :] = True
        rows.append(np.pad(embeds, ((columns - len(ids), 0), (0, 0))))
    return np.stack(rows), is_real
