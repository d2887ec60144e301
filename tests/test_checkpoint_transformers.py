"""Our native layout is transformers' `fast_vlm`: what it saves loads here, what we save loads there, and both compute the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_files import (
    IMAGE_TOKEN_ID,
    TEXT,
    TOWER,
    apple_tensors,
    edit_json,
    random_model,
    snapshot,
    tiny_config,
    write_apple,
    write_tokenizer,
)
from fastvlm.checkpoint import CheckpointError, open_checkpoint, save_pretrained
from fastvlm.config import FastVLMConfig
from fastvlm.model.fastvithd import fold, reparameterize
from fastvlm.model.fastvlm import FastVLMModel

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": dict(model_type="qwen2"),
    "qwen2-untied": dict(model_type="qwen2", tie_word_embeddings=False),
    "qwen2-window": dict(model_type="qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": dict(model_type="qwen3", head_dim=8),
    "llama": dict(model_type="llama", rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4)),
    "mistral": dict(model_type="mistral", sliding_window=5),
    "gpt_neox": dict(model_type="gpt_neox", tie_word_embeddings=False),  # its names are not those that FastVlm can tie
    "gpt2": dict(model_type="gpt2", tie_word_embeddings=False),  # n_embd, n_head, n_positions
    "phi": dict(model_type="phi", tie_word_embeddings=False),  # its own head has a bias, FastVlm's has none
    "gemma2": dict(model_type="gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=8, final_logit_softcapping=None),
    "mixtral": dict(model_type="mixtral", num_local_experts=4),  # its experts are stored one by one and computed as one tensor
    "qwen2_moe": dict(model_type="qwen2_moe", num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=40),
}


@pytest.fixture(autouse=True)
def _eager_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_FUSED_ATTN", "0")


def reference(text: dict[str, Any], inference_mode: bool = True) -> Any:
    """transformers' model at a small size, tower included, with random weights."""
    values = {**TEXT, "vocab_size": 320, "tie_word_embeddings": True, **text}
    config = transformers.FastVlmConfig(
        text_config=values,
        vision_config=dict(
            model_type="timm_wrapper",
            architecture="fastvit_mci3",
            do_pooling=True,
            global_pool="avg",
            hidden_size=2 * TOWER["embed_dims"][-1],
            model_args=dict(**{name: list(value) for name, value in TOWER.items()}, inference_mode=inference_mode),
        ),
        image_token_index=IMAGE_TOKEN_ID,
        tie_word_embeddings=values["tie_word_embeddings"],
    )
    torch.manual_seed(0)
    model = transformers.FastVlmForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.uniform_(0.5, 1.5) if "norm" in name or "gamma" in name else value.normal_(std=0.2)
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return model


def prompt(num_image_tokens: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    before, after = torch.randint(0, 250, (1, 5), generator=generator), torch.randint(0, 250, (1, 7), generator=generator)
    return torch.cat((before, torch.full((1, num_image_tokens), IMAGE_TOKEN_ID), after), dim=1)


def assert_same_logits(theirs: Any, ours: FastVLMModel, side: int = 128) -> None:
    pixel_values = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    input_ids = prompt((side // 64) ** 2)
    with torch.inference_mode():
        expected = theirs(input_ids=input_ids, pixel_values=pixel_values, attention_mask=torch.ones_like(input_ids)).logits
        computed = ours(input_ids, pixel_values=pixel_values)
    assert expected.std() > 0.1
    # both in float32; sums are ordered differently
    torch.testing.assert_close(computed, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_loads_here_and_computes_the_same(family: str, tmp_path: Path) -> None:
    theirs = reference(FAMILIES[family])
    theirs.save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert checkpoint.layout == "fast_vlm"
    assert_same_logits(theirs, checkpoint.load_model("float32"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_save_loads_in_transformers_and_computes_the_same(family: str, tmp_path: Path) -> None:
    original = reference(FAMILIES[family])
    original.save_pretrained(tmp_path / "theirs")
    ours = open_checkpoint(tmp_path / "theirs").load_model("float32")
    save_pretrained(ours, None, tmp_path / "ours")
    theirs, loading = transformers.FastVlmForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values()), loading
    assert_same_logits(theirs.eval(), ours)
    assert_same_logits(original, open_checkpoint(tmp_path / "ours").load_model("float32"))


def test_transformers_loads_apples_checkpoint_after_save(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    checkpoint = open_checkpoint(write_apple(tmp_path / "apple", apple_tensors(model, dtype=torch.bfloat16)))
    save_pretrained(checkpoint, None, tmp_path / "native")
    theirs, loading = transformers.FastVlmForConditionalGeneration.from_pretrained(
        tmp_path / "native", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert_same_logits(theirs.eval(), checkpoint.load_model("float32"))
    native = transformers.FastVlmForConditionalGeneration.from_pretrained(tmp_path / "native")
    assert native.dtype == torch.bfloat16 and native.lm_head.weight is native.get_input_embeddings().weight


def test_training_form_of_the_tower_goes_to_transformers_and_back(tmp_path: Path) -> None:
    theirs = reference(FAMILIES["qwen2"], inference_mode=False)
    theirs.save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert not checkpoint.config.vision_config.inference_mode
    ours = checkpoint.load_model("float32")
    assert_same_logits(theirs, ours)
    save_pretrained(ours, None, tmp_path / "ours")
    again = transformers.FastVlmForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert_same_logits(again, open_checkpoint(tmp_path / "ours").load_model("float32"))
    ours.vision_tower = reparameterize(ours.vision_tower)
    save_pretrained(ours, None, tmp_path / "fused")
    assert open_checkpoint(tmp_path / "fused").config.vision_config.inference_mode
    assert_same_logits(theirs, open_checkpoint(tmp_path / "fused").load_model("float32"))


def test_shards_of_both_load_in_both(tmp_path: Path) -> None:
    theirs = reference(FAMILIES["qwen2-untied"])
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ours = open_checkpoint(tmp_path / "theirs").load_model("float32")
    assert_same_logits(theirs, ours)
    save_pretrained(ours, None, tmp_path / "ours", max_shard_bytes=100_000)
    shards = sorted((tmp_path / "ours").glob("model-*-of-*.safetensors"))
    assert len(shards) > 1 and max(path.stat().st_size for path in shards) < 120_000
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    assert_same_logits(transformers.FastVlmForConditionalGeneration.from_pretrained(tmp_path / "ours").eval(), ours)
    assert_same_logits(theirs, open_checkpoint(tmp_path / "ours").load_model("float32"))


def test_foreign_tables_that_are_not_stored_are_computed(tmp_path: Path) -> None:
    theirs = reference(FAMILIES["gpt_neox"])
    theirs.save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert checkpoint.config.text_config.foreign
    ours = checkpoint.load_model("bfloat16")
    buffers = {name: value for name, value in ours.language_model.named_buffers() if "inv_freq" in name}
    assert buffers and all(not value.is_meta and value.dtype == torch.float32 for value in buffers.values())
    assert {value.dtype for value in ours.parameters()} == {torch.bfloat16}


def test_foreign_tied_head_is_one_parameter_and_a_differing_one_is_noted(tmp_path: Path) -> None:
    import safetensors.torch

    theirs = reference(FAMILIES["gemma2"])
    theirs.save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    model = checkpoint.load_model("float32")
    assert model.lm_head.weight is model.input_embeddings().weight
    assert checkpoint.notes == []
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({**tensors, "lm_head.weight": torch.zeros(320, 32)}, path)
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert_same_logits(theirs, checkpoint.load_model("float32"))
    assert "differs" in checkpoint.notes[0]


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_autoprocessor_gives_the_same_ids_pixels_and_answer_after_save(tmp_path: Path, aspect: str) -> None:
    import numpy as np
    from PIL import Image

    model = random_model(tiny_config())
    checkpoint = open_checkpoint(write_apple(tmp_path / "apple", apple_tensors(model), image_aspect_ratio=aspect))
    processor = checkpoint.processor()
    assert processor.no_repeat_ngram_size == 0
    processor.no_repeat_ngram_size = 9
    save_pretrained(checkpoint, processor, tmp_path / "native")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8))
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is in the picture?"}]}]
    ours = processor(messages)
    theirs = transformers.AutoProcessor.from_pretrained(tmp_path / "native", backend="pil")
    text = theirs.apply_chat_template(messages, add_generation_prompt=True)
    inputs = theirs(images=picture, text=text, return_tensors="pt")
    assert inputs.input_ids.tolist() == ours.input_ids.tolist()
    np.testing.assert_allclose(inputs.pixel_values.numpy(), ours.pixel_values, atol=1e-6)
    # transformers' default backend, torchvision, rounds some values of the same recipe to the next of 255 levels
    default = transformers.AutoProcessor.from_pretrained(tmp_path / "native")(images=picture, text=text, return_tensors="pt")
    assert default.input_ids.tolist() == ours.input_ids.tolist()
    np.testing.assert_allclose(default.pixel_values.numpy(), ours.pixel_values, atol=1.01 / 255)
    again = open_checkpoint(tmp_path / "native")
    reread = again.processor()(messages)
    assert reread.input_ids.tolist() == ours.input_ids.tolist()
    np.testing.assert_array_equal(reread.pixel_values, ours.pixel_values)
    assert again.processor().no_repeat_ngram_size == 9
    assert again.processor().max_length == checkpoint.context_length == 256
    assert (
        again.describe()["image"]
        == checkpoint.describe()["image"]
        == {"size": 128, "mode": "pad" if aspect == "pad" else "crop", "tokens": 4}
    )
    reference_model = transformers.FastVlmForConditionalGeneration.from_pretrained(tmp_path / "native").eval()
    with torch.inference_mode():
        expected = reference_model(**inputs).logits
        computed = again.load_model("float32")(torch.from_numpy(reread.input_ids), pixel_values=torch.from_numpy(reread.pixel_values))
    torch.testing.assert_close(computed, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    assert reference_model.generation_config.eos_token_id == [262]
    assert reference_model.generation_config.no_repeat_ngram_size == 9
    assert json.loads((tmp_path / "native" / "config.json").read_text())["image_seq_length"] == 4


def test_foreign_model_whose_tie_transformers_cannot_express_comes_back_from_our_save(tmp_path: Path) -> None:
    config = tiny_config(text=dict(model_type="gpt_neox"))
    model = random_model(config)
    assert model.lm_head.weight is model.input_embeddings().weight
    save_pretrained(model, None, tmp_path / "neox")
    checkpoint = open_checkpoint(tmp_path / "neox")
    assert "lm_head.weight" not in checkpoint.store.tensors
    loaded = checkpoint.load_model("float32")
    assert loaded.lm_head.weight is loaded.input_embeddings().weight
    with torch.inference_mode():
        assert torch.equal(loaded(torch.arange(9)[None]), model(torch.arange(9)[None]))


# Saving


def test_save_converts_and_keeps_what_it_should(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    folder = write_apple(tmp_path / "apple", apple_tensors(model))
    (folder / "LICENSE_MODEL").write_text("the weights' terms")
    (folder / "LICENSE").write_text("the code's terms")
    before = snapshot(folder)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.license_text == "the weights' terms"
    save_pretrained(checkpoint, None, tmp_path / "native", dtype="bfloat16")
    assert snapshot(folder) == before
    native = open_checkpoint(tmp_path / "native")
    assert native.stored_dtypes == ["bfloat16"]
    assert native.license_text == "the weights' terms" and (tmp_path / "native" / "LICENSE").read_text() == "the code's terms"
    assert "lm_head.weight" not in native.store.tensors and native.config.tie_word_embeddings
    assert native.config == checkpoint.config
    expected = {name: value.bfloat16() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    for name, value in native.load_model("bfloat16").state_dict().items():
        assert torch.equal(value, expected[name])
    assert int(native["vision_tower.stages.0.blocks.0.mlp.conv.bn.num_batches_tracked"].read()) == 1000
    values = json.loads((tmp_path / "native" / "config.json").read_text())
    assert values["dtype"] == "bfloat16" and "auto_map" not in json.dumps(values)


def test_apples_licence_goes_along_even_where_the_source_forgot_it(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    checkpoint = open_checkpoint(write_apple(tmp_path / "apple", apple_tensors(model)))
    save_pretrained(checkpoint, None, tmp_path / "one")
    notice = (tmp_path / "one" / "LICENSE_NOTICE.txt").read_text()
    assert "licensed under the Apple Machine Learning Research Model License Agreement" in notice
    again = open_checkpoint(tmp_path / "one")
    assert again.license_name == "apple-amlr"
    save_pretrained(again.load_model("float32"), None, tmp_path / "two", licenses_from=again)
    assert (tmp_path / "two" / "LICENSE_NOTICE.txt").read_text() == notice


def test_save_refuses_a_folder_with_something_in_it_and_takes_an_empty_one(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        save_pretrained(model, None, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    save_pretrained(model, None, tmp_path / "empty")
    open_checkpoint(tmp_path / "empty").check_tensors()


def test_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config())

    class Processor:
        def save(self, folder: Path) -> None:
            assert (folder / "model.safetensors").is_file()
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, Processor(), tmp_path / "out")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CheckpointError, match=r"needs \d+ kB but only 1 kB are free"):
        save_pretrained(model, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folded_tower_and_attached_adapters_are_refused(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    model.language_model.layers[0].mlp.up_proj = torch.nn.Sequential(model.language_model.layers[0].mlp.up_proj)
    save_pretrained(model, None, tmp_path / "wrapped")
    with pytest.raises(CheckpointError, match=r"no tensor 'model.language_model.layers.0.mlp.up_proj.weight'.*up_proj.0.weight"):
        open_checkpoint(tmp_path / "wrapped").load_model()
    model = random_model(tiny_config())
    model.vision_tower = fold(model.vision_tower)
    with pytest.raises(CheckpointError, match="folded"):
        save_pretrained(model, None, tmp_path / "folded")


def test_native_config_that_transformers_wrote_years_apart_reads_the_same(tmp_path: Path) -> None:
    theirs = reference({**FAMILIES["qwen2"], "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
    theirs.save_pretrained(tmp_path / "theirs")
    new = open_checkpoint(tmp_path / "theirs").config
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    text = {**values["text_config"], "rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "bfloat16"}
    del text["rope_parameters"], text["layer_types"]
    edit_json(tmp_path / "theirs" / "config.json", text_config=text, dtype=..., torch_dtype="bfloat16", transformers_version="4.57.0")
    old = open_checkpoint(tmp_path / "theirs").config
    assert old == new and old.text_config.rope.rope_theta == 5e5


def test_context_is_the_least_of_config_and_tokenizer(tmp_path: Path) -> None:
    save_pretrained(random_model(tiny_config()), None, tmp_path / "native")
    assert open_checkpoint(tmp_path / "native").context_length == 512
    write_tokenizer(tmp_path / "native")
    assert open_checkpoint(tmp_path / "native").context_length == 256
    edit_json(tmp_path / "native" / "tokenizer_config.json", model_max_length=10**30)
    assert open_checkpoint(tmp_path / "native").context_length == 512


def test_config_with_sizes_of_another_model_is_found_by_the_first_tensor(tmp_path: Path) -> None:
    save_pretrained(random_model(tiny_config()), None, tmp_path / "native")
    values = json.loads((tmp_path / "native" / "config.json").read_text())
    edit_json(tmp_path / "native" / "config.json", text_config={**values["text_config"], "intermediate_size": 50})
    with pytest.raises(CheckpointError, match=r"mlp.*has shape \[.*\]; expected \[.*50.*\]"):
        open_checkpoint(tmp_path / "native").load_model()
    for name in ("text_config", "vision_config", "image_token_index"):
        edit_json(tmp_path / "native" / "config.json", **{**values, name: ...})
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(tmp_path / "native")
    edit_json(tmp_path / "native" / "config.json", **{**values, "vision_feature_layer": -2})
    with pytest.raises(CheckpointError, match="vision_feature_layer is -2; supported: -1"):
        open_checkpoint(tmp_path / "native")


def test_config_round_trip_is_exact(tmp_path: Path) -> None:
    for name, text in FAMILIES.items():
        reference(text).config.save_pretrained(tmp_path / name)
        values = json.loads((tmp_path / name / "config.json").read_text())
        config = FastVLMConfig.from_dict(values)
        assert FastVLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
