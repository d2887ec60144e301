"""Bundles: a checkpoint made ready for one runtime, in a folder that is run without torch.

    bundle = Bundle.open("nano-int8")
    bundle.manifest.precision, bundle.manifest.accuracy
    processor = bundle.processor()

    manifest.json                       what it was made from, by which versions, in which precision, and how far it is from float32
    config.json, tokenizer and processor files, licences       as in a native checkpoint
    embeddings.bin                      the token embedding, row by row; mapped, so that only the rows of a prompt are ever in memory
    vision.*, language.*                the runtime's own files: encoder with projector, and decoder with head

`fastvlm.convert` writes them, `fastvlm.bundle.cache` keeps those that were made on the way.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm.config import ConfigError, FastVLMConfig

if TYPE_CHECKING:
    from fastvlm.processor import Processor

MANIFEST_FILE = "manifest.json"
EMBEDDINGS_FILE = "embeddings.bin"
FORMAT = 2  # of the folder; a reader refuses others
PRECISIONS = ("int8", "int4", "bf16", "fp32")
_EMBEDDING_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class BundleError(ValueError):
    """A bundle that cannot be used, or not made: says why and what to do."""


@dataclass(frozen=True)
class Manifest:
    """manifest.json.

    Attributes:
        runtime: the file of `fastvlm.runtimes` that runs it.
        precision: of `PRECISIONS`.
        source: label, layout and hashes of what it was made from.
        versions: of the packages that made it.
        context_length: tokens of prompt and answer together.
        embedding: dtype and shape of embeddings.bin.
        files: name -> bytes, of everything that must be there.
        accuracy: rows of the guard's table; empty for float32.
        random_weights: made to measure speed; its answers mean nothing, and the guard does not apply.
        forced: kept although the guard refused it.
        notes: what a user should know about the checkpoint.
        settings: what the runtime's loader takes from its converter.
    """

    runtime: str
    precision: str
    source: dict[str, Any]
    versions: dict[str, str]
    context_length: int
    embedding: dict[str, Any]
    files: dict[str, int]
    accuracy: list[dict[str, Any]] = field(default_factory=list)
    random_weights: bool = False
    forced: bool = False
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        path = folder / MANIFEST_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.get("format") != FORMAT:
                raise BundleError(f"{path}: format is {values.get('format')!r}, this version reads {FORMAT}; convert the checkpoint again")
            return cls(**values)
        except OSError as error:
            raise BundleError(f"{folder} is no bundle: it has no readable {MANIFEST_FILE}; make one with `fastvlm convert`") from error
        except BundleError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"{path} is damaged ({str(error).splitlines()[0][:200]}); convert the checkpoint again") from error


class Bundle:
    """An open bundle; its files are read by the runtime.

    Attributes:
        label: for messages.
    """

    def __init__(self, folder: Path, manifest: Manifest, config: FastVLMConfig, label: str):
        self.folder, self.manifest, self.config, self.label = folder, manifest, config, label

    @classmethod
    def open(cls, folder: str | Path, label: str | None = None) -> "Bundle":
        """Read the manifest and check that every file is there in its length.

        Raises:
            BundleError: it is not, or it is of another version.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        for name, nbytes in manifest.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != nbytes:
                found = f"has {path.stat().st_size} bytes instead of {nbytes}" if path.is_file() else "is missing"
                raise BundleError(f"{path} {found}: the bundle is incomplete; convert the checkpoint again")
        try:
            config = FastVLMConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ConfigError, ValueError) as error:
            raise BundleError(f"{folder}: {str(error)[:500]}") from error
        return cls(folder, manifest, config, label or str(folder))

    def describe(self) -> dict[str, Any]:
        """What `fastvlm info` prints; plain values, ready for JSON."""
        manifest, text = self.manifest, self.config.text_config
        return {
            "name": self.label,
            "layout": "bundle",
            "runtime": manifest.runtime,
            "precision": manifest.precision,
            "language_model": {
                "model_type": text.model_type,
                "hidden_size": text.hidden_size,
                "num_hidden_layers": text.num_hidden_layers,
                "vocab_size": text.vocab_size,
            },
            "context_length": self.context_length,
            "bytes": sum(manifest.files.values()),
            "source": manifest.source,
            "versions": manifest.versions,
            "accuracy": {row["measure"]: row["value"] for row in manifest.accuracy},
            "notes": self.notes,
        }

    @property
    def context_length(self) -> int:
        return self.manifest.context_length

    @property
    def notes(self) -> list[str]:
        notes = list(self.manifest.notes)
        if self.manifest.random_weights:
            notes.append("its weights are random: it measures speed, and its answers mean nothing")
        if self.manifest.forced:
            notes.append("it was kept although its accuracy was refused; `fastvlm info` shows the table")
        return notes

    def processor(self) -> "Processor":
        from fastvlm.processor import Processor

        return Processor.from_folder(self.folder, self.config, max_length=self.context_length)

    def embeddings(self) -> "EmbeddingTable":
        return EmbeddingTable(self.folder / EMBEDDINGS_FILE, **self.manifest.embedding)


class EmbeddingTable:
    """Rows of a table in a file, as float32. Only rows that were asked for take memory."""

    def __init__(self, path: Path, dtype: str, shape: list[int]):
        self.dtype = dtype
        self._table = np.memmap(path, _EMBEDDING_DTYPES[dtype], "r", shape=tuple(shape))

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """(...) ids -> (..., D) float32."""
        rows = np.asarray(self._table[ids])
        if self.dtype == "bfloat16":  # the upper half of a float32, bit by bit
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)


def why_not_convertible(config: FastVLMConfig) -> str | None:
    """Why no bundle can be made of such a checkpoint, or None."""
    text = config.text_config
    if text.foreign:
        return f"language models of type {text.model_type!r} run on the torch runtime only; load with runtime='torch'"
    if text.rope.rope_type == "dynamic":
        return "rope_type 'dynamic' changes with the length of the prompt, which a bundle cannot; load with runtime='torch'"
    return None


def is_bundle(path: str | Path) -> bool:
    return (Path(path) / MANIFEST_FILE).is_file()
