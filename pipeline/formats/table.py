"""The formats by name. To add one, write its recorder and add a line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from convnextpose.errors import SinkError
from pipeline.formats.base import PoseRecorder, Recorder
from pipeline.formats.bvh import BvhRecorder
from pipeline.formats.c3d import C3dRecorder
from pipeline.formats.csv_table import CsvRecorder
from pipeline.formats.files import make_folder
from pipeline.formats.glb import GlbRecorder
from pipeline.formats.motion import Export, MotionRecorder
from pipeline.formats.mp4 import Mp4Recorder
from pipeline.formats.ndjson import NdjsonRecorder
from pipeline.formats.npz import NpzRecorder
from pipeline.formats.parquet import ParquetRecorder
from pipeline.formats.segments import SegmentedRecorder, Segments
from pipeline.formats.trc import TrcRecorder
from pipeline.types import RunHeader


@dataclass(frozen=True)
class Format:
    """A format of results.

    Attributes:
        file_name: the name of its file.
        recorder: the class that writes it.
        help: its contents, in a few words.
    """

    file_name: str
    recorder: type[PoseRecorder]
    help: str

    @property
    def needs_picture(self) -> bool:
        """Whether it wants the drawn picture."""
        return self.recorder.needs_picture

    @property
    def is_motion(self) -> bool:
        """Whether it contains people's motion in the world, for other programs."""
        return issubclass(self.recorder, MotionRecorder)

    def open(self, path: Path, header: RunHeader, *, overwrite: bool = False, export: Export | None = None) -> PoseRecorder:
        """Open a recorder of this format."""
        if issubclass(self.recorder, MotionRecorder):
            return self.recorder(path, header, overwrite=overwrite, export=export)
        return self.recorder(path, header, overwrite=overwrite)


FORMATS = {
    "mp4": Format("poses.mp4", Mp4Recorder, "the pictures with the poses drawn over them"),
    "ndjson": Format("poses.ndjson", NdjsonRecorder, "the poses as lines of JSON, whole lines at every moment"),
    "npz": Format("poses.npz", NpzRecorder, "the poses as NumPy arrays, written at the end"),
    "trc": Format("poses.trc", TrcRecorder, "markers for OpenSim, a file for each person"),
    "c3d": Format("poses.c3d", C3dRecorder, "markers for biomechanics programs, a file for each person"),
    "bvh": Format("poses.bvh", BvhRecorder, "animated bones for animation programs, a file for each person"),
    "glb": Format("poses.glb", GlbRecorder, "everybody as animated bones, for Blender and browsers (glTF)"),
    "csv": Format("poses.csv", CsvRecorder, "one long table of joints"),
    "parquet": Format("poses.parquet", ParquetRecorder, "the same table, with types and compressed"),
}
"""All formats of results, by name."""

DEFAULT_FORMATS = ("mp4", "ndjson", "npz")
"""The formats that a run writes by default."""


def open_recorders(
    out: Path,
    formats: Sequence[str],
    header: RunHeader,
    *,
    overwrite: bool = False,
    segments: Segments | None = None,
    export: Export | None = None,
) -> list[Recorder]:
    """The recorders of a folder, one for each format; the folder is made. Other files in it are not changed.

    With `segments` they write into a separate folder for each segment. `export` says how motion files are written.

    Raises:
        OutputExistsError: one of the files exists already and may not be replaced; nothing was touched.
        SinkError: a format is not known, or the folder cannot be made or written to.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise SinkError(f"expected formats among {', '.join(FORMATS)}; received {', '.join(map(repr, unknown))}")
    chosen = [FORMATS[name] for name in dict.fromkeys(formats)]
    recorders: list[Recorder] = []
    for kind in chosen:
        if segments is None:
            recorders.append(kind.open(out / kind.file_name, header, overwrite=overwrite, export=export))
        else:
            opened = partial(kind.open, export=export)
            needs_picture = kind.needs_picture
            recorders.append(
                SegmentedRecorder(
                    out / kind.file_name, opened, header, segments, overwrite=overwrite, needs_picture=needs_picture
                )
            )
    make_folder(out, "the results")
    return recorders
