"""safetensors files: a header that is checked before anything is believed, and tensors read one at a time.

    file = SafetensorsFile(Path("model.safetensors"))
    file.tensors["lm_head.weight"].shape                  # from the header; reads no data
    tensor = file.read("lm_head.weight")                  # a torch tensor of its own memory

The `safetensors` library maps a whole file by its path. This reader also takes a file that lies uncompressed inside a zip (an offset into
it), imports torch only to read data, and says in its errors which file and which tensor. The writer streams: it holds one tensor, not a
shard. Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastvlm.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library; a 7B model's header is 0.1 MB
MAX_DIMENSIONS = 8
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
TORCH_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "I64": "int64"}
_DTYPES = {value: key for key, value in TORCH_NAMES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about a tensor. `start` and `stop` count bytes from the beginning of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class SafetensorsFile:
    """One file, or the part of a file that starts at `offset` and is `size` bytes long."""

    def __init__(self, path: Path, offset: int = 0, size: int | None = None, label: str | None = None):
        self.path, self.label = path, label or str(path)
        try:
            self._file: BinaryIO = path.open("rb")
            self.size = path.stat().st_size - offset if size is None else size
        except OSError as error:
            raise CheckpointError(f"cannot read {self.label}: {error.strerror or error}") from error
        self._offset = offset
        header_bytes = self._read_header()
        self._data = offset + 8 + header_bytes
        self.data_bytes = self.size - 8 - header_bytes
        self._check_layout()

    def _read_header(self) -> int:
        self._file.seek(self._offset)
        head = self._file.read(8)
        if len(head) < 8 or self.size < 8:
            raise CheckpointError(f"{self.label} has {self.size} bytes, too few for a safetensors file; download it again")
        length = int.from_bytes(head, "little")
        if head[:7] == b"version" or head[:4] in (b"PK\x03\x04", b"\x80\x02}q", b"<htm", b"<!DO"):
            raise CheckpointError(f"{self.label} is no safetensors file, it begins with {head!r}" + _what_it_is(head))
        if length > min(self.size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{self.label} is truncated or no safetensors file: its header should be {length} bytes long, the file has {self.size}; "
                "download it again"
            )
        try:
            header = json.loads(self._file.read(length).decode(), object_pairs_hook=_unique)
        except RecursionError:
            raise CheckpointError(f"{self.label}: the header is nested too deeply for a safetensors file") from None
        except ValueError as error:
            raise CheckpointError(f"{self.label}: the header is damaged ({_one_line(error)}); download the file again") from None
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.label}: the header is a {type(header).__name__}, not an object; download the file again")
        metadata = header.pop("__metadata__", None) or {}
        self.metadata: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
        self.tensors = {name: self._tensor_info(name, entry) for name, entry in header.items()}
        return length

    def _tensor_info(self, name: str, entry: Any) -> TensorInfo:
        where = f"{self.label}: tensor {name[:200]!r}"
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
            raise CheckpointError(f"{where}: the header must give dtype, shape and data_offsets; download the file again")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise CheckpointError(f"{where}: unknown dtype {str(dtype)[:40]!r}; known: {', '.join(sorted(ITEM_BYTES))}")
        if not _natural_numbers(shape):
            raise CheckpointError(f"{where}: shape {str(shape)[:80]} is no list of whole numbers; download the file again")
        if not _natural_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise CheckpointError(f"{where}: data_offsets {str(offsets)[:80]} are no range; download the file again")
        expected = math.prod(shape) * ITEM_BYTES[dtype]
        if offsets[1] - offsets[0] != expected:
            shown = str(list(shape))[:80]
            raise CheckpointError(f"{where}: {dtype} of shape {shown} is not {offsets[1] - offsets[0]} bytes long; the header is damaged")
        return TensorInfo(name, dtype, tuple(shape), offsets[0], offsets[1])

    def _check_layout(self) -> None:
        end = 0
        for info in sorted(self.tensors.values(), key=lambda info: (info.start, info.stop)):
            if info.start != end:
                problem = "overlaps the one before it" if info.start < end else "leaves a gap before it"
                raise CheckpointError(f"{self.label}: tensor {info.name[:200]!r} {problem}; the header is damaged, download the file again")
            end = info.stop
        if end > self.data_bytes:
            missing = end - self.data_bytes
            raise CheckpointError(
                f"{self.label} is truncated: the header describes {end} bytes of tensors, {missing} of them are missing; download it again"
            )
        if end < self.data_bytes:
            raise CheckpointError(f"{self.label} has {self.data_bytes - end} bytes after its last tensor; download it again")

    def chunks(self, name: str, chunk_bytes: int = 1 << 24) -> Iterator[bytes]:
        """The raw bytes of a tensor, in pieces."""
        info = self.tensors[name]
        for start in range(info.start, info.stop, chunk_bytes):
            size = min(chunk_bytes, info.stop - start)
            self._file.seek(self._data + start)  # each time: another tensor may be read in between
            chunk = self._file.read(size)
            if len(chunk) != size:
                raise CheckpointError(f"{self.label} became shorter while {name!r} was read; download it again")
            yield chunk

    def read(self, name: str) -> "torch.Tensor":
        """The tensor, in the stored dtype, in memory of its own: the file may go away afterwards."""
        import torch

        info = self.tensors[name]
        buffer = torch.empty(info.nbytes, dtype=torch.uint8)
        self._file.seek(self._data + info.start)
        view, done = memoryview(buffer.numpy().data), 0
        while done < info.nbytes:
            count = self._file.readinto(view[done:])  # type: ignore[attr-defined]  # BinaryIO lacks it, open("rb") has it
            if not count:
                raise CheckpointError(f"{self.label} became shorter while {name!r} was read; download it again")
            done += count
        return buffer.view(getattr(torch, TORCH_NAMES[info.dtype])).reshape(info.shape)

    def close(self) -> None:
        self._file.close()


class SafetensorsWriter:
    """Write a file whose shapes are known beforehand, tensor by tensor, in the order of `shapes`.

    Args:
        shapes: name -> (dtype as safetensors names it, shape).
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[str, tuple[int, ...]]]):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in shapes.items():
            nbytes = math.prod(shape) * ITEM_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
            end += nbytes
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # the data starts aligned
        self._pending = list(shapes)[::-1]
        self._shapes = shapes
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)

    def write(self, name: str, tensor: "torch.Tensor") -> None:
        import torch

        expected = self._pending.pop()
        dtype, shape = self._shapes[name]
        assert name == expected and tuple(tensor.shape) == shape and safetensors_dtype(tensor.dtype) == dtype, (name, expected)
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)

    def close(self) -> None:
        assert not self._pending, f"not written: {self._pending}"
        self._file.close()


def safetensors_dtype(dtype: "torch.dtype") -> str:
    """'BF16' for torch.bfloat16, and so on."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise CheckpointError(f"cannot store {name} tensors; supported: {', '.join(TORCH_NAMES.values())}")
    return _DTYPES[name]


def _natural_numbers(values: Any) -> bool:
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        return False
    return all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands in it twice")
    return values


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _what_it_is(head: bytes) -> str:
    if head[:7] == b"version":
        return ": that is a Git LFS pointer; run `git lfs pull` in the folder, or download the file itself"
    if head[:1] == b"<":
        return ": that is a web page; the download went to an error page"
    return ": that is a PyTorch pickle under another name; only safetensors are read, because unpickling runs code"
