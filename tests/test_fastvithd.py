"""The tower against timm's `fastvit_mci3` with the same random weights, and its forms against each other."""

import pytest
import torch

from fastvlm.config import ConfigError, VisionConfig
from fastvlm.model.fastvithd import FastViTHD, fold, reparameterize

SIZES = dict(embed_dims=(16, 32, 64, 64, 128), layers=(1, 2, 1, 2, 1), mlp_ratios=(4, 4, 3, 4, 4))


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights far from their initial values: with layer scales of 1e-5 most of the network would not be tested."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif "gamma" in name:
            value.uniform_(0.1, 0.3, generator=generator)
        elif value.dim() == 1 and name.endswith("weight"):
            value.uniform_(0.8, 1.2, generator=generator)
        elif value.dim() == 1:
            value.normal_(0, 0.05, generator=generator)
        else:
            value.normal_(0, 1.2 / value[0].numel() ** 0.5, generator=generator)


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def pixel_values() -> torch.Tensor:
    return torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("inference_mode", [False, True])
def test_matches_timm(inference_mode, pixel_values):
    timm = pytest.importorskip("timm")
    reference = timm.create_model("fastvit_mci3", inference_mode=inference_mode, **SIZES).eval()
    randomize(reference)
    tower = FastViTHD(VisionConfig(**SIZES, inference_mode=inference_mode)).eval()
    tower.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("head.")})
    with torch.inference_mode():
        expected = reference.forward_features(pixel_values).flatten(2).transpose(1, 2)
        actual = tower(pixel_values)
    assert actual.shape == (2, 2 * 3, 256)
    assert relative_difference(actual, expected) < 1e-4


def test_training_form_in_training_mode_matches_timm(pixel_values):
    """Batch statistics, gradients and running averages are timm's too."""
    timm = pytest.importorskip("timm")
    reference = timm.create_model("fastvit_mci3", **SIZES).train()
    randomize(reference)
    tower = FastViTHD(VisionConfig(**SIZES, inference_mode=False)).train()
    tower.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("head.")})
    expected = reference.forward_features(pixel_values).flatten(2).transpose(1, 2)
    actual = tower(pixel_values)
    assert relative_difference(actual, expected) < 1e-4
    expected.square().mean().backward()
    actual.square().mean().backward()
    gradient = tower.stages[0].blocks[0].token_mixer.mixer.conv_kxk[0].conv.weight.grad
    assert relative_difference(gradient, reference.stages[0].blocks[0].token_mixer.mixer.conv_kxk[0].conv.weight.grad) < 1e-3
    name = "stages.1.blocks.0.mlp.conv.bn.running_var"
    assert relative_difference(tower.state_dict()[name], reference.state_dict()[name]) < 1e-4


def test_forms_agree(pixel_values):
    tower = FastViTHD(VisionConfig(**SIZES, inference_mode=False)).eval()
    randomize(tower)
    with torch.inference_mode():
        expected = tower(pixel_values)
        fused = reparameterize(tower)
        assert fused.config.inference_mode and not tower.config.inference_mode
        assert relative_difference(fused(pixel_values), expected) < 1e-4
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fold(fused).modules())
        assert relative_difference(fused(pixel_values), expected) < 1e-4


def test_released_tower_has_its_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in FastViTHD(VisionConfig()).parameters()) == 122_714_208


def test_sides_must_be_multiples_of_64():
    tower = FastViTHD(VisionConfig(**SIZES))
    with pytest.raises(ValueError, match="128 x 100.*multiples of 64"):
        tower(torch.zeros(1, 3, 128, 100))


def test_fold_refuses_the_training_form():
    with pytest.raises(ValueError, match="reparameterize"):
        fold(FastViTHD(VisionConfig(**SIZES, inference_mode=False)))


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"layers": (1, 1, 1)}, "five positive numbers"),
        ({"embed_dims": (16, 32, 64, 80, 128)}, "no multiple"),
        ({"embed_dims": (16, 16, 16, 16, 32)}, "multiples of 32"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        VisionConfig(**sizes)
