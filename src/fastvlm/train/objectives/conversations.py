"""Next-token loss on the assistant's tokens: stages 1 to 3 of the paper, and reading aloud.

The ids and the mask come from the processor in one pass, so what is learnt is what `generate` is asked for. Samples are messages whose
last turn is the assistant's; generated documents become messages here: the whole text, or some questions in turn.

Options in the recipe: `transcription_share` of generated documents are read out, the rest are asked about; `min_turns` and `max_turns`,
between which the number of questions is drawn; `question_shares`, such as {json: 0.25}: how many of a kind's questions may be asked at all
(the answer in JSON is as long as those for thirty fields); `max_length` in tokens, at which a longer sample is cut, but never within a
picture; `apart`: each question about a picture sees the picture and no other question, as when it is the only one that is asked (in one
conversation, the second question for a total and the JSON after it are answered from the text before them, and nobody looks at the
picture); `start_weight`, of an answer's first token in the loss against 1 for the others: after it most answers go on as they stand in
the picture, but it has to be found there; `input_noise`, the share of the answers' tokens that are shown wrong and have to be continued
right: a model's own answers are not free of errors, and what comes next stands in the picture.
"""

import copy
import random
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.config import PATCH_SIZE
from fastvlm.data.questions import QUESTION_KINDS
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.processor import ModelInputs
from fastvlm.records import BrokenSample
from fastvlm.train.distributed import is_sharded
from fastvlm.train.objectives import Batch, Metrics
from fastvlm.train.recipe import RecipeError

IGNORE = -100


class Objective(nn.Module):
    def __init__(self, model: FastVLMModel, processor: Any, options: dict[str, Any]):
        super().__init__()
        self.processor = processor
        self.transcription_share = options.get("transcription_share", 0.5)
        self.min_turns, self.max_turns = options.get("min_turns", 1), options.get("max_turns", 4)
        self.question_shares: dict[str, float] = dict(options.get("question_shares", {}))
        kinds = [kind for kind in QUESTION_KINDS if kind != "transcription"]  # which has `transcription_share`
        if unknown := sorted(set(self.question_shares) - set(kinds)):
            raise RecipeError(f"question_shares names {', '.join(unknown)}; kinds of questions are {', '.join(kinds)}")
        self.max_length = options.get("max_length", 4096)
        self.input_noise = options.get("input_noise", 0.0)
        self.start_weight: float = options.get("start_weight", 1.0)
        self.apart: bool = options.get("apart", False)
        if self.apart and model.foreign is not None:
            raise RecipeError("`apart` needs a decoder of fastvlm's own; transformers' language models cannot take it: set apart to false")

    def messages(self, document: Any, transcription_share: float | None = None) -> list[dict[str, Any]]:
        """A generated document as a conversation; which one is drawn from its ground truth, so it is the same every time.

        Args:
            transcription_share: how likely it is read out and not asked about; None: as the options say.
        """
        share = self.transcription_share if transcription_share is None else transcription_share
        rng = random.Random(f"{document.kind}/{document.text}")
        readings = [qa for qa in document.qa if qa.kind == "transcription"]
        shares = self.question_shares
        questions = [qa for qa in document.qa if qa.kind != "transcription" and (qa.kind not in shares or rng.random() < shares[qa.kind])]
        if readings and (not questions or rng.random() < share):
            chosen = [rng.choice(readings)]
        else:
            chosen = rng.sample(questions, min(len(questions), rng.randint(self.min_turns, self.max_turns)))
        messages: list[dict[str, Any]] = []
        for qa in chosen:
            content: list[dict[str, Any]] = [{"type": "text", "text": qa.question}]
            if not messages:
                content.insert(0, {"type": "image", "image": document.image})
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": qa.answer}]
        return messages

    def prepare(self, sample: Any) -> ModelInputs:
        """A document or a message list as ids, pixels and loss mask, cut to `max_length` tokens.

        Raises:
            BrokenSample: nothing to learn would be left: a picture that does not fit is left out whole, with all that follows it.
        """
        messages = sample if isinstance(sample, list) else self.messages(sample)
        if self.apart and (turns := turns_about_one_picture(messages)):
            return self._prepare_apart(turns)
        inputs = self.processor.training_inputs(messages)
        return inputs if inputs.input_ids.shape[1] <= self.max_length else truncate(inputs, self.max_length, self.processor.image_token_id)

    def without_pixels(self, messages: list[dict[str, Any]], num_image_tokens: int) -> ModelInputs:
        """A conversation about one picture as ids and loss mask, as if its picture took so many tokens; it is not looked at."""
        blank = {"type": "image", "image": Image.new("RGB", (PATCH_SIZE, PATCH_SIZE))}
        shown = [
            {**message, "content": [blank if part["type"] == "image" else part for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in messages
        ]
        one_token = copy.copy(self.processor)  # in whose place the picture's are put
        one_token.image_processor = self.processor.image_processor.at_size(PATCH_SIZE)
        inputs = one_token.training_inputs(shown)
        places = np.flatnonzero(inputs.input_ids[0] == self.processor.image_token_id)
        repeats = np.ones(inputs.input_ids.shape[1], np.int64)
        repeats[places] = 0
        repeats[places[0]] = num_image_tokens
        assert inputs.loss_mask is not None
        return ModelInputs(inputs.input_ids.repeat(repeats, axis=1), [], inputs.loss_mask.repeat(repeats, axis=1))

    def _prepare_apart(self, turns: list[list[dict[str, Any]]]) -> ModelInputs:
        """Questions about one picture in a row, each a segment of its own; as many as fit into `max_length`."""
        first = self.processor.training_inputs(turns[0])
        is_image = first.input_ids[0] == self.processor.image_token_id
        shared = int(np.flatnonzero(is_image)[-1]) + 1
        others = [self.without_pixels(turn, int(is_image.sum())) for turn in turns[1:]]
        ids = [first.input_ids, *(turn.input_ids[:, shared:] for turn in others)]
        masks = [turn.loss_mask if turn is first else turn.loss_mask[:, shared:] for turn in (first, *others)]
        segments = [np.full(part.shape, number) for number, part in enumerate(ids, 1)]
        segments[0][:, :shared] = 0
        row = ModelInputs(np.concatenate(ids, 1), first.image_groups, np.concatenate(masks, 1), segments=np.concatenate(segments, 1))
        ends = np.cumsum([part.shape[1] for part in ids])
        fitting = ends[ends <= self.max_length]
        return truncate(row, int(fitting[-1]) if len(fitting) else self.max_length, self.processor.image_token_id)

    def collate(self, rows: list[ModelInputs]) -> Batch | None:
        """input_ids, labels and, where there are some, segments (B, S), padded on the right, and pixel_values (N, 3, H, W)."""
        if not rows:
            return None
        length = max(row.input_ids.shape[1] for row in rows)
        input_ids = np.zeros((len(rows), length), np.int64)
        labels = np.full((len(rows), length), IGNORE, np.int64)
        for index, row in enumerate(rows):
            count = row.input_ids.shape[1]
            assert row.loss_mask is not None
            input_ids[index, :count] = with_noise(row.input_ids[0], row.loss_mask[0], self.input_noise)
            labels[index, :count] = np.where(row.loss_mask[0], row.input_ids[0], IGNORE)
        batch: Batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if any(row.segments is not None for row in rows):
            segments = np.zeros((len(rows), length), np.int64)
            for index, row in enumerate(rows):
                if row.segments is not None:
                    segments[index] = np.pad(row.segments[0], (0, length - row.segments.shape[1]), mode="edge")
            batch["segments"] = torch.from_numpy(segments)
        pixels = [row.pixel_values for row in rows if row.pixel_values is not None]
        if len({pixel_values.shape[1:] for pixel_values in pixels}) > 1:
            raise RecipeError("pictures of several sizes do not stack into a batch; give all one shape, or use image_mode pad")
        if pixels:
            batch["pixel_values"] = torch.from_numpy(np.concatenate(pixels))
        return batch

    def count(self, batch: Batch) -> float:
        """The assistant's tokens."""
        return float((batch["labels"][:, 1:] != IGNORE).sum())

    def loss(self, model: FastVLMModel, batch: Batch) -> tuple[Tensor, Metrics]:
        """Loss summed over the assistant's tokens, and of them, each counted once: mean loss and the share that the model puts first."""
        pixel_values = batch.get("pixel_values")
        features = None
        if pixel_values is not None:
            features = model.encode_images(pixel_values.contiguous(memory_format=torch.channels_last))
        loss, metrics = self.loss_of(model, batch, features)
        if features is None and is_sharded(model):
            # each process has to gather the tower's weights when the others do
            loss = loss + 0.0 * model.encode_images(torch.zeros(1, 3, PATCH_SIZE, PATCH_SIZE, device=loss.device)).sum()
        return loss, metrics

    def loss_of(self, model: FastVLMModel, batch: Batch, features: Tensor | None) -> tuple[Tensor, Metrics]:
        """As `loss`, with image features (N, T, D) at hand."""
        # Padding stands on the right, where causal attention keeps it from the real tokens without a mask.
        input_ids, targets = batch["input_ids"], batch["labels"][:, 1:]
        model.check_image_features(input_ids, features)
        features = None if features is None else features.flatten(0, -2)
        is_image = input_ids == model.config.image_token_id
        feature_of = is_image.flatten().cumsum(0).view_as(input_ids) - 1
        is_target = targets != IGNORE
        is_start = starts_of(targets)
        loss, text_loss = (torch.zeros((), device=targets.device) for _ in range(2))
        right, right_starts = (torch.zeros((), dtype=torch.long, device=targets.device) for _ in range(2))
        for rows, length in _rows_of_like_length(is_target, model):
            shown = None if features is None else features[feature_of[rows, :length][is_image[rows, :length]]]
            hidden_or_logits = self._outputs(model, batch, model.embed(input_ids[rows, :length], shown), rows, length)
            chosen = is_target[rows, :length]
            logits = (hidden_or_logits[chosen] if model.foreign is not None else model.head(hidden_or_logits[chosen])).float()
            wanted = targets[rows, :length][chosen]
            is_right, begins = logits.argmax(-1) == wanted, is_start[rows, :length][chosen]
            right, right_starts = right + is_right.sum(), right_starts + (is_right & begins).sum()
            losses = F.cross_entropy(logits, wanted, reduction="none")
            loss, text_loss = loss + losses @ self._weights(begins), text_loss + losses.detach().sum()
        metrics = {"text_loss": (text_loss, is_target.sum()), "text_accuracy": (right, is_target.sum())}
        return loss, {**metrics, "start_accuracy": (right_starts, is_start.sum())}

    def _weights(self, is_start: Tensor) -> Tensor:
        """What each token counts in the loss."""
        return 1.0 + (self.start_weight - 1.0) * is_start

    def _outputs(self, model: FastVLMModel, batch: Batch, inputs_embeds: Tensor, rows: Tensor, length: int) -> Tensor:
        """Of some rows' first columns, embedded: logits of a foreign language model, final hidden states of ours."""
        if model.foreign is not None:
            return model.foreign.logits(inputs_embeds, None, None, last_only=False)
        segments = batch["segments"][rows, :length] if "segments" in batch else None
        return model.language_model(inputs_embeds, segments=segments if segments is not None and segments.any() else None)


def starts_of(targets: Tensor) -> Tensor:
    """(B, S) bool: the first token of each answer, which says where on the picture it stands."""
    is_target = targets != IGNORE
    return is_target & ~F.pad(is_target[:, :-1], (1, 0))


_LIKE = 1.25  # the longest row of a group may be this much longer than its shortest: more groups pad less, but are smaller


def _rows_of_like_length(is_target: Tensor, model: FastVLMModel) -> list[tuple[Tensor, int]]:
    """Row numbers that are computed together, and how many columns they need: up to the last target.

    Documents and questions about them differ tenfold in length, and half of a padded batch would be padding. Sharded weights are gathered
    by all processes in step, so there the whole batch is one group.
    """
    columns = torch.arange(1, is_target.shape[1] + 1, device=is_target.device)
    lengths = (is_target * columns).amax(1).clamp(min=1)
    order = lengths.argsort()
    if is_sharded(model):
        return [(order, int(lengths.max()))]
    groups: list[list[int]] = []
    for row in order.tolist():
        if not groups or lengths[row] > _LIKE * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    return [(torch.tensor(rows, device=is_target.device), int(lengths[rows[-1]])) for rows in groups]


def with_noise(ids: np.ndarray, is_answer: np.ndarray, share: float) -> np.ndarray:
    """Ids (S,) with about this share of the answers' tokens replaced by others of them; never an end mark. The same ids give the same."""
    said = np.flatnonzero(is_answer[:-1] & is_answer[1:])
    rng = np.random.default_rng(zlib.crc32(ids.tobytes()))
    shown = ids.copy()
    chosen = said[rng.random(len(said)) < share]
    shown[chosen] = ids[rng.permutation(said)[: len(chosen)]]
    return shown


def truncate(inputs: ModelInputs, length: int, image_token_id: int) -> ModelInputs:
    """The first `length` tokens, or fewer, so that no picture is cut: one that does not fit goes as a whole, and what follows it too.

    An answer that is cut loses its end mark with its end, so a model does not learn to stop there.
    """
    ids = inputs.input_ids[0]
    tokens_of = [group.shape[0] * (group.shape[2] // PATCH_SIZE) * (group.shape[3] // PATCH_SIZE) for group in inputs.image_groups]
    starts = np.flatnonzero(ids == image_token_id)  # of all pictures' tokens, in order
    kept, end = 0, length
    for first, tokens in zip(np.cumsum([0, *tokens_of]), tokens_of, strict=False):
        if starts[first + tokens - 1] >= length:  # a picture of several tiles is still one run of tokens
            end = min(length, int(starts[first]))
            break
        kept += 1
    assert inputs.loss_mask is not None
    if not inputs.loss_mask[0, 1:end].any():
        raise BrokenSample(f"nothing to learn in its first {length} tokens (max_length); its pictures have {sum(tokens_of)}")
    segments = None if inputs.segments is None else inputs.segments[:, :end]
    return ModelInputs(inputs.input_ids[:, :end], inputs.image_groups[:kept], inputs.loss_mask[:, :end], inputs.preprocess_s, segments)


def turns_about_one_picture(messages: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Each question of a conversation with its answer and the picture, as if it was the only one.

    An empty list where there is one question, where turns do not alternate, or where the conversation does not begin with its only picture.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    asked, answers = messages[len(system) :: 2], messages[len(system) + 1 :: 2]
    if [message["role"] for message in messages[len(system) :]] != ["user", "assistant"] * len(answers):
        return []
    questions = [[{"type": "text", "text": turn["content"]}] if isinstance(turn["content"], str) else turn["content"] for turn in asked]
    pictures = [part for parts in questions for part in parts if part["type"] == "image"]
    if len(answers) < 2 or len(pictures) != 1 or questions[0][0] is not pictures[0]:
        return []
    questions[0] = questions[0][1:]
    return [[*system, {"role": "user", "content": [pictures[0], *parts]}, answer] for parts, answer in zip(questions, answers, strict=True)]
