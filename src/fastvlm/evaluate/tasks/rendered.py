"""Documents drawn by other programs (Chromium, LibreOffice): extractive questions by ANLS, the whole text by character error rate.

`val` may be looked at while training, `test` is for the end. The pictures are in the repository's `benchmarks/rendered`, which
`benchmarks/make_rendered.py` draws; they are not part of the package.
Options: `folder` with `val.jsonl` and `test.jsonl` (the repository's), `transcriptions` 0 to leave the whole texts out (1).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvlm.evaluate.runner import Example

HELP = "receipts, letters, forms and others drawn by Chromium and LibreOffice"
SPLITS = ("val", "test")
MAX_NEW_TOKENS = 1200
FOLDER = Path(__file__).parents[4] / "benchmarks" / "rendered"
_METRIC = {"transcription": "cer", "yes_no": "exact_match", "count": "exact_match", "chart": "relaxed_accuracy"}


def examples(split: str, options: dict[str, Any]) -> Iterator[Example]:
    """The transcription and the questions of each picture.

    Raises:
        FileNotFoundError: the pictures are not there.
    """
    folder = Path(options.get("folder", FOLDER))
    path = folder / f"{split}.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: name the folder of the pictures by `folder`, or work in a clone of the repository")
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        questions = entry["questions"]
        if int(options.get("transcriptions", 1)):
            questions = [{"question": "Transcribe the text.", "answer": entry["text"], "kind": "transcription"}, *questions]
        for number, asked in enumerate(questions):
            content = [{"type": "image", "image": str(folder / entry["image"])}, {"type": "text", "text": asked["question"]}]
            groups = {"kind": entry["kind"], "question": asked["kind"], "drawn_by": entry["drawn_by"]}
            metric = _METRIC.get(asked["kind"], "anls")
            yield Example(f"{entry['id']}-{number}", [{"role": "user", "content": content}], [asked["answer"]], metric, groups)
