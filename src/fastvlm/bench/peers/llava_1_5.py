"""transformers' LLaVA-1.5-7B: random weights of its published config; with fewer layers where memory is short, and then scaled.

A picture is 336 x 336 pixels and 576 tokens. What is added for the layers left out is the measured time of as many layers, and is said.
"""

from typing import Any

from fastvlm.bench.peers import _transformers
from fastvlm.bench.peers._transformers import INSTALL, unavailable_reason
from fastvlm.bench.peers.llava_onevision import PLAIN_TOKEN
from fastvlm.bench.work import Work
from fastvlm.checkpoint.memory import available_memory_bytes

__all__ = ["INSTALL", "PART", "RUNS", "TITLE", "load", "unavailable_reason", "variants"]

TITLE = "transformers LLaVA-1.5-7B"
PART = "whole"
RUNS = 1

IMAGE_TOKENS = 576
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
}  # fmt: skip
LAYERS = 32
PARAMETERS = 7_063_427_072
_LAYER_PARAMETERS = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
_LAYER_BYTES = 2 * _LAYER_PARAMETERS
_OTHER_BYTES = 4_000_000_000  # tower, embeddings, activations, and room for the others


def variants(work: Work) -> list[str]:
    return ["bfloat16 sdpa"]


def layers_that_fit(available_bytes: int | None) -> int:
    """All of them, or the largest even number that memory allows, at least two."""
    if available_bytes is None:
        return LAYERS
    return max(2, min(LAYERS, int(available_bytes - _OTHER_BYTES) // _LAYER_BYTES // 2 * 2))


class Program(_transformers.Program):
    """Where layers were left out: a run with all that there are and one with half, and the difference for each missing layer."""

    def run(self) -> dict[str, Any]:
        decoder = self.model.model.language_model
        layers = decoder.layers
        full = super().run()
        missing = LAYERS - len(layers)
        if not missing:
            return full
        half = len(layers) // 2
        decoder.layers = layers[:half]
        decoder.config.num_hidden_layers = half
        try:
            short = super().run()
        finally:
            decoder.layers = layers
            decoder.config.num_hidden_layers = len(layers)
        added = {name: missing * (full[name] - short[name]) / (len(layers) - half) for name in ("prefill_s", "per_token_s")}
        return {
            **full,
            "ttft_s": full["ttft_s"] + added["prefill_s"],
            "prefill_s": full["prefill_s"] + added["prefill_s"],
            "per_token_s": full["per_token_s"] + added["per_token_s"],
            "measured_ttft_s": full["ttft_s"],
        }


def load(work: Work, variant: str) -> Program:
    _transformers.prepare(work)
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    layers = layers_that_fit(available_memory_bytes())
    text = {**TEXT, "num_hidden_layers": layers}
    config = LlavaConfig(vision_config=VISION, text_config=text, image_token_index=32000, image_seq_length=IMAGE_TOKENS)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    words = torch.full((work.prompt_tokens - work.image_tokens,), PLAIN_TOKEN)
    ids = torch.cat([words[:14], torch.full((IMAGE_TOKENS,), 32000), words[14:]])[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0)).to(model.dtype),
    }
    note = "336 x 336 pixels"
    if layers < LAYERS:
        note += f"; {layers} of {LAYERS} layers fit into memory, the time of the others is added from the measured layers"
    program = Program(work, model, model.model.vision_tower, model.model.multi_modal_projector, inputs, IMAGE_TOKENS, note)
    program.check_parameters(PARAMETERS - (LAYERS - layers) * _LAYER_PARAMETERS)
    return program
