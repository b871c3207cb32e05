"""Cameras on this machine with faults on demand: RTSP, MJPEG over HTTP, and a transport stream over UDP."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from convnextpose import weights
from pipeline.sources import open_source
from pipeline.types import Frame
from tests.pipeline.live.servers import Mjpeg, RtspServer, WebServer, encoded, free_port, send_udp


@dataclass
class Outage:
    """One fault of a camera.

    Attributes:
        camera: the camera's name.
        fault: its name.
        began, ended: its start and end, s since 1970; `ended` is 0 while it lasts.
        back_s: time from its end until the camera was live again, s; None if it was never lost, or is not live yet.
        lost: whether the run noticed.
    """

    camera: str
    fault: str
    began: float
    ended: float = 0.0
    back_s: float | None = None
    lost: bool = False


@dataclass
class Camera:
    """A camera with faults on demand.

    Attributes:
        name: its name in the file of sources.
        uri: its address.
        faults: its possible faults: each function starts the fault and returns a function that ends it.
        stop: stops the camera.
        outage: its current fault, or None.
    """

    name: str
    uri: str
    faults: dict[str, Callable[[], Callable[[], None]]]
    stop: Callable[[], None]
    outage: Outage | None = field(default=None)


def rtsp_camera(name: str, codec: str) -> Camera:
    """A network camera in its own process."""
    port, running = free_port(), []

    def start(size: str = "320x240", user: str = "", password: str = "") -> None:
        while running:
            running.pop().__exit__()
        running.append(RtspServer(port, size, codec, user, password).__enter__())

    def kill() -> Callable[[], None]:
        running[0].kill()
        return start

    def freeze() -> Callable[[], None]:
        running[0].signal(signal.SIGSTOP)
        return lambda: running[0].signal(signal.SIGCONT)

    def resize() -> Callable[[], None]:
        start("480x360")
        return start

    def lock() -> Callable[[], None]:
        start(user="somebody", password="else")
        return start

    start()
    return Camera(
        name,
        f"rtsp://127.0.0.1:{port}/live",
        {"killed": kill, "frozen": freeze, "another size": resize, "password": lock},
        lambda: running[0].__exit__(),
    )


class Switch:
    """A web camera's way of answering: as a camera, or with an error."""

    def __init__(self, pictures: list[bytes]) -> None:
        self.status: int | None = None
        self._pictures = pictures
        self.camera = Mjpeg()
        self.renew()

    def renew(self, **faults: Any) -> None:  # noqa: ANN401
        """Close the existing connections; new ones get a camera with these faults."""
        self.camera.stop.set()
        self.camera = Mjpeg(picture=lambda index: self._pictures[index % len(self._pictures)], rate=25, **faults)

    def __call__(self, request: Any) -> None:  # noqa: ANN401
        """Answer."""
        if self.status is not None:
            request.send_error(self.status)
        else:
            self.camera(request)


def web_camera(name: str, images: list[bytes]) -> Camera:
    """A camera that sends MJPEG over HTTP."""
    switch = Switch(images)
    server = WebServer(switch)
    server.__enter__()

    def well() -> None:
        switch.status = None
        switch.renew()

    def answers(status: int) -> Callable[[], Callable[[], None]]:
        def begin() -> Callable[[], None]:
            switch.status = status
            switch.camera.stop.set()
            return well

        return begin

    def misbehaves(**faults: Any) -> Callable[[], Callable[[], None]]:  # noqa: ANN401
        def begin() -> Callable[[], None]:
            switch.renew(**faults)
            return well

        return begin

    def mute() -> Callable[[], None]:
        switch.camera.mute.set()
        return switch.camera.mute.clear

    def stop() -> None:
        switch.camera.stop.set()
        server.__exit__()

    return Camera(
        name,
        f"{server.uri}/video",
        {
            "404": answers(404),
            "401": answers(401),
            "503": answers(503),
            "cut in a picture": misbehaves(cut_at=20),
            "half pictures": misbehaves(half_every=3),
            "flood": misbehaves(flood=10),
            "mute": mute,
        },
        stop,
    )


def udp_camera(name: str, recording: bytes, count: int) -> Camera:
    """A camera that sends a transport stream to a port."""
    port, running = free_port(), []

    def start(data: bytes = recording, rate: float = 25) -> None:
        end()
        stop = threading.Event()
        thread = threading.Thread(target=send_udp, args=(port, stop, data, rate, count), daemon=True)
        running.append((stop, thread))
        thread.start()

    def end() -> None:
        while running:
            stop, thread = running.pop()
            stop.set()
            thread.join()

    def silent() -> Callable[[], None]:
        end()
        return start

    def rubbish() -> Callable[[], None]:
        start(random.Random(0).randbytes(len(recording) // 188 * 188))
        return start

    def damaged() -> Callable[[], None]:
        data, dice = bytearray(recording), random.Random(1)
        for _ in range(len(data) // 2000):
            data[dice.randrange(len(data))] ^= 0x55
        start(bytes(data))
        return start

    def flood() -> Callable[[], None]:
        start(rate=250)
        return start

    start()
    faults = {"silent": silent, "rubbish": rubbish, "damaged": damaged, "flood": flood}
    return Camera(name, f"udp://@127.0.0.1:{port}", faults, end)


@contextlib.contextmanager
def cameras() -> Iterator[list[Camera]]:
    """Four cameras; the two whose pictures are up to us show the demo clip."""
    import cv2

    with open_source(weights.DEMO_CLIP) as clip:
        images = [cv2.resize(frame.image, (320, 240)) for frame in clip if isinstance(frame, Frame)]
    jpegs = [cv2.imencode(".jpg", image)[1].tobytes() for image in images]
    recording = encoded(len(images), 320, 240, pictures=images)
    made: list[Camera] = []
    try:
        made.append(rtsp_camera("door", "h264"))
        made.append(rtsp_camera("yard", "jpeg"))
        made.append(web_camera("hall", jpegs))
        made.append(udp_camera("roof", recording, len(images)))
        yield made
    finally:
        for camera in made:
            camera.stop()
