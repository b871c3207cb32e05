"""TRC: marker trajectories as OpenSim reads them, one file for each person.

Tab-separated text; y up, mm, frame numbers from 1, times of the recording. An empty cell is a gap. Source: OpenSim's
documentation of "Marker (.trc) Files"; what OpenSim 4.6 refuses was found by experiment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.motion import Motion, MotionRecorder, compare
from pipeline.formats.names import joint_names


@dataclass(frozen=True)
class _Content:
    motion: Motion
    names: list[str]
    file_name: str


class TrcRecorder(MotionRecorder):
    """Writes `poses-ID.trc` for each person."""

    def _save(self, tracks: Sequence[int]) -> Iterator[tuple[Path, _Content]]:
        names = joint_names(self._header.joint_set, "opensim" if self.export.names == "auto" else self.export.names)
        for track_id in tracks:
            path = self.person_path(track_id)
            yield path, _Content(self.motion(track_id), names, path.name)

    def _write_part(self, part: Path, content: _Content) -> None:
        motion, names = content.motion, content.names
        frames, rate = len(motion.joints_mm), f"{motion.rate:.10g}"
        with part.open("w", encoding="ascii", newline="\n") as file:
            file.write(f"PathFileType\t4\t(X/Y/Z)\t{_ascii(content.file_name)}\n")
            file.write("DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames\n")
            file.write(f"{rate}\t{rate}\t{frames}\t{len(names)}\tmm\t{rate}\t1\t{frames}\n")
            file.write("Frame#\tTime\t" + "".join(f"{_ascii(name)}\t\t\t" for name in names) + "\n")
            file.write("\t\t" + "".join(f"X{n}\tY{n}\tZ{n}\t" for n in range(1, len(names) + 1)) + "\n\n")
            for number, joints in enumerate(motion.joints_mm):
                cells = "".join("\t" if np.isnan(value) else f"{value:.3f}\t" for value in joints.ravel())
                file.write(f"{number + 1}\t{(motion.first + number) / motion.rate:.6f}\t{cells}\n")

    def _check_part(self, part: Path, content: _Content) -> None:
        names, times, joints = read_trc(part)
        if names != [_ascii(name) for name in content.names]:
            raise ValueError(f"expected markers {content.names}, received {names}")
        motion = content.motion
        compare("times, s,", (motion.first + np.arange(len(motion.joints_mm))) / motion.rate, times, 1e-6)
        compare("positions, mm,", motion.joints_mm, joints, 0.001)


def read_trc(path: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Read a TRC file: names of the markers, times [T], s, and positions [T, J, 3], mm; NaN in gaps.

    Raises:
        ValueError: it is not such a file.
    """
    lines = path.read_text(encoding="ascii").split("\n")
    names = [name for name in lines[3].split("\t")[2:] if name]
    facts = dict(zip(lines[1].split("\t"), lines[2].split("\t"), strict=True))
    rows = [line.split("\t") for line in lines[6:] if line]
    if facts["Units"] != "mm" or int(facts["NumMarkers"]) != len(names) or int(facts["NumFrames"]) != len(rows):
        raise ValueError(f"expected {facts['NumFrames']} rows of {facts['NumMarkers']} markers in mm, received {len(rows)}")
    cells = np.array([[float(cell or "nan") for cell in row[1 : 2 + 3 * len(names)]] for row in rows])
    cells = cells.reshape(len(rows), 1 + 3 * len(names))
    return names, cells[:, 0], cells[:, 1:].reshape(len(rows), len(names), 3)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\t", " ")
