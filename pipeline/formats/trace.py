"""Timelines as a trace that Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.formats.base import FileRecorder
from pipeline.formats.files import GrowingFile, make_folder
from pipeline.timeline import STAGES, Timeline


class TraceRecorder(FileRecorder[Timeline]):
    """Writes timelines as Chrome trace events: one process for each source, one thread for each stage and each format written.

    The file is a JSON array written timeline by timeline; a killed run or a full disk leaves complete timelines without the
    closing bracket, which viewers do not need. Source: the "Trace Event Format" document of the Chromium project ("X"
    complete events, "M" metadata, times in microseconds).
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """As for every recorder; the file's folder is made.

        Raises:
            OutputExistsError: it exists already and may not be replaced.
            SinkError: it cannot be written.
        """
        super().__init__(path, overwrite=overwrite)
        make_folder(path.parent, path.name)

    def _begin(self, item: Timeline) -> None:
        self._file = GrowingFile.make(self.path, overwrite=self._overwrite)
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[int, str | None], int] = {}

    def _add(self, item: Timeline) -> None:
        events: list[dict[str, object]] = []
        process = self._processes.setdefault(item.source_id, len(self._processes) + 1)
        if process == len(self._processes) and (process, None) not in self._threads:
            self._threads[process, None] = 0
            events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": item.source_id}})
        for span in item.spans:
            name = f"{span.stage} {span.part}" if span.part else span.stage
            thread = self._threads.get((process, name))
            if thread is None:
                thread = self._threads[process, name] = len(self._threads)
                common: dict[str, object] = {"ph": "M", "pid": process, "tid": thread}
                events.append({**common, "name": "thread_name", "args": {"name": name}})
                events.append({**common, "name": "thread_sort_index", "args": {"sort_index": STAGES.index(span.stage)}})
            times = {"ts": span.start_ns / 1e3, "dur": span.work_ns / 1e3}
            facts = {"frame": item.index, "wait_us": span.wait_ns / 1e3}
            events.append({"ph": "X", "name": name, "cat": span.stage, "pid": process, "tid": thread, **times, "args": facts})
        lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
        self._file.append(((",\n" if self.written else "[\n") + lines).encode())
        self.written += 1

    def _finish(self) -> None:
        try:
            if not self._failed:
                self._file.append(b"\n]\n")
        finally:
            self._file.close(keep=self.written > 0)
