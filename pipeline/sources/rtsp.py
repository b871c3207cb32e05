"""Network cameras: `rtsp://` and, through TLS, `rtsps://`."""

from __future__ import annotations

from convnextpose.errors import SourceError
from pipeline.sources.failures import CameraLocation
from pipeline.sources.ffmpeg import Input
from pipeline.sources.options import Options, read_options
from pipeline.sources.source import OpenOptions, Source
from pipeline.sources.tls import tls_options
from pipeline.sources.uri import NetworkUri

_KNOWN = ("transport", "latency", "flip", "ca", "verify")

_ANALYZED_US = 100_000
"""How much of a stream FFmpeg analyses before it gives pictures, us: its default of 5 s delays the first one by 2 s."""


def open_rtsp(uri: str, open_options: OpenOptions) -> Source:
    """A network camera by its RTSP address.

    Raises:
        SourceError: the address or an option has no meaning.
    """
    parsed = NetworkUri.parse(uri)
    if not parsed.host:
        raise SourceError(f"expected {parsed.scheme}://host/path, received no host")
    options = read_options(parsed.options, _KNOWN, parsed.shown(), open_options.options)
    secure = parsed.scheme == "rtsps"
    port = parsed.port or (322 if secure else 554)
    location = CameraLocation(parsed.shown(), parsed.host, port, tls=secure, ca=options.ca)
    camera = Input(
        parsed.address(), location, format="rtsp", options=_ffmpeg_options(options, secure=secure), flip=options.flip
    )
    return camera.source(open_options)


def _ffmpeg_options(options: Options, *, secure: bool) -> dict[str, str]:
    latency = {} if options.latency_ms is None else {"max_delay": str(options.latency_ms * 1000)}
    return {
        "rtsp_transport": options.transport or "tcp",
        "allowed_media_types": "video",
        "analyzeduration": str(_ANALYZED_US),
        **latency,
        **(tls_options(options) if secure else {}),
    }
