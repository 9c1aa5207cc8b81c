"""Pushes to the load client's room from within the server, so that the figures are without the push API."""

from __future__ import annotations

import struct
import time
from typing import Any

import anyio
import anyio.lowlevel

from goim_core.errors import QueueFull
from goim_core.queue import MemoryQueue
from goim_core.server import Server

__all__ = ["ROOM", "burst", "flood", "offer"]

ROOM = "bench://1"
OP = 1000
SETTLE = 0.2
"""Seconds between the last connection and the first push: as long as the C loop waits."""
TICK = 0.001
"""How often what has fallen due is pushed."""
PATIENCE = 30
"""Seconds in which what was accepted has to be sent."""
REST = b"." * 19
"""Makes a body as long as the one that the load client posts, 35 bytes."""
_NUMBER = struct.Struct("!QQ")


def body(number: int, due_ns: int) -> bytes:
    """What goimload --numbered reads: the push's number and when it was due."""
    return _NUMBER.pack(number, due_ns) + REST


async def full_room(server: Server, conns: int) -> None:
    """Return when so many are in the room, and a moment has passed."""
    while server.online_rooms([ROOM])[ROOM] < conns:  # noqa: ASYNC110  # nobody tells a pusher of joins
        await anyio.sleep(0.01)
    await anyio.sleep(SETTLE)


async def flood(server: Server, queue: MemoryQueue, seconds: float, ahead: int) -> int:
    """Push without a pause: always some wait, at most ``ahead``, so that ending takes no time. How many."""
    number = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if queue.pending < ahead:
            await server.push_room(ROOM, OP, body(number, time.time_ns()))
            number += 1
        else:
            await anyio.sleep(0.005)
    return number


async def burst(server: Server, count: int) -> int:
    """Push ``count`` at once, with no turn of the event loop between them."""
    now = time.time_ns()
    for number in range(count):
        await server.push_room(ROOM, OP, body(number, now))
    return count


async def offer(server: Server, queue: MemoryQueue, seconds: float, rate: float) -> dict[str, Any]:
    """Push ``rate`` a second, each when it is due whatever became of those before.

    What the queue has no place for is refused. Returns how many were accepted and refused, and the CPU
    seconds of the process meanwhile.
    """
    accepted = refused = 0
    began, began_ns, cpu = time.monotonic(), time.time_ns(), time.process_time()
    for number in range(int(rate * seconds)):
        due = number / rate
        while time.monotonic() - began < due:  # noqa: ASYNC110  # it waits for a time
            await anyio.sleep(TICK)
        try:
            await server.push_room(ROOM, OP, body(accepted, began_ns + int(due * 1e9)), nowait=True)
            accepted += 1
        except QueueFull:
            refused += 1
            await anyio.lowlevel.checkpoint()
    with anyio.move_on_after(PATIENCE):
        while queue.pending:  # noqa: ASYNC110  # as full_room
            await anyio.sleep(TICK)
    took = time.monotonic() - began
    return {"accepted": accepted, "refused": refused, "took": took, "cpu_s": time.process_time() - cpu}
