"""Where each character stands that is read aloud, and attention that is told to look there.

The loss of the text alone says little about where to look (docs/nano.md). The generator knows every character's box, so half of the heads
of each guided layer learn to look at the token that holds the next character; what the others do is left to them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastvlm.config import PATCH_SIZE

NOWHERE = -1


def centres(document: Any) -> np.ndarray:
    """(characters, 2) x and y of each visible character; its height is taken from it and its neighbours: "g" stands where "a" stands."""
    x, y = document.boxes[:, 0::2].mean(1), document.boxes[:, 1::2].mean(1)
    start = 0
    for line in document.lines:
        end = start + sum(not letter.isspace() for letter in line.text)
        y[start:end] = _smooth(y[start:end])
        start = end
    return np.stack([x, y], 1)


def _smooth(values: np.ndarray, reach: int = 4) -> np.ndarray:
    """The mean of each value and up to `reach` neighbours on either side."""
    kernel = np.ones(2 * reach + 1)
    return np.convolve(values, kernel)[reach : reach + len(values)] / np.convolve(np.ones(len(values)), kernel)[reach : reach + len(values)]


def tokens_of_letters(document: Any) -> np.ndarray:
    """(characters,) number of the image token in which each visible character stands."""
    columns, rows = document.image.width // PATCH_SIZE, document.image.height // PATCH_SIZE
    at = (centres(document) // PATCH_SIZE).astype(int)
    return at[:, 1].clip(0, rows - 1) * columns + at[:, 0].clip(0, columns - 1)


def letters_of(answer: str, document: Any) -> np.ndarray | None:
    """Numbers of the visible characters that an answer quotes: the whole text, or what stands there once; None for anything else."""
    text = document.text
    if not answer.strip() or text.count(answer) != 1:
        return None
    start = sum(not letter.isspace() for letter in text[: text.index(answer)])
    return start + np.arange(sum(not letter.isspace() for letter in answer))


def places(inputs: Any, quotes: Sequence[tuple[str, np.ndarray | None]], tokenizer: Any) -> np.ndarray:
    """(S,) which of the image tokens holds the character that each position has to say next; NOWHERE for line ends and what is not quoted.

    Args:
        inputs: of a conversation, as `Processor.training_inputs` makes them.
        quotes: of each answer its text and, where it is known, the image token of each of its visible characters.
    """
    found = np.full(inputs.input_ids.shape[1], NOWHERE)
    starts = np.flatnonzero(np.diff(inputs.loss_mask[0].astype(int), prepend=0) == 1)
    for start, (text, tokens) in zip(starts, quotes, strict=False):
        if tokens is None:
            continue
        next_letter = np.cumsum([0, *(not letter.isspace() for letter in text)])
        stream, said = tokenizer.stream(), 0
        for position in range(start, len(found)):
            if said >= len(text):
                break
            if text[said] != "\n":
                found[position - 1] = tokens[next_letter[said]]
            said += len(stream.push(int(inputs.input_ids[0, position])))
    return found


class AttentionGuide(TorchFunctionMode):
    """While active, sums how far half of the heads of some layers are from looking where they should, in one pass of a decoder.

    Attributes:
        loss: -log of the attention that goes to the right image token, as a share of what goes to image tokens: summed over positions,
            the mean over layers and heads.
        right, count: how often the right token has most of it, of how many looks.
    """

    def __init__(self, layers: Sequence[int], is_image: Tensor, places: Tensor, weights: Tensor):
        """is_image (B, S) bool, one run a row; places (B, S), or NOWHERE; weights (B, S) of the positions in the loss."""
        super().__init__()
        self.layers, self.layer = layers, 0
        self.rows, self.positions = (places != NOWHERE).nonzero(as_tuple=True)
        columns = is_image.any(0).nonzero()
        self.span = slice(int(columns.min()), int(columns.max()) + 1) if len(columns) else slice(0, 0)
        self.is_image = is_image[:, self.span]
        self.weights = weights[self.rows, self.positions]
        self.targets = (self.is_image.int().argmax(1)[self.rows] + places[self.rows, self.positions])[:, None]
        self.loss = torch.zeros((), device=places.device)
        self.right, self.count = (torch.zeros((), dtype=torch.long, device=places.device) for _ in range(2))

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            if self.layer in self.layers and len(self.rows):
                self._look(*args[:2])
            self.layer += 1
        return func(*args, **(kwargs or {}))

    def _look(self, query: Tensor, key: Tensor) -> None:
        heads = max(1, query.shape[1] // 2)
        scores = (query[:, :heads] * query.shape[-1] ** -0.5) @ key[:, :heads, self.span].transpose(-1, -2)
        scores = scores.float().masked_fill(~self.is_image[:, None, None], -torch.inf)[
            self.rows, :, self.positions
        ]  # (looks, heads, tokens)
        targets = self.targets.expand(-1, heads)
        losses = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).mean(1)
        self.loss = self.loss + losses @ self.weights / len(self.layers)
        self.right = self.right + (scores.argmax(-1) == targets).sum()
        self.count = self.count + targets.numel()
