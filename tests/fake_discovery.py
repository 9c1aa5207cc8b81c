"""A stand-in for the Go program bilibili/discovery: its HTTP API, compared with the real one call by call.

What is odd about it is odd there: ``set`` of an unknown node is -400 where ``renew`` is -404; ``set`` wakes those who
poll but is not a newer list; who polls is not told when the last node of all goes; what is no text in the metadata
of a ``register`` becomes an empty one; and a server that hears of a node from another has its addresses as one, with
commas between them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from urllib.parse import parse_qs

import anyio
from anyio.abc import TaskGroup

from goim_core.http_door import HTTPDoor, Request, Response

__all__ = ["Fake", "Registrations", "fake_discovery"]

OK, UNCHANGED, BAD, UNKNOWN = 0, -304, -400, -404
UP, WAITING = 1, 2
WHO = ("zone", "env", "appid", "hostname")
NEEDED = {
    "register": (*WHO, "status", "addrs"),
    "renew": WHO,
    "cancel": WHO,
    "set": ("zone", "env", "appid"),
    "fetch": ("env", "appid", "status"),
    "polls": ("env", "appid", "hostname"),
    "nodes": (),
}
Form = dict[str, list[str]]


class Registrations:
    """What the servers of one discovery know, as if they replicated at once."""

    def __init__(self) -> None:
        self.apps: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        """By env and appid the nodes, by zone and name."""
        self.latest: dict[tuple[str, str], int] = {}
        self.now = count(1_600_000_000_000_000_000)
        self.changed = anyio.Event()

    def find(self, form: Form, hostname: str) -> dict[str, Any] | None:
        app, node = (form["env"][0], form["appid"][0]), f"{form['zone'][0]}/{hostname}"
        return self.apps.get(app, {}).get(node)

    def wake(self, app: tuple[str, str]) -> None:
        if app in self.apps:  # else nobody is told
            self.changed.set()
            self.changed = anyio.Event()

    def forget(self, app: tuple[str, str], node: str) -> bool:
        """Whether it was there. ``node`` is ``zone/name``."""
        if node not in self.apps.get(app, {}):
            return False
        del self.apps[app][node]
        self.latest[app] += 1
        if not self.apps[app]:
            del self.apps[app], self.latest[app]
        self.wake(app)
        return True

    def clear(self) -> None:
        """It was started again, and has no memory of its own."""
        self.apps.clear()
        self.latest.clear()


class Fake:
    """One server. ``calls`` are what it was asked; ``answer`` may be replaced, to answer otherwise."""

    def __init__(self, known: Registrations) -> None:
        self.known = known
        self.calls: list[tuple[str, Form]] = []
        self.authorizations: list[str] = []
        self.otherwise: Callable[[str], Response | None] = lambda what: None
        self.url = ""
        self._port = 0
        self._life: anyio.CancelScope | None = None
        post, get = ("register", "renew", "cancel", "set"), ("fetch", "polls", "nodes")
        self._routes = {
            **{f"/discovery/{what}": {"POST": self._handle} for what in post},
            **{f"/discovery/{what}": {"GET": self._handle} for what in get},
        }

    def asked(self, what: str) -> list[Form]:
        """The parameters of all calls of one kind."""
        return [form for called, form in self.calls if called == what]

    async def start(self, tasks: TaskGroup) -> None:
        """Serve, at the same port each time."""
        sock = socket.create_server(("127.0.0.1", self._port))
        sock.setblocking(False)
        self._port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._life = anyio.CancelScope()
        tasks.start_soon(self._serve, sock, self._life)

    async def _serve(self, listener: socket.socket, life: anyio.CancelScope) -> None:
        door = HTTPDoor(self._routes)
        with listener, life:
            async with anyio.create_task_group() as tasks:
                while True:
                    await anyio.wait_readable(listener)
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    tasks.start_soon(door.serve, sock)

    def kill(self) -> None:
        assert self._life is not None
        self._life.cancel()

    async def _handle(self, request: Request) -> Response:
        what = request.path.removeprefix("/discovery/")
        form = {name: list(values) for name, values in request.query.items()}
        form |= parse_qs(request.body.decode(), keep_blank_values=True, errors="strict")
        self.calls.append((what, form))
        if "authorization" in request.headers:
            self.authorizations.append(request.headers["authorization"])
        other = self.otherwise(what)
        if other is not None:
            return other
        if not all(form.get(name, [""])[0] for name in NEEDED[what]):
            return _json(BAD)
        if what == "polls":
            return await self._polls(form)
        code, data = getattr(self, f"_{what}")(form)
        return _json(code, data)

    def _register(self, form: Form) -> tuple[int, Any]:
        one = {name: values[0] for name, values in form.items()}
        try:
            metadata = json.loads(one.get("metadata") or "{}")
        except ValueError:
            return BAD, ...
        if one["status"] not in ("1", "2"):
            return BAD, ...
        texts = metadata.items() if isinstance(metadata, dict) else ()
        app, now = (one["env"], one["appid"]), next(self.known.now)
        self.known.apps.setdefault(app, {})[f"{one['zone']}/{one['hostname']}"] = {
            **{name: one.get(name, "") for name in ("region", "zone", "env", "appid", "hostname", "version")},
            "addrs": form["addrs"],
            "metadata": {name: text if isinstance(text, str) else "" for name, text in texts},
            "status": int(one["status"]),
            **{f"{name}_timestamp": now for name in ("reg", "up", "renew", "dirty", "latest")},
            "told": self,
        }
        self.known.latest[app] = max(now, self.known.latest.get(app, 0) + 1)
        self.known.wake(app)
        return OK, ...

    def _renew(self, form: Form) -> tuple[int, Any]:
        found = self.known.find(form, form["hostname"][0])
        if found is None:
            return UNKNOWN, None
        found["renew_timestamp"] = next(self.known.now)
        return OK, self._told(found)

    def _cancel(self, form: Form) -> tuple[int, Any]:
        app, node = (form["env"][0], form["appid"][0]), f"{form['zone'][0]}/{form['hostname'][0]}"
        return (OK if self.known.forget(app, node) else UNKNOWN), ...

    def _set(self, form: Form) -> tuple[int, Any]:
        names = form.get("hostname", [])
        if any(len(form.get(each, names)) != len(names) for each in ("status", "metadata")):
            return BAD, ...
        for index, name in enumerate(names):
            found = self.known.find(form, name)
            if found is None:
                return BAD, ...
            now = next(self.known.now)
            if "status" in form:
                if form["status"][index] not in (str(UP), str(WAITING)):
                    return BAD, ...
                found["status"] = int(form["status"][index])
                if found["status"] == UP:
                    found["up_timestamp"] = now
            if "metadata" in form:
                try:
                    metadata = json.loads(form["metadata"][index])
                except ValueError:
                    return BAD, ...
                if not all(isinstance(text, str) for text in metadata.values()):
                    return BAD, ...
                found["metadata"] = {**found["metadata"], **metadata}
            found["latest_timestamp"] = found["dirty_timestamp"] = now
            self.known.wake((form["env"][0], form["appid"][0]))
        return OK, ...

    def _fetch(self, form: Form) -> tuple[int, Any]:
        app = form["env"][0], form["appid"][0]
        if app not in self.known.apps:
            return UNKNOWN, None
        found = self._list(app, int(form["status"][0]))
        zone = form.get("zone", [""])[0]
        if zone:
            found["instances"] = {name: each for name, each in found["instances"].items() if name == zone}
        return (OK if found["instances"] else UNKNOWN), found

    def _list(self, app: tuple[str, str], status: int) -> dict[str, Any]:
        zones: dict[str, list[Any]] = {}
        for each in self.known.apps[app].values():
            zones.setdefault(each["zone"], [])
            if each["status"] & status:
                zones[each["zone"]].append(self._told(each))
        return {"instances": zones, "latest_timestamp": self.known.latest[app]}

    def _told(self, found: dict[str, Any]) -> dict[str, Any]:
        """What this server says of a node."""
        own = found["told"] is self
        said = {name: value for name, value in found.items() if name != "told"}
        return said if own else {**said, "addrs": [",".join(found["addrs"])]}

    async def _polls(self, form: Form) -> Response:
        since = form.get("latest_timestamp", [])
        if len(form["appid"]) != len(since):
            return _json(BAD)
        [app] = [(form["env"][0], appid) for appid in form["appid"]]
        if app not in self.known.apps or int(since[0]) >= self.known.latest[app]:
            with anyio.move_on_after(30):
                await self.known.changed.wait()
        if app not in self.known.apps:
            return _json(UNCHANGED)
        return _json(OK, {app[1]: self._list(app, UP)})


def _json(code: int, data: Any = ...) -> Response:
    """Without ``data`` where that is an ellipsis."""
    body = {"code": code, "message": str(code), "ttl": 1, **({} if data is ... else {"data": data})}
    return Response(200, json.dumps(body).encode(), "application/json; charset=utf-8")


@asynccontextmanager
async def fake_discovery(servers: int = 1) -> AsyncIterator[tuple[list[Fake], TaskGroup]]:
    """Servers that replicate, and the task group in which they are started again."""
    known = Registrations()
    fakes = [Fake(known) for _ in range(servers)]
    async with anyio.create_task_group() as tasks:
        for fake in fakes:
            await fake.start(tasks)
        try:
            yield fakes, tasks
        finally:
            tasks.cancel_scope.cancel()
