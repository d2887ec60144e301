"""Language models outside our decoder families, built and run by transformers (installed by the extra `transformers`).

The causal model is built from the checkpoint's `text_config`, so what it adds to a plain decoder (a scaled embedding, capped logits) is
there too. Its base model and head become children of `FastVLMModel`, under the names that transformers' `fast_vlm` stores.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.config import ConfigError, TextConfig


class ForeignCache:
    """transformers' cache with the methods of `KVCache`."""

    def __init__(self, past_key_values: Any, batch_size: int):
        self.past_key_values = past_key_values
        self.mask = torch.zeros(batch_size, 0, dtype=torch.bool)  # (B, length), False on padding

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    @property
    def batch_size(self) -> int:
        return self.mask.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._attention_layers)

    @property
    def is_state_only(self) -> bool:
        """Whether what came before is in states, and no key of it is kept: state-space models."""
        return self.length > 0 and not self._attention_layers

    @property
    def _attention_layers(self) -> list[Any]:
        return [layer for layer in self.past_key_values.layers if getattr(layer, "keys", None) is not None]

    def trim(self, length: int) -> None:
        """Forget all columns from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot trim a cache of {self.length} columns to {length}")
        if length < self.length:
            self.past_key_values.crop(length - self.length)  # below 0: how many to remove, in every version
        self.mask = self.mask[:, :length]

    def reorder(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.past_key_values.reorder_cache(rows)  # not batch_select_indices, which leaves convolution states as they are
        self.mask = self.mask[rows]


class ForeignDecoder:
    """Not a module: `base_model` and `lm_head` are registered by `FastVLMModel`, this only calls them together."""

    def __init__(self, config: TextConfig):
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise ConfigError(
                f"language models of type {config.model_type!r} run through transformers: pip install 'fastvlm[transformers]'"
            ) from error
        raw = {key: value for key, value in config.raw.items() if key != "auto_map"}
        try:
            hf_config = AutoConfig.for_model(**{**raw, "tie_word_embeddings": config.tie_word_embeddings})
            self.causal_lm = AutoModelForCausalLM.from_config(hf_config, trust_remote_code=False)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"transformers cannot build a language model of type {config.model_type!r}: {reason}") from error
        self.config = config
        self.base_model: nn.Module = self.causal_lm.base_model
        self.lm_head: nn.Module = self.causal_lm.get_output_embeddings()

    def input_embeddings(self) -> nn.Module:
        return self.causal_lm.get_input_embeddings()

    @property
    def is_converted(self) -> bool:
        """Whether transformers stores other tensors than it computes with: a mixture of experts is stored expert by expert."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        return any(isinstance(entry, WeightConverter) for entry in get_model_conversion_mapping(self.causal_lm, add_legacy=False))

    def stored_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a `FastVLMModel`, under the names and in the shapes in which transformers stores them."""
        if not self.is_converted:
            return state
        from transformers.core_model_loading import revert_weight_conversion

        mine, others = self._split(state)
        return {**others, **self._renamed(revert_weight_conversion(self.causal_lm, mine), from_theirs=True)}

    def computed_state(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `stored_state`."""
        if not self.is_converted:
            return stored
        mine, others = self._split(stored)
        dtype = next(value.dtype for value in mine.values() if value.is_floating_point())
        loaded = type(self.causal_lm).from_pretrained(None, config=self.causal_lm.config, state_dict=mine, dtype=dtype)
        return {**others, **self._renamed(loaded.state_dict(), from_theirs=True)}

    def _split(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What belongs to the language model, under the names of `causal_lm`, and the rest under ours."""
        mine = {name: value for name, value in state.items() if name.startswith(("language_model.", "lm_head."))}
        return self._renamed(mine, from_theirs=False), {name: value for name, value in state.items() if name not in mine}

    def _renamed(self, state: dict[str, Tensor], *, from_theirs: bool) -> dict[str, Tensor]:
        ours, theirs = "language_model.", f"{self.causal_lm.base_model_prefix}."
        old, new = (theirs, ours) if from_theirs else (ours, theirs)
        return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in state.items()}

    def new_cache(self, batch_size: int) -> ForeignCache:
        from transformers import DynamicCache

        return ForeignCache(DynamicCache(config=self.causal_lm.config), batch_size)

    def logits(self, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: ForeignCache | None, last_only: bool) -> Tensor:
        """As `FastVLMModel.forward`."""
        length = inputs_embeds.shape[1]
        is_state_only = cache is not None and cache.is_state_only
        if is_state_only and length > 1:  # transformers goes on from a state by one token at a time
            masks = [None] * length if attention_mask is None else attention_mask.split(1, dim=1)
            steps = [self.logits(embeds, mask, cache, last_only) for embeds, mask in zip(inputs_embeds.split(1, dim=1), masks, strict=True)]
            return steps[-1] if last_only else torch.cat(steps, dim=1)
        new = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        mask = new.to(inputs_embeds.device)
        if cache is not None:
            mask = torch.cat((cache.mask.to(mask.device), mask), dim=1)
            cache.mask = mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
        if is_state_only:
            mask = mask[:, -length:]
        arguments = {"inputs_embeds": inputs_embeds, "attention_mask": mask.long(), "use_cache": cache is not None}
        if _accepts(self.causal_lm, "position_ids"):
            arguments["position_ids"] = positions
        if cache is not None:
            name = "cache" if _accepts(self.causal_lm, "cache") else "past_key_values"  # the name before transformers 5.24
            arguments[name] = cache.past_key_values
        if last_only and _accepts(self.causal_lm, "logits_to_keep"):
            arguments["logits_to_keep"] = 1
        logits = self.causal_lm(**arguments).logits
        return logits[:, -1:] if last_only else logits


def _accepts(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters
