"""Dense reading: name the character under every cell of the picture, before there is any language model to train.

A reader trained on answers alone sees nothing for tens of thousands of pictures; the generator knows every character's box, so the tower
can be told. Small heads, thrown away afterwards, predict a grid of cells 8 pixels high and 4 wide: from the maps of stride 16 and 32
(stages 3 and 4), from each final image token, which so learns to carry all that stands in its 64 x 64 pixels, and from what the projector
makes of it: what is lost there, the language model cannot read.

Options in the recipe: `map_weight`, `middle_weight`, `token_weight`, `feature_weight` (of the four losses; 0 leaves one out),
`background_weight`; `place_weight`, of the row and the column of the picture in which each projected token stands; `feature_rms`, to which
the projected tokens are held.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.train.objectives import Batch, Metrics
from fastvlm.train.recipe import RecipeError

CELL_HEIGHT, CELL_WIDTH = 8, 4
CHARACTERS = "".join(map(chr, range(33, 127))) + "£€¥°©®–—‘’“”•…×§é"
BACKGROUND = 0
UNKNOWN = len(CHARACTERS) + 1  # a visible character outside the table
MOST_ROWS = 64  # and columns, of a picture's tokens
_RMS_WEIGHT = 0.1
NUM_CLASSES = len(CHARACTERS) + 2
_CLASS_OF = {character: index + 1 for index, character in enumerate(CHARACTERS)}


def character_grid(chars: str, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height / 8, width / 4) uint8 class of the character whose box holds each cell's centre.

    Args:
        chars: the characters.
        boxes: (len(chars), 4) x0, y0, x1, y1 in pixels.
    """
    grid = np.zeros((height // CELL_HEIGHT, width // CELL_WIDTH), np.uint8)
    # the cells whose centres lie in [low, high): at least the one under the box's own centre
    scale = np.array([CELL_WIDTH, CELL_HEIGHT], np.float32)
    low = np.ceil(boxes[:, :2] / scale - 0.5).astype(int)
    high = np.ceil(boxes[:, 2:] / scale - 0.5).astype(int)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 / scale).astype(int)
    low, high = np.minimum(low, centre), np.maximum(high, centre + 1)
    low, high = np.maximum(low, 0), np.minimum(high, [grid.shape[1], grid.shape[0]])
    for character, (x0, y0), (x1, y1) in zip(chars, low, high, strict=True):
        if not character.isspace():
            grid[y0:y1, x0:x1] = _CLASS_OF.get(character, UNKNOWN)
    return grid


class CellHead(nn.Module):
    """One linear layer from a map's channels to the cells below each position, and one classifier shared by all cells."""

    def __init__(self, channels: int, stride: int, width: int = 64):
        super().__init__()
        self.rows, self.columns = stride // CELL_HEIGHT, stride // CELL_WIDTH
        self.cells = nn.Conv2d(channels, self.rows * self.columns * width, 1)
        self.classify = nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, H * rows, W * columns, classes)."""
        batch, _, height, width = x.shape
        cells = self.cells(x).view(batch, self.rows, self.columns, -1, height, width)
        cells = cells.permute(0, 4, 1, 5, 2, 3).reshape(batch, height * self.rows, width * self.columns, -1)
        return self.classify(F.gelu(cells))


class Objective(nn.Module):
    def __init__(self, model: FastVLMModel, processor: Any, options: dict[str, Any]):
        super().__init__()
        self.map_weight = options.get("map_weight", 1.0)
        self.middle_weight = options.get("middle_weight", 0.0)
        self.token_weight = options.get("token_weight", 1.0)
        self.feature_weight = options.get("feature_weight", 0.0)
        self.background_weight = options.get("background_weight", 0.1)
        self.place_weight = options.get("place_weight", 0.0)
        self.feature_rms = options.get("feature_rms")
        dims = model.config.vision_config.embed_dims
        self.map_head = CellHead(dims[2], 16)
        self.middle_head = CellHead(dims[3], 32)
        self.token_head = CellHead(model.config.vision_config.hidden_size, 64)
        self.feature_head = CellHead(model.config.text_config.hidden_size, 64) if self.feature_weight else None
        self.place_head = nn.Linear(model.config.text_config.hidden_size, 2 * MOST_ROWS) if self.place_weight else None

    def prepare(self, document: Any) -> Any:
        if not hasattr(document, "boxes"):
            raise RecipeError("the objectives characters and reading learn from generated documents, which know where each character is")
        return document

    def collate(self, documents: list[Any]) -> Batch | None:
        """Documents of one size -> pixels uint8 (N, H, W, 3) and cells uint8 (N, H/8, W/4)."""
        if not documents:
            return None
        pixels = np.stack([np.asarray(document.image) for document in documents])
        grids = [character_grid(d.chars, d.boxes, d.image.height, d.image.width) for d in documents]
        return {"pixels": torch.from_numpy(pixels), "cells": torch.from_numpy(np.stack(grids))}

    def count(self, batch: Batch) -> float:
        """Cells, those of the background at their weight."""
        is_background = batch["cells"] == BACKGROUND
        return float((~is_background).sum() + self.background_weight * is_background.sum())

    def loss(self, model: FastVLMModel, batch: Batch) -> tuple[Tensor, Metrics]:
        """Summed loss, and the share of character cells that each head names right."""
        return self.loss_of(self.maps(model, batch), batch)

    def maps(self, model: FastVLMModel, batch: Batch, *, needs_tokens: bool = False) -> dict[str, Tensor]:
        """Maps (N, C, H/s, W/s) of stride 16 and, where they are needed, of 32 and 64 (the tokens), and the projected tokens."""
        needs_tokens = needs_tokens or bool(self.token_weight or self.feature_weight)
        tower = model.vision_tower
        x = (batch["pixels"].permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
        x = tower.stem(x)
        for stage in tower.stages[:3]:
            x = stage(x)
        maps = {"map": x}
        if self.middle_weight or needs_tokens:
            maps["middle"] = x = tower.stages[3](x)
        if needs_tokens:
            maps["token"] = tower.final_conv(tower.stages[4](x))
        if self.feature_head is not None:
            features = model.multi_modal_projector(maps["token"].flatten(2).transpose(1, 2))
            maps["feature"] = features.transpose(1, 2).unflatten(2, maps["token"].shape[2:])
        return maps

    def loss_of(self, maps: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Metrics]:
        """As `loss`, with the maps at hand."""
        targets = batch["cells"].long()
        is_character = targets != BACKGROUND
        weight = torch.ones(NUM_CLASSES, device=targets.device)
        weight[BACKGROUND] = self.background_weight
        loss = torch.zeros((), device=targets.device)
        metrics: Metrics = {}
        heads = {
            "map": (self.map_weight, self.map_head),
            "middle": (self.middle_weight, self.middle_head),
            "token": (self.token_weight, self.token_head),
            "feature": (self.feature_weight, self.feature_head),
        }
        for name, features in maps.items():
            head_weight, head = heads[name]
            if head is None or not head_weight:
                continue
            if name == "feature":  # as the language model's first norm leaves it
                features = features / _rms(features)
            logits = head(features).float()
            loss = loss + head_weight * F.cross_entropy(logits.flatten(0, -2), targets.flatten(), weight, reduction="sum")
            right = (logits.argmax(-1) == targets) & is_character
            metrics[f"{name}_accuracy"] = (right.sum(), is_character.sum())
        if "feature" in maps:
            feature_loss, feature_metrics = self._feature_loss(maps["feature"])
            loss, metrics = loss + self.count(batch) * feature_loss, {**metrics, **feature_metrics}
        return loss, metrics

    def _feature_loss(self, features: Tensor) -> tuple[Tensor, Metrics]:
        """A mean over the projected tokens (N, D, H, W): where they stand, and how large they are."""
        rms = _rms(features).float()
        loss = torch.zeros((), device=features.device)
        metrics: Metrics = {"feature_rms": (rms.detach().sum(), torch.tensor(rms.numel()))}
        if self.feature_rms:
            loss = loss + _RMS_WEIGHT * (rms / self.feature_rms).log().square().mean()
        if self.place_head is not None:
            rows, columns = self.place_head((features / rms).permute(0, 2, 3, 1)).float().chunk(2, -1)
            row, column = torch.meshgrid(*(torch.arange(side, device=features.device) for side in features.shape[2:]), indexing="ij")
            for logits, target in ((rows, row), (columns, column)):
                loss = loss + self.place_weight / 2 * F.cross_entropy(logits.flatten(0, -2), target.expand(len(features), -1, -1).flatten())
            right = (rows.argmax(-1) == row) & (columns.argmax(-1) == column)
            metrics["place_accuracy"] = (right.sum(), torch.tensor(right.numel()))
        return loss, metrics


def _rms(features: Tensor) -> Tensor:
    """(N, D, H, W) -> (N, 1, H, W)."""
    return features.square().mean(1, keepdim=True).add(1e-6).sqrt()
