"""BVH: a skeleton and its rotations, for animation programs; one file for each person, or for each part if there are gaps.

y up, cm; the hips have six channels, other bones `Zrotation Xrotation Yrotation`, degrees, which multiply in that order.
Source: the format of Biovision as described by Meredith and Maddock, "Motion Capture File Formats Explained" (2001).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.figure import ENDS_MM, Figure, places_mm
from pipeline.formats.motion import MotionRecorder, compare
from pipeline.formats.names import bone_names
from pipeline.rig import BONES

Array = NDArray[np.float64]

_ROTATIONS = "Zrotation Xrotation Yrotation"


@dataclass(frozen=True)
class _Content:
    figure: Figure
    names: dict[str, str]
    rate: float


class BvhRecorder(MotionRecorder):
    """Writes `poses-ID.bvh` for each person, and `poses-ID-2.bvh` after a gap."""

    def _save(self, tracks: Sequence[int]) -> Iterator[tuple[Path, _Content]]:
        names = bone_names("unity" if self.export.names == "auto" else self.export.names)
        for track_id in tracks:
            motion = self.motion(track_id)
            for number, stretch in enumerate(motion.stretches()):
                figure = Figure.of(motion.joints_mm[stretch], self._header.joint_set)
                yield self.person_path(track_id, number), _Content(figure, names, motion.rate)

    def _write_part(self, part: Path, content: _Content) -> None:
        figure = content.figure
        lines = ["HIERARCHY", *_hierarchy("Hips", figure, content.names, 0), "MOTION"]
        lines += [f"Frames: {len(figure.root_mm)}", f"Frame Time: {1 / content.rate:.8f}"]
        angles = [np.unwrap(euler_degrees(figure.local[bone]), axis=0, period=360) for bone in _order("Hips")]
        rows = np.concatenate([figure.root_mm / 10, *angles], axis=1)
        with part.open("w", encoding="ascii", newline="\n") as file:
            file.write("\n".join(lines) + "\n")
            for row in rows:
                file.write(" ".join(f"{value:.5f}" for value in row) + "\n")

    def _check_part(self, part: Path, content: _Content) -> None:
        names, frame_time_s, offsets, root, local = read_bvh(part)
        back = {name: bone for bone, name in content.names.items()}
        bones = [back[name] for name in names]
        if set(bones) != set(BONES) or abs(frame_time_s * content.rate - 1) > 1e-5:
            raise ValueError(f"expected the bones {list(back)} at {content.rate} frames a second, received {names}")
        read = places_mm(dict(zip(bones, offsets, strict=True)), root, dict(zip(bones, local, strict=True)))
        written = content.figure.places_mm()
        for bone in BONES:
            compare(f"places of {bone}, mm,", written[bone], read[bone], 0.01)


def _children(bone: str) -> list[str]:
    return [name for name, facts in BONES.items() if facts.parent == bone]


def _order(bone: str) -> list[str]:
    """The bones in the order of the hierarchy: each is followed by its descendants."""
    return [bone, *(name for child in _children(bone) for name in _order(child))]


def _hierarchy(bone: str, figure: Figure, names: dict[str, str], depth: int) -> list[str]:
    tab, root = "\t" * depth, not depth

    def offset(values: Sequence[float] | Array) -> str:
        return "OFFSET " + " ".join(f"{value / 10:.5f}" for value in values)

    channels = f"6 Xposition Yposition Zposition {_ROTATIONS}" if root else f"3 {_ROTATIONS}"
    lines = [f"{tab}{'ROOT' if root else 'JOINT'} {names[bone]}", f"{tab}{{"]
    lines += [f"{tab}\t{offset(figure.offsets_mm[bone])}", f"{tab}\tCHANNELS {channels}"]
    for child in _children(bone):
        lines += _hierarchy(child, figure, names, depth + 1)
    if bone in ENDS_MM:
        lines += [f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\t{offset(ENDS_MM[bone])}", f"{tab}\t}}"]
    return [*lines, f"{tab}}}"]


def euler_degrees(turns: Array) -> Array:
    """Rotations [T, 3, 3] as angles [T, 3], degrees, about z, x and y, multiplied in this order."""
    x = np.arcsin(np.clip(turns[:, 2, 1], -1, 1))
    z = np.arctan2(-turns[:, 0, 1], turns[:, 1, 1])
    y = np.arctan2(-turns[:, 2, 0], turns[:, 2, 2])
    angles: Array = np.degrees(np.stack([z, x, y], axis=1))
    return angles


def turns_of(angles: Array) -> Array:
    """Convert angles [T, 3], degrees, as from `euler_degrees`, to rotations [T, 3, 3]."""
    (cz, cx, cy), (sz, sx, sy) = np.cos(np.radians(angles)).T, np.sin(np.radians(angles)).T
    rows = [
        [cz * cy - sz * sx * sy, -sz * cx, cz * sy + sz * sx * cy],
        [sz * cy + cz * sx * sy, cz * cx, sz * sy - cz * sx * cy],
        [-cx * sy, sx, cx * cy],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def read_bvh(path: Path) -> tuple[list[str], float, list[Array], Array, list[Array]]:
    """Read a BVH file of this module: names of bones, frame time, s, offsets [3], mm, hips [T, 3], mm, rotations [T, 3, 3].

    Raises:
        ValueError: it is not such a file.
    """
    words, _, motion = path.read_text(encoding="ascii").partition("MOTION")
    names: list[str] = []
    offsets: list[Array] = []
    for line in words.split("\n"):
        parts = line.split()
        if parts[:1] in (["ROOT"], ["JOINT"]):
            names.append(parts[1])
        elif parts[:1] == ["OFFSET"] and len(offsets) < len(names):  # but not of an end site
            offsets.append(10 * np.array(parts[1:], np.float64))
    head, frame_time, *lines = motion.strip().split("\n")
    rows = np.array([line.split() for line in lines], np.float64)
    if len(rows) != int(head.split()[1]) or rows.shape[1] != 3 + 3 * len(names):
        raise ValueError(f"expected {head} of {3 + 3 * len(names)} numbers, received {list(rows.shape)}")
    local = [turns_of(rows[:, 3 + 3 * n : 6 + 3 * n]) for n in range(len(names))]
    return names, float(frame_time.split()[2]), offsets, 10 * rows[:, :3], local
