"""The server without sockets: what growing to a million connections costs, and how long it holds the loop.

Run by growth.py, each time in a process of its own; prints one line of JSON. Everything but the kernel is
the real thing: connections, wheel of deadlines, rooms, registry. Steps are called one by one and timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import anyio
from attrs import define, field

from goim_core import collector
from goim_core.channel import Channel
from goim_core.comet import Comet
from goim_core.connection import Connection
from goim_core.edge import Edge
from goim_core.options import Options
from goim_core.protocol import Op, encode
from goim_core.reactor import KernelReactor
from goim_core.server import Server
from goim_core.session import Session
from goim_core.testing.app import _AnyToken
from goim_core.wire import TCP, Packet

Figures = dict[str, float]

LEVELS = (100, 1_000, 10_000, 100_000, 1_000_000)
EVERYBODY, SMALL = "all://1", 10
ROOMS = 10
"""How many small rooms there are, of SMALL connections each, beside the one that all others are in."""
SAMPLE = 1_000
A_TICK = 1_000
"""How many connections come in a tick of the wheel: 4,000 a second."""
PUSH = Packet([encode(1000, b"x" * 100)])
HEARTBEAT = encode(Op.HEARTBEAT, b"")


class Clock:
    """Stands still unless it is moved."""

    at = 1000.0

    def now(self) -> float:
        """The time."""
        return self.at

    def time(self) -> float:
        """The same."""
        return self.at

    async def sleep(self, seconds: float) -> None:
        """For ever: nothing works beside what is measured."""
        await anyio.sleep_forever()


class Wall:
    """A socket that takes everything, and gives what it was told to."""

    __slots__ = ("data", "fd")

    def __init__(self, fd: int) -> None:
        self.fd, self.data = fd, b""

    def fileno(self) -> int:
        """Its number."""
        return self.fd

    def recv(self, _: int) -> bytes:
        """What comes from the client."""
        return self.data

    def send(self, data: bytes) -> int:
        """All of it."""
        return len(data)

    def shutdown(self, _: int) -> None:
        """Nobody is there."""

    def close(self) -> None:
        """As a socket."""
        self.fd = -1


class NoKernel:
    """A poller in which nothing is ever ready."""

    def __init__(self) -> None:
        self.fileno: Callable[[], int] = lambda: -1

    def add(self, fd: int) -> None:
        """Nothing."""

    def watch(self, fd: int, read: bool, write: bool) -> None:
        """Nothing."""

    def remove(self, fd: int) -> None:
        """Nothing."""

    def poll(self) -> list[tuple[int, int]]:
        """Nothing."""
        return []

    def close(self) -> None:
        """Nothing."""


class Idle(KernelReactor):
    """The reactor's table, without its task."""

    async def run(self) -> None:
        """Called by nobody but the benchmark."""
        await anyio.sleep_forever()


class Watch:
    """Times steps: all, the longest, and the longest in CPU time, to which other processes add little."""

    def __init__(self) -> None:
        self.count, self.total, self.longest, self.cpu = 0, 0.0, 0.0, 0.0

    def step(self, call: Callable[[], object]) -> None:
        """Call it, and see how long it takes."""
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            call()
        finally:
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            self.count += 1
            self.total += wall
            self.longest = max(self.longest, wall)
            self.cpu = max(self.cpu, cpu)

    def steps(self, work: Iterable[object]) -> Watch:
        """The same for each step of a generator."""
        following = iter(work).__next__
        try:
            while True:
                self.step(following)
        except StopIteration:
            return self

    def figures(self) -> Figures:
        """For the report, in milliseconds but for the microseconds of each step."""
        return {
            "steps": self.count,
            "total_ms": self.total * 1e3,
            "each_us": self.total * 1e6 / max(1, self.count),
            "longest_ms": self.longest * 1e3,
            "longest_cpu_ms": self.cpu * 1e3,
        }


class Collections:
    """The garbage collector's pauses."""

    def __init__(self) -> None:
        self.pauses: list[tuple[int, float, float]] = []
        self._begun = (0.0, 0.0)
        gc.callbacks.append(self._on)

    def _on(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._begun = time.perf_counter(), time.thread_time()
        else:
            wall, cpu = time.perf_counter() - self._begun[0], time.thread_time() - self._begun[1]
            self.pauses.append((info["generation"], wall, cpu))

    def take(self) -> Figures:
        """Those since the last time."""
        pauses, self.pauses = self.pauses, []
        return {
            "collections": len(pauses),
            "full": sum(generation == 2 for generation, _, _ in pauses),
            "total_ms": sum(wall for _, wall, _ in pauses) * 1e3,
            "longest_ms": max((wall for _, wall, _ in pauses), default=0.0) * 1e3,
            "longest_cpu_ms": max((cpu for _, _, cpu in pauses), default=0.0) * 1e3,
        }


@define(eq=False)
class Crowd:
    """The connections of a server."""

    server: Server
    edge: Edge
    reactor: Idle
    clock: Clock
    watch: Watch = field(factory=Watch)

    def source(self, fd: int) -> Connection:
        """The connection with this descriptor."""
        return cast("Connection", self.reactor._sources[fd])  # noqa: SLF001

    def connect(self, fd: int) -> None:
        """One more, all that it takes from the socket's acceptance to the answer to its token."""
        room = f"small://{fd // SMALL}" if fd < SMALL * ROOMS else EVERYBODY
        token = json.dumps({"mid": fd + 1, "room_id": room, "platform": "bench", "accepts": [1000]})
        sock, frame = Wall(fd), encode(Op.AUTH, token.encode())
        address = f"10.{fd >> 16 & 255}.{fd >> 8 & 255}.{fd & 255}"
        self.watch.step(partial(self._let_in, sock, frame, address))
        if not fd % A_TICK:
            self.clock.at += 0.25

    def _let_in(self, sock: Wall, frame: bytes, address: str) -> None:
        self.server.accept(cast("Any", sock), "tcp", address)
        sock.data = frame
        self.source(sock.fd).on_readable()

    def hear(self, fd: int, data: bytes) -> None:
        """The client with this descriptor sends ``data``, or goes."""
        source = self.source(fd)
        cast("Wall", source.sock).data = data
        source.on_readable()


def sample(count: int) -> range:
    """Some descriptors of those in the large room."""
    return range(SMALL * ROOMS, SMALL * ROOMS + count, max(1, count // SAMPLE))


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def each(call: Callable[[Any], object], things: list[Any]) -> Figures:
    """How long one of these takes, the median of some rounds."""
    rounds = []
    for _ in range(31):
        begun = time.perf_counter()
        for thing in things:
            call(thing)
        rounds.append((time.perf_counter() - begun) / len(things))
    return {"each_us": median(rounds) * 1e6}


def at_level(crowd: Crowd, number: int) -> dict[str, Figures]:
    """What things cost with so many in the large room."""
    comet, counters = crowd.edge.comet, crowd.edge.counters
    keys = [crowd.source(fd).channel.session.key for fd in sample(number)]
    rooms = [f"small://{n}" for n in range(ROOMS)]
    found = {
        "push to a room of 10": each(lambda room: list(comet.push_room(room, PUSH)), rooms * 10),
        "push to one": each(lambda key: list(comet.push_keys((key,), 1000, PUSH)), keys),
        "heartbeat": each(lambda fd: crowd.hear(fd, HEARTBEAT), list(sample(number))),
    }
    before = counters.deliveries
    found["push to the room of all"] = Watch().steps(comet.push_room(EVERYBODY, PUSH)).figures()
    found["push to all"] = Watch().steps(comet.push_all(1000, PUSH)).figures()
    assert counters.deliveries - before == 2 * number + SMALL * ROOMS
    crowd.watch = Watch()
    for fd in sample(number):
        crowd.watch.step(partial(crowd.hear, fd, b""))
    found["disconnect"] = crowd.watch.figures()
    for fd in sample(number):
        crowd.connect(fd)
    return found


def many_rooms(number: int) -> dict[str, Figures]:
    """As many rooms as connections."""
    comet, adding = Comet(), Watch()
    sink = cast("Any", Wall(0))
    for n in range(number):
        channel = Channel(sink, TCP, sink, session=Session(mid=n, key=f"key-{n}", room_id=f"live://{n}"))
        adding.step(partial(comet.put, channel))
    return {
        "a room more": adding.figures(),
        "census": Watch().steps(comet.census()).figures(),
        "the 10 largest rooms": Watch().steps(comet.ranking("live", 10)).figures(),
    }


def time_out(crowd: Crowd) -> Figures:
    """Nobody sends a heartbeat any more: all are closed."""
    crowd.clock.at += 3600.0
    watch, left = Watch(), True

    def expire() -> None:
        nonlocal left
        left = crowd.edge.deadlines.expire()

    while left:
        watch.step(expire)
    return watch.figures()


async def measure(most: int) -> None:
    """Grow level by level, and print what was found."""
    clock, reactor = Clock(), Idle(NoKernel())
    options = Options(max_connections=2**31 - 1)
    server = Server(auth=_AnyToken(), options=options, clock=clock, reactor=lambda: reactor)
    found: list[dict[str, Any]] = []
    pauses = Collections()
    async with server:
        crowd = Crowd(
            server,
            server._pipeline.edge,  # noqa: SLF001
            reactor,
            clock,
        )
        before, connected = resident(), 0
        for level in (level for level in LEVELS if level <= most):
            crowd.watch = Watch()
            pauses.take()
            for fd in range(connected, level + SMALL * ROOMS):
                crowd.connect(fd)
            connected = level + SMALL * ROOMS
            collected, connecting = pauses.take(), crowd.watch.figures()
            memory = {"bytes_each": (resident() - before) / connected}
            found.append(
                {"connections": level, "memory": memory, "connect": connecting, "collector": collected}
            )
            found[-1] |= at_level(crowd, level)
            found[-1]["collector, pushes"] = pauses.take()
        found[-1]["all time out"] = time_out(crowd)
        found[-1]["collector, end"] = pauses.take()
        found[-1] |= many_rooms(most)
        json.dump(found, sys.stdout)
        sys.stdout.flush()
        os._exit(0)  # a server whose clock stands still would wait for its clients for ever


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=LEVELS[-1])
    parser.add_argument("--collector", choices=("default", "spared"), default="default")
    arguments = parser.parse_args()
    if arguments.collector == "spared":
        collector.spare()
    anyio.run(measure, arguments.connections)


if __name__ == "__main__":
    main()
