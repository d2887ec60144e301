"""Attention for training on a CPU in bfloat16: the plain products and one softmax, in the precision of the queries.

torch 2.13's own two ways are slow there on short sequences: its fused kernel takes most of its time backward, and its plain one checks
every row for emptiness. Over (4, 6, 364, 64) in bfloat16, forward and backward of the three take 20, 30 and 15 ms (one Zen 5 core).
In float32 its fused kernel is as fast on short sequences and twice as fast on long ones: (4, 6, 1000, 64) takes 186 ms, and 365 ms by
plain products, whose scores do not stay in the core's cache (one Emerald Rapids core).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` is computed by `plain_attention`, where that is faster and can do what is asked.

    It is not active in a backward pass, so what gradient checkpointing computes again has to enter it by itself.
    """

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) <= 4 and not _is_float32(args[0]) and _is_plain(*args[3:], **kwargs):
            kept = {name: value for name, value in kwargs.items() if name not in ("dropout_p", "enable_gqa")}
            return plain_attention(*args, **kept)
        return func(*args, **kwargs)


def _is_float32(query: Tensor) -> bool:
    return query.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _is_plain(attn_mask: Tensor | None = None, dropout_p: float = 0.0, enable_gqa: bool = False, **others: Any) -> bool:
    """No dropout, no shared keys, no mask that adds: decoders of transformers ask for these."""
    return not dropout_p and not enable_gqa and (attn_mask is None or attn_mask.dtype == torch.bool)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """As torch's, without dropout; every query must see at least one key.

    Args:
        query, key, value: (..., S, head_dim), (..., T, head_dim), (..., T, head_dim).
        attn_mask: bool, True where a key may be seen.
    """
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if is_causal:
        scores = scores + _causal_bias(query.shape[-2], scores.dtype)
    elif attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1) @ value


@functools.lru_cache(maxsize=64)
def _causal_bias(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), -torch.inf, dtype=dtype).triu(1)
