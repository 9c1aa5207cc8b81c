"""The messenger's business: what goim_core asks, and what the directory answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, TypeAlias, TypeVar

from examples.messenger.directory import Directory
from goim_core import (
    Disconnect,
    ErrorCode,
    Frame,
    LoginPolicy,
    MessageHook,
    Refused,
    RoomHook,
    Session,
    SessionHook,
)
from goim_core.adapters.sqlite import SQLiteStorage

T = TypeVar("T")
Body: TypeAlias = dict[str, Any]

REMOVED = 4100
"""The close code of a connection whose user was removed from a room that it was in."""
MAX_TEXT, MAX_NAME, MAX_ID = 2000, 40, 64
MAX_UNREAD = 1000
"""How far unread messages are counted."""


class Message(IntEnum):
    """The application's operations, all of them JSON."""

    DIRECT = 1000
    """``{"to":2,"text":"hi","id":"a1"}``: to one person. ``id`` is the client's own, to try again with."""
    ROOM = 1001
    """``{"room":"room://1","text":"hi","id":"a2"}``: to the members of a room."""
    NOTICE = 1002
    """From the server: ``{"room":"room://1","mid":2,"what":"invited"}`` or ``"removed"``."""
    TYPING = 1003
    """``{"room":"room://1"}``: to those who are in the room at this moment; not stored."""
    CREATE = 1010
    """``{"name":"garden"}``: a new room; the answer names it."""
    INVITE = 1011
    """``{"room":"room://1","mid":2}``: the owner lets somebody in."""
    KICK = 1012
    """``{"room":"room://1","mid":2}``: the owner removes somebody; or anyone, but the owner, themselves."""
    ROOMS = 1013
    """No body: the answer has the rooms that one is a member of, and their names."""
    FIND = 1014
    """``{"name":"Violet"}``: the answer has the person's number."""
    UNREAD = 1015
    """No body: how much this device has not acknowledged, by sender and by room."""


def removed_from(room: str) -> Disconnect:
    return Disconnect(f"you are no member of {room} any more", REMOVED)


class Devices(SessionHook):
    """A person may be connected with three devices: a fourth takes the place of the oldest."""

    logins = LoginPolicy(at_most=3)

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def may_see(self, session: Session, mid: int) -> bool:
        """When somebody was last seen is for those who share a room with them."""
        return mid == session.mid or await self._directory.acquainted(session.mid, mid)


class Rooms(RoomHook):
    """A room is open to its members. Being in it shows who else is there, and who types."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def may_enter(self, session: Session, room_id: str) -> bool:
        return session.mid in await self._directory.members(room_id)

    async def entered(self, session: Session, room_id: str) -> None:
        # Somebody may be removed in the moment between.
        if not await self.may_enter(session, room_id):
            raise removed_from(room_id)


class Messages(MessageHook):
    """What people send. A message to a room goes to its members' inboxes: they need not be in it."""

    def __init__(self, directory: Directory, inbox: SQLiteStorage) -> None:
        self._directory = directory
        self._inbox = inbox
        self._actions: dict[int, Callable[[Session, Body], Awaitable[Body]]] = {
            Message.DIRECT: self.direct,
            Message.ROOM: self.room,
            Message.TYPING: self.typing,
            Message.CREATE: self.create,
            Message.INVITE: self.invite,
            Message.KICK: self.kick,
            Message.ROOMS: self.rooms,
            Message.FIND: self.find,
            Message.UNREAD: self.unread,
        }

    async def receive(self, session: Session, frame: Frame) -> bytes:
        action = self._actions.get(frame.op)
        if action is None:
            raise Refused(f"operation {frame.op} means nothing here", ErrorCode.BAD_REQUEST)
        return _json(await action(session, _read(frame.body)))

    # To be read.

    async def direct(self, session: Session, body: Body) -> Body:
        to = _mid(body, "to")
        if not await self._directory.knows(to):
            raise Refused(f"user {to} is unknown", ErrorCode.NOT_FOUND)
        message = {**self._signed(session), "to": to, "text": _text(body)}
        # To the sender too: all devices of both show the same, in the same order.
        await self._send([to, session.mid], Message.DIRECT, message, session, body)
        return {}

    async def room(self, session: Session, body: Body) -> Body:
        room, members = await self._members(session, body)
        message = {**self._signed(session), "room": room, "text": _text(body)}
        await self._send(members, Message.ROOM, message, session, body)
        return {}

    def _signed(self, sender: Session) -> Body:
        return {"from": sender.mid, "name": sender.data, "at": self.server.clock.time()}

    async def _send(self, mids: list[int], op: Message, message: Body, sender: Session, body: Body) -> None:
        # A client that got no answer sends again with the same id, and the message is there once.
        key = f"{sender.mid} {_text(body, 'id', MAX_ID)}"
        # A storage takes a plain int, and no enum.
        await self.server.push_mids(mids, int(op), _json(message), idempotency_key=key)

    async def typing(self, session: Session, body: Body) -> Body:
        room = _field(body, "room", str)
        if room not in session.rooms:
            raise Refused("join the room first", ErrorCode.CONFLICT)
        await self.server.push_room(room, Message.TYPING, _json({"room": room, "from": session.mid}))
        return {}

    async def unread(self, session: Session, body: Body) -> Body:
        read = await self._inbox.cursor(session.mid, session.device)
        people: Counter[int] = Counter()
        rooms: Counter[str] = Counter()
        for stored in await self._inbox.after(session.mid, read, MAX_UNREAD, 1 << 20):
            message = json.loads(stored.body)
            if stored.op == Message.ROOM and message["from"] != session.mid:
                rooms[message["room"]] += 1
            elif stored.op == Message.DIRECT and message["from"] != session.mid:
                people[message["from"]] += 1
        return {"people": people, "rooms": rooms}

    # Rooms.

    async def create(self, session: Session, body: Body) -> Body:
        return {"room": await self._directory.create(_text(body, "name", MAX_NAME), session.mid)}

    async def rooms(self, session: Session, body: Body) -> Body:
        return await self._directory.rooms(session.mid)

    async def invite(self, session: Session, body: Body) -> Body:
        room, members = await self._members(session, body, of_owner=True)
        mid = _mid(body, "mid")
        if not await self._directory.invite(room, mid):
            raise Refused(f"user {mid} is unknown, or a member already", ErrorCode.CONFLICT)
        await self._notice([*members, mid], room, mid, "invited")
        return {}

    async def kick(self, session: Session, body: Body) -> Body:
        mid = _mid(body, "mid")
        room, members = await self._members(session, body, of_owner=mid != session.mid)
        if mid == await self._directory.owner(room) or not await self._directory.remove(room, mid):
            raise Refused(f"user {mid} cannot be removed", ErrorCode.CONFLICT)
        await self._notice(members, room, mid, "removed")
        # Who is in the room would go on hearing what is pushed to it.
        inside = self.server.members(room, limit=len(members) * 100)
        await self.server.disconnect_keys(
            [member.key for member in inside if member.mid == mid],
            removed_from(room),
        )
        return {}

    async def _notice(self, mids: list[int], room: str, mid: int, what: str) -> None:
        await self.server.push_mids(
            mids, int(Message.NOTICE), _json({"room": room, "mid": mid, "what": what})
        )

    async def _members(
        self, session: Session, body: Body, *, of_owner: bool = False
    ) -> tuple[str, list[int]]:
        room = _field(body, "room", str)
        members = await self._directory.members(room)
        # Who is no member learns nothing of the room, not even that there is one.
        if session.mid not in members:
            raise Refused("you are no member of this room")
        if of_owner and session.mid != await self._directory.owner(room):
            raise Refused("only the owner may")
        return room, members

    async def find(self, session: Session, body: Body) -> Body:
        mid = await self._directory.find(_field(body, "name", str))
        if mid is None:
            raise Refused("nobody has this name", ErrorCode.NOT_FOUND)
        return {"mid": mid}


def _read(body: bytes) -> Body:
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused("expected a JSON object", ErrorCode.BAD_REQUEST)
    return found


def _field(body: Body, name: str, kind: type[T]) -> T:
    value = body.get(name)
    if type(value) is not kind:
        raise Refused(f"{name}: expected {kind.__name__}", ErrorCode.BAD_REQUEST)
    return value


def _mid(body: Body, name: str) -> int:
    mid = _field(body, name, int)
    if not 0 < mid < 2**63:
        raise Refused(f"{name}: expected a user's number", ErrorCode.BAD_REQUEST)
    return mid


def _text(body: Body, name: str = "text", at_most: int = MAX_TEXT) -> str:
    text = _field(body, name, str).strip()
    if not 0 < len(text) <= at_most:
        raise Refused(f"{name}: expected 1 to {at_most} characters", ErrorCode.BAD_REQUEST)
    return text


def _json(body: Body) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
