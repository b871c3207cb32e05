"""Poses as lines of JSON over TCP: a client gets a line for each frame, and before a source's first one its header."""

from __future__ import annotations

import contextlib
import socket
from socketserver import BaseRequestHandler

from pipeline.inbox import Board, Closed
from pipeline.status import RunStatus
from pipeline.types import PosedFrame
from pipeline.views.base import Place
from pipeline.views.messages import Shot
from pipeline.views.serving import LISTEN_S, SEND_TIME_S, Connections, has_left


def send_lines(connection: socket.socket, board: Board[Shot]) -> None:
    """Send lines until the run ends or the client leaves: each source's newest frame whenever the last line has gone out.

    Before a source's first frame comes its header.

    Raises:
        OSError: the client is gone, or did not take a line in SEND_TIME_S.
    """
    connection.settimeout(SEND_TIME_S)
    seen: dict[str, int] = {}
    with contextlib.suppress(Closed):
        while not has_left(connection):
            for source, posting in board.read(seen, LISTEN_S).items():
                shot = posting.item
                connection.sendall(shot.line() if source in seen else shot.head_line() + shot.line())
                seen[source] = posting.number


class LineView:
    """Serves lines of JSON over TCP. A view. It asks for no token: beyond loopback, everyone who reaches the port reads along.

    Args:
        place: where clients connect to.
        status: what the run is and does.

    Raises:
        SinkError: the place is taken, or not this machine's.
    """

    name = "tcp"

    def __init__(self, place: Place, status: RunStatus) -> None:
        self._status = status
        self._board: Board[Shot] = Board()
        self._server = _Server(place, self._board)
        self.address = f"tcp://{self._server.place}"

    def show(self, posed: PosedFrame, /) -> None:
        """Put a frame where the clients' threads find it."""
        source = posed.frame.source_id
        self._board.post(source, Shot(posed, self._status.headers[source]))

    def close(self) -> None:
        """Let every client go, and free the port."""
        self._board.close()
        self._server.close()


class _Server(Connections):
    def __init__(self, place: Place, board: Board[Shot]) -> None:
        self.board = board
        super().__init__(place, _Handler, "lines over TCP")


class _Handler(BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        send_lines(self.request, self.server.board)
