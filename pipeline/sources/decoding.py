"""The decoder of a video: the CPU, or NVDEC, the decoder of an NVIDIA GPU, through the FFmpeg in PyAV's wheel.

With NVDEC pictures come back to the CPU's memory as NV12, and everything else is the same. If NVDEC is not available, the CPU
decodes, and the source's notes say why.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Any

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
"""Keywords of `av.open` that accept titles in an old encoding. From version 19 on PyAV accepts them and refuses the keyword."""

_CUDA = "cuda"
"""FFmpeg's name for NVDEC's pictures and for the device that decodes them."""


class Decode(str, Enum):
    """What decodes videos."""

    CPU = "cpu"
    NVDEC = "nvdec"


def accelerator(decode: Decode) -> HWAccel | None:
    """The `hwaccel` of `av.open`: None if the CPU decodes, on request or because there is no NVDEC."""
    return _accelerator() if decode is Decode.NVDEC and why_no_nvdec() is None else None


def decoding_notes(decode: Decode, decoder: av.VideoCodecContext | None = None) -> tuple[str, ...]:
    """Notes of a source for which NVDEC was requested: what decodes, and why.

    Args:
        decode: the requested decoder.
        decoder: the decoder of the last picture; None if nothing is open yet.
    """
    if decode is not Decode.NVDEC:
        return ()
    why = why_no_nvdec()
    if why is None and decoder is not None:
        if decoder.pix_fmt == _CUDA:
            return ("the GPU decodes it (NVDEC)",)
        why = f"this GPU does not decode this kind of {decoder.name}"
    return () if why is None else (f"the CPU decodes it, as NVDEC cannot be used: {why}",)


@cache
def why_no_nvdec() -> str | None:
    """Why NVDEC cannot be used on this machine, or None if it can; checked once."""
    if _CUDA not in hwdevices_available():
        return "this build of PyAV has no CUDA, unlike the wheels from PyPI: pip install --force-reinstall av"
    try:
        av.CodecContext.create("h264", "r", hwaccel=_accelerator())
    except av.FFmpegError as error:
        reason = (error.strerror or str(error)).lower()
        return f"FFmpeg finds no NVIDIA GPU with its driver ({reason}); look at `nvidia-smi`"
    return None


def _accelerator() -> HWAccel:
    # In a separate CUDA context. FFmpeg accepts the primary one, which engines use, only if nothing uses it yet, and then
    # makes every thread that waits for the GPU sleep.
    return HWAccel(_CUDA, allow_software_fallback=True)
