"""Your own questions: conversations in LLaVA's JSON or JSONL, such as a part of your data that was not trained on.

Options: `file`; `images`, the folder of the pictures (the file's); `metric` (anls) of every answer. Each answer of a conversation is one
question, asked with the turns before it as they stand in the file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvlm.evaluate.metrics import METRICS
from fastvlm.evaluate.runner import Example
from fastvlm.records import BrokenSample, entry_spans, read_json_record, record_messages

HELP = "your own questions, in LLaVA's JSON: --option file=test.jsonl"
SPLITS = ("all",)
OPTIONS = ("file", "images", "metric")
MAX_NEW_TOKENS = 512


def examples(split: str, options: dict[str, Any]) -> Iterator[Example]:
    """Every answer of every conversation, in the order of the file."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"unknown option {unknown[0]!r}; available: {', '.join(OPTIONS)}")
    if "file" not in options:
        raise ValueError("the task conversations needs a file: --option file=test.jsonl")
    metric = options.get("metric", "anls")
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; available: {', '.join(METRICS)}")
    path = Path(options["file"])
    images = Path(options.get("images", path.parent))
    with path.open("rb") as file:
        for number, (start, end) in enumerate(entry_spans(path)):
            file.seek(start)
            try:
                record = read_json_record(file.read(end - start))
                messages = record_messages(record, images=images)
            except BrokenSample as error:
                raise ValueError(f"{path.name}[{number}]: {error}") from None
            groups = {"kind": record["kind"]} if isinstance(record.get("kind"), str) else {}
            for turn, message in enumerate(messages):
                if message["role"] == "assistant":
                    yield Example(f"{number}-{turn}", messages[:turn], [message["content"]], metric, groups)
