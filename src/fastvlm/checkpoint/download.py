"""Fetch one large file over HTTP so that an interruption costs nothing: what has arrived stays and the next call goes on from there.

    download("https://example.org/model.zip", Path("model.zip"), on_progress=lambda done, total: None)

While it lasts the data is in `model.zip.part` and what the server said about it in `model.zip.part.json`; a part is continued only if the
server confirms that its file is still the same one (If-Range with its ETag or date, RFC 9110 section 13.1.5), else it starts over.
"""

import hashlib
import http.client
import json
import logging
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvlm import __version__
from fastvlm.checkpoint.errors import CheckpointError, gigabytes
from fastvlm.checkpoint.source import check_disk_space

logger = logging.getLogger(__name__)
CHUNK_BYTES = 1 << 20
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where known


@dataclass(frozen=True)
class RemoteFile:
    """What a server says about a file."""

    url: str
    size: int | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range may hold: a strong ETag, else the date."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


def download(
    url: str,
    target: Path,
    *,
    on_progress: Progress | None = None,
    extra_bytes: int = 0,
    attempts: int = 6,
    timeout_s: float = 30.0,
    wait_s: float = 1.0,
) -> RemoteFile:
    """Fetch `url` to `target`, which appears when it is complete.

    Args:
        on_progress: called with (bytes so far, bytes in all or None).
        extra_bytes: disk space that will be needed beside the file itself, for the check before the first byte.
        attempts: how often a connection that breaks is taken up again. One that brought data counts anew.
        timeout_s: of a connection that brings nothing.
        wait_s: before the second attempt; doubles from one to the next.

    Raises:
        CheckpointError: no connection, no such file, no room, or it kept breaking off. What has arrived is kept.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise CheckpointError(f"{url!r} is no http or https address")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures, has_connected = 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            remote = _attempt(url, part, on_progress, extra_bytes, timeout_s)
            break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in (408, 429, 500, 502, 503, 504):
                raise CheckpointError(_http_message(url, error)) from error
            done = part.stat().st_size if part.exists() else 0
            has_connected = has_connected or done > before or isinstance(error, urllib.error.HTTPError)
            failures = 1 if done > before else failures + 1
            # without any answer the machine is most likely offline: say so soon
            if failures >= (attempts if has_connected else 2) or _is_hopeless(error):
                kept = f"; {gigabytes(done)} are kept, run the same command again to go on" if done else ""
                raise CheckpointError(f"cannot download {url}: {_reason(error)}{kept}") from error
            logger.info("connection lost (%s), trying again", _reason(error))
            time.sleep(wait_s * 2 ** (failures - 1))
    os.replace(part, target)
    _state_file(part).unlink(missing_ok=True)
    return remote


def sha256(path: Path, on_progress: Progress | None = None) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if on_progress is not None:
                on_progress(done, total)
    return digest.hexdigest()


def _attempt(url: str, part: Path, on_progress: Progress | None, extra_bytes: int, timeout_s: float) -> RemoteFile:
    """One connection. Returns when `part` is complete, raises OSError or HTTPException when it broke off."""
    state = _load_state(part, url)
    offset = part.stat().st_size if part.exists() and state is not None else 0
    headers = {"User-Agent": f"fastvlm/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        assert state is not None and state.validator is not None
        headers |= {"Range": f"bytes={offset}-", "If-Range": state.validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and state is not None:  # nothing after `offset`
            if state.size == offset:
                return state
            part.unlink()
            raise ConnectionError("the file on the server has changed") from error
        raise
    except ValueError as error:
        raise CheckpointError(f"{url!r} is no address that can be downloaded: {error}") from error
    with response:
        if response.status == 206 and _range_start(response) != offset:
            part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another range than was asked for")
        if response.status != 206:
            if offset:
                logger.info("the server sends the file from its beginning")
            offset = 0
        length = response.headers.get("Content-Length", "")
        size = offset + int(length) if length.isdecimal() else None
        remote = RemoteFile(url, size, response.headers.get("ETag"), response.headers.get("Last-Modified"))
        if size is not None:
            check_disk_space(part.parent, size - offset + extra_bytes, f"downloading {url}")
        _state_file(part).write_text(json.dumps(asdict(remote)))
        _receive(response, part, offset, size, on_progress)
    return remote


def _receive(response: Any, part: Path, offset: int, size: int | None, on_progress: Progress | None) -> None:
    done = offset
    with part.open("ab" if offset else "wb") as out:
        while True:
            if on_progress is not None:
                on_progress(done, size)
            chunk = response.read(CHUNK_BYTES)
            if not chunk:
                break
            out.write(chunk)
            done += len(chunk)
    if size is not None and done < size:
        raise ConnectionError(f"the connection ended after {done} of {size} bytes")


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _load_state(part: Path, url: str) -> RemoteFile | None:
    """What the server said when the part was begun; None when it cannot be continued safely."""
    try:
        state = RemoteFile(**json.loads(_state_file(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if state.url == url and state.validator is not None else None


def _range_start(response: Any) -> int | None:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdecimal() else None


def _http_message(url: str, error: urllib.error.HTTPError) -> str:
    if error.code in (404, 410):
        return f"there is no file at {url} (the server answered {error.code}); check the name, or choose another --source or --base-url"
    if error.code in (401, 403):
        return f"the server refuses {url} (it answered {error.code}); log in, or choose another --source"
    return f"cannot download {url}: the server answered {error.code} {error.reason}"


def _is_hopeless(error: Exception) -> bool:
    """Whether trying again cannot help: a full disk, a certificate that is not trusted."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, (ssl.SSLCertVerificationError, PermissionError, FileNotFoundError, IsADirectoryError)) or (
        isinstance(reason, OSError) and reason.errno in (28, 122)  # ENOSPC, EDQUOT
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = str(reason) or type(reason).__name__
    if isinstance(reason, OSError) and reason.strerror:
        text = reason.strerror
    return text.splitlines()[0][:200]
