"""{llava: conversations.json, images: folder}: LLaVA's conversations, one JSON list or one object a line (.jsonl).

Several files, each with its own folder, are several entries of `data`. The file is scanned once for where each entry begins (a gigabyte
takes some seconds); an entry is read and parsed when it is drawn.
"""

from pathlib import Path
from typing import Any

from fastvlm.records import RecordError, entry_spans, read_json_record
from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import BLOCK, RECORD_FIELDS, Walk, equal_blocks
from fastvlm.train.sources._records import record_reader

FIELDS = ("images", *RECORD_FIELDS)


def open_source(entry: dict[str, Any], seed: str) -> Walk:
    path = Path(entry["llava"]).expanduser()
    to_messages = record_reader(entry, seed, images=Path(entry.get("images", path.parent)).expanduser())
    try:
        spans = entry_spans(path)
    except RecordError as error:
        raise RecipeError(str(error)) from None

    def read(block: int, row: int, position: int) -> Any:
        start, end = spans[block * BLOCK + row]
        with path.open("rb") as file:
            file.seek(start)
            return to_messages(read_json_record(file.read(end - start)), position)

    return Walk(equal_blocks(len(spans)), lambda block, row: f"{path.name}[{block * BLOCK + row}]", read, seed=seed, label=str(path))
