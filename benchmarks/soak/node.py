"""A node under load: a server with nothing of an application in it, and a page that counts what it holds.

``python -m benchmarks.soak.node BACKEND ...``, with the options of the example chat.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import signal
import sys
import threading

import anyio

from examples.chat.app import command_line, settings_of
from goim_core import OpenAuth, Options, Server
from goim_core.http_door import Request, Response
from goim_core.settings import backend_of

DRAIN = 10.0
"""Seconds for thousands of clients to go, on two cores that clients and brokers share."""


def held(_: Request) -> Response:
    """How many tasks, threads and objects that the collector knows this process has."""
    tasks = len(asyncio.all_tasks())
    counts = {"tasks": tasks, "threads": threading.active_count(), "objects": len(gc.get_objects())}
    return Response(200, json.dumps(counts).encode())


async def serve(call: argparse.Namespace) -> None:
    """Run until SIGTERM."""
    settings = {**settings_of(call), "options": Options(drain=DRAIN)}
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with Server(auth=OpenAuth(), routes={"/soak": {"GET": held}}, **settings):
            print("ready", flush=True)
            async for _ in signals:
                break


if __name__ == "__main__":
    backend, options = backend_of(sys.argv.pop(1))
    logging.basicConfig(level="WARNING", format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("goim_core.auth").setLevel(logging.ERROR)
    anyio.run(serve, command_line(), backend=backend, backend_options=options)
