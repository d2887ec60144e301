"""Reading aloud and answering (`conversations`) while the cells are still named (`characters`), for models that learn to read from nothing.

The dense loss keeps in the tokens what the answers do not ask for yet. Samples are generated documents of the size that the model takes.

Options in the recipe: those of both, and `cell_weight`, the dense loss's share against 1 for the text.
"""

from typing import Any

from torch import Tensor, nn

from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.train.objectives import Batch, Metrics, characters, conversations


class Objective(nn.Module):
    contains = {"characters": "cells", "conversations": "text"}  # objectives whose own weights this one goes on with

    def __init__(self, model: FastVLMModel, processor: Any, options: dict[str, Any]):
        super().__init__()
        self.cell_weight = options.get("cell_weight", 1.0)
        self.text = conversations.Objective(model, processor, options)
        self.cells = characters.Objective(model, processor, options)

    def prepare(self, document: Any) -> tuple[Any, Any]:
        """A document with its text made ready."""
        return self.cells.prepare(document), self.text.prepare(document)

    def collate(self, items: list[tuple[Any, Any]]) -> Batch | None:
        """What both objectives take."""
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
        tokens = maps["token"].flatten(2).transpose(1, 2)
        text_loss, text_metrics = self.text.loss_of(model, batch, model.multi_modal_projector(tokens))
        cell_loss, cell_metrics = self.cells.loss_of(maps, batch)
        text_metrics["text_loss"] = (text_loss.detach(), text_metrics["text_accuracy"][1])
        return text_loss + cell_loss * (self.cell_weight * self.count(batch) / self.cells.count(batch)), {**text_metrics, **cell_metrics}
