"""The held-out documents: a fixed set that no training sees, the same on every machine.

    for document in documents_of(512):      # HELDOUT_COUNT documents, equal parts per kind, kinds in turn
        ...
    differences(512)                        # [] if what this machine makes is what was frozen

Which documents belong to it, and the hashes of their pictures and questions, are in `heldout.json`, written once by `freeze` and never again. Fonts, layouts and
content words of the split are used nowhere else; the fonts are in the package.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as pillow_version
from PIL import features

from fastvlm.data import documents
from fastvlm.data.documents import Document

MANIFEST = Path(__file__).parent / "heldout.json"

KINDS = ("chart", "form", "id_card", "invoice", "letter", "receipt", "screenshot", "sign", "table")
COUNT_PER_KIND = 60
HELDOUT_COUNT = COUNT_PER_KIND * len(KINDS)
SIZES = (512, 768)  # sides of the square pictures: the model's input

# Dense kinds have at least so many visible characters.
LEAST_CHARACTERS = {"letter": 250, "invoice": 250, "form": 250}
X_HEIGHT_PX = (7.0, 13.0)


def entries(size: int) -> list[dict[str, Any]]:
    """The manifest's entries for pictures of `size` x `size`: kind, seed, hashes."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    if str(size) not in manifest["sizes"]:
        raise ValueError(f"there are held-out documents of {', '.join(manifest['sizes'])} pixels, not of {size}")
    return manifest["sizes"][str(size)]


def documents_of(size: int = 512, kinds: tuple[str, ...] = KINDS) -> Iterator[Document]:
    """The held-out documents for a model whose input is `size` x `size` pixels, kinds in turn."""
    for entry in entries(size):
        if entry["kind"] in kinds:
            yield _make(entry["kind"], entry["seed"], size)


def _make(kind: str, seed: int, size: int) -> Document:
    return documents.generate(seed, split="heldout", kind=kind, width=size, height=size, x_height_px=X_HEIGHT_PX)


def differences(size: int = 512, *, pictures: bool | None = None) -> list[str]:
    """What this machine makes otherwise than it was frozen: one sentence a document, none if all is equal.

    Args:
        pictures: compare the pixels too; None does so only with the versions of Pillow and FreeType that the set was frozen with, since others may round otherwise. Text and
            questions are always compared.
    """
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    if pictures is None:
        pictures = manifest["made_with"] == _versions()
    found = []
    for number, (entry, document) in enumerate(zip(entries(size), documents_of(size), strict=True)):
        if documents.truth_hash(document) != entry["truth"]:
            found.append(f"document {number} ({entry['kind']}, seed {entry['seed']}): other text or questions")
        elif pictures and documents.picture_hash(document) != entry["picture"]:
            found.append(f"document {number} ({entry['kind']}, seed {entry['seed']}): another picture")
    return found


def freeze(path: Path = MANIFEST) -> None:
    """Choose the documents and write the manifest. For maintainers: a new manifest makes scores before it incomparable.

    Raises:
        FileExistsError: there is a manifest already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists: the held-out documents are frozen; delete it first if no score was ever published")
    sizes: dict[str, list[dict[str, Any]]] = {}
    for size in SIZES:
        chosen: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            seed = 0
            while len(chosen[kind]) < COUNT_PER_KIND:
                document = _make(kind, seed, size)
                if len(document.chars) >= LEAST_CHARACTERS.get(kind, 1):
                    hashes = {"truth": documents.truth_hash(document), "picture": documents.picture_hash(document)}
                    chosen[kind].append({"kind": kind, "seed": seed, **hashes})
                seed += 1
        sizes[str(size)] = [chosen[kind][number] for number in range(COUNT_PER_KIND) for kind in KINDS]
    manifest = {"made_with": _versions(), "sizes": sizes}
    lines = json.dumps(manifest, indent=1).replace("\n    ", " ").replace("\n   }", " }")
    path.write_text(lines + "\n", encoding="utf-8")


def small_text_share(size: int = 512, limit_px: float = 10.0) -> float:
    """The share of all characters that stand in lines with an x-height of at most `limit_px`."""
    small = total = 0
    for document in documents_of(size):
        for line in document.lines:
            count = len("".join(line.text.split()))
            total += count
            small += count * (line.x_height_px <= limit_px)
    return small / total


def _versions() -> dict[str, str | None]:
    return {
        "pillow": pillow_version,
        "freetype": features.version("freetype2"),
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "numpy": np.__version__.rsplit(".", 1)[0],
    }
