"""Cameras on a Jetson's ribbon cable: `csi://0`, read from a GStreamer process through a pipe.

NVIDIA's camera service can be used only through GStreamer's `nvarguscamerasrc`. A separate process needs no Python bindings,
and if it hangs in the service it is killed and started again.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO

from convnextpose.errors import SourceError
from pipeline.sources.failures import CameraLocation
from pipeline.sources.ffmpeg import FfmpegConnection, Input
from pipeline.sources.live import ConnectionLost, LiveSource
from pipeline.sources.options import Options, read_options
from pipeline.sources.orientation import UPRIGHT, Orientation
from pipeline.sources.source import OpenOptions, Source
from pipeline.sources.timeouts import Timeouts
from pipeline.sources.uri import brief

GSTREAMER = "gst-launch-1.0"

_ENDS_WITHIN_S = 0.5
"""Time in which a process should exit after its output has ended, s."""

_FLIP_METHODS = {
    UPRIGHT: 0, Orientation.turned(1): 1, Orientation.turned(2): 2, Orientation.turned(3): 3,
    Orientation(flip=1): 4, Orientation(flip=0): 6,
}  # fmt: skip
"""Numbers of `nvvidconv`'s flip-method: rotations by quarter turns anticlockwise, then mirrorings."""


def open_csi(uri: str, open_options: OpenOptions) -> Source:
    """A CSI camera by its number.

    Raises:
        SourceError: it is not a number, or an option is not valid.
    """
    number, _, query = uri.split("://", 1)[1].partition("?")
    if not (number.isdecimal() and len(number) < 4):
        raise SourceError(f"expected csi://0 with the camera's number, received csi://{brief(number)}")
    options = read_options(query, ("size", "rate", "flip"), f"csi://{number}", open_options.options)
    name = f"csi://{number}"
    return LiveSource(name, GstreamerCamera(name, csi_source(int(number), options)).connect, timeouts=open_options.timeouts)


def csi_source(number: int, options: Options) -> list[str]:
    """The camera's part of the GStreamer pipeline: pictures as I420 in the computer's memory."""
    width, height = options.size or (1280, 720)
    rate = f"{round((options.rate or 30) * 1000)}/1000"
    caps = f"video/x-raw(memory:NVMM),width={width},height={height},framerate={rate}"
    flip = f"flip-method={_FLIP_METHODS[options.flip]}"
    return ["nvarguscamerasrc", f"sensor-id={number}", "!", caps, "!", "nvvidconv", flip, "!", "video/x-raw,format=I420"]


class GstreamerCamera:
    """A camera that a GStreamer pipeline reads.

    Args:
        name: its name in messages.
        source: the pipeline's first elements, up to raw pictures.
    """

    def __init__(self, name: str, source: Sequence[str]) -> None:
        self._name = name
        self._source = source

    def connect(self, timeouts: Timeouts) -> FfmpegConnection:
        """Start the process and read its output.

        Raises:
            ConnectionLost: GStreamer is missing, or the camera sends nothing.
        """
        if shutil.which(GSTREAMER) is None:
            raise ConnectionLost(f"{GSTREAMER} is not installed: apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good")
        return Input(self._start, CameraLocation(self._name), format="matroska").connect(timeouts)

    def _start(self) -> _Process:
        return _Process([GSTREAMER, "-q", *self._source, "!", "matroskamux", "streamable=true", "!", "fdsink"])


class _Process:
    """A GStreamer process whose output is read; see `pipeline.sources.ffmpeg.Feed`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody reads would fill up; closed by `why`
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._said)
        assert self._process.stdout is not None
        self.file: IO[bytes] = self._process.stdout

    def end(self) -> None:
        """Kill the process: one that hangs in the camera service reacts to nothing else."""
        self._process.kill()
        self._process.wait()

    def why(self) -> str | None:
        """GStreamer's error message, if the process ended by itself."""
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            return None
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()
        said = next((line.strip() for line in lines if "error" in line.lower() or "erroneous" in line), None)
        if said is None:
            return None
        return (
            f"GStreamer says `{said[:200]}`: check the cable, and start the camera service (systemctl restart nvargus-daemon)"
        )
