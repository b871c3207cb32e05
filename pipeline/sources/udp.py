"""Streams without a connection: MPEG transport streams by `udp://`, and `rtp://`."""

from __future__ import annotations

import io
from typing import IO

from convnextpose.errors import SourceError
from pipeline.sources.failures import CameraLocation
from pipeline.sources.ffmpeg import Input
from pipeline.sources.options import read_options
from pipeline.sources.source import OpenOptions, Source
from pipeline.sources.uri import NetworkUri

_ANALYZED_US = 500_000
"""How much of a stream FFmpeg analyses before it gives pictures, us."""

_RTP_NAMES = {"h264": (96, "H264/90000"), "h265": (96, "H265/90000"), "jpeg": (26, "JPEG/90000")}
"""Payload type and name of a codec in RTP (RFC 6184, RFC 7798, RFC 2435); senders use 96 for codecs without a fixed number."""


def open_udp(uri: str, open_options: OpenOptions) -> Source:
    """A transport stream that is sent to a port of this machine, or to a multicast group: `udp://@:5000`, `udp://@239.0.0.1:5000`.

    Raises:
        SourceError: the address or an option has no meaning.
    """
    parsed = _parse(uri)
    options = read_options(parsed.options, ("flip",), parsed.shown(), open_options.options)
    settings = {"analyzeduration": str(_ANALYZED_US), "overrun_nonfatal": "1"}
    camera = Input(parsed.address(), CameraLocation(parsed.shown()), format="mpegts", options=settings, flip=options.flip)
    return camera.source(open_options)


def open_rtp(uri: str, open_options: OpenOptions) -> Source:
    """An RTP stream that is sent to a port of this machine, or to a multicast group: `rtp://@:5004#codec=h264`.

    Raises:
        SourceError: the address or an option has no meaning.
    """
    parsed = _parse(uri)
    options = read_options(parsed.options, ("codec", "latency", "flip"), parsed.shown(), open_options.options)
    number, name = _RTP_NAMES[options.codec or "h264"]
    host = parsed.host or "0.0.0.0"  # accepts data for any address of this machine
    six = "IP6" if ":" in host else "IP4"
    description = (
        f"v=0\r\no=- 0 0 IN {six} {host}\r\ns=-\r\nc=IN {six} {host}\r\nt=0 0\r\n"
        f"m=video {parsed.port} RTP/AVP {number}\r\na=rtpmap:{number} {name}\r\n"
    ).encode()

    settings = {"protocol_whitelist": "rtp,udp", "analyzeduration": str(_ANALYZED_US)}
    if options.latency_ms is not None:
        settings["max_delay"] = str(options.latency_ms * 1000)
    camera = Input(
        lambda: _Description(description), CameraLocation(parsed.shown()), format="sdp", options=settings, flip=options.flip
    )
    return camera.source(open_options)


class _Description:
    """A session's description (SDP, RFC 8866) in memory; see `pipeline.sources.ffmpeg.Feed`."""

    def __init__(self, text: bytes) -> None:
        self.file: IO[bytes] = io.BytesIO(text)

    def end(self) -> None:
        """Nothing writes it."""

    def why(self) -> str | None:
        """Nothing is known."""
        return None


def _parse(uri: str) -> NetworkUri:
    parsed = NetworkUri.parse(uri)
    if not parsed.port:
        raise SourceError(f"expected {parsed.scheme}://@:port, received {parsed.shown()}: name the port that it is sent to")
    return parsed
