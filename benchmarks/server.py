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
from typing import Any

import anyio

import goim_core.pipeline
from benchmarks import pushers
from benchmarks.rules import GOIM_BATCH, GOIM_SECONDS, RULES, CountingJob
from goim_core.auth import OpenAuth
from goim_core.options import Options
from goim_core.queue import MemoryQueue
from goim_core.server import Server

ANYWHERE = "127.0.0.1:0"
AHEAD = 8
"""How many messages wait while the room is flooded, unless more are merged."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the server that is measured.")
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument("--batch", type=int, help="how many pushes are merged at most")
    parser.add_argument("--linger", type=float, help="how many seconds a room's first push waits for others")
    parser.add_argument(
        "--rule", choices=tuple(RULES), help="what is merged, counted; goim's, or this library's"
    )
    parser.add_argument(
        "--flood", type=int, help="push to the room without a pause once it has so many in it"
    )
    parser.add_argument("--seconds", type=float, default=5, help="how long to push")
    parser.add_argument("--rate", type=float, help="push so many a second instead")
    parser.add_argument("--burst", type=int, help="push so many at once instead, and no more")
    return parser.parse_args()


def options_of(arguments: argparse.Namespace) -> Options:
    """The library's defaults, but for what was named."""
    if arguments.rule == "goim":
        return Options(batch=GOIM_BATCH, linger=GOIM_SECONDS)
    named = {name: getattr(arguments, name) for name in ("batch", "linger")}
    return Options(**{name: value for name, value in named.items() if value is not None})


async def push(
    server: Server, queue: MemoryQueue, arguments: argparse.Namespace, found: dict[str, Any]
) -> None:
    """Push to the load client's room as the command line says."""
    await pushers.full_room(server, arguments.flood)
    if arguments.rate:
        found |= await pushers.offer(server, queue, arguments.seconds, arguments.rate)
    elif arguments.burst:
        found["accepted"] = await pushers.burst(server, arguments.burst)
    else:
        ahead = max(AHEAD, 2 * (arguments.batch or 1))
        found["accepted"] = await pushers.flood(server, queue, arguments.seconds, ahead)


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    found: dict[str, Any] = {}
    queue = MemoryQueue()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with Server(
            auth=OpenAuth(),
            tcp=ANYWHERE,
            ws=ANYWHERE,
            http=ANYWHERE,
            queue=queue,
            options=options_of(arguments),
        ) as server:
            ports = {door: addresses[0][1] for door, addresses in server.addresses.items()}
            print(json.dumps({"pid": os.getpid(), **ports}), flush=True)
            async with anyio.create_task_group() as tasks:
                if arguments.flood:
                    tasks.start_soon(push, server, queue, arguments, found)
                async for _ in signals:
                    tasks.cancel_scope.cancel()
                    break
            stats = server.stats()
    found |= {"deliveries": stats.deliveries, "drops": dict(stats.drops), "opened": stats.opened}
    if arguments.rule:
        found["merged"] = CountingJob.messages / max(CountingJob.packets, 1)
    print(json.dumps(found))


def main() -> None:
    """Run the server on the backend that was asked for."""
    arguments = parse()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    if arguments.rule:
        vars(goim_core.pipeline)["Job"] = RULES[arguments.rule]  # what is compared is this part
    name = "trio" if arguments.backend == "trio" else "asyncio"
    uvloop = {"use_uvloop": True} if arguments.backend == "uvloop" else {}
    anyio.run(functools.partial(serve, arguments), backend=name, backend_options=uvloop)


if __name__ == "__main__":
    main()
