"""`fastvlm pull` against a server on this machine: resume, corruption, servers without ranges, errors, and a hub of our own."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from checkpoint_files import apple_tensors, make_zip, random_model, tiny_config, write_apple
from fastvlm.checkpoint import CheckpointError, open_checkpoint
from fastvlm.checkpoint.download import download
from fastvlm.checkpoint.hub import RELEASES, pull

NAME = "llava-fastvithd_0.5b_stage3"


class Server:
    """Serves `files` with ranges, and misbehaves as a test asks."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.json: dict[str, Any] = {}
        self.hub_hashes: dict[str, str] = {}
        self.ranges = True
        self.etag: str | None = "auto"
        self.cut_after: list[int] = []  # the next responses end after so many bytes of their body
        self.status: list[int] = []  # the next responses are these errors
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("range") for method, path, headers in self.requests if method == "GET" and path.endswith(".zip")]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        state, path = self.server_state, unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        state.requests.append((self.command, path, headers))
        if path in state.json:
            return self._send(200, json.dumps(state.json[path]).encode(), {"Content-Type": "application/json"}, with_body)
        if with_body and state.status:
            return self._send(state.status.pop(0), b"no", {}, True)
        if path not in state.files:
            error = "EntryNotFound" if "/resolve/" in path else "RepoNotFound"
            return self._send(404, b"not here", {"X-Error-Code": error}, with_body)
        data = state.files[path]
        etag = f'"{hashlib.md5(data).hexdigest()}"' if state.etag == "auto" else state.etag
        extra = {} if etag is None else {"ETag": etag}
        if path in state.hub_hashes:
            extra |= {"X-Repo-Commit": "a" * 40, "ETag": f'"{state.hub_hashes[path]}"', "X-Linked-Size": str(len(data))}
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        if state.ranges and wanted and headers.get("if-range", etag) == etag:
            start = int(wanted[1])
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, with_body)
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], extra, with_body)
        return self._send(200, data, extra, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        state = self.server_state
        if state.cut_after and status in (200, 206) and "Content-Type" not in headers:
            body = body[: state.cut_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTVLM_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("release")
    folder = write_apple(root / NAME, apple_tensors(random_model(tiny_config())))
    (folder / "LICENSE_MODEL").write_text("Apple Machine Learning Research Model License Agreement ...")
    return make_zip(folder, root / f"{NAME}.zip", zipfile.ZIP_DEFLATED).read_bytes()


def pull_here(server: Server, **options: Any) -> Path:
    return pull("0.5b", base_url=server.url, **options)


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvlm.checkpoint.download.time.sleep", lambda seconds: None)


def test_known_names_are_apples_six_checkpoints() -> None:
    names = {f"llava-fastvithd_{size}_stage{stage}.zip" for size in ("0.5b", "1.5b", "7b") for stage in (2, 3)}
    assert {release.zip_name for release in RELEASES.values()} == names
    assert RELEASES["0.5b"] == RELEASES["0.5b-stage3"] and RELEASES["7b"].hub_id == "apple/FastVLM-7B"
    assert RELEASES["1.5b-stage2"].hub_id is None


def test_pull_fetches_checks_unpacks_and_gives_the_short_name(server: Server, archive: bytes, cache: Path) -> None:
    server.files[f"/{NAME}.zip"] = archive
    progress: list[tuple[int, int | None]] = []
    with pytest.raises(CheckpointError, match="run `fastvlm pull 0.5b`"):
        open_checkpoint("0.5b")
    folder = pull_here(server, on_progress=lambda done, total: progress.append((done, total)))
    assert folder == cache / NAME
    checkpoint = open_checkpoint("0.5b")
    checkpoint.check_tensors()
    assert checkpoint.label == "0.5b"
    assert (len(archive), len(archive)) in progress
    manifest = json.loads((cache / f"{NAME}.pull.json").read_text())
    assert manifest["zip_sha256"] == hashlib.sha256(archive).hexdigest()
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()}
    assert {path.name for path in cache.iterdir()} == {NAME, f"{NAME}.pull.json"}, "the zip and its part are gone"


def test_second_pull_only_checks_and_finds_what_changed(server: Server, archive: bytes) -> None:
    server.files[f"/{NAME}.zip"] = archive
    folder = pull_here(server)
    requests = len(server.requests)
    assert pull_here(server) == folder and len(server.requests) == requests
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors has changed since it was downloaded"):
        pull_here(server)
    weights.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors has \d+ bytes, \d+ when it was downloaded"):
        pull_here(server)
    weights.unlink()
    with pytest.raises(CheckpointError, match="model.safetensors is gone"):
        pull_here(server)


def test_connection_that_breaks_is_taken_up_where_it_broke(server: Server, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    server.files[f"/{NAME}.zip"] = archive
    server.cut_after = [1000, 500, 0, 2000]
    pull_here(server)
    open_checkpoint("0.5b").check_tensors()
    assert server.ranges_asked() == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-", "bytes=3500-"]


def test_interrupted_pull_goes_on_in_the_next_process(server: Server, archive: bytes, cache: Path, tmp_path: Path) -> None:
    server.files[f"/{NAME}.zip"] = archive

    def interrupt(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    server.cut_after = [3000]
    with pytest.raises(KeyboardInterrupt):
        pull_here(server, on_progress=interrupt)
    assert (cache / f"{NAME}.zip.part").stat().st_size == 3000
    result = run_cli("pull", "0.5b", "--base-url", server.url)
    assert result.returncode == 0, result.stderr
    assert server.ranges_asked() == [None, "bytes=3000-"]
    assert Path(result.stdout.strip()) == cache / NAME
    for words in ("research purposes only", "no commercial use", "apple-amlr", "LICENSE_MODEL", "fastvlm predict --model 0.5b"):
        assert words in result.stderr
    assert "%" in result.stderr, "a progress bar"


def test_server_that_ignores_ranges_starts_over(server: Server, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    server.files[f"/{NAME}.zip"] = archive
    server.ranges, server.cut_after = False, [1000]
    pull_here(server)
    open_checkpoint("0.5b").check_tensors()
    assert server.ranges_asked() == [None, "bytes=1000-"]


def test_file_that_changed_on_the_server_is_not_mixed_with_the_old_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    old, new = b"old" * 1000, b"new!" * 1000
    server.files["/file.zip"] = old
    server.cut_after = [900]

    def change(done: int, total: int | None) -> None:
        if done == 900:
            server.files["/file.zip"] = new

    download(f"{server.url}/file.zip", tmp_path / "file.zip", on_progress=change)
    assert (tmp_path / "file.zip").read_bytes() == new


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_proof_of_identity_a_part_is_not_continued(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str | None
) -> None:
    impatient(monkeypatch)
    server.files["/file.zip"], server.etag, server.cut_after = bytes(range(256)) * 20, etag, [700]
    download(f"{server.url}/file.zip", tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == server.files["/file.zip"]
    assert server.ranges_asked() == [None, None]


def test_part_that_was_complete_needs_no_data(server: Server, tmp_path: Path) -> None:
    data = b"x" * 5000
    server.files["/file.zip"] = data
    (tmp_path / "file.zip.part").write_bytes(data)
    state = {"url": f"{server.url}/file.zip", "size": 5000, "etag": f'"{hashlib.md5(data).hexdigest()}"', "last_modified": None}
    (tmp_path / "file.zip.part.json").write_text(json.dumps(state))
    download(state["url"], tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == data and server.ranges_asked() == ["bytes=5000-"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("file")] == ["file.zip"]


def test_server_errors_pass_or_are_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    server.files["/file.zip"] = b"data"
    server.status = [503, 500, 429]  # a server that answers, though badly, is asked again
    download(f"{server.url}/file.zip", tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == b"data"
    (tmp_path / "file.zip").unlink()
    server.status = [503] * 20
    with pytest.raises(CheckpointError, match="the server answered 503 Service Unavailable"):
        download(f"{server.url}/file.zip", tmp_path / "file.zip")
    for status, words in ((404, "there is no file at"), (403, "the server refuses"), (418, "answered 418")):
        server.status = [status]
        with pytest.raises(CheckpointError, match=words):
            download(f"{server.url}/file.zip", tmp_path / "file.zip")
    with pytest.raises(CheckpointError, match="no http or https address"):
        download("file:///etc/hostname", tmp_path / "file.zip")
    assert list(tmp_path.glob("file*")) == []


def test_missing_zip_says_which_address(server: Server) -> None:
    with pytest.raises(CheckpointError, match=f"there is no file at {server.url}/llava-fastvithd_7b_stage2.zip"):
        pull("7b-stage2", base_url=server.url + "/")


def test_offline_is_said_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=r"cannot download http://127.0.0.1:\d+/.*: Connection refused"):
            pull("0.5b", base_url=f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert time.monotonic() - start < 5


def test_broken_connections_come_to_an_end_and_keep_what_arrived(
    server: Server, archive: bytes, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    impatient(monkeypatch)
    server.files[f"/{NAME}.zip"] = archive
    server.cut_after = [1200, *[0] * 50]
    with pytest.raises(CheckpointError, match=r"connection ended after 1200 of \d+ bytes; 1.2 kB are kept, run the same command again"):
        pull_here(server)
    assert len(server.ranges_asked()) < 10
    server.cut_after = []
    pull_here(server)
    open_checkpoint("0.5b").check_tensors()


def test_corrupt_download_is_found_and_deleted(server: Server, archive: bytes, cache: Path) -> None:
    damaged = bytearray(archive)
    damaged[len(archive) // 2] ^= 0xFF
    server.files[f"/{NAME}.zip"] = bytes(damaged)
    with pytest.raises(CheckpointError, match="is damaged and was deleted"):
        pull_here(server)
    assert list(cache.iterdir()) == []
    server.files[f"/{NAME}.zip"] = b"<html>captive portal</html>"
    with pytest.raises(CheckpointError, match="is damaged and was deleted"):
        pull_here(server)
    server.files[f"/{NAME}.zip"] = archive
    with pytest.raises(CheckpointError, match=r"has SHA-256 [0-9a-f]{64}; expected 00"):
        pull_here(server, expected_sha256="00" * 32)
    assert list(cache.iterdir()) == []
    pull_here(server, expected_sha256=hashlib.sha256(archive).hexdigest().upper())


def test_disk_space_is_checked_before_the_first_byte(server: Server, archive: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files[f"/{NAME}.zip"] = archive
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000_000})())
    with pytest.raises(CheckpointError, match=r"needs 1\.52 GB but only 1 GB are free"):
        pull_here(server)
    assert not (cache / f"{NAME}.zip.part").exists()


def test_out_is_respected_and_a_folder_of_others_refused(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.files[f"/{NAME}.zip"] = archive
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="was not made by `fastvlm pull`"):
        pull_here(server, out=tmp_path / "mine")
    folder = pull_here(server, out=tmp_path / "models" / "small")
    open_checkpoint(folder).check_tensors()
    with pytest.raises(CheckpointError, match="has not been downloaded"):
        open_checkpoint("0.5b")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(name="8b"), "unknown checkpoint '8b'; known: 0.5b"),
        (dict(name="0.5b-stage2", source="hub"), "stage 3 only"),
        (dict(name="apple/FastVLM-0.5B", source="zip"), "is a hub id"),
        (dict(name="0.5b", revision="main"), "the zips have none"),
        (dict(name="apple/FastVLM-0.5B", expected_sha256="0"), "--sha256 is of a zip"),
        (dict(name="0.5b", source="ftp"), "supported: zip, hub"),
        (dict(name="0.5b", expected_sha256="abcd"), "expected 64 hexadecimal digits"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        pull(**arguments)
    assert words in str(caught.value)


# The hub, as far as snapshot_download asks it


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastvlm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120, check=False)


@pytest.fixture
def hub(server: Server, archive: bytes, tmp_path: Path) -> dict[str, str]:
    """A hub with one model; returns the environment that points to it."""
    source = tmp_path / "hub-model"
    with zipfile.ZipFile(_saved(tmp_path / "hub.zip", archive)) as file:
        file.extractall(source)
    files = {path.name: path.read_bytes() for path in (source / NAME).iterdir()}
    files |= {"llava_qwen.py": b"raise SystemExit('code from a checkpoint ran')", "pytorch_model.bin": b"pickle", "onnx/big.json": b"{}"}
    repository, commit = "someone/fastvlm-tiny", "a" * 40
    siblings, tree = [], []
    for name, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "b" * 40}
        item: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}
        if name.endswith(".safetensors"):
            entry["lfs"] = item["lfs"] = {"size": len(data), "sha256": digest, "oid": digest, "pointerSize": 130}
        siblings.append(entry)
        tree.append(item)
        for revision in ("main", "v1", commit):
            path = f"/{repository}/resolve/{revision}/{name}"
            server.files[path], server.hub_hashes[path] = data, digest
    for revision in ("", "/revision/main", "/revision/v1", f"/revision/{commit}"):
        server.json[f"/api/models/{repository}{revision}"] = {
            "id": repository,
            "modelId": repository,
            "sha": commit,
            "siblings": siblings,
            "tags": [],
        }
    for revision in ("main", "v1", commit):
        server.json[f"/api/models/{repository}/tree/{revision}"] = tree
    return {
        "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip


def _saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_hub_id_is_pulled_and_then_opens_offline(server: Server, hub: dict[str, str], tmp_path: Path) -> None:
    result = run_cli("pull", "someone/fastvlm-tiny", **hub)
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert tmp_path / "hf" in folder.parents
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names and not names & {"llava_qwen.py", "pytorch_model.bin", "onnx"}
    assert "its own licence" in result.stderr
    assert all(headers.get("authorization") == "Bearer hf_secret" for _, path, headers in server.requests if path.startswith("/api/"))
    code = "import fastvlm.checkpoint as f; c = f.open_checkpoint('someone/fastvlm-tiny', {!r}); c.check_tensors(); print(c.label)"
    before = len(server.requests)
    for revision in (None, "a" * 40):
        offline = {**os.environ, **hub, "HF_HUB_OFFLINE": "1"}
        opened = subprocess.run(
            [sys.executable, "-c", code.format(revision)], env=offline, capture_output=True, text=True, timeout=120, check=False
        )
        assert opened.stdout.strip() == "someone/fastvlm-tiny", opened.stderr
    assert len(server.requests) == before, "offline means offline"


def test_hub_errors_are_one_line_each(server: Server, hub: dict[str, str]) -> None:
    for arguments, environment, words in (
        (("pull", "someone/other"), {}, "the hub has no model of that name"),
        (("pull", "someone/fastvlm-tiny", "--revision", "v9"), {}, "someone/fastvlm-tiny"),
        (("info", "someone/fastvlm-tiny"), {"HF_HUB_OFFLINE": "1"}, "not in the hub's cache"),
        (("pull", "someone/fastvlm-tiny"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "someone/fastvlm-tiny"),
    ):
        result = run_cli(*arguments, **{**hub, **environment})
        assert result.returncode == 1
        errors = [line for line in result.stderr.splitlines() if line.startswith("fastvlm: error:")]
        assert len(errors) == 1 and words in errors[0], result.stderr
        assert "Traceback" not in result.stderr and "hf_secret" not in result.stderr


def test_hub_file_that_differs_from_its_hash_is_found(server: Server, hub: dict[str, str], tmp_path: Path) -> None:
    for path, data in list(server.files.items()):
        if path.endswith("/model.safetensors"):
            server.files[path] = data[:-1] + bytes([data[-1] ^ 1])
    result = run_cli("pull", "someone/fastvlm-tiny", "--out", str(tmp_path / "out"), **hub)
    assert result.returncode == 1
    assert "differs from the hub's hash" in result.stderr or "onsisten" in result.stderr, result.stderr


def test_hub_model_without_safetensors_is_refused_before_anything_is_fetched(server: Server, hub: dict[str, str]) -> None:
    for document in server.json.values():
        if isinstance(document, dict):
            document["siblings"] = [entry for entry in document["siblings"] if not entry["rfilename"].endswith(".safetensors")]
    result = run_cli("pull", "someone/fastvlm-tiny", **hub)
    assert result.returncode == 1 and "no safetensors at its top" in result.stderr and "pytorch_model.bin" in result.stderr
    assert not any("/resolve/" in path for _, path, _ in server.requests)
