"""A vision tower alone: the weights to start training from.

    state, vision_config = load_tower("fastvit_mci3/model.safetensors")
    FastViTHD(vision_config).load_state_dict(state)

Takes timm's `fastvit_mci3` (MobileCLIP-S3 and MobileCLIP2-S3, in training or inference form), the original MobileCLIP names, an
open_clip file, and the tower of a whole checkpoint. The CLIP head and whatever is not the tower are left out.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastvlm.checkpoint.errors import CheckpointError, listed, nearest
from fastvlm.checkpoint.keymap import (
    APPLE_TOWER,
    CLIP_HEAD,
    NATIVE_TOWER,
    ORIGINAL_TOWER_RULES,
    TIMM_TOWER_RULES,
    KeyMap,
)
from fastvlm.checkpoint.source import FolderSource, SingleFileSource, Source, TensorStore, open_source
from fastvlm.config import ConfigError, VisionConfig

if TYPE_CHECKING:
    import torch

_TIMM = KeyMap(TIMM_TOWER_RULES, [("head.{rest}", CLIP_HEAD)])
_ORIGINAL = KeyMap(ORIGINAL_TOWER_RULES, [("head.{rest}", CLIP_HEAD)])
# Where a tower starts in the files that hold one, and how it is named there. The first whose stem is present is taken.
_PREFIXES = [
    ("", "stem.0.", _TIMM),
    (NATIVE_TOWER, "stem.0.", _TIMM),
    ("vision_tower.", "stem.0.", _TIMM),
    ("timm_model.", "stem.0.", _TIMM),
    ("visual.trunk.", "stem.0.", _TIMM),
    ("", "patch_embed.0.", _ORIGINAL),
    (APPLE_TOWER, "patch_embed.0.", _ORIGINAL),
    ("image_encoder.model.", "patch_embed.0.", _ORIGINAL),
]


def load_tower(path: str | Path, vision_config: VisionConfig | None = None) -> tuple[dict[str, "torch.Tensor"], VisionConfig]:
    """State dict of `FastViTHD` in the stored dtype, and the sizes it is of.

    Args:
        path: a safetensors file, a folder or zip with one (or its shards), or a hub id such as timm/fastvit_mci3.apple_mclip2_dfndr2b.
        vision_config: the sizes that are wanted; None takes those of the file.

    Raises:
        CheckpointError: no tower in the file, a tensor missing, left over or of another shape.
    """
    import torch

    from fastvlm.model.fastvithd import FastViTHD

    local = Path(path).expanduser()
    source: Source
    if local.suffix == ".safetensors" and local.is_file():
        source = SingleFileSource(local)
    elif local.exists():
        source = open_source(local)
    else:
        from fastvlm.checkpoint.hub import download_snapshot

        source = FolderSource(download_snapshot(str(path)))
    store = TensorStore(source)
    prefix, keys = _find(store.tensors, source.label)
    names: dict[str, str] = {}
    unknown = []
    for stored in store.tensors:
        if not stored.startswith(prefix):
            continue
        inner = stored.removeprefix(prefix)
        ours = keys.ours(inner)
        if ours is not None:
            names[ours] = stored
        elif keys.dropped(inner) is None:
            unknown.append(stored)
    if unknown:
        raise CheckpointError(f"{source.label}: {listed(unknown)} are no tensors of a FastViTHD tower")
    config = vision_config_from_shapes({ours: store.tensors[stored].shape for ours, stored in names.items()}, source.label)
    if vision_config is not None and vision_config != config:
        raise CheckpointError(f"{source.label} holds a tower of other sizes: {config}; wanted {vision_config}")
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in FastViTHD(config).state_dict().items()}
    found = {ours: (stored, store.tensors[stored].shape) for ours, stored in names.items()}
    check_names_and_shapes(expected, found, source.label, lambda ours: prefix + (keys.stored(ours) or ours))
    state = {ours: store.read(stored) for ours, stored in names.items()}
    for name in set(expected) - set(state):
        state[name] = torch.zeros((), dtype=torch.int64)
    store.close()
    return state, config


def check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[str, tuple[int, ...]]],
    label: str,
    stored_name: Callable[[str], str],
) -> None:
    """Every expected tensor once and nothing else, or a `CheckpointError` in the file's own names.

    Args:
        expected: our name -> shape.
        found: our name -> (stored name, stored shape).
        stored_name: our name -> the name that the file would have for it.
    """
    # A count of training steps that evaluation does not use; old files lack it.
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    extra = [stored for ours, (stored, _) in found.items() if ours not in expected]
    if missing:
        first = stored_name(missing[0])
        others = f" (and {len(missing) - 1} more: {listed(map(stored_name, missing[1:]), 3)})" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{label} has no tensor {first!r}, expected with shape {list(expected[missing[0]])}{others}" + nearest(first, extra)
        )
    if extra:
        unused = [stored_name(name) for name in expected if name not in found]
        raise CheckpointError(
            f"{label} has tensors that the model of its config.json has no place for: {listed(extra)}" + nearest(extra[0], unused)
        )
    for ours, (stored, shape) in found.items():
        if tuple(shape) != expected[ours]:
            raise CheckpointError(f"{label}: tensor {stored!r} has shape {list(shape)}; expected {list(expected[ours])} by its config.json")


def vision_config_from_shapes(shapes: Mapping[str, tuple[int, ...]], label: str) -> VisionConfig:
    """Sizes and form of a tower from its tensors' shapes, under timm's names."""
    inference_mode = "stem.0.reparam_conv.weight" in shapes
    conv = "reparam_conv.weight" if inference_mode else "conv_kxk.0.conv.weight"

    def size(name: str, axis: int = 0) -> int:
        if name not in shapes or len(shapes[name]) <= axis:
            raise CheckpointError(f"{label} has no complete vision tower: {name!r} (in timm's naming) is missing" + nearest(name, shapes))
        return shapes[name][axis]

    embed_dims = [size(f"stem.0.{conv}"), *(size(f"stages.{stage}.downsample.proj.1.{conv}") for stage in range(1, 5))]
    layers, mlp_ratios = [], []
    for stage, dim in enumerate(embed_dims):
        blocks = {name.split(".")[3] for name in shapes if name.startswith(f"stages.{stage}.blocks.")}
        layers.append(len(blocks))
        hidden = size(f"stages.{stage}.blocks.0.mlp.fc1.weight")
        ratio = hidden / max(dim, 1)
        mlp_ratios.append(int(ratio) if ratio == int(ratio) else ratio)
    try:
        return VisionConfig(tuple(layers), tuple(embed_dims), tuple(mlp_ratios), inference_mode)
    except ConfigError as error:
        raise CheckpointError(f"{label}: the stored tower has sizes that cannot be: {error}") from error


def _find(names: Mapping[str, object], label: str) -> tuple[str, KeyMap]:
    for prefix, stem, keys in _PREFIXES:
        if any(name.startswith(prefix + stem) for name in names):
            return prefix, keys
    raise CheckpointError(
        f"{label} holds no FastViTHD tower: no tensor is named 'stem.0...' (timm) or 'patch_embed.0...' (original); it has {listed(names)}"
    )
