"""The JavaScript client in a page of a real browser, and the server that it talks to."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal
from attrs import evolve
from playwright.sync_api import Page, WebSocket

from goim_core import (
    AuthRequest,
    Frame,
    MemoryStorage,
    Op,
    OpenAuth,
    Options,
    Request,
    Response,
    RoomHook,
    Server,
    Session,
    SessionHook,
    pages,
)
from goim_core.protocol import Decoder
from tests.e2e.browser import PATIENCE
from tests.e2e.processes import ROOT

__all__ = ["TEXT", "Node", "Tab", "await_item"]

SCRIPTS = ROOT / "examples" / "chat" / "page"
HTML = (Path(__file__).parent / "js_client.html").read_bytes()
TEXT = 1000


class Auth(OpenAuth):
    """As open as its base, for tokens that run out."""

    def authenticate(self, request: AuthRequest) -> Session:
        session = super().authenticate(request)
        return evolve(session, expires=json.loads(request.token).get("expires", float("inf")))


class Doorkeeper(RoomHook):
    """Keeps users out of closed rooms, and says who has come in."""

    def __init__(self) -> None:
        self.entries: queue.Queue[tuple[int, str]] = queue.Queue()

    def may_enter(self, session: Session, room_id: str) -> bool:
        return not room_id.startswith("closed://")

    def entered(self, session: Session, room_id: str) -> None:
        self.entries.put((session.mid, room_id))


class Storage(MemoryStorage):
    """Says which numbers were acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged: queue.Queue[tuple[int, int]] = queue.Queue()

    def acknowledge(self, mid: int, device: str, seq: int) -> int:
        cursor = super().acknowledge(mid, device, seq)
        self.acknowledged.put((mid, cursor))
        return cursor


class Sessions(SessionHook):
    """Lets everyone ask about everyone."""

    def may_see(self, session: Session, mid: int) -> bool:
        return True


def await_item(items: queue.Queue[Any], wanted: object) -> None:
    """Takes items until the one that is wanted has come."""
    while items.get(timeout=PATIENCE / 1000) != wanted:
        pass


class Node:
    """A server in another thread. Started again it listens where it did, and has what it had stored."""

    def __init__(self, portal: BlockingPortal, **options: Any) -> None:
        self.storage = Storage()
        self.rooms = Doorkeeper()
        self._portal = portal
        self._options = Options(**options)
        self._ports = {"ws": 0, "http": 0}
        self._life = ExitStack()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['http']}"

    def start(self) -> None:
        doors: dict[str, Any] = {door: ("127.0.0.1", port) for door, port in self._ports.items()}
        self.server = Server(
            auth=Auth(),
            rooms=self.rooms,
            sessions=Sessions(),
            storage=self.storage,
            options=self._options,
            routes={**pages(SCRIPTS, "/client"), "/": {"GET": _page}},
            **doors,
        )
        self._life.enter_context(self._portal.wrap_async_context_manager(self.server))
        self._ports = {door: self.server.addresses[door][0][1] for door in self._ports}  # type: ignore[misc]

    def stop(self) -> None:
        self._life.close()

    def push(self, mid: int, *texts: str) -> None:
        for text in texts:
            self._portal.call(self.server.push_mids, [mid], TEXT, text.encode())

    def push_room(self, room_id: str, text: str) -> None:
        self._portal.call(self.server.push_room, room_id, TEXT, text.encode())

    def session(self, mid: int, room_id: str) -> Session:
        """The user's session, by a room that it is in."""
        members = self._portal.call(self.server.members, room_id)
        (found,) = [session for session in members if session.mid == mid]
        return found


def _page(_: Request) -> Response:
    return Response(200, HTML, "text/html; charset=utf-8")


class Tab:
    """A page with a client in it: what it does, what it was given, and what came over the wire."""

    def __init__(self, page: Page, url: str, mid: int, **token: Any) -> None:
        self.page = page
        self.token = {"mid": mid, "platform": "web", "room_id": f"test://{mid}", **token}
        self.wires: list[list[Frame]] = []
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", self._watch)
        page.goto(url)

    def _watch(self, socket: WebSocket) -> None:
        frames: list[Frame] = []
        self.wires.append(frames)
        socket.on("framereceived", lambda payload: frames.extend(_frames(payload)))

    def enter(self, **options: Any) -> None:
        """Makes the client, and waits until it is connected."""
        self.page.evaluate("([token, options]) => enter(token, options)", [self.token, options])
        self.is_("open")

    def load_again(self, **options: Any) -> None:
        self.page.reload()
        self.enter(**options)

    def is_(self, state: str) -> None:
        self.until(f"client.state === '{state}'")

    def until(self, condition: str) -> None:
        self.page.wait_for_function(f"() => {condition}")

    def call(self, method: str, *arguments: object) -> Any:
        """What a method of the client returns; ``code`` and ``message`` where it is refused."""
        script = "([name, given]) => client[name](...given).then((value) => value, ({ code, message }) => ({ code, message }))"
        return self.page.evaluate(script, [method, list(arguments)])

    def has(self, *texts: str) -> None:
        """Everything that the listeners on this page were given, in order."""
        self.until(f"given.length >= {len(texts)}")
        assert [text for _, text in self.page.evaluate("given")] == list(texts)

    def told(self, event: str) -> list[Any]:
        """The details of all such events on this page."""
        return [detail for name, detail in self.page.evaluate("events") if name == event]

    def numbers(self) -> list[int]:
        """The numbers of the inbox that came over the newest connection, seen before or not."""
        return [frame.seq for frame in self.wires[-1] if frame.op == TEXT and frame.seq]


def _frames(payload: bytes | str) -> Iterator[Frame]:
    assert isinstance(payload, bytes)
    decoder = Decoder(max_body=1 << 30)
    decoder.receive(payload)
    while (frame := decoder.next_frame()) is not None:
        if frame.op == Op.RAW:
            yield from _frames(frame.body)
        else:
            yield frame
