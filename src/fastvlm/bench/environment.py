"""What a result must say of where it was measured: versions, and whether something else was running."""

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = "fastvlm numpy openvino torch transformers timm onnxruntime llama-cpp-python gguf mlx mlx-vlm tokenizers pillow".split()


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def others_running() -> str | None:
    """A warning where the machine was busy in the last minute, which makes times longer and ratios less sure."""
    if not hasattr(os, "getloadavg") or (load := os.getloadavg()[0]) <= 0.5:
        return None
    is_ahead = hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
    ending = "; this had real-time priority before them" if is_ahead else "; times are longer than they could be"
    return f"other programs were running at the start (load {load:.1f}){ending}"


def spread(values: list[float]) -> dict[str, Any]:
    """Median, least and most."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {"median": median, "min": ordered[0], "max": ordered[-1], "runs": len(ordered)}
