"""The base class of the views' servers: a thread for each connection, a limit of connections, and a close that never hangs."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from convnextpose.errors import SinkError
from pipeline.views.base import Endpoint

MAX_CONNECTIONS = 64
"""Largest number of connections; one more is refused."""

LISTEN_S = 0.25
"""Longest time that a connection's thread waits before it checks whether the run has ended, s."""

SEND_TIME_S = 20.0
"""A client that does not receive its data within this time, s, is disconnected."""


class Connections(ThreadingMixIn, TCPServer):
    """A server whose connections have a thread each.

    Attributes:
        refusal: the answer to a client beyond the limit.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False  # `close` waits for the threads itself, for a limited time
    request_queue_size = 32
    refusal = b""

    def __init__(self, endpoint: Endpoint, handler: Any, what: str) -> None:  # noqa: ANN401
        """Listen.

        Args:
            endpoint: the host and port.
            handler: a `socketserver` handler class, instantiated for each connection.
            what: what is served, for messages and the thread's name.

        Raises:
            SinkError: the endpoint is in use, or not this machine's.
        """
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closed = False
        try:
            self.address_family = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((endpoint.host, endpoint.port), handler)
        except OSError as error:
            raise SinkError(
                f"expected a free port of this machine for {what}, received {endpoint}: {error.strerror or error}; "
                f"name another port or host"
            ) from error
        self.endpoint = Endpoint(endpoint.host, int(self.server_address[1]))
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name=f"{what}: listening", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Free the port and wait for the threads; the sockets of threads that are stuck in sending are closed."""
        if self._closed:
            return
        self._closed = True
        self.shutdown()
        self.server_close()
        self._thread.join()
        deadline = time.monotonic() + 2 * LISTEN_S
        while (clients := self._list()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for request in clients:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        for thread in clients.values():
            thread.join(LISTEN_S)

    def server_bind(self) -> None:
        """Bind, without the look-up of the machine's full name that an HTTP server does, because it may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Serve one connection, in its thread."""
        with self._lock:
            self._clients[request] = threading.current_thread()
            welcome = len(self._clients) <= MAX_CONNECTIONS
        try:
            if welcome:
                request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
                super().process_request_thread(request, client_address)
            else:
                with contextlib.suppress(OSError):
                    request.settimeout(1.0)
                    request.sendall(self.refusal)
                self.shutdown_request(request)
        finally:
            with self._lock:
                del self._clients[request]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Log nothing: clients may disconnect at any time, and the request may contain the token."""

    def _list(self) -> dict[socket.socket, threading.Thread]:
        with self._lock:
            return dict(self._clients)


def has_left(connection: socket.socket) -> bool:
    """Whether a client that only receives has closed its side. Any data from it is discarded."""
    connection.settimeout(0.0)
    try:
        return not connection.recv(1024)
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(SEND_TIME_S)
