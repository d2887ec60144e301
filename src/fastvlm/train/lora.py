"""LoRA adapters while a model trains: peft puts them in, and they are saved as peft saves them.

    add_lora(model, Lora(rank=16))                       # layers become peft's, the adapters start as nothing
    base, adapter = split_tensors(state)                 # the model's own tensors, and the adapter's under peft's names
    save_adapter(adapter, lora, "runs/mine/adapter")     # what `predict --adapter` and peft read

How an adapter changes the weights is written once, in `fastvlm.runtimes._lora`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastvlm.runtimes._lora import WEIGHTS_NAME
from fastvlm.train.recipe import Lora, RecipeError

_NAME = "default"  # peft's, of the one adapter


def target_names(model: nn.Module, lora: Lora) -> list[str]:
    """The layers that get an adapter. The head does not belong to a part, so a tied embedding stays as it is."""
    found = [
        name
        for name, module in model.named_modules()
        if name.split(".")[0] in lora.parts
        and (type(module) is nn.Linear or (type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.groups == 1))
        and (lora.targets is None or any(name == target or name.endswith(f".{target}") for target in lora.targets))
    ]
    if not found:
        raise RecipeError(f"lora: no layer of {', '.join(lora.parts)} is named {', '.join(lora.targets or ('anything',))}")
    return found


def _config(lora: Lora, names: list[str]) -> Any:
    return _import_peft().LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names, bias="none")


def _import_peft() -> Any:
    """peft imports transformers, and that a torchvision which it does not need: one that is broken is treated as absent.

    Beside a torch from another index torchvision's operators do not load.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # what Python itself takes for "not there"
    import peft

    return peft


def add_lora(model: nn.Module, lora: Lora) -> None:
    """Wrap the layers in place; the new weights are drawn from torch's global generator."""
    _import_peft().inject_adapter_in_model(_config(lora, target_names(model, lora)), model, adapter_name=_NAME)


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a wrapped model -> those of the plain one, and the adapter's under the names in a file of peft's."""
    base, adapter = {}, {}
    for name, value in tensors.items():
        if ".lora_" in name:
            adapter["base_model.model." + name.replace(f".{_NAME}.", ".")] = value
        else:
            base[name.replace(".base_layer.", ".")] = value
    return base, adapter


def save_adapter(adapter: Mapping[str, Tensor], lora: Lora, folder: Path) -> None:
    """adapter_config.json, in which `lora.keep` is part of alpha, and adapter_model.safetensors; replaces what is there."""
    names = sorted(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in adapter if ".lora_A." in name)
    config = _config(lora, names)
    config.inference_mode = True
    if lora.keep < 1:
        config.lora_alpha = lora.alpha * lora.keep
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file({name: torch.as_tensor(value).contiguous() for name, value in adapter.items()}, folder / WEIGHTS_NAME)
