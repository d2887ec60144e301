"""Rotary position embedding (arXiv 2104.09864) and the scalings that configs of our decoder families use.

cos, sin = RotaryEmbedding(config)(positions)       # positions (B, S) -> two (B, S, head_dim)
query = rotate(query, cos, sin)
"""

import math

import torch
from torch import Tensor

from fastvlm.config import TextConfig


class RotaryEmbedding:
    """Angles of every position. Holds no tensors of its own, so a model made on `meta` needs nothing filled in."""

    def __init__(self, config: TextConfig):
        self.config = config
        rope = config.rope
        self.attention_scaling = 1.0
        if rope.rope_type == "yarn":
            self.attention_scaling = _yarn_attention_factor(config)
        self._inv_freq: dict[torch.device, Tensor] = {}

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) int64 -> cosine and sine, each (B, S, head_dim) float32."""
        angles = positions.unsqueeze(-1).float() * self.inv_freq(positions)  # (B, S, head_dim / 2)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling

    def inv_freq(self, positions: Tensor) -> Tensor:
        """(head_dim / 2,) radians per position. Only `dynamic` looks at `positions`: it stretches past the trained context."""
        if self.config.rope.rope_type == "dynamic":
            return _dynamic(self.config, int(positions.max()) + 1).to(positions.device)
        if positions.device not in self._inv_freq:
            self._inv_freq[positions.device] = _FREQUENCIES[self.config.rope.rope_type](self.config).to(positions.device)
        return self._inv_freq[positions.device]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, heads, S, head_dim) by angles (B, S, head_dim); the pairs are (i, i + head_dim / 2)."""
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _default(config: TextConfig, theta: float | None = None) -> Tensor:
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    return 1.0 / (config.rope.rope_theta if theta is None else theta) ** exponents


def _linear(config: TextConfig) -> Tensor:
    return _default(config) / config.rope.factor


def _dynamic(config: TextConfig, sequence_length: int) -> Tensor:
    """NTK-aware scaling: the base grows with the sequence once that is longer than the context."""
    factor, trained = config.rope.factor, config.max_position_embeddings
    stretch = factor * max(sequence_length, trained) / trained - (factor - 1)
    return _default(config, config.rope.rope_theta * stretch ** (config.head_dim / (config.head_dim - 2)))


def _llama3(config: TextConfig) -> Tensor:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between interpolated."""
    rope, inv_freq = config.rope, _default(config)
    assert rope.original_max_position_embeddings is not None
    turns = rope.original_max_position_embeddings * inv_freq / (2 * math.pi)  # in the original context
    smooth = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return inv_freq / rope.factor * (1 - smooth) + inv_freq * smooth


def _yarn(config: TextConfig) -> Tensor:
    """YaRN (arXiv 2309.00071): dimensions that turn often keep their frequency, slow ones are divided by `factor`."""
    rope, inv_freq = config.rope, _default(config)
    original = rope.original_max_position_embeddings or config.max_position_embeddings

    def dimension_that_turns(count: float) -> float:
        return config.head_dim * math.log(original / (count * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension_that_turns(rope.beta_fast), dimension_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    if low == high:
        high += 0.001
    slow = ((torch.arange(config.head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    return inv_freq / rope.factor * slow + inv_freq * (1 - slow)


def _yarn_attention_factor(config: TextConfig) -> float:
    rope = config.rope
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(mscale: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * mscale * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


_FREQUENCIES = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
