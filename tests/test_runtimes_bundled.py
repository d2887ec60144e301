"""The runtimes that run bundles against the torch runtime on the same checkpoint, in float32."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoint_files import IMAGE_TOKEN_ID, random_model, tiny_config, write_tokenizer
from fastvlm.bundle import Bundle, BundleError
from fastvlm.checkpoint import open_checkpoint, save_pretrained
from fastvlm.convert import convert
from fastvlm.image_processing import ImageProcessor
from fastvlm.plugins import load_plugin
from fastvlm.processor import Processor
from fastvlm.runtimes import Runtime, load_runtime
from fastvlm.tokenizer import Tokenizer
from prompt_rows import make_prompt, make_rows

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "llama": {"model_type": "llama", "rope_parameters": LLAMA3},
    "mistral": {"model_type": "mistral", "sliding_window": 6},
}


def write_checkpoint(folder: Path, text: dict[str, Any], **config: Any) -> Path:
    model = random_model(tiny_config(text=text, **config))
    files = folder.with_name(f"{folder.name}-files")
    files.mkdir(parents=True)
    write_tokenizer(files)
    save_pretrained(model, Processor(Tokenizer.from_folder(files), ImageProcessor(size=256)), folder)
    return folder


CASES = [*(("openvino", family) for family in FAMILIES), ("onnxruntime", "qwen3"), ("onnxruntime", "mistral")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def runtimes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Runtime, Runtime]:
    """Ours and torch's."""
    name, family = request.param
    if (reason := load_plugin("fastvlm.runtimes", name).unavailable_reason()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(family)
    checkpoint = open_checkpoint(write_checkpoint(folder / "checkpoint", FAMILIES[family], tie=family != "llama"))
    bundle = convert(checkpoint, folder / "bundle", runtime=name, precision="fp32", random_weights=True)
    return load_runtime(name, bundle, threads=1), load_runtime("torch", checkpoint, dtype="float32", threads=1)


ROWS = make_rows(IMAGE_TOKEN_ID)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_batches_of_unequal_rows_decode_alike(runtimes: tuple[Runtime, Runtime]) -> None:
    steps = []
    for runtime in runtimes:
        logits, cache = runtime.prefill([ids for ids, _ in ROWS], [features for _, features in ROWS])
        found = [logits]
        found += [runtime.decode(np.random.default_rng(step).integers(0, 250, len(ROWS)), cache) for step in range(8)]
        assert cache.length == 17 + 8
        steps.append(np.stack(found))
    assert_close(*steps)


def test_rows_are_dropped_repeated_and_swapped_alike(runtimes: tuple[Runtime, Runtime]) -> None:
    steps = []
    for runtime in runtimes:
        _, cache = runtime.prefill([ids for ids, _ in ROWS], [features for _, features in ROWS])
        cache = runtime.reorder(cache, np.array([3, 1, 1, 0, 2]))
        cache = runtime.reorder(cache, np.array([0, 2, 1]))  # before the first takes effect
        found = [runtime.decode(np.array([5, 6, 7]), cache)]
        cache = runtime.reorder(cache, np.array([1]))
        found.append(runtime.decode(np.array([8]), cache))
        steps.append(np.concatenate(found))
    assert_close(*steps)


def test_appending_and_trimming_are_alike(runtimes: tuple[Runtime, Runtime]) -> None:
    first, second = make_prompt(15, 1, 6, IMAGE_TOKEN_ID), make_prompt(14, 2, 7, IMAGE_TOKEN_ID)
    steps = []
    for runtime in runtimes:
        logits, cache = runtime.prefill([first[0]], [first[1]])
        other, kept = runtime.prefill([second[0]], [second[1]])  # a second conversation beside it
        found = [logits, other, runtime.decode(np.array([3]), cache)]
        cache = runtime.trim(cache, 10)
        assert cache.length == 10
        logits, cache = runtime.prefill([second[0]], [second[1]], cache)
        found += [logits, runtime.decode(np.array([4]), kept), runtime.decode(np.array([4]), cache)]
        cache = runtime.trim(cache, 0)
        found.append(runtime.prefill([first[0]], [first[1]], cache)[0])
        steps.append(np.concatenate(found))
    assert_close(*steps)


def test_pictures_encode_alike(runtimes: tuple[Runtime, Runtime]) -> None:
    ours, theirs = runtimes
    for shape in ((1, 3, 64, 64), (3, 3, 128, 192)):
        pixels = np.random.default_rng(0).random(shape, np.float32)
        expected = theirs.encode_images(pixels)
        np.testing.assert_allclose(ours.encode_images(pixels), expected, atol=1e-4 * np.abs(expected).max())


def test_wrong_inputs_are_refused(runtimes: tuple[Runtime, Runtime]) -> None:
    ours = runtimes[0]
    with pytest.raises(ValueError, match="pixel_values"):
        ours.encode_images(np.zeros((1, 3, 64, 100), np.float32))
    with pytest.raises(ValueError, match="at least one id"):
        ours.prefill([np.array([], np.int64)], [None])
    with pytest.raises(ValueError, match="1 image tokens in input_ids but 0 image features"):
        ours.prefill([np.array([1, IMAGE_TOKEN_ID])], [None])
    _, cache = ours.prefill([np.array([1, 2]), np.array([3])], [None, None])
    with pytest.raises(ValueError, match="cache of 2 rows"):
        ours.prefill([np.array([1])], [None], cache)
    _, cache = ours.prefill([np.array([1, 2])], [None])
    with pytest.raises(ValueError, match="cannot trim"):
        ours.trim(cache, 3)


def test_pictures_of_any_shape_after_another(runtimes: tuple[Runtime, Runtime]) -> None:
    """Sizes have compiled graphs of their own, of which a few are kept."""
    ours, theirs = runtimes
    for height, width in ((64, 64), (128, 128), (64, 192), (192, 192), (192, 64), (64, 64)):
        pixels = np.random.default_rng(height).random((1, 3, height, width), np.float32)
        expected = theirs.encode_images(pixels)
        np.testing.assert_allclose(ours.encode_images(pixels), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_other_precisions_stay_near(tmp_path: Path, precision: str) -> None:
    """Wide layers, so that rounding averages out as it does in real ones."""
    text = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", text))
    ours = load_runtime("openvino", convert(checkpoint, tmp_path / "bundle", precision=precision, random_weights=True), threads=1)
    theirs = load_runtime("torch", checkpoint, dtype="float32", threads=1)
    pixels = checkpoint.processor()([{"role": "user", "content": [{"type": "image", "image": picture()}]}]).pixel_values
    features = [runtime.encode_images(pixels).ravel() for runtime in (ours, theirs)]
    assert np.corrcoef(features)[0, 1] > 0.95
    logits = [runtime.prefill([ROWS[3][0]], [None])[0][0] for runtime in (ours, theirs)]
    assert np.corrcoef(logits)[0, 1] > (0.8 if precision == "int4" else 0.99)
    language = (tmp_path / "bundle/language.bin").stat().st_size
    full = sum(tensor.info.numel for tensor in checkpoint.tensors() if tensor.name.startswith("language_model"))
    assert language < full * {"bf16": 2.2, "int8": 1.2, "int4": 0.9}[precision]


def test_eight_bit_caches_are_trimmed_and_reordered(tmp_path: Path) -> None:
    """State goes out and in again as float; that must not lose what it held."""
    text = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", text))
    runtime = load_runtime("openvino", convert(checkpoint, tmp_path / "bundle", precision="int8", random_weights=True), threads=1)
    ids = np.arange(40)
    expected, cache = runtime.prefill([ids], [None])
    cache = runtime.trim(cache, 25)
    found, cache = runtime.prefill([ids[25:]], [None], cache)
    assert np.corrcoef(found[0], expected[0])[0, 1] > 0.99
    cache = runtime.trim(runtime.reorder(cache, np.array([0])), 30)
    found, _ = runtime.prefill([ids[30:]], [None], cache)
    assert np.corrcoef(found[0], expected[0])[0, 1] > 0.99


def picture() -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))


def test_a_bundle_of_another_runtime_or_precision_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", {}))
    bundle = convert(checkpoint, tmp_path / "bundle", precision="fp32", random_weights=True)
    with pytest.raises(BundleError, match="made in fp32, not int8"):
        load_runtime("openvino", bundle, dtype="int8")
    with pytest.raises(ValueError, match="device is 'cuda'"):
        load_runtime("openvino", bundle, device="cuda")
    (bundle.folder / "language.bin").write_bytes(b"cut")
    with pytest.raises(BundleError, match=r"language\.bin has 3 bytes"):
        Bundle.open(bundle.folder)


def test_float32_tables_are_exact(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = random_model(tiny_config()).to(dtype)
        save_pretrained(model, None, tmp_path / str(dtype))
        write_tokenizer(tmp_path / str(dtype))
        bundle = convert(open_checkpoint(tmp_path / str(dtype)), tmp_path / f"{dtype}-bundle", precision="fp32", random_weights=True)
        ids = np.array([[0, 319], [7, 7]])
        expected = model.language_model.embed_tokens.weight[torch.from_numpy(ids)].detach().float().numpy()
        np.testing.assert_array_equal(bundle.embeddings()[ids], expected)


def test_graphs_read_back_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second load takes its graphs from disk, bit for bit what was compiled; damaged ones, and where none can be kept, are compiled."""
    from fastvlm.runtimes import openvino

    class Watched:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(core, name)

    core, calls = openvino.core(), list[str]()
    monkeypatch.setattr(openvino, "core", Watched)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", {}))
    bundle = convert(checkpoint, tmp_path / "bundle", precision="fp32", random_weights=True)
    square, wide = (np.random.default_rng(0).random((1, 3, 128, width), np.float32) for width in (128, 192))
    monkeypatch.setenv("FASTVLM_CACHE", str(tmp_path / "kept"))
    (tmp_path / "file").write_text("in the way")

    def results() -> list[np.ndarray]:
        runtime = load_runtime("openvino", bundle)
        logits, _ = runtime.prefill([np.arange(5)], [None], runtime.new_cache(1))
        return [logits, runtime.encode_images(square), runtime.encode_images(wide)]

    expected = results()
    kept = list((tmp_path / "kept").rglob("*.blob"))
    for place, found, compiled in (("kept", kept, 0), ("kept", kept[:1], 1), ("kept", [], 0), ("file", [], 3)):
        if len(found) == 1:
            found[0].write_bytes(found[0].read_bytes()[:1000])
        monkeypatch.setenv("FASTVLM_CACHE", str(tmp_path / place))
        calls.clear()
        assert all(map(np.array_equal, results(), expected))
        assert calls.count("compile_model") == compiled
    assert len(kept) == 3


SIGNALS_AFTER_A_THREAD = """
import os, signal, sys, threading
from fastvlm.bundle import Bundle
from fastvlm.runtimes import load_runtime
signal.signal(signal.SIGINT, lambda *_: print("handled"))
loaded = [load_runtime("openvino", Bundle.open(sys.argv[1]))]
thread = threading.Thread(target=loaded.clear)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_signals_are_handled_after_another_thread_has_dropped_the_runtime(tmp_path: Path) -> None:
    """OpenVINO takes away the stack for signals that it gave the main thread: Ctrl-C would end a server with a segmentation fault."""
    convert(open_checkpoint(write_checkpoint(tmp_path / "checkpoint", {})), tmp_path / "bundle", precision="fp32", random_weights=True)
    command = [sys.executable, "-c", SIGNALS_AFTER_A_THREAD, str(tmp_path / "bundle")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


@pytest.mark.parametrize(
    "fields, expected",
    [
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", True),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16 amx_bf16", False),
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16", False),
        ("Features : asimd bf16", False),
    ],
)
def test_cpus_that_are_slow_in_bfloat16(tmp_path: Path, fields: str, expected: bool) -> None:
    from fastvlm.runtimes.openvino import _bfloat16_is_slow

    cpuinfo = tmp_path / "cpuinfo"
    assert not _bfloat16_is_slow(cpuinfo)  # not known
    cpuinfo.write_text(f"processor : 0\n{fields}\n")
    assert _bfloat16_is_slow(cpuinfo) is expected


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("flags\t\t: fpu avx2 fma", False),
        ("flags\t\t: avx2 avx_vnni", True),
        ("flags : avx512f avx512_vnni\n", True),
        ("Features : asimd", True),
    ],
)
def test_cpus_that_multiply_integers(tmp_path: Path, flags: str, expected: bool) -> None:
    from fastvlm.runtimes.openvino import _has_vnni

    cpuinfo = tmp_path / "cpuinfo"
    assert _has_vnni(cpuinfo)  # not known
    cpuinfo.write_text(f"processor\t: 0\n{flags}\npower management:\n")
    assert _has_vnni(cpuinfo) is expected
