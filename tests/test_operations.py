"""Operations: what each frame of a client is answered, and what it changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goim_core.clock import Deadlines
from goim_core.comet import Comet
from goim_core.errors import Disconnect, ErrorCode, HookError, Refused
from goim_core.hooks import AuthHook, MessageHook, RoomHook, SessionHook
from goim_core.logic import Logic
from goim_core.memory_storage import MemoryStorage
from goim_core.operations import MAX_ACCEPTS, MAX_MEMBERS, MAX_OFFSET, MAX_SEEN, Operations
from goim_core.options import Options
from goim_core.presence import Presence
from goim_core.protocol import INT32_MAX, Frame, Op, encode, split
from goim_core.session import AuthRequest, Session
from goim_core.testing.clock import ManualClock
from tests.links import Link
from tests.logics import new_logic, plain

ROOM = "live://1000"
OTHER = "live://2000"
EXTENSIONS = (18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40)


class Messages(MessageHook):
    """Answers with what came, so that what reaches it is seen."""

    def receive(self, session: Session, frame: Frame) -> bytes:
        return b"hook: " + frame.body


class Desk:
    """Operations over a comet, with logic whose hooks are plain."""

    def __init__(self, logic: Logic | None = None, max_rooms: int = 3) -> None:
        self.comet = Comet(presence=Presence(Deadlines(ManualClock())))
        logic = new_logic(messages=Messages()) if logic is None else logic
        self.operations = Operations(self.comet, logic, Options(max_rooms=max_rooms))

    def put(self, key: str, room_id: str = "", accepts: tuple[int, ...] = EXTENSIONS, mid: int = 1) -> Link:
        session = Session(mid=mid, key=key, room_id=room_id, accepts=frozenset(accepts), device="d")
        link = Link(session=session, counters=self.comet.counters)
        self.comet.put(link.channel)
        return link

    def answer(self, link: Link, op: int, body: bytes = b"") -> bytes:
        """The reply's bytes."""
        reply = plain(self.operations.answer(link.channel, Frame(op, body, seq=7, ver=3)))
        assert isinstance(reply, bytes)
        return reply

    def body(self, link: Link, op: int, body: bytes = b"") -> bytes:
        """The reply's body, of a reply that is the next operation and echoes the rest."""
        (reply,) = split(self.answer(link, op, body))
        assert (reply.op, reply.seq, reply.ver) == (op + 1, 7, 3)
        return reply.body

    def refused(self, link: Link, op: int, body: bytes = b"") -> Refused:
        with pytest.raises(Refused) as refused:
            self.answer(link, op, body)
        return refused.value


# goim's own.


def test_a_heartbeat_is_answered_with_the_rooms_count() -> None:
    desk = Desk()
    link, alone = desk.put("a", ROOM), desk.put("c")
    desk.put("b", ROOM)
    frame = Frame(Op.HEARTBEAT, seq=7, ver=3)
    assert desk.operations.heartbeat(link.channel, frame) == encode(3, b"\0\0\0\2", 7, 3)
    assert desk.operations.heartbeat(alone.channel, frame) == encode(3, b"\0\0\0\0", 7, 3)


def test_change_room_echoes_the_body_and_moves_the_channel() -> None:
    desk = Desk()
    link = desk.put("a", ROOM)
    assert desk.answer(link, Op.CHANGE_ROOM, OTHER.encode()) == encode(13, OTHER.encode(), 7, 3)
    assert (desk.comet.online(ROOM), desk.comet.online(OTHER)) == (0, 1)
    assert link.session.room_id == OTHER
    assert desk.answer(link, Op.CHANGE_ROOM) == encode(13, b"", 7, 3)
    assert desk.comet.rooms == {}
    assert link.session.room_id == ""


def test_subscriptions_add_and_take_away() -> None:
    desk = Desk()
    link = desk.put("a", accepts=(1,))
    assert desk.answer(link, Op.SUB, b"1000,1001") == encode(15, b"1000,1001", 7, 3)
    assert link.channel.accepts == link.session.accepts == {1, 1000, 1001}
    assert desk.answer(link, Op.UNSUB, b"1000,5") == encode(17, b"1000,5", 7, 3)
    assert link.channel.accepts == link.session.accepts == {1, 1001}
    assert desk.body(link, Op.SUB, b"%d" % INT32_MAX)


def test_subscriptions_have_a_limit() -> None:
    desk = Desk()
    link = desk.put("a", accepts=(1,))
    most = b",".join(b"%d" % op for op in range(1, MAX_ACCEPTS + 1))
    assert desk.body(link, Op.SUB, most) == most
    assert desk.refused(link, Op.SUB, b"5,5000").code == ErrorCode.TOO_MANY
    assert len(link.channel.accepts) == MAX_ACCEPTS


@pytest.mark.parametrize(
    "body",
    [b"", b",", b"1000,", b"-1", b"+1", b" 1", b"1_0", b"0x1", b"1.0", b"2147483648", b"\xd9\xa3", b"0" * 11],
)
def test_subscriptions_that_are_no_list_of_int32_change_nothing(body: bytes) -> None:
    desk = Desk()
    link = desk.put("a", accepts=(1,))
    for op in (Op.SUB, Op.UNSUB):
        refused = desk.refused(link, op, body)
        assert refused.code == ErrorCode.BAD_REQUEST
        assert refused.reason.startswith("operations: ")
    assert link.channel.accepts == {1}


BAD_ROOMS = [
    b"live",
    b"://",
    b"live://",
    b"://1",
    b"live:/1",
    b"\xff\xfe",
    b"live://" + bytes(300),
    b"live://\n",
]


@pytest.mark.parametrize("op", [Op.CHANGE_ROOM, Op.JOIN, Op.LEAVE, Op.WATCH, Op.UNWATCH])
@pytest.mark.parametrize("body", BAD_ROOMS)
def test_a_bad_room_id_changes_nothing(op: Op, body: bytes) -> None:
    desk = Desk()
    link = desk.put("a", ROOM)
    refused = desk.refused(link, op, body)
    assert refused.code == ErrorCode.BAD_REQUEST
    assert refused.reason.startswith("room_id: ")
    assert link.session.rooms == {ROOM}


@pytest.mark.parametrize("op", [Op.JOIN, Op.LEAVE, Op.WATCH, Op.UNWATCH])
def test_only_a_change_of_room_may_name_none(op: Op) -> None:
    desk = Desk()
    assert desk.refused(desk.put("a", ROOM), op).reason.startswith("room_id: missing")


@pytest.mark.parametrize(
    "op", [0, 1, 9, 10, 11, *(op for op in range(18, 64) if op not in range(20, 40, 2)), 34]
)
def test_operations_that_are_not_for_clients_are_refused(op: int) -> None:
    desk = Desk()
    refused = desk.refused(desk.put("a"), op)
    assert (refused.code, f"operation {op} " in refused.reason) == (ErrorCode.BAD_REQUEST, True)


def test_a_second_auth_is_refused() -> None:
    desk = Desk()
    refused = desk.refused(desk.put("a"), Op.AUTH)
    assert (refused.code, "authenticated already" in refused.reason) == (ErrorCode.CONFLICT, True)


@pytest.mark.parametrize("op", [4, 3, 17, 64, 1000, INT32_MAX, -1, -(2**31)])
def test_all_other_operations_are_the_message_hooks(op: int) -> None:
    desk = Desk()
    assert desk.answer(desk.put("a"), op, b"body") == encode(op, b"hook: body", 7, 3)


# Refusals.


@pytest.mark.parametrize(
    ("op", "reply"),
    [
        (Op.CHANGE_ROOM, encode(13, ROOM.encode(), 7, 3)),
        (Op.SUB, encode(15, b"", 7, 3)),
        (Op.UNSUB, encode(17, b"", 7, 3)),
        (Op.AUTH, encode(7, b"", 7, 3)),
        (1000, encode(1000, b"", 7, 3)),
        (INT32_MAX, encode(INT32_MAX, b"", 7, 3)),
    ],
)
def test_a_refusal_to_a_goim_client_claims_nothing(op: int, reply: bytes) -> None:
    desk = Desk()
    link = desk.put("a", ROOM, accepts=())
    assert desk.operations.refusal(link.channel, Frame(op, b"body", 7, 3), Refused("no")) == reply


def test_a_refusal_of_a_room_to_a_client_in_none() -> None:
    desk = Desk()
    frame = Frame(Op.CHANGE_ROOM, b"body", seq=7, ver=3)
    link = desk.put("a", accepts=())
    assert desk.operations.refusal(link.channel, frame, Refused("no")) == encode(13, b"", 7, 3)


def test_a_refusal_to_a_client_that_accepts_errors_says_why() -> None:
    desk = Desk()
    link = desk.put("a", accepts=(Op.ERROR,))
    refused = Refused("n\N{LATIN SMALL LETTER O WITH DIAERESIS} \ud800", 404)
    reply = desk.operations.refusal(link.channel, Frame(1000, b"body", seq=7, ver=3), refused)
    assert reply[:16] == encode(Op.ERROR, reply[16:], 7, 3)[:16]
    assert json.loads(reply[16:]) == {"op": 1000, "code": 404, "message": "n\u00f6 ?"}


BODIES = {
    Op.ACK: b"1", Op.SYNC: b"0", Op.JOIN: OTHER.encode(), Op.LEAVE: OTHER.encode(), Op.REFRESH: b"{}",
    Op.MEMBERS: b'{"room_id":"live://1000"}', Op.WATCH: ROOM.encode(), Op.UNWATCH: ROOM.encode(),
    Op.LAST_SEEN: b"[1]",
}  # fmt: skip


@pytest.mark.parametrize("op", BODIES)
def test_an_extension_is_refused_to_those_that_do_not_accept_it(op: Op) -> None:
    desk = Desk(new_logic(storage=MemoryStorage()))
    link = desk.put("a", ROOM, accepts=tuple(set(EXTENSIONS) - {op}))
    refused = desk.refused(link, op, BODIES[op])
    assert refused.code == ErrorCode.BAD_REQUEST
    assert refused.reason == f"operation {int(op)} ({op.name}) is not in this connection's accepts"
    assert link.session.rooms == {ROOM}


@given(st.sampled_from(sorted(BODIES)), st.binary(max_size=40) | st.text().map(str.encode))
def test_any_body_of_an_extension_is_answered_or_refused(op: Op, body: bytes) -> None:
    desk = Desk(new_logic(storage=MemoryStorage()))
    link = desk.put("a", ROOM)
    try:
        assert split(desk.answer(link, op, body))[0].op == op + 1
    except (Refused, Disconnect) as refused:
        assert refused.reason


# Several rooms.


def test_joining_and_leaving() -> None:
    desk = Desk()
    link = desk.put("a", ROOM)
    for _ in range(2):  # once more changes nothing
        assert desk.body(link, Op.JOIN, OTHER.encode()) == OTHER.encode()
        assert link.session.rooms == {ROOM, OTHER}
    assert desk.comet.online(OTHER) == 1
    assert desk.body(link, Op.LEAVE, OTHER.encode()) == OTHER.encode()
    assert link.session.rooms == {ROOM}
    assert desk.refused(link, Op.LEAVE, OTHER.encode()).code == ErrorCode.NOT_FOUND
    assert desk.refused(link, Op.LEAVE, ROOM.encode()).code == ErrorCode.NOT_FOUND, "it was not joined"


def test_how_many_rooms_one_may_join() -> None:
    desk = Desk(max_rooms=2)
    link = desk.put("a", ROOM)
    for room_id in (b"live://1", b"live://2"):
        desk.body(link, Op.JOIN, room_id)
    assert desk.refused(link, Op.JOIN, b"live://3").code == ErrorCode.TOO_MANY
    desk.body(link, Op.JOIN, b"live://1")  # it is in
    desk.body(link, Op.LEAVE, b"live://1")
    desk.body(link, Op.JOIN, b"live://3")


@pytest.mark.parametrize("op", [Op.CHANGE_ROOM, Op.JOIN])
@pytest.mark.parametrize(
    "answer", [False, Refused("full", 409), RuntimeError("no"), None, 1, "yes"], ids=repr
)
def test_a_room_that_is_not_open_leaves_the_client_where_it_was(op: Op, answer: Any) -> None:
    class Rooms(RoomHook):
        def may_enter(self, session: Session, room_id: str) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        def entered(self, session: Session, room_id: str) -> None:
            pytest.fail("it did not enter")

        left = entered

    desk = Desk(new_logic(rooms=Rooms()))
    link = desk.put("a", ROOM)
    with pytest.raises((Refused, HookError, RuntimeError)) as raised:
        desk.answer(link, op, OTHER.encode())
    if answer is False:
        assert "not open" in str(raised.value)
    elif isinstance(answer, Exception):
        assert raised.value is answer
    else:
        assert str(raised.value).endswith("Rooms.may_enter may return True or False; "
                                          f"it returned {type(answer).__name__}")  # fmt: skip
    assert (link.session.rooms, desk.comet.online(OTHER)) == ({ROOM}, 0)


# Who is there.


def members(desk: Desk, link: Link, **asked: object) -> dict[str, Any]:
    found = json.loads(desk.body(link, Op.MEMBERS, json.dumps(asked).encode()))
    assert isinstance(found, dict)
    return found


def test_members_come_in_pages() -> None:
    desk = Desk()
    links = [desk.put(f"a{mid}", ROOM, mid=mid) for mid in range(5)]
    desk.put("again", ROOM, mid=4)
    first = members(desk, links[0], room_id=ROOM, limit=4)
    assert first == {"room_id": ROOM, "online": 6, "mids": [0, 1, 2, 3], "next": 4}
    second = members(desk, links[0], room_id=ROOM, limit=4, offset=4)
    assert second == {"room_id": ROOM, "online": 6, "mids": [4], "next": None}
    assert members(desk, links[0], room_id=ROOM)["mids"] == [0, 1, 2, 3, 4]
    assert members(desk, links[0], room_id=ROOM, limit=6)["next"] is None, "that was all of them"


@pytest.mark.parametrize(
    "asked",
    [{}, {"room_id": 5}, {"room_id": OTHER}, {"room_id": None}, {"room_id": ROOM, "limit": 0},
     {"room_id": ROOM, "limit": MAX_MEMBERS + 1}, {"room_id": ROOM, "offset": -1}, {"room_id": ROOM, "offset": "0"},
     {"room_id": ROOM, "offset": MAX_OFFSET + 1}, {"room_id": ROOM, "limit": True}, {"room_id": ROOM, "limit": 1.0}],
)  # fmt: skip
def test_members_of_what_one_may_not_ask(asked: dict[str, object]) -> None:
    desk = Desk()
    desk.put("b", OTHER)
    assert desk.refused(desk.put("a", ROOM), Op.MEMBERS, json.dumps(asked).encode()).code in (400, 403)


@pytest.mark.parametrize("op", [Op.WATCH, Op.UNWATCH])
def test_a_watch_is_for_those_who_are_in_the_room(op: Op) -> None:
    desk = Desk()
    link = desk.put("a", ROOM)
    desk.put("b", OTHER)
    assert desk.body(link, op, ROOM.encode()) == ROOM.encode()
    assert desk.refused(link, op, OTHER.encode()).code == ErrorCode.FORBIDDEN


def test_when_users_were_seen() -> None:
    class Sessions(SessionHook):
        def may_see(self, session: Session, mid: int) -> Any:
            return mid < 10

    storage = MemoryStorage()
    desk = Desk(new_logic(storage=storage, sessions=Sessions()))
    link = desk.put("a")
    storage.saw(8, 1.5)
    seen = json.loads(desk.body(link, Op.LAST_SEEN, b"[8,9,8]"))
    assert seen == {"8": {"online": False, "seen": 1.5}, "9": {"online": False, "seen": None}}
    assert desk.refused(link, Op.LAST_SEEN, b"[8,10]").code == ErrorCode.FORBIDDEN
    for asked in ([], list(range(MAX_SEEN + 1)), ["8"], [True], [2**63], [None], 8, {"8": 1}):
        refused = desk.refused(link, Op.LAST_SEEN, json.dumps(asked).encode())
        assert refused.code == ErrorCode.BAD_REQUEST


# The inbox.


@pytest.mark.parametrize("op", [Op.ACK, Op.SYNC, Op.LAST_SEEN])
def test_without_a_storage_there_is_nothing_to_ask(op: Op) -> None:
    desk = Desk()
    assert desk.refused(desk.put("a"), op, BODIES[op]).code == ErrorCode.NOT_FOUND


def stored(desk_storage: MemoryStorage, count: int) -> None:
    for number in range(1, count + 1):
        desk_storage.append([1], 1000, b"%d" % number)


def test_acknowledging() -> None:
    storage = MemoryStorage()
    desk = Desk(new_logic(storage=storage))
    link = desk.put("a")
    stored(storage, 3)
    assert desk.body(link, Op.ACK, b"2") == b"2"
    assert desk.body(link, Op.ACK, b"1") == b"2"
    assert storage.cursor(1, "d") == 2
    for body in (b"", b"-1", b"x", b"1,2", b"2147483648", b"\xd9\xa3", b"4"):
        assert desk.refused(link, Op.ACK, body).code == ErrorCode.BAD_REQUEST
    assert storage.cursor(2, "d") == 0, "another user's"


def test_syncing_gives_pages_of_the_inbox() -> None:
    storage = MemoryStorage()
    desk = Desk(new_logic(storage=storage))
    link = desk.put("a")
    stored(storage, 5)
    page = split(desk.body(link, Op.SYNC, b"1,3"))
    assert [(frame.op, frame.seq, frame.body, frame.ver) for frame in page] == [
        (1000, number, b"%d" % number, 1) for number in (2, 3, 4)
    ]
    assert [frame.seq for frame in split(desk.body(link, Op.SYNC, b"3"))] == [4, 5]
    assert desk.body(link, Op.SYNC, b"5") == b""
    assert storage.cursor(1, "d") == 0, "to ask is not to acknowledge"
    for body in (b"", b"-1", b"1,0", b"1,1001", b"1,2,3", b"1,", b",1"):
        assert desk.refused(link, Op.SYNC, body).code == ErrorCode.BAD_REQUEST


def test_a_refused_ack_leaves_the_cursor_where_it_was() -> None:
    """An ack from the future is a client's mistake: what it has not had must not be lost to it."""
    storage = MemoryStorage()
    desk = Desk(new_logic(storage=storage))
    link = desk.put("a")
    stored(storage, 3)
    desk.refused(link, Op.ACK, b"9")
    assert storage.cursor(1, "d") == 0


# The token.


def test_refreshing_asks_with_the_new_token() -> None:
    class Auth(AuthHook):
        def authenticate(self, request: AuthRequest) -> Session:
            assert (request.token, request.transport, request.address) == (b"new", "tcp", "127.0.0.1")
            return Session(mid=1, expires=9.0)

    desk = Desk(new_logic(auth=Auth()))
    link = desk.put("a")
    link.channel.address = "127.0.0.1"
    assert desk.body(link, Op.REFRESH, b"new") == b""
    assert link.session.expires == 9.0
