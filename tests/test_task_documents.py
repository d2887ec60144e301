"""The documents task: the same questions every time, scored 1 when answered as the generator says."""

from pathlib import Path

from fastvlm.evaluate.runner import evaluate
from fastvlm.evaluate.tasks import documents as task


def test_the_truth_scores_full_marks(tmp_path: Path):
    options = {"documents": "1"}
    truth = {example.id: example.answers[0] for example in task.examples("val", options)}
    assert truth == {example.id: example.answers[0] for example in task.examples("val", options)}
    answers = iter(truth.values())
    summary = evaluate(lambda batch: [next(answers) for _ in batch], task, tmp_path, split="val", options=options, progress=False)
    assert summary["examples"] == len(truth) > 0
    for metric, result in summary["metrics"].items():
        assert result["mean"] == (0 if metric == "cer" else 1), metric
