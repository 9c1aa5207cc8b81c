"""Logic: what the hooks are asked, what they may answer, and where a push goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import anyio.lowlevel
import pytest

from goim_core.comet import Comet
from goim_core.errors import CloseCode, Disconnect, HookError, QueueFull, Refused
from goim_core.flow import Flow
from goim_core.hooks import AuthHook, AuthRequest, MessageHook, OpenAuth, Session, SessionHook
from goim_core.logic import Logic
from goim_core.protocol import Frame, encode
from goim_core.queue import MemoryQueue, PushMsg, PushType
from goim_core.registry import MemoryRegistry, Registry, Routes
from tests.links import Link

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


class LaterRegistry(Registry):
    """The memory registry behind ``async def``, as a real one is."""

    def __init__(self) -> None:
        self.inner = MemoryRegistry()
        self.renewed: list[Session] = []

    async def add(self, session: Session) -> None:
        self.inner.add(session)

    async def remove(self, session: Session) -> bool:
        return self.inner.remove(session)

    async def renew(self, session: Session) -> None:
        self.renewed.append(session)

    async def keys(self, keys: Iterable[str]) -> Routes:
        return self.inner.keys(keys)

    async def mids(self, mids: Iterable[int]) -> Routes:
        return self.inner.mids(mids)


async def after_a_while(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


async def run(flow: Flow[Any]) -> Any:
    """Drive a flow as Exchanges does."""
    try:
        step = next(flow)
        while True:
            step = flow.send(await step)
    except StopIteration as stop:
        return stop.value


def plain(flow: Flow[Any]) -> Any:
    """The outcome of a flow that has nothing to await."""
    with pytest.raises(StopIteration) as stop:
        next(flow)
    return stop.value.value


def new_logic(**parts: Any) -> Logic:
    given = {
        "comet": Comet(),
        "registry": MemoryRegistry(),
        "queue": MemoryQueue(8),
        "auth": OpenAuth(),
        "sessions": SessionHook(),
        "messages": MessageHook(),
    }
    return Logic("node-1", **{**given, **parts})


# Connect.


async def test_connecting_registers_the_session_under_this_servers_name() -> None:
    registry = MemoryRegistry()
    session = plain(new_logic(registry=registry).connect(REQUEST))
    assert (session.mid, session.key, session.server) == (7, "k", "node-1")
    assert registry.keys(["k"]) == {"node-1": ["k"]}
    assert registry.mids([7]) == {"node-1": ["k"]}


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


@pytest.mark.parametrize("error", [Refused("no"), Disconnect("no"), RuntimeError("no")], ids=repr)
async def test_what_authenticate_raises_comes_out_and_registers_nothing(error: Exception) -> None:
    class Raising(AuthHook):
        def authenticate(self, request: AuthRequest) -> Session:
            raise error

    registry = MemoryRegistry()
    with pytest.raises(type(error)) as raised:
        plain(new_logic(auth=Raising(), registry=registry).connect(REQUEST))
    assert raised.value is error
    assert len(registry) == 0


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
    await run(logic.heartbeat(session))
    await run(logic.disconnected(session, GONE))
    expected = [("connected", session), ("heartbeat", session), ("disconnected", session, GONE)]
    assert sessions.heard == expected
    assert len(registry.inner if later else registry) == 0
    if later:
        assert registry.renewed == [session]


async def test_a_connection_that_was_replaced_leaves_its_successors_route() -> None:
    registry = MemoryRegistry()
    logic = new_logic(registry=registry)
    old, new = plain(logic.connect(REQUEST)), plain(logic.connect(REQUEST))
    plain(logic.disconnected(old, GONE))
    assert registry.keys(["k"]) == {"node-1": ["k"]}
    plain(logic.disconnected(new, GONE))
    assert registry.keys(["k"]) == {}


async def test_a_heartbeat_is_passed_on_only_where_somebody_wants_it() -> None:
    assert not new_logic().beats
    assert not new_logic(registry=MemoryRegistry()).beats
    assert new_logic(sessions=Sessions()).beats
    assert new_logic(registry=LaterRegistry()).beats


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


# Pushes.


async def published(push: Callable[[Logic], Any], *sessions: Session) -> list[PushMsg]:
    queue, registry = MemoryQueue(8), MemoryRegistry()
    for session in sessions:
        registry.add(session)
    await push(new_logic(queue=queue, registry=registry))
    return [await queue.receive() for _ in range(queue.pending)]


HERE = [Session(mid=1, key="a", server="node-1"), Session(mid=1, key="b", server="node-1")]
THERE = [Session(mid=1, key="c", server="node-2"), Session(mid=2, key="d", server="node-2")]


async def test_a_push_to_keys_goes_to_each_server_once() -> None:
    msgs = await published(
        lambda logic: logic.push_keys(["a", "d", "b", "x", "a"], 1000, b"p"), *HERE, *THERE
    )
    assert msgs == [
        PushMsg(PushType.PUSH, 1000, b"p", server="node-1", keys=("a", "b")),
        PushMsg(PushType.PUSH, 1000, b"p", server="node-2", keys=("d",)),
    ]


async def test_a_push_to_users_goes_to_all_their_connections() -> None:
    msgs = await published(lambda logic: logic.push_mids([1, 5], 1000, b"p"), *HERE, *THERE)
    assert msgs == [
        PushMsg(PushType.PUSH, 1000, b"p", server="node-1", keys=("a", "b")),
        PushMsg(PushType.PUSH, 1000, b"p", server="node-2", keys=("c",)),
    ]


async def test_a_push_to_nobody_is_none() -> None:
    assert await published(lambda logic: logic.push_keys([], 1000, b"p")) == []
    assert await published(lambda logic: logic.push_mids(iter([5]), 1000, b"p")) == []


async def test_pushes_with_a_registry_that_takes_its_time() -> None:
    registry, queue = LaterRegistry(), MemoryQueue(8)
    registry.inner.add(HERE[0])
    logic = new_logic(registry=registry, queue=queue)
    await logic.push_keys(["a"], 1000, b"p")
    await logic.push_mids([1], 1000, b"q")
    assert [(await queue.receive()).keys for _ in range(2)] == [("a",), ("a",)]


async def test_a_push_to_a_room_and_to_all() -> None:
    assert await published(lambda logic: logic.push_room("live://1", 1000, b"p")) == [
        PushMsg(PushType.ROOM, 1000, b"p", room="live://1")
    ]
    assert await published(lambda logic: logic.push_all(1000, b"p", speed=5)) == [
        PushMsg(PushType.BROADCAST, 1000, b"p", speed=5)
    ]


async def push_each(logic: Logic, op: Any, body: Any, **nowait: bool) -> list[str]:
    """What each of the four kinds of push says to ``op`` and ``body``."""
    said = []
    for push in (
        logic.push_keys(["a"], op, body, **nowait),
        logic.push_mids([1], op, body, **nowait),
        logic.push_room("live://1", op, body, **nowait),
        logic.push_all(op, body, **nowait),
    ):
        try:
            await push
        except (ValueError, QueueFull) as error:
            said.append(str(error).partition(":")[0])
    return said


@pytest.mark.parametrize("op", [0, 9, 18, 63, -1, 2**31, True, None, "1000", 1000.0])
async def test_an_op_that_is_not_for_a_push(op: Any) -> None:
    queue = MemoryQueue(8)
    assert await push_each(new_logic(queue=queue), op, b"") == ["op"] * 4
    assert queue.pending == 0


@pytest.mark.parametrize("body", ["text", None, bytearray(b"x"), 5])
async def test_a_body_is_bytes(body: Any) -> None:
    queue = MemoryQueue(8)
    assert await push_each(new_logic(queue=queue), 1000, body) == ["body"] * 4
    assert queue.pending == 0


async def test_with_nowait_a_full_queue_says_so() -> None:
    queue, registry = MemoryQueue(1), MemoryRegistry()
    registry.add(HERE[0])
    logic = new_logic(queue=queue, registry=registry)
    await logic.push_all(1000, b"")
    assert await push_each(logic, 1000, b"", nowait=True) == ["the push queue is full"] * 4


@pytest.mark.parametrize(
    ("name", "push"),
    [
        ("keys", lambda logic: logic.push_keys("abc", 1000, b"")),
        ("keys", lambda logic: logic.push_keys([b"a"], 1000, b"")),
        ("keys", lambda logic: logic.push_keys([1], 1000, b"")),
        ("mids", lambda logic: logic.push_mids(["1"], 1000, b"")),
        ("mids", lambda logic: logic.push_mids([True], 1000, b"")),
        ("mids", lambda logic: logic.push_mids(b"12", 1000, b"")),
        ("room_id", lambda logic: logic.push_room("1000", 1000, b"")),
        ("room_id", lambda logic: logic.push_room("live://", 1000, b"")),
        ("speed", lambda logic: logic.push_all(1000, b"", speed=-1)),
        ("speed", lambda logic: logic.push_all(1000, b"", speed=True)),
        ("speed", lambda logic: logic.push_all(1000, b"", speed=1.5)),
        ("speed", lambda logic: logic.push_all(1000, b"", speed=2**31)),
    ],
)
async def test_an_argument_that_does_not_fit_is_named(name: str, push: Callable[[Logic], Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        await push(new_logic())


# Figures.


async def test_figures_are_those_of_comet() -> None:
    comet = Comet()
    logic = new_logic(comet=comet)
    for key, room, address in (
        ("a", "live://1", "::1"),
        ("b", "live://1", "::1"),
        ("c", "live://2", "127.0.0.1"),
    ):
        session = Session(mid=1, key=key, room_id=room)
        comet.put(Link(session=session, counters=comet.counters, address=address).channel)
    assert logic.online_top("live", 1) == [("1", 2)]
    assert logic.online_rooms(["live://2", "live://3"]) == {"live://2": 1, "live://3": 0}
    assert logic.online_total() == (2, 3)
