"""{llava: conversations.json, images: folder}: LLaVA's conversations, one JSON list or one object a line (.jsonl).

Several files, each with its own folder, are several entries of `data`. The file is scanned once for where each entry begins (a gigabyte
takes some seconds); an entry is read and parsed when it is drawn.
"""

import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import RECORD_FIELDS, Walk, equal_blocks, read_json_record
from fastvlm.train.sources._records import record_reader

FIELDS = ("images", *RECORD_FIELDS)
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_LINE = re.compile(rb"[^\n]*\S[^\n]*")


def open_source(entry: dict[str, Any], seed: str) -> Walk:
    path = Path(entry["llava"]).expanduser()
    to_messages = record_reader(entry, seed, images=Path(entry.get("images", path.parent)).expanduser())
    spans = entry_spans(path)

    def read(block: int, row: int, position: int) -> Any:
        start, end = spans[block * 4096 + row]
        with path.open("rb") as file:
            file.seek(start)
            return to_messages(read_json_record(file.read(end - start)), position)

    return Walk(equal_blocks(len(spans)), lambda block, row: f"{path.name}[{block * 4096 + row}]", read, seed=seed, label=str(path))


def entry_spans(path: Path) -> np.ndarray:
    """(entries, 2) int64: first byte and end of each entry.

    Raises:
        RecipeError: no such file, or it is no list.
    """
    if not path.is_file():
        raise RecipeError(f"there is no file {path}")
    if not path.stat().st_size:
        raise RecipeError(f"{path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if path.suffix == ".jsonl":
            spans = [match.span() for match in _LINE.finditer(text)]
        else:
            spans = _elements(text, path)
    if not spans:
        raise RecipeError(f"{path}: expected a list of entries with `conversations`")
    return np.array(spans, np.int64)


def _elements(text: mmap.mmap, path: Path) -> list[tuple[int, int]]:
    """Spans of the objects in a JSON list, which may be larger than memory."""
    if not re.match(rb"(?:\xef\xbb\xbf)?\s*\[", text):
        raise RecipeError(f"{path}: expected a list of entries with `conversations`")
    spans, depth, start = [], 0, 0
    for match in _STRING_OR_BRACKET.finditer(text):
        symbol = text[match.start()]
        if symbol in b"{[":
            if depth == 1:
                start = match.start()
            depth += 1
        elif symbol in b"}]":
            depth -= 1
            if depth == 1:
                spans.append((start, match.end()))
    if depth:
        raise RecipeError(f"{path}: not JSON: the list does not end, was the file cut?")
    return spans
