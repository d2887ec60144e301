"""How much the model has to compute and to read.

    count_operations(config, image_side=1024, prompt_tokens=296)     # {"encode": 4.9e11, "prefill": 2.2e11, "decode_bytes": ...}

Counted by torch on tensors without memory, so the numbers are those of the model that is run: a multiplication and an addition are
two operations; convolutions, matrix products and attention count, norms and activations (under 1 %) do not.
"""

import dataclasses
from typing import Any

from fastvlm.config import FastVLMConfig


def count_operations(config: FastVLMConfig, *, image_side: int, prompt_tokens: int, num_tiles: int = 1) -> dict[str, Any]:
    """Operations of encoding and prefilling, and bytes that one decoding step reads with weights of 8 bits.

    Args:
        image_side: pixels of a tile's side.
        prompt_tokens: image tokens included.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fastvlm.model.fastvlm import FastVLMModel

    # What is computed is the fused form, whatever form is stored.
    config = dataclasses.replace(config, vision_config=dataclasses.replace(config.vision_config, inference_mode=True))
    with torch.device("meta"), torch.inference_mode():
        model = FastVLMModel(config).eval()
        with FlopCounterMode(display=False) as encode:
            features = model.encode_images(torch.empty(num_tiles, 3, image_side, image_side))
        embeds = torch.empty(1, prompt_tokens, features.shape[-1])
        with FlopCounterMode(display=False) as prefill:
            model.head(model.language_model(embeds, last_only=True))
    text = config.text_config
    decoder = sum(parameter.numel() for parameter in model.language_model.parameters())
    # A step reads every layer and the head: the embedding where the two are tied, else as many bytes in its place.
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * prompt_tokens
    return {
        "encode": encode.get_total_flops(),
        "prefill": prefill.get_total_flops(),
        "decode_bytes": decoder + cache,
        "encoder_parameters": sum(parameter.numel() for parameter in model.vision_tower.parameters()),
        "decoder_parameters": decoder if config.tie_word_embeddings else decoder + text.vocab_size * text.hidden_size,
    }
