"""The options of a live source: after a `?` for devices, after a `#` for network sources, whose query belongs to the server."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from convnextpose.errors import SourceError
from pipeline.sources.orientation import FLIPS, UPRIGHT, Orientation


@dataclass(frozen=True)
class Options:
    """A user's options of a camera; each scheme supports some of them.

    Attributes:
        size: width and height, px.
        rate: frames a second.
        format: requested pixel format or codec of a device, by FFmpeg's name, such as mjpeg or yuyv422.
        codec: the codec of an RTP stream without a description: h264, h265 or jpeg.
        flip: how its pictures are rotated or mirrored.
        transport: `tcp` or `udp`.
        latency_ms: how long to wait for packets that arrive out of order, ms.
        ca: file of certificates that are trusted in addition to the system's.
        verify: whether a TLS server's certificate is checked.
    """

    size: tuple[int, int] | None = None
    rate: float | None = None
    format: str | None = None
    codec: str | None = None
    flip: Orientation = UPRIGHT
    transport: str | None = None
    latency_ms: int | None = None
    ca: str | None = None
    verify: bool = True


def _size(text: str) -> tuple[int, int]:
    width, height = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text).groups()  # type: ignore[union-attr]  # the caller expects it
    return int(width), int(height)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1000:
        raise ValueError
    return value


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        return dict(zip(words, words, strict=True))[text]

    return read


def _word(text: str) -> str:
    return re.fullmatch(r"\w{1,32}", text)[0]  # type: ignore[index]


_READ: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "size": ("size", "as 1280x720", _size),
    "rate": ("rate", "as frames a second", _positive),
    "format": ("format", "as a name such as mjpeg or yuyv422", _word),
    "codec": ("codec", "as h264, h265 or jpeg", _one_of("h264", "h265", "jpeg")),
    "flip": ("flip", f"as one of {', '.join(FLIPS)}", FLIPS.__getitem__),
    "transport": ("transport", "as tcp or udp", _one_of("tcp", "udp")),
    "latency": ("latency_ms", "as milliseconds", lambda text: round(_positive(text))),
    "ca": ("ca", "as a file of certificates", str),
    "verify": ("verify", "as yes or no", lambda text: _one_of("yes", "no")(text) == "yes"),
}


def read_options(text: str, known: Sequence[str], shown: str, asked: Sequence[tuple[str, str]] = ()) -> Options:
    """Read the options in `name=value&name=value`; they override those that were given for all sources.

    Args:
        text: the options in the source's address.
        known: the names that the scheme supports.
        shown: the source's name, for messages.
        asked: names and values for all sources; the scheme must support each of them.

    Raises:
        SourceError: the scheme does not support an option, or its value is not valid; the value is not repeated.
    """
    options = Options()
    for name, value in [*asked, *parse_qsl(text, keep_blank_values=True)]:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            more = f": did you mean {near[0]}?" if near else ""
            received = name if (name, value) in asked else "another one"  # text in an address may be a password
            among = f"options of {shown} among {', '.join(known)}" if known else f"no options of {shown}"
            raise SourceError(f"expected {among}, received {received}{more}")
        field, how, read = _READ[name]
        try:
            options = replace(options, **{field: read(value)})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError(f"expected the option {name} of {shown} {how}, received something else") from None
    return options
