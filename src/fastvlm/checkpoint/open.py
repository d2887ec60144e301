"""From what a user names to an open checkpoint."""

import re
from pathlib import Path

from fastvlm.checkpoint.checkpoint import Checkpoint
from fastvlm.checkpoint.errors import CheckpointError
from fastvlm.checkpoint.hub import RELEASES, download_snapshot, pulled_folder
from fastvlm.checkpoint.source import FolderSource, open_source

NANO = "nano"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_checkpoint(name_or_path: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint without reading its weights.

    Args:
        name_or_path: a folder or zip in Apple's or transformers' layout; `nano`; a short name such as `0.5b` after `fastvlm pull 0.5b`;
            or a hub id, which is downloaded at its first use (HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT are respected).
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: nothing there, or nothing that can be read.
    """
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    if revision is not None and (path.exists() or name == NANO or name in RELEASES):
        raise CheckpointError(f"revision {revision!r} belongs to a hub id, and {name!r} is none; leave it out")
    if name == NANO:  # a folder of that name is ./nano: the default model must not depend on where the command runs
        return Checkpoint(FolderSource(_nano_folder()), label=NANO)
    if name and path.exists():  # the empty name would be the current folder
        return Checkpoint(open_source(path))
    if name in RELEASES:
        folder = pulled_folder(name)
        if folder is None:
            raise CheckpointError(f"{name!r} has not been downloaded yet; run `fastvlm pull {name}`")
        return Checkpoint(FolderSource(folder), label=name)
    if isinstance(name_or_path, str) and HUB_ID.fullmatch(name) and not name.endswith((".zip", ".safetensors")):
        return Checkpoint(FolderSource(download_snapshot(name, revision)), label=name)
    raise CheckpointError(
        f"there is no file or folder {name!r}; name a checkpoint's folder or zip, a hub id such as apple/FastVLM-0.5B, "
        f"or one of {', '.join((NANO, *RELEASES))}"
    )


def embedded_folder(name: str) -> Path:
    """Where the package keeps an embedded model: its native checkpoint, and in folders named by runtime its bundles."""
    return Path(__file__).parent.parent / "models" / name


def _nano_folder() -> Path:
    folder = embedded_folder(NANO)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "this installation carries no embedded model `nano`; reinstall fastvlm, or name a checkpoint (`fastvlm pull 0.5b`)"
        )
    return folder
