"""Logic: what the hooks are asked, what they may answer, and in which order they hear."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest

from goim_core.errors import CloseCode, Disconnect, ErrorCode, HookError, Refused, StorageError
from goim_core.hooks import AuthHook, MessageHook, SessionHook
from goim_core.logic import Logic
from goim_core.memory_storage import MemoryStorage
from goim_core.protocol import Frame, encode
from goim_core.registry import MemoryRegistry, Registry
from goim_core.session import AuthRequest, Session
from goim_core.storage import Stored
from goim_core.testing.clock import ManualClock
from tests.logics import LaterRegistry, after_a_while, new_logic, plain, run

pytestmark = pytest.mark.anyio

REQUEST = AuthRequest(token=b'{"mid":7,"key":"k"}')
GONE = Disconnect("gone", CloseCode.LOST)


class Auth(AuthHook):
    """Answers with what it was given, at once or later."""

    def __init__(self, answer: Any, later: bool = False) -> None:
        self.answer = answer
        self.later = later

    def authenticate(self, request: AuthRequest) -> Any:
        return after_a_while(self.answer) if self.later else self.answer


class Sessions(SessionHook):
    """Writes down what it hears."""

    def __init__(self, key: Any = "made", later: bool = False) -> None:
        self.key = key
        self.later = later
        self.heard: list[tuple[Any, ...]] = []

    def hear(self, *what: Any) -> Any:
        self.heard.append(what)
        return after_a_while(None) if self.later else None

    def check_key(self, session: Session) -> Any:
        if session.key == "taken":
            raise Refused("another's")

    def make_key(self, session: Session) -> Any:
        return after_a_while(self.key) if self.later else self.key

    def connected(self, session: Session) -> Any:
        return self.hear("connected", session)

    def disconnected(self, session: Session, reason: Disconnect) -> Any:
        return self.hear("disconnected", session, reason)

    def heartbeat(self, session: Session) -> Any:
        return self.hear("heartbeat", session)


class Messages(MessageHook):
    def __init__(self, answer: Any, later: bool = False) -> None:
        self.answer = answer
        self.later = later
        self.heard: list[tuple[Session, Frame]] = []

    def receive(self, session: Session, frame: Frame) -> Any:
        self.heard.append((session, frame))
        return after_a_while(self.answer) if self.later else self.answer


async def end(logic: Logic, session: Session, written: int = 0) -> None:
    """Every flow of the end, as Exchanges runs them."""
    for flow in (*logic.withdrawn(session, written), *logic.disconnected(session, GONE)):
        await run(flow)


# Connect.


async def test_connecting_registers_the_session_under_this_servers_name() -> None:
    registry = MemoryRegistry()
    session = plain(new_logic(registry=registry).connect(REQUEST))
    assert (session.mid, session.key, session.server) == (7, "k", "node-1")
    assert registry.keys(["k"]) == {"node-1": ["k"]}
    assert registry.mids([7]) == [session]


async def test_the_applications_own_data_stays_with_the_session() -> None:
    data = object()
    given = Session(mid=1, key="k", room_id="live://1", platform="web", accepts=frozenset((5,)), data=data)
    session = plain(new_logic(auth=Auth(given)).connect(REQUEST))
    assert session.data is data
    assert (session.room_id, session.platform, session.accepts) == ("live://1", "web", {5})


@pytest.mark.parametrize("later", [False, True])
async def test_a_session_without_a_key_is_given_one(later: bool) -> None:
    registry: Registry = LaterRegistry() if later else MemoryRegistry()
    logic = new_logic(auth=Auth(Session(mid=1), later), sessions=Sessions("made", later), registry=registry)
    session = await run(logic.connect(REQUEST))
    assert session.key == "made"
    found = registry.keys(["made"])
    assert (await found if inspect.isawaitable(found) else found) == {"node-1": ["made"]}


@pytest.mark.parametrize("answer", [None, "user", {"mid": 1}, Session])
@pytest.mark.parametrize("later", [False, True])
async def test_authenticate_may_return_only_a_session(answer: Any, later: bool) -> None:
    logic = new_logic(auth=Auth(answer, later))
    with pytest.raises(HookError, match=r"^Auth\.authenticate may return a Session; it returned \w+$"):
        await run(logic.connect(REQUEST))


@pytest.mark.parametrize("key", [None, 5, b"key"])
async def test_make_key_may_return_only_text(key: Any) -> None:
    logic = new_logic(auth=Auth(Session(mid=1)), sessions=Sessions(key))
    with pytest.raises(HookError, match=r"^Sessions\.make_key may return a str; it returned "):
        plain(logic.connect(REQUEST))


@pytest.mark.parametrize("key", ["", "a\n", "x" * 257])
async def test_make_key_has_to_return_a_key(key: str) -> None:
    registry = MemoryRegistry()
    logic = new_logic(auth=Auth(Session(mid=1)), sessions=Sessions(key), registry=registry)
    with pytest.raises(ValueError, match="^key: expected 1 to 256 printable characters"):
        plain(logic.connect(REQUEST))
    assert len(registry) == 0


@pytest.mark.parametrize("error", [Refused("no"), Disconnect("no"), StorageError("no")], ids=repr)
async def test_what_authenticate_raises_comes_out_and_registers_nothing(error: Exception) -> None:
    class Raising(AuthHook):
        def authenticate(self, request: AuthRequest) -> Session:
            raise error

    registry = MemoryRegistry()
    with pytest.raises(type(error)) as raised:
        plain(new_logic(auth=Raising(), registry=registry).connect(REQUEST))
    assert raised.value is error
    assert len(registry) == 0


async def test_a_fault_of_authenticate_is_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(AuthHook):
        def authenticate(self, request: AuthRequest) -> Session:
            raise RuntimeError(request.token)

    registry = MemoryRegistry()
    with pytest.raises(Refused, match="^internal error$"):
        plain(new_logic(auth=Raising(), registry=registry).connect(AuthRequest(b"hidden")))
    assert len(registry) == 0
    assert "a hook raised RuntimeError; " in caplog.text
    assert "hidden" not in caplog.text


async def test_a_key_that_the_session_names_is_checked() -> None:
    registry = MemoryRegistry()
    logic = new_logic(auth=Auth(Session(mid=1, key="taken")), sessions=Sessions(), registry=registry)
    with pytest.raises(Refused, match="another's"):
        plain(logic.connect(REQUEST))
    assert len(registry) == 0


async def test_a_key_that_is_made_is_not_checked() -> None:
    logic = new_logic(auth=Auth(Session(mid=1)), sessions=Sessions("taken"))
    assert plain(logic.connect(REQUEST)).key == "taken"


async def test_the_server_fills_in_what_is_its_own() -> None:
    given = Session(mid=1, key="k", platform="web", server="forged", joined=frozenset(("live://1",)))
    session = plain(new_logic(auth=Auth(given)).connect(REQUEST))
    assert (session.server, session.joined, session.device) == ("node-1", frozenset(), "web")
    given = Session(mid=1, key="k", platform="web", device="phone-7")
    assert plain(new_logic(auth=Auth(given)).connect(REQUEST)).device == "phone-7"


async def test_withdrawing_undoes_connecting_and_tells_no_hook() -> None:
    registry, sessions = MemoryRegistry(), Sessions()
    logic = new_logic(registry=registry, sessions=sessions)
    plain(logic.withdraw(plain(logic.connect(REQUEST))))
    assert len(registry) == 0
    assert sessions.heard == []


# Life.


@pytest.mark.parametrize("later", [False, True])
async def test_a_session_is_followed(later: bool) -> None:
    registry: Any = LaterRegistry() if later else MemoryRegistry()
    sessions = Sessions(later=later)
    logic = new_logic(registry=registry, sessions=sessions)
    session = await run(logic.connect(REQUEST))
    await run(logic.connected(session))
    await run(logic.heartbeat(session, 0))
    await end(logic, session)
    expected = [("connected", session), ("heartbeat", session), ("disconnected", session, GONE)]
    assert sessions.heard == expected
    assert len(registry.inner if later else registry) == 0
    if later:
        assert registry.renewed == [session]


async def test_a_connection_that_was_replaced_leaves_its_successors_route() -> None:
    registry = MemoryRegistry()
    logic = new_logic(registry=registry)
    old, new = plain(logic.connect(REQUEST)), plain(logic.connect(REQUEST))
    await end(logic, old)
    assert registry.keys(["k"]) == {"node-1": ["k"]}
    await end(logic, new)
    assert registry.keys(["k"]) == {}


async def test_a_heartbeat_is_passed_on_only_where_somebody_wants_it() -> None:
    assert not new_logic().beats
    assert not new_logic(registry=MemoryRegistry()).beats
    assert new_logic(sessions=Sessions()).beats
    assert new_logic(registry=LaterRegistry()).beats
    assert new_logic(storage=MemoryStorage()).beats


# Messages.


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (None, encode(1000, b"", 7, 3)),
        (b"answer", encode(1000, b"answer", 7, 3)),
        (b"", encode(1000, b"", 7, 3)),
        (Frame(5, b"other", seq=1, ver=2), encode(5, b"other", 1, 2)),
    ],
)
async def test_what_the_message_hook_returns_is_the_reply(answer: Any, reply: bytes, later: bool) -> None:
    messages = Messages(answer, later)
    session, frame = Session(mid=1), Frame(1000, b"body", seq=7, ver=3)
    assert await run(new_logic(messages=messages).receive(session, frame)) == reply
    assert messages.heard == [(session, frame)]


@pytest.mark.parametrize("answer", ["text", 5, bytearray(b"x"), [b"x"], False])
async def test_the_message_hook_is_told_what_it_may_return(answer: Any) -> None:
    logic = new_logic(messages=Messages(answer))
    told = r"^Messages\.receive may return None, bytes or a Frame; it returned "
    with pytest.raises(HookError, match=told + type(answer).__name__):
        plain(logic.receive(Session(mid=1), Frame(1000)))


async def test_a_reply_that_does_not_fit_a_frame_is_an_error_of_the_hook() -> None:
    with pytest.raises(ValueError, match="^op: "):
        plain(new_logic(messages=Messages(Frame(2**31))).receive(Session(mid=1), Frame(1000)))


# A new token.


@pytest.mark.parametrize("later", [False, True])
async def test_a_refresh_renews_what_the_token_says_of_time_and_data(later: bool) -> None:
    session = Session(mid=7, key="k", room_id="live://1", expires=5.0, data="old")
    logic = new_logic(auth=Auth(Session(mid=7, key="other", expires=9.0, data="new"), later))
    await run(logic.refresh(session, REQUEST))
    assert (session.expires, session.data) == (9.0, "new")
    assert (session.key, session.room_id) == ("k", "live://1")


@pytest.mark.parametrize(
    "answer",
    [Session(mid=8, expires=9.0), Refused("no"), Disconnect("no"), None, RuntimeError("no")],
    ids=repr,
)
async def test_a_refresh_that_fails_leaves_the_session_as_it_was(answer: Any) -> None:
    class Answers(AuthHook):
        def authenticate(self, request: AuthRequest) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    session = Session(mid=7, key="k", expires=5.0, data="old")
    expected = (Refused, HookError, RuntimeError)  # never Disconnect: the old token is still good
    with pytest.raises(expected):
        plain(new_logic(auth=Answers()).refresh(session, REQUEST))
    assert (session.expires, session.data) == (5.0, "old")


# The inbox.


async def test_without_a_storage_there_is_no_inbox() -> None:
    logic, session = new_logic(), Session(mid=1, key="k")
    assert not logic.stores
    for flow in (logic.cursor(session), logic.after(session, 0), logic.acknowledge(session, 1)):
        with pytest.raises(Refused) as refused:
            plain(flow)
        assert refused.value.code == ErrorCode.NOT_FOUND
    plain(logic.written(session, 5))  # nothing to do, and nothing to complain about


async def test_acknowledging_moves_the_cursor_of_the_device() -> None:
    storage = MemoryStorage()
    logic = new_logic(storage=storage)
    phone, tablet = (Session(mid=1, key=name, device=name) for name in ("phone", "tablet"))
    storage.append([1], 1000, b"one")
    storage.append([1], 1000, b"two")
    assert plain(logic.acknowledge(phone, 1)) == 1
    assert plain(logic.acknowledge(phone, 0)) == 1, "it never moves back"
    assert [plain(logic.cursor(session)) for session in (phone, tablet)] == [1, 0]
    with pytest.raises(Refused, match="^ack: 3 ") as refused:
        plain(logic.acknowledge(phone, 3))
    assert refused.value.code == ErrorCode.BAD_REQUEST


class Nonsense(MemoryStorage):
    """Answers with what it was given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def cursor(self, mid: int, device: str) -> Any:
        return self.answer

    def after(self, mid: int, seq: int, limit: int, size: int) -> Any:
        return self.answer

    def acknowledge(self, mid: int, device: str, seq: int) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [None, "1", -1, 1.5, True, 2**31])
async def test_a_cursor_that_is_none_is_an_error_of_the_storage(answer: Any) -> None:
    logic, session = new_logic(storage=Nonsense(answer)), Session(mid=1, key="k")
    with pytest.raises(HookError, match=r"^Nonsense\.cursor may return "):
        plain(logic.cursor(session))
    with pytest.raises(HookError, match=r"^Nonsense\.acknowledge may return "):
        plain(logic.acknowledge(session, 1))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        5,
        ["text"],
        [Stored(3, 1000, b"", 0.0)],
        [Stored(5, 1000, b"", 0.0), Stored(5, 1000, b"", 0.0)],
        [Stored(5, 1000, b"", 0.0), Stored(4, 1000, b"", 0.0)],
        [Stored(2**31, 1000, b"", 0.0)],
        [Stored("5", 1000, b"", 0.0)],
        [Stored(5, 2**31, b"", 0.0)],
        [Stored(5, "1000", b"", 0.0)],
        [Stored(5, 1000, "text", 0.0)],
    ],
)
async def test_a_page_that_is_none_is_an_error_of_the_storage(answer: Any) -> None:
    """Or it would be sent for ever, or end the server where it is encoded."""
    logic = new_logic(storage=Nonsense(answer))
    with pytest.raises(HookError, match=r"^Nonsense\.after may return "):
        plain(logic.after(Session(mid=1, key="k"), 3))


async def test_any_sequence_is_a_page() -> None:
    page: Sequence[Stored] = (Stored(4, 1000, b"", 0.0), Stored(9, 0, b"", 0.0))
    assert plain(new_logic(storage=Nonsense(page)).after(Session(mid=1, key="k"), 3)) == page


# Who was seen.


async def test_the_end_of_the_last_connection_is_when_a_user_was_seen() -> None:
    storage, clock = MemoryStorage(), ManualClock()
    sessions = Sessions()
    logic = new_logic(storage=storage, clock=clock, sessions=sessions, auth=Auth(Session(mid=7)))
    sessions.key = "a"
    first = plain(logic.connect(REQUEST))
    sessions.key = "b"
    second = plain(logic.connect(REQUEST))
    await end(logic, first)
    assert storage.last_seen([7]) == {}
    assert plain(logic.last_seen(second, [7])) == {7: (True, None)}
    clock.advance(5)
    await end(logic, second)
    assert plain(logic.last_seen(second, [7])) == {7: (False, clock.time())}


async def test_only_those_who_may_ask_when_a_user_was_seen() -> None:
    logic, asks = new_logic(storage=MemoryStorage()), Session(mid=7, key="k")
    with pytest.raises(Refused, match="user 8"):
        plain(logic.last_seen(asks, [7, 8]))


async def test_what_was_written_is_acknowledged_at_a_heartbeat_and_at_the_end() -> None:
    storage = MemoryStorage()
    logic, session = new_logic(storage=storage), Session(mid=7, key="k", device="d")
    for _ in range(5):
        storage.append([7], 1000, b"")
    plain(logic.heartbeat(session, 2))
    assert storage.cursor(7, "d") == 2
    plain(logic.heartbeat(session, 0))
    assert storage.cursor(7, "d") == 2
    await end(logic, session, 4)
    assert storage.cursor(7, "d") == 4
