"""C3D: marker trajectories for biomechanics programs, one file for each person.

Little-endian 32-bit numbers ("Intel, floating point"); y up, mm; a gap has the residual -1. A file holds 65,535 frames, as its
header counts them in 16 bits: a longer recording continues in the next one. Source: the C3D file format's user guide,
Motion Lab Systems.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.motion import MotionRecorder, compare
from pipeline.formats.names import joint_names

MAX_FRAMES = 65_535
BLOCK = 512
_INTEL, _KEY = 84, 0x50


@dataclass(frozen=True)
class _Content:
    joints_mm: NDArray[np.float64]  # [T, J, 3], NaN in gaps
    names: list[str]
    rate: float
    begin_s: float
    frames: str  # describes the poses


class C3dRecorder(MotionRecorder):
    """Writes `poses-ID.c3d` for each person."""

    def _save(self, tracks: Sequence[int]) -> Iterator[tuple[Path, _Content]]:
        names = joint_names(self._header.joint_set, "opensim" if self.export.names == "auto" else self.export.names)
        kind = "smoothed" if self._header.smooth else "raw"
        for track_id in tracks:
            motion = self.motion(track_id)
            told = f"{kind}, {'resampled' if motion.resampled else 'as captured'}"
            for number, begin in enumerate(range(0, len(motion.joints_mm), MAX_FRAMES)):
                part = motion.joints_mm[begin : begin + MAX_FRAMES]
                begin_s = (motion.first + begin) / motion.rate
                yield self.person_path(track_id, number), _Content(part, names, motion.rate, begin_s, told)

    def _write_part(self, part: Path, content: _Content) -> None:
        with part.open("wb") as file:
            file.write(_head(content))
            for begin in range(0, len(content.joints_mm), 4096):
                joints = content.joints_mm[begin : begin + 4096]
                seen = np.isfinite(joints[..., :1])
                values = np.concatenate([np.where(seen, joints, 0.0), np.where(seen, 0.0, -1.0)], axis=-1)
                file.write(values.astype("<f4").tobytes())
            file.write(bytes(-file.tell() % BLOCK))

    def _check_part(self, part: Path, content: _Content) -> None:
        names, rate, joints = read_c3d(part)
        if names != content.names or abs(rate - content.rate) > 1e-6 * rate:
            raise ValueError(f"expected {content.names} at {content.rate} a second, received {names} at {rate}")
        compare("positions, mm,", content.joints_mm.astype(np.float32).astype(np.float64), joints, 0.0)


def _parameter(group: int, name: str, kind: int, dimensions: Sequence[int], data: bytes) -> bytes:
    body = struct.pack("<bB", kind, len(dimensions)) + bytes(dimensions) + data + b"\0"
    return struct.pack("<bb", len(name), group) + name.encode() + struct.pack("<H", 2 + len(body)) + body


def _group(number: int, name: str) -> bytes:
    return struct.pack("<bb", len(name), -number) + name.encode() + struct.pack("<HB", 3, 0)


def _texts(group: int, name: str, texts: Sequence[str]) -> bytes:
    width = max((len(text) for text in texts), default=1)
    return _parameter(group, name, -1, (width, len(texts)), "".join(text.ljust(width) for text in texts).encode("ascii"))


def _text(group: int, name: str, text: str) -> bytes:
    return _parameter(group, name, -1, (len(text),), text.encode("ascii"))


def _numbers(group: int, name: str, kind: str, *values: float) -> bytes:
    dimensions = () if len(values) == 1 else (len(values),)
    return _parameter(group, name, {"H": 2, "f": 4}[kind], dimensions, struct.pack(f"<{len(values)}{kind}", *values))


def _head(content: _Content) -> bytes:
    """The header and the parameters, in whole blocks."""
    frames, points = len(content.joints_mm), len(content.names)

    def parameters(data_block: int) -> bytes:
        parts = [
            _group(1, "POINT"),
            _numbers(1, "USED", "H", points),
            _numbers(1, "SCALE", "f", -1.0),
            _numbers(1, "RATE", "f", content.rate),
            _numbers(1, "DATA_START", "H", data_block),
            _numbers(1, "FRAMES", "H", frames),
            _texts(1, "LABELS", content.names),
            _texts(1, "DESCRIPTIONS", content.names),
            _text(1, "UNITS", "mm"),
            _text(1, "X_SCREEN", "+X"),
            _text(1, "Y_SCREEN", "+Y"),
            _group(2, "ANALOG"),
            _numbers(2, "USED", "H", 0),
            _numbers(2, "GEN_SCALE", "f", 1.0),
            _numbers(2, "RATE", "f", 0.0),
            _group(3, "FORCE_PLATFORM"),
            _numbers(3, "USED", "H", 0),
            _group(4, "TRIAL"),
            _numbers(4, "ACTUAL_START_FIELD", "H", 1, 0),
            _numbers(4, "ACTUAL_END_FIELD", "H", frames, 0),
            _group(5, "CONVNEXTPOSE"),
            _numbers(5, "START_TIME", "f", content.begin_s),
            _text(5, "POSES", content.frames),
        ]
        return b"".join(parts) + b"\0\0"

    blocks = -(-(4 + len(parameters(0))) // BLOCK)
    section = struct.pack("<BBBB", 1, _KEY, blocks, _INTEL) + parameters(2 + blocks)
    words = struct.pack("<BBHHHHHfHHf", 2, _KEY, points, 0, 1, frames, 0, -1.0, 2 + blocks, 0, content.rate)
    return words.ljust(BLOCK, b"\0") + section.ljust(blocks * BLOCK, b"\0")


def read_c3d(path: Path) -> tuple[list[str], float, NDArray[np.float64]]:
    """Read a C3D file of this module: labels, rate, Hz, and positions [T, J, 3], mm; NaN in gaps.

    Raises:
        ValueError: it is not such a file.
    """
    data = path.read_bytes()
    _, key, points, _, first, last, _, scale, data_block, _, rate = struct.unpack_from("<BBHHHHHfHHf", data)
    if key != _KEY or scale >= 0 or data[BLOCK + 3] != _INTEL:
        raise ValueError("expected a C3D file of little-endian 32-bit numbers")
    labels: list[str] = []
    at, groups = BLOCK + 4, {}
    while data[at]:
        length, group = struct.unpack_from("<bb", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        at += 2 + length
        (step,) = struct.unpack_from("<H", data, at)
        if group < 0:
            groups[-group] = name
        elif (groups.get(group), name) == ("POINT", "LABELS"):
            width, count = data[at + 4], data[at + 5]
            texts = data[at + 6 : at + 6 + width * count].decode("ascii")
            labels = [texts[n * width : (n + 1) * width].rstrip() for n in range(count)]
        at += step
    frames = last - first + 1
    values = np.frombuffer(data, "<f4", frames * points * 4, (data_block - 1) * BLOCK).reshape(frames, points, 4)
    joints = values[..., :3].astype(np.float64)
    joints[values[..., 3] < 0] = np.nan
    return labels, float(rate), joints
