"""{dataset: FOLDER_OR_ID, name: subset, split: train, columns: {...}}: a data set of Hugging Face's `datasets`.

A folder that `save_to_disk` wrote, or an id on the hub, which is downloaded at its first use (HF_HOME says where to). Rows are read from
the memory-mapped file when they are drawn; pictures are decoded by us, so a broken one is counted and not fatal.
"""

from pathlib import Path
from typing import Any

from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import BLOCK, RECORD_FIELDS, Walk, equal_blocks
from fastvlm.train.sources._records import record_reader

FIELDS = ("name", "split", "images", *RECORD_FIELDS)


def open_source(entry: dict[str, Any], seed: str) -> Walk:
    import datasets

    where, split = entry["dataset"], entry.get("split", "train")
    try:
        if Path(where).expanduser().exists():
            data: Any = datasets.load_from_disk(str(Path(where).expanduser()))
            if isinstance(data, datasets.DatasetDict):
                data = data[split]
        else:
            data = datasets.load_dataset(where, entry.get("name"), split=split)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"data set {where!r}, split {split!r}: {str(error).splitlines()[0][:200] if str(error) else error!r}") from None
    for column, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            data = data.cast_column(column, type(feature)(datasets.Image(decode=False)))
    images = entry.get("images")
    to_messages = record_reader(entry, seed, images=None if images is None else Path(images).expanduser())

    def read(block: int, row: int, position: int) -> Any:
        return to_messages(data[block * BLOCK + row], position)

    return Walk(equal_blocks(len(data)), lambda block, row: f"{where}[{block * BLOCK + row}]", read, seed=seed, label=str(where))
