"""Bundles that `load` made on the way, kept for the next time.

    bundle = find(key)                       # None the first time
    with making(key) as folder: ...          # one process at a time; `folder` does not exist yet
    entries(); clear()

An entry is a folder named by its key, which covers all that could change what is in it: content of the checkpoint and the adapter,
versions, precision, and the CPU's abilities. It appears by a rename, so an entry that is there is complete. What was used longest ago
goes when all entries together are larger than $FASTVLM_CACHE_GB (default 20).
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm import __version__
from fastvlm.bundle import FORMAT, MANIFEST_FILE, Bundle, BundleError, is_bundle
from fastvlm.checkpoint import Checkpoint, CheckpointError
from fastvlm.checkpoint.source import cache_folder, check_disk_space

CONVERTER_VERSION = 6  # counts changes of the converter or of the arithmetic after which bundles must be made anew
DEFAULT_MAX_GB = 20.0
_HASHES_FILE = "hashes.json"
_BUNDLE_FILE = "bundle.txt"
_COMPILED_KEPT = 6  # graphs of a bundle: a decoder, and encoders of some sizes of pictures, for some numbers of threads
_SETTLED_S = 2.0  # a file written to within this time may be written to again without its time changing


@dataclass(frozen=True)
class Entry:
    key: str
    folder: Path
    label: str
    runtime: str
    precision: str
    nbytes: int
    used: float  # seconds since the epoch


def root() -> Path:
    return cache_folder() / "bundles"


def content_hash(checkpoint: Checkpoint, adapter: str | Path | None = None) -> str:
    """Of every file that the result depends on. Files that have not changed since they were read last are not read again."""
    paths = list(checkpoint.source.content_files())
    if adapter is not None:
        folder = Path(adapter)
        paths += [folder / name for name in ("adapter_config.json", "adapter_model.safetensors") if (folder / name).is_file()]
    known = _Hashes(root() / _HASHES_FILE)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{known.of(path)}\n".encode())
    known.save()
    return digest.hexdigest()


def bundle_key(checkpoint: Checkpoint, runtime: str, precision: str, abilities: str, adapter: str | Path | None = None) -> str:
    """Name of the entry. `abilities`: what the runtime says of itself and of the CPU."""
    parts = [FORMAT, CONVERTER_VERSION, __version__, runtime, precision, abilities, content_hash(checkpoint, adapter)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def find(key: str) -> Bundle | None:
    """The entry, if it is there and whole."""
    folder = root() / key
    if not is_bundle(folder):
        return None
    try:
        bundle = Bundle.open(folder)
    except BundleError:  # somebody has deleted or changed files in it
        _remove(folder)
        return None
    with suppress(OSError):
        os.utime(folder / MANIFEST_FILE)
    return bundle


@contextmanager
def making(key: str) -> Iterator[Path]:
    """Hold the entry's lock while it is made; waits for another process that makes it. The folder may exist when the block begins."""
    root().mkdir(parents=True, exist_ok=True)
    with _locked(root() / f"{key}.lock") as is_mine:
        assert is_mine
        sweep(besides=key)
        _remove_unfinished(key)
        yield root() / key
    make_room(keep=key)


def compiled_path(bundle: Bundle, abilities: str, graph: str) -> Path:
    """Where a runtime keeps what it compiled of a bundle: there or not.

    That of an entry is inside it, and goes with it. Those of other bundles, such as the embedded one, are beside the entries, as long as
    the bundles are there.

    Args:
        abilities: as for `bundle_key`.
        graph: which graph, and all that it was compiled with.
    """
    folder = bundle.folder.resolve()
    parent = folder / "compiled" if folder.parent == root().resolve() else _compiled_root() / _short_hash(str(folder))
    return parent / _short_hash(f"{abilities} {bundle.manifest}") / f"{_short_hash(graph)}.blob"


def keep_compiled(bundle: Bundle, path: Path, data: bytes | memoryview) -> None:
    """Write `data` to a `compiled_path`, whole or not at all, unless the disk cannot take it; what it makes useless is removed."""
    try:
        if not path.parent.parent.exists():
            _sweep_compiled()
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent.parent / _BUNDLE_FILE).write_text(str(bundle.folder.resolve()), encoding="utf-8")
        check_disk_space(path.parent, 2 * len(data), "keeping a compiled graph")
        _write_whole(path, data)
        by_age = sorted(path.parent.iterdir(), key=lambda kept: kept.stat().st_mtime)
        for old in by_age[:-_COMPILED_KEPT]:
            old.unlink(missing_ok=True)
        for other in path.parent.parent.iterdir():
            if other.is_dir() and other != path.parent:  # of another version, CPU or content
                shutil.rmtree(other, ignore_errors=True)
    except (OSError, CheckpointError):  # or another process cleared the cache meanwhile
        return


def _compiled_root() -> Path:
    return cache_folder() / "compiled"


def _sweep_compiled() -> None:
    """Remove what was compiled of bundles that are gone."""
    for path in _compiled_root().glob(f"*/{_BUNDLE_FILE}"):
        if not is_bundle(Path(path.read_text(encoding="utf-8"))):
            shutil.rmtree(path.parent, ignore_errors=True)


def _write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is there whole or not at all, whoever else writes it at the same time."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entries() -> list[Entry]:
    """All entries, the one used last first."""
    found = []
    for manifest in root().glob(f"*/{MANIFEST_FILE}"):
        folder = manifest.parent
        if folder.name.startswith("."):
            continue
        try:
            values = json.loads(manifest.read_text(encoding="utf-8"))
            label, runtime, precision = str(values["source"]["label"]), str(values["runtime"]), str(values["precision"])
            found.append(Entry(folder.name, folder, label, runtime, precision, _size(folder), manifest.stat().st_mtime))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Remove every entry, what was compiled of other bundles, and what killed conversions left; returns the bytes that were freed."""
    freed = _size(_compiled_root())
    shutil.rmtree(_compiled_root(), ignore_errors=True)
    for entry in entries():
        freed += entry.nbytes
        _remove(entry.folder)
    sweep()
    for path in root().glob("*.lock"):
        with _locked(path, wait=False) as is_mine:
            if is_mine:
                path.unlink(missing_ok=True)
    (root() / _HASHES_FILE).unlink(missing_ok=True)
    return freed


def make_room(keep: str, max_bytes: int | None = None) -> None:
    """Remove what was used longest ago until the rest fits."""
    left = max_bytes_allowed() if max_bytes is None else max_bytes
    for entry in entries():
        left -= entry.nbytes
        if left < 0 and entry.key != keep:
            _remove(entry.folder)


def max_bytes_allowed() -> int:
    value = os.environ.get("FASTVLM_CACHE_GB", "")
    try:
        gigabytes = float(value) if value else DEFAULT_MAX_GB
    except ValueError:
        raise BundleError(f"FASTVLM_CACHE_GB is {value!r}; expected a number of gigabytes") from None
    return int(gigabytes * 1e9)


def sweep(besides: str | None = None) -> None:
    """Remove unfinished folders whose makers are gone: those whose lock can be taken."""
    keys = {path.name[1:].partition("-")[0] for path in root().glob(".*") if path.is_dir()}
    for key in keys - {besides}:
        with _locked(root() / f"{key}.lock", wait=False) as is_mine:
            if is_mine:
                _remove_unfinished(key)


def _remove_unfinished(key: str) -> None:
    for path in root().glob(f".{key}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> None:
    """By a rename first: nobody meets half an entry."""
    doomed = folder.with_name(f".{folder.name}-removed-{os.getpid()}")
    with suppress(OSError):
        os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """An advisory lock that ends with its process, however that ends. Yields whether it was obtained."""
    while True:
        with path.open("a+b") as file:
            if not _lock(file, wait):
                yield False
                return
            # Whoever cleared the cache may have removed the file while this waited: then another one holds the name.
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    yield True
                    return


def _lock(file: Any, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:
        return _lock_windows(file, wait)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _lock_windows(file: Any, wait: bool) -> bool:
    import msvcrt

    locking: Any = msvcrt  # its names exist on Windows only
    while True:
        try:
            file.seek(0)
            locking.locking(file.fileno(), locking.LK_NBLCK, 1)
            return True
        except OSError:
            if not wait:
                return False
            time.sleep(0.2)


class _Hashes:
    """SHA-256 of files, remembered with what `stat` says of them. ctime is among it: tools that copy set the other times back."""

    def __init__(self, path: Path):
        self._path = path
        self._is_changed = False
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            values = {}
        self._known: dict[str, Any] = values if isinstance(values, dict) else {}

    def of(self, path: Path) -> str:
        stat = path.stat()
        facts = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        name = str(path.resolve())
        known = self._known.get(name)
        if isinstance(known, list) and len(known) == 2 and known[0] == facts:
            return str(known[1])
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_S:
            self._known[name] = [facts, value]
            self._is_changed = True
        return value

    def save(self) -> None:
        """Best effort: without it the next use reads the files again."""
        if not self._is_changed:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(self._path, json.dumps(self._known).encode())
