"""Ready-made ways to decide who may connect. The one for JWTs is in adapters/jwt.py."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import re
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from goim_core.errors import ConfigurationError
from goim_core.hooks import AuthHook
from goim_core.session import AuthRequest, Session
from goim_core.token_auth import CHOSEN, MAX_TOKEN, TokenAuth, once, refused, session_of

__all__ = ["OpenAuth", "SignedTokenAuth", "TokenAuth", "sign_token"]

MIN_SECRET = 16
"""The shortest secret, in bytes."""

_log = logging.getLogger("goim_core.auth")


class OpenAuth(AuthHook):
    """goim's stock behaviour, for development: believes whatever the token's JSON says.

    ``{"mid":123,"key":"","room_id":"live://1000","platform":"web","accepts":[1000,1001]}``; only
    ``mid`` is required. ``device`` may name the device whose place in the inbox is kept.
    """

    def __init__(self) -> None:
        _log.warning("OpenAuth is on: any client may name itself any user. For development only.")

    def authenticate(self, request: AuthRequest) -> Session:
        """The session that the token asks for; refuses a token that is malformed."""
        try:
            token = json.loads(request.token)
        except (ValueError, RecursionError):
            raise refused("token: expected JSON") from None
        if not isinstance(token, dict):
            raise refused(f"token: expected a JSON object, got {type(token).__name__}")
        if "mid" not in token:
            raise refused("mid: missing from the token")
        return session_of({name: token[name] for name in _BELIEVED if name in token})


class SignedTokenAuth(TokenAuth):
    """Lets in whoever brings a token of :func:`sign_token`, until it expires.

    ``secrets`` is a secret or several, as text or bytes, of 16 bytes or more: :meth:`sign` signs with the
    first, and a token of any of them is good. To replace a secret put the new one last on all servers,
    then first, and take the old one out when its last token has expired. ``cookie`` and ``origins`` are
    those of :class:`TokenAuth`.

    The format, so that programs in other languages can sign::

        token     = signed "." base64url(HMAC-SHA256(secret, signed))
        signed    = "goim1." base64url(claims)
        claims    = a JSON object in UTF-8 without a name given twice
        base64url = RFC 4648 section 5 without "="

    Claims: ``mid`` the user (int64) and ``exp`` the end (seconds since 1970, a finite number) are
    required; ``key``, ``room_id``, ``platform``, ``device``, ``accepts`` and ``data`` are those of
    :class:`~goim_core.session.Session`; null is the same as left out, and others are ignored. With the
    secret ``0123456789abcdef`` the claims ``{"mid":7,"exp":4102444800}`` are::

        goim1.eyJtaWQiOjcsImV4cCI6NDEwMjQ0NDgwMH0.pxqpVO7lGsDukKmFC2hzVu7lULbdh4Qihh8pTLQl88s

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self, secrets: str | bytes | Iterable[str | bytes], *, cookie: str = "", origins: Iterable[str] = ()
    ) -> None:
        super().__init__(cookie=cookie, origins=origins)
        if isinstance(secrets, str | bytes) or not isinstance(secrets, Iterable):
            secrets = [secrets]
        self._secrets = tuple(_secret("secrets", secret) for secret in secrets)
        if not self._secrets:
            raise ConfigurationError("secrets: expected at least one")

    def sign(self, *, mid: int, expires: float, **claims: Any) -> str:
        """A token of the first secret: :func:`sign_token`."""
        return sign_token(self._secrets[0], mid=mid, expires=expires, **claims)

    def verify(self, token: str) -> Mapping[str, Any]:
        """The fields that ``token`` signs; refuses it when it is forged or has run out."""
        if _TOKEN.fullmatch(token) is None:
            raise refused("token: expected 'goim1.', claims, '.' and a signature")
        signed, _, signature = token.rpartition(".")
        # The text is compared, not its bytes: base64 has several spellings for some, and one token is one.
        if not any(hmac.compare_digest(_mac(secret, signed), signature) for secret in self._secrets):
            raise refused("token: the signature does not fit")
        claims = _claims(signed)
        if "exp" not in claims:
            raise refused("exp: missing from the token")
        fields = {name: claims[name] for name in (*CHOSEN, "mid", "key", "data") if name in claims}
        if "mid" not in fields:
            raise refused("mid: missing from the token")
        return {**fields, "expires": self.not_expired(claims["exp"])}


def sign_token(
    secret: str | bytes,
    *,
    mid: int,
    expires: float,
    key: str = "",
    room_id: str | None = None,
    platform: str | None = None,
    device: str | None = None,
    accepts: Iterable[int] | None = None,
    data: Any = None,
) -> str:
    """A token for :class:`SignedTokenAuth`, which names the user ``mid`` until ``expires``.

    ``expires`` is in seconds since 1970. ``key`` names the connection. ``room_id``, ``platform``,
    ``device`` and ``accepts`` are what the client may not choose, and are left to it where they are None.
    ``data``, anything that JSON can say, becomes ``session.data``; a client can read it.

    Raises :class:`ValueError` that names the argument.
    """
    secret = _secret("secret", secret)
    names: dict[str, Any] = {"room_id": room_id, "platform": platform, "device": device, "accepts": accepts}
    given = {name: value for name, value in names.items() if value is not None}
    if expires == inf:
        raise ValueError("expires: expected seconds since 1970, got infinity")
    session = Session(mid=mid, key=key, expires=expires, **given)
    claims: dict[str, Any] = {"mid": mid, "exp": int(expires) if expires % 1 == 0 else expires}
    if key:
        claims["key"] = key
    claims |= {name: getattr(session, name) for name in given}
    if accepts is not None:
        claims["accepts"] = sorted(session.accepts)
    if data is not None:
        claims["data"] = data
    try:
        text = json.dumps(claims, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"data: expected what JSON can say: {error}") from None
    signed = "goim1." + _base64url(text.encode())
    token = f"{signed}.{_mac(secret, signed)}"
    if len(token) > MAX_TOKEN:
        raise ValueError(f"data: expected a token of at most {MAX_TOKEN} characters, got {len(token)}")
    return token


_BELIEVED = ("mid", "key", *CHOSEN)
"""What of a session :class:`OpenAuth` takes from anyone."""
_TOKEN = re.compile(r"goim1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}")


def _claims(signed: str) -> dict[str, Any]:
    text = signed.removeprefix("goim1.")
    try:
        claims = json.loads(_bytes(text).decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise refused("token: its claims are no JSON object with each name once")
    return {name: value for name, value in claims.items() if value is not None}


def _secret(argument: str, secret: object) -> bytes:
    found = secret.encode() if isinstance(secret, str) else secret
    if not isinstance(found, bytes):
        raise ConfigurationError(f"{argument}: expected text or bytes, got {type(secret).__name__}")
    if len(found) < MIN_SECRET:
        raise ConfigurationError(
            f"{argument}: expected at least {MIN_SECRET} bytes (random ones), got {len(found)}"
        )
    return found


def _mac(secret: bytes, signed: str) -> str:
    return _base64url(hmac.digest(secret, signed.encode("ascii"), "sha256"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
