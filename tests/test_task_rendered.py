"""The task of documents drawn by other programs: its pictures are there, readable at nano's size, and its answers stand in them."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from fastvlm.data import heldout
from fastvlm.evaluate.runner import evaluate
from fastvlm.evaluate.tasks import rendered as task


def entries(split: str) -> list[dict]:
    return [json.loads(line) for line in (task.FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("split", task.SPLITS)
def test_the_set_is_whole(split: str):
    made = entries(split)
    kinds = Counter(entry["kind"] for entry in made)
    assert len(made) >= 60 and set(kinds) == set(heldout.KINDS) and len(set(kinds.values())) == 1
    assert {entry["drawn_by"] for entry in made} == {"Chromium", "LibreOffice"}
    for entry in made:
        with Image.open(task.FOLDER / entry["image"]) as picture:
            assert min(picture.size) >= 100
        text = " ".join(entry["text"].split())
        assert 4 <= len(entry["questions"]) <= 7
        for asked in entry["questions"]:
            if asked["kind"] in ("field", "cell", "chart", "line"):
                assert asked["answer"] in text, (entry["id"], asked)
            else:
                assert asked["answer"] in ("Yes", "No") if asked["kind"] == "yes_no" else asked["answer"].isdigit()
    heights = [entry["x_height_px"] for entry in made]
    assert sum(6 <= height <= 12 for height in heights) > 0.9 * len(heights)
    asked = Counter(asked["kind"] for entry in made for asked in entry["questions"])
    assert asked["field"] > 0.5 * sum(asked.values()) and {"yes_no", "line", "cell", "count", "chart"} <= set(asked)


def test_the_splits_share_no_text():
    texts = [entry["text"] for split in task.SPLITS for entry in entries(split)]
    assert len(set(texts)) == len(texts)


def test_the_truth_scores_full_marks(tmp_path: Path):
    truth = {example.id: example.answers[0] for example in task.examples("val", {})}
    answers = iter(truth.values())
    summary = evaluate(lambda batch: [next(answers) for _ in batch], task, tmp_path, split="val", progress=False)
    assert summary["examples"] == len(truth) > 300
    for metric, result in summary["metrics"].items():
        assert result["mean"] == (0 if metric == "cer" else 1), metric


def test_a_missing_folder_says_what_to_do(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="name the folder of the pictures"):
        next(task.examples("val", {"folder": str(tmp_path)}))
