"""Rooms over sockets: several for one connection, permission, who is there, who comes and goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core import Options, Refused, RoomHook, Session, SessionHook
from goim_core.errors import Disconnect, ErrorCode
from goim_core.memory_storage import MemoryStorage
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, World, both, frame, int32, serve, until
from tests.e2e.hooks import Gate, Log, SessionLog
from tests.e2e.inboxes import (
    ERROR,
    JOIN,
    LAST_SEEN,
    LEAVE,
    MEMBERS,
    OP,
    PRESENCE,
    UNWATCH,
    WATCH,
    ask,
    read_error,
    refused,
)

pytestmark = pytest.mark.anyio

CHANGE_ROOM = 12
ALL = [OP, ERROR, JOIN, LEAVE, MEMBERS, WATCH, UNWATCH, PRESENCE, LAST_SEEN]
LOBBY, CHAT, GAME = "live://lobby", "live://chat", "game://1"


async def pushed(world: World, client: Client, *rooms: str) -> None:
    """Pushes to these rooms come once each; to all others not at all."""
    for room in (LOBBY, CHAT, GAME):
        await world.server.push_room(room, OP, room.encode())
        await world.sent()
        if room in rooms:
            assert await client.frame() == frame(OP, room.encode())
    await client.send(frame(2, seq=9))
    assert (await client.frame())[:16] == frame(3, int32(0), seq=9)[:16]


async def members(client: Client, room: str, **page: int) -> dict[str, Any]:
    found = json.loads(await ask(client, MEMBERS, json.dumps({"room_id": room, **page})))
    assert isinstance(found, dict)
    assert found.pop("room_id") == room
    return found


async def presence(client: Client) -> dict[str, Any]:
    """A presence event has to be next."""
    data = await client.frame()
    assert data[:16] == frame(PRESENCE, data[16:])[:16]
    event = json.loads(data[16:])
    assert isinstance(event, dict)
    return event


# Several rooms.


@both
async def test_join_and_leave_several_rooms(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, accepts=ALL)
        await pushed(world, client)
        assert await ask(client, JOIN, CHAT) == CHAT.encode()
        await pushed(world, client, CHAT)
        await ask(client, JOIN, GAME)
        await pushed(world, client, CHAT, GAME)
        assert await ask(client, LEAVE, CHAT) == CHAT.encode()
        await pushed(world, client, GAME)
        await ask(client, LEAVE, GAME)
        await pushed(world, client)
        assert world.server.online_rooms([CHAT, GAME]) == {CHAT: 0, GAME: 0}


@both
async def test_joined_rooms_are_beside_the_one_of_goim(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room=LOBBY, accepts=ALL)
        await ask(client, JOIN, CHAT)
        await pushed(world, client, LOBBY, CHAT)
        await ask(client, CHANGE_ROOM, GAME)
        await pushed(world, client, CHAT, GAME)
        await ask(client, CHANGE_ROOM, "")
        await pushed(world, client, CHAT)
        assert await client.beat() == 0  # goim's count is that of goim's one room


@both
async def test_a_room_by_both_ways_is_one_room(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room=CHAT, accepts=ALL)
        for _ in range(2):  # joining again is no harm
            await ask(client, JOIN, CHAT)
            await pushed(world, client, CHAT)
        assert world.server.online_rooms([CHAT]) == {CHAT: 1}
        await ask(client, CHANGE_ROOM, LOBBY)
        await pushed(world, client, CHAT, LOBBY)
        await ask(client, CHANGE_ROOM, CHAT)
        await ask(client, LEAVE, CHAT)
        await pushed(world, client, CHAT)
        assert (await refused(client, LEAVE, CHAT))[0] == 404  # it has not joined it
        assert await client.beat() == 1


@both
async def test_a_connection_that_ends_leaves_all_rooms(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room=LOBBY, accepts=ALL)
        await ask(client, JOIN, CHAT)
        await ask(client, JOIN, GAME)
        client.close()
        await until(lambda: world.server.stats().users == 0)
        assert world.server.online_rooms([LOBBY, CHAT, GAME]) == {LOBBY: 0, CHAT: 0, GAME: 0}


@both
async def test_a_limit_of_rooms(wire: str) -> None:
    async with serve(options=Options(max_rooms=2)) as world:
        client = await world.login(wire, room=LOBBY, accepts=ALL)
        await ask(client, JOIN, CHAT)
        await ask(client, JOIN, GAME)
        assert await refused(client, JOIN, "live://3") == (429, "at most 2 rooms for a connection")
        await ask(client, JOIN, GAME)
        await ask(client, LEAVE, CHAT)
        await ask(client, JOIN, "live://3")
        await pushed(world, client, LOBBY, GAME)


@both
async def test_what_is_no_room(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room=CHAT, accepts=ALL)
        for body in (b"", b"lobby", b"://x", b"live://", b"\xff", b"live://\n", b"live://" + b"x" * 300):
            for op in (JOIN, LEAVE, WATCH, UNWATCH):
                assert (await refused(client, op, body))[0] == 400
        for op in (LEAVE, WATCH, UNWATCH):
            assert (await refused(client, op, GAME))[0] in (403, 404)  # it is not in there
        await pushed(world, client, CHAT)


async def test_joins_of_many_connections_at_once() -> None:
    async with serve() as world:
        clients = [await world.login("tcp", mid=mid, accepts=ALL) for mid in range(30)]
        for client in clients:
            await client.send(*(frame(JOIN, f"live://{n}".encode(), seq=n) for n in range(20)))
        for client in clients:
            for n in range(20):
                assert await client.frame() == frame(JOIN + 1, f"live://{n}".encode(), seq=n)
        rooms = [f"live://{n}" for n in range(20)]
        assert set(world.server.online_rooms(rooms).values()) == {30}
        for room in rooms:
            await world.server.push_room(room, OP, room.encode())
        for client in clients:
            # Between rooms there is no order.
            got = {await client.frame() for _ in rooms}
            assert got == {frame(OP, room.encode()) for room in rooms}


# Permission.


def yes() -> bool:
    return True


def no() -> bool:
    return False


def members_only() -> bool:
    raise Refused("members only", ErrorCode.NOT_FOUND)


def mistake() -> bool:
    raise RuntimeError("a mistake in the hook")


class Door(RoomHook):
    """Lets in to rooms called ``1`` as ``act`` says; keeps ``kind`` "plain" or "async"."""

    def __init__(self, kind: str, act: Callable[[], Any]) -> None:
        self.log = Log()
        self._kind, self._act = kind, act

    def may_enter(self, session: Session, room_id: str) -> Any:
        return self._later(room_id) if self._kind == "async" else self._now(room_id)

    def _now(self, room_id: str) -> Any:
        return self._act() if room_id == GAME else True

    async def _later(self, room_id: str) -> Any:
        await anyio.lowlevel.checkpoint()
        return self._now(room_id)

    def entered(self, session: Session, room_id: str) -> None:
        self.log.add(("entered", room_id))

    def left(self, session: Session, room_id: str) -> None:
        self.log.add(("left", room_id))


kinds = pytest.mark.parametrize("kind", ["plain", "async"])
refusals = pytest.mark.parametrize(
    ("act", "code", "reason"),
    [
        (no, 403, "room_id: game://1 is not open to this user"),
        (members_only, 404, "members only"),
        (mistake, 500, "internal error"),
        (lambda: "yes", 500, "internal error"),
        (lambda: None, 500, "internal error"),
    ],
    ids=["no", "members only", "mistake", "wrong thing", "nothing"],
)


@both
@kinds
@refusals
async def test_refused_at_authentication(
    wire: str, kind: str, act: Callable[[], Any], code: int, reason: str
) -> None:
    async with serve(rooms=Door(kind, act)) as world:
        client = await world.connect(wire)
        await client.send(frame(7, json.dumps({"mid": 1, "room_id": GAME}).encode()))
        assert await client.told() == (1011 if code == 500 else 4001, reason)
        assert world.server.stats().users == 0
        await world.login(wire, room=CHAT)


@both
@kinds
@refusals
@pytest.mark.parametrize("op", [CHANGE_ROOM, JOIN])
async def test_refused_later(
    wire: str, kind: str, op: int, act: Callable[[], Any], code: int, reason: str
) -> None:
    """The client stays where it was, and hears why."""
    door = Door(kind, act)
    async with serve(rooms=door) as world:
        client = await world.login(wire, room=CHAT, accepts=ALL)
        assert await refused(client, op, GAME) == (code, reason)
        await pushed(world, client, CHAT)
        assert await ask(client, op, LOBBY) == LOBBY.encode()
        await pushed(world, client, LOBBY, *([CHAT] if op == JOIN else []))
        assert ("entered", GAME) not in door.log.entries


@both
async def test_a_goim_client_that_is_refused_is_told_where_it_is(wire: str) -> None:
    async with serve(rooms=Door("plain", no)) as world:
        client = await world.login(wire, room=CHAT, accepts=[OP])
        assert await ask(client, CHANGE_ROOM, GAME) == CHAT.encode()
        await pushed(world, client, CHAT)


@both
@kinds
async def test_disconnected_by_the_hook(wire: str, kind: str) -> None:
    def banned() -> bool:
        raise Disconnect("banned", 4200)

    async with serve(rooms=Door(kind, banned)) as world:
        client = await world.login(wire, room=CHAT, accepts=ALL)
        await client.send(frame(JOIN, GAME.encode()))
        assert await client.told() == (4200, "banned")


@both
@pytest.mark.parametrize("op", [CHANGE_ROOM, JOIN])
async def test_a_permission_that_hangs(wire: str, op: int) -> None:
    clock, gate = ManualClock(), Gate()

    class Hangs(RoomHook):
        async def may_enter(self, session: Session, room_id: str) -> bool:
            if room_id == GAME:
                await gate.wait(room_id)
            return True

    async with serve(rooms=Hangs(), clock=clock, options=Options(hook_timeout=3.0)) as world:
        other = await world.login("tcp", mid=2, accepts=ALL)
        client = await world.login(wire, room=CHAT, accepts=ALL)
        await client.send(frame(op, GAME.encode(), seq=5, ver=3))
        await gate.log.reach(1)
        await ask(other, JOIN, CHAT)
        await pushed(world, other, CHAT)  # all others go on
        assert await client.frame() == frame(OP, CHAT.encode())
        clock.advance(3.5)
        assert read_error(await client.frame(), op) == (504, "the server took too long")
        gate.opened.set()
        await pushed(world, client, CHAT)
        stuck = await world.connect(wire)
        gate.opened = anyio.Event()
        await stuck.send(frame(7, json.dumps({"mid": 3, "room_id": GAME}).encode()))
        await gate.log.reach(2)
        clock.advance(3.5)
        assert await stuck.told() == (4002, "the server took too long")


@both
async def test_each_entering_has_its_leaving(wire: str) -> None:
    door = Door("async", yes)
    async with serve(rooms=door) as world:
        client = await world.login(wire, room=LOBBY, accepts=ALL)
        await ask(client, JOIN, CHAT)
        await ask(client, CHANGE_ROOM, GAME)
        await ask(client, LEAVE, CHAT)
        await ask(client, JOIN, GAME)
        client.close()
        await door.log.reach(6)
    assert door.log.entries == [
        ("entered", LOBBY),
        ("entered", CHAT),
        ("left", LOBBY),
        ("entered", GAME),
        ("left", CHAT),
        ("left", GAME),
    ]


# Who is there.


@both
async def test_members_in_pages(wire: str) -> None:
    async with serve() as world:
        clients = [await world.login(wire, mid=mid, room=CHAT, accepts=ALL) for mid in range(1, 8)]
        client = clients[0]
        assert await members(client, CHAT) == {"online": 7, "mids": [1, 2, 3, 4, 5, 6, 7], "next": None}
        assert await members(client, CHAT, limit=3) == {"online": 7, "mids": [1, 2, 3], "next": 3}
        assert await members(client, CHAT, offset=3, limit=3) == {"online": 7, "mids": [4, 5, 6], "next": 6}
        assert await members(client, CHAT, offset=6, limit=3) == {"online": 7, "mids": [7], "next": None}
        assert await members(client, CHAT, offset=100) == {"online": 7, "mids": [], "next": None}
        await ask(clients[3], CHANGE_ROOM, "")
        assert (await members(client, CHAT))["mids"] == [1, 2, 3, 5, 6, 7]


@both
async def test_members_are_named_once(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room=CHAT, accepts=ALL)
        await world.login(wire, room=CHAT)
        await world.login(wire, mid=2, room=CHAT)
        assert await members(client, CHAT) == {"online": 3, "mids": [1, 2], "next": None}


@both
async def test_what_is_no_question_for_members(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room=CHAT, accepts=ALL)
        await world.login(wire, mid=2, room=GAME)
        for room in (GAME, "live://nobody", "", 5, None, [CHAT]):  # only rooms that it is in
            assert (await refused(client, MEMBERS, json.dumps({"room_id": room})))[0] in (400, 403)
        for body in (b"", b"live://chat", b"[]", b"{", b"\xff", b"[" * 2000, b'{"offset":0}'):
            assert (await refused(client, MEMBERS, body))[0] in (400, 403)
        for name, value in (("offset", -1), ("offset", 10**9), ("limit", 0), ("limit", 201), ("limit", "1")):
            asked = json.dumps({"room_id": CHAT, name: value})
            code, message = await refused(client, MEMBERS, asked)
            assert (code, message.partition(":")[0]) == (400, name)
        assert (await members(client, CHAT, limit=200))["mids"] == [1]


# Who comes and goes.


@both
async def test_watch_and_unwatch(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock) as world:
        client = await world.login(wire, mid=1, room=CHAT, accepts=ALL)
        goes = await world.login(wire, mid=2, room=CHAT, accepts=ALL)
        assert await ask(client, WATCH, CHAT) == CHAT.encode()
        await ask(goes, CHANGE_ROOM, "")
        await world.login(wire, mid=3, room=CHAT)
        await ask(await world.login(wire, mid=4, accepts=ALL), JOIN, CHAT)
        passes = await world.login(wire, mid=5, room=CHAT, accepts=ALL)
        await ask(passes, CHANGE_ROOM, "")
        clock.advance(1.5)
        assert await presence(client) == {"room_id": CHAT, "joined": [3, 4], "left": [2], "online": 3}
        await ask(goes, CHANGE_ROOM, CHAT)
        clock.advance(1.5)
        assert await presence(client) == {"room_id": CHAT, "joined": [2], "left": [], "online": 4}
        assert await ask(client, UNWATCH, CHAT) == CHAT.encode()
        await ask(goes, CHANGE_ROOM, "")
        clock.advance(1.5)
        await clock.asleep(0.25)
        await pushed(world, client, CHAT)  # no event before it


@both
async def test_a_user_with_two_connections_comes_once_and_goes_once(wire: str) -> None:
    clock, sessions = ManualClock(), SessionLog()
    async with serve(clock=clock, sessions=sessions) as world:
        client = await world.login(wire, mid=1, room=CHAT, accepts=ALL)
        await ask(client, WATCH, CHAT)
        first = await world.login(wire, mid=2, room=CHAT)
        await world.login(wire, mid=2, room=CHAT)
        clock.advance(1.5)
        assert await presence(client) == {"room_id": CHAT, "joined": [2], "left": [], "online": 3}
        first.close()
        await sessions.log.reach(4)
        clock.advance(1.5)
        await clock.asleep(0.25)
        await pushed(world, client, CHAT)


async def test_a_watcher_that_does_not_accept_presence_gets_none() -> None:
    clock = ManualClock()
    async with serve(clock=clock) as world:
        client = await world.login("tcp", room=CHAT, accepts=[OP, WATCH])
        await ask(client, WATCH, CHAT)
        await world.login("tcp", mid=2, room=CHAT)
        clock.advance(1.5)
        await clock.asleep(0.25)
        await pushed(world, client, CHAT)


async def test_events_of_500_users_and_more_are_several() -> None:
    clock = ManualClock()
    async with serve(clock=clock) as world:
        client = await world.login("tcp", mid=0, room=CHAT, accepts=ALL)
        await ask(client, WATCH, CHAT)
        for mid in range(1, 601):
            await world.login("tcp", mid=mid, room=CHAT)
        clock.advance(1.5)
        events = [await presence(client), await presence(client)]
        assert [event["online"] for event in events] == [601, 601]
        assert events[0]["joined"] + events[1]["joined"] == list(range(1, 601))
        assert len(events[0]["joined"]) == 500


# Last seen.


class Friends(SessionHook):
    def may_see(self, session: Session, mid: int) -> bool:
        return mid < 100


@both
async def test_last_seen(wire: str) -> None:
    class FriendsLog(SessionLog, Friends):
        pass

    clock, sessions = ManualClock(), FriendsLog()
    async with serve(storage=MemoryStorage(), sessions=sessions, clock=clock) as world:
        client = await world.login(wire, mid=1, accepts=ALL)
        await world.login(wire, mid=2)
        gone = await world.login(wire, mid=3)
        gone.close()
        await sessions.log.reach(4)
        at = clock.time()
        clock.advance(60)
        assert json.loads(await ask(client, LAST_SEEN, b"[1,2,3,4,3]")) == {
            "1": {"online": True, "seen": None},
            "2": {"online": True, "seen": None},
            "3": {"online": False, "seen": at},
            "4": {"online": False, "seen": None},
        }
        assert (await refused(client, LAST_SEEN, b"[2,100]"))[0] == 403
        for body in (b"", b"7", b"{}", b"[]", b'["7"]', b"[1.5]", b"[true]", b"[9223372036854775808]"):
            assert (await refused(client, LAST_SEEN, body))[0] == 400
        assert (await refused(client, LAST_SEEN, json.dumps([1] * 101)))[0] == 400


@both
async def test_last_seen_of_others_is_not_for_everyone(wire: str) -> None:
    async with serve(storage=MemoryStorage()) as world:
        client = await world.login(wire, mid=1, accepts=ALL)
        assert json.loads(await ask(client, LAST_SEEN, b"[1]")) == {"1": {"online": True, "seen": None}}
        assert (await refused(client, LAST_SEEN, b"[2]"))[0] == 403
