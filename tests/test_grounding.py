"""The measure of how much a model looks: exact on models whose loss is known."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastvlm.evaluate.grounding import grounding
from fastvlm.evaluate.runner import Example

VOCAB = 8


class Fake:
    """Answers are one token, the picture's grey value; the model puts `right` on the token that the picture shows it, the rest is even."""

    def __init__(self, share: float):
        self.share = share
        self.processor = SimpleNamespace(training_inputs=self.training_inputs)

    def training_inputs(self, messages):
        shown = messages[0]["content"][0]["image"].getpixel((0, 0))
        answer = int(messages[-1]["content"])
        ids, mask = np.array([[shown, 7, answer]]), np.array([[False, False, True]])
        return SimpleNamespace(input_ids=ids, loss_mask=mask)

    def logits(self, inputs):
        shown = inputs.input_ids[0, 0]
        probabilities = np.full((1, 3, VOCAB), (1 - self.share) / (VOCAB - 1))
        probabilities[:, :, shown] = self.share
        return np.log(probabilities)


def examples(pictures: int, each: int = 2):
    for index in range(pictures):
        image = Image.new("L", (4, 4), index)
        for question in range(each):
            content = [{"type": "image", "image": image}, {"type": "text", "text": "?"}]
            yield Example(f"{index}-{question}", [{"role": "user", "content": content}], [str(index)], "anls")


def test_losses_are_those_of_the_model():
    result = grounding(Fake(0.65), examples(6), progress=False)
    right, wrong = -math.log(0.65), -math.log(0.05)
    assert result["loss_right"] == pytest.approx(right)
    assert result["loss_shuffled"] == pytest.approx(wrong)  # no picture kept its place
    assert result["reduction"] == pytest.approx(1 - right / wrong)
    assert result["interval"] == pytest.approx([1 - right / wrong] * 2)  # all pictures are alike
    assert (result["pictures"], result["examples"], result["tokens"]) == (6, 12, 12)


def test_a_model_that_does_not_look_gains_nothing():
    result = grounding(Fake(1 / VOCAB), examples(5), progress=False)
    assert result["reduction"] == pytest.approx(0)
    assert result["difference_interval"] == pytest.approx([0, 0])


def test_one_picture_cannot_be_shuffled():
    with pytest.raises(ValueError, match="1 pictures; at least 2"):
        grounding(Fake(0.5), examples(1), progress=False)


def test_the_command_on_conversations(tmp_path, capsys):
    """A real model on files; the loss with the right pictures is what training counts on the same samples."""
    import torch

    import fastvlm
    from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
    from fastvlm import cli
    from fastvlm.train.objectives.conversations import Objective
    from test_train import write_colours

    base = write_apple(tmp_path / "base", apple_tensors(random_model(tiny_config())))
    data = write_colours(tmp_path / "data", 4)
    arguments = ["grounding", "--model", str(base), "--dtype", "float32", "--task", "conversations", "--option", f"file={data}", "--json"]
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    vlm = fastvlm.load(base, runtime="torch", dtype="float32")
    objective = Objective(None, vlm.processor, {})
    rows = []
    for index, name in enumerate(("red", "blue", "red", "blue")):
        content = [{"type": "image", "image": tmp_path / "data" / f"{index}.png"}, {"type": "text", "text": "\nColour?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": name}]
        messages[0]["content"][1]["text"] = "Colour?"
        rows.append(objective.prepare(messages))
    batch = objective.collate(rows)
    with torch.inference_mode():
        loss, _ = objective.loss(vlm.runtime.model, batch)
    assert result["loss_right"] == pytest.approx(loss.item() / objective.count(batch), rel=1e-4)
    assert result["pictures"] == 4
