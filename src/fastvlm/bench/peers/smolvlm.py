"""transformers' SmolVLM-500M: random weights of its published config.

It brings a picture to 2048 pixels and looks at an overview and 4 x 4 tiles of 512: 17 x 64 = 1088 image tokens.
"""

from fastvlm.bench.peers import _transformers
from fastvlm.bench.peers._transformers import INSTALL, unavailable_reason
from fastvlm.bench.peers.llava_onevision import PLAIN_TOKEN
from fastvlm.bench.work import Work

__all__ = ["INSTALL", "PART", "RUNS", "TITLE", "load", "unavailable_reason", "variants"]

TITLE = "transformers SmolVLM-500M"
PART = "whole"
RUNS = 3

PARAMETERS = 507_482_304
TILES, TOKENS_PER_TILE, TILE = 17, 64, 512
IMAGE_TOKEN_ID = 49190
VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": TILE, "patch_size": 16,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
    "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "max_position_embeddings": 8192, "rope_theta": 1e5,
    "tie_word_embeddings": False,
}  # fmt: skip


def variants(work: Work) -> list[str]:
    return ["bfloat16 sdpa"]


def load(work: Work, variant: str) -> _transformers.Program:
    _transformers.prepare(work)
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(vision_config=VISION, text_config=TEXT, image_token_id=IMAGE_TOKEN_ID, scale_factor=4, tie_word_embeddings=False)
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    words = torch.full((work.prompt_tokens - work.image_tokens,), PLAIN_TOKEN)
    image_tokens = TILES * TOKENS_PER_TILE
    ids = torch.cat([words[:14], torch.full((image_tokens,), IMAGE_TOKEN_ID), words[14:]])[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, TILES, 3, TILE, TILE, generator=torch.Generator().manual_seed(0)).to(model.dtype),
    }
    note = f"{TILES} tiles of {TILE} x {TILE} pixels; the tokens that name each tile's place are left out"
    program = _transformers.Program(work, model, model.model.vision_model, model.model.connector, inputs, image_tokens, note)
    program.check_parameters(PARAMETERS)
    return program
