"""The example chat: a page, its rooms, and the hooks behind it, all in this process.

    python -m examples.chat.app            then open the address that it prints

What a page sends goes to ``Chat.receive``, which stamps it and pushes it to the sender's room. Who comes
into a room and who leaves it is heard by ``Counts``, which tells the room its new count.

The same program is a node of many: ``--queue``, ``--registry``, ``--storage`` and ``--discovery`` name what
the nodes share. ``python -m examples.cluster`` starts three of them, and all that.
"""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import anyio
from attrs import evolve

from goim_core import (
    AuthRequest,
    ErrorCode,
    Frame,
    GoimError,
    MessageHook,
    OpenAuth,
    Options,
    Refused,
    RoomHook,
    Server,
    Session,
    pages,
)
from goim_core.choices import CHOICES, made
from goim_core.settings import read_api_keys

LOCAL = ("127.0.0.1", "::1", "localhost")
SHARED = ("queue", "registry", "storage", "discovery")

TEXT, COUNT = 1000, 1001
MAX_TEXT = 1000
PAGE = Path(__file__).parent / "page"


class ChatAuth(OpenAuth):
    """Anyone may come in, under any name: this is a demonstration. The name is ``session.data``."""

    def authenticate(self, request: AuthRequest) -> Session:
        session = super().authenticate(request)
        name = json.loads(request.token).get("name", "")
        if not isinstance(name, str) or not name.strip() or len(name) > 40:
            raise Refused("name: expected 1 to 40 characters")
        return evolve(session, data=name.strip())


class Counts(RoomHook):
    """Tells a room how many are in it, each time that changes."""

    async def entered(self, session: Session, room_id: str) -> None:
        await self.tell(room_id)

    async def left(self, session: Session, room_id: str) -> None:
        await self.tell(room_id)

    async def tell(self, room_id: str) -> None:
        online = self.server.online_rooms([room_id])[room_id]
        await self.server.push_room(room_id, COUNT, _json(online=online))


class Chat(MessageHook):
    """Takes what a page sends and gives it to everyone in the room, its sender too."""

    def __init__(self) -> None:
        self._ids = count(time.time_ns())

    async def receive(self, session: Session, frame: Frame) -> None:
        if frame.op != TEXT or not session.room_id:
            raise Refused("only text, and only in a room", ErrorCode.BAD_REQUEST)
        message = _json(
            id=str(next(self._ids)),
            mid=session.mid,
            name=session.data,
            text=_text(frame.body, session.room_id),
            at=time.time_ns() // 1_000_000,
        )
        await self.server.push_room(session.room_id, TEXT, message)


def _text(body: bytes, room_id: str) -> str:
    try:
        message = json.loads(body)
        text = message["text"].strip()
        written_in = message.get("room_id", room_id)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refused('expected {"room_id": "...", "text": "..."}', ErrorCode.BAD_REQUEST) from None
    if written_in != room_id:
        # Written before the sender went elsewhere, sent after it.
        raise Refused("you have left the room that this was for", ErrorCode.CONFLICT)
    if not 0 < len(text) <= MAX_TEXT:
        raise Refused(f"text: expected 1 to {MAX_TEXT} characters", ErrorCode.BAD_REQUEST)
    return str(text)


def _json(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def chat_server(**settings: Any) -> Server:
    """The chat with ``settings`` of Server, for example ``ws="127.0.0.1:3102", http="127.0.0.1:3111"``."""
    return Server(auth=ChatAuth(), rooms=Counts(), messages=Chat(), routes=pages(PAGE), **settings)


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The example chat.")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to reach it from a phone")
    parser.add_argument("--tcp", type=int, default=3101, help="port for TCP clients")
    parser.add_argument("--ws", type=int, default=3102, help="port for WebSocket clients")
    parser.add_argument("--http", type=int, default=3111, help="port of the page and the push API")
    parser.add_argument("--name", default="", help="of this node, the same one at each start")
    for part in SHARED:
        parser.add_argument(f"--{part}", metavar="URL", help=CHOICES[part])
    parser.add_argument("--log", default="warning", choices=("info", "warning"), help="what is logged")
    return parser.parse_args()


def settings_of(call: argparse.Namespace) -> dict[str, Any]:
    """What the command line says, as arguments of Server."""
    settings: dict[str, Any] = {door: (call.host, getattr(call, door)) for door in ("tcp", "ws", "http")}
    parts = {part: made(part, url) for part in SHARED if (url := getattr(call, part))}
    if "discovery" in parts:
        settings["host"] = call.host
    if call.host not in LOCAL:
        # The page is for everyone who comes by, the push API is not.
        settings["api_keys"] = read_api_keys(None) or [secrets.token_urlsafe(24)]
    # The other nodes' counts are on the page within two seconds.
    return {**settings, **parts, "name": call.name, "options": Options(census=1)}


async def main(call: argparse.Namespace) -> None:
    settings = settings_of(call)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with chat_server(**settings) as server:
            shown = "127.0.0.1" if call.host in ("", "0.0.0.0", "::") else call.host
            port = server.port("http")
            print(f"ready: open http://{shown}:{port}/ in two windows; Ctrl+C stops", flush=True)
            print(f"its operator page: http://{shown}:{port}/goim/operator/", flush=True)
            for key in settings.get("api_keys", ())[:1]:
                print(f"a push needs this: curl -H 'Authorization: Bearer {key}' ...", flush=True)
            async for _ in signals:
                break


if __name__ == "__main__":
    call = command_line()
    logging.basicConfig(level=call.log.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        anyio.run(main, call)
    except (GoimError, OSError) as error:
        sys.exit(f"chat: {getattr(error, 'strerror', None) or error}")
