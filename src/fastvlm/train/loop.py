"""The training loop: one for all stages and objectives; resumes where it was stopped.

    fastvlm train recipes/nano/nano.yaml --out runs/nano

Batch k of a stage is a function of the recipe alone, so a resumed run sees what an uninterrupted one would have seen.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from fastvlm.model.decoder import Decoder
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.plugins import load_plugin
from fastvlm.train.data import BatchSource
from fastvlm.train.depthwise import keep_depthwise_in_float32
from fastvlm.train.recipe import PARTS, Recipe, Stage
from fastvlm.train.state import find_state, load_state, read_progress, save_state

logger = logging.getLogger(__name__)


class _Batches(Dataset):
    """Whole batches by their number, so that a worker makes one at a time and any of them can be the first."""

    def __init__(self, source: BatchSource, collate: Any):
        self.source, self.collate = source, collate

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        torch.set_num_threads(1)
        return self.collate(self.source.batch(index))


def parameter_groups(model: FastVLMModel, objective: torch.nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """One group a part and kind; freezes what the stage does not train. The head learns with the language model."""
    groups = []
    modules: dict[str, list[torch.nn.Module]] = {part: [getattr(model, part)] for part in PARTS}
    if model.lm_head is not None:
        modules["language_model"].append(model.lm_head)
    rates = dict(stage.learning_rate)
    rates["objective"] = stage.objective_learning_rate or max(rates.values(), default=0.0)
    modules["objective"] = [objective]
    for part, members in modules.items():
        rate = rates.get(part, 0.0)
        parameters = list(dict.fromkeys(p for member in members for p in member.parameters()))
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
        if rate > 0 and parameters:
            # biases, norms and layer scales are not weights of a map: decaying them shrinks the signal
            decayed = [p for p in parameters if p.squeeze().dim() > 1]
            plain = [p for p in parameters if p.squeeze().dim() <= 1]
            groups += [{"params": decayed, "peak": rate, "weight_decay": stage.weight_decay, "part": part}]
            groups += [{"params": plain, "peak": rate, "weight_decay": 0.0, "part": part}]
        total = sum(p.numel() for p in parameters)
        logger.info("stage %s: %s %s, %.2f M parameters", stage.name, part, f"learns at {rate:g}" if rate else "frozen", total / 1e6)
    return groups


def set_training_mode(model: FastVLMModel, stage: Stage) -> None:
    """Training mode for what learns. A frozen tower stays in evaluation: its BatchNorm averages would drift with the batches."""
    for part in PARTS:
        getattr(model, part).train(part in stage.learning_rate)
    if isinstance(model.language_model, Decoder):
        model.language_model.gradient_checkpointing = stage.gradient_checkpointing


def run_stage(
    model: FastVLMModel,
    processor: Any,
    recipe: Recipe,
    stage: Stage,
    folder: Path,
    *,
    inherit_from: Path | None = None,
    workers: int = 1,
    save_every_s: float = 300.0,
    log_every: int = 20,
) -> None:
    """Train one stage, going on from `folder/state` if there is one. Leaves the trained weights in `model`.

    Args:
        inherit_from: state of the stage before, when it had the same objective: what that one learnt for itself is kept.
    """
    torch.manual_seed(recipe.seed)
    objective = load_plugin("fastvlm.train.objectives", stage.objective).Objective(model, processor, stage.options)
    groups = parameter_groups(model, objective, stage)
    optimizer = torch.optim.AdamW(groups, betas=stage.betas, fused=True)
    modules = {"model": model, "objective": objective}
    if stage.precision == "bfloat16" and model.device.type == "cpu":
        keep_depthwise_in_float32(model.vision_tower)
    first_step = 0
    state = find_state(folder / "state")
    if state is None and inherit_from is not None:
        load_state(inherit_from, {"objective": objective}, None)
    if state is not None:
        load_state(state, modules, optimizer)
        first_step = read_progress(state)["step"]
        logger.info("stage %s: going on from step %d of %d", stage.name, first_step, stage.steps)
    set_training_mode(model, stage)
    folder.mkdir(parents=True, exist_ok=True)
    metrics_path = folder / "metrics.jsonl"
    _drop_rows_after(metrics_path, first_step)
    source = BatchSource(stage.data, batch_size=stage.batch_size, seed=f"{recipe.seed}/{stage.name}")
    batches = DataLoader(
        _Batches(source, objective.collate),
        batch_size=None,
        sampler=range(first_step, stage.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    window: list[dict[str, float]] = []
    last_save = last_log = time.monotonic()
    step = first_step
    try:
        with metrics_path.open("a") as metrics_file:
            for step, batch in enumerate(batches, first_step):
                scale = stage.learning_rate_scale(step)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * scale
                autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=stage.precision == "bfloat16")
                # the CPU's fused attention takes 15 times as long backward as the plain one on the tower's small maps
                with autocast, sdpa_kernel(SDPBackend.MATH if model.device.type == "cpu" else list(SDPBackend.__members__.values())):
                    loss, metrics = objective.loss(model, batch)
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss.item()} at step {step}; lower learning_rate or use precision: float32")
                loss.backward()
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                norm = torch.nn.utils.clip_grad_norm_(parameters, stage.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                window.append({"loss": loss.item(), "grad_norm": norm.item(), **metrics})
                if (step + 1) % log_every == 0 or step + 1 == stage.steps:
                    now = time.monotonic()
                    row = {name: sum(item.get(name, 0.0) for item in window) / len(window) for name in window[-1]}
                    row = {"step": step + 1, "samples": (step + 1) * stage.batch_size, **row, "learning_rate_scale": scale}
                    row["samples_per_s"] = len(window) * stage.batch_size / (now - last_log)
                    metrics_file.write(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n")
                    metrics_file.flush()
                    logger.info("%s %s", stage.name, " ".join(f"{k}={v:.4g}" for k, v in row.items()))
                    window, last_log = [], now
                if time.monotonic() - last_save > save_every_s:
                    save_state(folder / "state", modules, optimizer, {"stage": stage.name, "step": step + 1})
                    last_save = time.monotonic()
        step += 1
    finally:
        # Ctrl-C and a failing sample keep what was learnt; a step cut in half is repeated on resume
        if step > first_step:
            save_state(folder / "state", modules, optimizer, {"stage": stage.name, "step": step})


def _drop_rows_after(path: Path, step: int) -> None:
    """Forget rows of steps that a kill undid, so that the log is one run."""
    if path.exists():
        rows = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{row}\n" for row in rows))


def stage_folder(recipe: Recipe, out_dir: Path, index: int) -> Path:
    """Where stage `index` (from 0) of a run keeps its state and its log."""
    return out_dir / f"{index + 1}-{recipe.stages[index].name}"


def is_finished(stage: Stage, folder: Path) -> bool:
    state = find_state(folder / "state")
    return state is not None and read_progress(state)["step"] >= stage.steps
