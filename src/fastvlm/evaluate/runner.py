"""Score a model on a task: examples in, one JSON line each out, then a summary with confidence intervals and a page of the worst.

    summary = evaluate(generate_batch, load_plugin("fastvlm.evaluate.tasks", "documents"), Path("out"), split="heldout")

Every answer is written as it comes; a run that is stopped goes on after the last one.
"""

import base64
import html
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastvlm.evaluate.metrics import LOWER_IS_BETTER, METRICS
from fastvlm.image_io import ImageError, load_image

GenerateBatch = Callable[[Sequence[list[dict[str, Any]]]], Sequence[str]]
WORST_SHOWN = 48
THUMBNAIL_PX = 420


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        id: unique within the task and split; a run is resumed by it.
        messages: as for `FastVLM.generate`.
        answers: what is accepted.
        metric: a name in `METRICS`.
        groups: what the summary splits by, such as {"kind": "receipt"}.
    """

    id: str
    messages: list[dict[str, Any]]
    answers: list[str]
    metric: str
    groups: dict[str, str] = field(default_factory=dict)


def evaluate(
    generate_batch: GenerateBatch,
    task: ModuleType,
    out_dir: Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    options: dict[str, Any] | None = None,
    progress: bool = True,
    model: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Answer every example, score it, and write examples.jsonl, summary.json and worst.html into `out_dir`.

    Args:
        generate_batch: message lists -> answers, in order.
        task: a plugin of `fastvlm.evaluate.tasks`.
        out_dir: results of an earlier, stopped run there are kept and gone on from.
        limit: only the first so many examples.
        model: what answers, in plain values; kept in settings.json, so that the results of two models do not end up in one folder.

    Returns:
        The summary: per metric and group its mean, 95 % interval and count; `errors` are examples that could not be answered (a picture
        that cannot be read, a prompt that is too long): they count as wrong, and their rows say why.

    Raises:
        ValueError: no such split, or `out_dir` holds results of another model, task, split or options.
    """
    split = task.SPLITS[0] if split is None else split
    if split not in task.SPLITS:
        raise ValueError(f"unknown split {split!r}; available: {', '.join(task.SPLITS)}")
    out_dir.mkdir(parents=True, exist_ok=True)
    name = task.__name__.rsplit(".", 1)[-1]
    _check_settings(out_dir / "settings.json", {"task": name, "split": split, "options": options or {}, "model": model or {}})
    path = out_dir / "examples.jsonl"
    rows = _read_rows(path)
    done = {row["id"]: row for row in rows}
    worst = _Worst()

    def not_done() -> Iterator[Example]:
        for example in itertools.islice(task.examples(split, options or {}), limit):
            if example.id in done:
                worst.add(done[example.id], example.messages)
            else:
                yield example

    bar = tqdm(desc=f"{split}", unit="question", disable=not progress, initial=len(done), total=limit)
    with path.open("a", encoding="utf-8") as file, bar:
        for batch in _batches(not_done(), batch_size):
            for example, (prediction, error) in zip(batch, _answers(generate_batch, batch), strict=True):
                is_error_rate = example.metric in LOWER_IS_BETTER
                score = METRICS[example.metric](prediction, example.answers) if error is None else float(is_error_rate)
                row = {
                    "id": example.id,
                    "metric": example.metric,
                    "score": score,
                    "prediction": prediction,
                    "answers": example.answers,
                    "question": _question(example.messages),
                    **{f"group.{name}": value for name, value in example.groups.items()},
                    **({} if error is None else {"error": error}),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                rows.append(row)
                worst.add(row, example.messages)
            file.flush()
            bar.update(len(batch))
    if not rows:
        raise ValueError(f"the task {name!r} has no examples in the split {split!r} with these options")
    errors = sum("error" in row for row in rows)
    summary = {"split": split, "examples": len(rows), "errors": errors, "metrics": summarize(rows)}
    (out_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (out_dir / "worst.html").write_text(worst.page(f"{name}, {split}"), encoding="utf-8")
    return summary


def _answers(generate_batch: GenerateBatch, batch: Sequence[Example]) -> Iterator[tuple[str, str | None]]:
    """(answer, None) of each example, or ("", why not): one that cannot be answered does not take its batch along."""
    try:
        yield from ((answer, None) for answer in generate_batch([example.messages for example in batch]))
    except ValueError as error:
        if len(batch) == 1:
            yield "", str(error)
        else:
            for example in batch:
                yield from _answers(generate_batch, [example])


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    text = json.dumps(settings, indent=2, default=str) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path.parent} holds results of another evaluation (see its {path.name}); name another folder, or delete it")
    path.write_text(text, encoding="utf-8")


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metric -> {mean, interval, count, groups: {name: {value: {mean, interval, count}}}}."""
    summary: dict[str, Any] = {}
    for metric in dict.fromkeys(row["metric"] for row in rows):
        of_metric = [row for row in rows if row["metric"] == metric]
        groups: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys(key for row in of_metric for key in row if key.startswith("group.")):
            values = sorted({row[name] for row in of_metric if name in row})
            groups[name.removeprefix("group.")] = {
                value: bootstrap([row["score"] for row in of_metric if row.get(name) == value]) for value in values
            }
        summary[metric] = {**bootstrap([row["score"] for row in of_metric]), "groups": groups}
    return summary


def bootstrap(scores: Sequence[float], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Mean, its 95 % percentile bootstrap interval, and the number of scores."""
    values = np.asarray(scores, float)
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(values.mean()), "interval": [float(low), float(high)], "count": len(values)}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a stopped run; a line that was cut in half by a kill is dropped from the file."""
    if not path.exists():
        return []
    rows, kept = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
        kept.append(line)
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return rows


def _batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _parts(messages: list[dict[str, Any]], kind: str) -> list[Any]:
    contents = [message["content"] for message in messages if message["role"] == "user" and not isinstance(message["content"], str)]
    return [part[kind] for content in contents for part in content if part["type"] == kind]


def _question(messages: list[dict[str, Any]]) -> str:
    return "\n".join(_parts(messages, "text"))


class _Worst:
    """The lowest scores of this run with their pictures, small."""

    def __init__(self) -> None:
        self.items: list[tuple[float, dict[str, Any], list[str]]] = []

    def add(self, row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        badness = row["score"] if row["metric"] in LOWER_IS_BETTER else 1 - row["score"]
        if badness <= 0 or (len(self.items) >= WORST_SHOWN and badness <= self.items[-1][0]):
            return
        self.items.append((badness, row, [_thumbnail(image) for image in _parts(messages, "image")]))
        self.items.sort(key=lambda item: -item[0])
        del self.items[WORST_SHOWN:]

    def page(self, title: str) -> str:
        cards = []
        for _, row, pictures in self.items:
            images = "".join(f'<img src="data:image/jpeg;base64,{picture}">' for picture in pictures)
            got = row["prediction"] if "error" not in row else f"no answer: {row['error']}"
            cells = [("question", row["question"]), ("answer", " | ".join(row["answers"])), ("got", got)]
            text = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in cells)
            cards.append(f"<section>{images}<dl><dt>{row['metric']}</dt><dd>{row['score']:.3f}</dd>{text}</dl></section>")
        return _PAGE.replace("{title}", html.escape(title)).replace("{cards}", "\n".join(cards))


def _thumbnail(image: Any) -> str:
    try:
        picture = load_image(image).copy()
    except ImageError:
        picture = Image.new("RGB", (64, 64), "grey")
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Worst examples: {title}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: #f4f4f2; color: #222 }
section { display: inline-block; vertical-align: top; width: 440px; margin: 0 1rem 1rem 0; padding: 10px }
section { background: #fff; border-radius: 6px }
img { max-width: 100%; display: block }
dt { color: #777; font-size: 12px }
dd { margin: 0 0 6px; white-space: pre-wrap; overflow-wrap: anywhere }
</style>
<h1>Worst examples: {title}</h1>
{cards}
"""
