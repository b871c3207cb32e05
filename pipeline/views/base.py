"""The interface of views, and their addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from pipeline.types import PosedFrame

LOOPBACK = "127.0.0.1"
"""Where a view stands that nobody named a host for: reached from this machine only."""

_PLACE = re.compile(r"(?:(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]*)):)?(?P<port>\d+)")


class View(Protocol):
    """Something that shows posed frames while a run goes on. One thread at a time calls it.

    Attributes:
        name: what it is called in messages.
        address: where a user finds it.
    """

    name: str
    address: str

    def show(self, posed: PosedFrame, /) -> None:
        """Show a frame, in whatever time it takes: frames that come meanwhile are skipped, except the newest of each source.

        The frame's timeline holds the stages up to its poses. An exception ends the view, not the run.
        """
        ...

    def close(self) -> None:
        """Give back what it holds, within a second; calling it again does nothing."""
        ...


@dataclass(frozen=True)
class Place:
    """A host and a port.

    Attributes:
        host: a name or an address, without brackets.
        port: 0..65535; 0 for any free one.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        """Check the port."""
        if not 0 <= self.port <= 65535:
            raise ValueError(f"expected a port in 0..65535, received {self.port}")

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read `[HOST:]PORT`, an IPv6 address in brackets; without a host it is this machine's loopback.

        Raises:
            ValueError: it is none.
        """
        found = _PLACE.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"expected a place as [HOST:]PORT, for example 8080 or 0.0.0.0:8080, received {text!r}")
        return cls(found["six"] or found["host"] or LOOPBACK, int(found["port"]))

    def __str__(self) -> str:
        """As it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
