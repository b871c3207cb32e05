"""BF16 on devices that compute it natively: elsewhere it is emulated, tens of times slower than FP32."""

from __future__ import annotations

import torch


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
