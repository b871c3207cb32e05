"""Poses as lines of JSON over TCP: a client connects, and gets a header for each source and then a line for each frame."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from socketserver import BaseRequestHandler

from pipeline.formats.records import to_line
from pipeline.inbox import Board, Closed
from pipeline.status import RunStatus
from pipeline.types import PosedFrame, RunHeader
from pipeline.views.base import Place
from pipeline.views.messages import Shot, head_record
from pipeline.views.serving import LISTEN_S, SEND_TIME_S, Connections, has_left


def send_lines(connection: socket.socket, headers: Sequence[RunHeader], board: Board[Shot]) -> None:
    """Send lines until the run ends or the client leaves: each source's newest frame whenever the last line has gone out.

    Raises:
        OSError: the client is gone, or did not take a line in SEND_TIME_S.
    """
    connection.settimeout(SEND_TIME_S)
    connection.sendall(b"".join(to_line(head_record(header)) for header in headers))
    seen: dict[str, int] = {}
    with contextlib.suppress(Closed):
        while not has_left(connection):
            for source, posting in board.read(seen, LISTEN_S).items():
                seen[source] = posting.number
                connection.sendall(posting.item.line())


class LineView:
    """Serves lines of JSON over TCP. A view. It asks for no token: beyond loopback, everyone who reaches the port reads along.

    Args:
        place: where clients connect to.
        headers: what the run is, for each source.
        status: not used.

    Raises:
        SinkError: the place is taken, or not this machine's.
    """

    name = "tcp"

    def __init__(self, place: Place, headers: Sequence[RunHeader], status: RunStatus) -> None:
        self._headers = {header.source: header for header in headers}
        self._board: Board[Shot] = Board()
        self._server = _Server(place, headers, self._board)
        self.address = f"tcp://{self._server.place}"

    def show(self, posed: PosedFrame, /) -> None:
        """Put a frame where the clients' threads find it."""
        source = posed.frame.source_id
        self._board.post(source, Shot(posed, self._headers[source]))

    def close(self) -> None:
        """Let every client go, and free the port."""
        self._board.close()
        self._server.close()


class _Server(Connections):
    def __init__(self, place: Place, headers: Sequence[RunHeader], board: Board[Shot]) -> None:
        self.headers, self.board = headers, board
        super().__init__(place, _Handler, "lines over TCP")


class _Handler(BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        send_lines(self.request, self.server.headers, self.server.board)
