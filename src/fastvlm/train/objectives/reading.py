"""Reading aloud and answering (`conversations`) while the cells are still named (`characters`), for models that learn to read from nothing.

The dense loss keeps in the tokens what the answers do not ask for yet. Samples are generated documents of the size that the model takes.

Options in the recipe: those of both; `cell_weight`, the dense loss's share against 1 for the text; `windows`, such as {1x1: 8, 1x8: 2}:
read aloud so many windows of so many rows and columns of tokens, instead of whole documents.
"""

import copy
import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastvlm.config import PATCH_SIZE
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.processor import ModelInputs
from fastvlm.train.objectives import Batch, Metrics, characters, conversations
from fastvlm.train.objectives._windows import draw_windows


class Objective(nn.Module):
    contains = {"characters": "cells", "conversations": "text"}  # objectives whose own weights this one goes on with

    def __init__(self, model: FastVLMModel, processor: Any, options: dict[str, Any]):
        super().__init__()
        self.cell_weight = options.get("cell_weight", 1.0)
        self.text = conversations.Objective(model, processor, options)
        self.cells = characters.Objective(model, processor, options)
        self.windows: dict[str, int] = options.get("windows", {})
        # a picture of one token, in whose place a window's tokens are put
        self.one_token = copy.copy(processor)
        self.one_token.image_processor = processor.image_processor.at_size(PATCH_SIZE)

    def prepare(self, document: Any) -> tuple[Any, Any]:
        """A document with its text made ready, or with its windows."""
        if self.windows:
            rng = random.Random(f"{document.kind}/{document.text}")
            windows = draw_windows(document, self.windows, rng)
            return self.cells.prepare(document), [(self._reading(text, len(numbers)), numbers) for numbers, text in windows]
        return self.cells.prepare(document), self.text.prepare(document)

    def _reading(self, text: str, num_tokens: int) -> ModelInputs:
        """A window of so many tokens read aloud; without pixels, and without a question, which would take longer than most answers."""
        content = [{"type": "image", "image": Image.new("RGB", (PATCH_SIZE, PATCH_SIZE))}]
        inputs = self.one_token.training_inputs([{"role": "user", "content": content}, {"role": "assistant", "content": text}])
        assert inputs.loss_mask is not None
        repeats = np.where(inputs.input_ids[0] == self.one_token.image_token_id, num_tokens, 1)
        return ModelInputs(inputs.input_ids.repeat(repeats, axis=1), [], inputs.loss_mask.repeat(repeats, axis=1))

    def _collate_windows(self, items: list[tuple[Any, Any]]) -> Batch | None:
        """As `collate`, and `token_numbers`: which of all pictures' tokens stand for the image tokens, in order."""
        cells = self.cells.collate([document for document, _ in items])
        rows = [
            (reading, numbers + index * self._num_tokens(document))
            for index, (document, readings) in enumerate(items)
            for reading, numbers in readings
        ]
        text = self.text.collate([reading for reading, _ in rows])
        if cells is None or text is None:
            return None
        return {**cells, **text, "token_numbers": torch.from_numpy(np.concatenate([numbers for _, numbers in rows]))}

    @staticmethod
    def _num_tokens(document: Any) -> int:
        return (document.image.width // PATCH_SIZE) * (document.image.height // PATCH_SIZE)

    def collate(self, items: list[tuple[Any, Any]]) -> Batch | None:
        """What both objectives take."""
        if self.windows:
            return self._collate_windows(items)
        cells, text = self.cells.collate([document for document, _ in items]), self.text.collate([row for _, row in items])
        if text is None or cells is None:
            return None
        pixel_values = text.pop("pixel_values")
        if pixel_values.shape[-2:] != cells["pixels"].shape[1:3]:
            raise ValueError(
                f"documents of {tuple(cells['pixels'].shape[1:3])} pixels, but the model takes {tuple(pixel_values.shape[-2:])}; "
                "set `sizes` of the source and `resolution` of the stage to the same"
            )
        return {**cells, **text}

    def count(self, batch: Batch) -> float:
        """The assistant's tokens."""
        return self.text.count(batch)

    def loss(self, model: FastVLMModel, batch: Batch) -> tuple[Tensor, Metrics]:
        """Summed loss of the text, and the cells' mean as if it were over as many targets."""
        maps = self.cells.maps(model, batch)
        if "feature" in maps:
            features = maps["feature"].flatten(2).transpose(1, 2)
        else:
            features = model.multi_modal_projector(maps["token"].flatten(2).transpose(1, 2))
        if "token_numbers" in batch:
            features = features.flatten(0, 1)[batch["token_numbers"]]
        text_loss, text_metrics = self.text.loss_of(model, batch, features)
        cell_loss, cell_metrics = self.cells.loss_of(maps, batch)
        text_metrics["text_loss"] = (text_loss.detach(), text_metrics["text_accuracy"][1])
        return text_loss + cell_loss * (self.cell_weight * self.count(batch) / self.cells.count(batch)), {**text_metrics, **cell_metrics}
