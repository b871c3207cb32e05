"""Sources over HTTP: MJPEG, HLS, and files, which play as a camera would."""

from __future__ import annotations

from convnextpose.errors import SourceError
from pipeline.sources.failures import CameraLocation
from pipeline.sources.ffmpeg import Input
from pipeline.sources.options import read_options
from pipeline.sources.source import OpenOptions, Source
from pipeline.sources.tls import tls_options
from pipeline.sources.uri import NetworkUri

_KNOWN = ("flip", "ca", "verify")

_PROTOCOLS = "http,https,tls,tcp,crypto,httpproxy"
"""Protocols that a playlist or a redirection may use: the network, never a file of this computer."""


def open_http(uri: str, open_options: OpenOptions) -> Source:
    """A camera or a file by its web address.

    Raises:
        SourceError: the address or an option has no meaning.
    """
    parsed = NetworkUri.parse(uri)
    if not parsed.host:
        raise SourceError(f"expected {parsed.scheme}://host/path, received no host")
    options = read_options(parsed.options, _KNOWN, parsed.shown(), open_options.options)
    secure = parsed.scheme == "https"
    location = CameraLocation(parsed.shown(), parsed.host, parsed.port or (443 if secure else 80), tls=secure, ca=options.ca)
    settings = {"protocol_whitelist": _PROTOCOLS, **tls_options(options)}
    camera = Input(parsed.address(), location, options=settings, flip=options.flip, ends=True)
    return camera.source(open_options)
