"""The public class: a processor and a runtime that answer together.

vlm = load("nano")
messages = [{"role": "user", "content": [{"type": "image", "image": "scan.png"}, {"type": "text", "text": "What is the total?"}]}]
result = vlm.generate(messages, max_new_tokens=64)
for piece in vlm.stream(messages):
    print(piece, end="", flush=True)
"""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm import telemetry
from fastvlm.bundle import Bundle, BundleError, cache, is_bundle, why_not_convertible
from fastvlm.checkpoint.open import NANO, embedded_folder
from fastvlm.config import FastVLMConfig
from fastvlm.generate import Engine, GenerationOptions, GenerationResult, TextStream
from fastvlm.plugins import load_plugin
from fastvlm.runtimes import Runtime, RuntimeUnavailableError, choose_runtime, is_installed, load_runtime, normalize_dtype

if TYPE_CHECKING:
    from fastvlm.checkpoint import Checkpoint
    from fastvlm.processor import ModelInputs, Processor

Message = dict[str, Any]

logger = logging.getLogger(__name__)


def load(
    name_or_path: str | Path = "nano",
    *,
    runtime: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    threads: int | None = None,
    adapter: str | Path | None = None,
    resolution: int | None = None,
    image_mode: str | None = None,
    draft: bool | None = None,
    **runtime_options: Any,
) -> "FastVLM":
    """Load a checkpoint, ready to answer.

    Args:
        name_or_path: a folder or zip in Apple's or transformers' layout, a hub id, or a short name such as `nano`.
        runtime: a file of `fastvlm/runtimes`, or `auto`: torch on a GPU, else the fastest that is installed. On a CPU a checkpoint is
            converted into a bundle the first time (`fastvlm cache` shows them); a bundle's folder is run as it is.
        dtype: `float32` computes what the reference does; `auto` is the fastest that the device is made for. Runtimes of bundles also take
            `int8` and `int4`.
        device: `auto`, `cpu`, `cuda`, `mps`, ...
        revision: branch, tag or commit of a hub id.
        threads: CPU threads, for the whole process; None takes the physical cores within the container's limit.
        adapter: folder of a LoRA adapter to merge into the weights.
        resolution: side in pixels to which pictures are brought, a multiple of 64; None is the checkpoint's.
        image_mode: `pad`, `crop`, `anyres` or `native`; None is the checkpoint's.
        draft: decode large JPEGs at a fraction of their size: faster, and pixels differ a little; None is the checkpoint's, else no.
        runtime_options: what else the runtime's `load` takes, such as `fold=True` for torch.

    Raises:
        ValueError, OSError: what is wrong with the checkpoint or an argument, and what to do.
    """
    telemetry.disable()
    source, checkpoint, runtime_name = _find(name_or_path, runtime, device, dtype, revision, adapter)
    if adapter is not None and source is checkpoint:
        runtime_options["adapter"] = adapter
    processor = _with_image_options(source.processor(), resolution, image_mode, draft)
    loaded = load_runtime(runtime_name, source, dtype=dtype, device=device, threads=threads, **runtime_options)
    for note in source.notes:
        logger.warning("%s: %s", source.label, note)
    return FastVLM(processor, loaded, checkpoint=checkpoint, is_adapted=adapter is not None)


def _find(
    name_or_path: str | Path, runtime: str, device: str, dtype: str, revision: str | None, adapter: str | Path | None
) -> "tuple[Checkpoint | Bundle, Checkpoint | None, str]":
    """What the runtime is to load, the checkpoint that it is or comes from if there is one, and the runtime's name."""
    from fastvlm.checkpoint import open_checkpoint

    if is_bundle(path := Path(name_or_path).expanduser()):
        if adapter is not None:
            raise ValueError(f"{path} is a bundle, whose weights cannot take an adapter; convert the checkpoint with --adapter")
        bundle = Bundle.open(path)
        return bundle, None, bundle.manifest.runtime if runtime == "auto" else runtime
    runtime_name = choose_runtime(runtime, device)
    plugin = load_plugin("fastvlm.runtimes", runtime_name)
    if not getattr(plugin, "RUNS_BUNDLES", False):
        checkpoint = open_checkpoint(name_or_path, revision=revision)
        return checkpoint, checkpoint, runtime_name
    if (reason := plugin.unavailable_reason()) is not None:
        raise RuntimeUnavailableError(reason)
    precision = plugin.precision_of(normalize_dtype(dtype))
    if str(name_or_path) == NANO and adapter is None and is_bundle(folder := embedded_folder(NANO) / runtime_name):
        bundle = Bundle.open(folder, label=NANO)
        if precision in ("auto", bundle.manifest.precision):
            return bundle, None, runtime_name
    checkpoint = open_checkpoint(name_or_path, revision=revision)
    if runtime == "auto" and why_not_convertible(checkpoint.config) is not None:
        return checkpoint, checkpoint, "torch"
    key = cache.bundle_key(checkpoint, runtime_name, precision, plugin.abilities(), adapter)
    bundle = cache.find(key) or _convert(name_or_path, revision, runtime_name, precision, adapter)
    bundle.label = checkpoint.label
    return bundle, checkpoint, runtime_name


def _convert(name_or_path: str | Path, revision: str | None, runtime: str, precision: str, adapter: str | Path | None) -> "Bundle":
    """Convert into the cache in a process of its own: the memory that it took is free again, and this one need not import torch."""
    if not (is_installed("torch") and is_installed("nncf")):
        raise RuntimeUnavailableError(f'{name_or_path} must be converted first, which needs PyTorch and nncf: pip install "fastvlm[torch]"')
    name = str(name_or_path)
    logger.warning("converting %s for the %s runtime: once, seconds for a small model and minutes for a large one", name, runtime)
    command = [sys.executable, "-m", "fastvlm", "convert", name, "--runtime", runtime, "--precision", precision, "--into-cache"]
    if revision is not None:
        command += ["--revision", revision]
    if adapter is not None:
        command += ["--adapter", str(adapter)]
    package_parent = str(Path(__file__).parent.parent)
    search_path = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": search_path})
    try:
        answer = json.loads(result.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        signal = f" by signal {-result.returncode}; is there enough memory?" if result.returncode < 0 else ""
        raise BundleError(f"converting {name} was broken off{signal or f' with status {result.returncode}'}") from None
    if "error" in answer:
        raise BundleError(answer["error"])
    return Bundle.open(answer["folder"])


def _with_image_options(processor: "Processor", resolution: int | None, image_mode: str | None, draft: bool | None) -> "Processor":
    if resolution is not None:
        processor.image_processor = processor.image_processor.at_size(resolution)
    if image_mode is not None:
        processor.image_processor = dataclasses.replace(processor.image_processor, mode=image_mode)
    if draft is not None:
        processor.image_processor = dataclasses.replace(processor.image_processor, draft=draft)
    return processor


class FastVLM:
    """A model that answers messages about pictures.

    Messages are a list of `{"role": "system" | "user" | "assistant", "content": ...}`; content is a string or a list of
    `{"type": "text", "text": ...}` and `{"type": "image", "image": path, bytes, file or PIL image}`.

    Features of the pictures seen last and the cache of the last conversation are kept, so a second question about a picture and the
    next turn of a conversation cost only what is new. `feature_cache_bytes` and `prefix_cache_bytes` bound them; 0 switches one off.
    """

    def __init__(
        self, processor: "Processor", runtime: Runtime, *, checkpoint: "Checkpoint | None" = None, is_adapted: bool = False, **caches: int
    ):
        """
        Args:
            checkpoint: what `runtime` was loaded from; `save` copies its weights, which a runtime may hold in another form.
            is_adapted: the runtime's weights are not the checkpoint's.
            caches: `feature_cache_bytes`, `prefix_cache_bytes`.
        """
        self.processor = processor
        self.runtime = runtime
        self.engine = Engine(runtime, processor, **caches)
        self._checkpoint = checkpoint
        self._is_adapted = is_adapted

    @property
    def config(self) -> FastVLMConfig:
        return self.runtime.config

    def generate(self, messages: Sequence[Message], *, resolution: int | None = None, **options: Any) -> GenerationResult:
        """The whole answer, with why it ended and how long each part took.

        Args:
            messages: the conversation, ending with a user's turn.
            resolution: for this call, as in `load`.
            options: fields of `fastvlm.generate.GenerationOptions`: max_new_tokens, temperature, top_p, top_k, repetition_penalty,
                no_repeat_ngram_size, seed, stop, num_beams, length_penalty, early_stopping.
        """
        return self.engine.generate(self._inputs(messages, resolution), GenerationOptions(**options))

    def stream(self, messages: Sequence[Message], *, resolution: int | None = None, **options: Any) -> TextStream:
        """Pieces of the answer as they come, never half a character. After the last one, `.result` is what `generate` returns."""
        return self.engine.stream(self._inputs(messages, resolution), GenerationOptions(**options))

    def generate_batch(
        self, conversations: Sequence[Sequence[Message]], *, resolution: int | None = None, batch_size: int = 8, **options: Any
    ) -> list[GenerationResult]:
        """Answers to several conversations, up to `batch_size` of them decoded at once; the same tokens as one by one."""
        inputs = [self._inputs(messages, resolution) for messages in conversations]
        return self.engine.generate_batch(inputs, GenerationOptions(**options), batch_size)

    def encode_images(self, pixel_values: np.ndarray) -> np.ndarray:
        """(N, 3, H, W) float32 in [0, 1] -> (N, T, D) float32: what stands in for the image tokens."""
        return self.runtime.encode_images(pixel_values)

    def vision_features(self, pixel_values: np.ndarray) -> np.ndarray:
        """(N, 3, H, W) float32 in [0, 1] -> (N, T, C) float32, before the projector. Torch runtime only."""
        return self._of_torch("vision_features")(pixel_values)

    def logits(self, inputs: "ModelInputs") -> np.ndarray:
        """Logits (1, S, V) float32 of every position. Torch runtime only."""
        logits = self._of_torch("logits")
        self.engine.check_length(inputs, room=0)
        (images,) = self.engine.image_features([inputs])
        return logits(inputs.input_ids, np.concatenate([features for _, features in images]) if images else None)

    def save(self, folder: str | Path) -> None:
        """Write the model and its processor in transformers' layout, which `load` and transformers read."""
        from fastvlm.checkpoint import save_pretrained

        source: Any = self._checkpoint
        if source is None or self._is_adapted:
            source = getattr(self.runtime, "model", None)
        if source is None:
            raise ValueError(f"the {self.runtime.name} runtime does not hold weights that can be saved; load with runtime='torch'")
        save_pretrained(source, self.processor, folder, licenses_from=self._checkpoint)

    save_pretrained = save

    def _inputs(self, messages: Sequence[Message], resolution: int | None) -> "ModelInputs":
        return self.processor(messages, resolution=resolution)

    def _of_torch(self, name: str) -> Any:
        method = getattr(self.runtime, name, None)
        if method is None:
            raise ValueError(f"{name}() needs the torch runtime, this is {self.runtime.name!r}; load with runtime='torch'")
        return method
