"""OpenVINO: the default on CPUs. Runs bundles; imports no torch.

    runtime = load_runtime("openvino", Bundle.open("nano-int8"))

The decoder keeps keys and values as state of an inference request; each cache has a request of its own, so conversations may be open
side by side.
"""

import platform
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm import telemetry
from fastvlm.bundle import Bundle, BundleError
from fastvlm.config import FastVLMConfig
from fastvlm.runtimes import default_threads, is_installed
from fastvlm.runtimes._inputs import Columns, check_pixels, check_prompts, prompt_arrays

if TYPE_CHECKING:
    import openvino as ov

RUNS_BUNDLES = True
VISION_FILE, LANGUAGE_FILE = "vision.xml", "language.xml"
_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}

# The type in which what is not quantised is computed. bfloat16 is taken back to float32 by OpenVINO where the CPU has none.
_INFERENCE_PRECISION = {"fp32": "f32", "bf16": "bf16", "int8": "bf16", "int4": "bf16"}
_KV_CACHE_PRECISION = {"fp32": "f32", "bf16": "bf16", "int8": "u8", "int4": "u8"}


def unavailable_reason() -> str | None:
    return None if is_installed("openvino") else "this needs OpenVINO, which is not installed: pip install openvino"


def abilities() -> str:
    """What a cached bundle depends on besides the checkpoint: the library's version and what this CPU computes with."""
    telemetry.disable()
    import openvino as ov

    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"{ov.__version__} {platform.machine()} {' '.join(sorted(capabilities))}"


def precision_of(dtype: str) -> str:
    """The precision of a bundle for `--dtype`: `auto`, `int8`, `int4`, `bfloat16`, `float32`."""
    return _DTYPES.get(dtype, dtype)


def load(source: Bundle, *, dtype: str = "auto", device: str = "auto", threads: int | None = None) -> "OpenVINORuntime":
    """Load a bundle.

    Args:
        dtype: what it must have been made in; `auto` takes it as it is.
        device: `auto` or `cpu`.
        threads: CPU threads; None takes `default_threads()`.
    """
    manifest = source.manifest
    if manifest.runtime != "openvino":
        raise BundleError(f"{source.label} was made for the {manifest.runtime} runtime; load it with runtime={manifest.runtime!r}")
    if device not in ("auto", "cpu"):
        raise ValueError(f"device is {device!r}; the openvino runtime runs on 'cpu', the torch runtime on GPUs")
    if dtype != "auto" and precision_of(dtype) != manifest.precision:
        raise BundleError(f"{source.label} was made in {manifest.precision}, not {precision_of(dtype)}; leave dtype out, or convert again")
    return OpenVINORuntime(source, threads or default_threads())


class _Cache:
    """A request whose state holds the columns. `rows` are where the next step's rows come from, if they were reordered."""

    def __init__(self, request: "ov.InferRequest", batch_size: int, bytes_per_column: int):
        self.request = request
        self.columns = Columns.empty(batch_size)
        self.rows: np.ndarray | None = None
        self._bytes_per_column = bytes_per_column

    @property
    def length(self) -> int:
        return self.columns.length

    @property
    def nbytes(self) -> int:
        return self.columns.mask.size * self._bytes_per_column


class OpenVINORuntime:
    """A bundle behind the runtime contract."""

    name = "openvino"

    def __init__(self, bundle: Bundle, threads: int):
        telemetry.disable()
        import openvino as ov

        self.config: FastVLMConfig = bundle.config
        self.max_sequence_length = bundle.context_length
        self.precision = bundle.manifest.precision
        self._table = bundle.embeddings()
        text = bundle.config.text_config
        values_per_column = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        kv_precision = _KV_CACHE_PRECISION[self.precision]
        self._bytes_per_column = values_per_column * {"f32": 4, "bf16": 2, "u8": 1}[kv_precision]
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _INFERENCE_PRECISION[self.precision],
        }
        core = ov.Core()
        self._language = core.compile_model(
            core.read_model(bundle.folder / LANGUAGE_FILE), "CPU", {**options, "KV_CACHE_PRECISION": kv_precision}
        )
        self._vision = core.compile_model(core.read_model(bundle.folder / VISION_FILE), "CPU", options)
        self._vision_request = self._vision.create_infer_request()
        self._vision_lock = threading.Lock()

    def encode_images(self, pixel_values: np.ndarray) -> np.ndarray:
        """(N, 3, H, W) float32 -> (N, T, D) float32, after the projector."""
        check_pixels(pixel_values)
        images = np.ascontiguousarray(pixel_values, np.float32)
        with self._vision_lock:  # one by one: more at once gains nothing and takes memory
            return np.concatenate([self._vision_request.infer([image[None]], share_inputs=True)[0].copy() for image in images])

    def prefill(
        self, input_ids: Sequence[np.ndarray], image_features: Sequence[np.ndarray | None], cache: Any = None
    ) -> tuple[np.ndarray, Any]:
        """See `fastvlm.runtimes.Runtime`. Rows of unequal length are padded on the left."""
        check_prompts(input_ids, None if cache is None else cache.columns.batch_size)
        inputs_embeds, is_real = prompt_arrays(self._table, input_ids, image_features, self.config.image_token_id)
        if cache is None:
            cache = _Cache(self._language.create_infer_request(), len(inputs_embeds), self._bytes_per_column)
        return self._run(inputs_embeds, is_real, cache), cache

    def decode(self, tokens: np.ndarray, cache: Any) -> np.ndarray:
        tokens = np.asarray(tokens, np.int64).reshape(-1, 1)
        return self._run(self._table[tokens], np.ones(tokens.shape, np.bool_), cache)

    def reorder(self, cache: Any, rows: np.ndarray) -> Any:
        rows = np.asarray(rows, np.int64)
        cache.columns.mask = cache.columns.mask[rows]
        cache.rows = rows if cache.rows is None else cache.rows[rows]
        return cache

    def trim(self, cache: Any, length: int) -> Any:
        import openvino as ov

        if not 0 <= length <= cache.length:
            raise ValueError(f"cannot trim a cache of {cache.length} columns to {length}")
        if length == 0:
            cache.request.reset_state()
        elif length < cache.length:
            for state in cache.request.query_state():
                values = state.state.data if cache.rows is None else state.state.data[cache.rows]
                state.state = ov.Tensor(np.ascontiguousarray(values[:, :, :length]))
        else:
            return cache
        cache.rows = None
        cache.columns.mask = cache.columns.mask[:, :length]
        return cache

    def _run(self, inputs_embeds: np.ndarray, is_real: np.ndarray, cache: _Cache) -> np.ndarray:
        rows = np.arange(len(inputs_embeds)) if cache.rows is None else cache.rows
        position_ids = cache.columns.append(is_real)
        inputs = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": cache.columns.mask,
            "position_ids": position_ids,
            "beam_idx": rows.astype(np.int32),
        }
        logits = cache.request.infer(inputs, share_inputs=True)[0]
        cache.rows = None
        return logits[:, -1].copy()
