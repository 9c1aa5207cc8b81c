"""MOVE (op 42): a client that is asked to go to another node goes, at its time and without a backoff."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from goim_core import Disconnect, Op
from goim_core.client import Backoff, Client, ClientState, connect
from goim_core.client.connection import _read_seconds
from goim_core.errors import CloseCode
from goim_core.testing.clock import ManualClock
from goim_core.wire import disconnect_frame
from tests.scripted import Peer, Scripted, States
from tests.test_client_nodes import Nodes, two_nodes

pytestmark = pytest.mark.anyio

NEVER = Backoff(first=1e6, base=1e6, longest=1e6, jitter=0)
STOPPING = Disconnect("the server is stopping", CloseCode.GOING_AWAY)


@asynccontextmanager
async def at_the_first(
    clock: ManualClock, **options: Any
) -> AsyncIterator[tuple[Client, Peer, Scripted, Nodes]]:
    """A client at the first of two nodes, which a backoff would keep away for ever; the second node."""
    async with two_nodes() as (nodes, first, second):
        settings = {
            "token": b"t",
            "backoff": NEVER,
            "clock": clock,
            "random": lambda: 1.0,
            "close_timeout": 0.05,
            "refresh_nodes": math.inf,
        }
        async with connect(nodes.url, **{**settings, **options}) as client:
            yield client, await first.peer(), second, nodes
            clock.release()


async def test_it_goes_at_its_time_to_another_node_though_the_list_begins_with_this_one() -> None:
    clock, states = ManualClock(), States()
    async with at_the_first(clock, on_state=states) as (client, peer, second, nodes):
        await peer.send(Op.MOVE, b'{"seconds":2.5}')
        await peer.send(1000, b"one", 1)
        assert (await client.receive()).seq == 1
        clock.advance(2.4)
        await anyio.wait_all_tasks_blocked()
        assert client.state is ClientState.OPEN
        clock.advance(0.2)
        moved = await second.peer()
        await peer.ended()
        await moved.send(1000, b"one", 1)  # not acknowledged on the way, it comes again
        await moved.send(1000, b"two", 2)
        assert (await client.receive()).body == b"two"
    waited = await states.until(ClientState.WAITING)
    assert waited.why is not None
    assert (waited.why.code, waited.delay) == (CloseCode.GOING_AWAY, 0)
    assert len(nodes.asked) == 2


@pytest.mark.parametrize("told", [disconnect_frame(STOPPING), b""])
async def test_a_server_that_closes_before_its_time_is_left_without_a_backoff_too(told: bytes) -> None:
    async with at_the_first(ManualClock()) as (client, peer, second, _):
        await peer.send(Op.MOVE, b'{"seconds":60}')
        await peer.send(1000, b"x")
        await client.receive()
        await peer.stream.send(told)
        await peer.close()
        await second.peer()


async def test_what_is_under_way_comes_to_its_end_first() -> None:
    async with at_the_first(ManualClock()) as (client, peer, second, _):
        replies: list[bytes] = []

        async def ask(body: bytes) -> None:
            replies.append((await client.request(1000, body)).body)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, b"a")
            tasks.start_soon(ask, b"b")
            asked = [await peer.request(1000), await peer.request(1000)]
            await peer.send(Op.MOVE, b'{"seconds":0}')
            for frame in asked:
                await anyio.wait_all_tasks_blocked()
                assert client.state is ClientState.OPEN
                await peer.send(1000, b"done", frame.seq)
        assert replies == [b"done", b"done"]
        await second.peer()


async def test_who_is_sent_on_again_and_again_waits_in_between() -> None:
    clock, states = ManualClock(), States()
    async with at_the_first(clock, on_state=states) as (_, peer, second, __):
        await peer.send(Op.MOVE)
        await (await second.peer()).send(Op.MOVE)
        waits = [(await states.until(ClientState.WAITING, times)).delay for times in (1, 2)]
    assert waits == [0, 1e6]


async def test_where_there_is_one_address_it_is_tried_again_at_once() -> None:
    """A name or a proxy may stand for many nodes."""
    async with two_nodes() as (_, first, __):
        async with connect(first.url, token=b"t", backoff=NEVER, close_timeout=0.05) as client:
            peer = await first.peer()
            await peer.send(Op.MOVE, b'{"seconds":0}')
            await peer.ended()
            again = await first.peer()
            await again.send(1000, b"here")
            assert (await client.receive()).body == b"here"


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (b'{"seconds":1.5}', 1.5),
        (b'{"seconds":-1}', 0.0),
        (b'{"seconds":"2"}', 2.0),
        *((body, 0.0) for body in (b"", b"[]", b"{}", b'{"seconds":null}', b"\xff", b'{"seconds":NaN}')),
        (b'{"seconds":1' + b"0" * 400 + b"}", 0.0),
    ],
)
def test_a_body_that_says_nothing_asks_to_go_at_once(body: bytes, seconds: float) -> None:
    assert _read_seconds(body) == seconds
