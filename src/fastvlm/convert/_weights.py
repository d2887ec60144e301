"""A checkpoint's weights, a part of the model at a time.

weights = Weights(checkpoint)
with weights.loaded("language_model.layers.3") as layer:       # the module, with float32 weights, as long as the block lasts
    ...
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastvlm.checkpoint import Checkpoint
from fastvlm.checkpoint.checkpoint import EMBEDDING, HEAD
from fastvlm.runtimes._lora import Adapter

if TYPE_CHECKING:
    from fastvlm.model.fastvlm import FastVLMModel


class Weights:
    """`model` is empty (on `meta`) but for the parts inside a `loaded` block.

    Args:
        adapter: folder of a LoRA adapter, which is added to the weights as they are read.

    Raises:
        CheckpointError, AdapterError: names or shapes that are not the model's; checked here, before work begins.
    """

    def __init__(self, checkpoint: Checkpoint, adapter: str | Path | None = None):
        checkpoint.check_tensors()
        self.checkpoint = checkpoint
        self.model: FastVLMModel = checkpoint.empty_model()
        self._adapter = None if adapter is None else Adapter(adapter)
        if self._adapter is not None:
            self._adapter.check(self.model)

    @property
    def head_name(self) -> str:
        return EMBEDDING if self.model.lm_head is None else HEAD

    @contextmanager
    def loaded(self, name: str) -> Iterator[Any]:
        """Submodule `name` in float32 and in evaluation; its memory is free again after the block."""
        module = self.model.get_submodule(name)
        state = {}
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                state[key] = self.tensor(f"{name}.{key}")
            else:
                state[key] = torch.zeros_like(value, device="cpu")  # BatchNorm's counter, which inference does not read
        module.load_state_dict(state, assign=True)
        del state
        try:
            yield module.eval().requires_grad_(False)
        finally:
            module.to("meta")

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One weight, the adapter's change included."""
        value = self.checkpoint[name].read()
        if self._adapter is not None and name in self._adapter.weight_names:
            value = value.float() + self._adapter.delta(name)
        return value.to(dtype)

    @contextmanager
    def head(self) -> Iterator[nn.Module]:
        """Norm and head as one module: (B, S, D) hidden states -> (B, S, V) logits."""
        with self.loaded("language_model.norm") as norm, self.loaded(self.head_name.removesuffix(".weight")):
            yield _Head(self.model, norm)


class _Head(nn.Module):
    def __init__(self, model: "FastVLMModel", norm: nn.Module):
        super().__init__()
        self.norm = norm
        self.table = model.language_model.embed_tokens if model.lm_head is None else model.lm_head  # so that a trace finds the weight
        self._model = [model]  # not as a child: its other parts are empty

    def forward(self, hidden: Tensor) -> Tensor:
        return self._model[0].head(self.norm(hidden))
