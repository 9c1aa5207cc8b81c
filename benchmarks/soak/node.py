"""A node under load: a server with nothing of an application in it, and a page that counts what it holds.

``python -m benchmarks.soak.node BACKEND ...``, with the options of the example chat.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
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


MALLINFO2 = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2 answers."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]


def malloc_used() -> float:
    """MB that the process has of the C library and has not freed; 0 where it does not tell."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0.0
    ask.restype = Mallinfo2
    found = ask()
    used: int = found.uordblks + found.hblkhd
    return round(used / 2**20, 2)


def held(_: Request) -> Response:
    """What this process holds: tasks, threads, what Python and the C library have in use.

    Resident memory is the most that was ever needed at a time, more or less; what is in use goes back.
    """
    counts = {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "malloc_mb": malloc_used(),
    }
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
