"""Sessions and their fields, and OpenAuth, which believes any token that can be read."""

from __future__ import annotations

import json
import logging
from typing import Any

import attrs
import pytest
from attrs import define, fields
from hypothesis import example, given
from hypothesis import strategies as st

from goim_core.auth import OpenAuth
from goim_core.errors import CloseCode, Disconnect
from goim_core.hooks import AuthHook, MessageHook, SessionHook
from goim_core.protocol import INT32_MAX, MAX_ID, Frame, Op
from goim_core.session import AuthRequest, Session, check_key, check_room_id

LONG = "x" * (MAX_ID + 1)


def refusal(token: bytes) -> Disconnect:
    with pytest.raises(Disconnect) as refused:
        OpenAuth().authenticate(AuthRequest(token=token))
    return refused.value


def admitted(token: object) -> Session:
    return OpenAuth().authenticate(AuthRequest(token=json.dumps(token).encode()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mid", "1"),
        ("mid", None),
        ("mid", True),
        ("mid", 1.0),
        ("mid", 2**63),
        ("mid", -(2**63) - 1),
        ("key", None),
        ("key", 5),
        ("key", b"key"),
        ("key", LONG),
        ("key", "a\nb"),
        ("key", "\ud800"),
        ("room_id", None),
        ("room_id", 5),
        ("room_id", "live"),
        ("room_id", "live://"),
        ("room_id", "://1000"),
        ("room_id", "live://" + LONG),
        ("room_id", "live://a\n"),
        ("room_id", "live://\ud800"),
        ("platform", None),
        ("platform", LONG),
        ("accepts", None),
        ("accepts", 5),
        ("accepts", "1000"),
        ("accepts", ["1000"]),
        ("accepts", [[1000]]),
        ("accepts", [1000.0]),
        ("accepts", [True]),
        ("accepts", [-1]),
        ("accepts", [2**31]),
    ],
)
def test_a_session_names_the_field_that_does_not_fit(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected ") as refused:
        Session(**{"mid": 1, field: value})
    assert len(str(refused.value)) < 250, "a message is for a log line, whatever the value is"


@pytest.mark.parametrize("mid", [0, -1, 2**63 - 1, -(2**63)])
def test_a_mid_is_an_int64(mid: int) -> None:
    assert Session(mid=mid).mid == mid


def test_the_longest_names() -> None:
    room_id = "a://" + "x" * (MAX_ID - 4)
    session = Session(mid=1, key=LONG[:-1], room_id=room_id, platform=LONG[:-1])
    assert (session.key, session.room_id, session.platform) == (LONG[:-1], room_id, LONG[:-1])


def test_a_session_changes_only_its_room() -> None:
    session = Session(mid=1, room_id="live://1")
    session.room_id = "live://2"
    session.room_id = ""
    with pytest.raises(ValueError, match="^room_id: "):
        session.room_id = "nowhere"
    assert session.room_id == ""
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        session.mid = 2


def test_sessions_are_equal_only_when_they_are_the_same() -> None:
    session = Session(mid=1, key="k")
    assert session == session
    assert session != Session(mid=1, key="k")
    assert len({session, Session(mid=1, key="k")}) == 2


def test_equal_accepts_are_one_object() -> None:
    first, second = (
        Session(mid=1, accepts=frozenset([1000, 1001])),
        Session(mid=2, accepts=frozenset([1001, 1000])),
    )
    assert first.accepts is second.accepts


def test_accepts_are_plain_numbers() -> None:
    accepts = Session(mid=1, accepts=frozenset([Op.MOVE, 77_001])).accepts
    assert {type(op) for op in accepts} == {int}
    assert Session(mid=1, accepts=frozenset([int(Op.MOVE), 77_001])).accepts is accepts


def test_accepts_may_come_in_any_iterable_and_by_name() -> None:
    assert Session(mid=1, accepts=[1000, 1000, Op.ERROR]).accepts == {1000, 18}  # type: ignore[arg-type]
    assert Session(mid=1, accepts=(0, INT32_MAX)).accepts == {0, INT32_MAX}  # type: ignore[arg-type]


def test_connections_of_one_room_share_its_name() -> None:
    first, second = (Session(mid=1, room_id="".join(["live", "://", "1"])) for _ in range(2))
    assert first.room_id is second.room_id


@pytest.mark.parametrize(
    "room_id", ["live://1000", "a://b", "a://b://c", "live://with blank", "\u4eba://\u4eba"]
)
def test_room_ids(room_id: str) -> None:
    assert check_room_id(room_id) == room_id


@pytest.mark.parametrize("key", ["", LONG, "\0", "\x7f", "\u200b"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ValueError, match="^key: expected 1 to 256 printable characters"):
        check_key(key)


def test_the_cookie_of_a_handshake() -> None:
    assert AuthRequest(token=b"", headers={"cookie": "a=b"}).cookie == "a=b"
    assert AuthRequest(token=b"").cookie == ""


# The hooks as they are.


def test_an_auth_hook_has_to_decide() -> None:
    class Mine(AuthHook):
        pass

    with pytest.raises(NotImplementedError, match=r"Mine has no authenticate\(\)"):
        Mine().authenticate(AuthRequest(token=b""))


def test_the_session_hook_makes_keys_that_differ() -> None:
    hook = SessionHook()
    keys = {hook.make_key(Session(mid=1)) for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert isinstance(key, str)
        assert check_key(key)


def test_the_message_hook_gives_goims_answer() -> None:
    assert MessageHook().receive(Session(mid=1), Frame(1000, b"body")) is None


# OpenAuth.


def test_open_auth_says_so_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="goim_core.auth"):
        OpenAuth()
    assert "For development only" in caplog.text


def test_goims_token() -> None:
    token = {"mid": 123, "key": "k", "room_id": "live://1000", "platform": "web", "accepts": [1000, 1001]}
    session = admitted(token)
    assert (session.mid, session.key, session.room_id) == (123, "k", "live://1000")
    assert (session.platform, session.accepts) == ("web", {1000, 1001})


def test_only_the_user_is_required() -> None:
    session = admitted({"mid": 1})
    assert (session.key, session.room_id, session.platform, session.accepts) == ("", "", "", frozenset())


def test_null_is_the_empty_value_as_in_go() -> None:
    session = admitted({"mid": 1, "key": None, "room_id": None, "platform": None, "accepts": None})
    assert (session.key, session.room_id, session.platform, session.accepts) == ("", "", "", frozenset())


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (b"", "token: expected JSON"),
        (b"{", "token: expected JSON"),
        (b"\xff\xfe\xfd", "token: expected JSON"),
        (b"[" * 4096, "token: expected JSON"),
        (b"1" * 4096 + b"1" * 4096, "token: expected "),
        (b"null", "token: expected a JSON object, got NoneType"),
        (b"[]", "token: expected a JSON object, got list"),
        (b"{}", "mid: missing"),
        (b'{"mid":"1"}', "mid: expected an int64"),
        (b'{"mid":null}', "mid: expected an int64"),
        (b'{"mid":1,"accepts":{"1":2}}', "accepts: expected a list"),
        (b'{"mid":1,"accepts":[{}]}', "accepts: expected operations"),
        (b'{"mid":1,"accepts":["x"]}', "accepts: expected operations"),
        (b'{"mid":1,"key":{}}', "key: expected text"),
        (b'{"mid":1,"room_id":[]}', "room_id: expected text"),
        (b'{"mid":1,"room_id":"live"}', "room_id: expected 'type://id'"),
        (b'{"mid":1,"room_id":"live://\\ud800"}', "room_id: expected 'type://id'"),
        (b'{"mid":1,"platform":1}', "platform: expected text"),
    ],
)
def test_a_malformed_token_is_refused_with_its_reason(token: bytes, said: str) -> None:
    refused = refusal(token)
    assert refused.code == CloseCode.AUTH_REFUSED
    assert refused.reason.startswith(said)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=10,
)
FIELDS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("mid", "key", "room_id", "platform", "accepts"), JSON)
)


@given(JSON | FIELDS)
def test_any_json_is_let_in_or_refused(token: object) -> None:
    try:
        session = admitted(token)
    except Disconnect as refused:
        assert refused.code == CloseCode.AUTH_REFUSED
        assert refused.reason
    else:
        assert isinstance(session, Session)


@given(st.binary())
@example(b"\xef\xbb\xbf{}")
@example(b'{"mid":1}\0')
def test_any_bytes_are_let_in_or_refused(token: bytes) -> None:
    try:
        OpenAuth().authenticate(AuthRequest(token=token))
    except Disconnect as refused:
        assert refused.code == CloseCode.AUTH_REFUSED


@define(eq=False, weakref_slot=False)
class Badge(Session):
    level: int = 0


def test_a_session_is_placed_in_a_copy_that_has_all_of_it() -> None:
    given = Session(
        mid=7, room_id="a://b", platform="web", accepts=[1, 2], expires=1e9, data={"a": 1}, device="d"
    )
    placed = given.placed("k", "phone", "node")
    assert (placed.key, placed.device, placed.server, placed.joined) == ("k", "phone", "node", frozenset())
    settled = {"key", "device", "server", "joined"}
    for name in {field.name for field in fields(Session)} - settled:
        assert getattr(placed, name) == getattr(given, name) != getattr(Session(mid=8), name)
    assert placed is not given
    assert given.key == ""


def test_a_session_of_the_applications_own_kind_stays_one() -> None:
    placed = Badge(mid=7, level=3).placed("k", "phone", "node")
    assert isinstance(placed, Badge)
    assert (placed.level, placed.key) == (3, "k")
