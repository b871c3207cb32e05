"""Poses as lines of JSON: a header, then one line for each frame, as `records.py` describes them."""

from __future__ import annotations

from convnextpose.world import World
from pipeline.formats.base import PoseRecorder
from pipeline.formats.files import GrowingFile
from pipeline.formats.records import frame_record, header_record, to_line
from pipeline.types import PosedFrame


class NdjsonRecorder(PoseRecorder):
    """Writes `poses.ndjson`. Each line is written at once: a killed run or a full disk leaves whole lines."""

    def _begin(self, item: PosedFrame) -> None:
        self._head = to_line(header_record(self._header))
        self._world: World | None = None
        self._file = GrowingFile.make(self.path, overwrite=self._overwrite)

    def _add(self, item: PosedFrame) -> None:
        self._file.append(self._head + to_line(frame_record(item, self._header, self._world)))
        self._head, self._world = b"", item.world
        self.written += 1

    def _finish(self) -> None:
        self._file.close(keep=self.written > 0)
