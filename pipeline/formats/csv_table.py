"""CSV: one long table of all people, with a row for each joint of each pose, at the frames' own times."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.formats.motion import MotionRecorder, Track, compare
from pipeline.formats.names import joint_names

COLUMNS = ("source", "frame", "time_s", "track_id", "joint", "x_mm", "y_mm", "z_mm", "x_px", "y_px", "score")
"""The table's columns: positions in the world, mm, and in the picture, px."""


class CsvRecorder(MotionRecorder):
    """Writes `poses.csv`."""

    def _save(self, tracks: Sequence[int]) -> Iterator[tuple[Path, Any]]:
        yield self.path, tracks

    def names(self) -> list[str]:
        """The names of the joints."""
        return joint_names(self._header.joint_set, "own" if self.export.names == "auto" else self.export.names)

    def _write_part(self, part: Path, content: Sequence[int]) -> None:
        names = self.names()
        with part.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for track_id in content:
                track = self.track(track_id)
                for at in range(len(track.time_s)):
                    head = (self._header.source, track.frame_index[at], f"{track.time_s[at]:.6f}", track_id)
                    for name, mm, px, score in zip(
                        names, track.joints_mm[at], track.joints_px[at], track.scores[at], strict=True
                    ):
                        place = (f"{mm[0]:.3f}", f"{mm[1]:.3f}", f"{mm[2]:.3f}", f"{px[0]:.3f}", f"{px[1]:.3f}")
                        table.writerow((*head, name, *place, f"{score:.4f}"))

    def _check_part(self, part: Path, content: Sequence[int]) -> None:
        names = self.names()
        with part.open(encoding="utf-8", newline="") as file:
            table = csv.reader(file)
            if tuple(next(table)) != COLUMNS:
                raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
            for track_id in content:
                track = self.track(track_id)
                rows = [next(table) for _ in range(len(track.time_s) * len(names))]
                if {row[3] for row in rows} - {str(track_id)} or [row[4] for row in rows[: len(names)]] != names:
                    raise ValueError(f"expected the joints of person {track_id}")
                places = np.array([row[5:8] for row in rows], np.float64)
                compare("positions, mm,", track.joints_mm.reshape(-1, 3), places, 0.001)
            if next(table, None) is not None:
                raise ValueError("expected no more rows")


def columns_of(track: Track, source: str, names: Sequence[str]) -> dict[str, Any]:
    """One person's part of the table, column by column."""
    joints = len(names)
    count = len(track.time_s) * joints
    return {
        "source": [source] * count,
        "frame": np.repeat(track.frame_index, joints),
        "time_s": np.repeat(track.time_s, joints),
        "track_id": np.full(count, track.track_id),
        "joint": list(names) * len(track.time_s),
        **dict(zip(("x_mm", "y_mm", "z_mm"), track.joints_mm.reshape(-1, 3).T, strict=True)),
        **dict(zip(("x_px", "y_px"), track.joints_px.reshape(-1, 2).T, strict=True)),
        "score": track.scores.reshape(-1),
    }
