"""The language model: one decoder for the families Qwen2, Qwen3, Llama and Mistral, with transformers' parameter names.

    decoder = Decoder(text_config)
    cache = KVCache(text_config, batch_size=1, capacity=512)
    hidden = decoder(decoder.embed_tokens(input_ids), cache=cache)     # prefill: (B, S, D)
    hidden = decoder(decoder.embed_tokens(next_ids), cache=cache)      # decode:  (B, 1, D)

What sets the families apart is in `TextConfig` (biases, query/key norm, windows), not in branches on the family's name.
Rows of unequal length are padded, left or right; `attention_mask` says where the real tokens are.
"""

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.config import TextConfig
from fastvlm.model.rope import RotaryEmbedding, rotate


class KVCache:
    """Keys and values of every layer, written in place; grows by doubling.

    `length` counts columns, the same for all rows; where a column holds padding, `mask` (B, capacity) is False.
    """

    def __init__(
        self,
        config: TextConfig,
        batch_size: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.mask = torch.zeros(batch_size, capacity, device=device, dtype=torch.bool)
        self.length = 0
        self.has_padding = False

    @property
    def batch_size(self) -> int:
        return self.mask.shape[0]

    @property
    def capacity(self) -> int:
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def append_columns(self, attention_mask: Tensor | None, count: int) -> Tensor:
        """Make room for `count` columns; returns the positions (B, count) of the new tokens among each row's real ones."""
        if self.length + count > self.capacity:
            self._grow(max(2 * self.capacity, self.length + count))
        seen = self.mask[:, : self.length].sum(1, keepdim=True)
        new = self.mask[:, self.length : self.length + count]
        new.copy_(torch.ones_like(new) if attention_mask is None else attention_mask.bool())
        self.has_padding = self.has_padding or (attention_mask is not None and not bool(attention_mask.all()))
        self.length += count
        return (seen + new.cumsum(1) - 1).clamp_(min=0)

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest columns (B, kv_heads, S, head_dim) of a layer; returns all columns so far."""
        start = self.length - key.shape[2]
        self.keys[layer, :, :, start : self.length] = key
        self.values[layer, :, :, start : self.length] = value
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]

    def trim(self, length: int) -> None:
        """Forget all columns from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot trim a cache of {self.length} columns to {length}")
        self.mask[:, length:] = False
        self.length = length

    def reorder(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be kept twice (beams) or dropped (finished)."""
        self.keys, self.values, self.mask = self.keys[:, rows], self.values[:, rows], self.mask[rows]

    def _grow(self, capacity: int) -> None:
        extra = capacity - self.capacity
        self.keys = F.pad(self.keys, (0, 0, 0, extra))
        self.values = F.pad(self.values, (0, 0, 0, extra))
        self.mask = F.pad(self.mask, (0, extra))


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads  # query heads that share a key
        width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.o_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (
            proj(x).view(batch, length, -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, S, heads, head_dim)
        query = rotate(self.q_norm(query).transpose(1, 2), cos, sin)
        key = rotate(self.k_norm(key).transpose(1, 2), cos, sin)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(self.layer, key, value)
        key, value = _repeat(key, self.groups), _repeat(value, self.groups)
        is_causal = mask is None and length > 1  # without a mask, either one token sees everything or nothing came before
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


def _repeat(x: Tensor, groups: int) -> Tensor:
    """(B, kv_heads, S, head_dim) -> (B, kv_heads * groups, S, head_dim). Spelled as converters recognise it: they fuse it away."""
    if groups == 1:
        return x
    batch, kv_heads, length, head_dim = x.shape
    return x[:, :, None].expand(batch, kv_heads, groups, length, head_dim).reshape(batch, kv_heads * groups, length, head_dim)


class MLP(nn.Module):
    """Gated perceptron with SiLU."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None, last_only: bool = False) -> Tensor:
        """(B, S, D) -> (B, S, D), or (B, 1, D) of the last position with `last_only`; the cache takes all S even so."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        if last_only:  # after attention: engines fuse it only where there are as many queries as new keys
            x = x[:, -1:]
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token embedding, layers and final norm; the head belongs to `FastVLMModel`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.checkpoint_context_fn = torch.utils.checkpoint.noop_context_fn  # contexts of the forward pass and of its repetition

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        weight = self.norm.weight
        return KVCache(self.config, batch_size, capacity, weight.device, weight.dtype)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, S, D) of new tokens, or (B, 1, D) of the last column, which spares the last layer most of its work.

        Args:
            inputs_embeds: (B, S, D).
            attention_mask: (B, S) bool over the new tokens, False on padding; None means all are real.
            cache: holds what came before, and takes the new tokens.
            segments: (B, S) int from 0 on, never falling. Each segment is computed as if it alone followed segment 0, so that many short
                questions share one long picture. Not with a cache, padding or windows.
        """
        batch, length, _ = inputs_embeds.shape
        if cache is not None:
            positions = cache.append_columns(attention_mask, length)
            valid = cache.mask[:, : cache.length] if cache.has_padding else None
            total = cache.length
        else:
            total = length
            valid = attention_mask.bool() if attention_mask is not None and not bool(attention_mask.all()) else None
            positions = torch.arange(length, device=inputs_embeds.device).expand(batch, length)
            if valid is not None:
                positions = (valid.cumsum(1) - 1).clamp(min=0)
        masks = {window: causal_mask(length, total, valid, window, inputs_embeds.device) for window in {None, *self.config.sliding_windows}}
        if segments is not None:
            if cache is not None or valid is not None or len(masks) > 1:
                raise ValueError("segments cannot be computed with a cache, padding or attention windows")
            positions, masks[None] = _apart(segments)
        cos, sin = self.rotary(positions)
        x = inputs_embeds
        for index, (layer, window) in enumerate(zip(self.layers, self.config.sliding_windows, strict=True), 1):
            at_last_only = last_only and index == len(self.layers)
            if self.gradient_checkpointing and torch.is_grad_enabled():  # also frozen: a projector's gradient goes through it
                x = torch.utils.checkpoint.checkpoint(
                    layer, x, cos, sin, masks[window], None, at_last_only, use_reentrant=False, context_fn=self.checkpoint_context_fn
                )
            else:
                x = layer(x, cos, sin, masks[window], cache, at_last_only)
        return self.norm(x)


def _apart(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, S) of segments that each follow segment 0, and which keys they see: (B, 1, S, S) bool."""
    index = torch.arange(segments.shape[1], device=segments.device)
    is_start = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    start = (index * is_start).cummax(1).values
    shared = segments == 0
    positions = index - start + torch.where(shared, 0, shared.sum(1, keepdim=True))
    sees = shared[:, None, :] | (segments[:, :, None] == segments[:, None, :])
    return positions, (sees & (index <= index[:, None])).unsqueeze(1)


def causal_mask(length: int, total: int, valid: Tensor | None, window: int | None, device: torch.device) -> Tensor | None:
    """(B or 1, 1, S, total) bool, True where a key may be seen; None where plain causal attention says the same."""
    past = total - length
    windowed = window is not None and total > window
    if valid is None and not windowed and (past == 0 or length == 1):
        return None
    query = torch.arange(past, total, device=device).unsqueeze(1)
    key = torch.arange(total, device=device)
    mask = key <= query
    if window is not None:
        # columns, not positions: padding stands at the ends, so within a row the two differ by a constant
        mask = mask & (key > query - window)
    mask = mask[None, None]
    if valid is not None:
        mask = mask & valid[:, None, None, :]
        # a padded query sees itself: a row of nothing is NaN in softmax and would spread through the batch
        mask = mask | (key == query)
    return mask
