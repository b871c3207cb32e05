"""Where frames come from: files and cameras, all through `open_source`.

Pictures arrive upright: a video's display matrix and a photograph's orientation are applied. Pixels that are not square stay
unchanged. A source that cannot be read is refused with one sentence, if possible when it is opened. A camera is opened when its
first frame is requested; if it is absent, the source waits for it. Imports numpy, av, cv2, `convnextpose` and `pipeline.types`.

    uri.py         the parts of a URI, and how to show it without its password
    source.py      the base class of sources
    files.py       finds out what kind of file a path is
    pictures.py    pictures and folders of pictures; their formats are in formats.py, heif.py and webp.py
    video.py       video files; their times are in stamps.py, lost frames in gaps.py
    decoding.py    the decoder: CPU or GPU
    flipped.py     rotation on request (`--flip`); orientation.py
    truncation.py  whether a file was cut short
    limits.py      the largest picture that is read
    live.py        the base class of live sources: states, reconnecting; timeouts.py, clocks.py
    ffmpeg.py      cameras that FFmpeg reads; options.py, failures.py, tls.py
    v4l2.py        cameras of this computer
    csi.py         a Jetson's cameras
    rtsp.py, http.py, udp.py   network cameras and streams
    replay.py      recordings played as a camera

To add a transport, add one file here and one line in SCHEMES.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from convnextpose.errors import SourceError
from pipeline.sources.csi import open_csi
from pipeline.sources.decoding import Decode
from pipeline.sources.files import open_file, open_file_uri
from pipeline.sources.flipped import FlippedSource
from pipeline.sources.http import open_http
from pipeline.sources.options import read_options
from pipeline.sources.orientation import UPRIGHT
from pipeline.sources.replay import as_camera, open_test
from pipeline.sources.rtsp import open_rtsp
from pipeline.sources.source import OnDamage, OpenOptions, Source
from pipeline.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts
from pipeline.sources.udp import open_rtp, open_udp
from pipeline.sources.uri import scheme_of, without_password
from pipeline.sources.v4l2 import device_of, open_v4l2
from pipeline.types import SourceInfo

__all__ = ["SCHEMES", "Decode", "OnDamage", "Source", "SourceInfo", "Timeouts", "open_source", "without_password"]

SCHEMES: dict[str, Callable[[str, OpenOptions], Source]] = {
    "file": open_file_uri,
    "v4l2": open_v4l2,
    "csi": open_csi,
    "rtsp": open_rtsp,
    "rtsps": open_rtsp,
    "http": open_http,
    "https": open_http,
    "udp": open_udp,
    "rtp": open_rtp,
    "test": open_test,
}
"""The functions that open URIs, by scheme."""


def open_source(
    uri: str | Path,
    *,
    stream: int | None = None,
    on_damage: OnDamage | str = OnDamage.STOP,
    live: bool = False,
    loop: bool = False,
    timeouts: Timeouts | None = None,
    options: Sequence[tuple[str, str]] = (),
    decode: Decode | str = Decode.CPU,
) -> Source:
    """Open a video file, a picture or a folder of pictures, by its path or as `file://`; or a camera by its URI.

    A camera is `0`, `usb:0` or `/dev/video0` on this computer, `csi://0` on a Jetson, and `rtsp://`, `rtsps://`, `http://`,
    `https://`, `udp://` or `rtp://` in a network; `test://` plays the demo clip in a loop. A camera need not be connected when
    this returns: its changes of state come between its frames.

    A folder gives its pictures in natural order (`img2` before `img10`). Other files, hidden files and subfolders are left out,
    and the source's notes say so. Pictures have no time of their own: time_s is their index.

    Args:
        uri: a `Path` is always a file or folder; so is a string, unless it begins with a scheme and `://`.
        stream: which of a file's video streams, from 0 in the file's own order; None: the default one, then the largest.
        on_damage: whether a video ends at damage (`stop`) or continues after it (`skip`).
        live: play a file as a camera: in real time, losing frames that are not taken in time.
        loop: play a file as a camera in a loop.
        timeouts: the timeouts of a live source.
        options: options of a camera, as in its address: pairs of a name and a value, such as ("size", "1280x720"). For a file
            only `flip` is allowed: a rotation or mirroring in addition to the file's own orientation.
        decode: what decodes video: `cpu`; or `nvdec`, an NVIDIA GPU. If that is not available, the CPU decodes, and the
            source's notes say why.

    Raises:
        SourceError: it does not exist, nothing in it can be read, its scheme is unknown, or an option is not valid.
    """
    asked, flip = tuple(options), UPRIGHT
    recorded = isinstance(uri, Path) or (device_of(uri) is None and scheme_of(uri) in (None, "file", "test"))
    if recorded:  # cameras handle `flip` themselves
        flip = read_options("", ("flip",), without_password(uri), [option for option in asked if option[0] == "flip"]).flip
        asked = tuple(option for option in asked if option[0] != "flip")
    open_options = OpenOptions(
        stream, OnDamage(on_damage), live or loop, loop, timeouts or DEFAULT_TIMEOUTS, asked, Decode(decode)
    )
    source = _open(uri, open_options)
    return source if flip == UPRIGHT else FlippedSource(source, flip)


def _open(uri: str | Path, open_options: OpenOptions) -> Source:
    device = device_of(uri) if isinstance(uri, str) else None
    if device is not None:
        return open_v4l2(device, open_options)
    scheme = scheme_of(uri) if isinstance(uri, str) else None
    if scheme in (None, "file"):
        read_options("", (), without_password(uri), open_options.options)
    if scheme is None and isinstance(uri, str):
        _refuse_half_a_uri(uri)
    if scheme in (None, "file") and open_options.live:
        recorded = replace(open_options, live=False, loop=False)
        return as_camera(lambda: _open_recording(uri, recorded), open_options)
    if scheme is None:
        return _open_recording(uri, open_options)
    if scheme not in SCHEMES:
        # Swapped letters are the most likely typo: rstp means rtsp, although it is more similar to rtp.
        near = [name for name in SCHEMES if sorted(name) == sorted(scheme)]
        near = near or difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0.7)
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise SourceError(
            f"expected a path or a URI that begins with {known}, received {without_password(uri)}"
            + (f": did you mean {near[0]}://?" if near else ": its scheme is unknown")
        )
    return SCHEMES[scheme](str(uri), open_options)


def _refuse_half_a_uri(name: str) -> None:
    """Refuse a name that is no file but resembles a camera's URI: `csi:0`, `rtsp:/host`, `usb`, `door=rtsp://host`.

    Raises:
        SourceError: it is such a name; suggests what was meant.
    """
    begin, inside = re.match(r"([A-Za-z0-9]+)(?::|//|$)", name), re.search(r"[A-Za-z0-9]+://.*", name)
    scheme = begin[1].lower() if begin else ""
    meant = "usb:0" if scheme == "usb" else f"{scheme}://" if scheme in SCHEMES else inside and without_password(inside[0])
    if meant and not os.path.exists(name):  # noqa: PTH110  # a path that is too long is an error to pathlib
        raise SourceError(
            f"expected a video, a picture, a folder of pictures or a camera, but there is no {without_password(name)}: did you "
            f"mean {meant}?"
        )


def _open_recording(uri: str | Path, open_options: OpenOptions) -> Source:
    if scheme_of(str(uri)) == "file":
        return open_file_uri(str(uri), open_options)
    return open_file(Path(uri), open_options.stream, open_options.on_damage, open_options.decode)
