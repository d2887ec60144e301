"""Training: recipes, dense targets, initialisation, and a run that is killed and goes on."""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
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
from fastvlm.records import BrokenSample
from fastvlm.train.depthwise import keep_depthwise_in_float32
from fastvlm.train.initialize import initialize_tower
from fastvlm.train.objectives.characters import BACKGROUND, CHARACTERS, UNKNOWN, character_grid
from fastvlm.train.recipe import RecipeError, Stage, load_recipe

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


def test_a_recipe_and_its_stages_go_on_from_another(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    other = tmp_path / "other.yaml"
    other.write_text("base: tiny.yaml\nseed: 4\nstages: [{base: read, name: more, samples: 64}, {base: read}]\n")
    tiny, recipe = load_recipe(tmp_path / "tiny.yaml"), load_recipe(other)
    more = dataclasses.replace(tiny.stages[0], name="more", samples=64)
    assert recipe == dataclasses.replace(tiny, seed=4, stages=(more, tiny.stages[0]))
    other.write_text("base: tiny.yaml\nstages: [{base: reed}]\n")
    with pytest.raises(RecipeError, match="other.yaml: no stage 'reed' in tiny.yaml; it has read"):
        load_recipe(other)


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
import sys
from pathlib import Path
from fastvlm.train.loop import RunOptions
from fastvlm.train.recipe import load_recipe
from fastvlm.train.run import run
import torch; torch.set_num_threads(1)
run(load_recipe(sys.argv[1]), Path(sys.argv[2]), RunOptions(workers=0, save_every_s=0.0, log_every=1, sharded="--sharded" in sys.argv))
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


@pytest.mark.parametrize("orthogonal", [False, True])
def test_a_state_without_moments_goes_on_exactly(tmp_path, orthogonal):
    """What no gradient has reached yet has no moments. It starts when a gradient comes, as in the unstopped run."""
    from fastvlm.train.muon import Muon
    from fastvlm.train.state import load_optimizer, save_state

    def fresh() -> tuple[torch.nn.ModuleDict, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.ModuleDict({"used": torch.nn.Linear(3, 2), "idle": torch.nn.Linear(3, 2)})
        weights, biases = ([p for p in module.parameters() if p.dim() == dims] for dims in (2, 1))
        return module, Muon([{"params": weights, "orthogonal": orthogonal}, {"params": biases}], lr=0.1, fused=True)

    def step(module, optimizer, names):
        sum(module[name](torch.ones(3)).square().sum() for name in names).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    module, optimizer = fresh()
    step(module, optimizer, ["used"])
    save_state(tmp_path / "state", module, optimizer, {}, {"step": 1}, is_main=True)
    resumed, resumed_optimizer = fresh()
    resumed.load_state_dict(module.state_dict())
    load_optimizer(tmp_path / "state", resumed, resumed_optimizer)
    for _ in range(2):
        step(module, optimizer, ["used", "idle"])
        step(resumed, resumed_optimizer, ["used", "idle"])
    for name, value in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_heads_that_the_stage_before_lacked_start_fresh(tmp_path):
    """A state of an older code or other options may lack a head: the rest is inherited."""
    from safetensors.torch import save_file

    from fastvlm.train.state import load_heads

    module = torch.nn.ModuleDict({"old": torch.nn.Linear(2, 2), "new": torch.nn.Linear(2, 2)})
    before = module["new"].weight.detach().clone()
    save_file({"objective.old.weight": torch.ones(2, 2), "objective.old.bias": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert load_heads(tmp_path, module) == ["new.weight", "new.bias"]
    assert torch.equal(module["old"].weight, torch.ones(2, 2))
    assert torch.equal(module["new"].weight, before)


def run_processes(count: int, recipe: Path, out: Path, *arguments: str) -> None:
    script = out.with_suffix(".py")
    script.write_text(RUN)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count > 1 else []
    command = [sys.executable, *launcher, str(script), str(recipe), str(out), *arguments]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)


def frozen_tower() -> str:
    """A recipe in which BatchNorm does not depend on how a batch is cut."""
    text = (TINY + CONVERSATIONS).replace("vision_tower: 1.0e-3, ", "").replace("precision: bfloat16", "weight_decay: 0.1")
    head, _, tail = text.partition("  - name: read")
    return head + tail[tail.index("  - name: answer") :]


def test_processes_and_parts_change_nothing(tmp_path):
    """Two processes, two sharded ones, and one in parts of 2 go through the same steps as one process.

    The tower is frozen: where it learns, its BatchNorm sees only a part of the batch.
    """
    text = frozen_tower()
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(text)
    parts = tmp_path / "parts.yaml"
    parts.write_text(text.replace("batch_size: 4", "batch_size: 4\n    micro_batch_size: 2"))
    run_processes(1, recipe, tmp_path / "one")
    run_processes(1, parts, tmp_path / "parts")
    run_processes(2, recipe, tmp_path / "two")
    run_processes(2, recipe, tmp_path / "sharded", "--sharded")
    expected = rows(tmp_path / "one" / "1-answer" / "metrics.jsonl")
    assert len(expected) == 6
    for name in ("parts", "two", "sharded"):
        actual = rows(tmp_path / name / "1-answer" / "metrics.jsonl")
        for row, other in zip(expected, actual, strict=True):
            assert other == pytest.approx(row, rel=2e-4), name


def test_muon_shares_its_work_among_processes(tmp_path):
    recipe = tmp_path / "muon.yaml"
    recipe.write_text(frozen_tower().replace("batch_size: 4", "batch_size: 4\n    optimizer: muon"))
    for count in (1, 2):
        run_processes(count, recipe, tmp_path / str(count))
    one, two = (rows(tmp_path / str(count) / "1-answer" / "metrics.jsonl") for count in (1, 2))
    assert one[-1]["loss"] < one[0]["loss"] - 0.1
    for row, other in zip(one, two, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=5e-3)  # sums in another order, then rounded to bfloat16


def test_muon_moves_matrices_by_their_orthogonal_momentum():
    """Two steps against the formula with an exact singular value decomposition; a bias moves as AdamW moves it."""
    from fastvlm.train.muon import MOMENTUM, STEP_RMS, Muon

    generator = torch.Generator().manual_seed(0)
    start, bias = torch.randn(24, 40, generator=generator), torch.randn(24, generator=generator)
    gradients = [torch.randn(24, 40, generator=generator) * torch.logspace(0, -2, 40) for _ in range(2)]
    matrix, conv, moved, adam = (torch.nn.Parameter(t.clone()) for t in (start, start[..., None, None], bias, bias))
    muon = Muon([{"params": [matrix, conv], "orthogonal": True}, {"params": [moved]}], lr=0.1, weight_decay=0.5)
    adamw = torch.optim.AdamW([adam], lr=0.1, weight_decay=0.5)
    expected, momentum = start.clone(), torch.zeros(24, 40)
    for gradient in gradients:
        matrix.grad, conv.grad = gradient.clone(), gradient[..., None, None].clone()
        moved.grad, adam.grad = bias.clone(), bias.clone()
        muon.step()
        adamw.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        u, _, v = torch.linalg.svd(MOMENTUM * momentum + (1 - MOMENTUM) * gradient, full_matrices=False)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * STEP_RMS * 40**0.5 * u @ v
    assert torch.equal(moved, adam)
    assert torch.equal(conv.flatten(1), matrix)
    step, wanted = (value - start for value in (matrix.detach(), expected))
    assert torch.nn.functional.cosine_similarity(step.flatten(), wanted.flatten(), dim=0) > 0.99
    assert step.norm() == pytest.approx(wanted.norm().item(), rel=0.1)


@pytest.mark.slow
def test_processes_with_unequal_work_change_nothing(tmp_path):
    """A batch of three in parts of one leaves two parts to one process and one to the other; a batch of one leaves it none."""
    text = frozen_tower()
    uneven = tmp_path / "uneven.yaml"
    uneven.write_text(text.replace("batch_size: 4", "batch_size: 3\n    micro_batch_size: 1").replace("samples: 24", "samples: 6"))
    single = tmp_path / "single.yaml"
    single.write_text(text.replace("batch_size: 4", "batch_size: 1").replace("samples: 24", "samples: 2"))
    for name, path in (("uneven", uneven), ("single", single)):
        run_processes(1, path, tmp_path / f"{name}-one")
        run_processes(2, path, tmp_path / f"{name}-two")
        pairs = [rows(tmp_path / f"{name}-{count}" / "1-answer" / "metrics.jsonl") for count in ("one", "two")]
        for row, other in zip(*pairs, strict=True):
            assert other == pytest.approx(row, rel=2e-4), name


SHARES = """
import os, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.train.distributed import shard
from fastvlm.train.loop import TrainingModule
text = TextConfig.from_dict(dict(model_type="qwen2", hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                                 vocab_size=320, max_position_embeddings=64, tie_word_embeddings=True))
vision = VisionConfig(layers=(1, 1, 1, 1, 1), embed_dims=(8, 16, 32, 64, 64))
module = TrainingModule(FastVLMModel(FastVLMConfig(vision, text, 319, True)), torch.nn.Identity())
total = sum(p.numel() for p in module.parameters())
shard(module)
mine = sum(p.to_local().numel() for p in module.parameters())
print(f"share {mine / total:.3f}", flush=True)
assert 0.4 < mine / total < 0.6, mine / total
dist.destroy_process_group()
"""


def test_each_process_of_a_sharded_run_holds_its_part(tmp_path):
    script = tmp_path / "shares.py"
    script.write_text(SHARES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    result = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("share 0.") == 2


CONVERSATIONS = """
  - name: answer
    objective: conversations
    samples: 24
    batch_size: 4
    learning_rate: {vision_tower: 1.0e-3, multi_modal_projector: 1.0e-3, language_model: 3.0e-3}
    precision: bfloat16
    data: [{generator: documents, kinds: {lines: 1}, sizes: [[128, 128]]}]
"""


def test_frozen_modules_stay_as_they_are(tmp_path):
    """Weights and BatchNorm averages; what stands above them learns."""
    from fastvlm.train.loop import RunOptions
    from fastvlm.train.run import run, start
    from fastvlm.train.state import load_model

    recipe = tmp_path / "tiny.yaml"
    frozen = ["vision_tower.stem", "vision_tower.stages.0"]
    recipe.write_text(TINY.replace("samples: 32", f"samples: 8\n    frozen: {json.dumps(frozen)}"))
    model, _ = start(load_recipe(recipe))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(load_recipe(recipe), tmp_path / "run", RunOptions(workers=0))
    load_model(tmp_path / "run" / "1-read" / "state", model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed and not [name for name in changed if name.startswith(tuple(frozen))]
    with pytest.raises(RecipeError, match="frozen names vision_tower.stages.9, and the model has no such module"):
        run(load_recipe(recipe, ["stages.0.frozen=[vision_tower.stages.9]"]), tmp_path / "other", RunOptions(workers=0))
    with pytest.raises(RecipeError, match="frozen names language_model, whose part has no learning_rate"):
        load_recipe(recipe, ["stages.0.frozen=[language_model]"])


def test_the_result_is_a_checkpoint(tmp_path):
    """What a run leaves loads here and in transformers, and the loss over all stages falls."""
    transformers = pytest.importorskip("transformers")
    import fastvlm
    from fastvlm.train.loop import RunOptions
    from fastvlm.train.run import run

    recipe = tmp_path / "tiny.yaml"
    scored = "    evaluate: {task: documents, split: val, metric: cer, every_samples: 12, limit: 2, options: {documents: 1}}\n"
    recipe.write_text(TINY + CONVERSATIONS + "    ema_decay: 0.5\n" + scored)
    run(load_recipe(recipe), tmp_path / "run", RunOptions(workers=0))
    log = [json.loads(line) for line in (tmp_path / "run" / "2-answer" / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in log if "loss" in row]
    assert [row["step"] for row in log] == [3, 6, 6]
    assert losses[-1]["loss"] < np.log(320)
    assert min(row["eval_cer"] for row in log if "eval_cer" in row) == json.loads((tmp_path / "run" / "best.json").read_text())["value"]
    assert (
        fastvlm.load(tmp_path / "run" / "best", runtime="torch").config == fastvlm.load(tmp_path / "run" / "model", runtime="torch").config
    )
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


LORA = """
model: MODEL
stages:
  - name: tune
    objective: conversations
    samples: 16
    batch_size: 4
    batch_tokens: 1
    learning_rate: {language_model: 2.0e-2, vision_tower: 2.0e-2, multi_modal_projector: 2.0e-2}
    lora: {rank: 4, alpha: 8, dropout: 0.1, parts: [language_model, vision_tower, multi_modal_projector]}
    schedule: constant
    ema_decay: 0.5
    data: [{llava: DATA}]
"""


def write_colours(folder: Path, count: int = 8) -> Path:
    """Pictures of one colour each, with their names, as LLaVA conversations."""
    folder.mkdir()
    entries = []
    for index in range(count):
        name = ("red", "blue")[index % 2]
        Image.new("RGB", (64, 64), name).save(folder / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": name}]
        entries.append({"image": f"{index}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(entries))
    return folder / "data.json"


def test_lora_is_what_peft_computes(tmp_path):
    """Trained, saved, and read again in three ways: peft on our model, our merge, and the merged checkpoint that the run leaves."""
    peft = pytest.importorskip("peft")
    import fastvlm
    from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
    from fastvlm import cli

    base = write_apple(tmp_path / "base", apple_tensors(random_model(tiny_config())))
    recipe = tmp_path / "lora.yaml"
    recipe.write_text(LORA.replace("MODEL", str(base)).replace("DATA", str(write_colours(tmp_path / "data"))))
    before = {path: path.read_bytes() for path in base.iterdir()}
    out = tmp_path / "run"
    assert cli.main(["train", str(recipe), "--out", str(out), "--workers", "0"]) == 0
    assert {path: path.read_bytes() for path in base.iterdir()} == before
    plain, adapted, merged = (
        fastvlm.load(path, runtime="torch", dtype="float32", adapter=adapter)
        for path, adapter in ((base, None), (base, out / "adapter"), (out / "model", None))
    )
    content = [{"type": "image", "image": Image.new("RGB", (64, 64), "red")}, {"type": "text", "text": "Colour?"}]
    inputs = plain.processor([{"role": "user", "content": content}])
    theirs = peft.PeftModel.from_pretrained(fastvlm.load(base, runtime="torch", dtype="float32").runtime.model, str(out / "adapter")).eval()
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(inputs.input_ids), pixel_values=torch.from_numpy(inputs.pixel_values)).numpy()
    changed = plain.logits(inputs) - expected
    assert np.abs(changed).max() > 1e-3 * np.abs(expected).max()
    assert np.abs(adapted.logits(inputs) - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(merged.logits(inputs) - expected).max() < 0.05 * np.abs(expected).max()  # stored in bfloat16
    layers = {name.split(".")[2] for name in theirs.state_dict() if ".lora_A." in name}
    assert layers == {"language_model", "vision_tower", "multi_modal_projector"}
    assert cli.main(["save", str(base), str(tmp_path / "saved"), "--adapter", str(out / "adapter"), "--dtype", "float32"]) == 0
    saved = fastvlm.load(tmp_path / "saved", runtime="torch", dtype="float32")
    assert np.array_equal(saved.logits(inputs), adapted.logits(inputs))


def test_lora_may_keep_a_part_of_the_change(tmp_path):
    """The same training twice: a quarter of every weight's change is left, in the adapter and in the merged model."""
    import fastvlm
    from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
    from fastvlm.train.loop import RunOptions
    from fastvlm.train.recipe import Lora
    from fastvlm.train.run import run

    base = write_apple(tmp_path / "base", apple_tensors(random_model(tiny_config())))
    data = write_colours(tmp_path / "data")
    recipe = tmp_path / "lora.yaml"

    def weights(folder: Path, adapter: Path | None = None) -> torch.Tensor:
        vlm = fastvlm.load(folder, runtime="torch", dtype="float32", adapter=adapter)
        return torch.cat([value.flatten() for name, value in vlm.runtime.model.language_model.named_parameters() if "proj" in name])

    for name, keep in (("whole", "1.0"), ("quarter", "0.25")):
        recipe.write_text(LORA.replace("MODEL", str(base)).replace("DATA", str(data)).replace("lora: {", f"lora: {{keep: {keep}, "))
        run(load_recipe(recipe), tmp_path / name, RunOptions(workers=0))
    before = weights(base)
    change = weights(base, tmp_path / "whole" / "adapter") - before
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(weights(base, tmp_path / "quarter" / "adapter") - before, 0.25 * change, atol=1e-6, rtol=1e-3)
    merged = weights(tmp_path / "quarter" / "model") - before
    assert (merged - 0.25 * change).abs().max() < 0.01 * before.abs().max()  # stored in bfloat16
    with pytest.raises(RecipeError, match="keep is 0"):
        Lora(keep=0.0)


def test_a_stage_goes_on_from_merged_adapters(tmp_path):
    """LoRA, then all of the projector: the second stage starts where the first one ended, and a stopped run finds the same place."""
    from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
    from fastvlm.train.loop import RunOptions
    from fastvlm.train.run import run

    base = write_apple(tmp_path / "base", apple_tensors(random_model(tiny_config())))
    text = LORA.replace("MODEL", str(base)).replace("DATA", str(write_colours(tmp_path / "data"))).replace("    ema_decay: 0.5\n", "")
    second = text[text.index("  - name") :].replace("tune", "more").replace("language_model: 2.0e-2, vision_tower: 2.0e-2, ", "")
    second = "\n".join(line for line in second.splitlines() if "lora:" not in line)
    recipe = tmp_path / "two.yaml"
    recipe.write_text(text + second)
    options = RunOptions(workers=0, log_every=1)
    run(load_recipe(recipe), tmp_path / "whole", options)
    recipe.write_text(text)
    run(load_recipe(recipe), tmp_path / "parts", options)
    recipe.write_text(text + second)
    run(load_recipe(recipe), tmp_path / "parts", options)
    expected = rows(tmp_path / "whole" / "2-more" / "metrics.jsonl")
    assert rows(tmp_path / "parts" / "2-more" / "metrics.jsonl") == expected
    assert expected[0]["loss"] < rows(tmp_path / "whole" / "1-tune" / "metrics.jsonl")[0]["loss"]


def test_data_that_is_mostly_broken_ends_in_one_line(tmp_path, capsys):
    """Read in a worker process, whose traceback nobody needs: the count, and the file that names each sample."""
    from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
    from fastvlm import cli

    base = write_apple(tmp_path / "base", apple_tensors(random_model(tiny_config())))
    data = write_colours(tmp_path / "data", 60)
    for index in range(0, 60, 3):
        (tmp_path / "data" / f"{index}.png").write_bytes(b"not a picture")
    recipe = tmp_path / "lora.yaml"
    recipe.write_text(LORA.replace("MODEL", str(base)).replace("DATA", str(data)))
    out = tmp_path / "run"
    assert cli.main(["train", str(recipe), "--out", str(out), "--workers", "1", "--set", "stages.0.samples=60"]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "samples are broken; see the log for their names" in error and "Traceback" not in error
    named = (out / "1-tune" / "broken.txt").read_text().splitlines()
    assert all(int(line.split("[")[1].split("]")[0]) % 3 == 0 for line in named) and len(named) >= 10


def test_batches_in_tokens(tmp_path):
    """Batches of two are put together until there are enough tokens; the learning rate and the log go on by samples."""
    from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
    from fastvlm.train.loop import RunOptions
    from fastvlm.train.run import run

    base = write_apple(tmp_path / "base", apple_tensors(random_model(tiny_config())))
    text = LORA.replace("MODEL", str(base)).replace("DATA", str(write_colours(tmp_path / "data")))
    text = text.replace("batch_size: 4", "batch_size: 2")
    logs = {}
    for tokens in (1, 200, 10**6):
        recipe = tmp_path / "tokens.yaml"
        recipe.write_text(text.replace("batch_tokens: 1", f"batch_tokens: {tokens}"))
        run(load_recipe(recipe), tmp_path / f"run-{tokens}", RunOptions(workers=0, log_every=1))
        logs[tokens] = [row["samples"] for row in rows(tmp_path / f"run-{tokens}" / "1-tune" / "metrics.jsonl")]
    # a sample has some 60 tokens: a system turn of bytes, the picture's 4, question and answer
    assert logs[1] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert logs[200] == [4, 8, 12, 16]
    assert logs[10**6] == [16]


def test_a_dry_run_shows_what_would_be_learnt(tmp_path, capsys, monkeypatch):
    """The sample's text with its mask, its picture, and the costs; nothing is trained."""
    from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
    from fastvlm import cli

    base = write_apple(tmp_path / "base", apple_tensors(random_model(tiny_config())))
    recipe = tmp_path / "lora.yaml"
    recipe.write_text(LORA.replace("MODEL", str(base)).replace("DATA", str(write_colours(tmp_path / "data"))))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(recipe), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "stage tune: 16 samples in 4 batches of 4, put together to 1 tokens; constant, float32" in said
    assert "language_model: 0.03 M parameters, 0.00 M learn at 0.02" in said
    text = said[said.index("| <|im_start|>system") :]
    colour = "red" if "⟦red<|im_end|>" in text[: text.index("sample:")] else "blue"
    assert f"| <image x 4>\n    | Colour?<|im_end|>\n    | <|im_start|>assistant\n    | ⟦{colour}<|im_end|>⟧" in text
    picture = Image.open(tmp_path / "runs/lora/tune-0-0.png")
    assert picture.size == (128, 128) and picture.getpixel((64, 64)) == {"red": (255, 0, 0), "blue": (0, 0, 255)}[colour]
    assert len(list((tmp_path / "runs/lora").iterdir())) == 3
    assert "s a sample on this machine" in said and "for weights, gradients and moments" in said


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, precision):
    """Computed again in the backward pass, in the same attention as in the forward pass."""
    from checkpoint_files import random_model, tiny_config
    from fastvlm.train.loop import _autocast, _fast_attention, set_training_mode
    from fastvlm.train.objectives.conversations import Objective

    model = random_model(tiny_config())
    batch = {"input_ids": torch.randint(0, 250, (2, 12)), "labels": torch.randint(0, 250, (2, 12))}
    gradients = []
    for checkpointing in (False, True):
        stage = Stage("s", "conversations", 1, 1, {"language_model": 1.0}, gradient_checkpointing=checkpointing, precision=precision)
        set_training_mode(model, stage)
        model.zero_grad()
        cpu = torch.device("cpu")
        with _fast_attention(cpu), _autocast(cpu, stage):
            loss, _ = Objective(model, None, {}).loss(model, batch)
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.language_model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


def test_attention_that_is_not_plain_is_left_to_torch():
    from torch.nn import functional as F

    from fastvlm.train.attention import PlainAttention

    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8).bfloat16(), torch.randn(2, 2, 5, 8).bfloat16()
    bias = torch.randn(5, 5).bfloat16()
    with PlainAttention():
        grouped = F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
        added = F.scaled_dot_product_attention(query, query, query, bias)
    assert torch.equal(grouped, F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True))
    assert torch.equal(added, F.scaled_dot_product_attention(query, query, query, bias))


def test_reading_learns_text_and_cells_together(tmp_path):
    """Both losses fall, and the text's gradient reaches the tower through the tokens that the cells are read from."""
    recipe = tmp_path / "tiny.yaml"
    text = (TINY + CONVERSATIONS).replace("objective: conversations", "objective: reading").replace("samples: 24", "samples: 40")
    recipe.write_text(text.replace("samples: 32", "samples: 4").replace("precision: bfloat16", "options: {cell_weight: 0.5}"))
    from fastvlm.train.loop import RunOptions
    from fastvlm.train.run import run

    run(load_recipe(recipe), tmp_path / "run", RunOptions(workers=0, log_every=1))
    log = rows(tmp_path / "run" / "2-answer" / "metrics.jsonl")
    assert log[-1]["text_loss"] < log[0]["text_loss"]
    assert {"map_accuracy", "token_accuracy", "text_accuracy"} <= set(log[0])


def test_attention_is_plain_in_bfloat16_only(monkeypatch):
    from torch.nn import functional as F

    from fastvlm.train import attention

    calls = []
    monkeypatch.setattr(attention, "plain_attention", lambda query, *others, **options: calls.append(query.dtype) or query)
    query = torch.randn(1, 2, 5, 8)
    with attention.PlainAttention():
        F.scaled_dot_product_attention(query, query, query, is_causal=True)
        assert calls == []
        F.scaled_dot_product_attention(*[query.bfloat16()] * 3, is_causal=True)
        with torch.autocast("cpu", torch.bfloat16):
            F.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert calls == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("masking", ["causal", "mask", "none"])
def test_plain_attention_is_torchs(masking):
    """Forward and backward, against torch's own kernel, in float32."""
    from fastvlm.train.attention import plain_attention

    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 17, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(17, 17) < 0.5
    mask.fill_diagonal_(True)
    options = {"causal": {"is_causal": True}, "mask": {"attn_mask": mask}, "none": {"scale": 0.3}}[masking]
    results = []
    for attention in (torch.nn.functional.scaled_dot_product_attention, plain_attention):
        mixed = attention(query, key, value, **options)
        results.append((mixed, *torch.autograd.grad(mixed.square().sum(), (query, key, value))))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_sparse_attention_is_torchs():
    """Forward and backward, against torch's own kernel with the same mask, which hides more than half."""
    from fastvlm.model.decoder import _apart
    from fastvlm.train.attention import PlainAttention

    lengths = [[40, 90, 1, 200, 31, 238], [70, 128, 128, 116, 20, 138]]
    segments = torch.stack([torch.repeat_interleave(torch.arange(6), torch.tensor(row)) for row in lengths])
    _, mask = _apart(segments)
    results = []
    for mode in (contextlib.nullcontext(), PlainAttention()):
        torch.manual_seed(0)
        query, key, value = (torch.randn(2, 3, 600, 8, requires_grad=True) for _ in range(3))
        with mode:
            mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        results.append((mixed, *torch.autograd.grad(mixed.square().sum(), (query, key, value))))
    assert "Sparse" in type(results[1][0].grad_fn).__name__
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_rows_of_like_length_give_the_padded_batchs_loss(tmp_path):
    """Grouping rows by length leaves loss and gradient what one padded batch gives."""
    from fastvlm.train.objectives.conversations import IGNORE, Objective
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    model, processor = start(load_recipe(recipe))
    objective = Objective(model, processor, {})
    texts = ["a", "12.50", "a longer answer, of one line", "x" * 40, "yes"]
    batch = objective.collate(
        [objective.prepare([{"role": "user", "content": "Total?"}, {"role": "assistant", "content": text}]) for text in texts]
    )
    weight = model.language_model.embed_tokens.weight
    loss, metrics = objective.loss(model, batch)
    (gradient,) = torch.autograd.grad(loss, weight)
    logits = model(batch["input_ids"])[:, :-1].float()
    padded = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum", ignore_index=IGNORE)
    (padded_gradient,) = torch.autograd.grad(padded, weight)
    torch.testing.assert_close(loss, padded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, padded_gradient, rtol=1e-4, atol=1e-5)
    assert metrics["text_accuracy"][1] == objective.count(batch)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"0 image tokens in input_ids but {count} image features"):
            objective.loss_of(model, batch, torch.zeros(1, count, weight.shape[1]))


def test_windows_hold_the_text_that_stands_in_them():
    """By hand: two lines of three words on a picture of 2 x 2 tokens; a letter that hangs low belongs to its line."""
    from types import SimpleNamespace

    from fastvlm.train.objectives._places import centres, tokens_of_letters
    from fastvlm.train.objectives._windows import draw_windows, window_text

    def letter(x, y):
        return [x - 2, y - 4, x + 2, y + 4]

    #        a  b     c   |  d           e   f | g, low
    places = [(10, 20), (16, 20), (40, 20), (100, 20), (20, 58), (26, 58), (32, 66)]
    document = SimpleNamespace(
        image=Image.new("RGB", (128, 128)),
        boxes=np.array([letter(*place) for place in places], np.float32),
        lines=[SimpleNamespace(text="ab c d"), SimpleNamespace(text="efg")],
    )
    for box, text, letters in [
        ((0, 0, 128, 128), "ab c d\nefg", [0, 1, 2, 3, 4, 5, 6]), ((0, 0, 64, 64), "ab c\nefg", [0, 1, 2, 4, 5, 6]),
        ((64, 0, 128, 64), "d", [3]), ((0, 64, 64, 128), "", []),
    ]:  # fmt: skip
        found = window_text(document, centres(document), box)
        assert (found[0], found[1].tolist()) == (text, letters)
    assert tokens_of_letters(document).tolist() == [0, 0, 0, 1, 0, 0, 0]
    drawn = draw_windows(document, {"1x1": 4, "2x2": 1}, random.Random(0))
    assert sorted((numbers.tolist(), text) for numbers, text, _ in drawn) == [
        ([0], "ab c\nefg"), ([0, 1, 2, 3], "ab c d\nefg"), ([1], "d"),
    ]  # fmt: skip


def test_places_of_what_is_said_next(tmp_path):
    """By hand: each byte of an answer is looked for where its character stands; line ends and what stands twice are not."""
    from types import SimpleNamespace

    from fastvlm.train.objectives._places import letters_of, places
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    _, processor = start(load_recipe(recipe))
    document = SimpleNamespace(text="a £5\nb 7 7")
    assert letters_of("£5\nb", document).tolist() == [1, 2, 3]
    assert letters_of("7", document) is None and letters_of("seven", document) is None and letters_of(" ", document) is None
    said = ["£5\nb", "7"]
    turns = [{"role": role, "content": text} for text in said for role, text in (("user", "Read."), ("assistant", text))]
    inputs = processor.training_inputs(turns)
    found = places(inputs, [("£5\nb", np.array([4, 6, 9])), ("7", None)], processor.tokenizer)
    #                           £: two bytes, 5, line end, b
    looks = np.flatnonzero(found >= 0)
    assert found[looks].tolist() == [4, 4, 6, 9]
    said_next = [inputs.input_ids[0, looks[at] + 1 : looks[at] + size + 1] for at, size in ((0, 2), (2, 1), (3, 1))]
    assert [processor.tokenizer.decode(ids) for ids in said_next] == ["£", "5", "b"]


def test_the_attention_guide_measures_looking_away():
    """Against plain softmax, row by row: two rows whose pictures begin elsewhere; heads that are not guided are left alone."""
    from fastvlm.train.attention import PlainAttention
    from fastvlm.train.objectives._places import NOWHERE, AttentionGuide

    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 9, 8, requires_grad=True) for _ in range(3))
    is_image = torch.zeros(2, 9, dtype=torch.bool)
    is_image[0, 1:4] = is_image[1, 2:6] = True
    wanted = torch.full((2, 9), NOWHERE)
    wanted[0, 5], wanted[1, 6], wanted[1, 8] = 2, 0, 3
    weights = torch.arange(18.0).view(2, 9)
    with PlainAttention(), AttentionGuide([1], is_image, wanted, weights) as guide:
        torch.nn.functional.scaled_dot_product_attention(query * 7, key, value, is_causal=True)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(mixed, torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True))
    loss, right = 0.0, 0
    for row, at, first, last, place in ((0, 5, 1, 4, 2), (1, 6, 2, 6, 0), (1, 8, 2, 6, 3)):
        for head in range(2):
            shares = (key[row, head, first:last] @ query[row, head, at] / 8**0.5).softmax(0)
            loss, right = loss - weights[row, at] * shares[place].log() / 2, right + int(shares.argmax() == place)
    torch.testing.assert_close(guide.loss, loss)
    assert (int(guide.right), int(guide.count)) == (right, 6)
    (gradient,) = torch.autograd.grad(guide.loss, query)
    assert gradient[:, :2].abs().sum() > 0 and gradient[:, 2:].abs().sum() == 0


def test_projected_tokens_are_told_their_place_and_size(tmp_path):
    """By hand: tokens of twice the wanted size, whose features are their row and column."""
    from fastvlm.train.objectives.characters import _RMS_WEIGHT, MOST_ROWS, Objective
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    model, processor = start(load_recipe(recipe))
    width = model.config.text_config.hidden_size
    objective = Objective(model, processor, {"feature_weight": 1.0, "place_weight": 0.5, "feature_rms": 3.0})
    features = torch.zeros(1, width, 2, 3)
    features[0, 0] = torch.tensor([[-1.0], [1.0]])
    features[0, 1] = torch.tensor([-1.0, 0.0, 1.0])
    features[0, 2] = (36.0 * width - features.square().sum(1)[0]).sqrt()
    with torch.no_grad():
        for parameter in objective.place_head.parameters():
            parameter.zero_()
        weight = objective.place_head.weight
        weight[0, 0], weight[1, 0] = -1e4, 1e4  # the row
        weight[MOST_ROWS, 1], weight[MOST_ROWS + 2, 1] = -1e4, 1e4  # the column
        objective.place_head.bias[[*range(2, MOST_ROWS), *range(MOST_ROWS + 3, 2 * MOST_ROWS)]] = -1e4
        objective.place_head.bias[MOST_ROWS + 1] = 100.0
    loss, metrics = objective._feature_loss(features)
    assert metrics["place_accuracy"][0] == metrics["place_accuracy"][1] == 6
    assert metrics["feature_rms"][0] / metrics["feature_rms"][1] == pytest.approx(6.0, rel=1e-5)
    assert loss.item() == pytest.approx(_RMS_WEIGHT * np.log(2) ** 2, rel=1e-4)


def test_a_window_of_all_tokens_is_the_document(tmp_path):
    """Reading one window of everything has the loss of reading the document, on a generated one."""
    from fastvlm.data import documents
    from fastvlm.train.objectives.reading import Objective
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    model, processor = start(load_recipe(recipe))
    made = [documents.generate(seed, kind="lines", width=128, height=128) for seed in (1, 2)]
    whole, windows = (
        Objective(model, processor, {"cell_weight": 0.0, **more}) for more in ({"transcription_share": 1.0}, {"windows": {"2x2": 1}})
    )
    for document in made:
        content = [{"type": "image", "image": document.image}]
        asked = processor.training_inputs([{"role": "user", "content": content}, {"role": "assistant", "content": document.text}])
        assert windows._window(document.text, 4).input_ids.tolist() == asked.input_ids.tolist()
    windows.load_state_dict(whole.state_dict())
    batch = windows.collate([windows.prepare(document) for document in made])
    assert batch["token_numbers"].tolist() == list(range(8))
    loss, metrics = windows.loss(model, batch)
    assert metrics["text_loss"][1] == sum(len(document.text.encode()) + 1 for document in made) and loss.isfinite()

    guided = Objective(model, processor, {"cell_weight": 0.0, "windows": {"2x2": 1}, "attention_weight": 2.0, "guided_layers": [0]})
    guided_loss, guided_metrics = guided.loss(model, guided.collate([guided.prepare(document) for document in made]))
    letters = sum(len(line.text.encode()) for document in made for line in document.lines)
    assert guided_metrics["attention_accuracy"][1] == letters  # looks of the one head of two that is guided
    assert guided_loss > loss
    with pytest.raises(RecipeError, match=r"guided_layers are \[1\]; expected at least one of 0 to 0"):
        Objective(model, processor, {"attention_weight": 2.0, "guided_layers": [1]})


def test_questions_apart_are_as_if_each_were_asked_alone(tmp_path):
    """Summed loss and looks of one row of questions against a conversation for each of them; what does not fit goes as a whole question."""
    from fastvlm.data import documents
    from fastvlm.train.objectives.reading import Objective
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY.replace("image_size: 128", "image_size: 256"))
    model, processor = start(load_recipe(recipe))
    options = dict.fromkeys(("map_weight", "middle_weight", "token_weight", "cell_weight", "transcription_share"), 0.0)
    options |= {"min_turns": 9, "max_turns": 9, "apart": True, "attention_weight": 1.0, "guided_layers": [0]}
    objective = Objective(model, processor, options)
    form = documents.generate(5, kind="form", width=256, height=256)
    messages = objective.text.messages(form)
    assert len(messages) == 18

    def measure(rows):
        batch = objective.collate([(objective.cells.prepare(form), rows)])
        loss, metrics = objective.loss(model, batch)
        return loss.item(), {name: [part.item() for part in metrics[name]] for name in ("text_accuracy", "attention_accuracy")}

    image = messages[0]["content"][0]
    alone = []
    for asked, answer in zip(messages[::2], messages[1::2], strict=True):
        question = {"role": "user", "content": [image, asked["content"][-1]]}
        objective.text.messages = lambda document, share=None, pair=(question, answer): list(pair)
        alone += objective.prepare(form)[1]
    del objective.text.messages
    (row,) = objective.prepare(form)[1]
    segments = row.inputs.segments[0]
    assert segments.max() == 9 and len(segments) < sum(len(other.places) for other in alone) - 8 * 16
    loss, metrics = measure([row])
    expected, expected_metrics = measure(alone)
    assert loss == pytest.approx(expected, rel=1e-5) and metrics == expected_metrics
    chained, _ = measure([Objective(model, processor, {**options, "apart": False}).prepare(form)[1][0]])
    assert abs(chained - expected) > 1e-4 * expected
    short = Objective(model, processor, {**options, "max_length": len(segments) - 5})
    (cut,) = short.prepare(form)[1]
    assert cut.inputs.segments[0].tolist() == segments[segments < 9].tolist()
    with pytest.raises(BrokenSample, match="first 12 tokens .max_length.; its pictures have 16"):
        Objective(model, processor, {**options, "max_length": 12}).prepare(form)


def test_turns_of_a_conversation_apart_are_as_if_each_were_asked_alone(tmp_path):
    """Conversations from a file: several questions about a picture, beside a row without any."""
    from fastvlm.train.objectives.conversations import Objective
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY.replace("image_size: 128", "image_size: 256"))
    model, processor = start(load_recipe(recipe))
    pixels = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    picture = {"type": "image", "image": Image.fromarray(pixels)}
    pairs = [("Read it.", "TOTAL 12.50"), ("What is the total?", "12.50"), ("Is it paid?", "No")]
    turns = [[{"role": "user", "content": [picture, {"type": "text", "text": asked}]}, {"role": "assistant", "content": answer}]
             for asked, answer in pairs]  # fmt: skip
    conversation = [
        *turns[0],
        {"role": "user", "content": pairs[1][0]},
        turns[1][1],
        {"role": "user", "content": turns[2][0]["content"][1:]},
        turns[2][1],
    ]
    text_only = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    apart, together = Objective(model, processor, {"apart": True}), Objective(model, processor, {})

    def loss(objective, samples):
        batch = objective.collate([objective.prepare(sample) for sample in samples])
        return objective.loss(model, batch)[0].item()

    expected = sum(loss(together, [turn]) for turn in (*turns, text_only))
    assert loss(apart, [conversation, text_only]) == pytest.approx(expected, rel=1e-5)
    assert abs(loss(together, [conversation, text_only]) - expected) > 1e-4 * expected
    row = apart.prepare(conversation)
    assert len(row.image_groups) == 1 and (row.input_ids == processor.image_token_id).sum() == 16
    two_in_a_row = [turns[0][0], *conversation[2:4], conversation[2], conversation[5]]
    for unchanged in (turns[0], text_only, [*turns[0], *turns[1]], two_in_a_row):  # or no picture, or two
        assert apart.prepare(unchanged).segments is None
        assert apart.prepare(unchanged).input_ids.tolist() == together.prepare(unchanged).input_ids.tolist()
    system = [{"role": "system", "content": "Be brief."}]
    assert loss(apart, [[*system, *conversation]]) == pytest.approx(sum(loss(together, [[*system, *turn]]) for turn in turns), rel=1e-5)


def test_some_kinds_of_questions_can_be_asked_less_often(tmp_path):
    from fastvlm.data import documents
    from fastvlm.train.objectives.conversations import Objective
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    model, processor = start(load_recipe(recipe))
    made = [documents.generate(seed, kind="form", width=256, height=256) for seed in range(40)]
    kind_of = [{(qa.question, qa.answer): qa.kind for qa in document.qa} for document in made]

    def asked(shares):
        options = {"transcription_share": 0.0, "min_turns": 99, "max_turns": 99, "question_shares": shares}
        chosen = [Objective(model, processor, options).messages(document) for document in made]
        turns = [(kinds, turn[0]["content"][-1]["text"], turn[1]["content"]) for kinds, messages in zip(kind_of, chosen, strict=True)
                 for turn in zip(messages[::2], messages[1::2], strict=True)]  # fmt: skip
        return collections.Counter(kinds[question, answer] for kinds, question, answer in turns)

    every, some = asked({}), asked({"json": 0.25, "yes_no": 0.0})
    assert every == collections.Counter(qa.kind for document in made for qa in document.qa if qa.kind != "transcription")
    assert 0 < some["json"] < every["json"] / 2 and some["yes_no"] == 0
    assert {kind: count for kind, count in some.items() if kind != "json"} == {
        kind: count for kind, count in every.items() if kind not in ("json", "yes_no")
    }
    with pytest.raises(RecipeError, match="question_shares names jsn"):
        asked({"jsn": 0.5})
    with pytest.raises(RecipeError, match="question_shares names transcription"):
        asked({"transcription": 0.5})


def test_whole_documents_are_read_aloud_and_asked_about(tmp_path):
    """`all: 2`: once each; running text, about which nothing is asked, once. And no cell has to be named."""
    from fastvlm.data import documents
    from fastvlm.train.objectives.reading import Objective
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY.replace("image_size: 128", "image_size: 256"))
    model, processor = start(load_recipe(recipe))
    weights = dict.fromkeys(("map_weight", "middle_weight", "token_weight", "feature_weight"), 0.0)
    objective = Objective(model, processor, {**weights, "windows": {"all": 2}})
    form, text = (documents.generate(5, kind=kind, width=256, height=256) for kind in ("form", "lines"))
    readings = [qa.answer for qa in form.qa if qa.kind == "transcription"]
    aloud, asked = objective._conversations(form)
    assert len(aloud) == 2 and aloud[1]["content"] in readings
    assert not {message["content"] for message in asked if message["role"] == "assistant"} & set(readings)
    assert [messages[1]["content"] for messages in objective._conversations(text)] == [text.text]
    batch = objective.collate([objective.prepare(document) for document in (form, text)])
    loss, metrics = objective.loss(model, batch)
    assert len(batch["input_ids"]) == 3 and loss.item() == pytest.approx(metrics["text_loss"][0].item(), rel=1e-5)
    assert metrics.keys() == {"text_accuracy", "start_accuracy", "text_loss"}
    with pytest.raises(RecipeError, match="windows has all: 3; expected 0, 1"):
        Objective(model, processor, {"windows": {"all": 3}})


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
    objective = Objective(None, processor, {})
    batch = objective.collate([objective.prepare(messages), objective.prepare(messages[:2])])
    labels = batch["labels"]
    assert processor.tokenizer.decode(labels[0][labels[0] != IGNORE].tolist(), skip_special_tokens=False) == "12.50<|end|>May<|end|>"
    assert processor.tokenizer.decode(labels[1][labels[1] != IGNORE].tolist(), skip_special_tokens=False) == "12.50<|end|>"
    is_target = labels != IGNORE
    assert torch.equal(labels[is_target], batch["input_ids"][is_target])
    assert batch["pixel_values"].shape == (2, 3, 128, 128)


def test_input_noise_changes_what_is_shown_and_not_what_is_learnt():
    from fastvlm.train.objectives.conversations import IGNORE, Objective
    from fastvlm.train.run import new_processor

    processor = new_processor({"text_config": {"max_position_embeddings": 4096}, "image_size": 128})
    content = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "Read it."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "0123456789" * 200}]
    clean, noisy, again = (
        objective.collate([objective.prepare(messages)])
        for objective in (Objective(None, processor, {"input_noise": share}) for share in (0.0, 0.2, 0.2))
    )
    assert torch.equal(noisy["input_ids"], again["input_ids"])  # a resumed run sees the same
    assert torch.equal(clean["labels"], noisy["labels"])
    is_target = clean["labels"] != IGNORE
    differs = clean["input_ids"] != noisy["input_ids"]
    assert not differs[~is_target].any()
    assert 0.14 < differs[is_target].float().mean() < 0.22  # one of ten is replaced by its like
    assert not differs[clean["labels"] == processor.tokenizer.token_id("<|end|>")].any()
    assert set(noisy["input_ids"][is_target].tolist()) == set(clean["input_ids"][is_target].tolist())


def test_the_first_token_of_an_answer_may_count_more(tmp_path):
    """Against the loss of each token by itself; two answers in one conversation begin twice."""
    from fastvlm.train.objectives.conversations import IGNORE, Objective
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    model, processor = start(load_recipe(recipe))
    objective = Objective(model, processor, {"start_weight": 8.0})
    asked, answers = {"role": "user", "content": "Total?"}, ("12.50", "May", "a longer answer, of one line")
    turns = [{"role": "assistant", "content": answer} for answer in answers]
    batch = objective.collate([objective.prepare([asked, turns[0], asked, turns[1]]), objective.prepare([asked, turns[2]])])
    labels = batch["labels"][:, 1:]
    logits = model(batch["input_ids"])[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE)
    starts = torch.zeros_like(losses)
    for row, column, text in ((0, 0, answers[0]), (0, 1, answers[1]), (1, 0, answers[2])):
        at = [index for index in torch.nonzero(labels[row] != IGNORE).flatten().tolist() if labels[row, index - 1] == IGNORE][column]
        assert processor.tokenizer.decode(labels[row, at : at + len(text)].tolist()) == text
        starts[row, at] = 1.0
    loss, metrics = objective.loss(model, batch)
    torch.testing.assert_close(loss, (losses * (1.0 + 7.0 * starts)).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(metrics["text_loss"][0], losses.sum(), rtol=1e-5, atol=1e-5)  # what the log shows counts each once
    is_right = (logits.argmax(-1) == labels) * starts
    assert [part.item() for part in metrics["start_accuracy"]] == [is_right.sum().item(), 3]


def test_truncation_never_cuts_a_picture():
    """Two pictures of 4 tokens: cut between them, within the second, and within an answer."""
    from fastvlm.train.objectives.conversations import Objective
    from fastvlm.train.run import new_processor

    processor = new_processor({"text_config": {"max_position_embeddings": 512}, "image_size": 128})
    messages = []
    for answer in ("first", "second"):
        content = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "?"}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    whole = Objective(None, processor, {}).prepare(messages)
    starts = np.flatnonzero(whole.input_ids[0] == processor.image_token_id)
    assert len(starts) == 8
    for length in range(whole.input_ids.shape[1]):
        objective = Objective(None, processor, {"max_length": length})
        if length <= starts[3] + 4:  # picture, question, end, assistant: nothing of the first answer fits
            with pytest.raises(BrokenSample, match="nothing to learn"):
                objective.prepare(messages)
            continue
        row = objective.prepare(messages)
        tokens = int((row.input_ids == processor.image_token_id).sum())
        assert tokens == 4 * len(row.image_groups)
        assert len(row.image_groups) == (2 if length > starts[7] else 1)
        size = row.input_ids.shape[1]
        assert size == (starts[4] if starts[4] < length <= starts[7] else length)
        assert np.array_equal(row.input_ids[0], whole.input_ids[0, :size])
        assert np.array_equal(row.loss_mask[0], whole.loss_mask[0, :size])


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


def test_learning_where_characters_stand_needs_generated_documents(tmp_path):
    from fastvlm.train.objectives import characters, reading
    from fastvlm.train.run import start

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    model, processor = start(load_recipe(recipe))
    for module in (characters, reading):
        with pytest.raises(RecipeError, match="generated documents"):
            module.Objective(model, processor, {}).prepare([{"role": "user", "content": "no document"}])
