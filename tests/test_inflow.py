"""A socket with a task: what comes is given to it, and a deadline that moves ends nothing too early."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from goim_core.inflow import Inflow, Patience, inflow

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def pair(most: int = 100) -> AsyncIterator[tuple[socket.socket, Inflow]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        sock = listener.accept()[0]
    sock.setblocking(False)
    found = inflow(sock, most)
    with peer, sock, anyio.fail_after(10):
        try:
            yield peer, found
        finally:
            found.close()


async def test_bytes_and_their_end() -> None:
    async with pair(most=3) as (peer, found):
        peer.sendall(b"hello")
        assert [await found.receive(), await found.receive()] == [b"hel", b"lo"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.lowlevel.checkpoint)
            peer.sendall(b"!")
            assert await found.receive() == b"!"
        peer.close()
        assert [await found.receive(), await found.receive()] == [b"", b""]


async def test_what_comes_while_the_task_is_at_work_keeps_the_loop_from_nothing_and_is_there_next() -> None:
    async with pair() as (peer, found):
        peer.sendall(b"1")
        assert await found.receive() == b"1"
        peer.sendall(b"2")
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert not getattr(found, "_watched", False), "asyncio would call for it in each turn"
        assert await found.receive() == b"2"


async def test_a_broken_connection() -> None:
    async with pair() as (peer, found):
        peer.sendall(b"part")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(ConnectionResetError):
            while await found.receive():
                pass


async def test_a_wait_may_be_cancelled_and_come_again() -> None:
    async with pair() as (peer, found):
        with anyio.move_on_after(0.01) as scope:
            await found.receive()
        assert scope.cancelled_caught
        peer.sendall(b"x")
        assert await found.receive() == b"x"


async def test_a_deadline_ends_its_scope() -> None:
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        Patience(scope).last(0.01)
        await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize(("first", "then"), [(0.01, 0.05), (5, 0.05)])
async def test_a_deadline_moves(first: float, then: float) -> None:
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        patience = Patience(scope)
        patience.last(first)
        began = anyio.current_time()
        patience.last(then)
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert then - 0.002 <= anyio.current_time() - began < 4  # uvloop's timers are of milliseconds


@pytest.mark.parametrize("closed", [False, True])
async def test_a_deadline_is_taken_away(closed: bool) -> None:
    with anyio.CancelScope() as scope:
        patience = Patience(scope)
        patience.last(0.01)
        patience.last(math.inf)
        if closed:
            patience.close()
        with anyio.move_on_after(0.03):
            await anyio.sleep_forever()
        assert not scope.cancel_called
        patience.last(0.01)
        await anyio.sleep_forever()
    assert scope.cancelled_caught
