"""Documents made by code: extractive questions by ANLS, the whole text by character error rate.

Options: `documents` a kind (25), `size` of the picture in pixels (512), `questions` a document besides its transcription (4).
"""

import random
from collections.abc import Iterator
from typing import Any

from fastvlm.data import documents
from fastvlm.evaluate.runner import Example

HELP = "receipts, invoices, letters, forms and other printed documents, made by code"
SPLITS = ("val",)
MAX_NEW_TOKENS = 1200
_METRIC = {"transcription": "cer", "yes_no": "exact_match", "count": "exact_match", "chart": "relaxed_accuracy"}


def examples(split: str, options: dict[str, Any]) -> Iterator[Example]:
    """Questions about `documents` pictures of each kind, the same ones every time."""
    size = int(options.get("size", 512))
    for number in range(int(options.get("documents", 25))):
        for kind in documents.default_kinds():
            document = documents.generate(number, split=split, kind=kind, width=size, height=size)
            yield from _questions(document, f"{kind}-{number}", int(options.get("questions", 4)))


def _questions(document: documents.Document, name: str, count: int) -> Iterator[Example]:
    rng = random.Random(name)
    readings = [qa for qa in document.qa if qa.kind == "transcription"]
    others = [qa for qa in document.qa if qa.kind != "transcription"]
    for number, qa in enumerate(readings[:1] + rng.sample(others, min(count, len(others)))):
        content = [{"type": "image", "image": document.image}, {"type": "text", "text": qa.question}]
        groups = {"kind": document.kind, "question": qa.kind}
        yield Example(f"{name}-{number}", [{"role": "user", "content": content}], [qa.answer], _METRIC.get(qa.kind, "anls"), groups)
