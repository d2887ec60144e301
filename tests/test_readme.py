"""What the README and the docs show is run: console blocks must print what they say, other commands must at least be right use."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastvlm import cli, plugins

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def consoles() -> list[tuple[str, str, str]]:
    """(page, command, what it prints) of every `$ ` line."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
                found.append((page.name, command, output))
    return found


def commands() -> list[tuple[str, str]]:
    """(page, command) of every `fastvlm` line in a shell block, comments and line continuations taken out."""
    found = []
    for page in PAGES:
        for block in blocks(page, "(?:sh|bash|console)"):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                line = line.removeprefix("$ ")
                if line.startswith("fastvlm "):
                    found.append((page.name, line))
    return found


def matches(actual: str, shown: str) -> bool:
    """Equal but for line ends, where `...` in what is shown stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in shown.strip().split("..."))
    return re.fullmatch(pattern, actual.strip(), re.S) is not None


def test_matching_can_fail():
    assert matches("a 12 ms b\n", "a ... b")
    assert not matches("a 12 ms b", "a 13 ms b")
    assert not matches("", "a")


@pytest.mark.parametrize(("page", "command", "shown"), consoles(), ids=lambda value: value[:40])
def test_console_blocks_print_what_they_show(page, command, shown, tmp_path):
    examples = ROOT / "examples"
    if examples.exists():
        shutil.copytree(examples, tmp_path / "examples")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert matches(process.stdout, shown), process.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_demo(tmp_path):
    """The README's first command, with an environment that is installed already."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    (programs / "fastvlm").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fastvlm "$@"\n')
    (programs / "fastvlm").chmod(0o755)
    (tmp_path / ".installed").touch()
    process = subprocess.run(["make", "demo", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert "14/05/2025\n" in process.stdout
    assert "first token" in process.stderr  # how long it took


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: value[:60])
def test_commands_are_right_use(page, command, monkeypatch, capsys):
    """Parsed by the real parser; only the work itself is left out."""
    words = shlex.split(command, comments=True)
    words = words[1 : next((i for i, word in enumerate(words) if word in "|>&&"), None)]
    for name in plugins.list_plugins("fastvlm.cli"):
        monkeypatch.setattr(plugins.load_plugin("fastvlm.cli", name), "run", lambda args: 0)
    assert cli.main(words) == 0, capsys.readouterr().err


def test_extras_that_are_named_exist():
    """`pip install` only warns about an extra that is not there, and installs nothing."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [path.read_text(encoding="utf-8") for path in (*PAGES, *(ROOT / "src").rglob("*.py"))]
    named = {name for text in texts for names in re.findall(r"fastvlm\[([\w,-]+)\]", text) for name in names.split(",")}
    assert named
    assert named <= extras.keys()


def test_pages_show_commands():
    assert len(commands()) >= 10
    assert len(consoles()) >= 1
