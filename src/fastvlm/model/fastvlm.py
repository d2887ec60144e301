"""The whole model: vision_tower -> multi_modal_projector -> image features over placeholder tokens -> language_model -> lm_head.

    model = FastVLMModel(config).eval()
    features = model.encode_images(pixel_values)                        # (N, T, D)
    logits = model(input_ids, image_features=features)                  # (B, S, V)

The processor repeats the image token once per image feature; here its embedding rows are overwritten, so several images, none, and
images of different sizes need no case of their own (paper section 3.1; one token per 64 x 64 pixels).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.config import FastVLMConfig, VisionConfig
from fastvlm.model.decoder import Decoder, KVCache
from fastvlm.model.fastvithd import FastViTHD


class MultiModalProjector(nn.Module):
    """`mlp2x_gelu`: two linear layers with a GELU between them."""

    def __init__(self, vision_config: VisionConfig, hidden_size: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_config.hidden_size, hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, image_features: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, D)."""
        return self.linear_2(self.act(self.linear_1(image_features)))


class FastVLMModel(nn.Module):
    """FastVLM for inference and training. Weights start random; `fastvlm.checkpoint` fills them in."""

    def __init__(self, config: FastVLMConfig):
        super().__init__()
        self.config = config
        text_config = config.text_config
        self.vision_tower = FastViTHD(config.vision_config)
        self.multi_modal_projector = MultiModalProjector(config.vision_config, text_config.hidden_size)
        self.foreign: Any = None  # a ForeignDecoder
        if text_config.foreign:
            from fastvlm.model.foreign import ForeignDecoder

            self.foreign = ForeignDecoder(text_config)
            self.language_model: Any = self.foreign.base_model
            self.lm_head: Any = self.foreign.lm_head
        else:
            self.language_model = Decoder(text_config)
            tied = config.tie_word_embeddings
            self.lm_head = None if tied else nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        return self.multi_modal_projector.linear_1.weight.device

    def input_embeddings(self) -> nn.Module:
        """The token embedding: (B, S) ids -> (B, S, D)."""
        return self.foreign.input_embeddings() if self.foreign is not None else self.language_model.embed_tokens

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, T, C), before the projector, in the tower's dtype."""
        return self.vision_tower(pixel_values.to(next(self.vision_tower.parameters()).dtype))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, T, D), what stands in for the image tokens."""
        return self.multi_modal_projector(self.vision_features(pixel_values).to(self.multi_modal_projector.linear_1.weight.dtype))

    def check_image_features(self, input_ids: Tensor, image_features: Tensor | None) -> None:
        """Raise ValueError unless there are as many image features as image tokens; shapes as in `embed`."""
        num_features = 0 if image_features is None else image_features.numel() // image_features.shape[-1]
        num_tokens = int((input_ids == self.config.image_token_id).sum())
        if num_tokens != num_features:
            raise ValueError(f"{num_tokens} image tokens in input_ids but {num_features} image features; they must be equal")

    def embed(self, input_ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Token embeddings (B, S, D) with image features over the image tokens.

        Args:
            input_ids: (B, S) int64.
            image_features: (N, T, D) or (rows, D), in the order in which their tokens stand in the batch.

        Raises:
            ValueError: the number of image tokens is not the number of features.
        """
        is_image = input_ids == self.config.image_token_id
        # A placeholder's own embedding is never used, and a foreign table may lack its row.
        inputs_embeds = self.input_embeddings()(input_ids.masked_fill(is_image, 0))
        self.check_image_features(input_ids, image_features)
        if image_features is None:
            return inputs_embeds
        return inputs_embeds.masked_scatter(is_image.unsqueeze(-1), image_features.to(inputs_embeds.dtype))

    def forward(
        self,
        input_ids: Tensor,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits (B, S, V), or (B, 1, V) of the last column with `last_only`.

        Args:
            input_ids: (B, S) int64.
            image_features: as for `embed`; or give `pixel_values` (N, 3, H, W) and they are encoded here.
            attention_mask: (B, S) bool over these tokens, False on padding; with `last_only` pad on the left.
            cache: from `new_cache`; holds what came before and takes these tokens.
        """
        if pixel_values is not None:
            if image_features is not None:
                raise ValueError("give image_features or pixel_values, not both")
            image_features = self.encode_images(pixel_values)
        inputs_embeds = self.embed(input_ids, image_features)
        if self.foreign is not None:
            return self.foreign.logits(inputs_embeds, attention_mask, cache, last_only)
        return self.head(self.language_model(inputs_embeds, attention_mask, cache, last_only))

    def head(self, hidden: Tensor) -> Tensor:
        """(..., D) final hidden states of our own decoder -> (..., V) logits."""
        return F.linear(hidden, self.language_model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache; its methods are `KVCache`'s whatever the language model is."""
        if self.foreign is not None:
            return self.foreign.new_cache(batch_size)
        return self.language_model.new_cache(batch_size, capacity)
