"""Depthwise convolutions in float32 inside bfloat16 autocast, for training on a CPU.

oneDNN's backward pass of a depthwise convolution takes 1.5 to 4 times as long in bfloat16 as in float32 (32 ms against 8 ms for a 7 x 7 of
stride 2 over (16, 144, 16, 16), torch 2.13, two Zen 4 cores); it was 40 % of a training step of the tower.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Float32DepthwiseConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def keep_depthwise_in_float32(module: nn.Module) -> None:
    """Change the class, not the weights, of every grouped convolution below `module`; the state dict stays as it is."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and layer.groups > 1:
            layer.__class__ = Float32DepthwiseConv2d
