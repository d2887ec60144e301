"""What a recipe would do, before it does it: samples as the model sees them, what is learnt of them, and what the run will cost.

    fastvlm train RECIPE --dry-run --out DIR

Per stage: the first samples with their text (what is learnt stands in ⟦ ⟧), their pictures as PNG, as they are after resizing,
and estimates from one real step on one part of a batch. Nothing is saved but the pictures.
"""

import contextlib
import copy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastvlm.checkpoint.errors import gigabytes
from fastvlm.checkpoint.memory import available_memory_bytes, process_memory_bytes
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.plugins import load_plugin
from fastvlm.train.data import BatchSource
from fastvlm.train.loop import TrainingModule, _autocast, _fast_attention, parameter_groups, set_training_mode
from fastvlm.train.lora import add_lora
from fastvlm.train.recipe import PARTS, Recipe, Stage

SHOWN = 3  # samples a stage
_WEIGHT_BYTES, _LEARNT_BYTES = 4, 4 + 8  # float32; a gradient and AdamW's two moments


def preview_stage(model: FastVLMModel, processor: Any, recipe: Recipe, stage: Stage, folder: Path, *, processes: int = 1) -> Iterator[str]:
    """Lines that describe a stage; `folder` takes the pictures."""
    if stage.lora is not None:
        model = copy.deepcopy(model)
        add_lora(model, stage.lora)
    objective = load_plugin("fastvlm.train.objectives", stage.objective).Objective(model, processor, stage.options)
    module = TrainingModule(model, objective)
    parameter_groups(module, stage)
    set_training_mode(model, stage)
    size = f"{stage.batch_size}" + (f", put together to {stage.batch_tokens} tokens" if stage.batch_tokens else "")
    yield f"stage {stage.name}: {stage.samples} samples in {stage.steps} batches of {size}; {stage.schedule}, {stage.precision}"
    for part in PARTS:
        total, learnt = _count(getattr(model, part))
        rate = f"{learnt / 1e6:.2f} M learn at {stage.learning_rate[part]:g}" if learnt else "frozen"
        yield f"  {part}: {total / 1e6:.2f} M parameters, {rate}"
    source = BatchSource(stage.data, batch_size=stage.batch_size, seed=f"{recipe.seed}/{stage.name}")
    samples, items = [], []

    def prepare(sample: Any) -> Any:
        items.append(objective.prepare(sample))
        samples.append(sample)

    source.batch(0, prepare=prepare)
    for number, sample in enumerate(samples[:SHOWN]):
        yield from (f"  {line}" for line in _show(objective, processor, sample, folder, f"{stage.name}-{number}"))
    if source.broken:
        yield f"  {source.broken} of the first {source.read} samples cannot be used"
    yield from (f"  {line}" for line in _costs(module, stage, items, processes))


def _count(module: nn.Module) -> tuple[int, int]:
    """Parameters, and those that learn."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _show(objective: Any, processor: Any, sample: Any, folder: Path, name: str) -> Iterator[str]:
    text_objective = getattr(objective, "text", objective)
    if not hasattr(text_objective, "loss_of") or not hasattr(text_objective, "max_length"):
        sample.image.save(folder / f"{name}.png")  # a document of which only the cells are learnt
        yield f"sample: {sample.kind}, {len(sample.chars)} characters, picture {folder / name}.png"
        return
    row = text_objective.prepare(sample)
    pictures = []
    for index, pixels in enumerate(np.concatenate(row.image_groups)[:8] if row.image_groups else ()):
        path = folder / f"{name}-{index}.png"
        save_pixels(pixels, path, processor.image_processor)
        pictures.append(str(path))
    learnt = int(row.loss_mask.sum())
    yield f"sample: {row.input_ids.shape[1]} tokens, {learnt} of them learnt; pictures {', '.join(pictures) or 'none'}"
    yield from (f"  | {line}" for line in masked_text(row, processor).splitlines())


def masked_text(row: Any, processor: Any) -> str:
    """The tokens of a sample as text, what is learnt in ⟦ ⟧, a picture's tokens as <image x 256>."""
    ids, mask = row.input_ids[0].tolist(), row.loss_mask[0].tolist()
    pieces, start = [], 0
    while start < len(ids):
        end = start
        while end < len(ids) and mask[end] == mask[start]:
            end += 1
        text = processor.tokenizer.decode(ids[start:end], skip_special_tokens=False)
        pieces.append(f"⟦{text}⟧" if mask[start] else text)
        start = end
    image = re.escape(processor.image_token)
    return re.sub(f"(?:{image})+", lambda match: f"<image x {len(match[0]) // len(processor.image_token)}>", "".join(pieces))


def save_pixels(pixels: np.ndarray, path: Path, image_processor: Any) -> None:
    """(3, H, W) as the tower takes it, as a picture."""
    mean, std = (np.array(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std))
    values = np.clip((pixels * std + mean) * 255 + 0.5, 0, 255).astype(np.uint8)
    Image.fromarray(values.transpose(1, 2, 0)).save(path)


def _costs(module: TrainingModule, stage: Stage, items: list[Any], processes: int) -> Iterator[str]:
    total, learnt = _count(module)
    fixed = total * _WEIGHT_BYTES * (2 if stage.ema_decay else 1) + learnt * _LEARNT_BYTES
    available = available_memory_bytes()
    yield f"memory: {gigabytes(fixed)} for weights, gradients and moments, a process"
    if available is not None and fixed - total * _WEIGHT_BYTES > available:  # the weights are here already
        yield f"  {gigabytes(available)} are free: use more processes with --sharded, LoRA or a smaller model. No step was measured"
        return
    size = min(len(items), stage.micro_batch_size or -(-stage.batch_size // processes))
    batch = module.objective.collate(items[:size]) if size else None
    if batch is None:
        yield "time: no step was measured, since the first batch has no usable sample"
        return
    seconds, grown = _measure(module, batch, stage)
    left = seconds / size * stage.samples / processes
    if grown:
        yield f"        some {gigabytes(max(0, grown - 4 * learnt))} more while {size} sample(s) go through it"
    yield f"time: {seconds / size:.3g} s a sample on this machine, {_duration(left)} for the stage in {processes} process(es)"


def _measure(module: TrainingModule, batch: dict[str, torch.Tensor], stage: Stage) -> tuple[float, int]:
    """Seconds of a forward and backward pass, the second of two, and by how many bytes the process grew in it (0 where nothing tells)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    on_device = {name: value.to(device) for name, value in batch.items()}
    grown, seconds = 0, 0.0
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        before, start = process_memory_bytes("VmRSS"), time.perf_counter()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        with _fast_attention(device), _autocast(device, stage):
            loss, _ = module(on_device)
        with _fast_attention(device):
            loss.backward()
        seconds = time.perf_counter() - start
        grown = max(grown, process_memory_bytes("VmHWM") - before)
    module.zero_grad(set_to_none=True)
    return seconds, grown if device.type == "cpu" else torch.cuda.max_memory_allocated()


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
