"""Every recipe in the repository: parsed, and each stage of it run for some steps on a model that is small in its place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
from fastvlm import cli
from fastvlm.train.recipe import RecipeError, load_recipe
from test_train import write_colours

RECIPES = Path(__file__).parents[1] / "recipes"
PATHS = sorted(RECIPES.rglob("*.yaml"))
SMALL_SIZES = {
    "vision_config": {"layers": [1, 1, 1, 1, 1], "embed_dims": [8, 16, 32, 32, 32], "mlp_ratios": [2, 2, 2, 2, 2]},
    "text_config": {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 1024, "vocab_size": 320, "tie_word_embeddings": True,
    },
    "tokenizer": "bytes",
    "image_size": 128,
}  # fmt: skip


def shrink(path: Path, folder: Path) -> Path:
    """The recipe with a small model, 8 samples a stage, and small pictures: what is left is how its parts go together."""
    values = yaml.safe_load(path.read_text())
    if base := values.pop("base", None):
        values = {**yaml.safe_load((path.parent / base).read_text()), **values}
    checkpoint = write_apple(folder / "checkpoint", apple_tensors(random_model(tiny_config())), max_position_embeddings=1024)
    edited = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**edited, "model_max_length": 1024}))
    conversations = write_colours(folder / "data")
    captions = folder / "captions.jsonl"
    captions.write_text("".join(json.dumps({"image": f"data/{i}.png", "caption": "A colour."}) + "\n" for i in range(8)))
    model = values["model"]
    if isinstance(model, str):
        values["model"] = str(checkpoint)
    elif "vision" in model:
        values["model"] = {"vision": str(checkpoint), "llm": str(checkpoint), "image_size": 128}
    else:
        values["model"] = SMALL_SIZES
    for stage in values["stages"]:
        stage |= {"samples": 8, "batch_size": 4, "warmup_samples": 0, "precision": "float32"}
        if stage.get("micro_batch_size"):
            stage["micro_batch_size"] = 2
        if stage.get("resolution"):
            stage["resolution"] = 128
        if stage.get("evaluate"):
            stage["evaluate"] |= {"every_samples": 8, "limit": 3, "options": {"documents": 1, "size": 128, "kinds": "words"}}
        data = []
        for entry in stage["data"]:
            kept = {name: entry[name] for name in ("weight", "captions", "prompts") if name in entry}
            if "generator" in entry:
                data.append({**kept, "generator": entry["generator"], "kinds": {"words": 1}, "sizes": [[128, 128]]})
            else:
                data.append({**kept, "llava": str(captions if "webdataset" in entry else conversations)})
        stage["data"] = data
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump(values))
    return small


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_parse(path):
    recipe = load_recipe(path)
    assert all(stage.steps > 0 for stage in recipe.stages)
    for stage in recipe.stages:
        assert stage.warmup_samples < stage.samples


# one of each kind: the paper's sizes differ in the language model alone
RUN = [path for path in PATHS if path.stem not in ("fastvlm-1.5b", "fastvlm-7b", "projector", "smoke")]


@pytest.mark.parametrize("path", RUN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_run_in_small(path, tmp_path):
    small = shrink(path, tmp_path)
    out = tmp_path / "run"
    assert cli.main(["train", str(small), "--out", str(out), "--workers", "0", "--log-every", "1"]) == 0
    for number, stage in enumerate(load_recipe(path).stages, 1):
        log = [json.loads(line) for line in (out / f"{number}-{stage.name}" / "metrics.jsonl").read_text().splitlines()]
        assert [row["samples"] for row in log if "loss" in row] == [4, 8]
        assert (out / f"{number}-{stage.name}" / "loss.png").is_file()
        assert list((out / f"{number}-{stage.name}" / "tensorboard").glob("events*"))
    assert cli.main(["info", str(out / "model")]) == 0


def test_the_paper_hyperparameters():
    """Paper, section 4 and appendix A: what each stage trains, at which rate, batch and resolution, with 3 % of warm-up."""
    for size in ("0.5b", "1.5b", "7b"):
        recipe = load_recipe(RECIPES / "paper" / f"fastvlm-{size}.yaml")
        assert [stage.name for stage in recipe.stages] == ["1", "1.5", "2", "3"]
        assert [stage.batch_size for stage in recipe.stages] == [256, 128, 128, 128]
        assert [max(stage.learning_rate.values()) for stage in recipe.stages] == [1e-3, 2e-5, 2e-5, 2e-5]
        assert [len(stage.learning_rate) for stage in recipe.stages] == [1, 3, 3, 3]
        assert [stage.resolution for stage in recipe.stages] == [256, 1024, 1024, 1024]
        assert [stage.template for stage in recipe.stages] == ["plain", None, None, None]
        for stage in recipe.stages:
            assert stage.schedule == "cosine" and stage.warmup_samples / stage.samples == pytest.approx(0.03, rel=1e-3)
        assert recipe.model["llm"] == f"Qwen/Qwen2-{size.upper()}-Instruct"


def test_nano_is_not_trained_on_what_it_has_never_seen():
    from fastvlm.data.documents import NANO_EXCLUDED_KINDS

    text = (RECIPES / "nano" / "nano.yaml").read_text()
    assert NANO_EXCLUDED_KINDS and not any(kind in text for kind in NANO_EXCLUDED_KINDS)
    assert "--kinds boarding_pass" in (RECIPES / "nano" / "lora-boarding-pass.yaml").read_text()


def test_fields_are_changed_by_their_place(tmp_path):
    path = RECIPES / "finetune" / "lora.yaml"
    changes = ["model=mine", "stages.0.samples=8", "stages.0.lora={rank: 2}", "stages.0.data.0.llava=a=b.json"]
    recipe = load_recipe(path, changes)
    assert recipe.model == "mine" and recipe.stages[0].samples == 8 and recipe.stages[0].lora.rank == 2
    assert recipe.stages[0].data == [{"llava": "a=b.json"}]
    for change, message in {
        "stages.3.samples=8": "'stages.3.samples' is no field",
        "model": "is no FIELD=VALUE",
        "stages.0.sample=8": "unknown field 'sample'",
    }.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe(path, [change])


def test_smoke_shows_the_loss_falling(tmp_path):
    """The whole recipe of nano in miniature, as a user runs it: each stage ends with a lower loss than it began with."""
    command = [sys.executable, "-m", "fastvlm", "train", str(RECIPES / "nano" / "smoke.yaml"), "--out", str(tmp_path / "run")]
    subprocess.run([*command, "--log-every", "2"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=1800)
    folders = sorted((tmp_path / "run").glob("[0-9]-*"))
    assert [folder.name for folder in folders] == ["1-characters", "2-tokens", "3-windows", "4-documents"]
    for folder in folders:
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [row.get("text_loss", row.get("loss")) for row in log if "loss" in row]
        # the last stage goes on with what the one before it learnt, on other documents, so it has the least to gain
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), (folder.name, losses)
    assert (tmp_path / "run" / "best.json").is_file()
