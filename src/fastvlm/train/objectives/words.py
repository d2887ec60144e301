"""A projector for a language model that has not met pictures: each projected token is held near to the words that stand in it.

Its target is the mean of the language model's own embeddings of the text in its 64 x 64 pixels, or that of a line break where nothing
stands; and of all words, those that stand there are to be the most like it. The language model itself is not run, so a picture costs
little more than the tower does; afterwards a document looks to it like its text.
Samples are generated documents, which know where their text is. What is not learnt here, such as how a question is answered from a
picture, is left to `conversations`.

Option in the recipe: `likeness_weight`, of the second of the two losses.
"""

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastvlm.config import PATCH_SIZE
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.train.objectives import Batch, Metrics
from fastvlm.train.objectives._places import centres, check_generated, size_error
from fastvlm.train.objectives._windows import window_text

NOTHING = "\n"
_NO_WORD = -1


class Objective(nn.Module):
    def __init__(self, model: FastVLMModel, processor: Any, options: dict[str, Any]):
        super().__init__()
        self.processor = processor
        self.likeness_weight: float = options.get("likeness_weight", 0.1)
        self.nothing: int = processor.tokenizer.encode(NOTHING)[0]

    def prepare(self, document: Any) -> tuple[np.ndarray, list[list[int]]]:
        """Pixels (1, 3, H, W), and the ids of the text in each image token."""
        check_generated(document, "words")
        pixels = self.processor.image_processor(document.image)
        if pixels.shape != (1, 3, document.image.height, document.image.width):
            raise size_error(document)
        at, corners = centres(document), itertools.product(*(range(0, side, PATCH_SIZE) for side in pixels.shape[2:]))
        texts = [window_text(document, at, (x, y, x + PATCH_SIZE, y + PATCH_SIZE))[0] for y, x in corners]
        return pixels, [self.processor.tokenizer.encode(text or NOTHING) for text in texts]

    def collate(self, items: list[tuple[np.ndarray, list[list[int]]]]) -> Batch | None:
        """pixel_values (N, 3, H, W), and words (N, T, W) int64: the ids in each token, padded with -1."""
        if not items:
            return None
        words = np.full((len(items), len(items[0][1]), max(len(ids) for _, rows in items for ids in rows)), _NO_WORD)
        for index, (_, rows) in enumerate(items):
            for row, ids in enumerate(rows):
                words[index, row, : len(ids)] = ids
        pixel_values = np.concatenate([pixels for pixels, _ in items])
        return {"pixel_values": torch.from_numpy(pixel_values), "words": torch.from_numpy(words)}

    def count(self, batch: Batch) -> float:
        """Image tokens."""
        return float(batch["words"][..., 0].numel())

    def loss(self, model: FastVLMModel, batch: Batch) -> tuple[Tensor, Metrics]:
        """Summed over tokens: the squared error as a share of the targets' variance, and -log of how like each is to the words in it."""
        words, table = batch["words"].flatten(0, 1), model.input_embeddings().weight
        assert isinstance(table, Tensor)
        features = model.encode_images(batch["pixel_values"].contiguous(memory_format=torch.channels_last)).flatten(0, 1).float()
        table = table.detach().float()
        is_word = words != _NO_WORD
        targets = (table[words.clamp(min=0)] * is_word[..., None]).sum(1) / is_word.sum(1, keepdim=True)
        loss = (features - targets).square().sum() / targets.var(0, correction=0).sum().clamp(min=1e-12)
        has_text = words[:, 0] != self.nothing
        words, is_word = words[has_text], is_word[has_text]
        likeness = (features[has_text] @ table.T).log_softmax(-1)
        right = (likeness.argmax(-1, keepdim=True) == words).any(-1)
        of_words = (likeness.gather(1, words.clamp(min=0)) * is_word).sum(1) / is_word.sum(1)
        return loss - self.likeness_weight * of_words.sum(), {"word_accuracy": (right.sum(), has_text.sum())}
