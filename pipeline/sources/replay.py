"""Recordings played as a camera, in real time: files with `--live`, and the demo clip as `test://`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from convnextpose import weights
from convnextpose.errors import SourceError
from pipeline.sources.files import open_file
from pipeline.sources.live import Connection, ConnectionLost, LiveSource, Picture, StreamEnded
from pipeline.sources.options import read_options
from pipeline.sources.source import OnDamage, OpenOptions, Source
from pipeline.sources.timeouts import Timeouts
from pipeline.types import State, UnreadableFrame

_PICTURES_RATE = 1.0
"""Assumed frame rate of pictures, which have no time of their own, frames a second."""


def open_test(uri: str, open_options: OpenOptions) -> Source:
    """The demo clip in a loop: a moving person, without a camera. The text after `test://` is only a name.

    Raises:
        SourceError: it has options.
    """
    if "?" in uri or "#" in uri:
        raise SourceError("expected test:// without options, received some: its size and rate are the demo clip's")
    read_options("", (), "test://", open_options.options)

    def again() -> Source:
        return open_file(weights.DEMO_CLIP, None, OnDamage.STOP)

    return LiveSource(uri, lambda timeouts: Replay(again, loop=True), timeouts=open_options.timeouts)


def as_camera(again: Callable[[], Source], open_options: OpenOptions) -> Source:
    """A recording played as a camera; `again` opens it.

    Raises:
        SourceError: it cannot be opened.
    """
    with again() as source:
        name, notes = source.info.id, source.info.notes

    def connect(timeouts: Timeouts) -> Connection:
        try:
            return Replay(again, loop=open_options.loop)
        except SourceError as error:
            raise ConnectionLost(str(error)) from error

    return LiveSource(name, connect, timeouts=open_options.timeouts, notes=notes)


class Replay:
    """Plays a recording; see `pipeline.sources.live.Connection`."""

    paced = True

    def __init__(self, again: Callable[[], Source], *, loop: bool) -> None:
        """Open it.

        Raises:
            SourceError: it cannot be opened.
        """
        self._again, self._loop = again, loop
        self._source = again()
        info = self._source.info
        self.frame_rate = info.frame_rate
        self.description = f"{info.width}x{info.height}, a recording"

    def __iter__(self) -> Iterator[Picture | str]:
        """The pictures; if it loops, without end.

        Raises:
            ConnectionLost: the recording broke.
            StreamEnded: the recording has ended.
        """
        offset = 0.0
        step = 1 / (self.frame_rate or _PICTURES_RATE)
        while True:
            last = 0.0
            try:
                begin_ns = time.perf_counter_ns()
                for frame in self._source:
                    if isinstance(frame, UnreadableFrame):
                        yield frame.reason
                    elif not isinstance(frame, State):
                        last = frame.time_s
                        decode_ns = time.perf_counter_ns() - begin_ns
                        yield Picture(frame.image, offset + last, time.time_ns(), "arrival", decode_ns)
                    begin_ns = time.perf_counter_ns()
            except SourceError as error:
                raise ConnectionLost(str(error)) from error
            self._source.close()
            if not self._loop:
                raise StreamEnded
            offset += last + step
            self._source = self._again()

    def abort(self) -> None:
        """Nothing to do: it never waits."""

    def close(self) -> None:
        """Close the file."""
        self._source.close()
