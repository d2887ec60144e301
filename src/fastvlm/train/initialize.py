"""Weights to start a tower from when there is nothing to start from.

The inference form has no BatchNorm outside its ConvFFNs, so the scale of the activations has to come from the weights: He initialisation
(arXiv 1502.01852) where a GELU follows, and token mixers that start as the identity.
"""

import torch
from torch import nn

from fastvlm.model import fastvithd

LAYER_SCALE = 0.5  # 1e-5, the released models' value, is for hundreds of thousands of steps


@torch.no_grad()
def initialize_tower(tower: fastvithd.FastViTHD) -> None:
    """Fill a tower in inference form with random weights that train from scratch, using torch's global generator."""
    for module in tower.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, fastvithd.LayerScale2d):
            module.gamma.fill_(LAYER_SCALE)
    _alternate_signs(tower.final_conv.reparam_conv)
    for module in tower.modules():
        if isinstance(module, (fastvithd.RepMixer, fastvithd.RepConditionalPosEnc)):
            assert module.reparam_conv is not None, "from scratch, train the inference form"
            weight = module.reparam_conv.weight
            weight.normal_(std=0.02)
            centre = weight.shape[-1] // 2
            weight[:, :, centre, centre] += 1
        elif isinstance(module, fastvithd.ReparamLargeKernelConv):
            _select_positions(module.reparam_conv)
        elif isinstance(module, fastvithd.Attention):
            nn.init.normal_(module.qkv.weight, std=module.qkv.in_features**-0.5)
            nn.init.normal_(module.proj.weight, std=module.proj.in_features**-0.5)
        elif isinstance(module, fastvithd.ConvMlp):
            nn.init.normal_(module.fc2.weight, std=module.fc2.in_channels**-0.5)


def _alternate_signs(conv: nn.Conv2d | None) -> None:
    """Start the last convolution, which doubles the channels, as the identity and its negative: GELU then loses neither sign."""
    assert conv is not None, "from scratch, train the inference form"
    conv.weight.normal_(std=0.02)
    conv.weight[0::2, 0, 1, 1] += 1.5
    conv.weight[1::2, 0, 1, 1] -= 1.5


def _select_positions(conv: nn.Conv2d | None) -> None:
    """Start a downsampling as a choice, not a blur: each kernel passes on one of the 2 x 2 positions that become one, with either sign.

    Random 7 x 7 kernels mix 49 positions, and what stood where has to be unmixed before anything can be read from the smaller map.
    """
    assert conv is not None, "from scratch, train the inference form"
    weight = conv.weight
    weight.normal_(std=0.02)
    channels, centre = torch.arange(len(weight)), weight.shape[-1] // 2
    position = torch.randint(4, (len(weight),))
    sign = torch.where(torch.rand(len(weight)) < 0.5, -1.0, 1.0)
    weight[channels, 0, centre + position // 2, centre + position % 2] += 1.5 * sign  # 1.5: GELU halves what passes


@torch.no_grad()
def initialize_language_model(model: nn.Module, std: float = 0.02) -> None:
    """GPT-2's initialisation for a decoder, a head and a projector."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
