"""transformers' `fast_vlm` as it comes: the class's defaults on a CPU, in float32."""

from typing import Any

from fastvlm.bench.peers import _transformers
from fastvlm.bench.peers._transformers import INSTALL, unavailable_reason
from fastvlm.bench.work import Work

__all__ = ["INSTALL", "PART", "RUNS", "TITLE", "load", "unavailable_reason", "variants"]

TITLE = "transformers fast_vlm, as it comes"
PART = "whole"
RUNS = 3


def variants(work: Work) -> list[str]:
    return ["float32 eager"]


def load(work: Work, variant: str) -> _transformers.Program:
    return build(work, dtype="float32", attention="eager")


def build(work: Work, dtype: str, attention: str, prepare_model: Any = None) -> _transformers.Program:
    """The checkpoint in transformers, on the very arrays that ours gets.

    Args:
        prepare_model: called with the model and its inputs before anything runs; returns the inputs.
    """
    _transformers.prepare(work)
    import torch
    from transformers import FastVlmForConditionalGeneration

    source = work.checkpoint().source.folder()
    kind = getattr(torch, dtype)
    model = FastVlmForConditionalGeneration.from_pretrained(source, dtype=kind, attn_implementation=attention)
    inputs = {
        "input_ids": torch.from_numpy(work.input_ids)[None],
        "attention_mask": torch.ones(1, work.prompt_tokens, dtype=torch.long),
        "pixel_values": torch.from_numpy(work.pixel_values()).to(kind),
    }
    if prepare_model is not None:
        inputs = prepare_model(model, inputs)
    image_tokens = int((inputs["input_ids"] == work.image_token_id).sum())
    program = _transformers.Program(work, model, model.model.vision_tower, model.model.multi_modal_projector, inputs, image_tokens)
    work.check(image_tokens=image_tokens, prompt_tokens=program.facts["prompt_tokens"])
    logits = program.check_prefill()
    work.leave(f"logits-{dtype}-{attention}", logits)
    program.facts["logits"] = f"logits-{dtype}-{attention}"
    return program
