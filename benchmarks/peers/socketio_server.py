"""The room with python-socketio over aiohttp: `enter_room`, and `emit` to it.

Its own protocol (Engine.IO 4, Socket.IO 5) over WebSocket only: the token comes with the CONNECT packet, a
push is an event with the same JSON. Its pings are always on; they are due after 25 s.
"""

from __future__ import annotations

from typing import Any

import socketio
from aiohttp import web

from benchmarks.peers.room import BACKLOG, HOST, ROOM, run, stamp


class SocketioPeer:
    """See :class:`~benchmarks.peers.room.Peer`."""

    def __init__(self) -> None:
        self._members: dict[str, None] = {}
        self._sio = socketio.AsyncServer(
            async_mode="aiohttp", transports=["websocket"], http_compression=False, async_handlers=False
        )
        self._sio.on("connect", self._on_connect)
        self._sio.on("disconnect", self._on_disconnect)

    async def listen(self) -> int:
        """Serve on a free port."""
        application = web.Application()
        self._sio.attach(application)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0, backlog=BACKLOG).start()
        port: int = runner.addresses[0][1]
        return port

    async def _on_connect(self, sid: str, _environ: dict[str, Any], auth: dict[str, Any]) -> bool:
        if auth["room_id"] != ROOM:
            return False
        await self._sio.enter_room(sid, ROOM)
        self._members[sid] = None
        return True

    async def _on_disconnect(self, sid: str, _reason: str) -> None:
        self._members.pop(sid, None)

    def online(self) -> int:
        """How many are in the room."""
        return len(self._members)

    async def push(self) -> None:
        """To all in the room."""
        await self._sio.emit("push", stamp(), room=ROOM)


if __name__ == "__main__":
    run(SocketioPeer())
