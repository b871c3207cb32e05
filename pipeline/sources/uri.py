"""What a URI is, and how to name it without its password."""

from __future__ import annotations

import re
from pathlib import Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")
"""A scheme of at least two letters: one letter is a drive of Windows."""

_SECRET = re.compile(r"(?:pass(?:word|wd|phrase)?|pwd|pw|secret|token|auth|signature|sig|key)=([^&]*)", re.IGNORECASE)
"""A parameter that is secret by its name, in a query or in a path. It ends at `&`: a password may hold all other separators."""


def scheme_of(uri: str) -> str | None:
    """The scheme of a URI in lower case, or None for a path."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else None


def without_password(uri: str | Path) -> str:
    """A URI as it may be shown: without user and password, and with `***` for the value of a secret parameter.

    Where it is unclear what belongs to a password, it goes: passwords hold `:`, `/` and `@`, though they should not. The paths
    of files stay as they are.
    """
    if isinstance(uri, Path) or scheme_of(uri) == "file":
        return str(uri)
    scheme = _SCHEME.match(uri)
    kept = scheme[0] if scheme else ""
    at = uri.rfind("@")
    if at >= 0 and ":" in uri[:at]:
        # The last @ may also stand inside a secret parameter, whose rest must not pass for the host.
        if any(found.start(1) <= at < found.end(1) for found in _SECRET.finditer(uri)):
            _, more, rest = uri[at:].partition("&")
            uri = f"{kept}***{more}{rest}"
        else:
            uri = kept + uri[at + 1 :]
    return _SECRET.sub(lambda found: found[0].removesuffix(found[1]) + "***", uri)
