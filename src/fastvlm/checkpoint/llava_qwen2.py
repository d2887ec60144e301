"""Apple's layout: config.json of model_type `llava_qwen2`, as LLaVA's training code writes it, translated to `FastVLMConfig`.

    translated = translate(config, source, store)
    translated.config, translated.image, translated.context_length

Fields that change the result are read or must hold the value that we compute; those in `IGNORED` cannot change it; others are refused.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fastvlm.checkpoint.errors import CheckpointError
from fastvlm.checkpoint.keymap import APPLE_TOWER, ORIGINAL_TOWER_RULES, KeyMap
from fastvlm.checkpoint.safetensors_file import TensorInfo
from fastvlm.checkpoint.source import Source
from fastvlm.checkpoint.tower import vision_config_from_shapes
from fastvlm.config import _IGNORED_EVERYWHERE, PATCH_SIZE, ConfigError, FastVLMConfig, TextConfig, VisionConfig

MODEL_TYPE = "llava_qwen2"
IMAGE_TOKEN = "<image>"
RELEASED_HIDDEN_SIZE = VisionConfig().hidden_size

# Qwen2's own fields, which `TextConfig` reads or checks.
TEXT_FIELDS = frozenset(
    "bos_token_id eos_token_id hidden_act hidden_size intermediate_size layer_types max_position_embeddings max_window_layers "
    "num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window "
    "tie_word_embeddings use_sliding_window vocab_size head_dim attention_bias use_mrope".split()
)
# LLaVA's fields that change the result.
LLAVA_FIELDS = frozenset(
    "image_aspect_ratio image_grid_pinpoints mm_hidden_size mm_patch_merge_type mm_projector_type mm_use_im_start_end mm_vision_tower "
    "tokenizer_model_max_length model_type quantization quantization_config vision_config image_token_index".split()
)
# How it was trained, how the reference's loader behaves, and two choices that the MobileCLIP tower ignores (mm_vision_select_*).
IGNORED = _IGNORED_EVERYWHERE | frozenset(
    "freeze_mm_mlp_adapter tune_mm_mlp_adapter mm_projector_lr mm_vision_tower_lr mm_use_im_patch_token mm_vision_select_feature "
    "mm_vision_select_layer mm_resampler_type mm_tunable_parts pretrain_mm_mlp_adapter tokenizer_padding_side "
    "unfreeze_mm_vision_tower use_mm_proj vision_tower_pretrained group_by_modality_length image_crop_resolution "
    "image_split_resolution mlp_bias _attn_implementation _flash_attn_2_enabled".split()
)
_IMAGE_MODES = {"pad": "pad", "anyres": "anyres", "square": "crop", None: "crop"}
_TOWER_NAME = re.compile(r"mobileclip_l(?:_(\d+))?")


@dataclass
class Translated:
    """What a config.json says, in our terms."""

    config: FastVLMConfig
    context_length: int
    image: dict[str, Any] | None = None  # size, mode, grid_pinpoints; None: preprocessor_config.json says it
    notes: list[str] = field(default_factory=list)
    grow_vocab: int = 0  # rows to append to the embedding (and head), for the image token


def translate(values: Mapping[str, Any], source: Source, tensors: Mapping[str, TensorInfo]) -> Translated:
    """From Apple's config.json, with the stored shapes for what it does not say (a small tower, a trimmed embedding)."""
    where = f"{source.label}/config.json"
    if unknown := sorted(set(values) - TEXT_FIELDS - LLAVA_FIELDS - IGNORED):
        raise CheckpointError(f"{where} has fields that this version does not know: {', '.join(map(str, unknown))[:400]}")
    if values.get("quantization") or values.get("quantization_config"):
        raise CheckpointError(
            f"{where}: the weights are quantised; load the unquantised checkpoint (see `fastvlm pull --help`) and quantise that"
        )
    if "fastvithd.mlpackage" in source.folders() or not any(name.startswith("model.vision_tower.") for name in tensors):
        raise CheckpointError(
            f"{source.label} has no vision tower among its tensors (Apple's exports for MLX keep it in fastvithd.mlpackage); "
            "load the PyTorch checkpoint that the export was made from"
        )
    _only(values, "mm_projector_type", ("mlp2x_gelu",), where, required=True)
    _only(values, "mm_patch_merge_type", ("flat", None), where)
    _only(values, "mm_use_im_start_end", (False, None), where)
    _only(values, "attention_bias", (True, None), where)  # Qwen2 always has it
    _only(values, "vision_config", ({}, None), where)
    text_values = {name: values[name] for name in sorted(TEXT_FIELDS & set(values)) if name not in ("attention_bias", "head_dim")}
    head_dim = values.get("head_dim")
    try:
        text_config = TextConfig.from_dict({"model_type": "qwen2", **text_values})
        vision_config = _vision_config(values, tensors, where)
        if head_dim is not None and head_dim != text_config.head_dim:
            raise ConfigError(f"head_dim is {head_dim!r}; Qwen2 has hidden_size / num_attention_heads = {text_config.head_dim}")
        config, notes, grow = _with_image_token(text_config, vision_config, source, tensors, where)
    except CheckpointError:
        raise
    except ConfigError as error:
        raise CheckpointError(f"{where}: {str(error)[:1000]}") from error
    # a value of another type than any writer gives it: a number for a list, text for an object
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{where} is malformed: {str(error).splitlines()[0][:200]}") from error
    context_length = text_config.max_position_embeddings
    limit = values.get("tokenizer_model_max_length")
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0:
            raise CheckpointError(f"{where}: tokenizer_model_max_length is {limit!r}; expected a positive whole number")
        context_length = min(context_length, limit)
    return Translated(config, context_length, _image(values, where), notes, grow)


def _only(values: Mapping[str, Any], name: str, allowed: tuple[Any, ...], where: str, required: bool = False) -> None:
    if required and name not in values:
        raise CheckpointError(f"{where} has no {name!r}, which is needed to build the model")
    if name in values and not any(value is values[name] or value == values[name] for value in allowed):
        supported = ", ".join(repr(value) for value in allowed if value is not None)
        raise CheckpointError(f"{where}: {name} is {str(values[name])[:80]!r}; supported: {supported}")


def _image(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    name = values.get("mm_vision_tower")
    match = _TOWER_NAME.fullmatch(PurePosixPath(name).name) if isinstance(name, str) else None
    if match is None:
        raise CheckpointError(
            f"{where}: mm_vision_tower is {str(name)[:80]!r}; expected 'mobileclip_l_<side in pixels>', such as mobileclip_l_1024"
        )
    size = int((match[1] or "1024")[:9])
    if size == 0 or size % PATCH_SIZE:
        raise CheckpointError(f"{where}: mm_vision_tower {name!r} names a side of {size} pixels; it must be a multiple of {PATCH_SIZE}")
    aspect = values.get("image_aspect_ratio")
    if not (aspect is None or isinstance(aspect, str)) or aspect not in _IMAGE_MODES:
        raise CheckpointError(f"{where}: image_aspect_ratio is {str(aspect)[:80]!r}; supported: 'pad', 'anyres', 'square'")
    image: dict[str, Any] = {"size": size, "mode": _IMAGE_MODES[aspect], "grid_pinpoints": None}
    if aspect == "anyres":
        image["grid_pinpoints"] = _pinpoints(values.get("image_grid_pinpoints"), size, where)
    return image


def _pinpoints(value: Any, size: int, where: str) -> tuple[tuple[int, int], ...]:
    """[[width, height], ...], which LLaVA also writes as a string or as a range of tile counts '(1x1),...,(2x2)'."""
    if isinstance(value, str):
        numbers = [int(number) for number in re.findall(r"\d{1,9}", value)]
        if "x" in value and len(numbers) == 4:
            columns, rows = range(numbers[0], numbers[2] + 1), range(numbers[1], numbers[3] + 1)
            if len(columns) * len(rows) > 1000:
                raise CheckpointError(f"{where}: image_grid_pinpoints {value[:80]!r} stand for more than 1000 sizes")
            value = [[column * size, row * size] for column in columns for row in rows]
        else:
            value = [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=False)] if len(numbers) % 2 == 0 else None
    ok = isinstance(value, list) and value and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    if not ok or any(isinstance(side, bool) or not isinstance(side, int) or side <= 0 or side % size for pair in value for side in pair):
        raise CheckpointError(
            f"{where}: image_grid_pinpoints is {str(value)[:80]!r}; 'anyres' needs [[width, height], ...] in multiples of {size}"
        )
    return tuple((pair[0], pair[1]) for pair in value)


def _vision_config(values: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> VisionConfig:
    """The released tower where mm_hidden_size is its width, so that a wrong shape is called wrong; else from the shapes."""
    hidden_size = values.get("mm_hidden_size")
    if hidden_size == RELEASED_HIDDEN_SIZE:
        return VisionConfig(inference_mode=APPLE_TOWER + "patch_embed.0.rbr_conv.0.conv.weight" not in tensors)
    if isinstance(hidden_size, bool) or not isinstance(hidden_size, int):
        raise CheckpointError(
            f"{where}: mm_hidden_size is {str(hidden_size)[:80]!r}; expected the width of an image token, {RELEASED_HIDDEN_SIZE}"
        )
    names = KeyMap(ORIGINAL_TOWER_RULES)
    shapes = {
        ours: info.shape
        for name, info in tensors.items()
        if name.startswith(APPLE_TOWER) and (ours := names.ours(name.removeprefix(APPLE_TOWER))) is not None
    }
    config = vision_config_from_shapes(shapes, where)
    if config.hidden_size != hidden_size:
        raise CheckpointError(f"{where}: mm_hidden_size is {hidden_size}, but the stored tower gives {config.hidden_size}")
    return config


def _with_image_token(
    text_config: TextConfig, vision_config: VisionConfig, source: Source, tensors: Mapping[str, TensorInfo], where: str
) -> tuple[FastVLMConfig, list[str], int]:
    """The image token is the tokenizer's `<image>`, or its first free id: the reference has no id for it, only a sentinel."""
    ids = known_token_ids(source)
    image_token_id = ids.get(IMAGE_TOKEN, max(ids.values()) + 1)
    notes, grow = [], 0
    if image_token_id == text_config.vocab_size:
        grow = 1
        notes.append(f"the embedding had {text_config.vocab_size} rows, one too few for the image token; a row of zeros was appended")
        text_config = dataclasses.replace(text_config, vocab_size=text_config.vocab_size + 1)
    elif image_token_id > text_config.vocab_size:
        raise CheckpointError(
            f"{where}: vocab_size is {text_config.vocab_size}, but the tokenizer has ids up to {max(ids.values())}: two models"
        )
    tie = text_config.tie_word_embeddings
    return FastVLMConfig(vision_config, text_config, image_token_id, tie), notes, grow


def known_token_ids(source: Source) -> dict[str, int]:
    """Every token's id, from whichever tokenizer files there are."""
    ids: dict[str, Any] = {}
    if source.has("tokenizer.json"):
        values = source.read_json("tokenizer.json")
        model = values.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocab, dict):
            ids.update(vocab)
        ids.update(_added(values.get("added_tokens")))
    elif source.has("vocab.json"):
        ids.update(source.read_json("vocab.json"))
    if source.has("added_tokens.json"):
        ids.update(source.read_json("added_tokens.json"))
    if source.has("tokenizer_config.json"):
        decoder = source.read_json("tokenizer_config.json").get("added_tokens_decoder")
        if isinstance(decoder, dict):
            entries = [
                {"id": int(key), **value} for key, value in decoder.items() if key.isdecimal() and len(key) < 12 and isinstance(value, dict)
            ]
            ids.update(_added(entries))
    valid = {name: value for name, value in ids.items() if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31}
    if not valid or len(valid) != len(ids):
        raise CheckpointError(f"{source.label} has no usable tokenizer: expected tokenizer.json, or vocab.json with merges.txt")
    return valid


def _added(entries: Any) -> dict[str, Any]:
    if not isinstance(entries, list):
        return {}
    return {str(entry.get("content")): entry.get("id") for entry in entries if isinstance(entry, dict)}
