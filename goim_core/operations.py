"""What each operation of a client does: the protocol's own, and, for all others, the message hook."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from goim_core.channel import Channel
from goim_core.comet import Comet
from goim_core.errors import ErrorCode, Refused
from goim_core.flow import Flow
from goim_core.logic import Logic
from goim_core.options import Options
from goim_core.protocol import EXTENSION_OPS, INT32_MAX, Frame, Op, encode, encode_heartbeat_reply
from goim_core.room import Room
from goim_core.session import AuthRequest, check_room_id

__all__ = ["Operations"]

MAX_ACCEPTS = 1000
"""How many operations a connection may subscribe to."""
MAX_MEMBERS = 200
"""How many members of a room one MEMBERS names."""
MAX_OFFSET = 100_000
"""How far into a room MEMBERS may ask: what is before has to be walked over."""
MAX_SYNC = 1000
"""How many messages one SYNC may ask for."""
MAX_SEEN = 100
"""How many users one LAST_SEEN may ask for."""

_Operation: TypeAlias = Callable[[Channel, bytes], bytes | Flow[bytes]]


class Operations:
    """Answers the frames of authenticated clients, within the limits of ``options``."""

    def __init__(self, comet: Comet, logic: Logic, options: Options) -> None:
        self._comet = comet
        self._logic = logic
        self.options = options
        self._own: dict[int, _Operation] = {
            Op.CHANGE_ROOM: self._change_room,
            Op.SUB: self._sub,
            Op.UNSUB: self._unsub,
            Op.ACK: self._ack,
            Op.SYNC: self._sync,
            Op.JOIN: self._join,
            Op.LEAVE: self._leave,
            Op.MEMBERS: self._members,
            Op.WATCH: self._watch,
            Op.UNWATCH: self._unwatch,
            Op.LAST_SEEN: self._last_seen,
            Op.REFRESH: self._refresh,
        }

    def heartbeat(self, channel: Channel, frame: Frame) -> bytes:
        """The reply to a heartbeat: how many are in the client's room."""
        room = channel.room
        # The room is at hand: Comet.online would look for it.
        online = 0 if room is None else room.online + self._comet.elsewhere.rooms.get(room.id, 0)
        return encode_heartbeat_reply(online, frame.seq, frame.ver)

    def answer(self, channel: Channel, frame: Frame) -> Flow[bytes]:
        """The reply to any other frame: the flow ``receive`` of logic, or ``operation``.

        It raises :class:`~goim_core.errors.Refused` for one that is not for this client to send, and for a
        body that does not fit the operation.
        """
        op = frame.op
        if op in self._own or op == Op.AUTH or op in _NOT_FROM_CLIENTS:
            return self.operation(channel, frame)
        return self._logic.receive(channel.session, frame)

    def operation(self, channel: Channel, frame: Frame) -> Flow[bytes]:
        """The reply to a frame whose operation is the protocol's."""
        op = frame.op
        own = self._own.get(op)
        if own is None:
            if op == Op.AUTH:
                raise Refused("this connection is authenticated already", ErrorCode.CONFLICT)
            raise Refused(f"operation {op} is not one for a client to send", ErrorCode.BAD_REQUEST)
        if op in EXTENSION_OPS and op not in channel.accepts:
            name = Op(op).name
            raise Refused(
                f"operation {op} ({name}) is not in this connection's accepts", ErrorCode.BAD_REQUEST
            )
        body = own(channel, frame.body)
        if not isinstance(body, bytes):
            body = yield from body
        # The reply to each of these is the next number.
        return encode(op + 1, body, frame.seq, frame.ver)

    def refusal(self, channel: Channel, frame: Frame, refused: Refused) -> bytes:
        """The reply to a frame that was refused.

        A client that accepts ERROR gets it. One that does not gets goim's reply, without the claim that
        anything was done: the room it is in, no operations, an empty body.
        """
        if Op.ERROR in channel.accepts:
            body = {"op": frame.op, "code": refused.code, "message": refused.reason}
            return encode(Op.ERROR, _json(body), frame.seq, frame.ver)
        if frame.op == Op.CHANGE_ROOM:
            room_id = channel.room.id if channel.room is not None else ""
            return encode(Op.CHANGE_ROOM_REPLY, room_id.encode(), frame.seq, frame.ver)
        op = frame.op + 1 if frame.op in (Op.SUB, Op.UNSUB) else frame.op
        return encode(op, b"", frame.seq, frame.ver)

    # Rooms and operations.

    def _change_room(self, channel: Channel, body: bytes) -> Flow[bytes]:
        room_id, session = self._room_id(body), channel.session
        if room_id and room_id not in session.rooms:
            yield from self._logic.may_enter(session, room_id)
        yield from self._move(channel, room_id, self._comet.change_room)
        return body

    def _join(self, channel: Channel, body: bytes) -> Flow[bytes]:
        room_id, session = self._required_room_id(body), channel.session
        if room_id in session.joined:
            return body
        at_most = self.options.max_rooms
        if len(session.joined) >= at_most:
            raise self._beyond("max_rooms", f"at most {at_most} rooms for a connection", ErrorCode.TOO_MANY)
        if room_id not in session.rooms:
            yield from self._logic.may_enter(session, room_id)
        yield from self._move(channel, room_id, self._comet.join)
        return body

    def _leave(self, channel: Channel, body: bytes) -> Flow[bytes]:
        room_id = self._required_room_id(body)
        if room_id not in channel.session.joined:
            raise Refused(f"room_id: this connection has not joined {room_id}", ErrorCode.NOT_FOUND)
        yield from self._move(channel, room_id, self._comet.leave)
        return body

    def _move(self, channel: Channel, room_id: str, move: Callable[[Channel, str], None]) -> Flow[None]:
        if self._comet.holds(channel):  # it may have ended while a hook thought it over
            session = channel.session
            before = session.rooms
            move(channel, room_id)
            yield from self._logic.moved(session, before, session.rooms)

    def _sub(self, channel: Channel, body: bytes) -> bytes:
        accepts = channel.accepts | _ops(body)
        if len(accepts) > MAX_ACCEPTS:
            raise Refused(f"at most {MAX_ACCEPTS} operations for a connection", ErrorCode.TOO_MANY)
        self._comet.accept(channel, accepts)
        return body

    def _unsub(self, channel: Channel, body: bytes) -> bytes:
        self._comet.accept(channel, channel.accepts - _ops(body))
        return body

    def _room_id(self, body: bytes) -> str:
        try:
            room_id = body.decode()
            if room_id:
                check_room_id(room_id)
        except ValueError as error:
            reason = "room_id: expected UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise Refused(reason, ErrorCode.BAD_REQUEST) from None
        at_most = self.options.max_room_id
        if len(room_id) > at_most:
            raise self._beyond("max_room_id", f"room_id: expected at most {at_most} characters")
        return room_id

    def _required_room_id(self, body: bytes) -> str:
        room_id = self._room_id(body)
        if not room_id:
            raise Refused("room_id: missing, expected 'type://id'", ErrorCode.BAD_REQUEST)
        return room_id

    def _beyond(self, option: str, reason: str, code: int = ErrorCode.BAD_REQUEST) -> Refused:
        """What tells a client of a limit; counted."""
        self._comet.counters.refusals[option] += 1
        return Refused(reason, code)

    # Who is there.

    def _members(self, channel: Channel, body: bytes) -> bytes:
        asked = _parsed(body, dict, '{"room_id":"type://id","offset":0,"limit":100}')
        room_id = asked.get("room_id")
        if not isinstance(room_id, str) or room_id not in channel.session.rooms:
            raise Refused(f"room_id: this connection is not in {room_id!r:.80}")
        offset = _bounded("offset", asked.get("offset", 0), 0, MAX_OFFSET)
        limit = _bounded("limit", asked.get("limit", 100), 1, MAX_MEMBERS)
        found = self._comet.members(room_id, offset, limit + 1)  # one more than is told: those of this node
        online = self._comet.online(room_id)
        more = len(found) > limit and offset + limit < MAX_OFFSET
        mids = list(dict.fromkeys(session.mid for session in found[:limit]))
        return _json(
            {"room_id": room_id, "online": online, "mids": mids, "next": offset + limit if more else None}
        )

    def _watch(self, channel: Channel, body: bytes) -> bytes:
        self._comet.presence.watch(self._room_of(channel, body), channel)
        return body

    def _unwatch(self, channel: Channel, body: bytes) -> bytes:
        self._comet.presence.unwatch(self._room_of(channel, body), channel)
        return body

    def _room_of(self, channel: Channel, body: bytes) -> Room[Channel]:
        room_id = self._required_room_id(body)
        for room in channel.rooms():
            if room.id == room_id:
                return room
        raise Refused(f"room_id: this connection is not in {room_id}")

    def _last_seen(self, channel: Channel, body: bytes) -> Flow[bytes]:
        asked = _parsed(body, list, "a list of user ids")
        if not 1 <= len(asked) <= MAX_SEEN:
            raise Refused(f"expected 1 to {MAX_SEEN} user ids, got {len(asked)}", ErrorCode.BAD_REQUEST)
        mids = [_bounded("user id", mid, -(2**63), 2**63 - 1) for mid in asked]
        found = yield from self._logic.last_seen(channel.session, mids)
        return _json({str(mid): {"online": online, "seen": seen} for mid, (online, seen) in found.items()})

    # The inbox, and the token.

    def _ack(self, channel: Channel, body: bytes) -> Flow[bytes]:
        (seq,) = _decimals(body, "ack", 1)
        cursor = yield from self._logic.acknowledge(channel.session, seq)
        return str(cursor).encode()

    def _sync(self, channel: Channel, body: bytes) -> Flow[bytes]:
        after, *limits = _decimals(body, "sync", 2)
        limit = _bounded("sync: limit", limits[0] if limits else 100, 1, MAX_SYNC)
        page = yield from self._logic.after(channel.session, after, limit)
        return b"".join(encode(message.op, message.body, message.seq) for message in page)

    def _refresh(self, channel: Channel, body: bytes) -> Flow[bytes]:
        at_most = self.options.max_token
        if len(body) > at_most:
            raise self._beyond("max_token", f"token: expected at most {at_most} bytes")
        transport = ("tcp", "websocket")[channel.form]
        request = AuthRequest(token=body, transport=transport, address=channel.address)
        yield from self._logic.refresh(channel.session, request)
        return b""


_NOT_FROM_CLIENTS = frozenset(
    (Op.HANDSHAKE, Op.HANDSHAKE_REPLY, Op.RAW, Op.PROTO_READY, Op.PROTO_FINISH, *EXTENSION_OPS)
)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _ops(body: bytes) -> frozenset[int]:
    return frozenset(_decimals(body, "operations", len(body)))


def _decimals(body: bytes, name: str, at_most: int) -> list[int]:
    parts = body.split(b",")
    for part in parts:
        # int() would take signs, blanks and underscores too.
        if not part.isdigit() or len(part) > 10 or int(part) > INT32_MAX:
            shown = part[:20].decode("ascii", "backslashreplace")
            raise Refused(
                f"{name}: expected decimal int32 separated by commas, got '{shown}'", ErrorCode.BAD_REQUEST
            )
    if len(parts) > at_most:
        raise Refused(f"{name}: expected at most {at_most} numbers, got {len(parts)}", ErrorCode.BAD_REQUEST)
    return [int(part) for part in parts]


def _parsed(body: bytes, kind: type, expected: str) -> Any:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise Refused(f"expected JSON: {expected}", ErrorCode.BAD_REQUEST)
    return value


def _bounded(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Refused(f"{name}: expected a number from {least} to {most}", ErrorCode.BAD_REQUEST)
    return value
