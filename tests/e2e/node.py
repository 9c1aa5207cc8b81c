"""A node of a cluster as the tests want it: short times, everybody let in, and its figures at ``/stats``.

``python -m tests.e2e.node BACKEND ...``, with the options of the example chat.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from typing import Any

import anyio
import attrs

from examples.chat.app import command_line
from goim_core import OpenAuth, Options, Server
from goim_core.adapters.kafka import KafkaQueue
from goim_core.adapters.nats import NATSQueue
from goim_core.adapters.redis import RedisDiscovery, RedisQueue, RedisRegistry
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.http_door import JSON, Request, Response
from goim_core.settings import backend_of

ALIVE = 2.0
"""Seconds without a sign of life after which a node is forgotten."""
CENSUS = 0.5
TIMEOUT = 1.0
"""Seconds for each question to a server that nodes share."""


def queue_of(url: str) -> Any:
    kind, _, address = url.partition("://")
    if kind == "kafka":
        return KafkaQueue(address, timeout=TIMEOUT)
    return {"nats": NATSQueue, "redis": RedisQueue}[kind](url, timeout=TIMEOUT)


class Node:
    """The server of this process."""

    def __init__(self, call: argparse.Namespace) -> None:
        self.server = Server(
            auth=OpenAuth(),
            name=call.name,
            host=call.host,
            tcp=(call.host, call.tcp),
            http=(call.host, call.http),
            routes={"/stats": {"GET": self.stats}},
            queue=queue_of(call.queue),
            registry=RedisRegistry(call.registry, alive=ALIVE, timeout=TIMEOUT),
            discovery=RedisDiscovery(call.discovery, alive=ALIVE, refresh=CENSUS, timeout=TIMEOUT),
            storage=SQLiteStorage(call.storage.removeprefix("sqlite:")),
            options=Options(census=CENSUS),
        )

    def stats(self, request: Request) -> Response:
        return Response(200, json.dumps(attrs.asdict(self.server.stats())).encode(), JSON)


async def main(call: argparse.Namespace) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with Node(call).server:
            print("ready", flush=True)  # noqa: T201
            async for _ in signals:
                break


if __name__ == "__main__":
    backend, options = backend_of(sys.argv.pop(1))
    logging.basicConfig(level="INFO")
    anyio.run(main, command_line(), backend=backend, backend_options=options)
