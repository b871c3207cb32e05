"""Access control of the page: the token beyond loopback, and the checks of Host and Origin that keep other web pages out.

Any web page can make a browser send requests here. The check of Host refuses other host names that point to this machine (DNS
rebinding), and the check of Origin prevents other pages from opening a socket here. Programs send no Origin, and need none.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from email.message import Message
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie

from pipeline.views.base import Endpoint

_LOOPBACK_NAMES = {"localhost"}


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in _LOOPBACK_NAMES


class Guard:
    """Accepts requests, or says why they are refused.

    Args:
        endpoint: the view's host and port.

    Attributes:
        token: the token that a request needs, or None on loopback. It is shown to the user once and never logged.
        cookie: the name of the cookie that stores it. Browsers do not separate cookies by port, so each run has its own name.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.token = None if is_loopback(endpoint.host) else secrets.token_urlsafe(24)
        self.cookie = f"convnextpose-{secrets.token_hex(4)}"
        name = socket.gethostname().lower()
        self._names = (
            _LOOPBACK_NAMES if self.token is None else _LOOPBACK_NAMES | {endpoint.host.lower(), name, f"{name}.local"}
        )

    def refuse(self, headers: Message, token: str | None = None) -> tuple[HTTPStatus, str] | None:
        """Why a request is refused, or None if it is accepted.

        Args:
            headers: the request's headers.
            token: the token in its query, if any.
        """
        host, origin = headers.get("Host"), headers.get("Origin")
        if host is None or not self._knows(host):
            return HTTPStatus.FORBIDDEN, "expected a Host that is this machine's: open the address that the run printed"
        if origin is not None and origin.lower() not in {f"http://{host.lower()}", f"https://{host.lower()}"}:
            return HTTPStatus.FORBIDDEN, "expected an Origin that is this page's own, received that of another page"
        if self.token is not None and not any(
            hmac.compare_digest(given.encode(), self.token.encode()) for given in self._given(headers, token)
        ):
            return HTTPStatus.UNAUTHORIZED, "expected the token that was printed when the run began: open the whole address"
        return None

    def _knows(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host  # any port: tunnels change it
        name = name.removeprefix("[").removesuffix("]").lower()
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.token is not None or address.is_loopback

    def _given(self, headers: Message, token: str | None) -> list[str]:
        given = [token] if token else []
        kind, _, bearer = headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given.append(bearer.strip())
        try:
            cookies = SimpleCookie(headers.get("Cookie", ""))
        except CookieError:
            return given
        return given + ([cookies[self.cookie].value] if self.cookie in cookies else [])
