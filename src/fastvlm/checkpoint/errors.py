"""The one exception that reading, fetching or writing a checkpoint raises on purpose."""

import difflib
from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says what was found, what was expected and what to do."""


def listed(names: Iterable[object], limit: int = 5) -> str:
    """The first few of these, quoted, and how many more there are."""
    items = [repr(str(name)) for name in names]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def nearest(name: str, candidates: Iterable[str]) -> str:
    """ "; closest present: ..." for an error about a missing name, or nothing when no candidate is close."""
    close = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.7)
    return f"; closest present: {listed(close)}" if close else ""


def gigabytes(num_bytes: float) -> str:
    """Decimal, as disks and downloads are sold: '1.52 GB', '310 MB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"
