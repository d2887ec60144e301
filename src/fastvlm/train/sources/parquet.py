"""{parquet: "folder/*.parquet", columns: {...}, prompts: captions}: parquet files, as Hugging Face stores data sets, pictures as bytes.

Read a row group at a time; `columns` and `prompts` as in `_records`. Pictures that are paths are looked for in `images`.
"""

import functools
from pathlib import Path
from typing import Any

from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import RECORD_FIELDS, Walk, files_of
from fastvlm.train.sources._records import record_reader

FIELDS = ("images", *RECORD_FIELDS)


@functools.lru_cache(maxsize=2)
def _row_group(path: Path, number: int) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(number)


def open_source(entry: dict[str, Any], seed: str) -> Walk:
    from pyarrow import ArrowInvalid, parquet

    groups: list[tuple[Path, int, int, int]] = []  # file, row group, its first row, its rows
    for path in files_of(entry["parquet"], "parquet"):
        try:
            metadata = parquet.read_metadata(path)
        except ArrowInvalid as error:
            raise RecipeError(f"{path} is no parquet file: {str(error)[:100]}") from None
        first = 0
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            groups.append((path, number, first, rows))
            first += rows
    images = entry.get("images")
    to_messages = record_reader(entry, seed, images=None if images is None else Path(images).expanduser())

    def name(block: int, row: int) -> str:
        path, _, first, _ = groups[block]
        return f"{path.name}[{first + row}]"

    def read(block: int, row: int, position: int) -> Any:
        path, number, _, _ = groups[block]
        (record,) = _row_group(path, number).slice(row, 1).to_pylist()
        return to_messages(record, position)

    return Walk([rows for *_, rows in groups], name, read, seed=seed, label=str(entry["parquet"]))
