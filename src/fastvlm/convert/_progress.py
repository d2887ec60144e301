"""Progress on stderr: a bar in a terminal, a line a minute in a log file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any], what: str, unit: str) -> Any:
    return tqdm(items, desc=what, unit=unit, mininterval=0.2 if sys.stderr.isatty() else 60)
