"""Attention for training on a CPU in bfloat16: the plain products and one softmax, in the precision of the queries.

torch 2.13's own two ways are slow there on short sequences: its fused kernel takes most of its time backward, and its plain one checks
every row for emptiness. Over (4, 6, 364, 64) in bfloat16, forward and backward of the three take 20, 30 and 15 ms (one Zen 5 core).
In float32 its fused kernel is as fast on short sequences and twice as fast on long ones: (4, 6, 1000, 64) takes 186 ms, and 365 ms by
plain products, whose scores do not stay in the core's cache (one Emerald Rapids core).

Neither skips what a mask hides. Of many questions behind one picture, each sees the picture and itself only: `sparse_attention` computes
no more than that.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` is computed by `sparse_attention` or `plain_attention`, where that is faster and can do
    what is asked.

    It is not active in a backward pass, so what gradient checkpointing computes again has to enter it by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None  # the newest, which all layers have in common
        self.blocks: list[_Block] | None = None

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or len(args) > 4 or not _is_plain(*args[3:], **kwargs):
            return func(*args, **kwargs)
        kept = {name: value for name, value in kwargs.items() if name not in ("dropout_p", "enable_gqa")}
        query, key, value = args[:3]
        mask = args[3] if len(args) == 4 else kwargs.get("attn_mask")
        if mask is not None and (blocks := self._blocks_of(mask, query.shape)) is not None:
            return sparse_attention(query, key, value, blocks, scale=kwargs.get("scale"))
        return func(*args, **kwargs) if _is_float32(query) else plain_attention(*args, **kept)

    def _blocks_of(self, mask: Tensor, shape: torch.Size) -> "list[_Block] | None":
        """Of a mask for each row that hides more than half of all; None for others."""
        if mask.shape != (shape[0], 1, shape[-2], shape[-2]):
            return None
        if mask is not self.mask:
            blocks = blocks_of(mask)
            computed = sum((block.end - block.start) * len(block.columns) for block in blocks)
            self.mask, self.blocks = mask, blocks if computed < mask.numel() / 2 else None
        return self.blocks


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


class _Block(NamedTuple):
    """Queries `start` to `end` of a row, the keys that any of them sees, and what is added to their scores: (end - start, columns)."""

    row: int
    start: int
    end: int
    columns: Tensor
    bias: Tensor


def blocks_of(mask: Tensor, size: int = 128) -> list[_Block]:
    """A mask (B, 1, S, S), bool, as blocks of `size` queries."""
    blocks = []
    for row, sees in enumerate(mask[:, 0]):
        for start in range(0, len(sees), size):
            part = sees[start : start + size]
            columns = part.any(0).nonzero()[:, 0]
            bias = torch.zeros(len(part), len(columns), device=mask.device).masked_fill_(~part[:, columns], -torch.inf)
            blocks.append(_Block(row, start, start + len(part), columns, bias))
    return blocks


def sparse_attention(query: Tensor, key: Tensor, value: Tensor, blocks: list[_Block], *, scale: float | None = None) -> Tensor:
    """Attention of each block's queries to its own keys only; as `plain_attention` with the mask of the blocks.

    Args:
        query, key, value: (B, heads, S, head_dim).
    """
    return _Sparse.apply(query, key, value, blocks, query.shape[-1] ** -0.5 if scale is None else scale)


class _Sparse(torch.autograd.Function):
    """With a backward pass of its own: that of a slice would fill a gradient of the whole with zeros, for every block."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[_Block], scale: float) -> Tensor:
        out, weights = torch.empty_like(query), []
        for row, start, end, columns, bias in blocks:
            scores = torch.bmm(query[row, :, start:end], key[row, :, columns].transpose(1, 2)).mul_(scale)
            weights.append(scores.add_(bias.to(scores.dtype)).softmax(-1))
            out[row, :, start:end] = torch.bmm(weights[-1], value[row, :, columns])
        ctx.save_for_backward(query, key, value, *weights)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, *weights = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (row, start, end, columns, _), weight in zip(ctx.blocks, weights, strict=True):
            grad = grads[0][row, :, start:end]
            d_value[row].index_add_(1, columns, torch.bmm(weight.transpose(1, 2), grad))
            d_weight = torch.bmm(grad, value[row, :, columns].transpose(1, 2))
            d_scores = (d_weight - (d_weight * weight).sum(-1, keepdim=True)).mul_(weight).mul_(ctx.scale)
            d_query[row, :, start:end] = torch.bmm(d_scores, key[row, :, columns])
            d_key[row].index_add_(1, columns, torch.bmm(d_scores.transpose(1, 2), query[row, :, start:end]))
        return d_query, d_key, d_value, None, None
