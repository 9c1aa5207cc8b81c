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
    """How far a node has read: all up to the message ``floor`` is done with; and when the stream was made."""

    made: str
    floor: int


class Stream:
    """The stream ``topic``, made where there is none; messages are kept ``retention`` seconds.

    Raises :class:`~goim_core.errors.BackboneError` that says what is wrong.
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
        new, old = names = [f"{token_of(node)}={number}" for number in (1, 2)]
        floors = {name: floor for name in names if (floor := await self._floor(name)) is not None}
        if place is None:
            floor = max(floors.values(), default=self.last)
        else:
            floor = place.floor if place.made == made else 0  # all of another stream is new
        floor = min(floor, self.last)
        # JetStream gives again what is not acknowledged only after a time, behind what is newer. A new
        # consumer gives it at once, in order. Until it is there the old one keeps the place.
        if floors.get(new, -1) > floors.get(old, -1):
            new, old = old, new
        if new in floors:
            await self._delete(new)  # of a process that ended between these steps
        await self._make_consumer(new, node, floor)
        if old in floors:
            await self._delete(old)
        return new, Place(made, floor)

    async def _info(self) -> dict[str, Any]:
        """What JetStream says of the stream, which is made where there is none."""
        info = await self._ask(f"STREAM.INFO.{self._topic}", allowed=STREAM_NOT_FOUND)
        if "error" not in info:
            return info
        duplicates = min(self._retention, max(DUPLICATES, 2 * self._timeout))
        wanted = {
            "name": self._topic,
            "subjects": self._subjects,
            "retention": "limits",
            "storage": "file",
            "max_age": int(self._retention * SECOND),
            # What was accepted is not thrown out for what comes later: at a limit publishers are told.
            "discard": "new",
            "duplicate_window": int(duplicates * SECOND),
        }
        info = await self._ask(f"STREAM.CREATE.{self._topic}", wanted, allowed=OTHER_SHAPE)
        # Another node may have been faster.
        return info if "error" not in info else await self._ask(f"STREAM.INFO.{self._topic}")

    @property
    def _subjects(self) -> list[str]:
        return [self._topic, f"{self._topic}.*"]

    def _check_shape(self, config: Mapping[str, Any]) -> None:
        subjects = config.get("subjects") or []
        kept = all(any(_covers(each, wanted) for each in subjects) for wanted in self._subjects)
        for wrong, what in (
            (not kept, f"the subjects {', '.join(subjects)}, not {' and '.join(self._subjects)}"),
            (config["retention"] != "limits", f"the retention {config['retention']!r}, not 'limits'"),
            (config.get("no_ack"), "no_ack set: it confirms nothing"),
            (config.get("sealed"), "been sealed: it takes nothing"),
        ):
            if wrong:
                raise BackboneError(f"topic: the stream {self._topic!r} has {what}")

    async def _floor(self, consumer: str) -> int | None:
        info = await self._ask(f"CONSUMER.INFO.{self._topic}.{consumer}", allowed=CONSUMER_NOT_FOUND)
        if "error" in info:
            return None
        return max(int(info["ack_floor"]["stream_seq"]), int(info["config"].get("opt_start_seq", 1)) - 1)

    async def _make_consumer(self, name: str, node: str, floor: int) -> None:
        keep = int(max(KEEP_PLACE, 2 * self._retention) * SECOND)
        config = {
            "durable_name": name,
            "description": f"node {node[:200]} of goim_core",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": floor + 1,
            "ack_policy": "all",
            "ack_wait": keep,  # what is not acknowledged waits here, and is not wanted twice
            "max_ack_pending": -1,  # it is bounded by what is asked for
            "filter_subjects": [self._topic, f"{self._topic}.{token_of(node)}"],
            "inactive_threshold": keep,
        }
        wanted = {"stream_name": self._topic, "config": config}
        await self._ask(f"CONSUMER.DURABLE.CREATE.{self._topic}.{name}", wanted)

    async def _delete(self, consumer: str) -> None:
        await self._ask(f"CONSUMER.DELETE.{self._topic}.{consumer}", allowed=CONSUMER_NOT_FOUND)

    async def _ask(self, what: str, body: object = None, *, allowed: int = 0) -> dict[str, Any]:
        """The answer of JetStream's API; errors but ``allowed`` are raised."""
        request = b"" if body is None else json.dumps(body).encode()
        try:
            msg = await self._client.request(f"$JS.API.{what}", request, timeout=self._timeout)
        except nats.errors.NoRespondersError:
            raise BackboneError("JetStream is not enabled there (nats-server -js)") from None
        answer: dict[str, Any] = json.loads(msg.data)
        error = answer.get("error")
        if error and error.get("err_code") != allowed:
            raise BackboneError(f"{error.get('description', error)} ({what.rpartition('.')[0]})")
        return answer


def token_of(node: str) -> str:
    """``node`` as one token of a subject and a name of a consumer, which have no dots, blanks and stars."""
    return re.sub(rb"[^A-Za-z0-9_-]", lambda found: b"=%02X" % ord(found[0]), node.encode()).decode()


def _covers(subject: str, wanted: str) -> bool:
    return subject in (wanted, ">") or (subject.endswith(".>") and wanted.startswith(subject[:-1]))
