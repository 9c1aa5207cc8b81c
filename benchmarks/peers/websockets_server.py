"""The room with `websockets`: its asyncio server and its `broadcast`.

No compression, and no pings of its own (on by default: a task for each connection). `broadcast` looks neither
at what a client reads nor at how much waits for it.
"""

from __future__ import annotations

from contextlib import suppress

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from benchmarks.peers.room import AUTH_REPLY, BACKLOG, HOST, may_enter, push_message, run


class WebsocketsPeer:
    """See :class:`~benchmarks.peers.room.Peer`."""

    def __init__(self) -> None:
        self._members: dict[ServerConnection, None] = {}
        self._server: Server | None = None

    async def listen(self) -> int:
        """Serve on a free port."""
        self._server = await serve(
            self._talk, HOST, 0, compression=None, ping_interval=None, server_header=None, backlog=BACKLOG
        )
        port: int = next(iter(self._server.sockets)).getsockname()[1]
        return port

    async def _talk(self, connection: ServerConnection) -> None:
        message = await connection.recv(decode=False)
        if not may_enter(message):
            return
        await connection.send(AUTH_REPLY)
        self._members[connection] = None
        try:
            with suppress(ConnectionClosed):
                async for _ in connection:
                    pass
        finally:
            self._members.pop(connection, None)

    def online(self) -> int:
        """How many are in the room."""
        return len(self._members)

    async def push(self) -> None:
        """To all in the room."""
        broadcast(self._members, push_message())


if __name__ == "__main__":
    run(WebsocketsPeer())
