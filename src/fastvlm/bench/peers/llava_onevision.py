"""transformers' LLaVA-OneVision-0.5B, the model that the paper's 85x is against (Table 6): random weights of its published config.

At 1152 x 1152 it looks at an overview and 3 x 3 tiles of 384 pixels: 10 x 729 = 7290 image tokens, and 81 line ends between them.
"""

from fastvlm.bench.peers import _transformers
from fastvlm.bench.peers._transformers import INSTALL, unavailable_reason
from fastvlm.bench.work import Work, WorkError

__all__ = ["INSTALL", "PART", "RUNS", "TITLE", "load", "unavailable_reason", "variants"]

TITLE = "transformers LLaVA-OneVision-0.5B"
PART = "whole"
RUNS = 1

PARAMETERS = 893_675_552
TILE = 384  # pixels; 27 x 27 patches of 14
PATCHES = 27
VISION = {  # SigLIP-SO400M without its last layer
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
    "image_size": TILE, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
TEXT = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 152000, "max_position_embeddings": 32768, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
PLAIN_TOKEN = 1000  # any id that means nothing to the model


def variants(work: Work) -> list[str]:
    return ["bfloat16 sdpa 1152"]


def tokens_at(side: int) -> tuple[int, int]:
    """Tiles, and image tokens with line ends, of a square picture of `side` pixels (a multiple of 384)."""
    tiles = side // TILE
    return 1 + tiles**2, PATCHES**2 + (tiles * PATCHES) * (tiles * PATCHES + 1)


def load(work: Work, variant: str) -> _transformers.Program:
    """`variant`: dtype, attention, side of the picture in pixels."""
    _transformers.prepare(work)
    import torch
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    dtype, attention, side = variant.split()
    tiles, image_tokens = tokens_at(int(side))
    pinpoints = [[TILE * rows, TILE * columns] for rows in range(1, 7) for columns in range(1, 7)]
    config = LlavaOnevisionConfig(
        vision_config=VISION, text_config=TEXT, image_grid_pinpoints=pinpoints, vision_feature_layer=-1, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration._from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
    text = torch.full((work.prompt_tokens - work.image_tokens,), PLAIN_TOKEN)
    ids = torch.cat([text[:14], torch.full((image_tokens,), config.image_token_id), text[14:]])[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, tiles, 3, TILE, TILE, generator=torch.Generator().manual_seed(0)).to(model.dtype),
        "image_sizes": torch.tensor([[int(side), int(side)]]),
    }
    note = f"{side} x {side} pixels: {tiles} tiles, {tiles * PATCHES**2} image tokens and {image_tokens - tiles * PATCHES**2} line ends"
    vision, projector = model.model.vision_tower, model.model.multi_modal_projector
    program = _transformers.Program(work, model, vision, projector, inputs, image_tokens, note)
    program.check_parameters(PARAMETERS)
    if int(side) == 1152 and tiles * PATCHES**2 != 7290:
        raise WorkError("it does not see the 7290 image tokens of the paper's table")
    return program
