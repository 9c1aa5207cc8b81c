"""A room: those whom a room push reaches. Sync."""

from __future__ import annotations

from typing import Generic, TypeVar

from attrs import Factory, define

__all__ = ["Room"]

M = TypeVar("M")


@define(eq=False, weakref_slot=False)
class Room(Generic[M]):
    """The members of ``id`` (``type://id``), in the order they came: the comet's are channels.

    goim keeps a part of each room in each bucket, which costs it the room's order and makes its count
    a sum that is 10 s old; one room object gives both exactly, at once.
    """

    id: str
    members: dict[M, None] = Factory(dict)

    def put(self, member: M) -> None:
        """Let ``member`` in."""
        self.members[member] = None

    def remove(self, member: M) -> None:
        """Let ``member`` out, if it is in."""
        self.members.pop(member, None)

    @property
    def online(self) -> int:
        """How many are in."""
        return len(self.members)
