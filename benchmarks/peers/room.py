"""What every server of this comparison does, whatever library it is written with.

A client says who it is and comes into the one room; a push goes to all in it. The messages are goim
frames, so that one load client serves them all; python-socketio has a protocol of its own.

Members are kept in a dictionary, in the order they came: in that order the kernel gets through their
sockets' memory faster than in the order of a set.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import struct
import time
from collections.abc import Sequence
from typing import Protocol

ROOM = "bench://1"
HOST = "127.0.0.1"
BACKLOG = 1024
SETTLE = 0.2
"""Seconds between the last connection and the first push, as in server.py."""
_HEADER = struct.Struct("!IHHII")
_OP_AUTH_REPLY, _OP_PUSH = 8, 1000


class Peer(Protocol):
    """A server under test."""

    async def listen(self) -> int:
        """Start to serve; returns the port."""

    def online(self) -> int:
        """How many are in the room."""

    async def push(self) -> None:
        """Send one message to all in the room."""


def frame(op: int, body: bytes) -> bytes:
    """A goim frame: length of the whole, of the header, version, operation, number."""
    return _HEADER.pack(_HEADER.size + len(body), _HEADER.size, 1, op, 1) + body


def may_enter(message: bytes) -> bool:
    """Whether the first message of a client is a token for the room."""
    token: dict[str, object] = json.loads(message[_HEADER.size :])
    return token["room_id"] == ROOM


AUTH_REPLY = frame(_OP_AUTH_REPLY, b"")


def stamp() -> dict[str, int]:
    """What is pushed: the same as server.py pushes."""
    return {"test": 1, "ts": time.time_ns()}


def push_message() -> bytes:
    """A push as a frame."""
    return frame(_OP_PUSH, json.dumps(stamp()).encode())


async def _flood(peer: Peer, conns: int, seconds: float, burst: int) -> dict[str, float]:
    """Push without a pause once ``conns`` are in the room, ``burst`` pushes at a time.

    Returns how many deliveries that is, and their cost.
    """
    while peer.online() < conns:  # noqa: ASYNC110  # nobody tells a pusher of joins
        await asyncio.sleep(0.01)
    await asyncio.sleep(SETTLE)
    before = resource.getrusage(resource.RUSAGE_SELF)
    end = time.monotonic() + seconds
    deliveries = 0
    while time.monotonic() < end:
        deliveries += burst * peer.online()
        for _ in range(burst):
            await peer.push()
        await asyncio.sleep(0)  # the loop's turn, so that what waits is written before there is more
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {"deliveries": deliveries, "user_s": user, "system_s": system}


async def _serve(peer: Peer, conns: int | None, seconds: float, burst: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(json.dumps({"pid": os.getpid(), "port": await peer.listen()}), flush=True)
    result = await _flood(peer, conns, seconds, burst) if conns else {}
    await stop.wait()
    print(json.dumps(result), flush=True)
    os._exit(0)  # clients that are gone already need no goodbye, and it is not what is measured


def run(peer: Peer, words: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM: the command line of every server here; ``words``: other than this process's."""
    parser = argparse.ArgumentParser(description="Run the server that is measured.")
    parser.add_argument("--backend", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--flood", type=int, help="push without a pause once so many are in the room")
    parser.add_argument("--seconds", type=float, default=5, help="for how long")
    parser.add_argument("--burst", type=int, default=1, help="so many pushes at a time")
    arguments = parser.parse_args(words)
    serving = _serve(peer, arguments.flood, arguments.seconds, arguments.burst)
    if arguments.backend == "uvloop":
        import uvloop  # noqa: PLC0415  # only where it was asked for

        uvloop.run(serving)
    else:
        asyncio.run(serving)
