"""A source whose pictures are rotated or mirrored on request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType

import numpy as np

from pipeline.sources.orientation import Orientation
from pipeline.sources.source import Source
from pipeline.types import Frame, State, UnreadableFrame


class FlippedSource(Source):
    """Another source's frames, rotated or mirrored. It closes that source.

    Args:
        source: the other source.
        orientation: the rotation or mirroring, in addition to the file's own orientation.
    """

    def __init__(self, source: Source, orientation: Orientation) -> None:
        self._source = source
        self._orientation = orientation
        self.info = source.info
        if orientation.transpose:
            self.info = replace(source.info, width=source.info.height, height=source.info.width)

    def __iter__(self) -> Iterator[Frame | UnreadableFrame | State]:
        """The frames, rotated or mirrored."""
        for item in self._source:
            if isinstance(item, Frame):
                item = replace(item, image=np.ascontiguousarray(self._orientation.apply(item.image)))
            yield item

    def close(self) -> None:
        """Close the other source."""
        self._source.close()

    def __enter__(self) -> Source:
        """The source itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()
