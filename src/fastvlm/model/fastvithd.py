"""FastViTHD, the vision tower (FastVLM paper, section 3.2 and appendix B; FastViT, arXiv 2303.14189; MobileOne, arXiv 2206.04040).

    tower = FastViTHD(VisionConfig(inference_mode=False))   # training form: parallel branches, each with its BatchNorm
    tower = reparameterize(tower)                           # inference form: one convolution a block, the same function
    tower = fold(tower)                                     # what is left of BatchNorm and the scales, folded for speed
    tower(pixel_values)                                     # (N, 3, H, W) -> (N, H/64 * W/64, hidden_size)

Five stages behind a stem of stride 4, each but the first behind a downsampling of 2: stride 64 in all. Parameter names are those of
timm's `fastvit_mci3`, which transformers stores too. `reparameterize` returns a new module, `fold` changes the one it is given.
"""

import dataclasses
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.config import PATCH_SIZE, VisionConfig

HEAD_DIM = 32  # of the attention in stages 4 and 5
ATTENTION_STAGES = (3, 4)
LAYER_SCALE_INIT = 1e-5


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def fuse(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, float64, of the one convolution that computes the same in evaluation."""
        assert isinstance(self.bn, nn.BatchNorm2d)
        scale, shift = _bn_scale_shift(self.bn)
        return self.conv.weight.double() * scale.view(-1, 1, 1, 1), shift


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(gate))).sigmoid()


class MobileOneBlock(nn.Module):
    """k x k convolution; in training the sum of up to three branches (k x k, 1 x 1, identity), each with BatchNorm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        *,
        inference_mode: bool,
        use_conv: bool = True,
        use_scale: bool = True,
        use_identity: bool = True,
        use_se: bool = False,
        use_act: bool = True,
    ):
        super().__init__()
        self.groups = groups
        self.reparam_conv: nn.Conv2d | None = None
        self.se = SqueezeExcite(out_channels) if use_se else nn.Identity()
        self.act = nn.GELU() if use_act else nn.Identity()
        if inference_mode:
            self.reparam_conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups)
            return
        has_identity = use_identity and in_channels == out_channels and stride == 1
        self.identity = nn.BatchNorm2d(out_channels) if has_identity else None
        convs = [ConvNorm(in_channels, out_channels, kernel_size, stride, groups)] if use_conv else []
        self.conv_kxk = nn.ModuleList(convs)
        self.conv_scale = ConvNorm(in_channels, out_channels, 1, stride, groups) if use_scale and kernel_size > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            return self.act(self.se(self.reparam_conv(x)))
        branches = [branch(x) for branch in (self.identity, self.conv_scale, *self.conv_kxk) if branch is not None]
        return self.act(self.se(sum(branches[1:], branches[0])))

    def fuse(self, kernel_size: int) -> tuple[Tensor, Tensor]:
        """Weight and bias, float64, of one convolution of this kernel size equal to the sum of the branches in evaluation."""
        parts = [branch.fuse() for branch in (*self.conv_kxk, *([self.conv_scale] if self.conv_scale is not None else []))]
        if self.identity is not None:
            scale, shift = _bn_scale_shift(self.identity)
            parts.append((_identity_kernel(len(scale), self.groups) * scale.view(-1, 1, 1, 1), shift))
        return sum((_pad_kernel(w, kernel_size) for w, _ in parts), torch.tensor(0.0)), sum((b for _, b in parts), torch.tensor(0.0))


class LayerScale2d(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), LAYER_SCALE_INIT))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class RepMixer(nn.Module):
    """Token mixing by a depthwise 3 x 3 convolution whose residual is folded into the kernel."""

    def __init__(self, channels: int, kernel_size: int = 3, *, inference_mode: bool):
        super().__init__()
        self.reparam_conv: nn.Conv2d | None = None
        if inference_mode:
            self.reparam_conv = nn.Conv2d(channels, channels, kernel_size, 1, kernel_size // 2, groups=channels)
            return
        options: dict[str, Any] = dict(groups=channels, use_act=False, inference_mode=False)
        self.norm = MobileOneBlock(channels, channels, kernel_size, use_conv=False, use_scale=False, **options)
        self.mixer = MobileOneBlock(channels, channels, kernel_size, **options)
        self.layer_scale = LayerScale2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            return self.reparam_conv(x)
        return x + self.layer_scale(self.mixer(x) - self.norm(x))

    def fuse(self, kernel_size: int) -> tuple[Tensor, Tensor]:
        mixer_weight, mixer_bias = self.mixer.fuse(kernel_size)
        norm_weight, norm_bias = self.norm.fuse(kernel_size)
        gamma = self.layer_scale.gamma.double()
        identity = _pad_kernel(_identity_kernel(len(gamma), len(gamma)), kernel_size)
        return identity + gamma.unsqueeze(-1) * (mixer_weight - norm_weight), gamma.flatten() * (mixer_bias - norm_bias)


class ReparamLargeKernelConv(nn.Module):
    """Depthwise 7 x 7 of stride 2 that also multiplies the channels; in training with a parallel 3 x 3. GELU after it."""

    def __init__(self, in_channels: int, out_channels: int, *, inference_mode: bool):
        super().__init__()
        self.act = nn.GELU()
        self.reparam_conv: nn.Conv2d | None = None
        if inference_mode:
            self.reparam_conv = nn.Conv2d(in_channels, out_channels, 7, 2, 3, groups=in_channels)
            return
        self.large_conv = ConvNorm(in_channels, out_channels, 7, 2, in_channels)
        self.small_conv = ConvNorm(in_channels, out_channels, 3, 2, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            return self.act(self.reparam_conv(x))
        return self.act(self.large_conv(x) + self.small_conv(x))

    def fuse(self, kernel_size: int) -> tuple[Tensor, Tensor]:
        (large_weight, large_bias), (small_weight, small_bias) = self.large_conv.fuse(), self.small_conv.fuse()
        return _pad_kernel(large_weight, kernel_size) + _pad_kernel(small_weight, kernel_size), large_bias + small_bias


class PatchEmbed(nn.Module):
    """Downsampling by 2 between stages (section 3.2: without the squeeze-excite of MobileCLIP)."""

    def __init__(self, in_channels: int, out_channels: int, *, inference_mode: bool):
        super().__init__()
        self.proj = nn.Sequential(
            ReparamLargeKernelConv(in_channels, out_channels, inference_mode=inference_mode),
            MobileOneBlock(out_channels, out_channels, 1, inference_mode=inference_mode),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class RepConditionalPosEnc(nn.Module):
    """Position from the surroundings: a depthwise 7 x 7 added to its input."""

    def __init__(self, channels: int, *, inference_mode: bool):
        super().__init__()
        conv = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        self.reparam_conv = conv if inference_mode else None
        if not inference_mode:
            self.pos_enc = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.reparam_conv(x) if self.reparam_conv is not None else self.pos_enc(x) + x

    def fuse(self, kernel_size: int) -> tuple[Tensor, Tensor]:
        assert self.pos_enc.bias is not None
        weight = self.pos_enc.weight.double()
        return weight + _pad_kernel(_identity_kernel(len(weight), len(weight)), kernel_size), self.pos_enc.bias.double()


class ConvMlp(nn.Module):
    """7 x 7 depthwise convolution with BatchNorm, then a two-layer perceptron over the channels."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.conv = ConvNorm(channels, channels, 7, groups=channels)
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.conv(x))))


class RepMixerBlock(nn.Module):
    def __init__(self, channels: int, mlp_ratio: float, *, inference_mode: bool):
        super().__init__()
        self.token_mixer = RepMixer(channels, inference_mode=inference_mode)
        self.mlp = ConvMlp(channels, int(channels * mlp_ratio))
        self.layer_scale: nn.Module = LayerScale2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale(self.mlp(x))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over all positions of the map, without position bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.num_heads = channels // HEAD_DIM
        self.scale = HEAD_DIM**-0.5
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (N, H*W, C), row-major
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.num_heads, HEAD_DIM)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, H*W, 32)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        mixed = self.proj(mixed.transpose(1, 2).reshape(batch, height * width, channels))
        return mixed.transpose(1, 2).reshape(batch, channels, height, width)


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, mlp_ratio: float):
        super().__init__()
        self.norm = LayerNorm2d(channels, eps=1e-5)
        self.token_mixer = Attention(channels)
        self.layer_scale_1: nn.Module = LayerScale2d(channels)
        self.mlp = ConvMlp(channels, int(channels * mlp_ratio))
        self.layer_scale_2: nn.Module = LayerScale2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1(self.token_mixer(self.norm(x)))
        return x + self.layer_scale_2(self.mlp(x))


class Stage(nn.Module):
    def __init__(self, config: VisionConfig, index: int):
        super().__init__()
        channels, inference_mode = config.embed_dims[index], config.inference_mode
        has_attention = index in ATTENTION_STAGES
        self.downsample = PatchEmbed(config.embed_dims[index - 1], channels, inference_mode=inference_mode) if index > 0 else nn.Identity()
        self.pos_emb = RepConditionalPosEnc(channels, inference_mode=inference_mode) if has_attention else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                AttentionBlock(channels, config.mlp_ratios[index])
                if has_attention
                else RepMixerBlock(channels, config.mlp_ratios[index], inference_mode=inference_mode)
                for _ in range(config.layers[index])
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pos_emb(self.downsample(x)))


class FastViTHD(nn.Module):
    """The tower without a classification head: image tokens for the projector.

    Args:
        config: widths, depths and form. `VisionConfig()` is the released tower in inference form, 122.7 M parameters.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, inference_mode = config.embed_dims[0], config.inference_mode
        self.stem = nn.Sequential(
            MobileOneBlock(3, width, 3, 2, use_scale=False, inference_mode=inference_mode),
            MobileOneBlock(width, width, 3, 2, groups=width, use_scale=False, inference_mode=inference_mode),
            MobileOneBlock(width, width, 1, use_scale=False, inference_mode=inference_mode),
        )
        self.stages = nn.ModuleList(Stage(config, index) for index in range(5))
        last = config.embed_dims[-1]
        self.final_conv = MobileOneBlock(
            last, config.hidden_size, 3, groups=last, use_se=True, use_identity=False, inference_mode=inference_mode
        )

    def feature_map(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, hidden_size, H/64, W/64). Sides that are no multiples of 64 are a `ValueError`."""
        height, width = pixel_values.shape[-2:]
        if height % PATCH_SIZE or width % PATCH_SIZE:
            raise ValueError(f"pixel_values are {height} x {width}; both sides must be multiples of {PATCH_SIZE}")
        x = self.stem(pixel_values)
        for stage in self.stages:
            x = stage(x)
        return self.final_conv(x)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, H/64 * W/64, hidden_size), row by row from the top left."""
        return self.feature_map(pixel_values).flatten(2).transpose(1, 2)


class _Fusable(Protocol):
    def fuse(self, kernel_size: int) -> tuple[Tensor, Tensor]: ...


def _bn_scale_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm in evaluation as `x * scale + shift`, float64."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def _identity_kernel(channels: int, groups: int) -> Tensor:
    """(channels, channels / groups, 1, 1): the 1 x 1 kernel that returns its input."""
    per_group = channels // groups
    return torch.eye(per_group, dtype=torch.float64).repeat(groups, 1).view(channels, per_group, 1, 1)


def _pad_kernel(weight: Tensor, kernel_size: int) -> Tensor:
    margin = (kernel_size - weight.shape[-1]) // 2
    return F.pad(weight, [margin] * 4)


@torch.no_grad()
def reparameterize(tower: FastViTHD) -> FastViTHD:
    """A new tower in inference form, equal in evaluation to one in training form (a fused one is returned as it is)."""
    if tower.config.inference_mode:
        return tower
    reference = next(tower.parameters())
    fused = FastViTHD(dataclasses.replace(tower.config, inference_mode=True)).to(reference.device, reference.dtype)
    state = {name: value for name, value in tower.state_dict().items() if name in fused.state_dict()}
    for name, module in fused.named_modules():
        conv = getattr(module, "reparam_conv", None)
        if conv is not None:
            weight, bias = cast(_Fusable, tower.get_submodule(name).cpu()).fuse(conv.kernel_size[0])
            state[f"{name}.reparam_conv.weight"], state[f"{name}.reparam_conv.bias"] = weight, bias
    tower.to(reference.device)
    fused.load_state_dict(state)
    return fused.train(tower.training)


@torch.no_grad()
def fold(tower: FastViTHD) -> FastViTHD:
    """Fold BatchNorm into the 7 x 7 before it, layer scales into the layer before them and the attention scale into the query.

    In place and for inference only: the result computes the same function with fewer operators, but its names are no longer those of
    a checkpoint. Needs the inference form.
    """
    if not tower.config.inference_mode:
        raise ValueError("fold() needs the inference form; call reparameterize() first")
    for module in tower.modules():
        if isinstance(module, ConvMlp):
            weight, bias = module.conv.fuse()
            conv = module.conv.conv
            conv.weight.copy_(weight)
            conv.bias = nn.Parameter(bias.to(weight.device, conv.weight.dtype))
            module.conv.bn = nn.Identity()
        elif isinstance(module, Attention):
            module.qkv.weight[: module.qkv.in_features].mul_(module.scale)
            module.scale = 1.0
    for block in tower.modules():
        if isinstance(block, RepMixerBlock):
            block.layer_scale = _fold_scale(block.layer_scale, block.mlp.fc2)
        elif isinstance(block, AttentionBlock):
            block.layer_scale_1 = _fold_scale(block.layer_scale_1, block.token_mixer.proj)
            block.layer_scale_2 = _fold_scale(block.layer_scale_2, block.mlp.fc2)
    return tower


def _fold_scale(scale: nn.Module, layer: nn.Conv2d | nn.Linear) -> nn.Identity:
    assert isinstance(scale, LayerScale2d) and layer.bias is not None
    gamma = scale.gamma.flatten()
    layer.weight.mul_(gamma.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.mul_(gamma)
    return nn.Identity()
