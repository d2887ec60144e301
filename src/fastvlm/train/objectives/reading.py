"""Reading aloud and answering (`conversations`) while the cells are still named (`characters`), for models that learn to read from nothing.

The dense loss keeps in the tokens what the answers do not ask for yet. Samples are generated documents of the size that the model takes.

Options in the recipe: those of both; `cell_weight`, the dense loss's share against 1 for the text; `windows`, such as {1x1: 8, 1x8: 2}:
read aloud so many windows of so many rows and columns of tokens, instead of the whole document, or besides it with {1x1: 4, all: 1}.
"""

import copy
import dataclasses
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
from fastvlm.train.recipe import RecipeError


class Objective(nn.Module):
    contains = {"characters": "cells", "conversations": "text"}  # objectives whose own weights this one goes on with

    def __init__(self, model: FastVLMModel, processor: Any, options: dict[str, Any]):
        super().__init__()
        self.cell_weight = options.get("cell_weight", 1.0)
        self.text = conversations.Objective(model, processor, options)
        self.cells = characters.Objective(model, processor, options)
        self.windows: dict[str, int] = dict(options.get("windows", {}))
        self.whole = bool(self.windows.pop("all", not self.windows))
        # a picture of one token, in whose place a window's tokens are put
        self.one_token = copy.copy(processor)
        self.one_token.image_processor = processor.image_processor.at_size(PATCH_SIZE)

    def prepare(self, document: Any) -> tuple[Any, list[tuple[ModelInputs, np.ndarray]]]:
        """A document, and what is read of it: ids without pixels, each with the numbers of the tokens that it is read from."""
        rng = random.Random(f"{document.kind}/{document.text}")
        rows = [(self._reading(text, len(numbers)), numbers) for numbers, text in draw_windows(document, self.windows, rng)]
        if self.whole:
            text, tokens = self.text.prepare(document), self._num_tokens(document)
            if (text.input_ids == self.one_token.image_token_id).sum() != tokens:
                raise RecipeError(
                    f"documents of {document.image.width} x {document.image.height} pixels are not of the size that the model takes; "
                    "set `sizes` of the source and `resolution` of the stage to the same"
                )
            rows.append((dataclasses.replace(text, image_groups=[]), np.arange(tokens)))
        return self.cells.prepare(document), rows

    def _reading(self, text: str, num_tokens: int) -> ModelInputs:
        """A window of so many tokens read aloud; without pixels, and without a question, which would take longer than most answers."""
        content = [{"type": "image", "image": Image.new("RGB", (PATCH_SIZE, PATCH_SIZE))}]
        inputs = self.one_token.training_inputs([{"role": "user", "content": content}, {"role": "assistant", "content": text}])
        assert inputs.loss_mask is not None
        repeats = np.where(inputs.input_ids[0] == self.one_token.image_token_id, num_tokens, 1)
        return ModelInputs(inputs.input_ids.repeat(repeats, axis=1), [], inputs.loss_mask.repeat(repeats, axis=1))

    def collate(self, items: list[tuple[Any, Any]]) -> Batch | None:
        """What both objectives take, and `token_numbers`: which of all pictures' tokens stand for the image tokens, in order."""
        cells = self.cells.collate([document for document, _ in items])
        first = np.cumsum([0, *(self._num_tokens(document) for document, _ in items)])
        rows = [(row, start + numbers) for start, (_, rows) in zip(first, items, strict=False) for row, numbers in rows]
        text = self.text.collate([row for row, _ in rows])
        if cells is None or text is None:
            return None
        return {**cells, **text, "token_numbers": torch.from_numpy(np.concatenate([numbers for _, numbers in rows]))}

    @staticmethod
    def _num_tokens(document: Any) -> int:
        return (document.image.width // PATCH_SIZE) * (document.image.height // PATCH_SIZE)

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
        text_loss, text_metrics = self.text.loss_of(model, batch, features.flatten(0, 1)[batch["token_numbers"]])
        cell_loss, cell_metrics = self.cells.loss_of(maps, batch)
        text_metrics["text_loss"] = (text_loss.detach(), text_metrics["text_accuracy"][1])
        return text_loss + cell_loss * (self.cell_weight * self.count(batch) / self.cells.count(batch)), {**text_metrics, **cell_metrics}
