"""Small checkpoints for tests, in Apple's and transformers' layouts, with random weights."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from fastvlm.checkpoint.keymap import APPLE
from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.model.fastvlm import FastVLMModel

VOCAB = 256 + 4  # bytes, three merges, one token of two letters
ADDED = {"<|endoftext|>": VOCAB, "<|im_start|>": VOCAB + 1, "<|im_end|>": VOCAB + 2}
IMAGE_TOKEN_ID = VOCAB + 3
TOWER = dict(layers=(1, 1, 1, 1, 1), embed_dims=(8, 16, 32, 32, 64), mlp_ratios=(2, 2, 2, 2, 2))
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512
)
# What apple/FastVLM-0.5B publishes, but for the sizes.
APPLE_CONFIG: dict[str, Any] = {
    "architectures": ["LlavaQwen2ForCausalLM"],
    "auto_map": {"AutoConfig": "llava_qwen.LlavaConfig", "AutoModelForCausalLM": "llava_qwen.LlavaQwen2ForCausalLM"},
    "attention_dropout": 0.0,
    "bos_token_id": ADDED["<|endoftext|>"],
    "eos_token_id": ADDED["<|im_end|>"],
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "initializer_range": 0.02,
    "max_window_layers": 24,
    "mm_hidden_size": 2 * TOWER["embed_dims"][-1],
    "mm_patch_merge_type": "flat",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "mobileclip_l_128",
    "model_type": "llava_qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "tokenizer_model_max_length": 256,
    "tokenizer_padding_side": "right",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.3",
    "tune_mm_mlp_adapter": False,
    "unfreeze_mm_vision_tower": True,
    "use_cache": True,
    "use_mm_proj": True,
    "use_sliding_window": False,
    "vocab_size": 320,
    **TEXT,
}


def tiny_config(
    *, tie: bool = True, inference_mode: bool = True, text: dict[str, Any] | None = None, vocab_size: int = 320
) -> FastVLMConfig:
    values = {"model_type": "qwen2", "rope_theta": 1e6, "rms_norm_eps": 1e-6, **TEXT, "vocab_size": vocab_size, **(text or {})}
    text_config = TextConfig.from_dict({**values, "tie_word_embeddings": tie})
    return FastVLMConfig(VisionConfig(**TOWER, inference_mode=inference_mode), text_config, IMAGE_TOKEN_ID, tie)


@torch.no_grad()
def random_model(config: FastVLMConfig, seed: int = 0) -> FastVLMModel:
    """Weights that leave no tensor at a value which a loader could have put there by default."""
    torch.manual_seed(seed)
    model = FastVLMModel(config).eval()
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(1000)
        elif name.endswith(("running_var", "gamma")) or (name.endswith("weight") and value.dim() == 1):
            value.uniform_(0.5, 1.5)
        else:
            value.normal_(std=0.2)
    return model


def write_tokenizer(folder: Path) -> None:
    """Qwen2's files at a small size: all bytes, a few merges, its three special tokens."""
    base = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in base] + [chr(256 + index) for index in range(256 - len(base))]  # GPT-2's printable bytes
    vocab = [*characters, "Ġt", "he", "Ġthe", "in"]
    assert len(vocab) == VOCAB
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\nĠt he\ni n\n")
    (folder / "added_tokens.json").write_text(json.dumps(ADDED))
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokenizer_config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): {"content": token, **special} for token, index in ADDED.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 256,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}))


def apple_tensors(model: nn.Module, head: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Under Apple's names, with what its files hold beside the model: the CLIP head, and a head of its own also when it is tied."""
    tensors = {}
    for name, value in model.state_dict().items():
        stored = APPLE.stored(name)
        assert stored is not None, name
        tensors[stored] = value.to(dtype) if value.is_floating_point() else value
    tensors["model.vision_tower.vision_tower.model.head.proj"] = torch.zeros(128, 8, dtype=dtype)
    if head is None and "lm_head.weight" not in tensors:
        head = tensors["model.embed_tokens.weight"]
    if head is not None:
        tensors["lm_head.weight"] = head.to(dtype).clone()
    return tensors


def write_apple(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """A folder in Apple's layout. `changes` to config.json; a value of `...` removes the field."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in {**APPLE_CONFIG, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": null, "transformers_version": "4.39.3"}')
    write_tokenizer(folder)
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; a value of `...` removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def make_zip(folder: Path, target: Path, compression: int = zipfile.ZIP_STORED, root: str | None = "") -> Path:
    """`folder` as a zip, inside a folder of its name unless `root` says another; None puts the files at the top."""
    prefix = "" if root is None else f"{root or folder.name}/"
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, prefix + path.name)
    return target


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file: what changes when somebody writes there."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}
