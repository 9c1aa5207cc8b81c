"""The parts of the benchmarks that figures hang on: goim's rule of merging, numbered bodies, the pictures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from benchmarks.overload import Point, table
from benchmarks.picture import Bar, Curve, Group, Panel, bars, curves
from benchmarks.pushers import body
from benchmarks.rules import GOIM_BATCH, GOIM_BUFFER, GOIM_SECONDS, GoimJob
from goim_core.channel import Channel
from goim_core.comet import Comet
from goim_core.options import Options
from goim_core.queue import MemoryQueue, PushMsg, PushType
from goim_core.session import Session
from goim_core.testing import ManualClock
from tests.links import Link

ROOM = "bench://1"


class Bench:
    """goim's rule over one channel in the room."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.comet = Comet()
        self.link = Link(Session(mid=1, key="k", room_id=ROOM))
        channel: Channel = self.link.channel
        self.comet.put(channel)
        self.queue = MemoryQueue()
        self.job = GoimJob(self.queue, self.comet, self.clock, Options(batch=GOIM_BATCH, linger=GOIM_SECONDS))

    async def push(self, count: int) -> None:
        for number in range(count):
            await self.queue.publish(PushMsg(PushType.ROOM, 1000, b"%d" % number, room=ROOM))
        await anyio.wait_all_tasks_blocked()

    def packets(self) -> list[int]:
        """How many messages came with each send."""
        return [bytes(data).count(b"\0\0\x03\xe8") for data in self.link.sends]


@asynccontextmanager
async def goims() -> AsyncIterator[Bench]:
    bench = Bench()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.job.run)
        yield bench
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_goims_rule_waits_for_20_or_a_second() -> None:
    async with goims() as bench:
        await bench.push(19)
        assert bench.packets() == []
        await bench.push(1)
        assert bench.packets() == [20]
        await bench.push(3)
        bench.clock.advance(GOIM_SECONDS - 0.1)
        await anyio.wait_all_tasks_blocked()
        assert bench.packets() == [20]
        bench.clock.advance(0.2)
        await anyio.wait_all_tasks_blocked()
        assert bench.packets() == [20, 3]
        assert bench.queue.pending == 0


@pytest.mark.anyio
async def test_goims_buffer_refuses_and_what_is_refused_is_counted() -> None:
    async with goims() as bench:
        await bench.push(GOIM_BUFFER + 5)  # all before the first can be sent
        assert sum(bench.packets()) == GOIM_BUFFER
        assert bench.comet.counters.drops == {"room full": 5}
        assert bench.queue.pending == 0


def test_a_body_is_as_long_as_the_one_that_is_posted() -> None:
    posted = json.dumps({"test": 1, "ts": 1234567890123456789}, separators=(",", ":"))
    assert len(body(1, 2)) == len(posted)
    assert body(1, 2)[:16] == bytes([0] * 7 + [1] + [0] * 7 + [2])


def point(**changed: float) -> Point:
    fields = dict.fromkeys(Point.__annotations__, 0) | {"rule": "goim_core"} | changed
    return Point(**fields)


def test_what_is_promised() -> None:
    assert point(p99_ms=999).kept
    assert not point(p99_ms=1001).kept
    for lost in ("refused", "dropped", "uncounted", "disorder"):
        assert not point(**{lost: 1}).kept
    assert len(table([point(), point()]).splitlines()) == 3


def test_pictures_are_svg() -> None:
    some = [Group("a < b", "us", [Bar("ours", 1.0), Bar("theirs", 20_000.0)], target=2.0)]
    panel = Panel("p", "x", "y", [Curve("one", [(0.25, 3.0), (4, 900.0)])], (1000.0, "1 s"))
    for text in (bars("title", "below", some), curves("title", "below", [panel])):
        texts = [element.text for element in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
        assert "title" in texts
    assert "a < b" in [
        e.text for e in ET.fromstring(bars("t", "", some)).iter("{http://www.w3.org/2000/svg}text")
    ]
