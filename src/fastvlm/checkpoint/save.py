"""Write a checkpoint in transformers' `fast_vlm` layout, from any layout that we read or from a model in memory.

    save_pretrained(checkpoint, checkpoint.processor(), "out")         # tensor by tensor; holds one at a time
    save_pretrained(model, processor, "out", licenses_from=checkpoint)

The folder appears when it is complete. transformers reads it with FastVlmForConditionalGeneration and AutoProcessor.
"""

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.checkpoint.checkpoint import APPLE_LICENSE, UNLIMITED_LENGTH, Checkpoint, aliases_of, stored_state
from fastvlm.checkpoint.errors import CheckpointError
from fastvlm.checkpoint.keymap import NATIVE
from fastvlm.checkpoint.safetensors_file import ITEM_BYTES, TORCH_NAMES, SafetensorsWriter, safetensors_dtype
from fastvlm.checkpoint.source import INDEX_FILE, WEIGHTS_FILE, check_disk_space
from fastvlm.config import FastVLMConfig

if TYPE_CHECKING:
    import torch

    from fastvlm.model.fastvlm import FastVLMModel
    from fastvlm.processor import Processor

APPLE_NOTICE = """\
These weights are, or are derived from, Apple's FastVLM weights (github.com/apple/ml-fastvlm), which come under the Apple Machine Learning
Research Model License Agreement: research purposes only, no commercial use, and the same terms for whatever is derived from them. The
folder that they were read from held no copy of the agreement; it is the file LICENSE_MODEL of that repository.

Apple Machine Learning Research Model is licensed under the Apple Machine Learning Research Model License Agreement.
"""


@dataclass(frozen=True)
class _Tensor:
    stored_name: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    read: Callable[[], "torch.Tensor"]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def save_pretrained(
    source: "Checkpoint | FastVLMModel",
    processor: "Processor | None",
    folder: str | Path,
    *,
    dtype: "str | torch.dtype | None" = None,
    max_shard_bytes: int = 5_000_000_000,
    licenses_from: Checkpoint | None = None,
) -> Path:
    """Write weights, config, tokenizer and picture settings into a new folder.

    Args:
        source: an open checkpoint, or a model (either form of the tower; not a folded one).
        processor: its settings and tokenizer; None writes the model alone.
        folder: must not exist or be empty.
        dtype: of the floating-point weights: `float32`, `bfloat16` or `float16`; None keeps each as it is.
        max_shard_bytes: a larger model is split into several files with an index.
        licenses_from: for a model in memory, the checkpoint that it was made from: its licence files are carried along.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder is not empty, the disk is too full, or the source has missing or foreign tensors.
    """
    origin = licenses_from
    if isinstance(source, Checkpoint):
        origin = licenses_from or source
        config, tensors = source.config, _from_checkpoint(source, _stored_dtype(dtype))
    else:
        config, tensors = _config_of(source), _from_model(source, _stored_dtype(dtype))
    return _save(config, tensors, processor, folder, max_shard_bytes, origin)


def save_generated(
    config: FastVLMConfig,
    make: "Callable[[str, tuple[int, ...]], torch.Tensor]",
    processor: "Processor",
    folder: str | Path,
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a checkpoint whose tensors are made when they are written, so that memory holds one of them.

    Args:
        make: (our name, shape) -> values; called once for each tensor of the model that `config` describes.
        processor, folder, dtype, max_shard_bytes: as for `save_pretrained`.
    """
    import torch

    from fastvlm.model.fastvlm import FastVLMModel

    with torch.device("meta"):
        state = stored_state(FastVLMModel(config))
    stored = {name: "I64" if not value.is_floating_point() else _stored_dtype(dtype) for name, value in state.items()}
    tensors = [
        _Tensor(_native_name(name), stored[name] or "", shape, lambda name=name, shape=shape: make(name, shape))  # type: ignore[misc]
        for name, shape in ((name, tuple(value.shape)) for name, value in state.items())
    ]
    return _save(config, sorted(tensors, key=lambda tensor: tensor.stored_name), processor, folder, max_shard_bytes, None)


def _save(
    config: FastVLMConfig,
    tensors: list[_Tensor],
    processor: "Processor | None",
    folder: str | Path,
    max_shard_bytes: int,
    origin: Checkpoint | None,
) -> Path:
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not an empty folder; name a new one")
    target.parent.mkdir(parents=True, exist_ok=True)
    check_disk_space(target.parent, sum(tensor.nbytes for tensor in tensors), f"saving to {target}")
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        _write_weights(tensors, temporary, max_shard_bytes)
        if processor is not None:
            processor.save(temporary)
        _write_configs(config, tensors, processor, temporary, origin)
        write_licenses(origin, temporary)
        if target.is_dir():
            target.rmdir()
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _stored_dtype(dtype: "str | torch.dtype | None") -> str | None:
    names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in names:
        raise CheckpointError(f"dtype is {name!r}; supported: {', '.join(names)}")
    return names[name]


def _from_checkpoint(checkpoint: Checkpoint, dtype: str | None) -> list[_Tensor]:
    checkpoint.check_tensors()
    tensors = []
    for tensor in checkpoint.tensors():
        stored = dtype if dtype is not None and tensor.info.dtype != "I64" else tensor.info.dtype
        tensors.append(_Tensor(_native_name(tensor.name), stored, tensor.shape, tensor.read))
    return sorted(tensors, key=lambda tensor: tensor.stored_name)


def _from_model(model: "FastVLMModel", dtype: str | None) -> list[_Tensor]:
    import torch

    from fastvlm.model.fastvithd import FastViTHD

    tower = model.vision_tower
    with torch.device("meta"):
        expected = set(FastViTHD(tower.config).state_dict())
    if expected != set(tower.state_dict()):
        raise CheckpointError("the model's vision tower has been folded, which cannot be undone; save it before fold(), or load it again")
    aliases = aliases_of(model)
    tensors = []
    for name, value in stored_state(model).items():
        if name in aliases:
            continue
        stored = safetensors_dtype(value.dtype)
        stored = dtype if dtype is not None and stored != "I64" else stored
        tensors.append(_Tensor(_native_name(name), stored, tuple(value.shape), lambda value=value: value))  # type: ignore[misc]
    return sorted(tensors, key=lambda tensor: tensor.stored_name)


def _config_of(model: "FastVLMModel") -> FastVLMConfig:
    """The model's config with the tower's present form: reparameterize() replaces the tower, not the config."""
    return dataclasses.replace(model.config, vision_config=model.vision_tower.config)


def _native_name(name: str) -> str:
    stored = NATIVE.stored(name)
    if stored is None:
        raise CheckpointError(
            f"the model has a tensor {name!r} that the layout has no place for; is an adapter still attached? Merge it first"
        )
    return stored


def _write_weights(tensors: list[_Tensor], folder: Path, max_shard_bytes: int) -> None:
    import torch

    shards = list(_shards(tensors, max_shard_bytes))
    weight_map = {}
    for index, shard in enumerate(shards, start=1):
        name = WEIGHTS_FILE if len(shards) == 1 else f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        writer = SafetensorsWriter(folder / name, {tensor.stored_name: (tensor.dtype, tensor.shape) for tensor in shard})
        for tensor in shard:
            # no variable: it would keep one tensor while the next is read
            writer.write(tensor.stored_name, tensor.read().to(getattr(torch, TORCH_NAMES[tensor.dtype])))
            weight_map[tensor.stored_name] = name
        writer.close()
    if len(shards) > 1:
        index_values = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": weight_map}
        _write_json(folder / INDEX_FILE, index_values)


def _shards(tensors: list[_Tensor], max_shard_bytes: int) -> Iterator[list[_Tensor]]:
    shard: list[_Tensor] = []
    for tensor in tensors:
        if shard and sum(item.nbytes for item in shard) + tensor.nbytes > max_shard_bytes:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write_configs(
    config: FastVLMConfig, tensors: list[_Tensor], processor: "Processor | None", folder: Path, checkpoint: Checkpoint | None
) -> None:
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype != "I64":
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    values = config.to_dict()
    values["dtype"] = TORCH_NAMES[max(sizes, key=lambda name: sizes[name])]
    if processor is not None:
        recipe = processor.image_processor
        values["image_seq_length"] = recipe.num_tokens(recipe.size, recipe.size)
    _write_json(folder / "config.json", values)
    text = config.text_config
    eos: Any = list(text.eos_token_id) if isinstance(text.eos_token_id, tuple) else text.eos_token_id
    generation = {"bos_token_id": text.bos_token_id, "eos_token_id": eos, "pad_token_id": text.raw.get("pad_token_id"), "do_sample": False}
    if processor is not None:
        generation["eos_token_id"] = list(processor.tokenizer.eos_token_ids) or eos
        generation["pad_token_id"] = processor.tokenizer.pad_token_id
        generation["no_repeat_ngram_size"] = processor.no_repeat_ngram_size or None
    _write_json(folder / "generation_config.json", {name: value for name, value in generation.items() if value is not None})
    limit = checkpoint.context_length if checkpoint is not None else UNLIMITED_LENGTH
    if (folder / "tokenizer_config.json").is_file() and limit < text.max_position_embeddings:
        tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
        _write_json(folder / "tokenizer_config.json", {**tokenizer_config, "model_max_length": limit})


def write_licenses(checkpoint: Checkpoint | None, folder: Path) -> None:
    if checkpoint is None:
        return
    names = checkpoint.source.license_files()
    for name in names:
        (folder / name).write_bytes(checkpoint.source.read_bytes(name))
    if not names and checkpoint.license_name == APPLE_LICENSE:
        (folder / "LICENSE_NOTICE.txt").write_text(APPLE_NOTICE)
    elif not names and checkpoint.license_name:
        (folder / "LICENSE_NOTICE.txt").write_text(f"The weights' source names their licence as: {checkpoint.license_name}\n")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
