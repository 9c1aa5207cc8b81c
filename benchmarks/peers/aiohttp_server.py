"""The room with aiohttp: a `WebSocketResponse` for each client, and a send to one after the other.

So its examples do it. It waits for a client whose socket is full; `asyncio.gather` would not, for a task
for each delivery.
"""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from benchmarks.peers.room import AUTH_REPLY, BACKLOG, HOST, may_enter, push_message, run


class AiohttpPeer:
    """See :class:`~benchmarks.peers.room.Peer`."""

    def __init__(self) -> None:
        self._members: dict[web.WebSocketResponse, None] = {}

    async def listen(self) -> int:
        """Serve on a free port."""
        application = web.Application()
        application.router.add_get("/sub", self._talk)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0, backlog=BACKLOG).start()
        port: int = runner.addresses[0][1]
        return port

    async def _talk(self, request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(compress=False)
        await response.prepare(request)
        if not may_enter(await response.receive_bytes()):
            return response
        await response.send_bytes(AUTH_REPLY)
        self._members[response] = None
        try:
            async for _ in response:
                pass
        finally:
            self._members.pop(response, None)
        return response

    def online(self) -> int:
        """How many are in the room."""
        return len(self._members)

    async def push(self) -> None:
        """To all in the room."""
        message = push_message()
        for response in list(self._members):
            with suppress(ConnectionError):
                await response.send_bytes(message)


if __name__ == "__main__":
    run(AiohttpPeer())
