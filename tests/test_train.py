"""Training: recipes, dense targets, initialisation, and a run that is killed and goes on."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastvlm.config import VisionConfig
from fastvlm.model.fastvithd import FastViTHD
from fastvlm.train.depthwise import keep_depthwise_in_float32
from fastvlm.train.initialize import initialize_tower
from fastvlm.train.objectives.characters import BACKGROUND, CHARACTERS, UNKNOWN, character_grid
from fastvlm.train.recipe import RecipeError, Stage, load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
TINY = """
model:
  vision_config: {layers: [1, 1, 1, 1, 1], embed_dims: [8, 16, 32, 32, 32], mlp_ratios: [2, 2, 2, 2, 2]}
  text_config: {model_type: qwen2, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2,
                max_position_embeddings: 512, vocab_size: 320, tie_word_embeddings: true}
  tokenizer: bytes
  image_size: 128
seed: 3
stages:
  - name: read
    objective: characters
    samples: 32
    batch_size: 4
    learning_rate: {vision_tower: 2.0e-3}
    options: {map_weight: 1.0, token_weight: 1.0}
    data: [{generator: documents, kinds: {lines: 1}, sizes: [[128, 128]]}]
"""


def class_of(character: str) -> int:
    return CHARACTERS.index(character) + 1


def test_character_grid_by_hand():
    """16 x 16 pixels are 2 rows of 4 cells, with centres at y 4, 12 and x 2, 6, 10, 14."""
    boxes = np.array([[0, 0, 7, 9], [9, 9, 15, 15], [5, 13, 6, 14]], np.float32)
    grid = character_grid("AB.", boxes, 16, 16)
    a, b, dot = class_of("A"), class_of("B"), class_of(".")
    assert grid.tolist() == [[a, a, BACKGROUND, BACKGROUND], [BACKGROUND, dot, b, b]]


def test_character_grid_keeps_unknown_characters_and_stays_inside():
    grid = character_grid("\u4e2d", np.array([[-5, -5, 500, 3]], np.float32), 16, 16)
    assert (grid[0] == UNKNOWN).all()
    assert (grid[1] == BACKGROUND).all()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_parse(path):
    recipe = load_recipe(path)
    assert all(stage.steps > 0 for stage in recipe.stages)


@pytest.mark.parametrize(
    "change, message",
    [
        ("objective: characters", "field 'objective' is missing"),
        ("samples: 32", "field 'samples' is missing"),
        ("vision_tower: 2.0e-3", "learning_rate names tower"),
    ],
)
def test_recipes_that_cannot_run_are_refused(tmp_path, change, message):
    path = tmp_path / "bad.yaml"
    path.write_text(TINY.replace(change, {"vision_tower: 2.0e-3": "tower: 1"}.get(change, "")))
    with pytest.raises(RecipeError, match=f"{path.name}.*{message}"):
        load_recipe(path)


def test_schedule_by_hand():
    stage = Stage("s", "characters", samples=100, batch_size=10, learning_rate={}, warmup_samples=20, final_learning_rate=0.1)
    scales = [stage.learning_rate_scale(step) for step in range(10)]
    assert scales[:3] == [0.5, 1.0, 1.0]
    assert scales[6] == pytest.approx(0.1 + 0.9 * 0.5)  # half way: cos(pi / 2) = 0
    assert all(later < earlier for earlier, later in itertools.pairwise(scales[2:]))
    assert dataclasses.replace(stage, schedule="linear").learning_rate_scale(6) == pytest.approx(0.1 + 0.9 * 0.5)


def test_float32_depthwise_changes_no_weight_and_no_result():
    tower = FastViTHD(VisionConfig(layers=(1, 1, 1, 1, 1), embed_dims=(8, 16, 32, 32, 32)))
    pixel_values = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tower.eval()
    before, state = tower(pixel_values), {k: v.clone() for k, v in tower.state_dict().items()}
    keep_depthwise_in_float32(tower)
    assert torch.equal(tower(pixel_values), before)
    assert tower.state_dict().keys() == state.keys()


def test_a_fresh_tower_passes_signal_and_gradient():
    """Activations and gradients of an untrained tower stay within two orders of magnitude from first stage to last."""
    torch.manual_seed(0)
    tower = FastViTHD(VisionConfig(layers=(1, 2, 2, 1, 1), embed_dims=(16, 32, 64, 64, 128))).train()
    initialize_tower(tower)
    features = tower(torch.rand(4, 3, 128, 128))
    assert 0.05 < features.std() < 20
    (features * torch.randn_like(features)).sum().backward()
    first, last = (module.weight.grad.norm() for module in (tower.stem[0].reparam_conv, tower.stages[4].blocks[0].mlp.fc1))
    assert 1e-2 < first / last < 1e2


def rows(path: Path) -> list[dict[str, float]]:
    timeless = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "samples_per_s"} for row in timeless]


RUN = """
import sys, fastvlm.train.loop as loop
from pathlib import Path
from fastvlm.train.recipe import load_recipe
from fastvlm.train.run import run
import torch; torch.set_num_threads(1)
original = loop.run_stage
def run_stage(*args, **kwargs): return original(*args, **{**kwargs, "log_every": 1})
import fastvlm.train.run as module; module.run_stage = run_stage
run(load_recipe(sys.argv[1]), Path(sys.argv[2]), workers=0, save_every_s=0.0)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    """kill -9 in the middle, then again from the same folder: the log is the uninterrupted run's, step by step, in float32."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(recipe)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, timeout=300)
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    metrics = tmp_path / "killed" / "1-read" / "metrics.jsonl"
    while killed.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        try:
            killed.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment, timeout=300)
    expected = rows(tmp_path / "whole" / "1-read" / "metrics.jsonl")
    assert len(expected) == 8
    assert rows(metrics) == expected
    assert expected[-1]["loss"] < expected[0]["loss"]


CONVERSATIONS = """
  - name: answer
    objective: conversations
    samples: 24
    batch_size: 4
    learning_rate: {vision_tower: 1.0e-3, multi_modal_projector: 1.0e-3, language_model: 3.0e-3}
    precision: bfloat16
    data: [{generator: documents, kinds: {lines: 1}, sizes: [[128, 128]]}]
"""


def test_the_result_is_a_checkpoint(tmp_path):
    """What a run leaves loads here and in transformers, and the loss over all stages falls."""
    transformers = pytest.importorskip("transformers")
    import fastvlm
    from fastvlm.train.run import run

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY + CONVERSATIONS)
    run(load_recipe(recipe), tmp_path / "run", workers=0)
    log = [json.loads(line) for line in (tmp_path / "run" / "2-answer" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 6
    assert log[-1]["loss"] < np.log(320)
    vlm = fastvlm.load(tmp_path / "run" / "model", runtime="torch", dtype="float32")
    picture = Image.new("RGB", (100, 60), "white")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Read it."}]
    messages = [{"role": "user", "content": content}]
    inputs = vlm.processor(messages)
    reference = transformers.FastVlmForConditionalGeneration.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = reference(input_ids=torch.from_numpy(inputs.input_ids), pixel_values=torch.from_numpy(inputs.pixel_values)).logits
    assert np.abs(vlm.logits(inputs) - expected.numpy()).max() < 1e-4 * expected.abs().max()
    assert vlm.generate(messages, max_new_tokens=3).timings.completion_tokens <= 3


def test_only_answers_are_learnt():
    """The labels of a two-turn conversation are the answers and their end marks, at their places, and nothing else."""
    from fastvlm.train.objectives.conversations import IGNORE, Objective
    from fastvlm.train.run import new_processor

    processor = new_processor({"text_config": {"max_position_embeddings": 512}, "image_size": 128})
    content = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "Total?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "12.50"},
        {"role": "user", "content": "Date?"},
        {"role": "assistant", "content": "May"},
    ]
    batch = Objective(None, processor, {}).collate([messages, messages[:2]])
    labels = batch["labels"]
    assert processor.tokenizer.decode(labels[0][labels[0] != IGNORE].tolist(), skip_special_tokens=False) == "12.50<|end|>May<|end|>"
    assert processor.tokenizer.decode(labels[1][labels[1] != IGNORE].tolist(), skip_special_tokens=False) == "12.50<|end|>"
    is_target = labels != IGNORE
    assert torch.equal(labels[is_target], batch["input_ids"][is_target])
    assert batch["pixel_values"].shape == (2, 3, 128, 128)


def test_byte_tokenizer_is_read_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    from fastvlm.train.byte_tokenizer import IMAGE_TOKEN_ID, byte_tokenizer, save_byte_tokenizer

    save_byte_tokenizer(tmp_path, 4096)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "Total: €12,50 é\n\t中 <image>"
    ids = byte_tokenizer().encode(text).ids
    assert ids == reference(text)["input_ids"]
    assert ids[-1] == IMAGE_TOKEN_ID == 261
    assert len(ids) == len(text.encode()) - len("<image>") + 1  # a token a byte
    rendered = reference.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert rendered == "<|user|>Hi<|end|><|assistant|>"
