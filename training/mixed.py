"""What a device needs to train quickly: BF16 where it is computed natively (elsewhere it is emulated, tens of times slower than
FP32), and copies that it does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def computes_bfloat16(kind: str) -> bool:
    """Whether a kind of device ("cpu", "cuda", ...) has instructions for BF16; all except CPUs are assumed to have them."""
    if kind != "cpu":
        return True
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def mixed(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """A context in which convolutions and matrix products are in BF16, if this is wanted and the device computes it
    natively."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and computes_bfloat16(device.type))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. A GPU's work goes on meanwhile: copies from pageable memory would wait for all of it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
