"""Towers alone: timm's fastvit_mci3 in both forms, MobileCLIP's own names, the tower inside other files."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from checkpoint_files import TOWER, apple_tensors, make_zip, random_model, tiny_config, write_apple
from fastvlm.checkpoint import CheckpointError, load_tower
from fastvlm.checkpoint.keymap import ORIGINAL_TOWER_RULES, KeyMap
from fastvlm.config import VisionConfig
from fastvlm.model.fastvithd import FastViTHD

timm = pytest.importorskip("timm")
ORIGINAL = KeyMap(ORIGINAL_TOWER_RULES)


def timm_tower(inference_mode: bool, **sizes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("fastvit_mci3", num_classes=24, **{**TOWER, **sizes}, inference_mode=inference_mode).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var") or "gamma" in name:
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point():
                value.normal_(std=0.2)
    return model


def original_names(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """As MobileCLIP's own files name a tower, with its head and a text tower beside it."""
    tensors = {prefix + str(ORIGINAL.stored(name)): value for name, value in state.items() if not name.startswith("head.")}
    tensors[prefix + "head.proj"] = state["head.fc.weight"].T.contiguous()
    return tensors


def assert_same_features(path: Path, theirs: torch.nn.Module, expected_config: VisionConfig) -> None:
    state, config = load_tower(path)
    assert config == expected_config
    tower = FastViTHD(config).eval()
    tower.load_state_dict(state)
    pixels = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs.forward_features(pixels)
        torch.testing.assert_close(tower.feature_map(pixels), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("inference_mode", [True, False], ids=["inference", "training"])
@pytest.mark.parametrize("prefix", ["", "visual.trunk.", "timm_model."])
def test_timm_weights_load_and_compute_the_same(tmp_path: Path, inference_mode: bool, prefix: str) -> None:
    model = timm_tower(inference_mode)
    tensors = {prefix + name: value for name, value in model.state_dict().items()}
    if prefix:
        tensors |= {"text.token_embedding.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    safetensors.torch.save_file(tensors, tmp_path / "open_clip_model.safetensors")
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        assert_same_features(path, model, VisionConfig(**TOWER, inference_mode=inference_mode))


@pytest.mark.parametrize("prefix", ["", "image_encoder.model."])
def test_original_training_names_load_as_timm_maps_them(tmp_path: Path, prefix: str) -> None:
    model = timm_tower(False)
    tensors = original_names(model.state_dict(), prefix)
    # timm's own filter is the judge of the names
    mapped = timm.models.fastvit.checkpoint_filter_fn(dict(tensors), model)
    assert set(mapped) == set(model.state_dict())
    assert f"{prefix}patch_embed.0.rbr_conv.0.conv.weight" in tensors and f"{prefix}network.6.pe.weight" in tensors
    if prefix:
        tensors["text_encoder.embedding_layer.weight"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, tmp_path / "mobileclip_s3.safetensors")
    assert_same_features(tmp_path / "mobileclip_s3.safetensors", model, VisionConfig(**TOWER, inference_mode=False))


def test_tower_of_a_whole_checkpoint_loads_from_folder_and_zip(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    folder = write_apple(tmp_path / "llava-tiny", apple_tensors(model))
    for path in (folder, make_zip(folder, tmp_path / "llava-tiny.zip")):
        state, config = load_tower(path)
        assert config == model.config.vision_config
        assert all(torch.equal(state[name], value) for name, value in model.vision_tower.state_dict().items())


def test_sizes_come_from_the_shapes(tmp_path: Path) -> None:
    sizes = dict(layers=(2, 1, 3, 1, 2), embed_dims=(16, 32, 64, 64, 128), mlp_ratios=(3, 4, 2, 4, 1.5))
    safetensors.torch.save_file(timm_tower(True, **sizes).state_dict(), tmp_path / "tower.safetensors")
    _, config = load_tower(tmp_path / "tower.safetensors")
    assert config == VisionConfig(**sizes)
    assert load_tower(tmp_path / "tower.safetensors", config)[1] == config
    with pytest.raises(CheckpointError, match="tower of other sizes"):
        load_tower(tmp_path / "tower.safetensors", VisionConfig())


def test_the_released_size_maps_one_to_one() -> None:
    with torch.device("meta"):
        training = timm.create_model("fastvit_mci3", num_classes=0)
        ours = FastViTHD(VisionConfig(inference_mode=False)).state_dict()
    assert {name: value.shape for name, value in training.state_dict().items()} == {name: value.shape for name, value in ours.items()}
    assert all(ORIGINAL.ours(str(ORIGINAL.stored(name))) == name for name in ours)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("stages.1.blocks.0.mlp.fc2.bias"), "'stages.1.blocks.0.mlp.fc2.bias', expected with shape [16]"),
        (lambda t: t.update({"stages.1.blocks.0.mlp.fc3.bias": torch.zeros(1)}), "stages.1.blocks.0.mlp.fc3.bias"),
        (lambda t: t.update({"stages.1.blocks.0.mlp.fc2.bias": torch.zeros(3)}), "has shape [3]; expected [16]"),
        (lambda t: t.update({"trunk.weight": torch.zeros(3)}), "'trunk.weight' are no tensors of a FastViTHD"),
        (lambda t: t.pop("stages.2.downsample.proj.1.reparam_conv.weight"), "stages.2.downsample.proj.1.reparam_conv.weight"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("stem")], "holds no FastViTHD tower"),
    ],
)
def test_what_is_wrong_with_a_tower_is_named(tmp_path: Path, change: Any, words: str) -> None:
    tensors = dict(timm_tower(True).state_dict())
    change(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "tower.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_tower(tmp_path / "tower.safetensors")
    assert words in str(caught.value), caught.value
