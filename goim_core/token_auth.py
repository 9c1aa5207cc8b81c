"""Signed tokens: where a client puts one, and what of it becomes the session."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from goim_core.errors import CloseCode, ConfigurationError, Disconnect
from goim_core.hooks import AuthHook
from goim_core.session import AuthRequest, Session

__all__ = ["CHOSEN", "MAX_TOKEN", "TokenAuth", "once", "refused", "seconds", "session_of", "texts"]

MAX_TOKEN = 16384
"""The longest signed token, in bytes. The auth frame and the handshake have limits of their own."""
CHOSEN = ("room_id", "platform", "device", "accepts")
"""What of its session a client may choose, as far as the token leaves it open."""


class TokenAuth(AuthHook, ABC):
    """The base of those that check a signed token: finds it, and makes the session of what it says.

    The body of the auth frame is the bare token, or goim's JSON with the token in a field ``token``
    beside what a client may choose: ``room_id``, ``platform``, ``device`` and ``accepts``. Where the body
    has none, it is the one of ``Authorization: Bearer`` or of the cookie ``cookie`` in the WebSocket
    handshake. What is signed goes before what the client chooses; the user, the key and ``data`` are never
    the client's choice, because with another's key it would take over that connection.

    A browser sends cookies along with what any page on the web asks of it. So a token in a cookie counts
    only where the handshake's ``Origin`` is the host it went to, or one of ``origins``
    (``https://example.org``), or absent, as in programs that are no browser (RFC 6455 section 10.2).

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(self, *, cookie: str = "", origins: Iterable[str] = ()) -> None:
        if not isinstance(cookie, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*", cookie):
            raise ConfigurationError(f"cookie: expected a cookie's name, got {cookie!r}")
        self._cookie = cookie
        self._origins = frozenset(texts("origins", origins, least=0))

    @abstractmethod
    def verify(self, token: str) -> Mapping[str, Any]:
        """What ``token`` signs: fields of :class:`~goim_core.session.Session`, ``mid`` at least.

        ``token`` is ASCII and at most ``MAX_TOKEN`` long. Refuses it with
        :class:`~goim_core.errors.Disconnect`, and a reason that does not repeat it.
        """

    def authenticate(self, request: AuthRequest) -> Session:
        """The session that the token signs; refuses a token that is missing, forged or has run out."""
        chosen, token = _read_body(request.token)
        token = token or self._of_handshake(request)
        if not token:
            raise refused("token: missing")
        if not token.isascii() or len(token) > MAX_TOKEN:
            raise refused(f"token: expected at most {MAX_TOKEN} characters of ASCII")
        fields = {name: chosen[name] for name in CHOSEN if name in chosen}
        return session_of({**fields, **self.verify(token)})

    def not_expired(self, exp: object, leeway: float = 0.0) -> float:
        """When a token with the claim ``exp`` runs out; refuses it when that has been."""
        expires = seconds("exp", exp) + leeway
        # "On or after" its time a token must not be accepted: RFC 7519 section 4.1.4.
        if expires <= self.now():
            raise Disconnect("token: expired", CloseCode.EXPIRED)
        return expires

    def _of_handshake(self, request: AuthRequest) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
        token = _cookie(request.cookie, self._cookie) if self._cookie else ""
        if token and not self._trusts(request.headers):
            raise refused("origin: pages of this origin may not use the cookie")
        return token

    def _trusts(self, headers: Mapping[str, str]) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return True
        host = origin.partition("://")[2].lower()  # empty for "null", the origin of pages without one
        return bool(host) and host == headers.get("host", "").lower()


def seconds(name: str, value: object) -> float:
    """A claim's time in seconds since 1970 (RFC 7519: NumericDate); refuses what is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an int may be larger than any float
            number = math.inf
        if math.isfinite(number):
            return number
    raise refused(f"{name}: expected seconds since 1970")


def texts(name: str, values: str | Iterable[str], *, least: int = 1) -> list[str]:
    """One text or several, as a list; raises ConfigurationError that names the argument."""
    if isinstance(values, str):
        values = [values]
    found = list(values) if isinstance(values, Iterable) else [None]
    if len(found) < least or not all(isinstance(text, str) and text for text in found):
        raise ConfigurationError(f"{name}: expected one or several texts, got {values!r:.80}")
    return found


def refused(reason: str) -> Disconnect:
    """The refusal of a token for ``reason``."""
    return Disconnect(reason, CloseCode.AUTH_REFUSED)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: an object that names each of its fields once. Raises ValueError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def session_of(fields: Mapping[str, Any]) -> Session:
    """The session with these fields; refuses those that do not fit."""
    given = fields
    if None in fields.values():  # Go reads a JSON null as the field's zero value
        given = {name: value for name, value in fields.items() if value is not None or name == "mid"}
    accepts = given.get("accepts")
    if accepts is not None and not isinstance(accepts, list):
        raise refused(f"accepts: expected a list of operations, got {accepts!r:.80}")
    try:
        return Session(**given)
    except ValueError as error:
        raise refused(str(error)) from None


def _read_body(body: bytes) -> tuple[dict[str, Any], str]:
    """What a client chooses, and its token where the body has one."""
    try:
        text = body.decode().strip()
        if not text.startswith("{"):
            return {}, text
        chosen = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise refused("token: expected a token as text, or a JSON object with a field 'token'") from None
    token = chosen.get("token")
    if token is not None and not isinstance(token, str):
        raise refused(f"token: expected text, got {type(token).__name__}")
    return chosen, token or ""


def _cookie(header: str, name: str) -> str:
    """The value of the cookie ``name`` in a Cookie header (RFC 6265 section 4.2), empty without one."""
    for pair in header.split(";"):
        found, _, value = pair.partition("=")
        if found.strip() == name:
            return value.strip().strip('"')
    return ""
