"""{webdataset: "shards/*.tar", columns: {...}, prompts: captions}: WebDataset shards: tar files, samples one after another.

A sample is the files with one name but for the ending: a picture (.jpg, .png, .webp, ...; several as .1.jpg, .2.jpg) and its text, either
`.json` (a record, see `_records`) or `.txt` (a caption). Shards are scanned once for where the files lie, and never unpacked.
"""

import tarfile
from pathlib import Path
from typing import Any

from fastvlm.records import BrokenSample, read_json_record
from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import RECORD_FIELDS, Walk, files_of
from fastvlm.train.sources._records import record_reader

FIELDS = RECORD_FIELDS
PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
_Files = dict[str, tuple[int, int]]  # ending -> first byte, length


def open_source(entry: dict[str, Any], seed: str) -> Walk:
    shards = [(path, shard_samples(path)) for path in files_of(entry["webdataset"], "tar")]
    to_messages = record_reader(entry, seed)

    def read(block: int, row: int, position: int) -> Any:
        path, samples = shards[block]
        with path.open("rb") as file:
            return to_messages(_record(file, samples[row][1]), position)

    def name(block: int, row: int) -> str:
        path, samples = shards[block]
        return f"{path.name}/{samples[row][0]}"

    return Walk([len(samples) for _, samples in shards], name, read, seed=seed, label=str(entry["webdataset"]))


def shard_samples(path: Path) -> list[tuple[str, _Files]]:
    """(key, files) of each sample of a shard, in the order in which they stand."""
    samples: list[tuple[str, _Files]] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps them all; a shard may have a million
                folder, _, base = member.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if not member.isfile() or not dot or not stem:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if not samples or samples[-1][0] != key:
                    samples.append((key, {}))
                samples[-1][1][ending.lower()] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise RecipeError(f"{path} is no uncompressed tar file: {str(error)[:100]}; unpack a compressed one first") from None
    return samples


def _record(file: Any, files: _Files) -> dict[str, Any]:
    def content(ending: str) -> bytes:
        start, length = files[ending]
        file.seek(start)
        data: bytes = file.read(length)
        if len(data) < length:
            raise BrokenSample(f"the shard ends within .{ending}")
        return data

    record: dict[str, Any] = {}
    if "json" in files:
        record = read_json_record(content("json"))
    if "txt" in files and not any(record.get(name) for name in ("conversations", "messages", "texts", "question", "caption")):
        record["caption"] = content("txt").decode("utf-8", errors="replace")
    pictures = sorted(ending for ending in files if ending.rpartition(".")[2] in PICTURES)
    if pictures:
        record = {**record, "image": [content(ending) for ending in pictures]}
        record.pop("images", None)
    return record
