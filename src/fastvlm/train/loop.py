"""The training loop: one for all stages and objectives, one process or several; goes on where it was stopped.

    fastvlm train recipes/nano/nano.yaml --out runs/nano

Batch k of a stage is a function of the recipe alone. Each process takes its share of it in parts of `micro_batch_size`, and the loss is
divided by the targets of the whole batch, so neither the number of processes nor the size of the parts changes what is learnt. (BatchNorm
of a tower that learns is the exception: its statistics are those of a part.)
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastvlm.model.decoder import Decoder
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.model.precision import has_fast_bfloat16
from fastvlm.plugins import load_plugin
from fastvlm.train.attention import PlainAttention
from fastvlm.train.data import BatchSource
from fastvlm.train.depthwise import keep_depthwise_in_float32
from fastvlm.train.distributed import max_over_processes, shard, sum_over_processes
from fastvlm.train.lora import add_lora
from fastvlm.train.muon import Muon
from fastvlm.train.objectives import Batch, Metrics
from fastvlm.train.recipe import PARTS, Recipe, RecipeError, Stage
from fastvlm.train.report import Report
from fastvlm.train.state import find_state, load_heads, load_optimizer, load_weights, read_progress, save_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; none of it changes what is learnt."""

    workers: int = 1  # processes that make batches, for each that trains
    save_every_s: float = 300.0
    log_every: int = 20  # steps
    sharded: bool = False  # FSDP2 instead of DDP
    quiet: bool = False  # no progress bar


class TrainingModule(nn.Module):
    """Model and objective as one module, whose forward pass is the loss: what DDP and FSDP need to see."""

    def __init__(self, model: FastVLMModel, objective: Any):
        super().__init__()
        self.model = model
        self.objective: Any = objective

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return self.objective.loss(self.model, batch)


class _Steps(Dataset):
    """The parts that one process has of each batch, by the batch's number."""

    def __init__(self, source: BatchSource, objective: Any, stage: Stage, rank: int, processes: int):
        self.source, self.objective = source, objective
        share = -(-stage.batch_size // processes)
        size = min(stage.micro_batch_size or share, share)
        starts = range(rank * size, stage.batch_size, processes * size)
        self.parts = [slice(start, min(start + size, stage.batch_size)) for start in starts]

    def __getitem__(self, index: int) -> list[tuple[Batch, float]] | ValueError:
        """(batch, number of targets) of every part that has samples; an error of the data is handed over whole, for the user to read."""
        torch.set_num_threads(1)
        try:
            return self._parts(index)
        except ValueError as error:
            return error

    def _parts(self, index: int) -> list[tuple[Batch, float]]:
        batches = [self.objective.collate(self.source.batch(index, part, self.objective.prepare)) for part in self.parts]
        return [(batch, self.objective.count(batch)) for batch in batches if batch is not None]

    def some_batch(self, tries: int = 20) -> Batch:
        """One usable sample from anywhere, for a process that has none of its own."""
        for index in range(tries):
            for place in range(self.source.batch_size):
                batch = self.objective.collate(self.source.batch(index, slice(place, place + 1), self.objective.prepare))
                if batch is not None:
                    return batch
        raise RuntimeError("none of the first samples can be used; see the log for what is wrong with the data")


def parameter_groups(module: TrainingModule, stage: Stage) -> list[dict[str, Any]]:
    """One group a part and kind; freezes what the stage does not train. The head learns with the language model."""
    model, groups = module.model, []
    members: dict[str, list[nn.Module]] = {part: [getattr(model, part)] for part in PARTS}
    if model.lm_head is not None:
        members["language_model"].append(model.lm_head)
    members["objective"] = [module.objective]
    rates = dict(stage.learning_rate)
    highest = max(rates.values(), default=0.0)
    rates["objective"] = highest if stage.objective_learning_rate is None else stage.objective_learning_rate
    kept = {parameter for frozen in _frozen_modules(model, stage) for parameter in frozen.parameters()}
    for part, modules in members.items():
        rate = rates.get(part, 0.0)
        named = [pair for member in modules for pair in member.named_parameters()]
        adapts = stage.lora is not None and part in stage.lora.parts
        for name, parameter in named:
            parameter.requires_grad_(rate > 0 and parameter not in kept and (not adapts or ".lora_" in name))
        parameters = list(dict.fromkeys(p for _, p in named if p.requires_grad or not rate))
        if rate > 0 and parameters:
            # biases, norms and layer scales are not weights of a map: decaying them shrinks the signal
            is_map = {p: p.squeeze().dim() > 1 for p in parameters}
            # embeddings, heads and depthwise kernels are no matrices from one space to another
            tables = {p for member in modules for table in member.modules() if isinstance(table, nn.Embedding) for p in table.parameters()}
            learns_by_muon = stage.optimizer == "muon" and part in PARTS
            is_matrix = {p: learns_by_muon and p.squeeze().dim() == 2 and p not in tables for p in parameters}
            for decayed, orthogonal in ((True, True), (True, False), (False, False)):
                chosen = [p for p in parameters if is_map[p] is decayed and is_matrix[p] is orthogonal]
                decay = stage.weight_decay if decayed else 0.0
                if chosen:
                    groups.append({"params": chosen, "peak": rate, "weight_decay": decay, "orthogonal": orthogonal})
        total = sum(p.numel() for p in parameters)
        if total:
            logger.info("stage %s: %s %s, %.2f M parameters", stage.name, part, f"learns at {rate:g}" if rate else "frozen", total / 1e6)
    if not groups:
        raise RecipeError(f"stage {stage.name!r}: learning_rate names no part, so there is nothing to train")
    return groups


def set_training_mode(model: FastVLMModel, stage: Stage) -> None:
    """Training mode for what learns. What is frozen of a tower stays in evaluation: its BatchNorm averages would drift with the batches."""
    for part in PARTS:
        getattr(model, part).train(part in stage.learning_rate)
    for module in _frozen_modules(model, stage):
        module.eval()
    if stage.freeze_batch_norm or (stage.lora is not None and "vision_tower" in stage.lora.parts):
        for layer in model.vision_tower.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
    if isinstance(model.language_model, Decoder):
        model.language_model.gradient_checkpointing = stage.gradient_checkpointing
        model.language_model.checkpoint_context_fn = _checkpoint_contexts
    elif stage.gradient_checkpointing:
        enable = getattr(model.language_model, "activation_checkpointing_enable", None)  # transformers 5.20 renamed it
        enable = enable or model.language_model.gradient_checkpointing_enable
        enable({"use_reentrant": False, "context_fn": _checkpoint_contexts})


def _frozen_modules(model: FastVLMModel, stage: Stage) -> list[nn.Module]:
    modules = dict(model.named_modules())
    if unknown := sorted(set(stage.frozen) - set(modules)):
        raise RecipeError(f"stage {stage.name!r}: frozen names {unknown[0]}, and the model has no such module")
    return [modules[name] for name in stage.frozen]


def _checkpoint_contexts() -> tuple[Any, Any]:
    """Of a layer's forward pass, and of its repetition in the backward pass, where `PlainAttention` is not active any more."""
    return contextlib.nullcontext(), contextlib.nullcontext() if torch.cuda.is_available() else PlainAttention()


def run_stage(
    model: FastVLMModel,
    processor: Any,
    recipe: Recipe,
    stage: Stage,
    folder: Path,
    *,
    inherit_from: tuple[str, Path] | None = None,
    options: RunOptions | None = None,
    after_evaluation: Any = None,
) -> None:
    """Train one stage, going on from `folder/state` if there is one, and leave its last state there.

    Args:
        inherit_from: objective and state of the stage before; what that objective learnt for itself is kept where this one has the same.
        after_evaluation: called as `after_evaluation(state_folder) -> {metric: value}` every `evaluate.every_samples`, in the main process.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    options = options or RunOptions()
    if options.sharded and stage.optimizer == "muon":
        raise RecipeError(f"stage {stage.name!r}: optimizer muon needs whole matrices, and --sharded splits them; use adamw")
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )
    if stage.precision == "bfloat16" and _any_process(not has_fast_bfloat16(accelerator.device), accelerator):
        logger.warning("stage %s: this %s is not faster in bfloat16, float32 is used instead", stage.name, accelerator.device.type)
        stage = dataclasses.replace(stage, precision="float32")
    torch.manual_seed(recipe.seed)
    objective = load_plugin("fastvlm.train.objectives", stage.objective).Objective(model, processor, stage.options)
    if stage.lora is not None:
        add_lora(model, stage.lora)
    module = TrainingModule(model, objective)
    if stage.precision == "bfloat16" and accelerator.device.type == "cpu":
        keep_depthwise_in_float32(model.vision_tower)
    state = find_state(folder / "state")
    if state is None and inherit_from is not None:
        previous, previous_state = inherit_from
        heir = objective if previous == stage.objective else getattr(objective, getattr(objective, "contains", {}).get(previous, ""), None)
        if heir is not None and (fresh := load_heads(previous_state, heir)):
            logger.info("stage %s: new, since the stage before had none: %s", stage.name, ", ".join(fresh))
    groups = parameter_groups(module, stage)
    if options.sharded and accelerator.num_processes > 1:
        for group in groups:  # sharding replaces the parameters: find them again by name
            names = {parameter: name for name, parameter in module.named_parameters()}
            group["params"] = [names[parameter] for parameter in group["params"]]
        shard(module.to(accelerator.device))
        found = dict(module.named_parameters())
        for group in groups:
            group["params"] = [found[name] for name in group["params"]]
        wrapped: nn.Module = module
    else:
        wrapped = accelerator.prepare_model(module)
    # AdamW where no group is orthogonal
    optimizer = Muon(groups, lr=0.0, betas=stage.betas, fused=not options.sharded)
    first_step, ema = 0, {}
    if stage.ema_decay:
        ema = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    if state is not None:
        load_weights(state, module)
        ema = load_optimizer(state, module, optimizer)
        first_step = read_progress(state)["step"]
        logger.info("stage %s: going on from step %d of %d", stage.name, first_step, stage.steps)
    set_training_mode(model, stage)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "broken.txt"
    source = BatchSource(stage.data, batch_size=stage.batch_size, seed=f"{recipe.seed}/{stage.name}", log=log)
    dataset = _Steps(source, objective, stage, accelerator.process_index, accelerator.num_processes)
    steps = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first_step, stage.steps),
        num_workers=options.workers,
        prefetch_factor=4 if options.workers else None,
    )
    is_main = accelerator.is_main_process
    report = (
        Report(folder, stage.name, first_step, stage.steps, stage.batch_size, log_every=options.log_every, quiet=options.quiet)
        if is_main
        else None
    )
    last_save, done = time.monotonic(), first_step

    def save() -> None:
        save_state(folder / "state", module, optimizer, ema, {"stage": stage.name, "step": done}, is_main=is_main)

    waiting: list[tuple[Batch, float]] = []
    try:
        for step, parts in enumerate(steps, first_step):
            if isinstance(parts, ValueError):
                raise parts
            waiting += parts
            if stage.batch_tokens and step + 1 < stage.steps and _num_tokens(waiting) < stage.batch_tokens:
                continue
            waiting = _even_out(waiting, dataset.some_batch)
            values = _train_step(wrapped, optimizer, waiting, stage, step, accelerator)
            _update_average(ema, model, stage.ema_decay)
            before, done, waiting = done, step + 1, []
            if report is not None:
                report.step(done, stage.learning_rate_scale(step), values)
            every = stage.evaluate_every_steps
            is_evaluation = every > 0 and (before // every < done // every or done == stage.steps)
            if _any_process(is_evaluation or time.monotonic() - last_save > options.save_every_s, accelerator):
                save()
                last_save = time.monotonic()
            if is_evaluation and report is not None and after_evaluation is not None:
                scores = after_evaluation(folder / "state")
                report.write({"step": done, "samples": done * stage.batch_size, **scores})
    finally:
        # Ctrl-C and a failing sample keep what was learnt. A sharded state is gathered from all processes, which may not all be here.
        if done > first_step and not (options.sharded and accelerator.num_processes > 1 and done < stage.steps):
            save()
        if report is not None:
            report.close()
        if is_main and log.is_file():
            logger.warning("stage %s: %d samples could not be used: %s", stage.name, len(set(log.read_text().splitlines())), log)
    accelerator.wait_for_everyone()  # the state that the next stage starts from is written by the main process


def _train_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, parts: list[tuple[Batch, float]], stage: Stage, step: int, accelerator: Any
) -> dict[str, tuple[float, float]]:
    """Gradients of all parts, one optimizer step; returns metric -> (sum, count) over all processes."""
    scale = stage.learning_rate_scale(step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale
    device = accelerator.device
    targets = sum_over_processes(torch.tensor([sum(count for _, count in parts)], dtype=torch.float64))
    if not targets.item():
        return {}
    sums: dict[str, list[float]] = {}
    for index, (batch, count) in enumerate(parts):
        on_device = {name: value.to(device) for name, value in batch.items()}
        is_last = index == len(parts) - 1
        with contextlib.nullcontext() if is_last else _no_sync(module), _fast_attention(device), _autocast(device, stage):
            loss, metrics = module(on_device)
        # gradients are averaged over the processes, and should be summed
        scaled = loss * (accelerator.num_processes / targets.item() if count else 0.0)
        with contextlib.nullcontext() if is_last else _no_sync(module), _fast_attention(device):  # checkpoints compute forward again
            scaled.backward()
        for name, (total, number) in {"loss": (loss.detach(), torch.tensor(count)), **metrics}.items():
            if not count:
                total = number = torch.zeros(())  # a part that only keeps step with other processes
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += total.item()
            entry[1] += number.item()
    names = sorted(sums)
    gathered = sum_over_processes(torch.tensor([sums[name] for name in names], dtype=torch.float64))
    values = {name: (total, count) for name, (total, count) in zip(names, gathered.tolist(), strict=True)}
    if not all(map(_is_finite, (total for total, _ in values.values()))):
        raise FloatingPointError(f"the loss is not finite at step {step}; lower learning_rate or use precision: float32")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm: Any = torch.nn.utils.clip_grad_norm_(parameters, stage.max_grad_norm)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**values, "grad_norm": (norm.item(), 1.0)}


def _autocast(device: torch.device, stage: Stage) -> Any:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=stage.precision == "bfloat16")


def _fast_attention(device: torch.device) -> Any:
    return PlainAttention() if device.type == "cpu" else contextlib.nullcontext()


def _no_sync(module: nn.Module) -> Any:
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()


def _is_finite(value: float) -> bool:
    return value - value == 0


def _num_tokens(parts: list[tuple[Batch, float]]) -> int:
    """Tokens of all processes' parts, padding included: what they cost to compute."""
    mine = sum(batch["input_ids"].numel() for batch, _ in parts if "input_ids" in batch)
    return int(sum_over_processes(torch.tensor(mine)).item())


def _even_out(parts: list[tuple[Batch, float]], some_batch: Callable[[], Batch]) -> list[tuple[Batch, float]]:
    """As many parts as the process with the most: gradients are exchanged in each, so a process without one would leave the others waiting.

    What is added counts nothing.
    """
    most = max_over_processes(len(parts))
    if most > len(parts):
        filler = parts[-1][0] if parts else some_batch()
        parts = parts + [(filler, 0.0)] * (most - len(parts))
    return parts


def _any_process(flag: bool, accelerator: Any) -> bool:
    """True in all processes if it is in one: clocks differ, and saving a sharded state needs all."""
    return bool(sum_over_processes(torch.tensor([float(flag)])).item()) if accelerator.num_processes > 1 else flag


@torch.no_grad()
def _update_average(ema: dict[str, Tensor], model: FastVLMModel, decay: float) -> None:
    if ema:
        for name, value in model.state_dict().items():
            if f"model.{name}" in ema:
                ema[f"model.{name}"].lerp_(value.to(ema[f"model.{name}"].dtype), 1 - decay)


def stage_folders(recipe: Recipe, out_dir: Path) -> Iterator[tuple[Stage, Path]]:
    """Each stage with the folder that holds its state and its log."""
    for number, stage in enumerate(recipe.stages, 1):
        yield stage, out_dir / f"{number}-{stage.name}"


def is_finished(stage: Stage, folder: Path) -> bool:
    state = find_state(folder / "state")
    return state is not None and read_progress(state)["step"] >= stage.steps
