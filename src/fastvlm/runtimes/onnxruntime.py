"""ONNX Runtime: for CPUs and systems that OpenVINO does not cover. Runs bundles; imports no torch.

runtime = load_runtime("onnxruntime", Bundle.open("nano-onnx"))
"""

import platform
from typing import Any

import numpy as np

from fastvlm import telemetry
from fastvlm.bundle import Bundle
from fastvlm.runtimes import default_threads, is_installed
from fastvlm.runtimes._bundled import BundledCache, BundledRuntime, check_options, precision_of

__all__ = ["RUNS_BUNDLES", "OnnxRuntime", "abilities", "load", "precision_of", "unavailable_reason"]

RUNS_BUNDLES = True
VISION_FILE, LANGUAGE_FILE = "vision.onnx", "language.onnx"


def unavailable_reason() -> str | None:
    return None if is_installed("onnxruntime") else 'this needs ONNX Runtime, which is not installed: pip install "fastvlm[onnx]"'


def abilities() -> str:
    """What a cached bundle depends on besides the checkpoint."""
    import onnxruntime

    return f"{onnxruntime.__version__} {platform.machine()}"


def load(source: Bundle, *, dtype: str = "auto", device: str = "auto", threads: int | None = None) -> "OnnxRuntime":
    """Load a bundle; arguments as for the openvino runtime."""
    check_options(source, "onnxruntime", dtype, device)
    return OnnxRuntime(source, threads or default_threads())


class _Cache(BundledCache):
    """Keys and values (B, kv_heads, columns, head_dim) of every layer, as the last step returned them."""

    values: list[Any]


class OnnxRuntime(BundledRuntime):
    name = "onnxruntime"

    def __init__(self, bundle: Bundle, threads: int):
        super().__init__(bundle)
        telemetry.disable()
        import onnxruntime

        self._ort: Any = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._vision = onnxruntime.InferenceSession(bundle.folder / VISION_FILE, options, providers=providers)
        self._language = onnxruntime.InferenceSession(bundle.folder / LANGUAGE_FILE, options, providers=providers)
        self._outputs = [output.name for output in self._language.get_outputs()]
        self._past = [item.name for item in self._language.get_inputs() if item.name.startswith("past.")]

    def encode(self, image: np.ndarray) -> np.ndarray:
        return self._vision.run(None, {"pixel_values": image})[0]

    def new_cache(self, batch_size: int) -> _Cache:
        text = self.config.text_config
        cache = _Cache(batch_size, 4 * self.values_per_column)
        empty = np.zeros((batch_size, text.num_key_value_heads, 0, text.head_dim), np.float32)
        cache.values = [self._value(empty) for _ in self._past]
        return cache

    def step(self, inputs: dict[str, np.ndarray], cache: _Cache) -> np.ndarray:
        feeds = {name: self._value(value) for name, value in inputs.items()} | dict(zip(self._past, cache.values, strict=True))
        logits, *cache.values = self._language.run_with_ort_values(self._outputs, feeds)
        return logits.numpy()[:, -1]

    def reorder(self, cache: _Cache, rows: np.ndarray) -> _Cache:
        rows = np.asarray(rows, np.int64)
        cache.mask = cache.mask[rows]
        cache.values = [self._value(value.numpy()[rows]) for value in cache.values]
        return cache

    def trim(self, cache: _Cache, length: int) -> _Cache:
        if not 0 <= length <= cache.length:
            raise ValueError(f"cannot trim a cache of {cache.length} columns to {length}")
        cache.mask = cache.mask[:, :length]
        cache.values = [self._value(value.numpy()[:, :, :length]) for value in cache.values]
        return cache

    def _value(self, array: np.ndarray) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
