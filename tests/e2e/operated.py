"""A server with the operator page, in another thread, and someone who has the page open."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from anyio.from_thread import BlockingPortal
from playwright.sync_api import BrowserContext, Locator, Page, expect

from goim_core import OpenAuth, Options, Request, Response, Server
from goim_core.flow import settled
from goim_core.http_door import Handler, error
from goim_core.operator_api import OperatorAPI
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
    """A server with its operator API; started again it listens where it did.

    ``change`` may change the figures on their way to the page, ``lines`` are what its trace has, and
    with a ``key`` the operator API wants that key.
    """

    def __init__(self, portal: BlockingPortal) -> None:
        self.key = ""
        self.change: Callable[[dict[str, Any]], None] = lambda data: None
        self.lines: list[dict[str, Any]] = []
        self._portal = portal
        self._ports = {"tcp": 0, "http": 0}
        self._life = ExitStack()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['http']}/goim/operator/"

    def start(self) -> None:
        doors: dict[str, Any] = {door: ("127.0.0.1", port) for door, port in self._ports.items()}
        routes = {
            "/goim/operator/stats": {"GET": self._between(self._stats)},
            "/goim/operator/trace": {"GET": self._between(self._trace), "POST": self._between(None)},
        }
        self.server = Server(auth=OpenAuth(), name="node-1", routes=routes, options=Options(drain=1), **doors)
        self._routes = OperatorAPI(self.server).routes
        self._life.enter_context(self._portal.wrap_async_context_manager(self.server))
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

    def _between(self, change: Callable[[Request, dict[str, Any]], None] | None) -> Handler:
        """The server's own route, with a lock before it and a change behind it."""

        async def handle(request: Request) -> Response:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return error(401, "an API key is needed")
            response = await settled(self._routes[request.path][request.method](request))
            answer = json.loads(response.body)
            if change is None or answer["code"]:
                return response
            change(request, answer["data"])
            return Response(200, json.dumps(answer).encode())

        return handle

    def _stats(self, _: Request, data: dict[str, Any]) -> None:
        self.change(data)

    def _trace(self, request: Request, data: dict[str, Any]) -> None:
        after = int(request.query["after"][0])
        lines = self.lines[after : after + 500]
        data.update(lines=lines, next=lines[-1]["n"] + 1 if lines else len(self.lines))


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

    def fills(self, field: str, text: str) -> None:
        self.at(field).fill(text)
        self.at(field).press("Enter")

    def chart(self, name: str) -> Locator:
        return self.page.locator(f"[data-chart={name}]")

    def value(self, chart: str, series: str) -> Locator:
        """The value in the chart's legend."""
        return self.chart(chart).locator("li", has=self.page.get_by_text(series, exact=True)).locator("b")

    def rows(self, table: str) -> Locator:
        return self.page.locator(f"[data-table={table}] tbody tr")
