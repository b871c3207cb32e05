"""Shared by the tests of views: a page's client, plain requests, and a view on a free port."""

import contextlib
import json
import socket
import struct
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
from websockets.sync.client import connect

from pipeline.status import RunStatus
from pipeline.views.base import Endpoint
from pipeline.views.web import WebView
from tests.pipeline.formats.samples import posed
from tests.pipeline.test_streams import Pictures, stream

WAIT_S = 20
SILENCE_S = 0.6


def status_of(*sources):
    """The status of a run of these sources that has not begun."""
    return RunStatus([stream(Pictures(0, source)) for source in sources])


def frame(index, source="walk.mp4", **options):
    """A frame whose grey level encodes its index."""
    made = posed(index, **options)
    return replace(made, frame=replace(made.frame, source_id=source))


def index_in(image):
    """The indices that a picture of `posed` may have, by its grey level."""
    return 40 + image * 7 % 180


@contextlib.contextmanager
def web(host="127.0.0.1", sources=("walk.mp4",), status=None, port=0):
    view = WebView(Endpoint(host, port), status or status_of(*sources))
    try:
        yield view
    finally:
        view.close()


def port_of(view):
    return int(view.address.split("?")[0].rstrip("/").rpartition(":")[2])


class Client:
    """A page without a screen.

    Attributes:
        hello: the first message that it received.
    """

    def __init__(self, view, **options):
        opened = connect(f"ws://127.0.0.1:{port_of(view)}/socket", compression=None, max_size=None, **options)
        self._open = contextlib.ExitStack()
        self.socket = self._open.enter_context(opened)
        self.hello = json.loads(self.socket.recv(WAIT_S))

    def receive(self, wait_s=WAIT_S):
        """The next message: its head, and its pictures."""
        data = self.socket.recv(wait_s)
        (length,) = struct.unpack_from(">I", data)
        head, at, pictures = json.loads(data[4 : 4 + length]), 4 + length, []
        for record in head["frames"]:
            jpeg = np.frombuffer(data[at : at + record["jpeg_bytes"]], np.uint8)
            pictures.append(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))
            at += record["jpeg_bytes"]
        assert at == len(data)
        return head, pictures

    def frames(self, wait_s=WAIT_S):
        """The frames of the next message that has any; messages before it are acknowledged, this one is not."""
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            head, _ = self.receive(max(0.01, deadline - time.monotonic()))
            if head["frames"]:
                return head["frames"]
            self.say("ack")
        raise TimeoutError

    def say(self, word):
        self.socket.send(word)

    def hears_nothing(self):
        try:
            self.socket.recv(SILENCE_S)
        except TimeoutError:
            return True
        return False

    def vanish(self):
        """Disconnect without closing the protocol."""
        self.socket.socket.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self):
        self._open.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def ask(view, path="/", method="GET", headers=None, address="127.0.0.1"):
    """Send a request exactly as given, without an HTTP library: the status, the headers in lower case, and the body."""
    port = port_of(view)
    lines = {"Host": f"localhost:{port}"} | (headers or {})
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    with socket.create_connection((address, port), WAIT_S) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode("utf-8", "surrogateescape"))
        data = b""
        while part := connection.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), {n.lower(): v for n, _, v in (line.partition(": ") for line in rest)}, body


def no_new_threads(before):
    deadline = time.monotonic() + 60
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not left
