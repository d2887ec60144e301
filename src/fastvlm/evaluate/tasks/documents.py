"""Documents made by code: extractive questions by ANLS, the whole text by character error rate.

`heldout` is the frozen set (`data/heldout.json`), `val` documents of other fonts, layouts and words, for looking while training.
Options: `size` of the pictures in pixels (512), `questions` a document besides its transcription (4), `transcriptions` a document (1 or 0),
`captions` a document (0 or 1: what its picture shows at a glance, by ANLS); of `val` also `documents` a kind (25) and `kinds`, joined by
commas (those of `heldout`; any other kind can be named, such as boarding_pass).
"""

import random
from collections.abc import Iterator
from typing import Any

from fastvlm.data import documents, heldout
from fastvlm.evaluate.runner import Example
from fastvlm.records import CAPTION_PROMPTS

HELP = "receipts, invoices, letters, forms and other printed documents, made by code"
SPLITS = ("heldout", "val")
OPTIONS = ("size", "questions", "transcriptions", "captions", "documents", "kinds")
MAX_NEW_TOKENS = 1200
_METRIC = {"transcription": "cer", "yes_no": "exact_match", "count": "exact_match", "chart": "relaxed_accuracy"}


def examples(split: str, options: dict[str, Any]) -> Iterator[Example]:
    """The transcription and some questions of each document, the same ones every time."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"unknown option {unknown[0]!r}; available: {', '.join(OPTIONS)}")
    if split == "heldout" and (odd := sorted({"kinds", "documents"} & set(options))):
        raise ValueError(f"option {odd[0]!r} belongs to the split val: the held-out documents are frozen")
    size, questions = int(options.get("size", 512)), int(options.get("questions", 4))
    transcriptions, captions = int(options.get("transcriptions", 1)), int(options.get("captions", 0))
    if split == "heldout":
        chosen = heldout.documents_of(size)
    else:
        per_kind, kinds = range(int(options.get("documents", 25))), _kinds(options)
        chosen = (documents.generate(n, split=split, kind=kind, width=size, height=size) for n in per_kind for kind in kinds)
    for number, document in enumerate(chosen):
        yield from _questions(document, f"{document.kind}-{number}", questions, transcriptions, captions)


def _kinds(options: dict[str, Any]) -> list[str]:
    named = options.get("kinds")
    kinds = list(heldout.KINDS) if named is None else [kind.strip() for kind in str(named).split(",")]
    if unknown := sorted(set(kinds) - set(documents.kinds())):
        raise ValueError(f"unknown kinds {', '.join(unknown)}; available: {', '.join(documents.kinds())}")
    return kinds


def _questions(document: documents.Document, name: str, count: int, transcriptions: int, captions: int) -> Iterator[Example]:
    rng = random.Random(name)
    readings = [qa for qa in document.qa if qa.kind == "transcription"]
    others = [qa for qa in document.qa if qa.kind != "transcription"]
    chosen = readings[:transcriptions] + rng.sample(others, min(count, len(others)))
    asked = [(qa.question, qa.answer, qa.kind) for qa in chosen] + [(CAPTION_PROMPTS[0], document.caption, "caption")] * captions
    for number, (question, answer, kind) in enumerate(asked):
        content = [{"type": "image", "image": document.image}, {"type": "text", "text": question}]
        groups = {"kind": document.kind, "question": kind}
        yield Example(f"{name}-{number}", [{"role": "user", "content": content}], [answer], _METRIC.get(kind, "anls"), groups)
