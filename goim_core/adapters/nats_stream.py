"""The stream that nodes share in NATS JetStream, and each node's place in it.

JetStream's API is JSON over requests (https://docs.nats.io/reference/reference-protocols/nats_api_reference).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from goim_core.errors import BackboneError

try:
    import nats.errors
    from nats.aio.client import Client
except ImportError as error:
    raise ImportError("NATSQueue needs nats-py: pip install 'goim_core[nats]'") from error

__all__ = ["SECOND", "Place", "Stream", "token_of"]

SECOND = 1_000_000_000
"""JetStream's durations are nanoseconds."""
KEEP_PLACE = 3600.0
"""Seconds for which JetStream keeps the place of a node that is away, or twice the retention."""
DUPLICATES = 10.0
"""Seconds within which a push that is sent again is recognised, or twice the timeout."""
STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, OTHER_SHAPE = 10059, 10014, 10058


@frozen
class Place:
    """How far a node has read: up to the message ``floor`` all is done with. ``made``: when the stream was."""

    made: str
    floor: int


class Stream:
    """The stream ``topic``, made where there is none; messages are kept ``retention`` seconds.

    Everything raises :class:`~goim_core.errors.BackboneError`, with a text that goes on after "NATS ...: ".
    """

    def __init__(self, client: Client, topic: str, retention: float, timeout: float) -> None:
        self._client = client
        self._topic = topic
        self._retention = retention
        self._timeout = timeout
        self.last = 0
        """The number of the last message in it, when it was attached."""

    async def attach(self, node: str, place: Place | None) -> tuple[str, Place]:
        """Make a consumer of ``node`` that gives what is behind ``place``: its name, and where it begins.

        Where ``place`` is None it is the one of the node's last process, or the stream's end.
        """
        info = await self._info()
        self._check_shape(info["config"])
        made, self.last = info["created"], info["state"]["last_seq"]
        names = [f"{token_of(node)}={number}" for number in (1, 2)]
        floors = {name: floor for name in names if (floor := await self._floor(name)) is not None}
        if place is None:
            floor = max(floors.values(), default=self.last)
        else:
            floor = place.floor if place.made == made else 0  # all of another stream is new
        floor = min(floor, self.last)
        if len(floors) == len(names):
            # A process ended between the steps below; the place is the further one.
            await self._delete(names.pop(0))
        # JetStream gives again what is not acknowledged only after a time, behind what is newer. A new
        # consumer gives it at once, in order. Until it is there the old one keeps the place.
        consumer = next((name for name in names if name not in floors), names[0])
        if consumer in floors:
            consumer = f"{token_of(node)}=1"
        await self._make_consumer(consumer, node, floor)
        for name in names:
            if name in floors and name != consumer:
                await self._delete(name)
        return consumer, Place(made, floor)
