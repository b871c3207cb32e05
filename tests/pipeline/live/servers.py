"""Cameras for the tests, on loopback: real servers that can be killed, frozen, and restarted with another picture."""

import contextlib
import http.server
import io
import itertools
import os
import socket
import subprocess
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

SYSTEM_PYTHON = "/usr/bin/python3"
"""The system's Python, for which GStreamer's Python bindings are installed."""


def open_files():
    """Number of files that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def until_closed(files, within_s=60.0):
    """Wait until this process has at most `files` files open."""
    end = time.monotonic() + within_s
    while open_files() > files:
        assert time.monotonic() < end, f"{open_files() - files} files are still open"
        time.sleep(0.02)


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def picture(index, width=160, height=120):
    """A picture whose brightness encodes its number, modulo 16."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, : width // 2] = 8 + 14 * (index % 16)
    return image


def jpeg(index, width=160, height=120):
    return cv2.imencode(".jpg", picture(index, width, height))[1].tobytes()


def encoded(count, width=160, height=120, rate=25, codec="libx264", container="mpegts", first=0, pictures=None):
    """A recording in memory, of `picture`s or of the given ones."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as target:
        stream = target.add_stream(codec, rate=rate, options={"preset": "ultrafast", "tune": "zerolatency", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for index in range(count):
            image = picture(first + index, width, height) if pictures is None else pictures[index]
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = round((first + index) * 90_000 / rate), Fraction(1, 90_000)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return buffer.getvalue()


# RTSP, in a separate process that can be killed and frozen.

_RTSP = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtspServer
Gst.init(None)
port, size, codec, user, password, certificate = sys.argv[1:7]
width, height = size.split("x")
encode = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 threads=1 ! rtph264pay name=pay0 config-interval=1",
    "jpeg": "jpegenc ! rtpjpegpay name=pay0",
}[codec]
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( videotestsrc is-live=true ! video/x-raw,format=I420,width={width},height={height},framerate=20/1 ! {encode} )"
)
factory.set_shared(True)
if user or certificate:
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    if user:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    else:
        auth.set_default_token(token)
    if certificate:
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(certificate))
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("user", "media.factory.access", True)
    permissions.add_permission_for_role("user", "media.factory.construct", True)
    factory.set_permissions(permissions)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


def rtsp_missing():
    """Why no RTSP server can be started here, or None."""
    if not os.access(SYSTEM_PYTHON, os.X_OK):
        return f"no {SYSTEM_PYTHON}"
    code = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; Gst.init(None);"
        "assert all(Gst.ElementFactory.find(e) for e in ('x264enc', 'rtph264pay', 'rtpjpegpay', 'videotestsrc'))"
    )
    done = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, check=False)
    needed = (
        "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly python3-gi"
    )
    return None if done.returncode == 0 else f"needs Debian's {needed}"


class RtspServer:
    """A network camera; a context manager."""

    def __init__(self, port=None, size="160x120", codec="h264", user="", password="", certificate=""):
        self.port = port or free_port()
        self._arguments = [size, codec, user, password, str(certificate)]

    @property
    def uri(self):
        return f"rtsp://127.0.0.1:{self.port}/live"

    def __enter__(self):
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", _RTSP, str(self.port), *self._arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if self.process.stdout.readline() != b"ready\n":
            self.__exit__()
            raise OSError("the RTSP server does not start")
        return self

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_):
        self.kill()
        self.process.stdout.close()


# HTTP, in threads.


class WebServer:
    """A web server on loopback; a function writes the answer to each request. A context manager."""

    def __init__(self, answer, port=0):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(OSError):
                    answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class Mjpeg:
    """The answers of a camera that sends MJPEG until `stop` is set; other events make it misbehave."""

    def __init__(self, width=160, height=120, rate=25, cut_at=None, half_every=None, flood=1, picture=None):
        self.rate, self.cut_at, self.half_every = rate * flood, cut_at, half_every
        self.picture = picture or (lambda index: jpeg(index, width, height))
        self.stop, self.mute = threading.Event(), threading.Event()
        self.sent = self.connections = 0

    def __call__(self, request):
        self.connections += 1
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        cut_at = self.cut_at
        for index in range(10**6):
            while self.mute.is_set() and not self.stop.is_set():
                time.sleep(0.02)
            if self.stop.is_set():
                return
            data = self.picture(index)
            if self.half_every and index % self.half_every == self.half_every - 1:
                data = data[: len(data) * 3 // 4]
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            if index == cut_at:
                request.wfile.write(head + data[: len(data) // 2])
                return
            request.wfile.write(head + data + b"\r\n")
            self.sent += 1
            time.sleep(1 / self.rate)


class MuteServer:
    """A server that accepts connections but sends nothing; a context manager."""

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._taken = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                self._taken.append(self._socket.accept()[0])

    def __exit__(self, *_):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for each in self._taken:
            each.close()
        self._thread.join(5)


def send_udp(port, stop, data, rate=25, count=25):
    """Send a transport stream repeatedly to a port, at an even rate, until `stop` is set."""
    packets = [data[at : at + 7 * 188] for at in range(0, len(data), 7 * 188)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not stop.is_set():
            for packet in packets:
                sender.sendto(packet, ("127.0.0.1", port))
                if stop.wait(count / rate / len(packets)):
                    return


# A live source as tests see it.


class Watcher:
    """Iterates over a source in its own thread, and keeps everything that it gives; a context manager that closes it.

    Attributes:
        closing_s: how long closing may take.
    """

    closing_s = 30.0

    def __init__(self, source):
        self.source = source
        self.frames, self.unreadable, self.states = [], [], []
        self.error = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        from pipeline.types import State, UnreadableFrame

        try:
            for item in self.source:
                if isinstance(item, State):
                    self.states.append(item)
                elif isinstance(item, UnreadableFrame):
                    self.unreadable.append(item)
                else:
                    self.frames.append(item)
        except Exception as error:  # noqa: BLE001
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        end = time.monotonic() + self.closing_s
        self.source.close()
        assert time.monotonic() < end, "closing must not wait"
        self._thread.join(max(0.1, end - time.monotonic()))
        assert not self._thread.is_alive(), "the iteration ends when the source is closed"
        assert self.error is None, self.error
        indices = sorted([f.index for f in self.frames] + [f.index for f in self.unreadable])
        assert indices == list(range(len(indices))), "numbered without gaps"
        times = [f.time_s for f in self.frames]
        assert all(a < b for a, b in itertools.pairwise(times)), "times grow"

    def until(self, condition, within_s=60.0):
        """Wait for a condition; the limit allows for a loaded machine."""
        end = time.monotonic() + within_s
        while not condition(self):
            assert time.monotonic() < end, f"still waiting, {len(self.frames)} frames, states {self.states}"
            assert self._thread.is_alive() or condition(self), f"it has ended: {self.states}, {self.error}"
            time.sleep(0.01)

    def until_state(self, state, cause="", count=1, within_s=60.0):
        def reached(_):
            return sum(s.state == state and cause in s.cause for s in list(self.states)) >= count

        self.until(reached, within_s)

    def until_frames(self, more, within_s=60.0):
        wanted = len(self.frames) + more
        self.until(lambda _: len(self.frames) >= wanted, within_s)
