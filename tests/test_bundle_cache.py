"""The cache of bundles: keys, locks, bounds, and what is left when a converter is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch

import fastvlm
from fastvlm import cli
from fastvlm.bundle import BundleError, cache
from fastvlm.checkpoint import open_checkpoint
from fastvlm.checkpoint.source import RANDOM_WEIGHTS_FILE
from fastvlm.convert import convert
from test_runtimes_bundled import write_checkpoint

PROMPT = [{"role": "user", "content": "in the"}]


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTVLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/bundles"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", {})
    (folder / RANDOM_WEIGHTS_FILE).write_text("")  # no guard: these tests are about files
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def key(folder: Path, precision: str = "fp32", abilities: str = "a", adapter: Path | None = None) -> str:
    return cache.bundle_key(open_checkpoint(folder), "openvino", precision, abilities, adapter)


def fake_entry(name: str, nbytes: int, used: float) -> Path:
    """As much of a bundle as the cache looks at."""
    entry = cache.root() / name
    entry.mkdir(parents=True)
    (entry / "weights").write_bytes(bytes(nbytes))
    (entry / "manifest.json").write_text(json.dumps({"source": {"label": name}, "runtime": "openvino", "precision": "int8"}))
    os.utime(entry / "manifest.json", (used, used))
    return entry


def test_the_first_use_converts_and_the_next_finds_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = fastvlm.load(folder, dtype="float32", threads=1)
    assert first.runtime.name == "openvino"
    expected = fastvlm.load(folder, runtime="torch", dtype="float32", threads=1).generate(PROMPT, max_new_tokens=8).token_ids
    assert first.generate(PROMPT, max_new_tokens=8).token_ids == expected
    (entry,) = cache.entries()
    assert (entry.runtime, entry.precision, entry.label) == ("openvino", "fp32", str(folder))
    capfd.readouterr()
    script = f"""
import sys, fastvlm
vlm = fastvlm.load({str(folder)!r}, dtype="float32", threads=1)
assert vlm.generate({PROMPT!r}, max_new_tokens=8).token_ids == {expected!r}
assert not {{"torch", "nncf", "transformers"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "converting" not in result.stderr
    assert cli.main(["cache", "list"]) == 0
    assert "1 bundles" in capfd.readouterr().out
    assert cli.main(["cache", "clear"]) == 0
    assert cache.entries() == []
    assert os.listdir(cache.root()) == []


def test_a_checkpoint_changed_in_place_has_another_key(copied: Path) -> None:
    before = key(copied)
    assert key(copied) == before
    path = copied / "model.safetensors"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    tensors = safetensors.torch.load_file(path)
    tensors["model.language_model.norm.weight"][0] += 1
    safetensors.torch.save_file(tensors, path)
    os.utime(path, ns=times)  # same size, same time
    assert key(copied) != before


def test_everything_that_matters_is_in_the_key(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = []
    for number in range(2):
        adapters.append(tmp_path / f"adapter{number}")
        adapters[-1].mkdir()
        (adapters[-1] / "adapter_config.json").write_text("{}")
        (adapters[-1] / "adapter_model.safetensors").write_bytes(bytes([number]))
    keys = [key(copied), key(copied, "int8"), key(copied, abilities="b"), *(key(copied, adapter=adapter) for adapter in adapters)]
    monkeypatch.setattr(cache, "CONVERTER_VERSION", 999)
    keys.append(key(copied))
    (copied / "tokenizer_config.json").write_text((copied / "tokenizer_config.json").read_text() + "\n")
    keys.append(key(copied))
    assert len(set(keys)) == len(keys)


def test_settled_files_are_read_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SETTLED_S", -1.0)  # they were written just now
    before = key(copied)
    monkeypatch.setattr(cache.hashlib, "file_digest", lambda *arguments: pytest.fail("read again"))
    assert key(copied) == before


def test_what_was_used_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(["old", "new", "middle"]):
        fake_entry(name, 1_000_000, used=[100, 300, 200][number])
    assert [entry.key for entry in cache.entries()] == ["new", "middle", "old"]
    monkeypatch.setenv("FASTVLM_CACHE_GB", "0.0025")
    cache.make_room(keep="middle")
    assert [entry.key for entry in cache.entries()] == ["new", "middle"]
    cache.make_room(keep="middle", max_bytes=0)
    assert [entry.key for entry in cache.entries()] == ["middle"]
    monkeypatch.setenv("FASTVLM_CACHE_GB", "many")
    with pytest.raises(BundleError, match="FASTVLM_CACHE_GB is 'many'"):
        cache.max_bytes_allowed()


def test_one_process_at_a_time_makes_an_entry() -> None:
    order = []

    def make(name: str) -> None:
        with cache.making("k"):
            order.append(name)
            time.sleep(0.2)
            order.append(name)

    threads = [threading.Thread(target=make, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "".join(order) in ("aabb", "bbaa")


def test_unfinished_folders_go_when_their_maker_is_gone() -> None:
    cache.root().mkdir(parents=True)
    for name in (".alive-x", ".dead-y"):
        (cache.root() / name).mkdir()
    with cache._locked(cache.root() / "alive.lock"):
        cache.sweep()
        assert sorted(path.name for path in cache.root().glob(".*")) == [".alive-x"]
    cache.sweep()
    assert list(cache.root().glob(".*")) == []


def test_a_damaged_entry_is_made_again(cache_root: Path) -> None:
    entry = fake_entry("k", 10, used=0)
    assert cache.find("k") is None  # its manifest is not one
    assert not entry.exists()


def test_a_missing_extra_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("fastvlm.vlm.is_installed", lambda package: package != "torch")
    assert cli.main(["predict", "--model", str(folder), "--prompt", "P"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert 'pip install "fastvlm[torch]"' in line


def test_a_converter_that_fails_is_one_line(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = safetensors.torch.load_file(copied / "model.safetensors")
    del tensors["model.language_model.norm.weight"]
    safetensors.torch.save_file(tensors, copied / "model.safetensors")
    assert cli.main(["predict", "--model", str(copied), "--prompt", "P"]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "converting" not in line]
    assert len(lines) == 1
    assert "norm.weight" in lines[0]


def test_a_full_disk_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvlm import convert

    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="only 5 bytes are free"):
        convert.convert_into_cache(open_checkpoint(folder), precision="fp32")
    assert list(cache.root().glob(".*")) == []


@pytest.mark.slow
def test_killing_the_converter_never_leaves_a_wrong_entry(folder: Path) -> None:
    """At least 50 kills at random moments, some with two converters at once; whatever is there afterwards loads and answers rightly."""
    expected = fastvlm.load(folder, runtime="torch", dtype="float32", threads=1).generate(PROMPT, max_new_tokens=4).token_ids
    command = [sys.executable, "-m", "fastvlm", "convert", str(folder), "--precision", "fp32", "--into-cache"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rng = random.Random(0)
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    whole_s = time.monotonic() - start
    kills, found = 0, 0
    while kills < 50:
        if rng.random() < 0.5:
            shutil.rmtree(cache.root(), ignore_errors=True)
        else:
            for entry in cache.entries():
                shutil.rmtree(entry.folder)
        running = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) for _ in range(1 + kills % 2)
        ]
        time.sleep(rng.uniform(0.3, 1.1) * whole_s * len(running))
        for process in running:
            if process.poll() is None:
                kills += 1
            else:
                whole_s *= 0.8  # the machine has become faster: look earlier
            process.send_signal(signal.SIGKILL)
            process.wait()
        for entry in cache.entries():
            found += 1
            bundle = cache.find(entry.key)
            assert bundle is not None, "a visible entry is incomplete"
            if found <= 5:
                vlm = fastvlm.load(folder, dtype="float32", threads=1)
                assert vlm.generate(PROMPT, max_new_tokens=4).token_ids == expected
    vlm = fastvlm.load(folder, dtype="float32", threads=1)
    assert vlm.generate(PROMPT, max_new_tokens=4).token_ids == expected
    assert [path.name for path in cache.root().glob(".*")] == []


def test_the_embedded_model_runs_without_torch(folder: Path, tmp_path: Path) -> None:
    """As a plain `pip install fastvlm` does: nothing of the extras can be imported, and nothing is converted."""
    from fastvlm.convert import convert

    embedded = tmp_path / "embedded"
    convert(open_checkpoint(folder), embedded / "openvino", precision="int8")
    script = f"""
import sys
from pathlib import Path
for name in ("torch", "nncf", "transformers", "onnxruntime", "rapidfuzz"):
    sys.modules[name] = None
import fastvlm.vlm
fastvlm.vlm.embedded_folder = lambda name: Path({str(embedded)!r})
from fastvlm import cli
assert cli.main(["predict", "--prompt", "in the", "--max-new-tokens", "3", "--json"]) == 0
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["runtime"] == "openvino"
    assert cache.entries() == []


def test_what_is_compiled_lies_in_its_entry_or_beside(folder: Path, cache_root: Path, tmp_path: Path) -> None:
    mine = convert(open_checkpoint(folder), tmp_path / "mine", precision="fp32")
    shutil.copytree(tmp_path / "mine", cache_root / "entry")
    for bundle in (mine, cache.Bundle.open(cache_root / "entry")):
        paths = [cache.compiled_path(bundle, "one CPU", f"graph {number}") for number in range(cache._COMPILED_KEPT + 2)]
        for number, path in enumerate(paths):
            cache.keep_compiled(bundle, path, b"x" * 100)
            os.utime(path, (number, number))
        assert sorted(paths[0].parent.iterdir()) == sorted(paths[2:])
        other = cache.compiled_path(bundle, "another CPU", "graph 0")
        cache.keep_compiled(bundle, other, b"x" * 100)
        assert other.is_file() and not paths[0].parent.exists()
    (entry,) = cache.entries()
    assert (cache_root / "entry") in other.parents and entry.nbytes > 100
    beside = cache_root.parent / "compiled"
    assert len(list(beside.iterdir())) == 1
    shutil.rmtree(tmp_path / "mine")
    following = convert(open_checkpoint(folder), tmp_path / "next", precision="fp32")
    cache.keep_compiled(following, cache.compiled_path(following, "one CPU", "graph"), b"x")
    assert len(list(beside.iterdir())) == 1  # of the bundle that is gone, nothing is left
    assert cache.clear() > 100 and not list(cache_root.parent.rglob("*.blob"))


def test_what_was_compiled_of_a_bundle_is_not_read_for_another_in_its_place(folder: Path, cache_root: Path, tmp_path: Path) -> None:
    convert(open_checkpoint(folder), tmp_path / "mine", precision="fp32")
    before = cache.compiled_path(cache.Bundle.open(tmp_path / "mine"), "one CPU", "graph")
    shutil.rmtree(tmp_path / "mine")
    convert(open_checkpoint(write_checkpoint(tmp_path / "other", {"rope_theta": 5000.0})), tmp_path / "mine", precision="fp32")
    assert cache.compiled_path(cache.Bundle.open(tmp_path / "mine"), "one CPU", "graph").parent != before.parent


def test_nothing_is_compiled_to_a_place_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = convert(open_checkpoint(folder), tmp_path / "mine", precision="fp32")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FASTVLM_CACHE", str(tmp_path / "file"))
    assert fastvlm.load(bundle.folder).generate(PROMPT, max_new_tokens=2).text is not None


def test_a_full_disk_keeps_nothing_compiled(folder: Path, cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = convert(open_checkpoint(folder), tmp_path / "mine", precision="fp32")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))  # type: ignore[attr-defined]
    path = cache.compiled_path(bundle, "one CPU", "graph")
    cache.keep_compiled(bundle, path, b"x" * 100)
    assert not list(cache_root.parent.rglob("*.blob"))
