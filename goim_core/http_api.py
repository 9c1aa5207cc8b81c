"""goim's HTTP API, for those who push and those who ask who is online, as routes.

Every answer is HTTP 200 with ``{"code":0,"message":"","data":...}``; ``data`` is left out where there is
none, as goim does for a push. A request that cannot be served has code -400 and a message that names the
parameter; a push that the server could not take has code -500. Only a fault, such as a storage that raises
what is no :class:`~goim_core.errors.GoimError`, is HTTP 500, as a panic is in goim; its code is -500 too.

Parameters are in the query, the body of a POST is the push. A parameter that is empty counts as missing,
and the first of a repeated one counts, but for ``keys``, ``mids`` and ``rooms``, which are lists.
A push to users may have an ``Idempotency-Key`` header: tried again with the same, it is stored once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, Protocol

from goim_core.http_answers import BadRequest, answered, first, integer, required, several
from goim_core.http_message import Request, Routes
from goim_core.protocol import INT32_MAX, pushable
from goim_core.session import check_room_id
from goim_core.steps import Steps, stepped
from goim_core.storage import MAX_IDEMPOTENCY_KEY

__all__ = ["PushAPI", "Service"]

_INT64_MAX = 2**63 - 1


class Service(Protocol):
    """What the API is the door to. :class:`goim_core.Server` is one."""

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes) -> None:
        """Push to the connections with these keys that accept ``op``."""

    async def push_mids(
        self, mids: Iterable[int], op: int, body: bytes, *, idempotency_key: str = ""
    ) -> None:
        """Push to every connection of these users that accepts ``op``; see :class:`~goim_core.Server`."""

    async def push_room(self, room_id: str, op: int, body: bytes) -> None:
        """Push to every connection in the room ``type://id``."""

    async def push_all(self, op: int, body: bytes, *, speed: int = 0) -> None:
        """Push to every connection that accepts ``op``, at ``speed`` connections a second (0: at once)."""

    def ranking(self, kind: str, limit: int) -> Steps[list[tuple[str, int]]]:
        """At most ``limit`` rooms of a type, by name without ``type://``, and their counts; largest first."""

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        """How many connections are in each of these rooms."""

    def online_total(self) -> tuple[int, int]:
        """How many addresses and how many connections are online."""

    def nodes_weighted(self, platform: str, address: str) -> dict[str, Any]:
        """Which nodes a client at ``address`` should connect to, best first, and how."""

    def nodes_instances(self) -> list[dict[str, Any]]:
        """All nodes, as the node registry knows them."""


class PushAPI:
    """The routes of goim's HTTP API over ``server``, for :class:`~goim_core.http_door.HTTPDoor`."""

    def __init__(self, server: Service) -> None:
        self.server = server

    @property
    def routes(self) -> Routes:
        """goim's paths and methods, but for :attr:`public`: they are for those who push."""
        return {
            "/goim/push/keys": {"POST": answered(self._push_keys)},
            "/goim/push/mids": {"POST": answered(self._push_mids)},
            "/goim/push/room": {"POST": answered(self._push_room)},
            "/goim/push/all": {"POST": answered(self._push_all)},
            "/goim/online/top": {"GET": answered(self._online_top)},
            "/goim/online/room": {"GET": answered(self._online_room)},
            "/goim/online/total": {"GET": answered(self._online_total)},
            "/goim/nodes/instances": {"GET": answered(self._nodes_instances)},
        }

    @property
    def public(self) -> Routes:
        """What everyone may ask: clients, where to connect."""
        return {"/goim/nodes/weighted": {"GET": answered(self._nodes_weighted)}}

    def _push_keys(self, request: Request) -> Awaitable[None]:
        op = _operation(request)
        return self.server.push_keys(several(request, "keys", "connection keys"), op, request.body)

    def _push_mids(self, request: Request) -> Awaitable[None]:
        op = _operation(request)
        expected = "user ids (int64)"
        mids = [
            integer("mids", text, expected, -_INT64_MAX - 1, _INT64_MAX)
            for text in several(request, "mids", expected)
        ]
        key = request.headers.get("idempotency-key", "")
        if len(key) > MAX_IDEMPOTENCY_KEY:
            raise BadRequest(f"Idempotency-Key: expected at most {MAX_IDEMPOTENCY_KEY} characters")
        return self.server.push_mids(mids, op, request.body, idempotency_key=key)

    def _push_room(self, request: Request) -> Awaitable[None]:
        op = _operation(request)
        kind, room = required(request, "type", "a room type"), required(request, "room", "a room name")
        return self.server.push_room(_room_id("room", kind, room), op, request.body)

    def _push_all(self, request: Request) -> Awaitable[None]:
        op = _operation(request)
        expected = "connections a second (0: at once)"
        speed = integer("speed", first(request, "speed") or "0", expected, 0, INT32_MAX)
        return self.server.push_all(op, request.body, speed=speed)

    async def _online_top(self, request: Request) -> list[dict[str, Any]]:
        kind = required(request, "type", "a room type")
        expected = "how many rooms, 1 or more"
        limit = integer("limit", required(request, "limit", expected), expected, 1, _INT64_MAX)
        ranking = await stepped(self.server.ranking(kind, limit))
        return [{"room_id": name, "count": count} for name, count in ranking]

    def _online_room(self, request: Request) -> dict[str, int]:
        kind = required(request, "type", "a room type")
        # Go writes the keys of a map in order.
        names = sorted(set(several(request, "rooms", "room names")))
        room_ids = {name: _room_id("rooms", kind, name) for name in names}
        counts = self.server.online_rooms(room_ids.values())
        return {name: counts.get(room_id, 0) for name, room_id in room_ids.items()}

    def _online_total(self, request: Request) -> dict[str, int]:
        ip_count, conn_count = self.server.online_total()
        return {"conn_count": conn_count, "ip_count": ip_count}

    def _nodes_weighted(self, request: Request) -> dict[str, Any]:
        return self.server.nodes_weighted(first(request, "platform"), request.address)

    def _nodes_instances(self, request: Request) -> list[dict[str, Any]]:
        return self.server.nodes_instances()


def _operation(request: Request) -> int:
    expected = "an int32 that may be pushed (64 or more, or 4, 5)"
    text = required(request, "operation", expected)
    op = integer("operation", text, expected, 0, INT32_MAX)
    if not pushable(op):
        raise BadRequest(f"operation: expected {expected}, got {text!r}")
    return op


def _room_id(parameter: str, kind: str, room: str) -> str:
    try:
        return check_room_id(f"{kind}://{room}")
    except ValueError as reason:
        raise BadRequest(f"type and {parameter}: {reason}") from None
