"""What every discovery that nodes share does: a suite to run on one of your own.

::

    class TestMyDiscovery(DiscoveryContract):
        @asynccontextmanager
        async def cluster(self):
            yield lambda: MyDiscovery(..., refresh=0.05)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import anyio
import pytest
from attrs import define, evolve, field

from goim_core.discovery import Discovery, Node

__all__ = ["DiscoveryContract", "Member", "joined", "until"]

New: TypeAlias = Callable[[], Discovery]
"""Makes one more discovery of the same cluster."""

PATIENCE = 20.0
FULL = Node(
    "n1",
    host="n1.example.org",
    hosts=("192.0.2.1", "2001:db8::1"),
    addrs={"ws": "192.0.2.1:3102", "tcp": "[2001:db8::1]:3101"},
    region="sh",
    zone="sh001",
    weight=7,
    connections=3,
    addresses=2,
    metadata={"rack": "\N{SNOWMAN}", "empty": ""},
)


async def until(true: Callable[[], object]) -> None:
    """Return when ``true()`` is; what it waits for happens in another process, which says no word of it."""
    with anyio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110  # there is no event to wait for
            await anyio.sleep(0.005)


@define(eq=False)
class Member:
    """A node that runs with its ``discovery``. ``node`` is what it is like: set it to change that."""

    node: Node
    discovery: Discovery
    run: anyio.CancelScope = field(factory=anyio.CancelScope)
    """Cancel it, and the node dies without a word."""

    @property
    def names(self) -> list[str]:
        """The names of the nodes that it knows."""
        return [node.name for node in self.discovery.nodes()]

    def knows(self, name: str) -> Node:
        """What it knows of a node."""
        return {node.name: node for node in self.discovery.nodes()}[name]


@asynccontextmanager
async def joined(discovery: Discovery, node: Node) -> AsyncIterator[Member]:
    """``node`` in the cluster, until the block is left: then it dies, unless it has cancelled."""
    member = Member(node, discovery)

    async def run() -> None:
        with member.run:
            await discovery.run()

    try:
        await discovery.start(lambda: member.node)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            try:
                yield member
            finally:
                member.run.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await discovery.aclose()


def said(node: Node) -> Node:
    """What another node has to know of ``node``: all but which report it is."""
    return evolve(node, updated=0, addrs={door: at for door, at in node.addrs.items() if door != "grpc"})


class DiscoveryContract:
    """What every discovery that nodes share does. Subclass it as ``Test...`` and say how one is made.

    Runs on what anyio's pytest plugin runs on: the fixture ``anyio_backend``.
    """

    pytestmark = pytest.mark.anyio

    def cluster(self) -> AbstractAsyncContextManager[New]:
        """A cluster without nodes; its discoveries tell and hear at intervals that a test can wait for."""
        raise NotImplementedError

    async def test_a_node_knows_itself_from_the_start(self) -> None:
        async with self.cluster() as new, joined(new(), FULL) as first:
            assert [said(node) for node in first.discovery.nodes()] == [FULL]
            assert not first.discovery.trouble

    async def test_nodes_hear_of_each_other(self) -> None:
        async with self.cluster() as new, joined(new(), FULL) as first:
            other = Node("a0", host="a0.example.org", zone="gz001", draining=True)
            async with joined(new(), other) as second:
                assert second.names == ["a0", "n1"], "at the start, and by name"
                await until(lambda: len(first.names) == 2)
                for member in (first, second):
                    assert said(member.knows("n1")) == FULL
                    assert said(member.knows("a0")) == other

    async def test_what_a_node_tells_anew_is_heard(self) -> None:
        async with (
            self.cluster() as new,
            joined(new(), FULL) as first,
            joined(new(), Node("n2", zone="sh001")) as second,
        ):
            before = second.knows("n1").updated
            first.node = evolve(FULL, connections=50, draining=True)
            await first.discovery.update()
            await until(lambda: said(second.knows("n1")) == first.node)
            assert second.knows("n1").updated != before
            first.node = evolve(FULL, connections=51)
            await until(lambda: said(second.knows("n1")) == first.node)  # by itself

    async def test_each_report_is_another(self) -> None:
        async with self.cluster() as new, joined(new(), FULL) as first:
            seen: set[float] = set()

            def another() -> bool:
                seen.add(first.knows("n1").updated)
                return len(seen) >= 3

            await until(another)

    async def test_a_node_that_goes_is_forgotten(self) -> None:
        async with self.cluster() as new, joined(new(), FULL) as first:
            async with joined(new(), Node("n2", zone="sh001")) as second:
                await until(lambda: len(first.names) == 2)
                await second.discovery.cancel()
                await until(lambda: first.names == ["n1"])
                await second.discovery.update()
                await second.discovery.cancel()
            await self.told_three_times(first)
            assert first.names == ["n1"], "what it said afterwards brought it back"

    async def told_three_times(self, member: Member) -> None:
        """Return when ``member`` has made three reports, which all nodes could."""
        reports: Sequence[float] = []
        while len(reports) < 3:
            last = member.knows(member.node.name).updated
            await until(lambda last=last: member.knows(member.node.name).updated != last)  # type: ignore[misc]
            reports = [*reports, last]

    async def test_a_node_that_comes_back_is_known_again(self) -> None:
        async with self.cluster() as new, joined(new(), FULL) as first:
            for times in range(2):
                node = Node("n2", zone="sh001", connections=times)
                async with joined(new(), node) as second:
                    await until(lambda node=node: "n2" in first.names and said(first.knows("n2")) == node)  # type: ignore[misc]
                    await second.discovery.cancel()

    async def test_ended_before_it_began(self) -> None:
        async with self.cluster() as new:
            discovery: Any = new()
            assert list(discovery.nodes()) == []
            await discovery.cancel()
            await discovery.aclose()
