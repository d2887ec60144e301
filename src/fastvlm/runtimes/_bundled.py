"""What the runtimes that run bundles share: prompts as arrays, the book-keeping of a cache's columns, and the checks of their options.

    class MyRuntime(BundledRuntime):
        def new_cache(self, batch_size) -> MyCache          # a `BundledCache`
        def encode(self, image) -> features                 # one picture
        def step(self, inputs, cache) -> logits             # (B, V)

Rows of unequal length are padded on the left; `mask` of a cache says which columns hold tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvlm.bundle import Bundle, BundleError, EmbeddingTable
from fastvlm.config import FastVLMConfig

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


def precision_of(dtype: str) -> str:
    """The precision of a bundle for a dtype: `auto`, `int8`, `int4`, `bfloat16`, `float32`."""
    return _PRECISIONS.get(dtype, dtype)


def check_options(bundle: Bundle, runtime: str, dtype: str, device: str) -> None:
    """Refuse what a bundle cannot be loaded as."""
    manifest = bundle.manifest
    if manifest.runtime != runtime:
        raise BundleError(f"{bundle.label} was made for the {manifest.runtime} runtime; load it with runtime={manifest.runtime!r}")
    if device not in ("auto", "cpu"):
        raise ValueError(f"device is {device!r}; the {runtime} runtime runs on 'cpu', the torch runtime on GPUs")
    if dtype != "auto" and precision_of(dtype) != manifest.precision:
        raise BundleError(f"{bundle.label} was made in {manifest.precision}, not {precision_of(dtype)}; leave dtype out, or convert again")


class BundledCache:
    """Which columns hold real tokens: `mask` (B, length) bool. Subclasses add where keys and values are."""

    def __init__(self, batch_size: int, bytes_per_column: int):
        self.mask = np.zeros((batch_size, 0), np.bool_)
        self._bytes_per_column = bytes_per_column

    @property
    def batch_size(self) -> int:
        return self.mask.shape[0]

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        return self.mask.size * self._bytes_per_column

    def append(self, is_real: np.ndarray) -> np.ndarray:
        """Add columns (B, S) bool; returns the position (B, S) int64 of each among its row's real ones."""
        seen = self.mask.sum(1, keepdims=True)
        self.mask = np.concatenate((self.mask, is_real), axis=1)
        return np.maximum(seen + is_real.cumsum(1) - 1, 0).astype(np.int64)


class BundledRuntime:
    """A bundle behind the runtime contract, but for what computes."""

    def __init__(self, bundle: Bundle):
        self.config: FastVLMConfig = bundle.config
        self.max_sequence_length = bundle.context_length
        self.precision = bundle.manifest.precision
        self._table = bundle.embeddings()

    @property
    def values_per_column(self) -> int:
        """Of keys and values together, for one row."""
        text = self.config.text_config
        return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim

    def new_cache(self, batch_size: int) -> Any:
        raise NotImplementedError

    def encode(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def step(self, inputs: dict[str, np.ndarray], cache: Any) -> np.ndarray:
        """Logits (B, V) of the last position; `inputs` are inputs_embeds (B, S, D), attention_mask (B, columns), position_ids (B, S)."""
        raise NotImplementedError

    def encode_images(self, pixel_values: np.ndarray) -> np.ndarray:
        """(N, 3, H, W) float32 -> (N, T, D) float32, after the projector."""
        shape = pixel_values.shape
        if len(shape) != 4 or shape[0] == 0 or shape[1] != 3 or shape[2] % 64 or shape[3] % 64 or 0 in shape:
            raise ValueError(
                f"pixel_values have the shape {shape}; expected (N, 3, height, width) with N above 0 and multiples of 64 as sides"
            )
        images = np.ascontiguousarray(pixel_values, np.float32)
        return np.concatenate([self.encode(image[None]) for image in images])  # more at once gains nothing and takes memory

    def prefill(
        self, input_ids: Sequence[np.ndarray], image_features: Sequence[np.ndarray | None], cache: Any = None
    ) -> tuple[np.ndarray, Any]:
        """See `fastvlm.runtimes.Runtime`. Rows of unequal length are padded on the left."""
        if not input_ids or min(map(len, input_ids)) == 0:
            raise ValueError("prefill needs at least one row, and at least one id in each")
        if cache is not None and (len(input_ids) != 1 or cache.batch_size != 1):
            raise ValueError(f"a cache of {cache.batch_size} rows cannot take {len(input_ids)} more prompts; appending works for one row")
        inputs_embeds, is_real = prompt_arrays(self._table, input_ids, image_features, self.config.image_token_id)
        if cache is None:
            cache = self.new_cache(len(inputs_embeds))
        return self._advance(inputs_embeds, is_real, cache), cache

    def decode(self, tokens: np.ndarray, cache: Any) -> np.ndarray:
        tokens = np.asarray(tokens, np.int64).reshape(-1, 1)
        return self._advance(self._table[tokens], np.ones(tokens.shape, np.bool_), cache)

    def _advance(self, inputs_embeds: np.ndarray, is_real: np.ndarray, cache: Any) -> np.ndarray:
        position_ids = cache.append(is_real)
        return self.step({"inputs_embeds": inputs_embeds, "attention_mask": cache.mask, "position_ids": position_ids}, cache)


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
