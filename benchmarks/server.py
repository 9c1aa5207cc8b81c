"""The process under test: a goim_core server with nothing of an application in it.

It prints one line of JSON with its process id and ports once it listens, and its figures when it is told
to stop (SIGTERM). The garbage collector and the library's options are left as they are unless named here.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import signal
import sys
import time

import anyio

from goim_core.auth import OpenAuth
from goim_core.options import Options
from goim_core.server import Server

ANYWHERE = "127.0.0.1:0"
ROOM = "bench://1"
SETTLE = 0.2
"""Seconds between the last connection and the first push: as long as the C loop waits."""
AHEAD = 8
"""How many messages wait while the room is flooded."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the server that is measured.")
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument("--batch", type=int, help="how many pushes are merged at most")
    parser.add_argument(
        "--flood", type=int, help="push to the room without a pause once it has so many in it"
    )
    parser.add_argument("--seconds", type=float, default=5, help="how long to flood it")
    return parser.parse_args()


def options_of(arguments: argparse.Namespace) -> Options:
    """The library's defaults, but for what was named."""
    return Options() if arguments.batch is None else Options(batch=arguments.batch)


async def flood(server: Server, conns: int, seconds: float) -> None:
    """Push to the load client's room; always some messages wait, and never so many that ending takes long."""
    while server.online_rooms([ROOM])[ROOM] < conns:  # noqa: ASYNC110  # nobody tells a pusher of joins
        await anyio.sleep(0.01)
    await anyio.sleep(SETTLE)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.stats().pending < AHEAD:
            await server.push_room(ROOM, 1000, json.dumps({"test": 1, "ts": time.time_ns()}).encode())
        else:
            await anyio.sleep(0.005)


async def serve(options: Options, conns: int | None, seconds: float) -> None:
    """Run until SIGTERM or SIGINT."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with Server(
            auth=OpenAuth(), tcp=ANYWHERE, ws=ANYWHERE, http=ANYWHERE, options=options
        ) as server:
            ports = {door: addresses[0][1] for door, addresses in server.addresses.items()}
            print(json.dumps({"pid": os.getpid(), **ports}), flush=True)
            async with anyio.create_task_group() as tasks:
                if conns:
                    tasks.start_soon(flood, server, conns, seconds)
                async for _ in signals:
                    tasks.cancel_scope.cancel()
                    break
            stats = server.stats()
    print(json.dumps({"deliveries": stats.deliveries, "drops": dict(stats.drops), "opened": stats.opened}))


def main() -> None:
    """Run the server on the backend that was asked for."""
    arguments = parse()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    name = "trio" if arguments.backend == "trio" else "asyncio"
    uvloop = {"use_uvloop": True} if arguments.backend == "uvloop" else {}
    run = functools.partial(serve, options_of(arguments), arguments.flood, arguments.seconds)
    anyio.run(run, backend=name, backend_options=uvloop)


if __name__ == "__main__":
    main()
