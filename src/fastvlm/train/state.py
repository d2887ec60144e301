"""What a run needs to go on after a kill: written whole or not at all, by name, without pickle, the same for any number of processes."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fastvlm.runtimes._lora import merge_adapter
from fastvlm.train.lora import save_adapter, split_tensors
from fastvlm.train.muon import Muon
from fastvlm.train.recipe import Lora

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save_state(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor], progress: dict[str, Any], *, is_main: bool
) -> None:
    """Replace `folder` by a new one in two renames; a kill between them leaves `folder.previous`.

    Every process calls this, since sharded weights are gathered from all; the main one writes.
    """
    weights = get_model_state_dict(module, options=_FULL)
    whole: Any = get_optimizer_state_dict(module, optimizer, options=_FULL)
    if not is_main:  # gathered on the main process only
        return
    moments = whole["state"]
    new, previous = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".previous")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    _save(weights, new / "weights.safetensors")
    _save({f"{name}|{key}": value for name, values in moments.items() for key, value in values.items()}, new / "optimizer.safetensors")
    _save(ema, new / "ema.safetensors")
    (new / "progress.json").write_text(json.dumps(progress))
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    new.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def find_state(folder: Path) -> Path | None:
    """The newest whole state, if there is one."""
    previous = folder.with_name(folder.name + ".previous")
    return next((path for path in (folder, previous) if (path / "progress.json").exists()), None)


def read_progress(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "progress.json").read_text())


def load_weights(folder: Path, module: nn.Module) -> None:
    """Fill `module`, sharded or not; all names must fit."""
    tensors: Any = load_file(folder / "weights.safetensors")
    set_model_state_dict(module, tensors, options=_FULL)


def load_heads(folder: Path, objective: nn.Module) -> list[str]:
    """Fill an objective with what it has in common with the one of a state; returns what the state lacks, which stays as it is."""
    tensors = load_file(folder / "weights.safetensors")
    found = {name.removeprefix("objective."): value for name, value in tensors.items() if name.startswith("objective.")}
    return list(objective.load_state_dict(found, strict=False).missing_keys)


def load_model(folder: Path, model: nn.Module, lora: Lora | None = None, *, adapter_folder: Path | None = None) -> None:
    """Fill a plain model from the state of a stage: averaged weights where there are, adapters of the stage's `lora` merged.

    Args:
        adapter_folder: keeps the adapter, as peft stores it.
    """
    tensors = {**load_file(folder / "weights.safetensors"), **load_file(folder / "ema.safetensors")}
    mine = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    base, adapter = split_tensors(mine)
    model.load_state_dict(base)
    if adapter:
        assert lora is not None, "the state of a stage with adapters"
        with TemporaryDirectory() as scratch:
            save_adapter(adapter, lora, adapter_folder or Path(scratch))
            merge_adapter(model, adapter_folder or scratch)


def load_optimizer(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Fill the optimizer, and return the moving averages."""
    groups: Any = get_optimizer_state_dict(module, optimizer, options=StateDictOptions(full_state_dict=True))["param_groups"]
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        owner, _, key = name.rpartition("|")
        state.setdefault(owner, {})[key] = value
    matrices = {p for group in optimizer.param_groups if group.get("orthogonal") for p in group["params"]}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and name not in state:
            # No gradient has reached it yet (a head of weight 0, a stage of the tower above the loss), so the optimizer has not begun with
            # it: this is what it begins with. torch refuses a state that says nothing about a parameter that learns.
            state[name] = Muon.first_state(torch.empty(parameter.shape, dtype=parameter.dtype), parameter in matrices)
    whole: Any = {"state": state, "param_groups": groups}
    set_optimizer_state_dict(module, optimizer, whole, options=_FULL)
    states: Any = optimizer.state
    for weight, moments in states.items():
        for key, moment in moments.items():
            if moment.shape == weight.shape and moment.stride() != weight.stride():
                # the fused AdamW walks both by memory, so a moment has to lie as its channels_last weight does
                moments[key] = torch.empty_like(weight).copy_(moment)
    return load_file(folder / "ema.safetensors")


def _save(tensors: dict[str, Any], path: Path) -> None:
    """Tensors under all their names; one that has two (a foreign model's tied head) is written twice."""
    written: set[int] = set()
    values = {}
    for name, value in tensors.items():
        tensor = torch.as_tensor(value).contiguous()
        values[name] = tensor.clone() if tensor.data_ptr() in written else tensor
        written.add(tensor.data_ptr())
    save_file(values, path)
