"""Timelines as a trace that Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.formats.base import FileRecorder
from pipeline.formats.files import GrowingFile, make_folder
from pipeline.timeline import STAGES, Timeline


class TraceRecorder(FileRecorder[Timeline]):
    """Writes timelines as Chrome trace events, one process for the run and one thread for each stage.

    The file is a JSON array written timeline by timeline; a killed run or a full disk leaves whole timelines without the
    closing bracket, which the viewers don't need. Source: the "Trace Event Format" document of the Chromium project ("X"
    complete events, "M" metadata, times in microseconds).
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """As for every recorder; the file's folder is made.

        Raises:
            OutputExistsError: it is there already and may not be replaced.
            SinkError: it cannot be written.
        """
        super().__init__(path, overwrite=overwrite)
        make_folder(path.parent, path.name)

    def _begin(self, item: Timeline) -> None:
        self._file = GrowingFile.make(self.path, overwrite=self._overwrite)

    def _add(self, item: Timeline) -> None:
        events: list[dict[str, object]] = []
        if not self.written:
            for number, stage in enumerate(STAGES):
                events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": stage}})
        for span in item.spans:
            common = {"pid": 1, "tid": STAGES.index(span.stage), "args": {"frame": item.index, "wait_us": span.wait_ns / 1e3}}
            times = {"ts": span.start_ns / 1e3, "dur": span.work_ns / 1e3}
            events.append({"ph": "X", "name": span.stage, "cat": "stage", **times, **common})
        lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
        self._file.append(((",\n" if self.written else "[\n") + lines).encode())
        self.written += 1

    def _finish(self) -> None:
        try:
            if not self._failed:
                self._file.append(b"\n]\n")
        finally:
            self._file.close(keep=self.written > 0)
