"""Who may talk to the server: those who know the token, from a page of this very server."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_SHOWN = 80


@dataclass(frozen=True)
class Guard:
    """The rules for every request.

    A page elsewhere on the web can make a browser send requests to this machine. It does not know the token. Should it
    know it, its ``Origin`` gives it away; and where it hides behind a name of its own that it resolves to this machine
    (DNS rebinding), the ``Host`` that the browser names is that name.

    Attributes:
        token: First part of every path.
        host: Name or address that the server is reached by.
    """

    token: str
    host: str = "127.0.0.1"

    def refusal(self, path: str, headers: Mapping[str, str], *, is_websocket: bool) -> str | None:
        """Why a request is refused, as a clause; ``None`` where it is let in.

        Args:
            path: Of the request, from its first slash.
            headers: By their names in lower case.
            is_websocket: Whether it opens a WebSocket, which browsers always name the origin of.
        """
        host = headers.get("host", "")
        if not self._is_ours(_name_of(f"//{host}")):
            return f"its Host {host[:_SHOWN]!r} is not this server"
        given = path.split("/")[1] if path.startswith("/") else ""
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            return "its token is wrong"
        origin = headers.get("origin")
        if origin is None:
            return "it names no Origin" if is_websocket else None
        parts = _split(origin)
        if parts is None or parts.scheme not in ("http", "https") or parts.netloc != host:
            return f"its Origin {origin[:_SHOWN]!r} is another site"
        return None

    def _is_ours(self, name: str | None) -> bool:
        if name is None:
            return False
        if name in LOOPBACK_NAMES or name == self.host.lower():
            return True
        # Listening elsewhere, the machine has addresses that only others know; a rebinding page always has a name.
        return not is_loopback(self.host) and _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether a name or an address to listen on is reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # such as an address in brackets that is none
        return None


def _name_of(url: str) -> str | None:
    parts = _split(url)
    return None if parts is None or parts.path or parts.query else parts.hostname
