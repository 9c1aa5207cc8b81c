"""The room with picows' core API: callbacks, frames and not messages, no coroutine for a connection.

Its own advice: a read buffer of the expected frame's size. What a client does not take waits without a bound.
A message in several fragments would be the application's to join.
"""

from __future__ import annotations

import asyncio

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from benchmarks.peers.room import AUTH_REPLY, BACKLOG, HOST, may_enter, push_message, run

READ_BUFFER = 1024


class _Client(WSListener):
    def __init__(self, members: dict[WSTransport, None]) -> None:
        self._members = members

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.BINARY and transport not in self._members:
            if may_enter(frame.get_payload_as_bytes()):
                transport.send(WSMsgType.BINARY, AUTH_REPLY)
                self._members[transport] = None
            else:
                transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._members.pop(transport, None)


class PicowsPeer:
    """See :class:`~benchmarks.peers.room.Peer`."""

    def __init__(self) -> None:
        self._members: dict[WSTransport, None] = {}
        self._server: asyncio.Server | None = None

    async def listen(self) -> int:
        """Serve on a free port."""

        def accept(_: WSUpgradeRequest) -> WSListener:
            return _Client(self._members)

        self._server = await ws_create_server(
            accept, HOST, 0, read_buffer_init_size=READ_BUFFER, backlog=BACKLOG
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def online(self) -> int:
        """How many are in the room."""
        return len(self._members)

    async def push(self) -> None:
        """To all in the room."""
        message = push_message()
        binary = WSMsgType.BINARY
        for transport in self._members:
            transport.send(binary, message)


if __name__ == "__main__":
    run(PicowsPeer())
