"""Converting: the guard, what it refuses, what the manifest says, and the command line."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvlm
from fastvlm import cli, convert
from fastvlm.bundle import Bundle, BundleError, is_bundle
from fastvlm.checkpoint import open_checkpoint
from fastvlm.checkpoint.source import RANDOM_WEIGHTS_FILE
from fastvlm.convert import AccuracyError, _guard, _quantize, _quantize_encoder
from fastvlm.runtimes import load_runtime
from test_runtimes_bundled import write_checkpoint


@pytest.fixture(autouse=True)
def smaller_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thresholds stay; fewer pictures and positions."""
    monkeypatch.setattr(convert, "GUARD_PICTURES", 3)
    monkeypatch.setattr(convert, "GUARD_POSITIONS", 90)
    monkeypatch.setattr(convert, "CALIBRATION_PICTURES", 3)
    monkeypatch.setattr(convert, "SMALL_MODEL_QUESTIONS", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", {})


def values(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["measure"]: row["value"] for row in rows}


def test_float32_passes_the_guard_and_the_manifest_says_how(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert cli.main(["convert", str(folder), "--precision", "fp32", "--out", str(out)]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(out)
    assert "agreement of the next token" in output.err
    assert re.search(r"^converted in \d+ s, with at most [\d.]+ [GM]B of memory$", output.err, re.MULTILINE)
    manifest = Bundle.open(out).manifest
    found = values(manifest.accuracy)
    assert found["mean cosine of image features"] > 0.99999
    assert found["agreement of the next token"] == 1
    assert found["loss of score"] == 0
    assert {row["count"] for row in manifest.accuracy if row["measure"].startswith("agreement")} == {90}
    assert manifest.precision == "fp32"
    assert manifest.source["label"] == str(folder)
    assert set(manifest.versions) >= {"fastvlm", "openvino", "torch"}
    assert not manifest.random_weights
    assert set(manifest.files) == {path.name for path in out.iterdir()} - {"manifest.json"}
    assert cli.main(["convert", str(folder), "--precision", "fp32", "--out", str(out)]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_the_reference_is_what_the_torch_runtime_says(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard's own float32 pass, layer by layer, against the whole model."""
    seen = []
    measure = _guard.measure
    monkeypatch.setattr(_guard, "measure", lambda runtime, reference: seen.append(reference) or measure(runtime, reference))
    checkpoint = open_checkpoint(folder)
    convert.convert(checkpoint, tmp_path / "bundle", precision="fp32", questions=0)
    runtime: Any = load_runtime("torch", checkpoint, dtype="float32", threads=1)
    (reference,) = seen
    for sample, features, tokens in zip(reference.samples, reference.features, reference.tokens, strict=True):
        np.testing.assert_allclose(features, runtime.encode_images(sample.pixel_values), atol=1e-4 * np.abs(features).max())
        ids = np.concatenate((sample.input_ids, sample.forced_ids))
        logits = runtime.logits(ids[None], features)[0]
        np.testing.assert_array_equal(tokens, logits[len(sample.input_ids) - 1 : -1].argmax(-1))


@pytest.mark.parametrize("part", ["encoder", "layer"])
def test_a_corrupted_scale_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """One constant of the graph is wrong, as a bug of a quantiser would make it."""

    def corrupt(model: Any) -> Any:
        import openvino as ov
        from openvino import opset13 as ops

        node = [
            node for node in model.get_ordered_ops()
            if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32 and math.prod(node.get_output_shape(0)) > 1000
        ][-1]  # fmt: skip
        wrong = ops.multiply(node, np.array(-7, np.float32))
        for target in node.output(0).get_target_inputs():
            if target.get_node() != wrong:
                target.replace_source_output(wrong.output(0))
        return model

    if part == "layer":
        monkeypatch.setattr(_quantize.Compressor, "layer", lambda self, model: corrupt(model))
    else:
        from fastvlm.convert import _vision

        trace = _vision.trace_encoder
        monkeypatch.setattr(_vision, "trace_encoder", lambda encoder: corrupt(trace(encoder)))
    checkpoint = open_checkpoint(folder)
    with pytest.raises(AccuracyError, match="too far from float32") as caught:
        convert.convert(checkpoint, tmp_path / "bundle", precision="fp32", questions=0)
    assert any(not row["passed"] for row in caught.value.rows)
    assert not (tmp_path / "bundle").exists()
    assert list(tmp_path.iterdir()) == []
    bundle = convert.convert(checkpoint, tmp_path / "forced", precision="fp32", questions=0, force=True)
    assert bundle.manifest.forced
    assert any("refused" in note for note in bundle.notes)


def test_the_default_is_the_fastest_that_passes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measure(runtime: Any, reference: Any) -> list[dict[str, Any]]:
        tried.append(runtime.precision)
        return [_guard._row("agreement of the next token", 0.9 if runtime.precision == "int8" else 0.99, 10, least=0.95)]

    monkeypatch.setattr(_guard, "measure", measure)
    monkeypatch.setattr(convert, "_is_fast", lambda precision: True)
    bundle = convert.convert(open_checkpoint(folder), tmp_path / "bundle", questions=0)
    assert tried == ["int8", "bf16"]
    assert bundle.manifest.precision == "bf16"


def test_random_weights_are_marked_and_exempt(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "random", {})
    (folder / RANDOM_WEIGHTS_FILE).write_text("")
    bundle = convert.convert(open_checkpoint(folder), tmp_path / "bundle", precision="int8")
    assert bundle.manifest.random_weights
    assert bundle.manifest.accuracy == []
    vlm = fastvlm.load(bundle.folder, threads=1)
    assert any("weights are random" in note for note in bundle.notes)
    assert vlm.generate([{"role": "user", "content": "in"}], max_new_tokens=2).token_ids


def test_an_adapter_is_merged_as_torch_does(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    checkpoint = open_checkpoint(folder)
    wrapped = peft.get_peft_model(checkpoint.load_model("float32"), peft.LoraConfig(r=4, target_modules=["q_proj", "linear_1"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    wrapped.save_pretrained(tmp_path / "adapter")
    bundle = convert.convert(checkpoint, tmp_path / "bundle", precision="fp32", adapter=tmp_path / "adapter", questions=0)
    ids = np.arange(12)
    ours, theirs, plain = (
        runtime.prefill([ids], [None])[0]
        for runtime in (
            load_runtime("openvino", bundle, threads=1),
            load_runtime("torch", checkpoint, dtype="float32", adapter=tmp_path / "adapter"),
            load_runtime("torch", checkpoint, dtype="float32"),
        )
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(plain - theirs).max() > 0.01 * np.abs(theirs).max()


def test_a_folder_of_pictures_calibrates(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    command = ["convert", str(folder), "--precision", "int8", "--calibration", str(pictures), "--force", "--out", str(tmp_path / "bundle")]
    assert cli.main(command) == 1
    assert "has 0 pictures" in capsys.readouterr().err
    for number in range(4):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (90, 120, 3), np.uint8)).save(pictures / f"{number}.png")
    assert cli.main(command) == 0
    assert is_bundle(tmp_path / "bundle")


def test_what_cannot_be_converted_says_why(tmp_path: Path) -> None:
    text = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    folder = write_checkpoint(tmp_path / "dynamic", text)
    with pytest.raises(BundleError, match="rope_type 'dynamic'.*runtime='torch'"):
        convert.convert(open_checkpoint(folder), tmp_path / "bundle")
    assert fastvlm.load(folder, threads=1).runtime.name == "torch"
    with pytest.raises(BundleError, match="precision is 'int3'"):
        convert.convert(open_checkpoint(write_checkpoint(tmp_path / "plain", {})), tmp_path / "bundle", precision="int3")


@pytest.mark.parametrize("groups", [8, 4, 1])
def test_a_channel_of_large_weights_leaves_the_others_their_precision(groups: int) -> None:
    """As BatchNorm of a variance near zero leaves one, folded: weights 10,000 times as large for an input that is nearly nothing."""
    import openvino as ov
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    pictures = [rng.normal(size=(1, 8, 32, 32)).astype(np.float32) for _ in range(4)]
    pixels = ops.parameter([-1, 8, -1, -1], np.float32, name="pixel_values")
    pixels.output(0).set_names({"pixel_values"})
    shape = (8, 8, 3, 3) if groups == 1 else (groups, 8 // groups, 8 // groups, 3, 3)
    weights = rng.normal(size=shape).astype(np.float32)
    weights.reshape(8, -1)[3] *= 1e4
    convolve = ops.convolution if groups == 1 else ops.group_convolution
    seen = convolve(pixels, ops.constant(weights), [1, 1], [1, 1], [1, 1], [1, 1])
    model = ov.Model([ops.result(ops.add(seen, ops.constant(rng.normal(size=(1, 8, 1, 1)).astype(np.float32))))], [pixels])

    def outputs(model: Any) -> np.ndarray:
        compiled = ov.Core().compile_model(model, "CPU", {"LP_TRANSFORMS_MODE": "NO", "INFERENCE_PRECISION_HINT": "f32"})
        return compiled(pictures[0])[0]

    exact = outputs(model)
    error = np.abs(outputs(_quantize_encoder.quantize_encoder(model, pictures)) - exact).mean((0, 2, 3)) / np.abs(exact).mean((0, 2, 3))
    assert error.max() < 0.03


def _uneven_encoder() -> Any:
    """Three 1 x 1 convolutions: the second reads a channel a hundred times as large as the others, the third values of a long tail."""
    import openvino as ov
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    first, second, third = (rng.normal(size=shape).astype(np.float32) for shape in ((16, 8, 1, 1), (16, 16, 1, 1), (32, 16, 1, 1)))
    first[5] *= 100
    second[:, 5] /= 100

    def convolve(x: Any, weights: np.ndarray) -> Any:
        return ops.convolution(x, ops.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1])

    pixels = ops.parameter([-1, 8, -1, -1], np.float32, name="pixel_values")
    pixels.output(0).set_names({"pixel_values"})
    seen = ops.relu(convolve(pixels, first))
    tail = ops.power(ops.multiply(convolve(seen, second), np.float32(0.1)), np.float32(5))
    tokens = ops.reshape(convolve(tail, third), np.array([0, 32, -1]), True)
    return ov.Model([ops.result(ops.transpose(tokens, np.array([0, 2, 1])))], [pixels], "encoder")


def test_maps_that_int8_cannot_hold_are_left_out() -> None:
    """Of three rounded maps the long-tailed one goes, the uneven one stays: its scales move into the weights."""
    import openvino as ov

    rng = np.random.default_rng(1)
    pictures = [rng.normal(size=(1, 8, 32, 32)).astype(np.float32) for _ in range(4)]
    model = _uneven_encoder()

    def features(model: Any) -> np.ndarray:
        compiled = ov.Core().compile_model(model, "CPU", {"LP_TRANSFORMS_MODE": "NO", "INFERENCE_PRECISION_HINT": "f32"})
        return np.concatenate([compiled(picture)[0] for picture in pictures])

    def cosine(a: np.ndarray) -> float:
        return ((a * exact).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(exact, axis=-1) + 1e-30)).mean()

    exact = features(model)
    throughout = _quantize_encoder.quantize_encoder(model.clone(), pictures)
    assert cosine(features(throughout)) < 0.95
    quantized = _quantize_encoder.quantize_encoder(model, pictures, least_cosine=0.99)
    assert cosine(features(quantized)) >= 0.99
    rounded = [node for node in quantized.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    assert len(rounded) == 2
    readers = {target.get_node().get_type_name() for node in rounded for target in node.output(0).get_target_inputs()}
    assert readers == {"Convolution"}


def test_the_loss_of_a_map_is_that_of_it_rounded_alone() -> None:
    """The pictures' own, against pictures that numpy rounded, shown to the graph without any rounding of maps."""
    rng = np.random.default_rng(2)
    pictures = [rng.normal(size=(1, 8, 16, 16)).astype(np.float32) for _ in range(4)]
    model = _uneven_encoder()
    exact = _quantize_encoder._compile(model)
    wanted = [exact([picture])[0].copy() for picture in pictures]
    quantized = _quantize_encoder._quantize(model, pictures, is_careful=True)
    first, *_ = maps = _quantize_encoder._rounded(quantized)
    assert len(maps) == 3
    smoothing = first.input_value(0).get_node().input_value(1).get_node().data
    low, high = (first.input_value(number).get_node().data for number in (1, 2))
    step = (high - low) / 255
    rounded = [(np.round((np.clip(picture * smoothing, low, high) - low) / step) * step + low) / smoothing for picture in pictures]
    alone = _quantize_encoder._Switched(quantized, pictures, wanted).loss(np.array([1, 0, 0]))
    by_hand = _quantize_encoder._Switched(quantized, [picture.astype(np.float32) for picture in rounded], wanted).loss(np.zeros(3))
    assert alone == pytest.approx(by_hand, abs=1e-6) and alone > 1e-4
