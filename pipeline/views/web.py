"""The page and its other paths, on one port: `/`, its socket, `/poses`, `/status` and `/metrics`.

Each connection has its own thread, so that a slow one does not block the others. The standard library's server handles HTTP.
Sockets are handled by the I/O-free part of `websockets`, so that the page, its socket and the endless lines of `/poses` can
share a port. A page gets the next message only after it has acknowledged the last one: otherwise messages would wait in
buffers on the way and be shown late.
"""

from __future__ import annotations

import json
import socket
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from convnextpose.errors import RuntimeUnavailableError
from pipeline.inbox import Closed, LatestItems
from pipeline.status import RunStatus
from pipeline.types import PosedFrame
from pipeline.views.base import Endpoint
from pipeline.views.guard import Guard
from pipeline.views.lines import send_lines
from pipeline.views.messages import FrameMessage, page_message, page_record, without_passwords
from pipeline.views.metrics import CONTENT_TYPE, metrics_text
from pipeline.views.serving import LISTEN_S, SEND_TIME_S, Connections

if TYPE_CHECKING:
    from websockets.server import ServerProtocol

MAX_CLIENT_BYTES = 1024
"""Longest message that a page may send."""

STATUS_EVERY_S = 1.0
"""Time between two messages with the status, s."""

PING_AFTER_S, LOST_AFTER_S = 15.0, 60.0
"""Seconds of silence after which a client gets a ping, and after which it is disconnected."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Headers of every answer: nothing is loaded from other hosts, no other page may embed or read it, no referrer is sent."""

TYPES = {"js": "text/javascript", "svg": "image/svg+xml", "css": "text/css", "html": "text/html"}
"""Types of the page's files, by suffix. `mimetypes` would use the system's settings, which may differ."""


class WebView:
    """A view that serves the page.

    Args:
        endpoint: host and port; beyond loopback a token is needed.
        status: the run's status.

    Attributes:
        name: `page`.
        address: the address to open in a browser, with the token if there is one. Show it, but do not log it.

    Raises:
        SinkError: the port is in use, or the host is not this machine.
        RuntimeUnavailableError: websockets is not installed.
    """

    name = "page"

    def __init__(self, endpoint: Endpoint, status: RunStatus) -> None:
        try:
            import websockets.server  # noqa: F401  # to fail now and not at the first client
        except ImportError as error:
            raise RuntimeUnavailableError(f"the page needs websockets: {error}; pip install websockets") from error
        self._status = status
        self._site = Site(endpoint, status)
        self._server = _Server(endpoint, self._site)
        token, host = self._site.guard.token, self._server.endpoint.host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        self.address = f"http://{Endpoint(host, self._server.endpoint.port)}/" + (f"?token={token}" if token else "")

    def show(self, posed: PosedFrame, /) -> None:
        """Post a frame for the clients' threads."""
        source = posed.frame.source_id
        self._site.latest.put(source, FrameMessage(posed, self._status.headers[source]))

    def close(self) -> None:
        """Disconnect all clients, and free the port."""
        self._site.latest.close()
        self._server.close()


class Site:
    """The state that all connections share.

    Attributes:
        latest: the newest frame of each source.
        guard: the access control.
        pages: the page's files by path; nothing else can be requested.
    """

    def __init__(self, endpoint: Endpoint, status: RunStatus) -> None:
        self.latest: LatestItems[FrameMessage] = LatestItems()
        self.guard = Guard(endpoint)
        folder = files("pipeline.views").joinpath("page")
        self.pages = {f"/{file.name}": file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in TYPES}
        self.pages["/"] = self.pages["/index.html"]
        self._status = status

    def hello(self) -> bytes:
        """The first message of a socket: the run's headers."""
        headers = self._status.headers.values()
        return json.dumps({"type": "hello", "sources": [page_record(header) for header in headers]}).encode()

    def status(self) -> dict[str, Any]:
        """The run's status, as JSON values."""
        record: dict[str, Any] = without_passwords(self._status.record())
        return record


class _Server(Connections):
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def __init__(self, endpoint: Endpoint, site: Site) -> None:
        self.site = site
        super().__init__(endpoint, _Handler, "the page")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10.0  # for receiving a request, s
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.close_connection = True  # a browser's idle connection would occupy a thread
        site = self.server.site
        try:
            url = urlsplit(self.path)
            token = parse_qs(url.query).get("token", [None])[-1]
        except ValueError:
            self._reply(HTTPStatus.BAD_REQUEST, "text/plain", b"expected a path\n")
            return
        refusal = site.guard.refuse(self.headers, token)
        if refusal is not None:
            self._reply(refusal[0], "text/plain", f"{refusal[1]}\n".encode())
        elif url.path == "/" and token is not None and site.guard.token is not None:
            # The token moves into a cookie, so that it leaves the address bar, the history and the referrer.
            cookie = f"{site.guard.cookie}={site.guard.token}; Path=/; HttpOnly; SameSite=Strict"
            self._reply(HTTPStatus.SEE_OTHER, "text/plain", b"", {"Location": "/", "Set-Cookie": cookie})
        elif url.path in site.pages:
            kind = "html" if url.path == "/" else url.path.rpartition(".")[2]
            self._reply(HTTPStatus.OK, TYPES[kind], site.pages[url.path])
        elif url.path == "/status":
            self._reply(HTTPStatus.OK, "application/json", json.dumps(site.status(), indent=2).encode() + b"\n")
        elif url.path == "/metrics":
            self._reply(HTTPStatus.OK, CONTENT_TYPE, metrics_text(site.status()).encode())
        elif url.path == "/poses":
            self._stream_lines()
        elif url.path == "/socket":
            self._open_socket()
        else:
            known = "expected /, /poses, /status or /metrics\n"
            self._reply(HTTPStatus.NOT_FOUND, "text/plain", known.encode())

    def _reply(self, status: HTTPStatus, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (HEADERS | (more or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _stream_lines(self) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        send_lines(self.connection, self.server.site.latest)

    def _open_socket(self) -> None:
        from websockets.datastructures import Headers
        from websockets.http11 import Request
        from websockets.server import ServerProtocol

        protocol = ServerProtocol(max_size=MAX_CLIENT_BYTES, logger=_quiet_logger())
        protocol.receive_data(Request(self.path, Headers(self.headers.items())).serialize())
        events = protocol.events_received()
        if not events:
            self._reply(HTTPStatus.BAD_REQUEST, "text/plain", b"expected a WebSocket's handshake\n")
            return
        protocol.send_response(protocol.accept(events[0]))  # type: ignore[arg-type]  # the first event is the request
        _PageSocket(self.connection, protocol, self.server.site).run()

    def version_string(self) -> str:
        return "convnextpose"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the first request of a page contains the token."""


class _PageSocket:
    """The server's side of one page's socket. Its thread runs `run`.

    The page sends `ack` after each message, `pause` and `resume`. While it is paused it gets only the status.
    """

    def __init__(self, connection: socket.socket, protocol: ServerProtocol, site: Site) -> None:
        self._socket = connection
        self._protocol = protocol
        self._site = site
        self._paused = False
        self._unacknowledged = False
        self._heard_at = self._pinged_at = time.monotonic()

    def run(self) -> None:
        from websockets.protocol import State

        self._flush()
        if self._protocol.state is not State.OPEN:
            return
        self._protocol.send_text(self._site.hello())
        self._flush()
        seen: dict[str, int] = {}
        status_at = -STATUS_EVERY_S
        while self._protocol.state is State.OPEN:
            self._listen(LISTEN_S if self._unacknowledged or self._paused else 0.0)
            self._send_ping_if_silent()
            try:
                if self._unacknowledged:
                    self._site.latest.read(seen, 0.0)  # only to check whether it is closed
                    continue
                news = self._site.latest.read(seen, 0.0 if self._paused else LISTEN_S)
            except Closed:
                self._protocol.send_close(1001, "the run has ended")
                self._flush()
                return
            news = {} if self._paused else news
            is_due = time.monotonic() - status_at >= STATUS_EVERY_S
            if news or is_due:
                seen |= {source: numbered.number for source, numbered in news.items()}
                status_at = time.monotonic() if is_due else status_at
                messages = [numbered.item for numbered in news.values()]
                self._protocol.send_binary(page_message(messages, self._site.status() if is_due else None))
                self._unacknowledged = True
                self._flush()

    def _listen(self, timeout_s: float) -> None:
        from websockets.frames import Frame, Opcode

        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(4096)
        except (TimeoutError, BlockingIOError):
            return
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._heard_at = time.monotonic()
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                word = bytes(event.data)
                self._unacknowledged = self._unacknowledged and word != b"ack"
                self._paused = word == b"pause" if word in (b"pause", b"resume") else self._paused
        self._flush()

    def _send_ping_if_silent(self) -> None:
        now = time.monotonic()
        if now - self._heard_at > LOST_AFTER_S:
            raise TimeoutError("the client has gone silent")
        if now - max(self._heard_at, self._pinged_at) > PING_AFTER_S:
            self._pinged_at = now
            self._protocol.send_ping(b"")
            self._flush()

    def _flush(self) -> None:
        self._socket.settimeout(SEND_TIME_S)
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)
            else:  # the protocol's signal that it has finished
                self._socket.shutdown(socket.SHUT_WR)


def _quiet_logger() -> Any:  # noqa: ANN401
    """A disabled logger: websockets logs whole requests, which contain the token."""
    import logging

    logger = logging.Logger("websockets")
    logger.disabled = True
    return logger
