"""Which of the 16-bit types a device computes with by itself, and does not emulate."""

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is in the hardware. Emulated, its matrix products take many times as long as float32's."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
