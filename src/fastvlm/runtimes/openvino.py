"""OpenVINO: the default on CPUs. Runs bundles; imports no torch.

    runtime = load_runtime("openvino", Bundle.open("nano-int8"))

The decoder keeps keys and values as state of an inference request; each cache has a request of its own, so conversations may be open
side by side.
"""

import contextlib
import functools
import io
import os
import platform
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm import telemetry
from fastvlm.bundle import Bundle, cache
from fastvlm.runtimes import cpu_fields, default_threads, is_installed
from fastvlm.runtimes._bundled import BundledCache, BundledRuntime, check_options, precision_of

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["RUNS_BUNDLES", "OpenVINORuntime", "abilities", "load", "precision_of", "unavailable_reason"]

RUNS_BUNDLES = True
VISION_FILE, LANGUAGE_FILE = "vision.xml", "language.xml"

# The type in which what is not quantised is computed. bfloat16 is taken back to float32 by OpenVINO where the CPU has none.
_INFERENCE_PRECISION = {"fp32": "f32", "bf16": "bf16", "int8": "bf16", "int4": "bf16"}
_KV_CACHE_PRECISION = {"fp32": "f32", "bf16": "bf16", "int8": "u8", "int4": "u8"}
# Activations of the decoder are rounded to int8 in groups of so many values. With OpenVINO's own choice of 32 the prefill of a 0.5B takes a
# third longer, with 64 an eighth (Sapphire Rapids); whole rows are slower again.
_ACTIVATION_GROUP = 128
_GRAPHS_KEPT = 2  # each holds the encoder's weights in the layout of its size
_KV_BYTES = {"f32": 4, "bf16": 2, "u8": 1}


def unavailable_reason() -> str | None:
    return None if is_installed("openvino") else "this needs OpenVINO, which is not installed: pip install openvino"


@functools.cache
def core() -> "ov.Core":
    """The one of this process, which stays as long as the process does.

    The CPU plugin gives the thread that loads it another stack for signals, and takes that away when the last core and graph are gone
    (2026.4). Where another thread drops them, the first one is left with a stack that is not there, and its next signal kills the process.
    """
    telemetry.disable()
    import openvino as ov

    return ov.Core()


def abilities() -> str:
    """What a cached bundle depends on besides the checkpoint: the library's version and what this CPU computes with."""
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    import openvino as ov

    return f"{ov.__version__} {platform.machine()} {' '.join(sorted(capabilities))}"


def _has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies 8-bit integers in one instruction; True where that cannot be found out.

    Without, OpenVINO 2026.4 computes quantised convolutions that miss float32's (correlation 0.84 on AVX2, 0.998 of the same graph computed
    in float32), whatever the range of the weights, so there the encoder's integers are widened when it is compiled.
    """
    flags = cpu_fields(cpuinfo).get("flags")
    return flags is None or not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(flags.split())


def _bfloat16_is_slow(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether convolutions take longer in bfloat16 than in float32: on Intel's CPUs only the matrix units do more of them at once.

    nano's encoder at 1280 pixels, two Sapphire Rapids cores whose matrix units are hidden: 0.40 s in float32, 0.56 s in bfloat16.
    """
    fields = cpu_fields(cpuinfo)
    return fields.get("vendor_id") == "GenuineIntel" and "amx_bf16" not in fields.get("flags", "").split()


def load(
    source: Bundle, *, dtype: str = "auto", device: str = "auto", threads: int | None = None, profile: bool = False
) -> "OpenVINORuntime":
    """Load a bundle.

    Args:
        dtype: what it must have been made in; `auto` takes it as it is.
        device: `auto` or `cpu`.
        threads: CPU threads; None takes `default_threads()`.
        profile: time every operator, for `operator_times`.
    """
    check_options(source, "openvino", dtype, device)
    return OpenVINORuntime(source, threads or default_threads(), profile)


class _Cache(BundledCache):
    """A request whose state holds the columns. `rows` are the rows of the state that the next step's rows continue."""

    def __init__(self, request: "ov.InferRequest", batch_size: int, bytes_per_column: int):
        super().__init__(batch_size, bytes_per_column)
        self.request = request
        self.rows = np.arange(batch_size)


class OpenVINORuntime(BundledRuntime):
    name = "openvino"

    def __init__(self, bundle: Bundle, threads: int, profile: bool = False):
        super().__init__(bundle)
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _INFERENCE_PRECISION[self.precision],
            "PERF_COUNT": profile,
        }
        kv_precision = _KV_CACHE_PRECISION[self.precision]
        self._bytes_per_column = self.values_per_column * _KV_BYTES[kv_precision]
        language_options = {**options, "KV_CACHE_PRECISION": kv_precision, "DYNAMIC_QUANTIZATION_GROUP_SIZE": _ACTIVATION_GROUP}
        exact = {} if _has_vnni() else {"LP_TRANSFORMS_MODE": "NO"}
        wide = {"INFERENCE_PRECISION_HINT": "f32"} if _bfloat16_is_slow() else {}
        compiler = _Compiler(bundle)
        self._vision = _VisionGraphs(compiler, {**options, **exact, **wide})
        self._language = compiler.compile(LANGUAGE_FILE, language_options)
        self._has_stepped = False

    def encode(self, image: np.ndarray) -> np.ndarray:
        return self._vision(image)

    def operator_times(self, cache: _Cache | None = None) -> list[tuple[str, str, float]]:
        """(operator, how it was computed, seconds): means over all pictures, or over all steps where a `cache` is given.

        In the graph's order; loaded with `profile` only.
        """
        request = self._vision.newest if cache is None else cache.request
        return [(node.node_type, node.exec_type, node.real_time.total_seconds()) for node in request.get_profiling_info()]

    def new_cache(self, batch_size: int) -> _Cache:
        return _Cache(self._language.create_infer_request(), batch_size, self._bytes_per_column)

    def step(self, inputs: dict[str, np.ndarray], cache: _Cache) -> np.ndarray:
        if not self._has_stepped:
            # It packs the decoder's weights: that is when a process needs most memory, and it does not need the encoder's buffers.
            self._vision.release_memory()
            self._has_stepped = True
        logits = cache.request.infer({**inputs, "beam_idx": cache.rows.astype(np.int32)}, share_inputs=True)[0]
        cache.rows = np.arange(cache.batch_size)
        return logits[:, -1].copy()

    def reorder(self, cache: _Cache, rows: np.ndarray) -> _Cache:
        rows = np.asarray(rows, np.int64)
        cache.mask, cache.rows = cache.mask[rows], cache.rows[rows]
        return cache

    def trim(self, cache: _Cache, length: int) -> _Cache:
        import openvino as ov

        if not 0 <= length <= cache.length:
            raise ValueError(f"cannot trim a cache of {cache.length} columns to {length}")
        if length == 0:
            cache.request.reset_state()
        elif length < cache.length:
            for state in cache.request.query_state():
                state.state = ov.Tensor(np.ascontiguousarray(state.state.data[cache.rows][:, :, :length]))
        else:
            return cache
        cache.rows = np.arange(cache.batch_size)
        cache.mask = cache.mask[:, :length]
        return cache


class _Compiler:
    """Compiles graphs of a bundle, or reads back what it compiled before: ready in half of the time or less, in less memory on the way."""

    def __init__(self, bundle: Bundle):
        self._bundle, self._abilities = bundle, abilities()

    def compile(self, name: str, options: dict[str, Any], shape: tuple[int, ...] | None = None) -> "ov.CompiledModel":
        """A graph's file, for an input of one `shape` or as it is.

        As it is, its weights are in the bundle anyway. Of a shape of its own, it is another graph, and its weights are kept with it.
        """
        options = {**options, "CACHE_MODE": "OPTIMIZE_SPEED" if shape else "OPTIMIZE_SIZE"}
        path = self._bundle.folder / name
        kept = cache.compiled_path(self._bundle, self._abilities, f"{name} {shape} {sorted(options.items())}")
        with contextlib.suppress(OSError, RuntimeError):  # not there, or damaged: it is made anew
            where = {} if shape else {"WEIGHTS_PATH": str(path.with_suffix(".bin"))}
            compiled = core().import_model(kept.read_bytes(), "CPU", {**options, **where})
            with contextlib.suppress(OSError):
                os.utime(kept)
            return compiled
        model = core().read_model(path)
        if shape:
            model.reshape(list(shape))
        compiled = core().compile_model(model, "CPU", options)
        exported = io.BytesIO()
        compiled.export_model(exported)
        cache.keep_compiled(self._bundle, kept, exported.getbuffer())
        return compiled


class _VisionGraphs:
    """The encoder, compiled for square pictures of the sizes seen last, and once for all other shapes.

    A graph of fixed sizes is faster and plans its memory, but compiling one takes about as long as encoding: worth it for the size
    that all pictures are brought to, not for pictures that keep a shape of their own.
    """

    def __init__(self, compiler: _Compiler, options: dict[str, Any]):
        self._compiler, self._options = compiler, options
        self._requests: dict[tuple[int, ...] | None, ov.InferRequest] = {}
        self._lock = threading.Lock()

    @property
    def newest(self) -> "ov.InferRequest":
        return next(reversed(self._requests.values()))

    def release_memory(self) -> None:
        """Give back what pictures took on the way; the next one takes it anew."""
        with self._lock:
            for request in self._requests.values():
                request.get_compiled_model().release_memory()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(1, 3, H, W) -> (1, T, D)."""
        with self._lock:
            key = image.shape if image.shape[2] == image.shape[3] else None
            request = self._requests.pop(key, None)
            if request is None:
                request = self._compiler.compile(VISION_FILE, self._options, key).create_infer_request()
            self._requests[key] = request  # the newest stands last
            if len(self._requests) > _GRAPHS_KEPT:
                del self._requests[next(iter(self._requests))]
            return request.infer([image], share_inputs=True)[0].copy()
