"""Runtimes: what executes a model. One file each, found by its name; numpy in, numpy out.

    name = choose_runtime("auto", device="auto")        # "torch", "openvino", ...
    runtime = load_runtime(name, checkpoint, dtype="auto", device="auto")
    features = runtime.encode_images(pixel_values)      # (N, T, D)
    logits, cache = runtime.prefill([input_ids], [features.reshape(-1, features.shape[-1])])
    logits = runtime.decode(logits.argmax(-1), cache)

A runtime file defines `unavailable_reason() -> str | None` (what is missing here, and the command that installs it) and
`load(source, *, dtype, device, threads, **options) -> Runtime`. Sampling, stopping and streaming are in `fastvlm.generate`, once for all.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastvlm.config import FastVLMConfig
from fastvlm.plugins import list_plugins, load_plugin

MAX_THREADS = 1024  # OpenMP crashes the process when it cannot start as many as it was told to
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class RuntimeUnavailableError(ValueError):
    """The runtime cannot run here: says what is missing and the command that installs it."""


class Cache(Protocol):
    """Keys and values of B rows. Belongs to the runtime that made it; `length` counts columns, padding included."""

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


class Runtime(Protocol):
    """The contract. Methods do not keep state between calls: what a conversation needs is in its cache."""

    name: str
    config: FastVLMConfig
    max_sequence_length: int

    def encode_images(self, pixel_values: np.ndarray) -> np.ndarray:
        """(N, 3, H, W) float32 -> (N, T, D) float32, after the projector."""
        ...

    def prefill(
        self, input_ids: Sequence[np.ndarray], image_features: Sequence[np.ndarray | None], cache: Any = None
    ) -> tuple[np.ndarray, Any]:
        """Read prompts.

        Args:
            input_ids: B rows of 1-D int64 ids, of any lengths above 0.
            image_features: for each row (placeholders in it, D), or None where it has none.
            cache: of one row; the ids are appended to what it holds. None starts a new one.

        Returns:
            Logits (B, V) float32 of each row's last position, and the cache.
        """
        ...

    def decode(self, tokens: np.ndarray, cache: Any) -> np.ndarray:
        """One more token (B,) for each row -> logits (B, V) float32. Grows the cache."""
        ...

    def reorder(self, cache: Any, rows: np.ndarray) -> Any:
        """The cache with these rows in this order (beams; finished rows dropped). The old one must not be used again."""
        ...

    def trim(self, cache: Any, length: int) -> Any:
        """The cache of one row without the columns from `length` on. Raises `NotImplementedError` where it cannot be undone."""
        ...


def normalize_dtype(dtype: str) -> str:
    """`fp32`, `bf16`, `fp16` -> transformers' names; any other name unchanged, for the runtime to judge."""
    return _DTYPES.get(dtype, dtype)


def choose_runtime(name: str = "auto", device: str = "auto") -> str:
    """The runtime's name: torch where there is a GPU (or one is asked for), else openvino if it can run here, else torch."""
    if name != "auto":
        load_plugin(__name__, name)  # refuses an unknown name, listing the others
        return name
    if device not in ("auto", "cpu") or (device == "auto" and _has_gpu()):
        return "torch"
    if "openvino" in list_plugins(__name__) and load_plugin(__name__, "openvino").unavailable_reason() is None:
        return "openvino"
    return "torch"


def load_runtime(
    name: str, source: Any, *, dtype: str = "auto", device: str = "auto", threads: int | None = None, **options: Any
) -> Runtime:
    """Load `source` (a checkpoint, or what else the runtime's file names) into runtime `name`.

    Raises:
        RuntimeUnavailableError: something that the runtime needs is not installed.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS):
        raise ValueError(f"threads is {threads!r}; expected a whole number from 1 to {MAX_THREADS}")
    plugin = load_plugin(__name__, name)
    if (reason := plugin.unavailable_reason()) is not None:
        raise RuntimeUnavailableError(reason)
    return plugin.load(source, dtype=normalize_dtype(dtype), device=device, threads=threads, **options)


def is_installed(package: str) -> bool:
    """Whether `import package` would find something; imports nothing."""
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _has_gpu() -> bool:
    """Whether torch would find CUDA or MPS. Imports torch (seconds) only where there are signs of a GPU."""
    signs = (
        (sys.platform == "darwin" and os.uname().machine == "arm64")
        or Path("/proc/driver/nvidia").exists()
        or Path("/dev/dxg").exists()  # the GPU inside WSL
        or Path("/dev/kfd").exists()  # ROCm, which torch calls cuda
        or shutil.which("nvidia-smi") is not None
    )
    if not signs or not is_installed("torch"):
        return False
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def cpu_fields(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first processor's fields; empty where the system has no such file."""
    pairs = (line.split(":", 1) for line in (_read(path) or "").split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def default_threads(root: Path = Path("/")) -> int:
    """How many threads to compute with: physical cores that this process may use, within the container's CPU limit.

    `OMP_NUM_THREADS` wins where it is set. Hyperthreads share one core's arithmetic units, so a second thread there only waits.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(root, cpu) for cpu in cpus}
    quota = _cpu_quota(root)
    return max(1, len(cores) if quota is None else min(len(cores), -int(-quota // 1)))


def _siblings(root: Path, cpu: int) -> str:
    """The hyperthreads of `cpu`'s core, as the kernel lists them; the CPU alone where it does not say."""
    text = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return str(cpu) if text is None else text


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the cgroup (v2 or v1) grants, the tightest of its ancestors; None without a limit."""
    quotas = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, files = root / "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            base, files = root / "sys/fs/cgroup" / controllers, ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            base = base if base.exists() else root / "sys/fs/cgroup/cpu"
        else:
            continue
        # A container sees its own cgroup as the mount's root, whatever path /proc names: the root is always looked at.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            texts = [_read(base.joinpath(*parts[:depth]) / name) for name in files]
            numbers = " ".join(text for text in texts if text is not None).split()
            if len(numbers) == 2 and numbers[0] not in ("max", "-1") and float(numbers[1]) > 0:
                quotas.append(float(numbers[0]) / float(numbers[1]))
    return min(quotas, default=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
