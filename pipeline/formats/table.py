"""The formats by name: to add one, write its recorder and give it a line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convnextpose.errors import SinkError
from pipeline.formats.base import PoseRecorder, Recorder
from pipeline.formats.files import make_folder
from pipeline.formats.mp4 import Mp4Recorder
from pipeline.formats.ndjson import NdjsonRecorder
from pipeline.formats.npz import NpzRecorder
from pipeline.formats.segments import SegmentedRecorder, Segments
from pipeline.types import RunHeader


@dataclass(frozen=True)
class Format:
    """A format of results.

    Attributes:
        file_name: what its file is called.
        recorder: what writes it.
        help: what is in it, in a few words.
    """

    file_name: str
    recorder: type[PoseRecorder]
    help: str

    @property
    def needs_picture(self) -> bool:
        """Whether it wants the drawn picture."""
        return self.recorder.needs_picture


FORMATS = {
    "mp4": Format("poses.mp4", Mp4Recorder, "the pictures with the poses drawn over them"),
    "ndjson": Format("poses.ndjson", NdjsonRecorder, "the poses as lines of JSON, whole lines at every moment"),
    "npz": Format("poses.npz", NpzRecorder, "the poses as NumPy arrays, written at the end"),
}
"""Every format that results can be written in."""

DEFAULT_FORMATS = ("mp4", "ndjson", "npz")
"""What a run writes unless it is told otherwise."""


def open_recorders(
    out: Path, formats: Sequence[str], header: RunHeader, *, overwrite: bool = False, segments: Segments | None = None
) -> list[Recorder]:
    """The recorders of a folder, one for each format; the folder is made. Other files in it stay.

    With `segments` they write into a folder of its own for each of them.

    Raises:
        OutputExistsError: one of the files is there already and may not be replaced; nothing was touched.
        SinkError: a format is not known, or the folder cannot be made or written to.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise SinkError(f"expected formats among {', '.join(FORMATS)}; received {', '.join(map(repr, unknown))}")
    chosen = [FORMATS[name] for name in dict.fromkeys(formats)]
    recorders: list[Recorder] = []
    for kind in chosen:
        if segments is None:
            recorders.append(kind.recorder(out / kind.file_name, header, overwrite=overwrite))
        else:
            recorders.append(SegmentedRecorder(out / kind.file_name, kind.recorder, header, segments, overwrite=overwrite))
    make_folder(out, "the results")
    return recorders
