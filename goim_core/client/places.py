"""Where the client is: what a new connection has to be told again. No I/O."""

from __future__ import annotations

from goim_core.protocol import Op

__all__ = ["Places"]


class Places:
    """Rooms and operations that hold for a connection, as the server last agreed to them.

    ``room`` the room that the client changed to, None where it has not and the token decides; ``joined``
    and ``watched`` the rooms beside it, in order; ``ops`` operations, subscribed or unsubscribed.
    """

    def __init__(self) -> None:
        self.room: str | None = None
        self.joined: dict[str, None] = {}
        self.watched: dict[str, None] = {}
        self.ops: dict[int, bool] = {}

    def agreed(self, op: int, body: bytes) -> None:
        """The server did what the request asked for; other requests change nothing here."""
        text = body.decode(errors="replace")
        if op == Op.CHANGE_ROOM:
            if self.room not in self.joined:
                self.watched.pop(self.room or "", None)
            self.room = text
        elif op == Op.JOIN:
            self.joined[text] = None
        elif op == Op.LEAVE:
            self.joined.pop(text, None)
            if text != self.room:
                self.watched.pop(text, None)
        elif op == Op.WATCH:
            self.watched[text] = None
        elif op == Op.UNWATCH:
            self.watched.pop(text, None)
        elif op in (Op.SUB, Op.UNSUB):
            self.ops |= dict.fromkeys(map(int, text.split(",")), op == Op.SUB)

    def refused(self, op: int, body: bytes) -> None:
        """The server would not do ``op`` again for the new connection."""
        text = body.decode(errors="replace")
        if op == Op.CHANGE_ROOM:
            self.room = None
        elif op == Op.JOIN:
            self.joined.pop(text, None)
        elif op == Op.WATCH:
            self.watched.pop(text, None)

    def again(self) -> list[tuple[Op, bytes]]:
        """The requests that bring a new connection to where the old one was, in order."""
        requests = [] if self.room is None else [(Op.CHANGE_ROOM, self.room.encode())]
        for op, subscribed in ((Op.SUB, True), (Op.UNSUB, False)):
            ops = [number for number, wanted in self.ops.items() if wanted is subscribed]
            if ops:
                requests.append((op, ",".join(map(str, ops)).encode()))
        requests += [(Op.JOIN, room_id.encode()) for room_id in self.joined]
        requests += [(Op.WATCH, room_id.encode()) for room_id in self.watched]
        return requests
