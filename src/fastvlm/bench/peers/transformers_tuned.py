"""transformers' `fast_vlm`, tuned: what somebody who knows PyTorch would do. Every variant is measured; the best one counts."""

from typing import Any

from fastvlm.bench.peers import _transformers
from fastvlm.bench.peers._transformers import INSTALL, unavailable_reason
from fastvlm.bench.peers.transformers_fast_vlm import build
from fastvlm.bench.work import Work

__all__ = ["INSTALL", "PART", "RUNS", "TITLE", "load", "unavailable_reason", "variants"]

TITLE = "transformers fast_vlm, tuned"
PART = "whole"
RUNS = None

# All with fused attention (SDPA) and logits of the last position only, which `generate` asks for by itself.
VARIANTS = (
    "float32 eager",
    "float32 eager channels_last",
    "float32 compiled channels_last",
    "bfloat16 eager",
    "bfloat16 eager channels_last",
    "bfloat16 compiled channels_last",
)


def variants(work: Work) -> list[str]:
    return list(VARIANTS)


def load(work: Work, variant: str) -> _transformers.Program:
    dtype, mode, *layout = variant.split()

    def prepare(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        if layout:
            model.model.vision_tower.to(memory_format=torch.channels_last)
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        if mode == "compiled":
            import torch._inductor.config as inductor

            inductor.freezing = True  # weights become constants, which may be packed for the processor
            model.model.vision_tower.compile()
            for layer in model.model.language_model.layers:
                layer.compile(dynamic=True)  # one graph for the prompt and for single tokens
        return inputs

    return build(work, dtype=dtype, attention="sdpa", prepare_model=prepare)
