"""What a run needs to go on after a kill, written whole or not at all, without pickle."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_state(folder: Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Replace `folder` by a new one in two renames; a kill between them leaves `folder.previous`."""
    new, previous = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".previous")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, module in modules.items():
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, new / f"{name}.safetensors")
    save_file(_flatten(optimizer.state_dict()["state"]), new / "optimizer.safetensors")
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


def load_state(folder: Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer | None) -> None:
    """Fill modules (and an optimizer over the same parameters) from a state."""
    for name, module in modules.items():
        module.load_state_dict(load_file(folder / f"{name}.safetensors"))
    if optimizer is not None:
        state = optimizer.state_dict()
        state["state"] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".")
            if value.shape == (parameter := parameters[int(index)]).shape:
                # the fused AdamW walks both by memory, so a moment has to lie as its channels_last weight does
                value = torch.empty_like(parameter).copy_(value)
            state["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(state)


def _flatten(state: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{index}.{name}": value.contiguous() for index, values in state.items() for name, value in values.items()}
