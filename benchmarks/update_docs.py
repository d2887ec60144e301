"""Copy the tables of benchmarks/results into the pages that show them: python benchmarks/update_docs.py

A page names a file in a comment, `<!-- benchmarks/results/ttft-0.5b.txt -->`, and the block after it is that file. tests/test_benchmarks.py
fails where a page and a file differ, so a figure in the docs is one that a command has written.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- (benchmarks/results/[\w.-]+\.txt) -->\n```text\n)(.*?)(^```$)", re.M | re.S)


def updated(page: str) -> str:
    """`page` with every block replaced by its file."""
    return BLOCK.sub(lambda match: match[1] + (ROOT / match[2]).read_text(encoding="utf-8").rstrip("\n") + "\n" + match[4], page)


if __name__ == "__main__":
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        if (after := updated(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))
