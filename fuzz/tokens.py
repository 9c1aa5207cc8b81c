"""Target: tokens, as the body of an auth frame and in the handshake, signed and not."""

from __future__ import annotations

import base64
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

from attrs import define

from goim_core.adapters.jwt import JWTAuth
from goim_core.auth import OpenAuth, SignedTokenAuth, sign_token
from goim_core.errors import CloseCode, Disconnect
from goim_core.hooks import AuthHook
from goim_core.session import AuthRequest, Session, check_key, check_mid, check_room_id
from goim_core.wire import disconnect_frame, read_disconnect

__all__ = ["check", "seeds"]

SECRET = b"0123456789abcdef0123456789abcdef"
NOW = 1_700_000_000.0
LONGEST_REASON = 700


@define(eq=False)
class _Signed(SignedTokenAuth):
    def __attrs_pre_init__(self) -> None:
        super().__init__(SECRET, cookie="token", origins=["https://example.org"])

    def now(self) -> float:
        return NOW


@define(eq=False)
class _JWT(JWTAuth):
    def __attrs_pre_init__(self) -> None:
        super().__init__(SECRET, algorithms="HS256", mid_claim="mid", require=(), cookie="token")

    def now(self) -> float:
        return NOW


def _open() -> OpenAuth:
    logging.getLogger("goim_core.auth").setLevel(logging.ERROR)
    return OpenAuth()


OPEN, SIGNED, JWT = _open(), _Signed(), _JWT()


def check(data: bytes) -> None:
    """It is a session that fits, or a refusal that may be told to the client and repeats no secret."""
    kind, data = (data[0] if data else 0), data[1:]
    hook, make = _KINDS[kind % len(_KINDS)]
    request, secret = make(data)
    outcome = decided(hook, request)
    assert outcome == decided(hook, request)
    if isinstance(outcome, tuple):
        code, reason = outcome
        assert code in (CloseCode.AUTH_REFUSED, CloseCode.EXPIRED)
        assert len(reason) < LONGEST_REASON
        assert not secret or secret not in reason
        told = read_disconnect(disconnect_frame(Disconnect(reason, code))[16:])
        assert told.code == code


def decided(hook: AuthHook, request: AuthRequest) -> object:
    """The session's fields, or the code and the reason of a refusal."""
    try:
        session = hook.authenticate(request)
    except Disconnect as refused:
        return refused.code, refused.reason
    assert isinstance(session, Session)
    check_mid(session.mid)
    assert not session.key or check_key(session.key)
    assert not session.room_id or check_room_id(session.room_id)
    assert all(type(op) is int and 0 <= op < 1 << 31 for op in session.accepts)
    assert NOW < session.expires <= inf
    names = session.mid, session.key, session.room_id, session.platform, session.device
    # What is not equal to itself is in JSON too.
    return [*names, session.accepts, session.expires, repr(session.data)]


def _body(data: bytes) -> tuple[AuthRequest, str]:
    return AuthRequest(token=data), ""


def _claims(data: bytes) -> tuple[AuthRequest, str]:
    signed = "goim1." + _base64url(data)
    token = f"{signed}.{_base64url(hmac.digest(SECRET, signed.encode(), 'sha256'))}"
    return AuthRequest(token=token.encode()), token


def _jwt(data: bytes) -> tuple[AuthRequest, str]:
    head, _, payload = data.partition(b"\n")
    signed = f"{_base64url(head)}.{_base64url(payload)}"
    token = f"{signed}.{_base64url(hmac.digest(SECRET, signed.encode(), 'sha256'))}"
    return AuthRequest(token=token.encode()), token


def _handshake(data: bytes) -> tuple[AuthRequest, str]:
    """Lines: the body, then a header in each."""
    body, *lines = data.split(b"\n")
    pairs = (line.decode("latin-1").partition(": ") for line in lines)
    headers = {name.lower(): value for name, _, value in pairs}
    return AuthRequest(token=body, transport="websocket", path="/sub", headers=headers), ""


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


_KINDS: list[tuple[AuthHook, Callable[[bytes], tuple[AuthRequest, str]]]] = [
    (OPEN, _body),
    (SIGNED, _body),
    (SIGNED, _claims),
    (SIGNED, _handshake),
    (JWT, _body),
    (JWT, _jwt),
]


def seeds() -> Iterator[bytes]:
    """Tokens of each kind that are good."""
    claims: dict[str, Any] = {"mid": 7, "key": "c1", "room_id": "live://1000", "platform": "web"}
    claims |= {"device": "d", "accepts": [1000, 18], "data": {"a": None}}
    signed = sign_token(SECRET, mid=7, expires=4102444800, key="c1").encode()
    chosen = json.dumps({"token": signed.decode(), "room_id": "live://1", "accepts": [1]}).encode()
    all_claims = json.dumps({**claims, "exp": 4102444800, "nbf": 1, "iat": 1.5}).encode()
    yield b"\x00" + json.dumps(claims).encode()
    yield b"\x00" + b'{"mid":-1,"key":null,"accepts":[],"platform":"\\ud83d"}'
    yield b"\x01" + signed
    yield b"\x01" + chosen
    yield b"\x02" + all_claims
    yield b"\x03\nAuthorization: Bearer " + signed
    yield b"\x03{}\nCookie: a=b; token=" + signed + b"\nOrigin: https://example.org\nHost: example.org"
    yield b"\x03\nCookie: token=" + signed + b"\nOrigin: https://other.example\nHost: example.org"
    yield b"\x05" + b'{"alg":"HS256","typ":"JWT"}\n' + all_claims
    token = _jwt(b'{"alg":"HS256"}\n{"mid":"7","exp":4102444800}')[0].token
    yield b"\x04" + token
