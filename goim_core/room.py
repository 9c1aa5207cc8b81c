"""A room: the channels that a room push reaches. Sync."""

from __future__ import annotations

from attrs import Factory, define

from goim_core.channel import Channel

__all__ = ["Room"]


@define(eq=False, weakref_slot=False)
class Room:
    """The members of ``id`` (``type://id``), in the order they came.

    goim keeps a part of each room in each bucket, which costs it the room's order and makes its count
    a sum that is 10 s old; one room object gives both exactly, at once.
    """

    id: str
    members: dict[Channel, None] = Factory(dict)
    departures: int = 0
    """How often a member has left: a push that paused looks here whether its list is still true."""

    def put(self, channel: Channel) -> None:
        """Let ``channel`` in."""
        self.members[channel] = None

    def remove(self, channel: Channel) -> None:
        """Let ``channel`` out, if it is in."""
        if channel in self.members:
            del self.members[channel]
            self.departures += 1

    @property
    def online(self) -> int:
        """How many are in."""
        return len(self.members)
