"""docs/finetune.md from its first command to its last, on a small stand-in for Apple's model and a dozen documents."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from checkpoint_files import apple_tensors, random_model, tiny_config, write_apple
from fastvlm import cli

ROOT = Path(__file__).parents[1]
SKIPPED = ("pip install", "fastvlm pull")  # done by the stand-in


def commands() -> list[str]:
    text = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A place where `0.5b` is a small model that was trained for nothing, and the recipe takes a few steps."""
    standin = write_apple(tmp_path / "standin", apple_tensors(random_model(tiny_config())), max_position_embeddings=4096)
    settings = json.loads((standin / "tokenizer_config.json").read_text())
    (standin / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 4096}))
    config = json.loads((standin / "config.json").read_text())
    (standin / "config.json").write_text(json.dumps({**config, "tokenizer_model_max_length": 4096}))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    recipe = tmp_path / "recipes/finetune/lora.yaml"
    text = recipe.read_text()
    assert "model: 0.5b" in text and "samples: 600" in text and "batch_size: 8" in text
    recipe.write_text(
        text.replace("model: 0.5b", "model: standin").replace("samples: 600", "samples: 8").replace("batch_size: 8", "batch_size: 4")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_tutorial_runs(folder, capsys):
    small = {"0.5b": "standin", "240": "12", "200": "9", "40": "3", "mine/images/0000/0000239.png": "mine/images/0000/0000011.png"}
    ran = []
    for line in commands():
        if line.startswith(SKIPPED):
            continue
        words = [small.get(word, word) for word in shlex.split(line)]
        if words[0] == "fastvlm":
            if words[1] == "evaluate":
                words += ["--limit", "1", "--runtime", "torch"]  # random answers are as long as they may be
            if words[1] == "predict":
                words += ["--max-new-tokens", "4", "--runtime", "torch"]
            assert cli.main(words[1:]) == 0, (words, capsys.readouterr().err)
        else:
            subprocess.run(" ".join(words), shell=True, check=True, cwd=folder)
        ran.append(words[:2])
    assert ["fastvlm", "train"] in ran and ["fastvlm", "save"] in ran and ran.count(["fastvlm", "evaluate"]) == 2
    assert len((folder / "mine/train.jsonl").read_text().splitlines()) == 9
    assert len((folder / "mine/test.jsonl").read_text().splitlines()) == 3
    for name in ("before", "after"):
        assert json.loads((folder / "out" / name / "summary.json").read_text())["examples"] == 1
    for path in ("runs/mine/adapter/adapter_model.safetensors", "runs/mine/model/model.safetensors", "out/merged/model.safetensors"):
        assert (folder / path).is_file(), path
    assert (folder / "runs/mine/1-lora/loss.png").is_file()
    assert list((folder / "out/dry").glob("*.png"))
    # what comes of Apple's weights stays under Apple's licence
    assert (folder / "out/merged/LICENSE_NOTICE.txt").is_file() and (folder / "runs/mine/model/LICENSE_NOTICE.txt").is_file()
