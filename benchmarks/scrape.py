"""What it costs to ask a server for its figures, and to switch a trace, with many connections.

``python -m benchmarks.scrape [CONNECTIONS]`` (default: 100,000, in 9,000 rooms). The connections are the
structures alone, without sockets. Milliseconds of CPU, medians; others run between the steps of the trace.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, cast

import anyio

from goim_core import OpenAuth, Server, Session
from goim_core.channel import Channel
from goim_core.metrics import HookTimes
from goim_core.scrape import scrape

HOOKS = (
    "connect", "connected", "receive", "operation", "heartbeat", "cursor", "after", "written", "withdraw",
    "saw", "left", "disconnected",
)  # fmt: skip


def milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(21):
        begun = time.thread_time()
        call()
        times.append(time.thread_time() - begun)
    return median(times) * 1000


def longest_steps(server: Server) -> Iterator[float]:
    for _ in range(21):
        steps, longest = server.switch_trace(5, on=True), 0.0
        begun = time.thread_time()
        for _ in steps:
            longest = max(longest, time.thread_time() - begun)
            begun = time.thread_time()
        yield longest * 1000


async def main(connections: int) -> None:
    logging.getLogger("goim_core.auth").setLevel(logging.ERROR)
    async with Server(auth=OpenAuth()) as server:
        server.instruments.hooks.update({name: HookTimes() for name in HOOKS})
        comet = server._comet  # noqa: SLF001
        for count in (0, connections):
            for number in range(count):
                session = Session(mid=number + 1, key=str(number), room_id=f"live://{number % 9000}")
                comet.put(
                    Channel(cast("Any", None), 0, cast("Any", None), f"192.0.2.{number % 200}", session)
                )
            scraping, size = milliseconds(lambda: scrape(server)), len(scrape(server))
            switching, step = milliseconds(lambda: server.trace(5)), median(longest_steps(server))
            print(f"{len(comet.buckets)} connections, {len(comet.rooms)} rooms")
            print(f"  /metrics             {scraping:8.2f} ms, {size} bytes")
            print(f"  the largest rooms    {milliseconds(lambda: server.top(20)):8.2f} ms")
            print(f"  switching a trace    {switching:8.2f} ms, the longest step {step:.2f} ms")
        for channel in [channel for bucket in comet.buckets.all for channel in bucket.channels.values()]:
            comet.remove(channel)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
