"""A checkpoint between two of the same shape: python training/nano/average.py BEFORE AFTER SHARE runs/average

SHARE is AFTER's. A short run whose rate is high forgets something and learns something; what lies between its ends can be better than both
(arXiv 2203.05482 on averaging weights). For the embedded model 0.7 was: README.md has the scores.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main(before: Path, after: Path, share: float, out: Path) -> None:
    shutil.copytree(after, out)
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    mixed = dict(new)  # with the counts of BatchNorm as they are
    for name, value in new.items():
        if value.is_floating_point():
            mixed[name] = (old[name].double() * (1 - share) + value.double() * share).to(value.dtype)
    save_file(mixed, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
