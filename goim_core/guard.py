"""Who may push, and who may look: API keys, client certificates, and what web pages may not do. Sync.

Without keys the guard is for a server that only programs of its own machine can reach. Browsers are such
programs, and do what any page on the web tells them. So a request is refused that a page of another
origin sent (its ``Origin`` says so), or one to a name that is not this machine's, though it leads here
(DNS rebinding; its ``Host`` says so).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from math import inf

from goim_core.errors import ConfigurationError
from goim_core.http_message import Request, Response, error

__all__ = ["MIN_API_KEY", "Guard", "is_loopback"]

MIN_API_KEY = 16
"""The shortest API key, in characters."""
TOLD = 20
"""How many addresses that are refused are named in the log each second."""

_KEY = re.compile(rf"[!-~]{{{MIN_API_KEY},}}")  # what a header carries as it is (RFC 9110 section 5.5)
_PORT = re.compile(r":[0-9]*\Z")

_log = logging.getLogger("goim_core.guard")


class Guard:
    """Lets those through who show one of ``api_keys``, or a client certificate that counts.

    A key is shown as ``Authorization: Bearer KEY`` (RFC 6750 section 2.1) or ``X-API-Key: KEY``. Any of
    them is good: to replace one, add the new key, let everyone change, then take the old one away.
    Without keys everyone is let through but web pages.

    Raises :class:`~goim_core.errors.ConfigurationError` for a key that is none, and does not repeat it.
    """

    def __init__(self, api_keys: Iterable[str] = (), now: Callable[[], float] = time.monotonic) -> None:
        if isinstance(api_keys, str | bytes) or not isinstance(api_keys, Iterable):
            raise ConfigurationError(f"api_keys: expected a list of keys, got {type(api_keys).__name__}")
        # Hashes are all of one length, so that no comparison tells a key's; and the keys are not kept.
        self._hashes = tuple(_hash(_checked(key)) for key in api_keys)
        self._now = now
        self._quiet_until = -inf
        self._untold: dict[str, int] = {}

    @property
    def has_keys(self) -> bool:
        """Whether a key has to be shown, or a certificate."""
        return bool(self._hashes)

    def refusal(self, request: Request) -> Response | None:
        """None where ``request`` may go on; else its answer, HTTP 401 or 403."""
        keyless = request.certified or not self._hashes
        found = _refused_page(request) if keyless else self._refused_key(request)
        if found is not None:
            status, why, headers = found
            self._tell(request.path, request.address or "a peer on a Unix socket", why)
            return error(status, why, headers)
        return None

    def _tell(self, path: str, who: str, why: str) -> None:
        """Log a refusal: one line a second for each of some addresses, and then how many more there were."""
        now = self._now()
        if now >= self._quiet_until:
            for other, count in self._untold.items():
                if count:
                    _log.warning("refused to %s: %d more", other, count)
            self._untold.clear()
            self._quiet_until = now + 1.0
        if who not in self._untold and len(self._untold) >= TOLD:
            who = "others"
        if who not in self._untold:
            self._untold[who] = 0
            if who != "others":
                _log.warning("%s: refused to %s: %s", path, who, why)
                return
        self._untold[who] += 1

    def _refused_key(self, request: Request) -> _Refusal | None:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        shown = [bearer.strip()] if scheme.lower() == "bearer" else []
        if "x-api-key" in request.headers:
            shown.append(request.headers["x-api-key"])
        if not shown:
            return 401, "an API key is needed: Authorization: Bearer KEY", (_CHALLENGE,)
        if not any(self._fits(key) for key in shown):
            return 401, "the API key does not fit", ((_CHALLENGE[0], 'Bearer error="invalid_token"'),)
        return None

    def _fits(self, key: str) -> bool:
        shown = _hash(key)
        fits = False
        for known in self._hashes:  # all of them: the time does not tell which
            fits |= hmac.compare_digest(known, shown)
        return fits


_Refusal = tuple[int, str, tuple[tuple[str, str], ...]]
_CHALLENGE = ("WWW-Authenticate", "Bearer")


def _checked(key: object) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        got = f"text of {len(key)} characters" if isinstance(key, str) else type(key).__name__
        expected = f"{MIN_API_KEY} or more printable characters of ASCII without blanks"
        raise ConfigurationError(f"api_keys: expected keys of {expected}, got {got}")
    return key


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _refused_page(request: Request) -> _Refusal | None:
    """Why this may be what a browser does for a page of somebody else's."""
    host = request.headers.get("host", "").lower()
    origin = request.headers.get("origin")
    # A browser leaves out the default port in both.
    if origin is not None and (not host or origin.lower().partition("://")[2] != host):
        return 403, "Origin: pages of another origin may not do this", ()
    # A certificate is shown to a name that is in the server's; and no browser speaks to a Unix socket.
    if request.certified or not request.address or not host:
        return None
    name = _PORT.sub("", host)
    if name == "localhost" or name.endswith(".localhost") or _is_ip(name):
        return None
    return 403, "Host: expected localhost or an IP address; for other names the server needs API keys", ()


@lru_cache(maxsize=32)  # few, because a name that is shown may be long
def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether the IP ``address`` is this machine's alone; so is an empty one, of a Unix socket."""
    return not address or ipaddress.ip_address(address).is_loopback
