"""Where checkpoints come from: Apple's zips, Hugging Face's hub, and what was pulled before.

    folder = pull("0.5b")                          # Apple's zip, unpacked into the cache; "0.5b" is then a name that `load` takes
    folder = pull("apple/FastVLM-0.5B")            # from the hub, into its own cache
    folder = download_snapshot("user/model", revision="v1")

Sources: github.com/apple/ml-fastvlm (get_models.sh) for the zips, huggingface.co/apple for the hub ids.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm import telemetry
from fastvlm.checkpoint.download import Progress, download, sha256
from fastvlm.checkpoint.errors import CheckpointError, listed
from fastvlm.checkpoint.source import FolderSource, TensorStore, ZipSource, cache_folder, check_disk_space

logger = logging.getLogger(__name__)
BASE_URL = "https://ml-site.cdn-apple.com/datasets/fastvlm"
MANIFEST_SUFFIX = ".pull.json"  # beside the folder, which stays as it was published
# Weights, configs, tokenizers and licences; no code, no pickles, no other formats. A folder inside a repository is not the checkpoint.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja", "LICENSE*", "LICENCE*", "NOTICE*", "ACKNOWLEDG*", "README.md"]

LICENSE_TERMS = """\
The weights are Apple's, under the Apple Machine Learning Research Model License Agreement (apple-amlr), not under this package's licence.
In short: research purposes only; no commercial use, in a product or a service; what you derive from them (fine-tuned, quantised or
converted weights) stays under the same terms and has to carry them along. The agreement itself decides, not this summary."""


@dataclass(frozen=True)
class Release:
    """One of Apple's checkpoints."""

    name: str  # as in the zip
    hub_id: str | None  # the hub has stage 3 only
    num_parameters: int  # as stored; 2 bytes each

    @property
    def zip_name(self) -> str:
        return f"{self.name}.zip"


def _releases() -> dict[str, Release]:
    # Sums of the stored shapes; the hub's file sizes say the same.
    sizes = {"0.5b": 758_798_048, "1.5b": 1_909_242_464, "7b": 7_764_552_288}
    releases = {}
    for size, num_parameters in sizes.items():
        hub_id = f"apple/FastVLM-{size.upper()}"
        for suffix, stage, release_hub_id in (("", 3, hub_id), ("-stage2", 2, None), ("-stage3", 3, hub_id)):
            releases[size + suffix] = Release(f"llava-fastvithd_{size}_stage{stage}", release_hub_id, num_parameters)
    return releases


RELEASES = _releases()


def pull(
    name: str,
    *,
    source: str | None = None,
    out: Path | None = None,
    base_url: str = BASE_URL,
    revision: str | None = None,
    expected_sha256: str | None = None,
    on_progress: Progress | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Path:
    """Fetch a checkpoint and check it; returns its folder. One that is there already is only checked.

    Args:
        name: a short name of `RELEASES` or a hub id.
        source: `zip` (Apple's server) or `hub`; None takes the zip for short names.
        out: the folder to make; None puts it where `open_checkpoint` finds it by its name.
        base_url: where the zips are.
        revision: of a hub id.
        expected_sha256: of the zip, when you know it.
        on_progress: as for `download`.
        on_step: told in a line what happens.
    """
    release = RELEASES.get(name)
    if release is None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise CheckpointError(f"unknown checkpoint {name!r}; known: {', '.join(RELEASES)}, or any hub id such as apple/FastVLM-0.5B")
    if source not in (None, "zip", "hub"):
        raise CheckpointError(f"source is {source!r}; supported: zip, hub")
    if release is None or source == "hub":
        if source == "zip":
            raise CheckpointError(f"{name!r} is a hub id; Apple's server has the zips of {', '.join(RELEASES)}")
        hub_id = name if release is None else release.hub_id
        if hub_id is None:
            raise CheckpointError(f"{name!r} is not on the hub, which has stage 3 only; leave out --source hub")
        if expected_sha256 is not None:
            raise CheckpointError("--sha256 is of a zip; files of the hub are compared with the hub's own hashes")
        return pull_from_hub(hub_id, revision=revision, out=out, on_step=on_step, on_progress=on_progress)
    if revision is not None:
        raise CheckpointError(f"revision {revision!r} belongs to a hub id; the zips have none")
    if expected_sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expected_sha256):  # found out only after the whole download
        raise CheckpointError(f"{expected_sha256[:80]!r} is no SHA-256; expected 64 hexadecimal digits, as sha256sum prints them")
    folder = out if out is not None else _release_folder(release)
    return _pull_zip(release, folder, f"{base_url.rstrip('/')}/{release.zip_name}", expected_sha256, on_progress, on_step)


def pulled_folder(name: str) -> Path | None:
    """Where a short name was pulled to, from either source; None when it was not. Asks no network."""
    release = RELEASES[name]
    folder = _release_folder(release)
    if (folder / "config.json").is_file():
        return folder
    if release.hub_id is None:
        return None
    try:
        return download_snapshot(release.hub_id, local_only=True)
    except CheckpointError:
        return None


def download_snapshot(repo_id: str, revision: str | None = None, *, local_only: bool = False, out: Path | None = None) -> Path:
    """The checkpoint's files of a hub repository, in the hub's own cache (or `out`); fetched when they are not there.

    HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT and HF_HOME mean what they mean to huggingface_hub.
    """
    telemetry.disable()
    from huggingface_hub import snapshot_download

    def fetch() -> str:
        return snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=HUB_PATTERNS,
            ignore_patterns=["*/*"],
            local_files_only=local_only,
            local_dir=out,
        )

    folder = Path(_ask_hub(fetch, repo_id, revision))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"the hub's {repo_id} has no config.json at its top; it is no checkpoint that this can read")
    return folder


def pull_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    out: Path | None = None,
    on_step: Callable[[str], None] = lambda text: None,
    on_progress: Progress | None = None,
) -> Path:
    """`download_snapshot` with the disk space checked before, and sizes and hashes compared with the hub's after."""
    telemetry.disable()
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import filter_repo_objects

    if out is not None:
        _refuse_foreign_folder(out)
    info = _ask_hub(lambda: HfApi().model_info(repo_id, revision=revision, files_metadata=True), repo_id, revision)
    wanted = list(
        filter_repo_objects(info.siblings or [], allow_patterns=HUB_PATTERNS, ignore_patterns=["*/*"], key=lambda file: file.rfilename)
    )
    if not any(file.rfilename.endswith(".safetensors") for file in wanted):
        names = [str(file.rfilename) for file in info.siblings or []]
        others = listed(sorted(names, key=lambda name: (str(name).endswith((".json", ".txt")), name)))
        raise CheckpointError(f"the hub's {repo_id} has no safetensors at its top (it has {others or 'no files'}); nothing was downloaded")
    check_disk_space(out or Path(HF_HUB_CACHE), sum(file.size or 0 for file in wanted), f"downloading {repo_id}")
    on_step(f"revision {info.sha}")
    # by the name that was given, not by `info.sha`: the hub's cache then knows the name offline too
    folder = download_snapshot(repo_id, revision, out=out)
    on_step("checking sizes and hashes")
    for file in wanted:
        path = folder / file.rfilename
        if not path.is_file() or (file.size is not None and path.stat().st_size != file.size):
            found = path.stat().st_size if path.is_file() else 0
            raise CheckpointError(f"{path} has {found} bytes, the hub says {file.size}; delete it and pull again")
        lfs = getattr(file, "lfs", None)
        if lfs is not None and sha256(path, on_progress) != lfs.sha256:
            raise CheckpointError(f"{path} differs from the hub's hash; delete it and pull again")
    TensorStore(FolderSource(folder)).close()
    return folder


def _ask_hub(call: Callable[[], Any], repo_id: str, revision: str | None) -> Any:
    """Call huggingface_hub and turn what it raises into one line each."""
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        return call()
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"the hub's {repo_id} is gated: accept its terms on its page, then set HF_TOKEN or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"the hub's {repo_id} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {repo_id!r} here, and the hub has no model of that name (or it is private: set HF_TOKEN)"
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"there is no folder {repo_id!r} here, {repo_id}{at} is not in the hub's cache on this machine, and the hub cannot be reached; "
            f"go online (HF_HUB_OFFLINE is {os.environ.get('HF_HUB_OFFLINE', 'not set')}) and run `fastvlm pull {repo_id}`"
        ) from error
    except _transport_errors() as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"cannot get {repo_id}{at} from the hub: {reason}") from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """What a failed transfer raises: the hub's errors, and those of its HTTP library (requests in old versions, httpx in new ones)."""
    from huggingface_hub import errors

    kinds = (OSError, ValueError, RuntimeError, errors.EntryNotFoundError, *errors.HfHubHTTPError.__bases__)
    kinds += (getattr(errors, "XetDownloadError", OSError),)
    return tuple(kind for kind in kinds if issubclass(kind, Exception))


def _release_folder(release: Release) -> Path:
    return cache_folder() / "checkpoints" / release.name


def _manifest(folder: Path) -> Path:
    return folder.with_name(folder.name + MANIFEST_SUFFIX)


def _pull_zip(
    release: Release,
    folder: Path,
    url: str,
    expected_sha256: str | None,
    on_progress: Progress | None,
    on_step: Callable[[str], None],
) -> Path:
    earlier = _read_manifest(folder)
    if earlier is not None and folder.is_dir():
        on_step(f"already in {folder}; checking it")
        verify_pulled(folder, earlier, on_progress)
        return folder
    _refuse_foreign_folder(folder)
    archive = folder.with_name(release.zip_name)
    if archive.exists():
        on_step(f"using {archive}")
    else:
        on_step(f"downloading {url}")
        download(url, archive, on_progress=on_progress, extra_bytes=2 * release.num_parameters)
    on_step("checking the zip")
    digest = sha256(archive, on_progress)
    wanted = expected_sha256.lower() if expected_sha256 is not None else None
    if wanted is not None and digest != wanted:
        archive.unlink()
        raise CheckpointError(f"{url} has SHA-256 {digest}; expected {wanted}. The download was deleted")
    if earlier is not None and earlier.get("zip_sha256") not in (None, digest):
        on_step(f"note: the zip is another one than last time (SHA-256 {earlier['zip_sha256']}, now {digest})")
    on_step("unpacking")
    try:
        files = _unpack(archive, folder, on_progress)
    except CheckpointError as error:
        archive.unlink()
        raise CheckpointError(f"the download from {url} is damaged and was deleted: {error}") from error
    _manifest(folder).write_text(json.dumps({"url": url, "zip_sha256": digest, "files": files}, indent=2) + "\n")
    archive.unlink()
    return folder


def _unpack(archive: Path, folder: Path, on_progress: Progress | None) -> dict[str, dict[str, Any]]:
    """The checkpoint inside the zip as a folder that appears when it is complete and sound; returns size and hash of each file."""
    source = ZipSource(archive)
    check_disk_space(folder.parent, source.total_bytes(), f"unpacking {archive.name}")
    temporary = folder.with_name(f"{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        source.unpack_all(temporary, on_progress)
        TensorStore(FolderSource(temporary)).close()
        files = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in sorted(temporary.iterdir())}
        if folder.is_dir():
            folder.rmdir()  # empty: a full one was refused
        temporary.rename(folder)
        return files
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify_pulled(folder: Path, manifest: dict[str, Any], on_progress: Progress | None = None) -> None:
    """Compare a pulled folder with the sizes and hashes of its first complete download."""
    for name, expected in manifest.get("files", {}).items():
        path = folder / name
        advice = f"delete {folder} and pull again"
        if not path.is_file():
            raise CheckpointError(f"{path} is gone; {advice}")
        if path.stat().st_size != expected["size"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, {expected['size']} when it was downloaded; {advice}")
        if sha256(path, on_progress) != expected["sha256"]:
            raise CheckpointError(f"{path} has changed since it was downloaded (its SHA-256 differs); {advice}")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(_manifest(folder).read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get("files"), dict) else None


def _refuse_foreign_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and was not made by `fastvlm pull`; name another --out, or move it away")
