"""The room hook: who may be where, and that it hears of each entering and each leaving exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goim_core.errors import CloseCode, Disconnect, Refused
from goim_core.hooks import RoomHook, SessionHook
from goim_core.options import Options
from goim_core.protocol import Op
from goim_core.session import Session
from goim_core.testing import App, Client, running
from tests.logics import after_a_while

pytestmark = pytest.mark.anyio

ACCEPTS = [Op.ERROR, Op.JOIN, Op.LEAVE]
HOME = "home://1"


class Rooms(RoomHook):
    """Keeps count of who is in which room, and answers as it is told."""

    def __init__(self, later: bool = False) -> None:
        self.later = later
        self.answers: dict[str, Any] = {}
        """What may_enter answers of a room: a value, an error, or a hook that waits."""
        self.faults: dict[tuple[str, str], Any] = {}
        """What entered or left does of a room, after it has been heard."""
        self.inside: Counter[tuple[Session, str]] = Counter()
        self.heard: list[str] = []
        self.wrong: list[str] = []

    def may_enter(self, session: Session, room_id: str) -> Any:
        return self.does(self.answers.get(room_id, True))

    def entered(self, session: Session, room_id: str) -> Any:
        return self.hear("entered", session, room_id, 1)

    def left(self, session: Session, room_id: str) -> Any:
        return self.hear("left", session, room_id, -1)

    def hear(self, what: str, session: Session, room_id: str, change: int) -> Any:
        self.heard.append(f"{what} {room_id}")
        self.inside[session, room_id] += change
        if self.inside[session, room_id] not in (0, 1):
            self.wrong.append(f"{what} {room_id} without its other")
        return self.does(self.faults.get((what, room_id)))

    def does(self, what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        if callable(what):
            return what()
        return after_a_while(what) if self.later else what

    def rooms(self, session: Session) -> set[str]:
        """Where it is, after what was heard."""
        return {room_id for (of, room_id), count in self.inside.items() if count and of is session}

    def all_left(self) -> bool:
        """Whether each that entered has left, once, and none besides."""
        assert self.wrong == []
        return not any(self.inside.values())


class Sessions(SessionHook):
    def __init__(self, connected: Any = None) -> None:
        self.raises = connected
        self.heard: list[str] = []

    def connected(self, session: Session) -> None:
        self.heard.append("connected")
        if self.raises is not None:
            raise self.raises

    def disconnected(self, session: Session, reason: Disconnect) -> None:
        self.heard.append("disconnected")


async def connect(app: App, room_id: str = HOME, key: str = "k") -> Client:
    return await app.connect({"mid": 1, "key": key, "room_id": room_id, "accepts": ACCEPTS})


NO: list[tuple[Any, int, str]] = [
    (False, 403, "room_id: live://2 is not open to this user"),
    (Refused("full", 409), 409, "full"),
    (RuntimeError("secret"), 500, "internal error"),
    (None, 500, "internal error"),
    ("yes", 500, "internal error"),
    (1, 500, "internal error"),
]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("answer", "code", "message"), NO)
async def test_a_room_that_is_not_open_at_authentication_turns_away(
    answer: Any, code: int, message: str, later: bool
) -> None:
    rooms, sessions = Rooms(later), Sessions()
    rooms.answers["live://2"] = answer
    async with running(rooms=rooms, sessions=sessions) as app:
        with pytest.raises(Disconnect) as refused:
            await connect(app, "live://2")
        assert refused.value.code == (CloseCode.INTERNAL_ERROR if code == 500 else CloseCode.AUTH_REFUSED)
        assert refused.value.reason == message
        assert app.server.stats().users == 0
        assert app.server._registry.keys(["k"]) == {}
    assert (rooms.heard, sessions.heard) == ([], [])


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("op", [Op.CHANGE_ROOM, Op.JOIN])
@pytest.mark.parametrize(("answer", "code", "message"), NO)
async def test_a_room_that_is_not_open_later_leaves_the_client_where_it_was(
    answer: Any, code: int, message: str, op: Op, later: bool
) -> None:
    rooms = Rooms(later)
    rooms.answers["live://2"] = answer
    async with running(rooms=rooms) as app:
        client = await connect(app)
        await client.send(op, "live://2")
        assert await client.assert_refused(code) == message
        assert client.session.rooms == {HOME}
        assert app.server.online_rooms([HOME, "live://2"]) == {HOME: 1, "live://2": 0}
    assert rooms.heard == [f"entered {HOME}", f"left {HOME}"]


@pytest.mark.parametrize("op", [Op.CHANGE_ROOM, Op.JOIN])
async def test_a_permission_that_hangs_is_a_refusal(op: Op) -> None:
    rooms = Rooms()
    rooms.answers["live://2"] = anyio.sleep_forever
    async with running(rooms=rooms, options=Options(hook_timeout=5), patience=0) as app:
        client = await connect(app)
        await client.send(op, "live://2")
        await app.advance(6)
        await client.assert_refused(504)
        assert client.session.rooms == {HOME}
        await client.send(op, "live://3")
        await client.assert_reply(op + 1, "live://3")


async def test_a_permission_that_hangs_at_authentication_turns_away() -> None:
    rooms = Rooms()
    rooms.answers["live://2"] = anyio.sleep_forever
    async with running(rooms=rooms, options=Options(hook_timeout=5, auth_timeout=60), patience=0) as app:
        client = await app.open()
        await client.send(Op.AUTH, {"mid": 1, "room_id": "live://2"})
        await app.advance(6)
        await client.assert_closed(CloseCode.AUTH_TIMEOUT)
    assert rooms.heard == []


@pytest.mark.parametrize("op", [Op.CHANGE_ROOM, Op.JOIN])
async def test_who_leaves_while_the_hook_thinks_it_over_does_not_enter(op: Op) -> None:
    rooms, go_on = Rooms(), anyio.Event()

    async def slow() -> bool:
        await go_on.wait()
        return True

    rooms.answers["live://2"] = slow
    async with running(rooms=rooms, patience=0) as app:
        client = await connect(app)
        await client.send(op, "live://2")
        await app.idle()
        client.break_link()
        await app.idle()
        go_on.set()
        await app.idle()
        assert app.server.stats().rooms == 0
    assert rooms.heard == [f"entered {HOME}", f"left {HOME}"]


async def test_a_room_that_one_is_in_already_is_not_asked_for_again() -> None:
    rooms = Rooms()
    async with running(rooms=rooms) as app:
        client = await connect(app)
        await client.request(Op.JOIN, "live://2")
        rooms.answers = {"live://2": False, HOME: False}
        again = [(Op.JOIN, HOME), (Op.LEAVE, HOME), (Op.CHANGE_ROOM, "live://2"), (Op.JOIN, "live://2")]
        for op, room_id in again:
            assert (await client.request(op, room_id)).op == op + 1
    assert rooms.heard == [f"entered {HOME}", "entered live://2", f"left {HOME}", "left live://2"]


# Each exactly once.


@pytest.mark.parametrize("fault", [Refused("no"), Disconnect("no"), RuntimeError("no")], ids=repr)
@pytest.mark.parametrize("what", [("left", HOME), ("entered", "live://2"), ("left", "live://2")])
@pytest.mark.parametrize("op", [Op.CHANGE_ROOM, Op.JOIN])
async def test_a_hook_that_raises_hears_of_the_rest_all_the_same(
    fault: Exception, what: tuple[str, str], op: Op
) -> None:
    rooms, sessions = Rooms(), Sessions()
    rooms.faults[what] = fault
    async with running(rooms=rooms, sessions=sessions) as app:
        client = await connect(app)
        await client.send(op, "live://2")
        await app.idle()
        if not client.link.ended:
            assert "live://2" in client.session.rooms
    assert rooms.all_left()
    assert sorted(rooms.heard) == sorted(
        [f"entered {HOME}", "entered live://2", f"left {HOME}", "left live://2"]
    )
    assert sessions.heard == ["connected", "disconnected"]


@pytest.mark.parametrize("what", [("left", HOME), ("entered", "live://2"), ("entered", HOME)])
async def test_a_hook_that_hangs_hears_of_the_rest_all_the_same(what: tuple[str, str]) -> None:
    rooms, sessions = Rooms(), Sessions()
    rooms.faults[what] = anyio.sleep_forever
    async with running(rooms=rooms, sessions=sessions, options=Options(hook_timeout=5), patience=0) as app:
        client = await connect(app)
        await client.send(Op.CHANGE_ROOM, "live://2")
        await app.advance(6)
        await app.advance(6)
    assert rooms.all_left()
    assert sessions.heard == ["connected", "disconnected"]


@pytest.mark.parametrize("fault", [Refused("no"), Disconnect("no"), RuntimeError("no")], ids=repr)
async def test_who_is_turned_away_by_connected_never_entered(fault: Exception) -> None:
    rooms, sessions = Rooms(), Sessions(fault)
    async with running(rooms=rooms, sessions=sessions) as app:
        client = await app.open()
        await client.send(Op.AUTH, {"mid": 1, "room_id": HOME})
        await client.assert_closed()
        assert app.server.stats().rooms == 0
    assert rooms.heard == []
    assert sessions.heard == ["connected", "disconnected"]


async def test_who_is_replaced_leaves_its_rooms() -> None:
    rooms = Rooms()
    async with running(rooms=rooms) as app:
        old = await connect(app)
        await old.request(Op.JOIN, "live://2")
        new = await connect(app, "live://3")  # with the same key
        await old.assert_closed(CloseCode.REPLACED)
        assert rooms.rooms(old.session) == set()
        assert rooms.rooms(new.session) == {"live://3"}
    assert rooms.all_left()


MOVES = st.lists(
    st.tuples(
        st.sampled_from([Op.CHANGE_ROOM, Op.JOIN, Op.LEAVE]),
        st.sampled_from(["live://1", "live://2", "live://3", HOME, "", "closed://1"]),
    ),
    max_size=12,
)
ENDS: list[Callable[[Client], object]] = [Client.close, Client.break_link, lambda _: None]


@settings(max_examples=40, deadline=None)
@given(
    moves=MOVES,
    later=st.booleans(),
    end=st.sampled_from(ENDS),
    wait=st.booleans(),
    fault=st.none() | st.tuples(st.sampled_from(["entered", "left"]), st.sampled_from(["live://1", HOME])),
    first=st.sampled_from([HOME, ""]),
)
async def test_every_entering_has_its_leaving(
    moves: list[tuple[Op, str]], later: bool, end: Callable[[Client], object], wait: bool,
    fault: tuple[str, str] | None, first: str,
) -> None:  # fmt: skip
    """In any order of joins, changes and ends, pipelined or not, with a hook that raises or not."""
    rooms, sessions = Rooms(later), Sessions()
    rooms.answers["closed://1"] = False
    if fault is not None:
        rooms.faults[fault] = Refused("a fault")

    async with running(rooms=rooms, sessions=sessions) as app:
        client = await app.open()
        await client.send(Op.AUTH, {"mid": 1, "key": "k", "room_id": first, "accepts": ACCEPTS})
        for op, room_id in moves:
            if client.link.ended:
                break
            await client.send(op, room_id)
            if wait:
                await app.idle()
                assert client.link.ended or rooms.rooms(client.session) == client.session.rooms
        end(client)
        await app.idle()
    assert rooms.all_left()
    assert sessions.heard in (["connected", "disconnected"], [])
