"""Where frames come from: files today, cameras later, all through `open_source`.

Pictures arrive upright: a video's display matrix and a photograph's orientation are applied. Pixels that are not square stay as
they are stored. What cannot be read is refused with one sentence, when it is opened where that can be known. It imports numpy,
av, cv2, `convnextpose.errors` and `pipeline.types`.

    uri.py         what a URI is, and how to name it without its password
    source.py      what every source is
    files.py       a path: what kind of file it is
    pictures.py    pictures and folders of pictures; their formats are in formats.py, heif.py and webp.py
    video.py       video files; their times are in stamps.py
    truncation.py  whether a file was cut short
    limits.py      how large a picture may be

A camera is one more file here and one more line in SCHEMES.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from convnextpose.errors import SourceError
from pipeline.sources.files import open_file, open_file_uri
from pipeline.sources.source import OnDamage, Source
from pipeline.sources.uri import scheme_of, without_password
from pipeline.types import SourceInfo

__all__ = ["SCHEMES", "OnDamage", "Source", "SourceInfo", "open_source", "without_password"]

SCHEMES: dict[str, Callable[[str, int | None, OnDamage], Source]] = {
    "file": open_file_uri,
}
"""What opens the URIs of a scheme: a function of the URI, the number of the video stream or None, and what damage does."""


def open_source(uri: str | Path, *, stream: int | None = None, on_damage: OnDamage | str = OnDamage.STOP) -> Source:
    """Open a video file, a picture or a folder of pictures, by its path or as `file://`.

    A folder gives its pictures in natural order (`img2` before `img10`); files of other kinds, hidden files and folders inside
    are left out, and the source's notes say so. Pictures have no time of their own: time_s is their index.

    Args:
        uri: a `Path` is always a file's; a string is one too unless it begins with a scheme and `://`.
        stream: which of a file's video streams, from 0 in the file's own order; None: the default one, then the largest.
        on_damage: whether a video ends at damage (`stop`) or goes on behind it (`skip`).

    Raises:
        SourceError: it isn't there, there is nothing in it that can be read, or its scheme is unknown.
    """
    on_damage = OnDamage(on_damage)
    scheme = scheme_of(uri) if isinstance(uri, str) else None
    if scheme is None:
        return open_file(Path(uri), stream, on_damage)
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise SourceError(
            f"expected a path or a URI that begins with {known}, received {without_password(uri)}"
            + (f": did you mean {near[0]}://?" if near else ": its scheme is unknown")
        )
    return SCHEMES[scheme](str(uri), stream, on_damage)
