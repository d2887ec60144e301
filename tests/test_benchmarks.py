"""The figures in the README and the docs are those of files that `fastvlm bench` wrote."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from fastvlm.bench import scaling, ttft

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))
_spec = importlib.util.spec_from_file_location("update_docs", ROOT / "benchmarks/update_docs.py")
assert _spec is not None and _spec.loader is not None
update_docs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(update_docs)
# A number with the unit of a measurement.
FIGURE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?) ?(x sooner|ms|s|%|GiB|GB/s|Gop/s|GHz|tokens/s)(?![\w])")


def test_there_are_results():
    assert {json.loads(path.read_text())["benchmark"] for path in RESULTS} == {"ttft", "scaling"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_tables_are_rendered_from_the_json(path):
    """Nobody has edited one of the two, and the code still reads what it wrote."""
    result = json.loads(path.read_text())
    render = ttft.render if result["benchmark"] == "ttft" else scaling.render
    assert path.with_suffix(".txt").read_text() == render(result) + "\n"


@pytest.mark.parametrize("path", update_docs.PAGES, ids=lambda path: path.name)
def test_pages_show_the_results(path):
    page = path.read_text(encoding="utf-8")
    assert update_docs.updated(page) == page, "run python benchmarks/update_docs.py"


def test_figures_in_the_text_are_in_the_tables():
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    tables = " ".join(match[3] for match in update_docs.BLOCK.finditer(page))
    assert tables
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    numbers = set(re.findall(r"\d+(?:\.\d+)?", tables))
    for figure, unit in FIGURE.findall(prose):
        assert figure in numbers, f"{figure} {unit} stands in docs/benchmarks.md and in none of its tables"


def test_the_check_can_fail():
    assert FIGURE.findall("it takes 892 ms, a third (0.3 s) or 60.5x sooner, at 1024 pixels") == [
        ("892", "ms"),
        ("0.3", "s"),
        ("60.5", "x sooner"),
    ]
    page = "<!-- benchmarks/results/none.txt -->\n```text\nold\n```\n"
    with pytest.raises(FileNotFoundError):
        update_docs.updated(page)
