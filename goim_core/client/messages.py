"""What a client gives to its application."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Self

from attrs import field, frozen

from goim_core.errors import Disconnect, ProtocolError

__all__ = ["ClientState", "LastSeen", "Members", "Message", "Presence", "StateChange", "read_last_seen"]


class ClientState(StrEnum):
    """What a client is doing."""

    CONNECTING = "connecting"
    OPEN = "open"
    """It is connected and authenticated."""
    WAITING = "waiting"
    """The connection was lost; it tries again after a delay."""
    CLOSED = "closed"
    """It has ended, for good."""


@frozen
class StateChange:
    """A new state. ``why`` the last connection or try ended; ``delay`` seconds until the next, if waiting."""

    state: ClientState
    why: Disconnect | None = None
    delay: float = 0.0


def _nothing() -> None:
    pass


@frozen
class Message:
    """One message. ``seq`` is its number in the user's inbox, 0 for one that is not stored."""

    op: int
    body: bytes
    seq: int = 0
    _done: Callable[[], object] = field(default=_nothing, eq=False, repr=False)

    async def ack(self) -> None:
        """Say that the application is done with it; the server is told soon, many at a time.

        The server is told a number up to which *all* are done, so messages may be acknowledged in any order.
        Nothing happens the second time, or for a message that is not stored.
        """
        self._done()

    @property
    def text(self) -> str:
        """The body as UTF-8; bytes that are none become U+FFFD."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON. Raises :class:`ValueError` where it is none."""
        return json.loads(self.body)


@frozen
class Presence:
    """Who came to a watched room and who left it (user ids), and how many connections are there now.

    It comes as a :class:`Message` of op 34: ``Presence.read(message.body)``.
    """

    room_id: str
    joined: Sequence[int]
    left: Sequence[int]
    online: int

    @classmethod
    def read(cls, body: bytes) -> Self:
        """From the body of a PRESENCE. Raises :class:`~goim_core.errors.ProtocolError` where it is none."""
        said = _object(body)
        try:
            return cls(str(said["room_id"]), tuple(said["joined"]), tuple(said["left"]), int(said["online"]))
        except (KeyError, TypeError, ValueError):
            raise _unexpected(body) from None


@frozen
class Members:
    """A page of who is in a room: ``mids`` their user ids, ``next`` the offset of the next page or None."""

    room_id: str
    online: int
    mids: Sequence[int]
    next: int | None

    @classmethod
    def read(cls, body: bytes) -> Self:
        """From the body of a MEMBERS_REPLY; raises as :meth:`Presence.read` does."""
        said = _object(body)
        try:
            following = said.get("next")
            return cls(
                str(said["room_id"]),
                int(said["online"]),
                tuple(said["mids"]),
                None if following is None else int(following),
            )
        except (KeyError, TypeError, ValueError):
            raise _unexpected(body) from None


@frozen
class LastSeen:
    """Whether a user is online, and when (seconds since 1970) the last connection ended, if known."""

    online: bool
    seen: float | None


def read_last_seen(body: bytes) -> dict[int, LastSeen]:
    """From the body of a LAST_SEEN_REPLY; raises as :meth:`Presence.read` does."""
    try:
        return {
            int(mid): LastSeen(bool(said["online"]), None if said["seen"] is None else float(said["seen"]))
            for mid, said in _object(body).items()
        }
    except (KeyError, TypeError, ValueError):
        raise _unexpected(body) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise _unexpected(body) from None
    if not isinstance(said, dict):
        raise _unexpected(body)
    return said


def _unexpected(body: bytes) -> ProtocolError:
    return ProtocolError(f"the server's reply is not what was expected: {body!r:.100}")
