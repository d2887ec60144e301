"""Encoder and projector as one OpenVINO graph: pixel_values (N, 3, H, W) float32 -> image_features (N, T, D)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastvlm.convert._decoder import trace
from fastvlm.convert._weights import Weights
from fastvlm.model.fastvithd import fold, reparameterize

if TYPE_CHECKING:
    import openvino as ov


class Encoder(nn.Module):
    def __init__(self, tower: nn.Module, projector: nn.Module):
        super().__init__()
        self.vision_tower, self.multi_modal_projector = tower, projector

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.multi_modal_projector(self.vision_tower(pixel_values))


@contextmanager
def loaded_encoder(weights: Weights) -> Iterator[Encoder]:
    """Encoder and projector in float32, BatchNorm and scales folded, as long as the block lasts."""
    with weights.loaded("vision_tower") as tower, weights.loaded("multi_modal_projector") as projector:
        tower = fold(reparameterize(tower)).requires_grad_(False)
        yield Encoder(tower, projector).eval()
    # folding has changed the tower's modules; a later block begins with new ones
    weights.model.vision_tower = weights.checkpoint.empty_model().vision_tower


def trace_encoder(encoder: Encoder) -> "ov.Model":
    """The graph; number of pictures and sides stay free."""
    model = trace(encoder, (torch.rand(1, 3, 128, 128),), [[-1, 3, -1, -1]])
    model.inputs[0].set_names({"pixel_values"})
    model.outputs[0].set_names({"image_features"})
    return model
