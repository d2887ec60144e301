"""How much memory a model may take, and a process has taken, without a dependency: /proc, limits of control groups, the system.

check_memory(needed_bytes, available_memory_bytes(), "llava-fastvithd_7b_stage3 in float32")
"""

import os
import sys
from pathlib import Path

from fastvlm.checkpoint.errors import CheckpointError, gigabytes


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can still be used: of the machine or of the container, whichever is less. None where nothing tells.

    Args:
        root: where /proc and /sys are looked for; tests put a folder of their own there.
    """
    candidates = [_meminfo(root), *_cgroup_v2(root), *_cgroup_v1(root)]
    known = [value for value in candidates if value is not None]
    if known:
        return max(min(known), 0)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return None


def check_memory(needed_bytes: int, available_bytes: int | None, what: str, advice: str = "") -> None:
    """`CheckpointError` with the numbers when it cannot fit."""
    if available_bytes is not None and needed_bytes > available_bytes:
        raise CheckpointError(
            f"{what} needs {gigabytes(needed_bytes)} of memory and {gigabytes(available_bytes)} are available"
            + (advice or "; use a smaller model")
        )


def peak_memory_bytes() -> int | None:
    """Most resident memory that this process has had; None where the system does not say."""
    if peak := process_memory_bytes("VmHWM"):  # not getrusage: what the parent had before exec counts there
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def process_memory_bytes(field: str) -> int:
    """A line of Linux's /proc/self/status, such as VmRSS; 0 where there is none."""
    return next((int(line.split()[1]) * 1024 for line in _lines(Path("/proc/self/status")) if line.startswith(f"{field}:")), 0)


def _meminfo(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _cgroup_v2(root: Path) -> list[int | None]:
    """What is left in this process's group and in every group above it."""
    own = next((line.split("::", 1)[1] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")), "/")
    mount = root / "sys/fs/cgroup"
    relative = Path(own.lstrip("/"))
    return [_left(mount / group, "memory.max", "memory.current", "inactive_file") for group in (relative, *relative.parents)]


def _cgroup_v1(root: Path) -> list[int | None]:
    own = next((line.split(":", 2)[2] for line in _lines(root / "proc/self/cgroup") if ":memory:" in line), "/")
    mount = root / "sys/fs/cgroup/memory"
    relative = Path(own.lstrip("/"))
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return [_left(mount / group, *names) for group in (relative, *relative.parents)]


def _left(group: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> int | None:
    limit, usage = _number(group / limit_name), _number(group / usage_name)
    if limit is None or usage is None or limit >= 1 << 60:  # v1 writes "no limit" as a number near 2^63
        return None
    # Pages of files that nobody uses count as used, but the kernel gives them back before it refuses memory.
    stat = dict(line.split()[:2] for line in _lines(group / "memory.stat") if len(line.split()) >= 2)
    reclaimable = stat.get(reclaimable_name, "0")
    return limit - usage + (int(reclaimable) if reclaimable.isdecimal() else 0)


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "").strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
