"""Who comes into a room and who leaves it, told to those who asked. Sync.

Nothing is kept for a room that nobody has watched for a second: its count is the number of its members.
While it is watched, users are counted (one may have several connections), and what changes within a second
is one message.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from attrs import Factory, define

from goim_core.channel import Channel
from goim_core.clock import Deadlines, Timer
from goim_core.errors import ErrorCode, Refused
from goim_core.protocol import Op, encode
from goim_core.room import Room
from goim_core.wire import Packet

__all__ = ["Presence"]

MAX_WATCHERS = 1000
"""How many connections may watch one room: each event goes to all of them in one step."""
MAX_WATCHED = 50_000
"""How many connections a room may have when the first asks to watch it: they are counted in one step."""
MAX_NAMES = 500
"""How many users one event names; where more came or went, it is several events."""
WAIT = 1.0
"""How many seconds of changes are one event."""


@define(eq=False)
class _Watch:
    """One room that is watched."""

    room: Room[Channel]
    watchers: dict[Channel, None] = Factory(dict)
    connections: Counter[int] = Factory(Counter)
    """How many connections each user has in the room."""
    before: dict[int, bool] = Factory(dict)
    """Whether each user of whom something changed was in the room at the last event."""
    due: bool = False
    """A timer runs, for what there is to tell, or to see whether anybody watches still."""

    def count(self, mid: int, change: int) -> None:
        self.before.setdefault(mid, self.connections[mid] > 0)
        self.connections[mid] += change
        if not self.connections[mid]:
            del self.connections[mid]

    def changes(self) -> tuple[list[int], list[int]]:
        """Who joined and who left since the last event."""
        before, self.before = self.before, {}
        joined = [mid for mid, was in before.items() if not was and mid in self.connections]
        left = [mid for mid, was in before.items() if was and mid not in self.connections]
        return joined, left


class Presence:
    """The rooms that are watched; events come ``wait`` seconds after the first change at the latest."""

    def __init__(self, deadlines: Deadlines, wait: float = WAIT) -> None:
        self._deadlines = deadlines
        self._wait = wait
        self._watches: dict[str, _Watch] = {}

    def watch(self, room: Room[Channel], channel: Channel) -> None:
        """Tell ``channel``, which is in ``room``, of those who join and leave from now on.

        Raises :class:`~goim_core.errors.Refused` where too many watch already.
        """
        watch = self._watches.get(room.id)
        if watch is None:
            if room.online > MAX_WATCHED:
                raise Refused(
                    f"a room of more than {MAX_WATCHED} connections is not watched", ErrorCode.TOO_MANY
                )
            watch = self._watches[room.id] = _Watch(room)
            watch.connections.update(member.session.mid for member in room.members)
        if len(watch.watchers) >= MAX_WATCHERS and channel not in watch.watchers:
            raise Refused(f"{MAX_WATCHERS} connections watch this room already", ErrorCode.TOO_MANY)
        if not watch.watchers:
            watch.before.clear()  # what changed while nobody watched is no news
        watch.watchers[channel] = None

    def unwatch(self, room: Room[Channel], channel: Channel) -> None:
        """Tell ``channel`` no more."""
        watch = self._watches.get(room.id)
        if watch is not None:
            watch.watchers.pop(channel, None)
            if not room:
                del self._watches[room.id]
            elif not watch.watchers:
                # Not forgotten at once: counting the room anew for who asks again and again would take long.
                self._later(watch)

    def entered(self, room: Room[Channel], channel: Channel) -> None:
        """``channel`` is in ``room`` now."""
        if self._watches:
            self._changed(room, channel, 1)

    def left(self, room: Room[Channel], channel: Channel) -> None:
        """``channel`` is not in ``room`` any more."""
        self.unwatch(room, channel)
        self._changed(room, channel, -1)

    def _changed(self, room: Room[Channel], channel: Channel, change: int) -> None:
        watch = self._watches.get(room.id)
        if watch is not None:
            self._later(watch)
            watch.count(channel.session.mid, change)

    def _later(self, watch: _Watch) -> None:
        if not watch.due:
            watch.due = True
            due = self._deadlines.clock.now() + self._wait
            self._deadlines.watch(Timer(due, lambda: self._tell(watch)))

    def _tell(self, watch: _Watch) -> None:
        watch.due = False
        if not watch.watchers:
            if self._watches.get(watch.room.id) is watch:
                del self._watches[watch.room.id]
            return
        for joined, left in _parts(*watch.changes()):
            event = {"room_id": watch.room.id, "joined": joined, "left": left, "online": watch.room.online}
            body = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
            packet = Packet([encode(Op.PRESENCE, body)])
            for channel in [c for c in watch.watchers if Op.PRESENCE in c.accepts]:
                channel.push(packet)


def _parts(joined: list[int], left: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    for start in range(0, max(len(joined), len(left)), MAX_NAMES):
        end = start + MAX_NAMES
        yield joined[start:end], left[start:end]
