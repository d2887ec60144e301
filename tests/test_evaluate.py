"""The evaluation runner on a task made here: scores, resuming, intervals, the page."""

import json
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fastvlm.evaluate.runner import Example, bootstrap, evaluate, summarize


@pytest.fixture
def task() -> ModuleType:
    module = ModuleType("tasks.letters")
    module.SPLITS = ("test",)

    def examples(split, options):
        for index, letter in enumerate("abcdef"):
            content = [
                {"type": "image", "image": Image.new("RGB", (8, 8))},
                {"type": "text", "text": f"Which letter? <{letter}>"},
            ]
            yield Example(
                letter, [{"role": "user", "content": content}], [letter], "exact_match", {"kind": "vowel" if index in (0, 4) else "other"}
            )

    module.examples = examples
    return module


def answer_all(batch):
    return ["a"] * len(batch)


def test_scores_groups_and_page(task, tmp_path):
    summary = evaluate(answer_all, task, tmp_path, batch_size=4, progress=False)
    metric = summary["metrics"]["exact_match"]
    assert metric["mean"] == pytest.approx(1 / 6)
    assert metric["groups"]["kind"]["vowel"]["mean"] == 0.5
    assert metric["groups"]["kind"]["other"]["count"] == 4
    page = (tmp_path / "worst.html").read_text()
    assert page.count("<section>") == 5
    assert "&lt;b&gt;" in page


def test_a_stopped_run_goes_on(task, tmp_path):
    asked = []

    def fails_in_the_second_batch(batch):
        if asked:
            raise KeyboardInterrupt
        asked.extend(batch)
        return ["a"] * len(batch)

    with pytest.raises(KeyboardInterrupt):
        evaluate(fails_in_the_second_batch, task, tmp_path, batch_size=2, progress=False)
    with (tmp_path / "examples.jsonl").open("a") as file:
        file.write('{"id": "c", "sc')  # a kill in the middle of a line
    summary = evaluate(answer_all, task, tmp_path, batch_size=2, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list("abcdef")
    assert summary["examples"] == 6
    assert (tmp_path / "worst.html").read_text().count("<section>") == 5  # those of before the stop too


def test_an_example_that_cannot_be_answered_counts_as_wrong(task, tmp_path):
    def refuses_c(batch):
        for messages in batch:
            if "<c>" in messages[0]["content"][1]["text"]:
                raise ValueError("the prompt is too long")
        return ["a"] * len(batch)

    summary = evaluate(refuses_c, task, tmp_path, batch_size=4, progress=False)
    assert (summary["examples"], summary["errors"]) == (6, 1)
    rows = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert [row.get("error") for row in rows] == [None, None, "the prompt is too long", None, None, None]
    assert summary["metrics"]["exact_match"]["mean"] == pytest.approx(1 / 6)
    assert "no answer: the prompt is too long" in (tmp_path / "worst.html").read_text()


def test_results_of_two_models_do_not_mix(task, tmp_path):
    evaluate(answer_all, task, tmp_path, progress=False, limit=2, model={"model": "one"})
    with pytest.raises(ValueError, match="holds results of another evaluation"):
        evaluate(answer_all, task, tmp_path, progress=False, model={"model": "two"})
    assert evaluate(answer_all, task, tmp_path, progress=False, model={"model": "one"})["examples"] == 6


def test_unknown_split_is_named(task, tmp_path):
    with pytest.raises(ValueError, match="unknown split 'train'; available: test"):
        evaluate(answer_all, task, tmp_path, split="train")


def test_bootstrap_interval_covers_as_theory_says():
    """For the mean of 400 normal scores the interval is close to mean +- 1.96 standard errors."""
    scores = np.random.default_rng(1).normal(0.5, 0.1, 400)
    result = bootstrap(scores)
    half = 1.96 * scores.std() / 20
    assert result["mean"] == pytest.approx(scores.mean())
    assert result["interval"] == pytest.approx([scores.mean() - half, scores.mean() + half], abs=0.1 * half)


def test_summarize_keeps_metrics_apart():
    rows = [{"metric": "cer", "score": 0.5}, {"metric": "anls", "score": 1.0}, {"metric": "cer", "score": 0.0}]
    assert {name: value["mean"] for name, value in summarize(rows).items()} == {"cer": 0.25, "anls": 1.0}
