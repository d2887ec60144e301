"""Reading aloud and answering (`conversations`) while the cells are still named (`characters`), for models that learn to read from nothing.

The dense loss keeps in the tokens what the answers do not ask for yet. Samples are generated documents of the size that the model takes.

Options in the recipe: those of both; `cell_weight`, the dense loss's share against 1 for the text; `windows`, such as {1x1: 8, 1x8: 2}:
read aloud so many windows of so many rows and columns of tokens, instead of the whole document, or besides it with {1x1: 4, all: 1};
`all: 2` has the whole document both read aloud and asked about, where `all: 1` does one of them;
`attention_weight`, of attention that looks elsewhere than at the next character, in the `guided_layers` (the upper two thirds).
"""

import dataclasses
import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastvlm.config import PATCH_SIZE
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.processor import ModelInputs
from fastvlm.train.objectives import Batch, Metrics, characters, conversations
from fastvlm.train.objectives._places import NOWHERE, AttentionGuide, letters_of, places, tokens_of_letters
from fastvlm.train.objectives._windows import draw_windows
from fastvlm.train.recipe import RecipeError


class Row(NamedTuple):
    """What is read of a document: ids without pixels, which of its image tokens they hold, and of each position where the letter stands
    that it has to say next."""

    inputs: ModelInputs
    token_numbers: np.ndarray
    places: np.ndarray


class Objective(nn.Module):
    contains = {"characters": "cells", "conversations": "text"}  # objectives whose own weights this one goes on with

    def __init__(self, model: FastVLMModel, processor: Any, options: dict[str, Any]):
        super().__init__()
        self.cell_weight = options.get("cell_weight", 1.0)
        self.attention_weight = options.get("attention_weight", 0.0)
        count = model.config.text_config.num_hidden_layers
        layers = list(options.get("guided_layers", range(count // 3, count)))
        if self.attention_weight and not (layers and set(layers) <= set(range(count))):
            raise RecipeError(f"guided_layers are {layers}; expected at least one of 0 to {count - 1}")
        self.text = _GuidedText(model, processor, options, layers if self.attention_weight else [])
        self.cells = characters.Objective(model, processor, options)
        self.windows: dict[str, int] = dict(options.get("windows", {}))
        whole = int(self.windows.pop("all", not self.windows))
        if whole not in (0, 1, 2):
            raise RecipeError(f"windows has all: {whole}; expected 0, 1 (read aloud or asked about) or 2 (both)")
        self.transcription_shares = ([], [self.text.transcription_share], [1.0, 0.0])[whole]

    def prepare(self, document: Any) -> tuple[Any, list[Row]]:
        document = self.cells.prepare(document)  # refuses what knows no places
        rng = random.Random(f"{document.kind}/{document.text}")
        token_of, tokenizer, is_guided = tokens_of_letters(document), self.text.processor.tokenizer, bool(self.attention_weight)
        rows = []
        for numbers, text, letters in draw_windows(document, self.windows, rng):
            inputs = self._window(text, len(numbers))
            quotes = [(text, np.searchsorted(numbers, token_of[letters]))] if is_guided and len(numbers) > 1 else []
            rows.append(Row(inputs, numbers, places(inputs, quotes, tokenizer)))
        for messages in self._conversations(document):
            inputs, tokens = self.text.prepare(messages), self._num_tokens(document)
            if (inputs.input_ids == self.text.processor.image_token_id).sum() != tokens:
                raise RecipeError(
                    f"documents of {document.image.width} x {document.image.height} pixels are not of the size that the model takes; "
                    "set `sizes` of the source and `resolution` of the stage to the same"
                )
            answers = [message["content"] for message in messages if message["role"] == "assistant" and is_guided]
            quotes = [(answer, None if (quoted := letters_of(answer, document)) is None else token_of[quoted]) for answer in answers]
            rows.append(Row(dataclasses.replace(inputs, image_groups=[]), np.arange(tokens), places(inputs, quotes, tokenizer)))
        return document, rows

    def _conversations(self, document: Any) -> list[list[dict[str, Any]]]:
        """About the whole document; a text about which there are no questions is not read aloud twice."""
        drawn = [self.text.messages(document, share) for share in self.transcription_shares]
        return drawn[:1] if len(drawn) == 2 and drawn[0][-1]["content"] == drawn[1][-1]["content"] else drawn

    def _window(self, text: str, num_tokens: int) -> ModelInputs:
        """What is said of so many image tokens. There is no question, which would take longer than most answers."""
        picture = {"type": "image", "image": None}
        return self.text.without_pixels([{"role": "user", "content": [picture]}, {"role": "assistant", "content": text}], num_tokens)

    def collate(self, items: list[tuple[Any, list[Row]]]) -> Batch | None:
        """What both objectives take, `token_numbers` (the image tokens among all pictures' tokens) and `places` (B, S)."""
        cells = self.cells.collate([document for document, _ in items])
        rows = [row for _, rows in items for row in rows]
        text = self.text.collate([row.inputs for row in rows])
        if cells is None or text is None:
            return None
        first = np.cumsum([0, *(self._num_tokens(document) for document, _ in items)])
        numbers = [start + row.token_numbers for start, (_, rows) in zip(first, items, strict=False) for row in rows]
        where = np.full(text["input_ids"].shape, NOWHERE)
        for index, row in enumerate(rows):
            where[index, : len(row.places)] = row.places
        return {**cells, **text, "token_numbers": torch.from_numpy(np.concatenate(numbers)), "places": torch.from_numpy(where)}

    @staticmethod
    def _num_tokens(document: Any) -> int:
        return (document.image.width // PATCH_SIZE) * (document.image.height // PATCH_SIZE)

    def count(self, batch: Batch) -> float:
        """The assistant's tokens."""
        return self.text.count(batch)

    def loss(self, model: FastVLMModel, batch: Batch) -> tuple[Tensor, Metrics]:
        """Summed loss of the text, and the cells' mean as if it were over as many targets."""
        maps = self.cells.maps(model, batch, needs_tokens=True)
        if "feature" in maps:
            features = maps["feature"].flatten(2).transpose(1, 2)
        else:
            features = model.multi_modal_projector(maps["token"].flatten(2).transpose(1, 2))
        text_loss, text_metrics = self.text.loss_of(model, batch, features.flatten(0, 1)[batch["token_numbers"]])
        cell_loss, cell_metrics = self.cells.loss_of(maps, batch)
        if self.attention_weight:
            looks = self.text.take_looks()
            text_loss = text_loss + self.attention_weight * torch.stack([look.loss for look in looks]).sum()
            text_metrics["attention_accuracy"] = (
                torch.stack([look.right for look in looks]).sum(),
                torch.stack([look.count for look in looks]).sum(),
            )
        return text_loss + cell_loss * (self.cell_weight * self.count(batch) / self.cells.count(batch)), {**text_metrics, **cell_metrics}


class _GuidedText(conversations.Objective):
    """Whose decoder is watched in some layers, while it reads."""

    def __init__(self, model: FastVLMModel, processor: Any, options: dict[str, Any], layers: list[int]):
        super().__init__(model, processor, options)
        self.layers, self.image_token_id = layers, processor.image_token_id
        self.looks: list[AttentionGuide] = []

    def _outputs(self, model: FastVLMModel, batch: Batch, inputs_embeds: Tensor, rows: Tensor, length: int) -> Tensor:
        if not self.layers:
            return super()._outputs(model, batch, inputs_embeds, rows, length)
        is_image = batch["input_ids"][rows, :length] == self.image_token_id
        weights = self._weights(conversations.starts_of(batch["labels"][rows, 1 : length + 1]))
        with AttentionGuide(self.layers, is_image, batch["places"][rows, :length], weights) as look:
            outputs = super()._outputs(model, batch, inputs_embeds, rows, length)
        self.looks.append(look)
        return outputs

    def take_looks(self) -> list[AttentionGuide]:
        """Of all rows since the last time."""
        looks, self.looks = self.looks, []
        return looks
