"""The room with goim_core. Authentication, heartbeats, deadlines and bounded outboxes are always on.

A push goes its whole way: publisher, queue, job, room. With `--batch 1` no two are merged, as the others
merge none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from contextlib import AsyncExitStack

from benchmarks.peers.room import HOST, ROOM, run, stamp
from goim_core.auth import OpenAuth
from goim_core.options import Options
from goim_core.queue import MemoryQueue
from goim_core.server import Server

AHEAD = 20
"""Each so many pushes it is looked at how many wait, and not more do: the figure is not one of a growing
backlog."""


class GoimCorePeer:
    """See :class:`~benchmarks.peers.room.Peer`."""

    def __init__(self, options: Options) -> None:
        self._queue = MemoryQueue()
        self._server = Server(auth=OpenAuth(), ws=(HOST, 0), options=options, queue=self._queue)
        self._running = AsyncExitStack()
        self._pushed = 0

    async def listen(self) -> int:
        """Serve on a free port."""
        await self._running.enter_async_context(self._server)
        return int(self._server.addresses["ws"][0][1])

    def online(self) -> int:
        """How many are in the room."""
        return self._server.online_rooms([ROOM])[ROOM]

    async def push(self) -> None:
        """To all in the room."""
        await self._server.push_room(ROOM, 1000, json.dumps(stamp()).encode())
        self._pushed += 1
        if self._pushed % AHEAD:
            return
        while self._queue.pending >= AHEAD:  # noqa: ASYNC110  # nobody tells a pusher of it
            await asyncio.sleep(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--batch", type=int, default=Options().batch)
    arguments, rest = parser.parse_known_args()
    logging.basicConfig(level=logging.ERROR)
    run(GoimCorePeer(Options(batch=arguments.batch)), rest)
