"""Signed tokens: what is let in, what is refused and how, and where a client may put one.

OpenAuth is in test_hooks.py, JWTs are in test_jwt.py.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goim_core.auth import MIN_SECRET, SignedTokenAuth, TokenAuth, sign_token
from goim_core.errors import CloseCode, ConfigurationError, Disconnect
from goim_core.protocol import INT32_MAX
from goim_core.session import AuthRequest, Session
from goim_core.token_auth import MAX_TOKEN

SECRET = "an example, 32 bytes or so long"
OTHER = b"\xff" * MIN_SECRET
NOW = 1_700_000_000.0
SOON = NOW + 60


class StoodClock:
    """A wall clock that shows NOW until it is set."""

    def __init__(self) -> None:
        self.at = NOW

    def time(self) -> float:
        return self.at


def hook(secrets: Any = SECRET, **settings: Any) -> SignedTokenAuth:
    auth = SignedTokenAuth(secrets, **settings)
    auth.server = SimpleNamespace(clock=StoodClock())  # type: ignore[assignment]
    return auth


def token(**claims: Any) -> str:
    return sign_token(SECRET, **{"mid": 7, "expires": SOON, **claims})


def signed(claims: bytes, secret: bytes = SECRET.encode(), version: bytes = b"goim1.") -> bytes:
    """A token as docs describe it, made without goim_core."""
    text = version + base64.urlsafe_b64encode(claims).rstrip(b"=")
    mac = hmac.new(secret, text, hashlib.sha256).digest()
    return text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")


def admitted(body: str | bytes | dict[str, Any], auth: TokenAuth | None = None, **headers: str) -> Session:
    if isinstance(body, dict):
        body = json.dumps(body)
    given = body.encode() if isinstance(body, str) else body
    session = (auth or hook()).authenticate(AuthRequest(token=given, headers=headers))
    assert isinstance(session, Session)
    return session


def refusal(body: str | bytes | dict[str, Any], auth: TokenAuth | None = None, **headers: str) -> str:
    """Why it is refused, after the code where that is another than AUTH_REFUSED."""
    with pytest.raises(Disconnect) as refused:
        admitted(body, auth, **headers)
    error = refused.value
    assert SECRET not in error.reason
    return error.reason if error.code == CloseCode.AUTH_REFUSED else f"{error.code} {error.reason}"


# What is signed.


def test_what_is_signed_becomes_the_session() -> None:
    accepts = [1001, 1000, 1000]
    names = {"key": "k", "room_id": "live://1", "platform": "web", "device": "phone"}
    session = admitted(token(**names, accepts=accepts, data={"role": ["\u4eba", 1, None]}))
    assert (session.mid, session.expires, session.accepts) == (7, SOON, {1000, 1001})
    assert {name: getattr(session, name) for name in names} == names
    assert session.data == {"role": ["\u4eba", 1, None]}


def test_only_the_user_and_the_end_are_required() -> None:
    session = admitted(token())
    assert (session.mid, session.key, session.room_id, session.platform) == (7, "", "", "")
    assert (session.device, session.accepts, session.data) == ("", frozenset(), None)


def test_the_example_of_the_docstring() -> None:
    document = SignedTokenAuth.__doc__ or ""
    example = next(word for word in document.split() if word.startswith("goim1.") and len(word) > 20)
    assert example.encode() == signed(b'{"mid":7,"exp":4102444800}', b"0123456789abcdef")
    assert sign_token("0123456789abcdef", mid=7, expires=4102444800) == example
    assert admitted(example, hook("0123456789abcdef")).expires == 4102444800


def test_another_programs_spelling_of_the_claims() -> None:
    claims = ' {"new": 1, "key": null, "exp": 1.70000006e9,\n"mid": -1, "platform": "\u4eba"} '.encode()
    session = admitted(signed(claims))
    assert (session.mid, session.key, session.platform, session.expires) == (-1, "", "\u4eba", SOON)


@given(
    mid=st.integers(-(2**63), 2**63 - 1),
    later=st.floats(1, 1e9),
    platform=st.none() | st.text(max_size=256),
    accepts=st.none() | st.sets(st.integers(0, INT32_MAX), max_size=5),
    data=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
        max_leaves=8,
    ),
)
def test_the_round_trip(mid: int, later: float, platform: Any, accepts: Any, data: Any) -> None:
    expires = NOW + later
    made = sign_token(OTHER, mid=mid, expires=expires, platform=platform, accepts=accepts, data=data)
    session = admitted(made, hook([SECRET, OTHER]))
    assert (session.mid, session.expires, session.platform) == (mid, expires, platform or "")
    assert (session.accepts, session.data) == (accepts or set(), data)


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"mid": 2**63}, "mid: expected an int64"),
        ({"mid": "7"}, "mid: expected an int64"),
        ({"mid": True}, "mid: expected an int64"),
        ({"key": "a\n"}, "key: expected 1 to 256 printable characters"),
        ({"room_id": "live"}, "room_id: expected 'type://id'"),
        ({"platform": 5}, "platform: expected text"),
        ({"device": "x" * 257}, "device: expected text of at most 256"),
        ({"accepts": ["1000"]}, "accepts: expected operations"),
        ({"accepts": 5}, "accepts: expected operations"),
        ({"expires": None}, "expires: expected seconds"),
        ({"expires": float("inf")}, "expires: expected seconds"),
        ({"expires": float("nan")}, "expires: expected seconds"),
        ({"expires": 10**400}, "expires: expected seconds"),
        ({"data": object()}, "data: expected what JSON can say"),
        ({"data": float("nan")}, "data: expected what JSON can say"),
        ({"data": "x" * MAX_TOKEN}, f"data: expected a token of at most {MAX_TOKEN} characters"),
    ],
)
def test_what_cannot_be_signed(claims: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        token(**claims)


# Secrets.


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ("x" * (MIN_SECRET - 1), "expected at least 16 bytes (random ones), got 15"),
        ([SECRET, b"short"], "expected at least 16 bytes (random ones), got 5"),
        ("", "expected at least 16 bytes (random ones), got 0"),
        ([], "expected at least one"),
        (None, "expected text or bytes, got NoneType"),
        ([SECRET, 5], "expected text or bytes, got int"),
    ],
)
def test_secrets_that_are_none(secrets: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SignedTokenAuth(secrets)
    assert str(refused.value) == f"secrets: {message}"


def test_a_short_secret_signs_nothing() -> None:
    with pytest.raises(ConfigurationError, match="^secret: expected at least 16 bytes"):
        sign_token("short", mid=1, expires=SOON)


def test_a_secret_is_replaced() -> None:
    old, new = SECRET, OTHER
    before, added, moved, after = hook(old), hook([old, new]), hook([new, old]), hook(new)
    first, second = added.sign(mid=1, expires=SOON), moved.sign(mid=2, expires=SOON, room_id="a://b")
    assert first == before.sign(mid=1, expires=SOON)
    assert second == after.sign(mid=2, expires=SOON, room_id="a://b")
    for auth in (before, added, moved):
        assert admitted(first, auth).mid == 1
    for auth in (added, moved, after):
        assert admitted(second, auth).mid == 2
    assert refusal(first, after) == refusal(second, before) == "token: the signature does not fit"


# What is refused.


def test_a_token_runs_out() -> None:
    auth = hook()
    clock: Any = auth.server.clock
    clock.at = SOON - 0.001
    assert admitted(token(), auth).expires == SOON
    clock.at = SOON
    assert refusal(token(), auth) == f"{CloseCode.EXPIRED} token: expired"


def test_without_a_server_the_machines_clock_counts() -> None:
    auth = SignedTokenAuth(SECRET)
    assert refusal(auth.sign(mid=1, expires=time.time() - 1), auth) == f"{CloseCode.EXPIRED} token: expired"
    assert admitted(auth.sign(mid=1, expires=time.time() + 600), auth).mid == 1


FORM = "token: expected 'goim1.', claims, '.' and a signature"
FORGED = "token: the signature does not fit"
UNREADABLE = "token: its claims are no JSON object with each name once"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "token: missing"),
        (b" \n", "token: missing"),
        (b"{}", "token: missing"),
        (b'{"token":""}', "token: missing"),
        (b'{"token":null}', "token: missing"),
        (b'{"mid":7}', "token: missing"),
        (b'{"token":5}', "token: expected text, got int"),
        (b'{"token":["a"]}', "token: expected text, got list"),
        (b"{", "token: expected a token as text, or a JSON object with a field 'token'"),
        (
            b'{"token":"a","token":"b"}',
            "token: expected a token as text, or a JSON object with a field 'token'",
        ),
        (b'{"a":' * 4000, "token: expected a token as text, or a JSON object with a field 'token'"),
        (b"\xff\xfe", "token: expected a token as text, or a JSON object with a field 'token'"),
        ("\u4eba".encode(), f"token: expected at most {MAX_TOKEN} characters of ASCII"),
        (b'{"token":"\\ud800"}', f"token: expected at most {MAX_TOKEN} characters of ASCII"),
        (b"a" * (MAX_TOKEN + 1), f"token: expected at most {MAX_TOKEN} characters of ASCII"),
        (b"a" * MAX_TOKEN, FORM),
        (b"sesame", FORM),
        (b"[]", FORM),
        (b"goim1..", FORM),
        (signed(b"{}", version=b"goim2."), FORM),
        (signed(b"{}", version=b""), FORM),
        (signed(b"") + b"=", FORM),
        (signed(b'{"mid":7,"exp":1e10}', b"another secret, as long as it"), FORGED),
        (b"goim1.e30." + b"A" * 43, FORGED),
        (signed(b"[]"), UNREADABLE),
        (signed(b"nothing"), UNREADABLE),
        (signed(b"\xff{}"), UNREADABLE),
        (signed(b"[" * 5000), UNREADABLE),
        (signed(b'{"mid":7,"exp":1e10,"mid":8}'), UNREADABLE),
        (signed(b'{"exp":1e10}'), "mid: missing from the token"),
        (signed(b'{"mid":null,"exp":1e10}'), "mid: missing from the token"),
        (signed(b'{"mid":"7","exp":1e10}'), "mid: expected an int64, got '7'"),
        (signed(b'{"mid":7.0,"exp":1e10}'), "mid: expected an int64, got 7.0"),
        (signed(b'{"mid":7}'), "exp: missing from the token"),
        (signed(b'{"mid":7,"exp":null}'), "exp: missing from the token"),
        (signed(b'{"mid":7,"exp":"1e10"}'), "exp: expected seconds since 1970"),
        (signed(b'{"mid":7,"exp":true}'), "exp: expected seconds since 1970"),
        (signed(b'{"mid":7,"exp":NaN}'), "exp: expected seconds since 1970"),
        (signed(b'{"mid":7,"exp":Infinity}'), "exp: expected seconds since 1970"),
        (signed(b'{"mid":7,"exp":1' + b"0" * 400 + b"}"), "exp: expected seconds since 1970"),
        (
            signed(b'{"mid":7,"exp":1e10,"accepts":{"1":2}}'),
            "accepts: expected a list of operations, got {'1': 2}",
        ),
        (signed(b'{"mid":7,"exp":1e10,"key":5}'), "key: expected text, got 5"),
    ],
)
def test_what_is_refused_and_why(body: bytes, reason: str) -> None:
    assert refusal(body) == reason


def test_a_text_with_a_length_that_base64_has_not() -> None:
    text = "goim1.abcde"
    mac = hmac.digest(SECRET.encode(), text.encode(), "sha256")
    made = f"{text}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    assert refusal(made) == UNREADABLE


@given(st.data())
def test_a_token_with_one_bit_flipped_is_refused(data: st.DataObject) -> None:
    made = bytearray(token(data="x").encode())
    bit = data.draw(st.integers(0, len(made) * 8 - 1))
    made[bit // 8] ^= 1 << bit % 8
    assert refusal(bytes(made))


def test_a_token_has_one_spelling() -> None:
    made = token()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # 43 characters have two bits more than 32 bytes: three other last characters say the same bytes.
    others = [made[:-1] + character for character in alphabet if character != made[-1]]
    assert {refusal(other) for other in others} == {FORGED}


@given(st.integers(0, 200))
def test_a_token_that_is_cut_off_is_refused(size: int) -> None:
    made = token().encode()
    assert refusal(made[: size % len(made)])


CLIENTS = st.dictionaries(
    st.sampled_from(["token", "mid", "key", "room_id", "platform", "accepts", "device", "data", "expires"]),
    st.none() | st.integers() | st.text() | st.lists(st.integers(0, 2000)) | st.just(token()),
)


@given(st.binary() | st.text().map(str.encode) | CLIENTS.map(lambda body: json.dumps(body).encode()))
@example(b"\xef\xbb\xbf{}")
@example(b"goim1.e30.\0")
def test_any_bytes_are_let_in_or_refused(body: bytes) -> None:
    try:
        session = hook().authenticate(AuthRequest(token=body))
    except Disconnect as error:
        assert error.code == CloseCode.AUTH_REFUSED
        assert error.reason
    else:
        assert (session.mid, session.key, session.expires, session.data) == (7, "", SOON, None)


@given(
    st.dictionaries(
        st.sampled_from(["mid", "key", "exp", "room_id", "platform", "accepts", "device", "data"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    )
)
def test_any_claims_are_let_in_or_refused(claims: dict[str, Any]) -> None:
    try:
        assert isinstance(admitted(signed(json.dumps(claims).encode())), Session)
    except Disconnect as error:
        assert error.code in (CloseCode.AUTH_REFUSED, CloseCode.EXPIRED)


# What a client chooses.


def test_what_is_not_signed_is_left_to_the_client() -> None:
    body = {"token": token(), "room_id": "live://2", "platform": "web", "accepts": [1000], "device": "d"}
    session = admitted(body)
    assert (session.room_id, session.platform) == ("live://2", "web")
    assert (session.accepts, session.device) == ({1000}, "d")


def test_what_is_signed_goes_first() -> None:
    made = token(room_id="live://1", platform="", accepts=[], device="phone")
    body = {"token": made, "room_id": "live://2", "platform": "web", "accepts": [1000], "device": "d"}
    session = admitted(body)
    assert (session.room_id, session.platform) == ("live://1", "")
    assert (session.accepts, session.device) == (frozenset(), "phone")


def test_the_user_the_key_and_the_data_are_never_the_clients_choice() -> None:
    body = {"token": token(), "mid": 8, "key": "another's", "data": "admin", "expires": 1e11, "exp": 1e11}
    body |= {"server": "node", "joined": ["a://b"]}
    session = admitted(body)
    assert (session.mid, session.key, session.data, session.expires) == (7, "", None, SOON)
    assert (session.server, session.joined) == ("", frozenset())


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"room_id": "nowhere"}, "room_id: expected 'type://id'"),
        ({"platform": 5}, "platform: expected text"),
        ({"device": []}, "device: expected text"),
        ({"accepts": "1000"}, "accepts: expected a list"),
        ({"accepts": [-1]}, "accepts: expected operations"),
    ],
)
def test_a_choice_that_does_not_fit(chosen: dict[str, Any], reason: str) -> None:
    assert refusal({"token": token(), **chosen}).startswith(reason)
    nothing = dict.fromkeys(chosen)
    assert admitted({"token": token(), **nothing}).mid == 7


def test_white_space_around_a_token_is_no_part_of_it() -> None:
    assert admitted(token() + "\r\n").mid == 7


# The handshake's headers.


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_bearer(scheme: str) -> None:
    assert admitted(b"", authorization=f"{scheme} {token()}").mid == 7


def test_a_bearer_with_what_the_client_chooses() -> None:
    assert admitted({"room_id": "live://2"}, authorization=f"Bearer {token()}").room_id == "live://2"


def test_the_body_goes_before_the_bearer_and_that_before_the_cookie() -> None:
    auth = hook(cookie="goim")
    headers = {"authorization": f"Bearer {token(mid=2)}", "cookie": f"goim={token(mid=3)}"}
    assert admitted(token(mid=1), auth, **headers).mid == 1
    assert admitted({"token": token(mid=1)}, auth, **headers).mid == 1
    assert admitted({}, auth, **headers).mid == 2
    assert admitted({}, auth, **{**headers, "authorization": "Basic dTpw"}).mid == 3


@pytest.mark.parametrize(
    "cookie",
    ["goim={}", "a=b; goim={}; c=d", 'goim="{}"', "goim2=x;goim={}", "a; goim = {} ", "goim={}; goim=x"],
)
def test_a_cookie(cookie: str) -> None:
    assert admitted(b"", hook(cookie="goim"), cookie=cookie.format(token())).mid == 7


@pytest.mark.parametrize("cookie", ["", "goim", "goim=", "=x", "GOIM=x", "my-goim=x", ";;;"])
def test_no_cookie_of_that_name(cookie: str) -> None:
    assert refusal(b"", hook(cookie="goim"), cookie=cookie) == "token: missing"


def test_a_cookie_counts_only_where_it_has_been_named() -> None:
    assert refusal(b"", hook(), cookie=f"goim={token()}") == "token: missing"


HOST = "push.example.org:3102"


@pytest.mark.parametrize(
    "origin", [f"https://{HOST}", "http://PUSH.example.org:3102", "https://example.org", None]
)
def test_pages_that_may_use_the_cookie(origin: str | None) -> None:
    auth = hook(cookie="goim", origins="https://example.org")
    headers = {"cookie": f"goim={token()}", "host": HOST}
    assert admitted(b"", auth, **headers, **({"origin": origin} if origin else {})).mid == 7


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "push.example.org:3102",
        "https://push.example.org",
        "http://example.org",
    ],
)
def test_pages_that_may_not_use_the_cookie(origin: str) -> None:
    auth = hook(cookie="goim", origins=["https://example.org"])
    headers = {"cookie": f"goim={token()}", "host": HOST, "origin": origin}
    assert refusal(b"", auth, **headers) == "origin: pages of this origin may not use the cookie"
    # A token that the page itself has is another matter: it does not come along by itself.
    assert admitted(token(), auth, **headers).mid == 7


def test_no_origin_is_the_same_as_no_host() -> None:
    reason = "origin: pages of this origin may not use the cookie"
    assert refusal(b"", hook(cookie="goim"), cookie=f"goim={token()}", origin="null", host="") == reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cookie": "a b"}, "cookie: expected a cookie's name, got 'a b'"),
        ({"cookie": "a=b"}, "cookie: expected a cookie's name, got 'a=b'"),
        ({"cookie": 5}, "cookie: expected a cookie's name, got 5"),
        ({"origins": [""]}, "origins: expected one or several texts, got ['']"),
        ({"origins": 5}, "origins: expected one or several texts, got 5"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        hook(**settings)
    assert str(refused.value) == message


def test_another_format_needs_one_method() -> None:
    class Guest(TokenAuth):
        def verify(self, token: str) -> dict[str, Any]:
            return {"mid": int(token)}

    session = admitted({"token": "5", "platform": "web"}, Guest())
    assert (session.mid, session.platform) == (5, "web")


def test_nothing_of_a_token_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        admitted(token())
        refusal(token() + "x")
    assert not caplog.records
