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

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from goim_core.errors import ConfigurationError, GoimError
from goim_core.flow import settled
from goim_core.http_door import JSON, Handler, Request, Response, Routes
from goim_core.protocol import INT32_MAX, pushable
from goim_core.session import MaybeAwaitable, check_room_id
from goim_core.storage import MAX_IDEMPOTENCY_KEY

__all__ = ["PushAPI", "Service"]

OK = 0
BAD_REQUEST = -400
SERVER_ERROR = -500

_INT64_MAX = 2**63 - 1
# int() takes more than Go does: spaces, underscores, digits of other scripts.
_DECIMAL = re.compile(r"[+-]?[0-9]{1,40}")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


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

    def online_top(self, kind: str, limit: int) -> list[tuple[str, int]]:
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
        """goim's paths and methods."""
        return {
            "/goim/push/keys": {"POST": _answered(self._push_keys)},
            "/goim/push/mids": {"POST": _answered(self._push_mids)},
            "/goim/push/room": {"POST": _answered(self._push_room)},
            "/goim/push/all": {"POST": _answered(self._push_all)},
            "/goim/online/top": {"GET": _answered(self._online_top)},
            "/goim/online/room": {"GET": _answered(self._online_room)},
            "/goim/online/total": {"GET": _answered(self._online_total)},
            "/goim/nodes/weighted": {"GET": _answered(self._nodes_weighted)},
            "/goim/nodes/instances": {"GET": _answered(self._nodes_instances)},
        }

    def _push_keys(self, request: Request) -> Awaitable[None]:
        op = _operation(request)
        return self.server.push_keys(_several(request, "keys", "connection keys"), op, request.body)

    def _push_mids(self, request: Request) -> Awaitable[None]:
        op = _operation(request)
        expected = "user ids (int64)"
        mids = [
            _integer("mids", text, expected, -_INT64_MAX - 1, _INT64_MAX)
            for text in _several(request, "mids", expected)
        ]
        key = request.headers.get("idempotency-key", "")
        if len(key) > MAX_IDEMPOTENCY_KEY:
            raise _BadRequest(f"Idempotency-Key: expected at most {MAX_IDEMPOTENCY_KEY} characters")
        return self.server.push_mids(mids, op, request.body, idempotency_key=key)

    def _push_room(self, request: Request) -> Awaitable[None]:
        op = _operation(request)
        kind, room = _required(request, "type", "a room type"), _required(request, "room", "a room name")
        return self.server.push_room(_room_id("room", kind, room), op, request.body)

    def _push_all(self, request: Request) -> Awaitable[None]:
        op = _operation(request)
        expected = "connections a second (0: at once)"
        speed = _integer("speed", _first(request, "speed") or "0", expected, 0, INT32_MAX)
        return self.server.push_all(op, request.body, speed=speed)

    def _online_top(self, request: Request) -> list[dict[str, Any]]:
        kind = _required(request, "type", "a room type")
        expected = "how many rooms, 1 or more"
        limit = _integer("limit", _required(request, "limit", expected), expected, 1, _INT64_MAX)
        return [{"room_id": name, "count": count} for name, count in self.server.online_top(kind, limit)]

    def _online_room(self, request: Request) -> dict[str, int]:
        kind = _required(request, "type", "a room type")
        # Go writes the keys of a map in order.
        names = sorted(set(_several(request, "rooms", "room names")))
        room_ids = {name: _room_id("rooms", kind, name) for name in names}
        counts = self.server.online_rooms(room_ids.values())
        return {name: counts.get(room_id, 0) for name, room_id in room_ids.items()}

    def _online_total(self, request: Request) -> dict[str, int]:
        ip_count, conn_count = self.server.online_total()
        return {"conn_count": conn_count, "ip_count": ip_count}

    def _nodes_weighted(self, request: Request) -> dict[str, Any]:
        return self.server.nodes_weighted(_first(request, "platform"), request.address)

    def _nodes_instances(self, request: Request) -> list[dict[str, Any]]:
        return self.server.nodes_instances()


class _BadRequest(Exception):
    """A parameter does not fit; the message is for the caller."""


def _answered(call: Callable[[Request], MaybeAwaitable[Any]]) -> Handler:
    """The route that answers with what ``call`` returns or raises."""

    async def handle(request: Request) -> Response:
        try:
            data = await settled(call(request))
        except _BadRequest as reason:
            return _answer(BAD_REQUEST, str(reason))
        except ConfigurationError as reason:  # it asks for what this server has not got
            return _answer(BAD_REQUEST, str(reason))
        except GoimError as reason:
            return _answer(SERVER_ERROR, str(reason))
        return _answer(OK, data=data)

    return handle


def _answer(code: int, message: str = "", data: Any = None) -> Response:
    fields = {"code": code, "message": message}
    if data is not None:
        fields["data"] = data
    # A room's name may have come from a token with half a surrogate pair in it.
    return Response(200, _encode(fields).encode("utf-8", "replace"), JSON)


def _several(request: Request, name: str, expected: str) -> list[str]:
    found = [value for value in request.query.get(name, ()) if value]
    if not found:
        raise _BadRequest(f"{name}: missing, expected {expected}")
    return found


def _first(request: Request, name: str) -> str:
    return request.query.get(name, ("",))[0]


def _required(request: Request, name: str, expected: str) -> str:
    value = _first(request, name)
    if not value:
        raise _BadRequest(f"{name}: missing, expected {expected}")
    return value


def _integer(name: str, text: str, expected: str, least: int, most: int) -> int:
    if not _DECIMAL.fullmatch(text) or not least <= int(text) <= most:
        raise _BadRequest(f"{name}: expected {expected}, got {text[:80]!r}")
    return int(text)


def _operation(request: Request) -> int:
    expected = "an int32 that may be pushed (64 or more, or 4, 5)"
    text = _required(request, "operation", expected)
    op = _integer("operation", text, expected, 0, INT32_MAX)
    if not pushable(op):
        raise _BadRequest(f"operation: expected {expected}, got {text!r}")
    return op


def _room_id(parameter: str, kind: str, room: str) -> str:
    try:
        return check_room_id(f"{kind}://{room}")
    except ValueError as reason:
        raise _BadRequest(f"type and {parameter}: {reason}") from None
