"""Opening and loading checkpoints in every layout, and what is said when one is not as it should be."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from checkpoint_files import (
    APPLE_CONFIG,
    IMAGE_TOKEN_ID,
    apple_tensors,
    copy,
    edit_json,
    make_zip,
    random_model,
    snapshot,
    tiny_config,
    write_apple,
)
from fastvlm.checkpoint import CheckpointError, open_checkpoint, save_pretrained
from fastvlm.checkpoint.keymap import APPLE
from fastvlm.checkpoint.memory import available_memory_bytes
from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.model.fastvlm import FastVLMModel

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TOWER = "model.vision_tower.vision_tower.model."


@pytest.fixture(scope="module")
def model() -> FastVLMModel:
    return random_model(tiny_config())


@pytest.fixture(scope="module")
def apple(model: FastVLMModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_apple(tmp_path_factory.mktemp("apple") / "llava-tiny", apple_tensors(model))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVLM_CACHE", str(tmp_path / "cache"))


def assert_same_weights(loaded: FastVLMModel, model: FastVLMModel) -> None:
    expected = model.state_dict()
    assert set(loaded.state_dict()) == set(expected)
    for name, value in loaded.state_dict().items():
        assert not value.is_meta
        assert torch.equal(value, expected[name]), name


def fails(path: Path | str, *words: str) -> str:
    """The error of opening and loading `path`: one line that has these words and no path into this library."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path).load_model("float32")
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message and "Traceback" not in message
    return message


# Apple's layout


def test_apple_folder_loads_every_tensor_exactly(apple: Path, model: FastVLMModel) -> None:
    checkpoint = open_checkpoint(apple)
    loaded = checkpoint.load_model("float32")
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert checkpoint.config.image_token_id == IMAGE_TOKEN_ID
    assert checkpoint.context_length == 256
    assert checkpoint.config.vision_config == VisionConfig(**vars(tiny_config().vision_config))
    assert checkpoint.notes == []
    assert set(checkpoint.dropped) == {HEAD, TOWER + "head.proj"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("root", ["", None], ids=["in a folder", "at the top"])
def test_zip_loads_like_the_folder_and_nothing_appears_beside_it(
    apple: Path, model: FastVLMModel, tmp_path: Path, compression: int, root: str | None
) -> None:
    (tmp_path / "zips").mkdir()
    archive = make_zip(apple, tmp_path / "zips" / "llava-tiny.zip", compression, root)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/llava-tiny/._config.json", "x")
    before = snapshot(tmp_path / "zips")
    checkpoint = open_checkpoint(archive)
    assert_same_weights(checkpoint.load_model("float32"), model)
    assert snapshot(tmp_path / "zips") == before
    folder = checkpoint.source.folder()
    assert (folder / "vocab.json").is_file() and not (folder / "model.safetensors").exists()
    unpacked = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(unpacked) == (compression == zipfile.ZIP_DEFLATED)
    if unpacked:
        written = unpacked[0].stat().st_mtime_ns
        assert_same_weights(open_checkpoint(archive).load_model("float32"), model)
        assert unpacked[0].stat().st_mtime_ns == written, "unpacked a second time"


def test_deflated_zip_loads_without_a_writable_cache(
    apple: Path, model: FastVLMModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file where the cache should be")
    monkeypatch.setenv("FASTVLM_CACHE", str(tmp_path / "file" / "cache"))
    archive = make_zip(apple, tmp_path / "model.zip", zipfile.ZIP_DEFLATED)
    assert_same_weights(open_checkpoint(archive).load_model("float32"), model)


def test_read_only_folder_is_left_as_it_is(apple: Path, tmp_path: Path) -> None:
    folder = copy(apple, tmp_path / "read-only")
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    before = snapshot(folder)
    try:
        checkpoint = open_checkpoint(folder)
        checkpoint.describe()
        checkpoint.load_model("bfloat16")
        assert snapshot(folder) == before
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_load_like_one_file(model: FastVLMModel, tmp_path: Path, with_index: bool) -> None:
    tensors = apple_tensors(model)
    folder = write_apple(tmp_path / "sharded", tensors)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for index, part in enumerate((names[:50], names[50:120], names[120:]), start=1):
        file_name = f"model-{index:05d}-of-00003.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / file_name)
        weight_map.update(dict.fromkeys(part, file_name))
    if with_index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    checkpoint = open_checkpoint(folder)
    assert_same_weights(checkpoint.load_model("float32"), model)
    assert checkpoint.describe()["weight_files"] == 3
    (folder / "model-00002-of-00003.safetensors").unlink()
    fails(folder, "3", "weight files")


def test_names_map_one_to_one_at_the_released_size() -> None:
    text = TextConfig.from_dict(
        {"model_type": "qwen2", **{k: APPLE_CONFIG[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads")},
         "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 320, "max_position_embeddings": 64}
    )  # fmt: skip
    with torch.device("meta"):
        ours = set(FastVLMModel(FastVLMConfig(VisionConfig(), text, 300)).state_dict())
    stored = {APPLE.stored(name) for name in ours}
    assert None not in stored and len(stored) == len(ours)
    assert {APPLE.ours(name) for name in stored} == ours
    # 924 tensors in the released 0.5B file; head.proj is the one that is dropped by name
    assert len(ours) == 924 - 1
    # a sample, spelled out from the released file
    assert APPLE.stored("vision_tower.stages.3.pos_emb.reparam_conv.weight") == TOWER + "network.6.reparam_conv.weight"
    assert APPLE.stored("vision_tower.stages.4.downsample.proj.0.reparam_conv.bias") == TOWER + "network.8.proj.0.lkb_reparam.bias"
    assert APPLE.stored("vision_tower.stages.4.blocks.1.layer_scale_2.gamma") == TOWER + "network.10.1.layer_scale_2"
    assert APPLE.stored("vision_tower.stages.1.blocks.11.mlp.conv.bn.running_var") == TOWER + "network.2.11.convffn.conv.bn.running_var"
    assert APPLE.stored("vision_tower.final_conv.se.fc2.bias") == TOWER + "conv_exp.se.expand.bias"
    assert APPLE.stored("multi_modal_projector.linear_2.weight") == "model.mm_projector.2.weight"


def test_old_files_with_rotary_tables_and_without_batch_counters_load(model: FastVLMModel, tmp_path: Path) -> None:
    tensors = {name: value for name, value in apple_tensors(model).items() if not name.endswith("num_batches_tracked")}
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    checkpoint = open_checkpoint(write_apple(tmp_path / "old", tensors))
    loaded = checkpoint.load_model("float32")
    assert "computed from the config" in checkpoint.dropped["model.layers.1.self_attn.rotary_emb.inv_freq"]
    ids = torch.arange(9)[None]
    assert torch.equal(loaded(ids), model(ids))


def test_embedding_trimmed_to_the_tokenizer_gets_a_row_for_the_image_token(model: FastVLMModel, tmp_path: Path) -> None:
    tensors = apple_tensors(model)
    for name in (EMBEDDING, HEAD):
        tensors[name] = tensors[name][:IMAGE_TOKEN_ID].clone()
    checkpoint = open_checkpoint(write_apple(tmp_path / "trimmed", tensors, vocab_size=IMAGE_TOKEN_ID))
    loaded = checkpoint.load_model("float32")
    assert checkpoint.config.image_token_id == IMAGE_TOKEN_ID and checkpoint.config.text_config.vocab_size == IMAGE_TOKEN_ID + 1
    assert any("one too few for the image token" in note for note in checkpoint.notes)
    ids, features = torch.tensor([[1, 2, IMAGE_TOKEN_ID, 5]]), torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(loaded(ids, features)[..., :IMAGE_TOKEN_ID], model(ids, features)[..., :IMAGE_TOKEN_ID])
    fails(write_apple(tmp_path / "too-short", tensors, vocab_size=IMAGE_TOKEN_ID - 5), "vocab_size", "tokenizer")


# The head


def test_tied_flag_wins_over_a_stored_head_that_differs_and_it_is_said(model: FastVLMModel, tmp_path: Path) -> None:
    folder = write_apple(tmp_path / "differs", apple_tensors(model, head=torch.randn(320, 32)))
    checkpoint = open_checkpoint(folder)
    assert_same_weights(checkpoint.load_model("float32"), model)
    assert len(checkpoint.notes) == 1 and "lm_head.weight" in checkpoint.notes[0] and "differs" in checkpoint.notes[0]
    assert any(note.startswith("lm_head.weight: the config ties") for note in checkpoint.describe()["dropped"])


def test_untied_flag_uses_the_stored_head_and_needs_one(tmp_path: Path) -> None:
    untied = random_model(tiny_config(tie=False))
    tensors = apple_tensors(untied)
    folder = write_apple(tmp_path / "untied", tensors, tie_word_embeddings=False)
    checkpoint = open_checkpoint(folder)
    assert_same_weights(checkpoint.load_model("float32"), untied)
    assert checkpoint.describe()["head"] == "its own"
    del tensors[HEAD]
    fails(write_apple(tmp_path / "headless", tensors, tie_word_embeddings=False), "lm_head.weight", "[320, 32]", "tie_word_embeddings")


def test_tied_file_that_kept_only_the_head_loads(model: FastVLMModel, tmp_path: Path) -> None:
    tensors = apple_tensors(model)
    del tensors[EMBEDDING]
    assert_same_weights(open_checkpoint(write_apple(tmp_path / "head-only", tensors)).load_model("float32"), model)


# dtypes and memory


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_stored_dtypes_are_read_and_converted(model: FastVLMModel, tmp_path: Path, stored: torch.dtype) -> None:
    checkpoint = open_checkpoint(write_apple(tmp_path / "stored", apple_tensors(model, dtype=stored)))
    assert checkpoint.stored_dtypes == [str(stored).removeprefix("torch.")]
    for name, value in checkpoint.load_model("float32").state_dict().items():
        expected = model.state_dict()[name]
        assert torch.equal(value, expected.to(stored).float() if value.is_floating_point() else expected)
    half = checkpoint.load_model(torch.float16)
    assert half.vision_tower.stem[0].reparam_conv.weight.dtype == torch.float32, "the tower overflows in float16"
    assert half.language_model.norm.weight.dtype == half.multi_modal_projector.linear_1.weight.dtype == torch.float16


def test_dtype_auto_is_the_stored_one_where_it_is_fast(model: FastVLMModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write_apple(tmp_path / "stored", apple_tensors(model, dtype=torch.bfloat16)))
    for has_bf16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("fastvlm.model.precision.has_fast_bfloat16", lambda device, has_bf16=has_bf16: has_bf16)
        assert checkpoint.load_model().language_model.norm.weight.dtype == expected
    with pytest.raises(CheckpointError, match=r"dtype is 'int8'; supported: auto, float32"):
        checkpoint.load_model("int8")


def test_bfloat16_is_fast_where_it_is_faster_than_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvlm.model import precision

    cpu, times_s = torch.device("cpu"), {torch.bfloat16: 1.0, torch.float32: 2.0}
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_matrix_product_s", times_s.__getitem__)
    assert precision.has_fast_bfloat16(cpu)
    times_s[torch.float32] = 0.5
    assert not precision.has_fast_bfloat16(cpu)
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "_matrix_product_s", lambda dtype: pytest.fail("measured what the CPU does not have"))
    assert not precision.has_fast_bfloat16(cpu)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.uint8])
def test_other_stored_dtypes_are_refused(model: FastVLMModel, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = apple_tensors(model)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    fails(
        write_apple(tmp_path / "odd", tensors),
        "'model.norm.weight'",
        {torch.float64: "F64", torch.int8: "I8", torch.uint8: "U8"}[dtype],
        "BF16",
    )


def test_weights_that_cannot_fit_are_refused_with_the_numbers(apple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(apple)
    monkeypatch.setattr("fastvlm.checkpoint.checkpoint.available_memory_bytes", lambda: 100_000)
    monkeypatch.setattr(checkpoint.store, "read", lambda name: pytest.fail("read weights before the check"))
    with pytest.raises(CheckpointError, match=r"in float32 needs \d+ kB of memory and 100 kB are available; choose dtype bfloat16"):
        checkpoint.load_model("float32")


def test_available_memory_is_the_least_of_machine_and_containers(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal:  100 kB\nMemAvailable:   64 kB\n")
    assert available_memory_bytes(tmp_path) == 64 * 1024
    write("proc/self/cgroup", "0::/user/app\n")
    write("sys/fs/cgroup/user/app/memory.max", "max\n")
    write("sys/fs/cgroup/user/app/memory.current", "5000\n")
    assert available_memory_bytes(tmp_path) == 64 * 1024
    write("sys/fs/cgroup/user/memory.max", "20000\n")
    write("sys/fs/cgroup/user/memory.current", "15000\n")
    write("sys/fs/cgroup/user/memory.stat", "anon 1\ninactive_file 3000\n")
    assert available_memory_bytes(tmp_path) == 20000 - 15000 + 3000
    write("proc/self/cgroup", "4:cpu:/x\n5:memory:/box\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n")
    write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "4000\n")
    write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "1000\n")
    assert available_memory_bytes(tmp_path) == 3000
    assert (available_memory_bytes() or 0) > 0


# What is wrong is named


def test_missing_tensor_is_named_with_its_shape_and_what_is_near(model: FastVLMModel, tmp_path: Path) -> None:
    tensors = apple_tensors(model)
    tensors["model.layers.1.mlp.gate_projection.weight"] = tensors.pop("model.layers.1.mlp.gate_proj.weight")
    fails(write_apple(tmp_path / "m", tensors), "'model.layers.1.mlp.gate_proj.weight'", "[48, 32]", "closest present", "gate_projection")
    tensors = apple_tensors(model)
    del tensors[TOWER + "network.7.0.norm.bias"]
    del tensors[TOWER + "conv_exp.se.reduce.bias"]
    message = fails(write_apple(tmp_path / "m2", tensors), "conv_exp.se.reduce.bias", "network.7.0.norm.bias", "1 more")
    assert "fc1" not in message, "named as the file would name it"


@pytest.mark.parametrize(
    "name",
    [
        "model.image_newline",
        "model.layers.2.mlp.up_proj.weight",
        TOWER + "network.0.7.layer_scale",
        "model.layers.0.self_attn.q_norm.weight",
    ],
)
def test_extra_tensor_is_named(model: FastVLMModel, tmp_path: Path, name: str) -> None:
    fails(write_apple(tmp_path / "extra", {**apple_tensors(model), name: torch.zeros(3)}), repr(name))


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("model.layers.0.self_attn.k_proj.weight", (32, 32), "[16, 32]"),
        (TOWER + "network.2.0.convffn.conv.bn.running_mean", (17,), "[16]"),
        ("model.mm_projector.2.bias", (32, 1), "[32]"),
    ],
)
def test_wrong_shape_is_named_with_the_expected_one(
    model: FastVLMModel, tmp_path: Path, name: str, shape: tuple[int, ...], expected: str
) -> None:
    tensors = {**apple_tensors(model), name: torch.zeros(shape)}
    fails(write_apple(tmp_path / "shape", tensors), repr(name), str(list(shape)), f"expected {expected}")


def test_tensor_in_two_files_is_named(model: FastVLMModel, tmp_path: Path) -> None:
    tensors = apple_tensors(model)
    folder = write_apple(tmp_path / "twice", tensors)
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_file(tensors, folder / "model-00001-of-00002.safetensors")
    safetensors.torch.save_file({"model.norm.weight": tensors["model.norm.weight"]}, folder / "model-00002-of-00002.safetensors")
    fails(folder, "'model.norm.weight' is in two files")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_weights_say_so(apple: Path, tmp_path: Path, keep: float) -> None:
    folder = copy(apple, tmp_path / "truncated")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    fails(folder, "model.safetensors", "download it again")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04" + b"\0" * 100, "pickle"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "header should be 1152921504606846976 bytes long"),
    ],
)
def test_files_that_are_no_safetensors_are_recognised(apple: Path, tmp_path: Path, content: bytes, words: str) -> None:
    folder = copy(apple, tmp_path / "fake")
    (folder / "model.safetensors").write_bytes(content)
    fails(folder, words)


def test_pickles_are_refused_with_the_reason_and_a_way_out(apple: Path, tmp_path: Path) -> None:
    folder = copy(apple, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    fails(folder, "pytorch_model.bin", "run code", "save_file")


def test_no_code_from_a_checkpoint_runs(apple: Path, tmp_path: Path) -> None:
    folder = copy(apple, tmp_path / "with-code")
    (folder / "llava_qwen.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    open_checkpoint(folder).load_model("float32")
    assert not (tmp_path / "ran").exists()


def test_opening_and_describing_import_no_torch(apple: Path) -> None:
    code = (
        "import sys; from fastvlm.checkpoint import open_checkpoint; c = open_checkpoint(sys.argv[1]); c.stored_dtypes; c.notes;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(apple)], check=True)


def test_paths_that_are_not_there_say_what_can_be_named(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere", "there is no file or folder", "hub id", "nano")
    fails("./no/such/folder", "there is no file or folder")
    fails("7b-stage2", "fastvlm pull 7b-stage2")
    fails("someone/no-such-model", "'someone/no-such-model'", "hub")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "has no config.json")
    (tmp_path / "text.txt").write_text("hello")
    fails(tmp_path / "text.txt", "neither a folder nor a zip")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    fails(tmp_path / "model.gguf", "GGUF")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 no zip")
    fails(tmp_path / "broken.zip", "no zip file")
    with pytest.raises(CheckpointError, match="revision 'main' belongs to a hub id"):
        open_checkpoint(tmp_path / "empty", revision="main")


def test_zip_with_several_checkpoints_is_refused(apple: Path, tmp_path: Path) -> None:
    archive = make_zip(apple, tmp_path / "two.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.write(apple / "config.json", "other/config.json")
    fails(archive, "several checkpoints", "'llava-tiny'", "'other'")


def test_damaged_zip_member_is_found(apple: Path, tmp_path: Path) -> None:
    archive = make_zip(apple, tmp_path / "damaged.zip", zipfile.ZIP_DEFLATED)
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("llava-tiny/model.safetensors")
    data[info.header_offset + info.compress_size // 2] ^= 0xFF
    archive.write_bytes(data)
    fails(archive, "model.safetensors", "download the zip again")


def test_apple_export_for_mlx_points_to_the_original(apple: Path, model: FastVLMModel, tmp_path: Path) -> None:
    tensors = {name: value for name, value in apple_tensors(model).items() if "vision_tower" not in name}
    folder = write_apple(tmp_path / "mlx", tensors, vision_config={}, image_token_index=IMAGE_TOKEN_ID)
    (folder / "fastvithd.mlpackage").mkdir()
    fails(folder, "no vision tower", "fastvithd.mlpackage", "PyTorch checkpoint")
    quantised = write_apple(tmp_path / "int8", tensors, quantization={"group_size": 64, "bits": 8})
    fails(quantised, "quantised")


@pytest.mark.parametrize("model_type", [..., None, "llava", "qwen2", "fastvlm", 3, ["fast_vlm"]])
def test_unknown_model_type_is_refused_with_the_known_ones(apple: Path, tmp_path: Path, model_type: object) -> None:
    folder = copy(apple, tmp_path / "edited")
    edit_json(folder / "config.json", model_type=model_type)
    fails(folder, "model_type", "fast_vlm", "llava_qwen2")


def test_errors_in_a_part_of_the_config_name_the_file(apple: Path, tmp_path: Path) -> None:
    native = save_pretrained(open_checkpoint(apple), open_checkpoint(apple).processor(), tmp_path / "native")
    values = json.loads((native / "config.json").read_text())
    del values["text_config"]["hidden_size"]
    (native / "config.json").write_text(json.dumps(values))
    fails(native, "native/config.json: text_config has no 'hidden_size'")


def test_a_missing_picture_recipe_is_said(apple: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    native = save_pretrained(open_checkpoint(apple), open_checkpoint(apple).processor(), tmp_path / "native")
    open_checkpoint(native).processor()
    assert caplog.text == ""
    (native / "preprocessor_config.json").unlink()
    assert open_checkpoint(native).processor().image_processor.size == 1024
    assert "has no preprocessor_config.json" in caplog.text
