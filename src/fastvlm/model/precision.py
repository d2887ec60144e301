"""Whether a device gains from bfloat16, which it may have to emulate."""

import functools
import time

import torch

_SIDE = 384  # of the matrices that are timed: some tens of milliseconds in all


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32.

    Where bfloat16 is emulated they take many times as long. A CPU that has the instructions is timed once, because having them does not
    settle it: a Xeon of 2023 whose AMX is hidden by a virtual machine takes twice as long in bfloat16 as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or (_cpu_has_bfloat16() and _matrix_product_s(torch.bfloat16) < _matrix_product_s(torch.float32))


def _cpu_has_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@functools.cache
def _matrix_product_s(dtype: torch.dtype) -> float:
    """The shortest of several, in this thread's own time: what else runs can make a product slower, never faster."""
    with torch.inference_mode():
        matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
        times_s = []
        for _ in range(20):
            start_s = time.thread_time()
            matrix @ matrix
            times_s.append(time.thread_time() - start_s)
    return min(times_s)
