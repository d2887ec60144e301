"""Converting a checkpoint into a bundle, with an accuracy guard.

    folder = convert(open_checkpoint("apple/FastVLM-0.5B"), "fastvlm-0.5b-int8", precision="int8")

A converter for a runtime is one file here, named like the runtime's. It defines `PRECISIONS`, the order in which the default is looked for,
and `write`. The guard compares each bundle with the float32 model before it gets its name.
"""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastvlm import __version__
from fastvlm.bundle import EMBEDDINGS_FILE, MANIFEST_FILE, Bundle, BundleError, EmbeddingTable, Manifest, cache, why_not_convertible
from fastvlm.bundle.cache import CONVERTER_VERSION, content_hash
from fastvlm.checkpoint import Checkpoint
from fastvlm.checkpoint.checkpoint import EMBEDDING
from fastvlm.checkpoint.save import write_licenses
from fastvlm.checkpoint.source import check_disk_space
from fastvlm.convert import _guard
from fastvlm.convert._guard import Reference
from fastvlm.convert._pictures import calibration_pictures, guard_samples
from fastvlm.convert._weights import Weights
from fastvlm.model.precision import has_fast_bfloat16
from fastvlm.plugins import load_plugin
from fastvlm.processor import Processor
from fastvlm.runtimes import Runtime, default_threads, load_runtime

CALIBRATION_PICTURES = 24
GUARD_PICTURES, GUARD_POSITIONS = 10, 2000  # the positions of all pictures together
SMALL_MODEL_BYTES = 400_000_000  # in float32; below it the guard scores without being asked
SMALL_MODEL_QUESTIONS = 200
_BYTES_PER_WEIGHT = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 1}  # on disk, at most


class AccuracyError(BundleError):
    """The guard refused a bundle. `rows` is its table."""

    def __init__(self, message: str, rows: list[dict[str, Any]]):
        super().__init__(message)
        self.rows = rows


def convert(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    runtime: str = "openvino",
    precision: str = "auto",
    calibration: str | Path | None = None,
    adapter: str | Path | None = None,
    force: bool = False,
    random_weights: bool = False,
    questions: int | None = None,
) -> Bundle:
    """Make a bundle.

    Args:
        out: a folder that does not exist or is empty; it appears when the bundle is complete.
        runtime: which is to run it.
        precision: of `fastvlm.bundle.PRECISIONS`, or `auto`: the fastest that the guard lets pass.
        calibration: folder of pictures like those that the model will see; None makes pictures of documents.
        adapter: folder of a LoRA adapter to merge.
        force: keep the bundle also if the guard refuses it; the manifest says so.
        random_weights: for measuring speed: no guard, and the manifest says so. A checkpoint may say it of itself.
        questions: how many the guard asks to score; None asks small models only, 0 none.

    Raises:
        AccuracyError: below the guard's thresholds.
        BundleError, CheckpointError: what cannot be converted, and why.
    """
    plugin = load_plugin(__name__, runtime)
    if precision not in ("auto", *plugin.PRECISIONS):
        raise BundleError(f"precision is {precision!r}; the {runtime} runtime has {', '.join(plugin.PRECISIONS)}")
    if (reason := why_not_convertible(checkpoint.config)) is not None:
        raise BundleError(f"{checkpoint.label}: {reason}")
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(f"{target} exists and is not an empty folder; name a new one")
    weights = Weights(checkpoint, adapter)
    target.parent.mkdir(parents=True, exist_ok=True)
    processor = checkpoint.processor()
    folder = None if calibration is None else Path(calibration)
    is_random = random_weights or checkpoint.has_random_weights
    candidates = [precision] if precision != "auto" else [name for name in plugin.PRECISIONS if name != "int4" and _is_fast(name)]
    torch.set_num_threads(default_threads())
    reference: Reference | None = None
    float32_score: float | None = None
    for name in candidates:
        check_disk_space(target.parent, _bytes_on_disk(checkpoint, name), f"converting {checkpoint.label}")
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            temporary.chmod(0o755)
            embedding = _write_embeddings(weights, temporary, name)
            _write_small_files(checkpoint, processor, temporary)
            table = EmbeddingTable(temporary / EMBEDDINGS_FILE, **embedding)
            is_measured = not is_random and reference is None
            if is_measured:
                positions = -(-GUARD_POSITIONS // GUARD_PICTURES)
                reference = Reference(list(guard_samples(processor, folder, GUARD_PICTURES, positions)))
            pictures = partial(calibration_pictures, processor, folder, CALIBRATION_PICTURES)
            least_cosine = None if is_random else _guard.MIN_COSINE
            settings = plugin.write(weights, temporary, name, pictures, table, reference if is_measured else None, least_cosine)
            manifest = _manifest(checkpoint, temporary, runtime, name, plugin.PACKAGES, embedding, settings, adapter, is_random)
            manifest.write(temporary)
            if reference is not None:
                bundle = Bundle.open(temporary, checkpoint.label)
                loaded = load_runtime(runtime, bundle)
                rows = _guard.measure(loaded, reference)
                count = _questions(checkpoint, questions)
                if count:
                    if float32_score is None:
                        float32_score = _guard.score(_float32(checkpoint, adapter), processor, count)
                    rows += _guard.score_rows(_guard.score(loaded, processor, count), float32_score, count)
                del loaded
                refused = [row for row in rows if not row["passed"]]
                print(f"{name} against float32:\n{_guard.table(rows)}", file=sys.stderr)
                if refused and not force:
                    if name != candidates[-1]:
                        continue
                    names = ", ".join(f"{row['measure']} is {row['value']:.4f}" for row in refused)
                    raise AccuracyError(
                        f"{checkpoint.label} in {name} is too far from float32: {names}; choose another precision, "
                        "calibrate with pictures like yours (--calibration), or keep it all the same (--force)",
                        rows,
                    )
                dataclasses.replace(manifest, accuracy=rows, forced=bool(refused)).write(temporary)
            if target.is_dir():
                target.rmdir()
            os.rename(temporary, target)
            return Bundle.open(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise AssertionError("the last candidate returns or raises")


def convert_into_cache(
    checkpoint: Checkpoint, *, runtime: str = "openvino", precision: str = "auto", adapter: str | Path | None = None, **options: Any
) -> Bundle:
    """As `convert`, into the entry of the cache where `load` looks. Waits where another process is at it already."""
    abilities = load_plugin("fastvlm.runtimes", runtime).abilities()

    def key() -> str:
        return cache.bundle_key(checkpoint, runtime, precision, abilities, adapter)

    before = key()
    with cache.making(before) as folder:
        if (bundle := cache.find(before)) is not None:
            return bundle
        if folder.exists():
            shutil.rmtree(folder)
        bundle = convert(checkpoint, folder, runtime=runtime, precision=precision, adapter=adapter, **options)
        if key() != before:
            shutil.rmtree(folder)
            raise BundleError(f"{checkpoint.label} changed while it was converted; try again when nothing writes to it")
    return bundle


def _is_fast(precision: str) -> bool:
    return precision != "bf16" or has_fast_bfloat16(torch.device("cpu"))


def _float32(checkpoint: Checkpoint, adapter: str | Path | None) -> Runtime:
    options: dict[str, Any] = {} if adapter is None else {"adapter": adapter}
    return load_runtime("torch", checkpoint, dtype="float32", device="cpu", **options)


def _questions(checkpoint: Checkpoint, asked: int | None) -> int:
    if asked is not None:
        if asked and not _guard.can_score():
            raise BundleError('scoring needs the extra eval: pip install "fastvlm[eval]"')
        return asked
    is_small = 4 * sum(checkpoint.num_parameters().values()) <= SMALL_MODEL_BYTES
    return SMALL_MODEL_QUESTIONS if is_small and _guard.can_score() else 0


def _bytes_on_disk(checkpoint: Checkpoint, precision: str) -> int:
    parameters = checkpoint.num_parameters()
    text = checkpoint.config.text_config
    return int(1.05 * _BYTES_PER_WEIGHT[precision] * sum(parameters.values())) + 4 * text.vocab_size * text.hidden_size


def _write_embeddings(weights: Weights, folder: Path, precision: str) -> dict[str, Any]:
    """The token embedding as stored; float32 is halved unless the bundle is to be exact."""
    stored = weights.checkpoint[EMBEDDING].info.dtype
    dtype = {"F32": "float32" if precision == "fp32" else "float16", "F16": "float16", "BF16": "bfloat16"}[stored]
    value = weights.tensor(EMBEDDING, getattr(torch, dtype))
    value.view(torch.uint8).numpy().tofile(folder / EMBEDDINGS_FILE)
    return {"dtype": dtype, "shape": list(value.shape)}


def _write_small_files(checkpoint: Checkpoint, processor: Processor, folder: Path) -> None:
    processor.save(folder)
    text = json.dumps(checkpoint.config.to_dict(), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    write_licenses(checkpoint, folder)


def _manifest(
    checkpoint: Checkpoint, folder: Path, runtime: str, precision: str, packages: tuple[str, ...], embedding: dict[str, Any],
    settings: dict[str, Any], adapter: str | Path | None, is_random: bool,
) -> Manifest:  # fmt: skip
    source = {"label": checkpoint.label, "layout": checkpoint.layout, "content_sha256": content_hash(checkpoint, adapter)}
    if adapter is not None:
        source["adapter"] = str(adapter)
    versions = {"fastvlm": __version__, "converter": str(CONVERTER_VERSION), "python": ".".join(map(str, sys.version_info[:3]))}
    versions.update({package: importlib.metadata.version(package) for package in packages})
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE}
    return Manifest(
        runtime=runtime, precision=precision, source=source, versions=versions, context_length=checkpoint.context_length,
        embedding=embedding, files=files, random_weights=is_random, notes=checkpoint.notes, settings=settings,
    )  # fmt: skip
