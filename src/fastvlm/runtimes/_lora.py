"""Merge a LoRA adapter (arXiv 2106.09685) as peft saves it into a model's weights. peft itself is not needed.

merge_adapter(model, "runs/receipts/adapter")
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# What would change the arithmetic below; each must hold the value under which a merge is W + scale * B @ A.
_PLAIN = {"use_dora": (False, None), "fan_in_fan_out": (False, None), "bias": ("none", None), "lora_bias": (False, None)}


class AdapterError(ValueError):
    """An adapter that is not one of LoRA, or not of this model."""


def merge_adapter(model: "nn.Module", folder: str | Path) -> None:
    """Add the adapter's low-rank products to the weights of `model`, in place.

    Raises:
        AdapterError: no adapter in `folder`, one of another kind, or one whose names or shapes are not this model's.
    """
    import torch

    adapter = Adapter(folder)
    adapter.check(model)
    for name in adapter.weight_names:
        weight = model.get_parameter(name)
        with torch.no_grad():
            weight.copy_(weight.float() + adapter.delta(name).to(weight.device))


class Adapter:
    """The low-rank products of a folder, by the names of the weights that they change."""

    def __init__(self, folder: str | Path):
        from safetensors import SafetensorError, safe_open

        folder = Path(folder)
        self._config = _read_config(folder)
        try:
            with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except FileNotFoundError:
            raise AdapterError(f"no {WEIGHTS_NAME} in the adapter's folder {str(folder)!r}") from None
        except SafetensorError as error:
            raise AdapterError(f"{WEIGHTS_NAME} of the adapter is not a readable safetensors file: {error}") from error
        targets = {name.removesuffix(".lora_A.weight") for name in self._tensors if name.endswith(".lora_A.weight")}
        expected = {f"{target}.lora_{part}.weight" for target in targets for part in "AB"}
        if not targets or set(self._tensors) != expected:
            odd = sorted(set(self._tensors) ^ expected)
            raise AdapterError(f"the adapter holds no plain LoRA pairs; unexpected or missing: {', '.join(odd[:3]) or 'everything'}")
        self._targets = {f"{target.removeprefix(_PREFIX)}.weight": target for target in sorted(targets)}

    @property
    def weight_names(self) -> list[str]:
        return list(self._targets)

    def check(self, model: "nn.Module") -> None:
        """Refuse a model (its parameters may be on `meta`) that lacks a weight, or has it in another shape."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for weight_name, target in self._targets.items():
            name = weight_name.removesuffix(".weight")
            weight = parameters.get(weight_name)
            if weight is None:
                raise AdapterError(f"the adapter changes {name!r}, which this model does not have; was it trained on another model?")
            down, up = self._pair(target)
            if down.shape[0] != up.shape[1] or (up.shape[0], *down.shape[1:]) != tuple(weight.shape):
                shapes = f"{tuple(up.shape)} x {tuple(down.shape)}"
                raise AdapterError(f"the adapter's product for {name!r} is {shapes}, the weight is {tuple(weight.shape)}")

    def delta(self, weight_name: str) -> "torch.Tensor":
        """What is to be added to a weight, float32, in its shape."""
        down, up = self._pair(self._targets[weight_name])
        scale = _scale(self._config, weight_name.removesuffix(".weight"), down.shape[0])
        return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:]) * scale

    def _pair(self, target: str) -> "tuple[torch.Tensor, torch.Tensor]":
        return self._tensors[f"{target}.lora_A.weight"].float(), self._tensors[f"{target}.lora_B.weight"].float()


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"no {CONFIG_NAME} in {str(folder)!r}; expected the folder that training with LoRA wrote") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{CONFIG_NAME} of the adapter is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(
            f"the adapter's peft_type is {config.get('peft_type') if isinstance(config, dict) else config!r}; supported: 'LORA'"
        )
    for name, allowed in _PLAIN.items():
        if config.get(name) not in allowed:
            raise AdapterError(f"the adapter's {name} is {config[name]!r}, which is not supported; expected {allowed[0]!r}")
    if config.get("modules_to_save"):
        raise AdapterError(f"the adapter replaces whole modules ({config['modules_to_save']}), which is not supported; merge it with peft")
    return config


def _scale(config: dict[str, Any], name: str, rank: int) -> float:
    """alpha / rank of one module; patterns name modules by the end of their name."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if name == pattern or name.endswith(f".{pattern}"):
            alpha = value
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
