"""The interface of views, and their addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from pipeline.types import PosedFrame

LOOPBACK = "127.0.0.1"
"""The default host of a view: it can be reached only from this machine."""

_ENDPOINT = re.compile(r"(?:(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]*)):)?(?P<port>\d+)")


class View(Protocol):
    """Shows or sends posed frames during a run. One thread at a time calls it.

    Attributes:
        name: its name in messages.
        address: its address for the user.
    """

    name: str
    address: str

    def show(self, posed: PosedFrame, /) -> None:
        """Show a frame. This may take any time: meanwhile frames are skipped, except the newest of each source.

        The frame's timeline contains the stages up to its poses. An exception ends the view, not the run.
        """
        ...

    def close(self) -> None:
        """Release its resources, within a second; calling it again does nothing."""
        ...


@dataclass(frozen=True)
class Endpoint:
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
    def parse(cls, text: str) -> Endpoint:
        """Read `[HOST:]PORT`, an IPv6 address in brackets; without a host it is this machine's loopback.

        Raises:
            ValueError: it has another form.
        """
        found = _ENDPOINT.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"expected an address as [HOST:]PORT, for example 8080 or 0.0.0.0:8080, received {text!r}")
        return cls(found["six"] or found["host"] or LOOPBACK, int(found["port"]))

    def __str__(self) -> str:
        """The form used in URLs."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
