"""Where a checkpoint's files lie: a folder, or a zip that is read in place.

    source = open_source(Path("llava-fastvithd_0.5b_stage3.zip"))
    source.read_json("config.json")
    store = TensorStore(source)                     # every tensor of one file or of all shards
    store.read("lm_head.weight")

Nothing is ever written beside the source. What must be a folder (the tokenizer's small files) or cannot be read in place (weights that a
zip has deflated) is unpacked into a temporary folder or into `cache_folder()`.
"""

import json
import os
import re
import shutil
import struct
import sys
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fastvlm.checkpoint.errors import CheckpointError, gigabytes, listed, nearest
from fastvlm.checkpoint.safetensors_file import TORCH_NAMES, SafetensorsFile, TensorInfo

try:
    from lzma import LZMAError as _LZMAError
except ImportError:  # a Python built without it; its zips are then refused by zipfile itself
    _LZMAError = zlib.error  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
MAX_JSON_BYTES = 64_000_000  # a Qwen2 tokenizer.json is 11 MB, its index of shards 0.1 MB
# Everything that the tokenizer, the processor and the licence need; weights and code stay where they are.
SMALL_SUFFIXES = (".json", ".txt", ".jinja", ".md", ".model")
RANDOM_WEIGHTS_FILE = "RANDOM_WEIGHTS"  # says that a checkpoint was made to measure speed; what is in it does not matter
_LICENSE_NAME = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|ACKNOWLEDG)", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def cache_folder() -> Path:
    """Where this library keeps what it fetched or converted: $FASTVLM_CACHE, else fastvlm in the platform's usual folder for caches."""
    if root := os.environ.get("FASTVLM_CACHE"):
        return Path(root).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/fastvlm").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "fastvlm" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastvlm"


def check_disk_space(folder: Path, needed_bytes: int, what: str) -> None:
    """`CheckpointError` with the numbers when the disk under `folder` cannot take `needed_bytes`."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise CheckpointError(
            f"{what} needs {gigabytes(needed_bytes)} but only {gigabytes(free)} are free on the disk of {existing}; "
            "make room or choose another folder"
        )


class Source:
    """The files of one checkpoint, by their names in its top folder."""

    label: str

    def names(self) -> list[str]:
        raise NotImplementedError

    def read_bytes(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        raise NotImplementedError

    def open_tensors(self, name: str) -> SafetensorsFile:
        raise NotImplementedError

    def folder(self) -> Path:
        """A folder with the small files: tokenizer, processor, licence. Only to be read."""
        raise NotImplementedError

    def folders(self) -> list[str]:
        """Names of the folders in the top folder, where the source can tell."""
        return []

    def content_files(self) -> list[Path]:
        """The files whose bytes decide what the model answers."""
        raise NotImplementedError

    def has(self, name: str) -> bool:
        return name in self.names()

    def license_files(self) -> list[str]:
        """Names of the licence and notice files, the weights' own first."""
        names = [name for name in self.names() if _LICENSE_NAME.match(name) and not name.endswith((".safetensors", ".json"))]
        return sorted(names, key=lambda name: ("MODEL" not in name.upper(), name))

    def read_json(self, name: str) -> dict[str, Any]:
        """An object from a JSON file. Anything else is a `CheckpointError`."""
        where = f"{self.label}/{name}"
        if not self.has(name):
            raise CheckpointError(f"{self.label} has no {name}{nearest(name, self.names())}")
        try:
            values = json.loads(self.read_bytes(name).decode("utf-8-sig"))
        except RecursionError:
            raise CheckpointError(f"{where} is nested too deeply") from None
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{where} is no valid JSON: {str(error).splitlines()[0][:200]}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{where} holds a {type(values).__name__}; expected an object")
        return values


class FolderSource(Source):
    def __init__(self, path: Path):
        self.path, self.label = path, str(path)
        try:
            self._names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
            self._folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        except OSError as error:
            raise CheckpointError(f"cannot read the folder {path}: {error.strerror or error}") from error

    def names(self) -> list[str]:
        return self._names

    def folders(self) -> list[str]:
        return self._folders

    def read_bytes(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        path = self.path / name
        try:
            size = path.stat().st_size
            if size > max_bytes:
                raise CheckpointError(f"{path} has {gigabytes(size)}; such a file is at most {gigabytes(max_bytes)}")
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error

    def open_tensors(self, name: str) -> SafetensorsFile:
        return SafetensorsFile(self.path / name)

    def folder(self) -> Path:
        return self.path

    def content_files(self) -> list[Path]:
        return [self.path / name for name in self._names if name.endswith((".safetensors", *SMALL_SUFFIXES)) or name == RANDOM_WEIGHTS_FILE]


class SingleFileSource(FolderSource):
    """One safetensors file, whatever else lies beside it."""

    def __init__(self, path: Path):
        super().__init__(path.parent)
        self.label = str(path)
        self._names = [path.name]


class ZipSource(Source):
    """A zip as Apple publishes it: one folder inside, or the files at the top."""

    def __init__(self, path: Path):
        self.path, self.label = path, str(path)
        try:
            self._zip = zipfile.ZipFile(path)
            members = [info for info in self._zip.infolist() if _is_file(info.filename)]
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path} is damaged or no zip file ({reason}); download it again") from error
        roots = {str(PurePosixPath(info.filename).parent) for info in members if PurePosixPath(info.filename).name == "config.json"}
        if not roots:
            raise CheckpointError(f"{path} holds no config.json; it has {listed(info.filename for info in members) or 'no files'}")
        depth = min(len(PurePosixPath(root).parts) for root in roots)
        roots = {root for root in roots if len(PurePosixPath(root).parts) == depth}
        if len(roots) > 1:
            raise CheckpointError(f"{path} holds several checkpoints ({listed(sorted(roots))}); unpack it and name one of the folders")
        root = PurePosixPath(roots.pop())
        inside = [info for info in members if PurePosixPath(info.filename).parent == root]
        self._members = {PurePosixPath(info.filename).name: info for info in inside}
        if len(self._members) != len(inside):
            raise CheckpointError(f"{path} holds the same file twice; it is damaged, download it again")
        self._folder: Path | None = None

    def names(self) -> list[str]:
        return sorted(self._members)

    def read_bytes(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        info = self._members[name]
        where = f"{self.label}/{name}"
        if info.file_size > max_bytes:
            raise CheckpointError(f"{where} has {gigabytes(info.file_size)}; such a file is at most {gigabytes(max_bytes)}")
        try:
            with self._zip.open(info) as file:
                return file.read(max_bytes + 1)[: info.file_size]
        except _ZIP_ERRORS as error:
            raise CheckpointError(f"{where} cannot be unpacked ({_zip_reason(error)}); download the zip again") from error

    def open_tensors(self, name: str) -> SafetensorsFile:
        info = self._members[name]
        label = f"{self.label}/{name}"
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 0x1:
            return SafetensorsFile(self.path, self._data_offset(info), info.file_size, label)
        return SafetensorsFile(self._unpack(info), label=label)

    def folder(self) -> Path:
        if self._folder is None:
            holder = tempfile.TemporaryDirectory(prefix="fastvlm-")
            folder = Path(holder.name)
            for name, info in self._members.items():
                if info.file_size <= MAX_JSON_BYTES and (name.endswith(SMALL_SUFFIXES) or _LICENSE_NAME.match(name)):
                    (folder / name).write_bytes(self.read_bytes(name))
            self._folder = folder
            weakref.finalize(self, holder.cleanup)
        return self._folder

    def content_files(self) -> list[Path]:
        return [self.path]

    def total_bytes(self) -> int:
        """Size of all files when they are unpacked."""
        return sum(info.file_size for info in self._members.values())

    def unpack_all(self, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Write every file into `folder`, comparing each with its checksum."""
        done, total = 0, self.total_bytes()
        for name, info in self._members.items():
            before = done

            def report(count: int, before: int = before) -> None:
                if on_progress is not None:
                    on_progress(before + count, total)

            done = before + self._write_member(info, folder / name, report)

    def _write_member(self, info: zipfile.ZipInfo, target: Path, on_bytes: Callable[[int], object]) -> int:
        where, done = f"{self.label}/{PurePosixPath(info.filename).name}", 0
        try:
            with self._zip.open(info) as packed, target.open("wb") as out:
                while chunk := packed.read(1 << 22):  # at its end zipfile compares the checksum
                    done += len(chunk)
                    if done > info.file_size:
                        raise CheckpointError(f"{where} is longer than the zip says; download the zip again")
                    out.write(chunk)
                    on_bytes(done)
        except CheckpointError:
            raise
        except _ZIP_ERRORS as error:
            raise CheckpointError(f"{where} cannot be unpacked ({_zip_reason(error)}); download the zip again") from error
        if done < info.file_size:
            raise CheckpointError(f"{where} is truncated; download the zip again")
        return done

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin: behind its local header, whose length is only written there."""
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise CheckpointError(f"{self.label} is damaged at {info.filename}; download it again")
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
        return int(info.header_offset) + 30 + name_bytes + extra_bytes

    def _unpack(self, info: zipfile.ZipInfo) -> Path:
        """A compressed member as a file in the cache. A second call, or process, finds it there."""
        stat = self.path.stat()
        key = f"{self.path.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}-{info.CRC:08x}"
        name = PurePosixPath(info.filename).name
        target = cache_folder() / "unpacked" / key / name
        if target.is_file() and target.stat().st_size == info.file_size:
            return target
        target = self._writable(target)
        check_disk_space(target.parent, info.file_size, f"unpacking {name} of {self.label}")
        temporary = target.with_name(f"{name}.{os.getpid()}.part")
        try:
            self._write_member(info, temporary, lambda count: None)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def _writable(self, target: Path) -> Path:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.access(target.parent, os.W_OK):
                return target
        except OSError:
            pass
        holder = tempfile.TemporaryDirectory(prefix="fastvlm-")  # no cache to write to: unpacked for this process only
        weakref.finalize(self, holder.cleanup)
        return Path(holder.name) / target.name


# what zipfile lets through from a damaged member: zlib's own error, RuntimeError for "password required"
_ZIP_ERRORS = (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError, zlib.error, _LZMAError)


def _is_file(name: str) -> bool:
    """Not a folder, nor what macOS adds beside each file, nor the empty name of a damaged directory."""
    return bool(name) and not name.endswith("/") and not name.startswith("__MACOSX/")


def _zip_reason(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def open_source(path: Path) -> Source:
    if path.is_dir():
        return FolderSource(path)
    if path.suffix.lower() == ".zip" or (path.is_file() and zipfile.is_zipfile(path)):
        return ZipSource(path)
    if path.suffix.lower() == ".gguf":
        raise CheckpointError(f"{path} is a GGUF file: a language model without a vision tower; read it with fastvlm.checkpoint.gguf")
    raise CheckpointError(f"{path} is neither a folder nor a zip of a checkpoint; name the folder that holds its config.json")


class TensorStore:
    """All tensors of a source under their stored names, each in exactly one file."""

    def __init__(self, source: Source):
        self.source = source
        self.files: dict[str, SafetensorsFile] = {}
        self._file_of: dict[str, SafetensorsFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        weight_map = self._weight_map()
        for file_name in self._file_names(weight_map):
            file = source.open_tensors(file_name)
            self.files[file_name] = file
            for name, info in file.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(f"{source.label}: tensor {name!r} is in two files, {self._file_of[name].label} and {file.label}")
                self.tensors[name], self._file_of[name] = info, file
        if weight_map is not None:
            self._compare_with_index(weight_map)
        for name, info in self.tensors.items():
            if info.dtype not in TORCH_NAMES or (info.dtype == "I64" and not name.endswith("num_batches_tracked")):
                raise CheckpointError(
                    f"{self._file_of[name].label}: tensor {name!r} is stored as {info.dtype}; supported are BF16, F16 and F32"
                    + (
                        " (quantised weights are made by `fastvlm`'s own bundles, not read from checkpoints)"
                        if info.dtype[0] in "UI"
                        else ""
                    )
                )

    def read(self, name: str) -> "torch.Tensor":
        return self._file_of[name].read(name)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._file_of[name].chunks(name)

    def same_bytes(self, name: str, other: str) -> bool:
        """Whether two tensors of one dtype and shape hold the same values, compared without loading either."""
        first, second = self.tensors[name], self.tensors[other]
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        return all(a == b for a, b in zip(self.chunks(name), self.chunks(other), strict=True))

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def _weight_map(self) -> dict[str, str] | None:
        if not self.source.has(INDEX_FILE):
            return None
        weight_map = self.source.read_json(INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(value, str) for value in weight_map.values()):
            raise CheckpointError(f"{self.source.label}/{INDEX_FILE} has no weight_map from tensor to file; download it again")
        return weight_map

    def _file_names(self, weight_map: dict[str, str] | None) -> list[str]:
        present = [name for name in self.source.names() if name.endswith(".safetensors")]
        if weight_map is not None:
            wanted = sorted(set(weight_map.values()))
            if missing := [name for name in wanted if name not in present]:
                raise CheckpointError(
                    f"{self.source.label} lacks {listed(missing)} of {len(wanted)} weight files that {INDEX_FILE} names; download them"
                )
            return wanted
        if WEIGHTS_FILE in present:
            return [WEIGHTS_FILE]
        shards = {name: match for name in present if (match := re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.safetensors", name))}
        if shards:
            if len({(match[1], match[3]) for match in shards.values()}) > 1:
                raise CheckpointError(f"{self.source.label} has shards of different sets and no {INDEX_FILE}: {listed(shards)}")
            total = int(next(iter(shards.values()))[3])
            if len(shards) != total:
                raise CheckpointError(f"{self.source.label} has {len(shards)} of {total} weight files; download the missing ones")
            return sorted(shards)
        if len(present) == 1:
            return present
        if present:
            raise CheckpointError(f"{self.source.label} has several weight files and no {INDEX_FILE}: {listed(present)}")
        raise CheckpointError(f"{self.source.label} has no *.safetensors" + self._why_no_weights())

    def _why_no_weights(self) -> str:
        pickles = [name for name in self.source.names() if name.endswith(_PICKLES)]
        if pickles:
            return (
                f", only {listed(pickles)}: PyTorch pickles are not read, because unpickling can run code that a file brings along. "
                "Convert one that you trust: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
            )
        if any(name.endswith(".onnx") for name in self.source.names()):
            return "; ONNX exports hold no weights that this can read. Use the checkpoint that the export was made from"
        return "; pass the folder or zip of a checkpoint such as one that `fastvlm pull 0.5b` makes"

    def _compare_with_index(self, weight_map: dict[str, str]) -> None:
        for name, file_name in weight_map.items():
            if name not in self.files[file_name].tensors:
                raise CheckpointError(f"{self.source.label}/{file_name} lacks {name!r}, which {INDEX_FILE} puts there; download it again")
        if extra := sorted(set(self.tensors) - set(weight_map)):
            raise CheckpointError(f"{self.source.label}: {INDEX_FILE} does not name {listed(extra)}, which its files hold")
