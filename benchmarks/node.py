"""A node of the cluster that is measured: a server with nothing of an application in it.

``python -m benchmarks.node BACKEND ...``, with the options of the example chat.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys

import anyio

from examples.chat.app import command_line, settings_of
from goim_core import OpenAuth, Server
from goim_core.settings import backend_of


async def serve(call: argparse.Namespace) -> None:
    """Run until SIGTERM."""
    call.storage = None
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with Server(auth=OpenAuth(), **settings_of(call)):
            print("ready", flush=True)
            async for _ in signals:
                break


if __name__ == "__main__":
    backend, options = backend_of(sys.argv.pop(1))
    logging.basicConfig(level="WARNING")
    anyio.run(serve, command_line(), backend=backend, backend_options=options)
