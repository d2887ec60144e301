"""Who may import whom, and what must load without torch. The table is the one of the design: a part imports parts above it only."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("fastvlm").origin).parent

# From the bottom up. Parts on one line do not import each other.
LAYERS = [
    ["config", "plugins", "telemetry"],
    ["image_io", "tokenizer", "prompts", "sampling"],
    ["image_processing"],
    ["processor"],
    ["data", "records"],
    ["model"],
    ["checkpoint"],
    ["bundle"],
    ["runtimes"],
    ["beam_search"],
    ["generate"],
    ["vlm"],
    ["evaluate"],
    ["convert", "export", "train", "server", "batch", "bench"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# What stands between a picture and a model, and what makes pictures; each must serve where torch is not installed.
WITHOUT_TORCH = [
    "config",
    "plugins",
    "telemetry",
    "image_io",
    "image_processing",
    "tokenizer",
    "prompts",
    "processor",
    "sampling",
    "data",
    "bundle",
]
HEAVY = {"torch", "transformers", "timm", "openvino", "onnxruntime", "nncf", "peft", "accelerate", "datasets"}


def files() -> dict[str, Path]:
    """Path in the package, without the suffix -> file."""
    found = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in PACKAGE.rglob("*.py")}
    return {name: path for name, path in found.items() if name != "__init__"}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, but for type checkers."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write `from fastvlm...`, so that layers can be read"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        waiting += node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)
    return names


def part(dotted: str) -> str | None:
    """The part of the package that `fastvlm.part.module.name` belongs to."""
    top, _, rest = dotted.partition(".")
    name = rest.partition(".")[0]
    return name if top == "fastvlm" and name in RANK else None


def test_every_part_has_a_place_in_the_table():
    parts = {name.partition("/")[0] for name in files()}
    assert parts <= set(RANK) | {"models"}, "a new part: say in LAYERS what it may import"


@pytest.mark.parametrize("name", sorted(files()))
def test_imports_point_downward(name):
    own = name.partition("/")[0]
    if own == "models":
        return
    for dotted in imports(files()[name]):
        other = part(dotted)
        if other is not None and other != own:
            assert RANK[other] < RANK[own], f"{name} imports {dotted}, which stands beside or above it"


@pytest.mark.parametrize("name", sorted(name for name in files() if name.partition("/")[0] in WITHOUT_TORCH))
def test_the_input_half_names_no_heavy_library(name):
    assert not {dotted.partition(".")[0] for dotted in imports(files()[name])} & HEAVY


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import fastvlm",
        "import fastvlm.processor, fastvlm.sampling",
        "import fastvlm.cli\ntry: fastvlm.cli.main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_starting_loads_no_heavy_library(code):
    assert not loaded_by(code) & HEAVY


def test_imports_are_read_as_meant(tmp_path):
    """The checks above can fail."""
    path = tmp_path / "sample.py"
    path.write_text(
        "import torch\nfrom fastvlm.cli import main\nif TYPE_CHECKING:\n    import nncf\ndef f():\n    from fastvlm import processor"
    )
    names = imports(path)
    assert names == {"torch", "fastvlm.cli.main", "fastvlm.processor"}
    assert [part(name) for name in sorted(names)] == ["cli", "processor", None]
