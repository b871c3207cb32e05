"""Cameras of this computer under Linux: `0`, `usb:0`, `/dev/video0`, `v4l2:///dev/video0`; and which there are.

Source of the structures and numbers: the kernel's include/uapi/linux/videodev2.h.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convnextpose.errors import SourceError
from pipeline.sources.failures import CameraLocation
from pipeline.sources.ffmpeg import Input
from pipeline.sources.options import read_options
from pipeline.sources.source import OpenOptions, Source

_KNOWN = ("size", "rate", "format", "flip")

_SHORT = re.compile(r"(?:usb:)?(\d{1,3})(\?.*)?|(/dev/video\d{1,3})(\?.*)?")

_CAPTURE, _DISCRETE, _MOST_MODES = 1, 1, 64
_ENUM_FORMATS, _ENUM_SIZES, _ENUM_INTERVALS = (2, 64), (74, 44), (75, 52)


def device_of(text: str) -> str | None:
    """The `v4l2://` address of a camera with a short name, with its options, or None if it is not a camera's name."""
    found = _SHORT.fullmatch(text)
    if found is None:
        return None
    number, options, path, more = found.groups()
    return f"v4l2://{path or f'/dev/video{number}'}{options or more or ''}"


def open_v4l2(uri: str, open_options: OpenOptions) -> Source:
    """A camera of this computer by its device.

    Raises:
        SourceError: the device's name or an option has no meaning.
    """
    device, _, query = uri.split("://", 1)[1].partition("?")
    device = device if device.startswith("/") else f"/dev/{device}"
    if device == "/dev/":
        raise SourceError("expected v4l2:///dev/video0 with the camera's device, received none")
    options = read_options(query, _KNOWN, device, open_options.options)
    settings = {"ts": "default"}  # the kernel's time stamps
    if options.size is not None:
        settings["video_size"] = "{}x{}".format(*options.size)
    if options.rate is not None:
        settings["framerate"] = f"{options.rate:g}"
    if options.format is not None:
        settings["input_format"] = options.format
    camera = Input(
        device, CameraLocation(device, device=device), format="v4l2", options=settings, kernel_clock=True, flip=options.flip
    )
    return camera.source(open_options)


@dataclass(frozen=True)
class Mode:
    """A mode of a camera.

    Attributes:
        format: its pixel format or codec, four letters.
        width, height: px.
        rates: frames a second, the largest first; empty if unknown.
    """

    format: str
    width: int
    height: int
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Device:
    """A camera that is plugged in.

    Attributes:
        path: its device.
        name: its own name.
        modes: its modes.
        problem: why its modes are unknown, or empty.
    """

    path: str
    name: str
    modes: tuple[Mode, ...]
    problem: str = ""


def list_devices(folder: Path = Path("/sys/class/video4linux")) -> list[Device]:
    """The connected cameras. Devices without pictures, such as a camera's second one for metadata, are not listed."""
    entries = sorted(folder.glob("video*"), key=lambda entry: int(re.sub(r"\D", "", entry.name) or 0))
    devices = []
    for entry in entries:
        try:
            name = (entry / "name").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            name = "unknown"
        path = f"/dev/{entry.name}"
        try:
            modes = modes_of(path)
        except OSError as error:
            devices.append(Device(path, name, (), f"{path} cannot be opened: {error.strerror or error}"))
            continue
        if modes:
            devices.append(Device(path, name, modes))
    return devices


def modes_of(path: str) -> tuple[Mode, ...]:
    """The modes of a device's camera; empty if it is not a camera.

    Raises:
        OSError: it cannot be opened.
    """
    file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        modes = []
        for answer in _ask(file, _ENUM_FORMATS, struct.pack("=I", _CAPTURE)):
            (pixels,) = struct.unpack_from("=I", answer, 44)
            code = pixels.to_bytes(4, "little").decode("ascii", "replace").strip()
            for size in _ask(file, _ENUM_SIZES, struct.pack("=I", pixels)):
                kind, width, second, _, _, height = struct.unpack_from("=6I", size, 8)
                if kind == _DISCRETE:
                    height = second
                else:  # a range: smallest, largest and step of the width, then of the height; the largest is reported
                    width = second
                modes.append(Mode(code, width, height, tuple(_rates(file, pixels, width, height))))
        return tuple(modes)
    finally:
        os.close(file)


def _rates(file: int, pixels: int, width: int, height: int) -> list[float]:
    rates = set()
    for answer in _ask(file, _ENUM_INTERVALS, struct.pack("=III", pixels, width, height)):
        numerator, denominator = struct.unpack_from("=II", answer, 20)  # for a range, its shortest interval
        if numerator:
            rates.add(round(denominator / numerator, 3))
    return sorted(rates, reverse=True)


def _ask(file: int, request: tuple[int, int], after_index: bytes) -> Iterator[bytes]:
    """The answers of a driver to an enumeration, from number 0 until there are no more."""
    import fcntl  # Linux only

    number, size = request
    code = 3 << 30 | size << 16 | ord("V") << 8 | number  # _IOWR('V', number, size)
    for index in range(_MOST_MODES):
        buffer = bytearray((struct.pack("=I", index) + after_index).ljust(size, b"\0"))
        try:
            fcntl.ioctl(file, code, buffer)
        except OSError:
            return
        yield bytes(buffer)
