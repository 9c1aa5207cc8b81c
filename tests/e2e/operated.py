"""A server with the operator page, in another thread, and someone who has the page open."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from anyio.from_thread import BlockingPortal
from attrs import asdict
from playwright.sync_api import BrowserContext, Locator, Page, expect

from goim_core import OpenAuth, Options, Request, Response, Server
from goim_core.http_door import Handler
from tests.e2e.browser import PATIENCE

__all__ = ["Client", "Operated", "Operator"]

TEXT = 1000
HURRY = "(wait => { window.setTimeout = (call, ms) => wait(call, ms / 5); })(setTimeout)"
"""The page asks five times a second in place of once."""


class Client:
    """A TCP client of plain sockets: it has come in, and reads what it is sent."""

    def __init__(self, port: int, mid: int, **token: Any) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE / 1000)
        body = json.dumps({"mid": mid, "platform": "web", "accepts": [TEXT], **token}).encode()
        self.send(7, body)
        assert self.read()[0] == 8

    def send(self, op: int, body: bytes = b"") -> None:
        self.sock.sendall(struct.pack(">ihhii", 16 + len(body), 16, 1, op, 0) + body)

    def read(self) -> tuple[int, bytes]:
        """The next frame: operation and body."""
        size, header, _, op, _ = struct.unpack(">ihhii", self._exactly(16))
        return op, self._exactly(size - header)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more, "the server closed"
            data += more
        return data

    def close(self) -> None:
        self.sock.close()


class Operated:
    """A server whose operator API is played: ``data`` is changed into what it answers.

    Started again it listens where it did. With a ``key`` the operator API wants that key.
    """

    def __init__(self, portal: BlockingPortal, *, key: str = "", **settings: Any) -> None:
        self.key = key
        self.change: Callable[[dict[str, Any]], None] = lambda data: None
        self.traced: list[int] = []
        self.lines: list[dict[str, Any]] = []
        self._portal = portal
        self._settings = settings
        self._ports = {"tcp": 0, "http": 0}
        self._life = ExitStack()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['http']}/goim/operator/"

    def start(self) -> None:
        doors: dict[str, Any] = {door: ("127.0.0.1", port) for door, port in self._ports.items()}
        routes = {
            "/goim/operator/stats": {"GET": self._guarded(self._stats)},
            "/goim/operator/trace": {"GET": self._guarded(self._trace), "POST": self._guarded(self._switch)},
        }
        settings: dict[str, Any] = {
            "auth": OpenAuth(),
            "name": "node-1",
            "options": Options(drain=1),
            **self._settings,
        }
        self.server = Server(routes=routes, **doors, **settings)
        self._life.enter_context(self._portal.wrap_async_context_manager(self.server))
        self._began = self.server.clock.now()
        self._ports = {door: self.server.port(door) for door in self._ports}

    def stop(self) -> None:
        self._life.close()

    def client(self, mid: int, **token: Any) -> Client:
        return Client(self._ports["tcp"], mid, **token)

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call it in the server's thread."""
        return self._portal.call(function, *arguments)

    def says(self, mid: int, text: str, key: str = "key-1") -> None:
        """A line more in the trace."""
        n = len(self.lines)
        self.lines.append({"n": n, "time": 1_700_000_000 + n, "mid": mid, "key": key, "text": text})

    # The operator API.

    def _guarded(self, answer: Callable[[Request], Any]) -> Handler:
        def answered(request: Request) -> Response:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return _json({"code": -401, "message": "an API key is needed"}, 401)
            return _json({"code": 0, "message": "", "data": answer(request)})

        return answered

    def _stats(self, _: Request) -> dict[str, Any]:
        stats = asdict(self.server.stats())
        for mapping in ("drops", "closes"):
            stats[mapping] = {str(name): count for name, count in stats[mapping].items()}
        uptime = self.server.clock.now() - self._began
        data: dict[str, Any] = {
            "node": self.server.name,
            "version": "0.1.0",
            "uptime": uptime,
            "ready": True,
            "draining": False,
            "stats": {"refusals": {}, "outbox_bytes": 0, **stats},
            "lag": {"loop": 0.0004, "queue": 0.002},
            "hooks": {"connect": {"count": stats["opened"], "seconds": stats["opened"] * 0.0002}},
            "batch": {"count": 0, "sum": 0},
            "top": [
                {"room_id": f"live://{name}", "online": online}
                for name, online in self.server.online_top("live", 20)
            ],
        }
        self.change(data)
        return data

    def _trace(self, request: Request) -> dict[str, Any]:
        after = int(request.query["after"][0])
        lines = self.lines[after : after + 500]
        return {
            "traced": self.traced,
            "next": lines[-1]["n"] + 1 if lines else len(self.lines),
            "lines": lines,
        }

    def _switch(self, request: Request) -> dict[str, Any]:
        mid = int(request.query["mid"][0])
        self.traced = [other for other in self.traced if other != mid]
        if request.query["on"] == ("1",):
            self.traced.append(mid)
        return {"traced": self.traced}


def _json(answer: dict[str, Any], status: int = 200) -> Response:
    return Response(status, json.dumps(answer).encode())


class Operator:
    """Someone with the page open."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.complaints: list[str] = []
        context.add_init_script(HURRY)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None,
        )
        self.page.goto(url)

    def at(self, hook: str) -> Locator:
        return self.page.get_by_test_id(hook)

    def is_(self, state: str) -> None:
        """The page is connecting, live, away or locked."""
        expect(self.page.locator("body")).to_have_attribute("data-state", state)

    def chart(self, name: str) -> Locator:
        return self.page.locator(f"[data-chart={name}]")

    def value(self, chart: str, series: str) -> Locator:
        """The value in the chart's legend."""
        return self.chart(chart).locator("li", has=self.page.get_by_text(series, exact=True)).locator("b")

    def rows(self, table: str) -> Locator:
        return self.page.locator(f"[data-table={table}] tbody tr")
