"""What a URI is, its parts, and how to name it without its password."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from convnextpose.errors import SourceError
from convnextpose.files import show

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")
"""A scheme has at least two letters: a single letter is a Windows drive."""

_SECRET = re.compile(r"(?:pass(?:word|wd|phrase)?|pwd|pw|secret|token|auth|signature|sig|key)=([^&]*)", re.IGNORECASE)
"""A parameter with a secret name, in a query or in a path. It ends at `&`: a password may contain all other separators."""


def scheme_of(uri: str) -> str | None:
    """The scheme of a URI in lower case, or None for a path."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else None


def without_password(uri: str | Path) -> str:
    """A URI that is safe to show: without user and password, and with `***` for the value of a secret parameter.

    In doubt too much is removed: passwords may contain `:`, `/` and `@`, although they should not. File paths stay unchanged.
    """
    if isinstance(uri, Path) or scheme_of(uri) == "file":
        return str(uri)
    scheme = _SCHEME.match(uri)
    kept = scheme[0] if scheme else ""
    at = uri.rfind("@")
    if at >= 0 and ":" in uri[:at]:
        # The last @ may also be inside a secret parameter, the rest of which must not be taken for the host.
        if any(found.start(1) <= at < found.end(1) for found in _SECRET.finditer(uri)):
            _, more, rest = uri[at:].partition("&")
            uri = f"{kept}***{more}{rest}"
        else:
            uri = kept + uri[at + 1 :]
    return _SECRET.sub(lambda found: found[0].removesuffix(found[1]) + "***", uri)


def brief(text: str, most: int = 120) -> str:
    """A text, shortened to a number of characters, for messages."""
    return text if len(text) <= most else text[: most - 3] + "..."


@dataclass(frozen=True)
class NetworkUri:
    """The parts of a camera's address in a network.

    Attributes:
        scheme: in lower case.
        user, password: decoded; empty if there are none.
        host: name or address, an IPv6 address without its brackets; may be empty if the scheme allows that.
        port: its port, or None for the scheme's own.
        path: path and query as the server gets them, from the first `/` or `?`.
        options: the part after a `#`, for our own options: it is never sent to a server, unlike the query.
    """

    scheme: str
    user: str
    password: str
    host: str
    port: int | None
    path: str
    options: str

    @classmethod
    def parse(cls, uri: str) -> NetworkUri:
        """Parse a URI. A password may contain `:`, `@` and `#`, and a `/` if there is no `@` before it.

        Raises:
            SourceError: its port is not a number, or there are characters in it that no address has.
        """
        if not uri.isprintable():  # a lone surrogate has no bytes that could be sent either
            raise SourceError(
                f"expected an address of printable characters, received {show(without_password(uri))}: "
                "percent-encode the others"
            )
        scheme, rest = uri.split("://", 1)
        end = re.search(r"[/?]|$", rest)
        at = rest.rfind("@", 0, end.start() if end else None)
        if at < 0 and re.match(r"[^\[/?:]*:(?!\d*(?:[/?#]|$))", rest):  # no port after the colon: a password with a /
            at = rest.rfind("@")
        user, _, password = rest[: max(at, 0)].partition(":")
        rest, _, options = rest[at + 1 :].partition("#")
        found = re.match(r"(?:\[(?P<six>[^\]]*)\]|(?P<host>[^:/?]*))(?::(?P<port>\d{0,9}))?(?P<path>[/?].*)?$", rest, re.DOTALL)
        if found is None or int(found["port"] or 0) > 65535:
            raise SourceError(
                f"expected {scheme}://[user:password@]host[:port]/path, received {brief(without_password(uri))}: write what is "
                "special in a user or password as % and its code, such as %2F for /"
            )
        port = int(found["port"]) if found["port"] else None
        host = found["six"] if found["six"] is not None else found["host"]
        return cls(scheme.lower(), unquote(user), unquote(password), host, port, found["path"] or "", options)

    @property
    def host_port(self) -> str:
        """Host and port, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    def address(self, scheme: str | None = None) -> str:
        """The complete address with user and password, for a library: it must not be shown."""
        secret = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user or self.password else ""
        return f"{scheme or self.scheme}://{secret}{self.host_port}{self.path}"

    def shown(self) -> str:
        """The address without secrets and options."""
        return without_password(f"{self.scheme}://{self.host_port}{self.path}")
