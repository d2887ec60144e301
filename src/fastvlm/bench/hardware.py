"""What this machine can do: matrix products in three precisions, memory reads, and what its clock and instructions promise.

    measured = measure(threads=2)       # about a minute
    measured["peaks"]["int8"]           # {"torch": ..., "openvino": ..., "onnxruntime": ...} operations a second

A benchmark's share of "the peak" is a share of the best that any library reached here, so each precision is measured with all that
are installed. The product of cores, operations per cycle and measured clock stands beside it: the hardware's own limit.
"""

import ctypes
import mmap
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastvlm.runtimes import cpu_fields, is_installed

PRECISIONS = ("float32", "bfloat16", "int8")
SIZE = 4096  # of the square matrices: the smallest at which the products' edges stop to matter
READ_BYTES = 1 << 30  # far more than any cache holds
_INSTRUCTION_SETS = (
    "sse4_2 avx avx2 fma avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 "
    "asimd asimddp bf16 i8mm sve sve2 sme"
).split()


def describe_machine(threads: int) -> dict[str, Any]:
    """Processor, instruction sets, cores, memory, system."""
    fields = cpu_fields()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_family": fields.get("cpu family"),
        "cpu_model": fields.get("model"),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def operations_per_cycle(fields: dict[str, str]) -> dict[str, int] | None:
    """Operations of one core in one cycle, a multiply-add counted as two; None for processors that are not in the table.

    From the vendors' optimisation manuals: vector width x units x 2, and 2 or 4 times that for 16 or 8 bits where there are
    instructions that multiply and add them.
    """
    flags = set(fields.get("flags", "").split())
    family = int(fields.get("cpu family", "0"))
    if fields.get("vendor_id") == "AuthenticAMD" and "avx512f" in flags:
        float32 = 64 if family >= 26 else 32  # Zen 5 computes 512 bits at once in two units, Zen 4 in two halves
    elif fields.get("vendor_id") == "AuthenticAMD" and "avx2" in flags:
        float32 = 32
    elif fields.get("vendor_id") == "GenuineIntel" and "avx512f" in flags:
        float32 = 64  # two units, as in all but the smallest Xeons
    elif fields.get("vendor_id") == "GenuineIntel" and "avx2" in flags:
        float32 = 32
    else:
        return None
    bfloat16 = 1024 if "amx_bf16" in flags else 2 * float32 if "avx512_bf16" in flags else float32
    int8 = 2048 if "amx_int8" in flags else 4 * float32 if flags & {"avx512_vnni", "avx_vnni"} else 2 * float32
    return {"float32": float32, "bfloat16": bfloat16, "int8": int8}


def clock_hz() -> float | None:
    """The clock under load, measured: a chain of multiplications that wait for each other, three cycles each. x86-64 only.

    Multiplication of 64-bit integers takes three cycles on every x86 since 2008 (Intel) and 2017 (AMD Zen).
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "win32":
        return None
    count, times = 64, 2_000_000
    code = b"\xb9" + times.to_bytes(4, "little")  # mov ecx, times
    loop = b"\x48\x0f\xaf\xc0" * count + b"\xff\xc9"  # imul rax, rax ... ; dec ecx
    code += loop + b"\x0f\x85" + (-(len(loop) + 6)).to_bytes(4, "little", signed=True) + b"\xc3"  # jnz loop ; ret
    try:
        memory = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except (OSError, PermissionError):  # a system that forbids making code
        return None
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    function = ctypes.CFUNCTYPE(None)(address)
    function()  # the clock rises
    seconds = min(_timed(function) for _ in range(3))
    return 3 * count * times / seconds


def measure(threads: int, size: int = SIZE, read_bytes: int = READ_BYTES, on_step: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Peaks in operations a second for each precision and library, memory reads in bytes a second, the clock, and what it promises."""
    peaks: dict[str, dict[str, float]] = {precision: {} for precision in PRECISIONS}
    for library, products in _LIBRARIES.items():
        if not is_installed(library):
            continue
        if on_step is not None:
            on_step(f"matrix products of {size}: {library}")
        for precision, multiply in products(threads, size):
            multiply()  # packs weights, starts threads
            peaks[precision][library] = 2 * size**3 / min(_timed(multiply) for _ in range(3))
    if on_step is not None:
        on_step("memory reads")
    reads = dict(_reads(threads, read_bytes))
    clock = clock_hz()
    per_cycle = operations_per_cycle(cpu_fields())
    promised = None if clock is None or per_cycle is None else {name: threads * count * clock for name, count in per_cycle.items()}
    return {
        "size": size,
        "peaks": peaks,
        "best": {precision: max(found.values()) for precision, found in peaks.items() if found},
        "reads": reads,
        "best_read": max(reads.values()),
        "clock_hz": clock,
        "operations_per_cycle": per_cycle,
        "promised": promised,
    }


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


Products = Iterator[tuple[str, Callable[[], object]]]


def _numpy_products(threads: int, size: int) -> Products:
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    out = np.empty_like(a)
    yield "float32", lambda: np.matmul(a, b, out=out)


def _torch_products(threads: int, size: int) -> Products:
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator)
    yield "float32", lambda: a @ b
    a16, b16 = a.bfloat16(), b.bfloat16()
    yield "bfloat16", lambda: a16 @ b16
    a8, b8 = (16 * a).clamp(-127, 127).to(torch.int8), (16 * b).clamp(-127, 127).to(torch.int8)
    yield "int8", lambda: torch._int_mm(a8, b8)


def _openvino_products(threads: int, size: int) -> Products:
    from fastvlm.runtimes.openvino import core

    available = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    import openvino as ov
    from openvino import opset13 as ops

    weight = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    value = np.random.default_rng(1).standard_normal((size, size), dtype=np.float32)

    def compiled(graph: Any, precision: str) -> Callable[[], object]:
        options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
        request = core().compile_model(graph, "CPU", options).create_infer_request()
        request.set_input_tensor(ov.Tensor(value))
        return request.infer

    plain = ops.parameter([size, size], np.float32)
    graph = ov.Model([ops.matmul(plain, ops.constant(weight), False, True)], [plain])
    yield "float32", compiled(graph, "f32")
    if "BF16" in available:
        yield "bfloat16", compiled(graph, "bf16")
    # Weights of 8 bits and a quantised activation: what nncf makes of a linear layer, so the engine chooses its int8 kernel.
    scale = np.abs(weight).max() / 127
    stored = ops.constant(np.round(weight / scale).astype(np.int8))
    weights = ops.multiply(ops.convert(stored, np.float32), ops.constant(np.float32(scale)))
    activation = ops.parameter([size, size], np.float32)
    low, high = ops.constant(np.float32(-4)), ops.constant(np.float32(4 * 127 / 128))
    quantised = ops.fake_quantize(activation, low, high, low, high, 256)
    yield "int8", compiled(ov.Model([ops.matmul(quantised, weights, False, True)], [activation]), "f32")


def _onnxruntime_products(threads: int, size: int) -> Products:
    if not is_installed("onnx"):
        return
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def session(operator: str, value: np.ndarray, weight: np.ndarray, out: int) -> Callable[[], object]:
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        graph = helper.make_graph(
            [helper.make_node(operator, ["a", "b"], ["c"])],
            "product",
            [helper.make_tensor_value_info("a", kind, value.shape)],
            [helper.make_tensor_value_info("c", out, value.shape)],
            [numpy_helper.from_array(weight, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        running = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda: running.run(None, {"a": value})

    a, b = rng.standard_normal((2, size, size), dtype=np.float32)
    yield "float32", session("MatMul", a, b, TensorProto.FLOAT)
    a8, b8 = rng.integers(0, 256, (size, size), np.uint8), rng.integers(-127, 128, (size, size), np.int8)
    yield "int8", session("MatMulInteger", a8, b8, TensorProto.INT32)


_LIBRARIES: dict[str, Callable[[int, int], Products]] = {
    "torch": _torch_products,
    "openvino": _openvino_products,
    "onnxruntime": _onnxruntime_products,
    "numpy": _numpy_products,
}


def _reads(threads: int, read_bytes: int) -> Iterator[tuple[str, float]]:
    """Bytes a second, read by summing a large array and by multiplying a matrix with a vector, which is what decoding does."""
    values = np.ones(read_bytes // 4, np.float32)
    matrix = values[: len(values) // 4096 * 4096].reshape(-1, 4096)
    vector = np.ones(4096, np.float32)
    yield "numpy matrix x vector", read_bytes / min(_timed(lambda: matrix @ vector) for _ in range(3))
    if is_installed("torch"):
        import torch

        torch.set_num_threads(threads)
        tensor, weights, factor = torch.from_numpy(values), torch.from_numpy(matrix), torch.from_numpy(vector)
        yield "torch sum", read_bytes / min(_timed(tensor.sum) for _ in range(3))
        yield "torch matrix x vector", read_bytes / min(_timed(lambda: weights @ factor) for _ in range(3))
