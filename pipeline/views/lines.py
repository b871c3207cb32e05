"""Poses as lines of JSON over TCP: a client gets a line for each frame, and each source's header before its first frame."""

from __future__ import annotations

import contextlib
import socket
from socketserver import BaseRequestHandler

from pipeline.inbox import Closed, LatestItems
from pipeline.status import RunStatus
from pipeline.types import PosedFrame
from pipeline.views.base import Endpoint
from pipeline.views.messages import FrameMessage
from pipeline.views.serving import LISTEN_S, SEND_TIME_S, Connections, has_left


def send_lines(connection: socket.socket, latest: LatestItems[FrameMessage]) -> None:
    """Send lines until the run ends or the client disconnects; after each line, the newest frame of each source is next.

    A source's header is sent before its first frame.

    Raises:
        OSError: the client is gone, or did not receive a line within SEND_TIME_S.
    """
    connection.settimeout(SEND_TIME_S)
    seen: dict[str, int] = {}
    with contextlib.suppress(Closed):
        while not has_left(connection):
            for source, numbered in latest.read(seen, LISTEN_S).items():
                message = numbered.item
                connection.sendall(message.line() if source in seen else message.header_line() + message.line())
                seen[source] = numbered.number


class LineView:
    """A view that serves lines of JSON over TCP. It has no token: beyond loopback, anyone who reaches the port can read them.

    Args:
        endpoint: the host and port that clients connect to.
        status: the run's status.

    Raises:
        SinkError: the port is in use, or the host is not this machine.
    """

    name = "tcp"

    def __init__(self, endpoint: Endpoint, status: RunStatus) -> None:
        self._status = status
        self._latest: LatestItems[FrameMessage] = LatestItems()
        self._server = _Server(endpoint, self._latest)
        self.address = f"tcp://{self._server.endpoint}"

    def show(self, posed: PosedFrame, /) -> None:
        """Post a frame for the clients' threads."""
        source = posed.frame.source_id
        self._latest.put(source, FrameMessage(posed, self._status.headers[source]))

    def close(self) -> None:
        """Disconnect all clients, and free the port."""
        self._latest.close()
        self._server.close()


class _Server(Connections):
    def __init__(self, endpoint: Endpoint, latest: LatestItems[FrameMessage]) -> None:
        self.latest = latest
        super().__init__(endpoint, _Handler, "lines over TCP")


class _Handler(BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        send_lines(self.request, self.server.latest)
