"""A live-comment server: who comments, who moderates, and how many watch.

    python -m examples.danmaku.app          then open the address that it prints

A viewer's token comes from POST /join. A moderator's is made where the secret is:

    goim-core token --secret-file danmaku.secret --mid 1 --data '{"name":"Mo","moderator":true}'
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping
from enum import IntEnum
from itertools import count
from pathlib import Path
from typing import Any

import anyio
from attrs import frozen

from examples.danmaku.rules import Rules
from goim_core import (
    Disconnect,
    ErrorCode,
    Frame,
    GoimError,
    MessageHook,
    Op,
    Options,
    Refused,
    Request,
    Response,
    RoomHook,
    Server,
    Session,
    pages,
)
from goim_core.auth import SignedTokenAuth
from goim_core.settings import API_KEYS_VARIABLE, read_api_keys

PAGE = Path(__file__).parent / "page"
CLIENT = Path(__file__).parents[1] / "chat" / "page"
BANNED = 4403
COUNT_EVERY = 1.0
"""Seconds: so often a video is told how many watch, if that has changed."""
OPTIONS = Options(
    linger=0.1,  # comments of a tenth of a second leave as one packet: one system call for each viewer
    rate=5,  # frames a second of one connection, of whatever kind
    rate_burst=20,
    max_rooms=0,  # one video at a time
    max_body=1024,
)


class Message(IntEnum):
    """The application's operations."""

    COMMENT = 2000
    """``{"text":"wow","at":12.5}``, ``at`` being seconds into the video; everyone gets it with a name."""
    COUNT = 2001
    """From the server: ``{"online":12}``."""
    SLOW = 2010
    """A moderator's ``{"seconds":5}`` between two comments of one viewer; 0 ends it."""
    BLOCK = 2011
    """``{"word":"spoiler"}``."""
    MUTE = 2012
    """``{"mid":7,"seconds":60}``."""
    BAN = 2013
    """``{"mid":7}``: out of this video, for good."""


@frozen
class Viewer:
    """What a token says of a viewer beside the number: ``session.data``."""

    name: str
    moderator: bool = False


class Viewers(SignedTokenAuth):
    """Whoever brings a token that was signed here. Its ``data`` is a viewer."""

    def verify(self, token: str) -> Mapping[str, Any]:
        fields = super().verify(token)
        return {**fields, "data": Viewer(**fields["data"])}


class Audience(RoomHook):
    """Keeps banned viewers out, and tells a video how many watch it."""

    def __init__(self, videos: defaultdict[str, Rules]) -> None:
        self._videos = videos
        self._changed: set[str] = set()

    def may_enter(self, session: Session, room_id: str) -> bool:
        rules = self._videos.get(room_id)
        return room_id.startswith("video://") and (rules is None or session.mid not in rules.banned)

    def entered(self, session: Session, room_id: str) -> None:
        self._changed.add(room_id)

    def left(self, session: Session, room_id: str) -> None:
        self._changed.add(room_id)
        rules = self._videos.get(room_id)
        if rules is not None:
            rules.forget(session.mid)
            if rules.untouched and not self.server.online_rooms([room_id])[room_id]:
                del self._videos[room_id]  # anyone can name any video

    async def tell(self) -> None:
        """Tell counts, until cancelled. Once a second, not for each who comes: that would be a flood."""
        while True:
            await self.server.clock.sleep(COUNT_EVERY)
            changed, self._changed = self._changed, set()
            for room_id, online in self.server.online_rooms(changed).items():
                await self.server.push_room(room_id, Message.COUNT, _json(online=online))


class Comments(MessageHook):
    """Shows what the rules allow, and lets moderators change the rules."""

    def __init__(self, videos: defaultdict[str, Rules]) -> None:
        self._videos = videos

    async def receive(self, session: Session, frame: Frame) -> None:
        if not session.room_id:
            raise Refused("watch something first", ErrorCode.CONFLICT)
        rules, body = self._videos[session.room_id], _read(frame.body)
        if frame.op == Message.COMMENT:
            await self._comment(session, rules, body)
        elif frame.op not in (Message.SLOW, Message.BLOCK, Message.MUTE, Message.BAN):
            raise Refused(f"operation {frame.op} means nothing here", ErrorCode.BAD_REQUEST)
        elif not session.data.moderator:
            raise Refused("only a moderator may")
        else:
            await self._moderate(session.room_id, rules, frame.op, body)

    async def _comment(self, session: Session, rules: Rules, body: dict[str, Any]) -> None:
        at = _number(body, "at", 1e6)
        text = rules.check(session.mid, str(body.get("text", "")), self.server.clock.now())
        comment = _json(mid=session.mid, name=session.data.name, text=text, at=at)
        await self.server.push_room(session.room_id, Message.COMMENT, comment)

    async def _moderate(self, room_id: str, rules: Rules, op: int, body: dict[str, Any]) -> None:
        if op == Message.SLOW:
            rules.slow = _number(body, "seconds", 3600)
        elif op == Message.BLOCK:
            rules.block(str(body.get("word", "")))
        elif op == Message.MUTE:
            rules.mute(_mid(body), self.server.clock.now(), _number(body, "seconds", 86_400))
        else:
            rules.banned.add(_mid(body))
            watching = self.server.members(room_id, limit=1_000_000)
            keys = [member.key for member in watching if member.mid == _mid(body)]
            await self.server.disconnect_keys(keys, Disconnect("you are banned from this video", BANNED))


class Join:
    """POST /join: a viewer's token for a name. Anyone gets one: this is a demonstration."""

    def __init__(self, auth: SignedTokenAuth) -> None:
        self._auth = auth
        self._mids = count(secrets.randbelow(2**52))

    def __call__(self, request: Request) -> Response:
        name = request.body.decode(errors="replace").strip()
        if not 0 < len(name) <= 20:
            return Response(400, b"expected a name of 1 to 20 characters", "text/plain; charset=utf-8")
        accepts = [Op.ERROR, *Message]
        expires = self._auth.now() + 6 * 3600
        token = self._auth.sign(mid=next(self._mids), expires=expires, accepts=accepts, data={"name": name})
        return Response(200, token.encode(), "text/plain; charset=utf-8")


def _read(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused("expected a JSON object", ErrorCode.BAD_REQUEST)
    return found


def _number(body: dict[str, Any], name: str, at_most: float) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= at_most:
        raise Refused(f"{name}: expected a number from 0 to {at_most:g}", ErrorCode.BAD_REQUEST)
    return value


def _mid(body: dict[str, Any]) -> int:
    mid = body.get("mid")
    if type(mid) is not int:
        raise Refused("mid: expected a viewer's number", ErrorCode.BAD_REQUEST)
    return mid


def _json(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def parts(secret: str) -> dict[str, Any]:
    """The hooks, as arguments for a Server or for a test's ``running``."""
    videos: defaultdict[str, Rules] = defaultdict(Rules)
    auth = Viewers(secret)
    return {
        "auth": auth,
        "rooms": Audience(videos),
        "messages": Comments(videos),
        "options": OPTIONS,
        "routes": {"/join": {"POST": Join(auth)}, **pages(PAGE), **pages(CLIENT, prefix="/client")},
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description="The example of live comments.")
    parser.add_argument("--secret-file", type=Path, default=Path("danmaku.secret"), help="made if missing")
    parser.add_argument("--ws", default="127.0.0.1:3102")
    http = f"the page, and the push API; beyond this machine with keys in {API_KEYS_VARIABLE}"
    parser.add_argument("--http", default="127.0.0.1:3111", help=http)
    call = parser.parse_args()
    if not call.secret_file.exists():
        call.secret_file.touch(mode=0o600)
        call.secret_file.write_text(secrets.token_hex(32))
    made = parts(call.secret_file.read_text())
    doors = {"ws": call.ws, "http": call.http, "api_keys": read_api_keys(None)}
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with Server(**made, **doors) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(made["rooms"].tell)
            port = server.addresses["http"][0][1]
            print(f"ready: open http://127.0.0.1:{port}/ in two windows; Ctrl+C stops", flush=True)
            async for _ in signals:
                break
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    try:
        anyio.run(main)
    except (GoimError, OSError) as error:
        sys.exit(f"danmaku: {getattr(error, 'strerror', None) or error}")
