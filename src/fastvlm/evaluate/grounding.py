"""Does a model look? Its loss on answers when it sees the right picture, against its loss when it sees another one.

    result = grounding(vlm, examples)
    result["reduction"], result["interval"]        # 0.31 [0.28, 0.34]: the right picture takes 31 % of the loss away

A model that answers from the words alone has the same loss either way. Both losses are per token of the answers, so the measure needs no
generation and shows what a projector has learnt long before answers are right.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from fastvlm.evaluate.runner import Example

RESAMPLES = 5000


def grounding(vlm: Any, examples: Iterable[Example], *, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Score every example with its own pictures and with those of another one.

    Args:
        vlm: a `FastVLM` on the torch runtime.
        examples: with an answer, the first of which is taken; those without a picture are left out. Examples that show the same picture
            belong together: they are given the same other picture, and the interval is over pictures.
        seed: of the order in which pictures are exchanged, and of the bootstrap.

    Returns:
        loss_right and loss_shuffled (nats a token), reduction = 1 - right / shuffled with its 95 % `interval`, `difference` in nats with
        its `difference_interval`, and how many `pictures`, `examples` and `tokens` that is from.

    Raises:
        ValueError: fewer than two pictures.
    """
    groups = _by_picture(examples)
    if len(groups) < 2:
        raise ValueError(f"{len(groups)} pictures; at least 2 are needed to exchange them")
    order = np.random.default_rng(seed).permutation(len(groups))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # one cycle through all: no picture keeps its place
    sums = np.zeros((len(groups), 3))  # loss with the right pictures, with others, tokens
    count = 0
    for index in tqdm(range(len(groups)), desc="pictures", disable=not progress):
        wrong = _images(groups[int(other[index])][0])
        for example in groups[index]:
            right_loss, tokens = _loss(vlm, example, _images(example))
            wrong_loss, _ = _loss(vlm, example, wrong)
            sums[index] += right_loss, wrong_loss, tokens
            count += 1
    right, shuffled = sums[:, 0].sum() / sums[:, 2].sum(), sums[:, 1].sum() / sums[:, 2].sum()
    rng = np.random.default_rng(seed)
    drawn = sums[rng.integers(len(sums), size=(RESAMPLES, len(sums)))].sum(1)  # (resamples, 3)
    return {
        "loss_right": right,
        "loss_shuffled": shuffled,
        "reduction": 1 - right / shuffled,
        "interval": np.percentile(1 - drawn[:, 0] / drawn[:, 1], [2.5, 97.5]).tolist(),
        "difference": shuffled - right,
        "difference_interval": np.percentile((drawn[:, 1] - drawn[:, 0]) / drawn[:, 2], [2.5, 97.5]).tolist(),
        "pictures": len(groups),
        "examples": count,
        "tokens": int(sums[:, 2].sum()),
    }


def _by_picture(examples: Iterable[Example]) -> list[list[Example]]:
    """Examples in a row that show the very same pictures, together."""
    groups: list[list[Example]] = []
    for example in examples:
        images = _images(example)
        if not images:
            continue
        last = _images(groups[-1][0]) if groups else []
        if len(last) == len(images) and all(one is another for one, another in zip(last, images, strict=True)):
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def _images(example: Example) -> list[Any]:
    contents = [message["content"] for message in example.messages if not isinstance(message["content"], str)]
    return [part["image"] for content in contents for part in content if part["type"] == "image"]


def _loss(vlm: Any, example: Example, images: Sequence[Any]) -> tuple[float, int]:
    """Summed cross-entropy of the answer's tokens, and their number. With fewer pictures than places, pictures repeat."""
    places = 0
    messages = []
    for message in example.messages:
        content = message["content"]
        if not isinstance(content, str):
            parts = []
            for part in content:
                if part["type"] == "image":
                    part, places = {"type": "image", "image": images[places % len(images)]}, places + 1
                parts.append(part)
            content = parts
        messages.append({"role": message["role"], "content": content})
    inputs = vlm.processor.training_inputs([*messages, {"role": "assistant", "content": example.answers[0]}])
    logits = vlm.logits(inputs)[0, :-1].astype(np.float64)
    is_target = inputs.loss_mask[0, 1:]
    targets, logits = inputs.input_ids[0, 1:][is_target], logits[is_target]
    highest = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - highest).sum(-1)) + highest[:, 0] - logits[np.arange(len(targets)), targets]
    return float(total.sum()), len(targets)
