"""config.json as it really occurs: the releases at their real size, other writers' spellings, and everything that is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from checkpoint_files import APPLE_CONFIG, apple_tensors, random_model, tiny_config, write_apple
from fastvlm.checkpoint import CheckpointError, open_checkpoint
from fastvlm.checkpoint.keymap import APPLE
from fastvlm.checkpoint.llava_qwen2 import translate
from fastvlm.checkpoint.source import FolderSource, TensorStore
from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig

SIZES = {
    # layers, hidden, intermediate, heads, kv heads, rows; parameters with a stored head, without
    "0.5B": (dict(num_hidden_layers=24, hidden_size=896, intermediate_size=4864, num_attention_heads=14), 2, 151936, True),
    "1.5B": (dict(num_hidden_layers=28, hidden_size=1536, intermediate_size=8960, num_attention_heads=12), 2, 151936, True),
    "7B": (dict(num_hidden_layers=28, hidden_size=3584, intermediate_size=18944, num_attention_heads=28), 4, 152064, False),
}
HEAD_PROJ = 3072 * 768


def released(folder: Path, size: str) -> Path:
    """A release at its real size: all headers real, the data a hole in a sparse file."""
    import torch

    from fastvlm.model.fastvlm import FastVLMModel

    sizes, kv_heads, rows, tie = SIZES[size]
    folder.mkdir()
    values = {**APPLE_CONFIG, **sizes, "num_key_value_heads": kv_heads, "vocab_size": rows, "tie_word_embeddings": tie}
    values |= {"mm_hidden_size": 3072, "mm_vision_tower": "mobileclip_l_1024", "max_position_embeddings": 32768, "sliding_window": 32768}
    values |= {"tokenizer_model_max_length": 8192, "bos_token_id": 151643, "eos_token_id": 151645}
    (folder / "config.json").write_text(json.dumps(values))
    added = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    if size == "7B":
        added |= {f"<|tool_{index}|>": index for index in range(151646, 151665)}
    (folder / "vocab.json").write_text(json.dumps({f"t{index}": index for index in range(151643)}))
    (folder / "added_tokens.json").write_text(json.dumps(added))
    text = TextConfig.from_dict(
        {"model_type": "qwen2", **sizes, "num_key_value_heads": kv_heads, "vocab_size": rows, "max_position_embeddings": 1}
    )
    with torch.device("meta"):
        state = FastVLMModel(FastVLMConfig(VisionConfig(), text, 0, False)).state_dict()  # untied: the files hold a head
    header: dict[str, Any] = {}
    end = 0
    shapes = {str(APPLE.stored(name)): (tuple(value.shape), value.dtype) for name, value in state.items()}
    shapes["model.vision_tower.vision_tower.model.head.proj"] = ((3072, 768), torch.bfloat16)
    for name, (shape, dtype) in shapes.items():
        is_count = dtype == torch.int64
        nbytes = torch.Size(shape).numel() * (8 if is_count else 2)
        header[name] = {"dtype": "I64" if is_count else "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    return folder


@pytest.mark.parametrize(
    "size, total, tied", [("0.5B", 758_798_048, 622_663_392), ("1.5B", 1_909_242_464, 1_675_868_768), ("7B", 7_764_552_288, 0)]
)
def test_releases_at_their_real_size(tmp_path: Path, size: str, total: int, tied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(released(tmp_path / "llava-fastvithd", size))
    assert len(checkpoint.store.tensors) == (924 if size == "0.5B" else 972)
    checkpoint.check_tensors()
    monkeypatch.setattr(checkpoint.store, "same_bytes", lambda first, second: True)  # gigabytes of zeros
    description = checkpoint.describe()
    assert description["parameters"]["total"] == (tied or total) - HEAD_PROJ
    assert (
        sum(description["parameters"][name] for name in ("vision_tower", "multi_modal_projector", "language_model"))
        + (0 if tied else description["parameters"]["lm_head"])
        == description["parameters"]["total"]
    )
    assert description["image"] == {"size": 1024, "mode": "pad", "tokens": 256}
    assert description["context_length"] == 8192
    assert description["image_token_id"] == (151665 if size == "7B" else 151646)
    assert description["head"] == ("tied to the embedding" if tied else "its own")
    assert description["license"] == "apple-amlr"
    json.dumps(description)
    monkeypatch.setattr("fastvlm.checkpoint.checkpoint.available_memory_bytes", lambda: 1_000_000_000)
    # 4 bytes for each value, BatchNorm statistics included, and the largest stored tensor once more while it is converted
    needed = {"0.5B": "2.75 GB", "1.5B": "7.16 GB", "7B": "32.1 GB"}[size]
    with pytest.raises(CheckpointError, match=f"in float32 needs {needed} of memory and 1 GB are available"):
        checkpoint.load_model("float32")


class Small:
    """Translates Apple configs against the tensors of one small checkpoint."""

    def __init__(self, folder: Path):
        self.source = FolderSource(folder)
        self.tensors = TensorStore(self.source).tensors

    def __call__(self, **changes: Any) -> Any:
        values = {name: value for name, value in {**APPLE_CONFIG, **changes}.items() if value is not ...}
        return translate(values, self.source, self.tensors)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(write_apple(tmp_path_factory.mktemp("configs") / "llava", apple_tensors(random_model(tiny_config()))))


@pytest.mark.parametrize(
    "changes",
    [
        dict(auto_map=..., torch_dtype=..., transformers_version="4.48.3", _attn_implementation_autoset=True),
        dict(_name_or_path="./llava-v1.5-13b", pad_token_id=151643, mm_vision_tower_lr=2e-6, mm_use_im_patch_token=True),
        dict(rope_scaling=None, attention_bias=True, head_dim=8, dtype="bfloat16", torch_dtype=...),
        dict(rope_theta=..., rope_parameters=dict(rope_theta=1e6, rope_type="default"), layer_types=["full_attention"] * 2),
        dict(mm_patch_merge_type=None, image_grid_pinpoints=[[256, 256]], mm_resampler_type=None, vision_tower_pretrained=""),
        dict(mm_vision_tower="../checkpoints/mobileclip_l_128", mm_patch_merge_type=..., mm_use_im_start_end=...),
        dict(temperature=None, top_p=None, do_sample=True, num_return_sequences=1, id2label={"0": "LABEL_0"}, bad_words_ids=None),
    ],
)
def test_fields_that_cannot_change_the_result_are_ignored(small: Small, changes: dict[str, Any]) -> None:
    assert small(**changes).config == small().config
    assert small(**changes).image == small().image


@pytest.mark.parametrize(
    "changes, image",
    [
        (dict(image_aspect_ratio="square"), dict(size=128, mode="crop", grid_pinpoints=None)),
        (dict(image_aspect_ratio=None), dict(size=128, mode="crop", grid_pinpoints=None)),
        (dict(image_aspect_ratio=...), dict(size=128, mode="crop", grid_pinpoints=None)),
        (dict(mm_vision_tower="mobileclip_l"), dict(size=1024, mode="pad", grid_pinpoints=None)),
        (dict(mm_vision_tower="mobileclip_l_384"), dict(size=384, mode="pad", grid_pinpoints=None)),
        (
            dict(image_aspect_ratio="anyres", image_grid_pinpoints=[[128, 256], [256, 128]]),
            dict(size=128, mode="anyres", grid_pinpoints=((128, 256), (256, 128))),
        ),
        (
            dict(image_aspect_ratio="anyres", image_grid_pinpoints="[(128, 256), (256, 256)]"),
            dict(size=128, mode="anyres", grid_pinpoints=((128, 256), (256, 256))),
        ),
        (
            dict(image_aspect_ratio="anyres", image_grid_pinpoints="(1x1),...,(2x2)"),
            dict(size=128, mode="anyres", grid_pinpoints=((128, 128), (128, 256), (256, 128), (256, 256))),
        ),
    ],
)
def test_picture_settings_are_read(small: Small, changes: dict[str, Any], image: dict[str, Any]) -> None:
    assert small(**changes).image == image


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(mm_projector_type="linear"), "mm_projector_type is 'linear'; supported: 'mlp2x_gelu'"),
        (dict(mm_projector_type=...), "no 'mm_projector_type'"),
        (dict(mm_vision_tower="openai/clip-vit-large-patch14-336"), "mm_vision_tower is 'openai/clip-vit-large-patch14-336'"),
        (dict(mm_vision_tower="mobileclip_l_1000"), "multiple of 64"),
        (dict(mm_vision_tower="mobileclip_l_0"), "multiple of 64"),
        (dict(mm_vision_tower=...), "mm_vision_tower is 'None'"),
        (dict(mm_use_im_start_end=True), "mm_use_im_start_end is 'True'; supported: False"),
        (dict(mm_patch_merge_type="spatial_unpad"), "mm_patch_merge_type is 'spatial_unpad'; supported: 'flat'"),
        (dict(image_aspect_ratio="highres"), "image_aspect_ratio is 'highres'"),
        (dict(image_aspect_ratio="anyres"), "image_grid_pinpoints is 'None'"),
        (dict(image_aspect_ratio="anyres", image_grid_pinpoints=[[100, 200]]), "multiples of 128"),
        (dict(image_aspect_ratio="anyres", image_grid_pinpoints="(1x1),...,(999x999)"), "more than 1000 sizes"),
        (dict(mm_hidden_size=64), "mm_hidden_size is 64, but the stored tower gives 128"),
        (dict(mm_hidden_size=...), "mm_hidden_size is 'None'"),
        (dict(hidden_act="gelu"), "hidden_act is 'gelu'; supported: 'silu'"),
        (dict(hidden_size=...), "no 'hidden_size'"),
        (dict(num_hidden_layers=0), "num_hidden_layers is 0"),
        (dict(vocab_size="many"), "vocab_size is 'many'"),
        (dict(num_attention_heads=5), "no multiple of num_attention_heads 5"),
        (dict(head_dim=16), "head_dim is 16"),
        (dict(rope_scaling={"type": "su", "factor": 2.0}), "rope_type 'su' is not supported"),
        (dict(rope_theta="big"), "rope_theta"),
        (dict(tie_word_embeddings="yes"), "tie_word_embeddings is 'yes'"),
        (dict(attention_bias=False), "attention_bias is 'False'"),
        (dict(tokenizer_model_max_length=-1), "tokenizer_model_max_length is -1"),
        (dict(quantization_config={"quant_method": "awq"}), "quantised"),
        (dict(mm_tower_of_the_future=1, speculative=True), "fields that this version does not know: mm_tower_of_the_future, speculative"),
    ],
)
def test_what_changes_the_result_and_is_not_supported_is_refused(small: Small, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        small(**changes)
    assert words in str(caught.value), caught.value
    assert "config.json" in str(caught.value) or "no usable" in str(caught.value)


def test_a_tower_that_is_not_the_promised_one_is_found_by_its_first_tensor(tmp_path: Path) -> None:
    folder = write_apple(tmp_path / "llava", apple_tensors(random_model(tiny_config())), mm_hidden_size=3072)
    with pytest.raises(CheckpointError, match=r"no tensor 'model.vision_tower.*expected with shape"):
        open_checkpoint(folder).check_tensors()


NATIVE = {
    "architectures": ["FastVlmForConditionalGeneration"],
    "image_seq_length": 256,
    "image_token_index": 151646,
    "model_type": "fast_vlm",
    "multimodal_projector_bias": True,
    "projector_hidden_act": "gelu",
    "text_config": {
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "layer_types": ["full_attention"] * 24, "max_position_embeddings": 131072,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "sliding_window": None,
        "tie_word_embeddings": True, "use_cache": True, "use_sliding_window": False, "vocab_size": 152000,
    },
    "tie_word_embeddings": True,
    "transformers_version": "5.0.0.dev0",
    "vision_config": {
        "architecture": "fastvit_mci3", "do_pooling": True, "global_pool": "avg", "hidden_size": 3072, "initializer_range": 0.02,
        "label_names": ["LABEL_0", "LABEL_1"], "model_args": {"inference_mode": True}, "model_type": "timm_wrapper", "num_classes": 2,
        "pretrained_cfg": {"crop_pct": 0.95},
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}  # fmt: skip


def test_conversions_on_the_hub_read_in_both_generations_of_transformers() -> None:
    new = FastVLMConfig.from_dict(NATIVE)
    text = {name: value for name, value in NATIVE["text_config"].items() if name not in ("rope_parameters", "layer_types")}
    text |= {"rope_theta": 1000000.0, "rope_scaling": None, "torch_dtype": "bfloat16"}
    old = FastVLMConfig.from_dict({**NATIVE, "text_config": text, "torch_dtype": "bfloat16", "transformers_version": "4.57.1"})
    assert old == new
    assert new.vision_config == VisionConfig() and new.text_config.max_position_embeddings == 131072
    assert new.tie_word_embeddings and new.image_token_id == 151646 and new.text_config.vocab_size == 152000
