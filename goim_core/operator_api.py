"""What an operator asks a server over HTTP, as routes: is it well, its figures, what does a user see.

``routes`` are for the operator, ``public`` ones for whoever watches over the process (a load balancer, an
orchestrator). Answers have goim's shape, ``{"code":0,"message":"","data":...}``.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

import anyio.lowlevel
import attrs

from goim_core.http_answers import BadRequest, answered, first, integer, required
from goim_core.http_message import JSON, Request, Response, Routes, error
from goim_core.overview import Overview
from goim_core.prometheus import CONTENT_TYPE
from goim_core.scrape import scrape

__all__ = ["OperatorAPI", "version"]

TOP = 20
"""How many rooms are shown, the largest ones."""
LINES = 500
"""How many lines of the trace one answer has."""
_INT64 = 2**63


class OperatorAPI:
    """The routes over ``server``, for :class:`~goim_core.http_door.HTTPDoor`."""

    def __init__(self, server: Overview) -> None:
        self.server = server

    @property
    def routes(self) -> Routes:
        """What only an operator may ask."""
        return {
            "/metrics": {"GET": lambda _: Response(200, scrape(self.server), CONTENT_TYPE)},
            "/goim/operator/stats": {"GET": answered(self._stats)},
            "/goim/operator/trace": {"GET": answered(self._traced), "POST": answered(self._trace)},
        }

    @property
    def public(self) -> Routes:
        """What anybody may ask."""
        return {
            "/healthz": {"GET": answered(lambda _: None)},
            "/readyz": {"GET": self._ready},
        }

    def _ready(self, _: Request) -> Response:
        why = self.server.unready
        return error(503, why) if why else Response(200, b'{"code":0,"message":""}', JSON)

    def _stats(self, _: Request) -> dict[str, Any]:
        server = self.server
        instruments = server.instruments
        hooks = {
            name: {"count": times.seconds.count, "seconds": times.seconds.sum}
            for name, times in instruments.hooks.items()
        }
        return {
            "node": server.node().name,
            "version": version(),
            "uptime": server.uptime,
            "ready": not server.unready,
            "draining": server.draining,
            "stats": {name: _plain(value) for name, value in _fields(server.stats())},
            "lag": {"loop": instruments.loop.recent, "queue": server.queue_lag},
            "hooks": hooks,
            "pushes": {kind: attrs.asdict(count) for kind, count in instruments.pushes.items()},
            "batch": {"count": instruments.batches.count, "sum": instruments.batches.sum},
            "top": [{"room_id": room_id, "online": online} for room_id, online in server.top(TOP)],
        }

    async def _trace(self, request: Request) -> dict[str, Any]:
        expected = "a user id (int64)"
        mid = integer("mid", required(request, "mid", expected), expected, -_INT64, _INT64 - 1)
        switch = required(request, "on", "1 or 0")
        if switch not in ("0", "1"):
            raise BadRequest(f"on: expected 1 or 0, got {switch[:80]!r}")
        try:
            for _ in self.server.switch_trace(mid, switch == "1"):
                await anyio.lowlevel.checkpoint()
        except ValueError as reason:
            raise BadRequest(str(reason)) from None
        return {"traced": self.server.traced}

    def _traced(self, request: Request) -> dict[str, Any]:
        after = integer("after", first(request, "after") or "0", "a line's number", 0, _INT64 - 1)
        lines, following = self.server.trace_lines(after, LINES)
        return {
            "traced": self.server.traced,
            "next": following,
            "lines": [attrs.asdict(line) for line in lines],
        }


def _fields(stats: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(stats, field.name)) for field in attrs.fields(type(stats))]


def _plain(value: Any) -> Any:
    return {str(name): count for name, count in value.items()} if hasattr(value, "items") else value


@cache
def version() -> str:
    """The installed version of goim_core."""
    try:
        return metadata.version("goim_core")
    except metadata.PackageNotFoundError:  # run from its source
        return "unknown"
