"""What every registry does: suites to run on one of your own.

A registry in the process::

    class TestMyRegistry(RegistryContract):
        @asynccontextmanager
        async def opened(self):
            registry = MyRegistry(...)
            yield registry
            await registry.aclose()

A registry on a server that several nodes share: :class:`SharedRegistryContract`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from goim_core.flow import settled
from goim_core.registry import Online, Registry
from goim_core.session import Session

__all__ = ["RegistryContract", "RegistryServer", "SharedRegistryContract", "at_work"]

KEYS = ("a", "b", "c", "\N{SNOWMAN}")
MIDS = (1, 2, -(2**63))


def _session(key: str, mid: int = 1, server: str = "node-1", platform: str = "") -> Session:
    return Session(mid=mid, key=key, server=server, platform=platform)


class RegistryContract:
    """What every registry does. Subclass it as ``Test...`` and say how a registry is opened.

    Runs on what anyio's pytest plugin runs on: the fixture ``anyio_backend``.
    """

    pytestmark = pytest.mark.anyio

    def opened(self) -> AbstractAsyncContextManager[Registry]:
        """An empty registry, closed at the end."""
        raise NotImplementedError

    async def keys(self, registry: Registry, *keys: str) -> dict[str, list[str]]:
        """What the registry finds, to compare: no key twice, and their order is nobody's promise."""
        routes = await settled(registry.keys(keys))
        return {server: sorted(found) for server, found in routes.items()}

    async def mids(self, registry: Registry, *mids: int) -> dict[int, list[tuple[str, str]]]:
        """The key and the server of each connection that the registry finds, by user, in its order."""
        found: dict[int, list[tuple[str, str]]] = {}
        for session in await settled(registry.mids(mids)):
            found.setdefault(session.mid, []).append((session.key, session.server))
        return found

    async def test_what_was_added_is_found(self) -> None:
        async with self.opened() as registry:
            await settled(registry.add(_session("a", mid=7)))
            assert await self.keys(registry, "a") == {"node-1": ["a"]}
            assert await self.mids(registry, 7) == {7: [("a", "node-1")]}

    async def test_a_connection_is_found_with_what_was_said_of_it(self) -> None:
        async with self.opened() as registry:
            await settled(registry.add(_session("\N{SNOWMAN}", -(2**63), "node-2", "web")))
            (found,) = await settled(registry.mids([-(2**63)]))
            assert isinstance(found, Session)
            assert (found.mid, found.key, found.platform, found.server) == (
                -(2**63),
                "\N{SNOWMAN}",
                "web",
                "node-2",
            )

    async def test_what_is_unknown_is_left_out(self) -> None:
        async with self.opened() as registry:
            await settled(registry.add(_session("a")))
            assert await self.keys(registry, "x", "a", "y") == {"node-1": ["a"]}
            assert await self.mids(registry, 5, 1, 6) == {1: [("a", "node-1")]}
            assert await self.keys(registry) == {}
            assert await self.mids(registry) == {}

    async def test_asking_twice_for_one_gives_it_once(self) -> None:
        async with self.opened() as registry:
            await settled(registry.add(_session("a")))
            assert await self.keys(registry, "a", "a") == {"node-1": ["a"]}
            assert await self.mids(registry, 1, 1) == {1: [("a", "node-1")]}

    async def test_a_users_connections_come_oldest_first(self) -> None:
        async with self.opened() as registry:
            for key in ("c", "a", "b"):
                await settled(registry.add(_session(key)))
            assert [key for key, _ in (await self.mids(registry, 1))[1]] == ["c", "a", "b"]

    async def test_a_user_may_have_connections_on_several_servers(self) -> None:
        async with self.opened() as registry:
            sessions = [_session("a"), _session("b", server="node-2"), _session("c"), _session("d", mid=2)]
            for each in sessions:
                await settled(registry.add(each))
            routes = [("a", "node-1"), ("b", "node-2"), ("c", "node-1")]
            assert await self.mids(registry, 1) == {1: routes}
            assert await self.mids(registry, 1, 2) == {1: routes, 2: [("d", "node-1")]}
            for index in range(3):
                assert await settled(registry.remove(sessions[index]))
                rest = routes[index + 1 :]
                assert await self.mids(registry, 1) == ({1: rest} if rest else {})

    async def test_what_was_removed_is_gone_and_gone_once(self) -> None:
        async with self.opened() as registry:
            added = _session("a")
            await settled(registry.add(added))
            assert await settled(registry.remove(added))
            assert not await settled(registry.remove(added))
            assert await self.keys(registry, "a") == {}
            assert await self.mids(registry, 1) == {}

    async def test_a_newer_connection_takes_the_key_over(self) -> None:
        async with self.opened() as registry:
            old, new = _session("a", mid=1), _session("a", mid=2, server="node-2")
            await settled(registry.add(old))
            await settled(registry.add(new))
            assert await self.keys(registry, "a") == {"node-2": ["a"]}
            assert await self.mids(registry, 1) == {}
            assert await self.mids(registry, 2) == {2: [("a", "node-2")]}

    @pytest.mark.parametrize("server", ["node-1", "node-2"])
    async def test_a_connection_removes_only_its_own_route(self, server: str) -> None:
        async with self.opened() as registry:
            old, new = _session("a"), _session("a", server=server)
            await settled(registry.add(old))
            await settled(registry.add(new))
            assert not await settled(registry.remove(old))
            assert await self.keys(registry, "a") == {server: ["a"]}
            assert await self.mids(registry, 1) == {1: [("a", server)]}
            assert await settled(registry.remove(new))

    async def test_adding_again_changes_nothing(self) -> None:
        async with self.opened() as registry:
            added = _session("a")
            await settled(registry.add(added))
            await settled(registry.add(added))
            assert await self.mids(registry, 1) == {1: [("a", "node-1")]}
            assert await settled(registry.remove(added))
            assert await self.mids(registry, 1) == {}

    @pytest.mark.parametrize("seed", range(20))
    async def test_against_a_model(self, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # nothing is secret here
        model: dict[str, Session] = {}
        made: list[Session] = []
        async with self.opened() as registry:
            for _ in range(chance.randrange(5, 40)):
                what = chance.choice(["add", "add", "remove", "renew"])
                if what == "add" or not made:
                    server = chance.choice(["node-1", "node-2"])
                    made.append(_session(chance.choice(KEYS), chance.choice(MIDS), server))
                    await settled(registry.add(made[-1]))
                    # The last of a dict is the newest: one that is taken over is no more in its place.
                    model.pop(made[-1].key, None)
                    model[made[-1].key] = made[-1]
                    continue
                chosen = chance.choice(made)
                held = model.get(chosen.key) is chosen
                if what == "remove":
                    assert bool(await settled(registry.remove(chosen))) == held
                    if held:
                        del model[chosen.key]
                elif held:
                    await settled(registry.renew(chosen))
            await self.compare(registry, model)

    async def compare(self, registry: Registry, model: dict[str, Session]) -> None:
        """What the registry finds is what it was told."""
        routes: dict[str, list[str]] = {}
        for key in sorted(model):
            routes.setdefault(model[key].server, []).append(key)
        users: dict[int, list[tuple[str, str]]] = {}
        for each in model.values():
            users.setdefault(each.mid, []).append((each.key, each.server))
        assert await self.keys(registry, *KEYS) == routes
        assert await self.mids(registry, *MIDS) == users
        for mid in MIDS:
            assert await self.mids(registry, mid) == ({mid: users[mid]} if mid in users else {})


# A registry on a server.


class RegistryServer(ABC):
    """An empty real server, as a :class:`SharedRegistryContract` wants it."""

    alive: float
    """Within so many seconds a node that died is forgotten; the tests wait for it."""

    @abstractmethod
    def new_registry(self) -> Registry:
        """A new, unstarted registry on this server, as another process would make it."""

    @abstractmethod
    async def lose_everything(self) -> None:
        """The server has nothing any more, as after a restart without a disk."""


R = TypeVar("R", bound=Registry)


@asynccontextmanager
async def at_work(registry: R, node: str = "node-1") -> AsyncIterator[R]:
    """``registry`` as a server of that name has it: started, run beside the block, and closed."""
    try:
        async with running(registry, node):
            yield registry
    finally:
        with anyio.CancelScope(shield=True):
            await registry.aclose()


@asynccontextmanager
async def running(registry: R, node: str = "node-1") -> AsyncIterator[R]:
    """``registry`` started, and run beside the block; its end is that of a process that is killed."""
    await registry.start(node)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(registry.run)
        yield registry
        tasks.cancel_scope.cancel()


class SharedRegistryContract(RegistryContract):
    """What a registry does that several nodes share. Subclass it as ``Test...``::

        class TestMyRegistry(SharedRegistryContract):
            @asynccontextmanager
            async def server(self):
                yield MyServer(...)

    where ``MyServer`` is a :class:`RegistryServer`. The plain suite runs on it too. Where the client
    library knows only asyncio, override the fixture ``anyio_backend`` beside the class.
    """

    def server(self) -> AbstractAsyncContextManager[RegistryServer]:
        """An empty server."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Registry]:
        async with self.server() as server, at_work(server.new_registry()) as registry:
            yield registry

    @asynccontextmanager
    async def two_nodes(self) -> AsyncIterator[tuple[Registry, Registry]]:
        """Two nodes on one server, called ``node-1`` and ``node-2``."""
        async with (
            self.server() as server,
            at_work(server.new_registry(), "node-1") as one,
            at_work(server.new_registry(), "node-2") as two,
        ):
            yield one, two

    async def until(self, is_so: Callable[[], Awaitable[bool]], seconds: float) -> None:
        """Ask until ``is_so``, for ``seconds`` and what a busy machine needs beyond."""
        with anyio.fail_after(seconds + 10):
            while not await is_so():
                await anyio.lowlevel.checkpoint()

    async def test_each_node_finds_the_connections_of_all(self) -> None:
        async with self.two_nodes() as (one, two):
            await settled(one.add(_session("a", 1, "node-1")))
            await settled(two.add(_session("b", 1, "node-2", "web")))
            await settled(one.add(_session("c", 1, "node-1")))
            for registry in (one, two):
                assert await self.keys(registry, "a", "b", "c") == {"node-1": ["a", "c"], "node-2": ["b"]}
                assert await self.mids(registry, 1) == {
                    1: [("a", "node-1"), ("b", "node-2"), ("c", "node-1")]
                }
                platforms = [session.platform for session in await settled(registry.mids([1]))]
                assert platforms == ["", "web", ""]

    @pytest.mark.parametrize("mid", [1, 2])
    async def test_of_two_nodes_with_one_key_the_newer_has_it(self, mid: int) -> None:
        async with self.two_nodes() as (one, two):
            old, new = _session("a", 1, "node-1"), _session("a", mid, "node-2")
            await settled(one.add(old))
            await settled(two.add(new))
            assert not await settled(one.remove(old))
            for registry in (one, two):
                assert await self.keys(registry, "a") == {"node-2": ["a"]}
                assert await self.mids(registry, 1, 2) == {mid: [("a", "node-2")]}
            assert await settled(two.remove(new))
            assert await self.keys(one, "a") == {}

    async def test_a_key_may_go_back_and_forth(self) -> None:
        async with self.two_nodes() as nodes:
            sessions = [_session("a", 1, f"node-{1 + number % 2}") for number in range(6)]
            for number, each in enumerate(sessions):
                await settled(nodes[number % 2].add(each))
            for number, each in enumerate(sessions[:-1]):
                assert not await settled(nodes[number % 2].remove(each))
            assert await self.mids(nodes[0], 1) == {1: [("a", "node-2")]}

    async def test_a_node_that_stops_leaves_nothing_behind(self) -> None:
        async with self.server() as server, at_work(server.new_registry(), "node-1") as one:
            async with at_work(server.new_registry(), "node-2") as two:
                await settled(two.add(_session("a", 1, "node-2")))
                assert await self.keys(one, "a") == {"node-2": ["a"]}
            assert await self.keys(one, "a") == {}
            assert await self.mids(one, 1) == {}

    async def test_a_node_that_dies_is_forgotten_with_its_users_and_its_counts(self) -> None:
        async with self.server() as server, at_work(server.new_registry(), "node-1") as one:
            dead = server.new_registry()
            async with running(dead, "node-2"):
                for registry, node in ((dead, "node-2"), (one, "node-1")):
                    await settled(registry.add(_session(f"of {node}", 1, node)))
                await settled(dead.report(Online({"live://1": 1}, 1, 1)))
                assert (await settled(one.report(Online()))).connections == 1

            async def forgotten() -> bool:
                return await self.mids(one, 1) == {1: [("of node-1", "node-1")]}

            await self.until(forgotten, server.alive)
            assert await self.keys(one, "of node-1", "of node-2") == {"node-1": ["of node-1"]}
            assert await settled(one.report(Online())) == Online()
            await dead.aclose()

    async def test_a_node_that_starts_again_is_not_taken_for_the_one_that_died(self) -> None:
        async with self.server() as server, at_work(server.new_registry(), "node-1") as one:
            dead = server.new_registry()
            async with running(dead, "node-2"):
                await settled(dead.add(_session("a", 1, "node-2")))
            async with at_work(server.new_registry(), "node-2") as two:
                await settled(two.add(_session("b", 1, "node-2")))
                assert await self.mids(one, 1) == {1: [("b", "node-2")]}
                assert await self.keys(one, "a", "b") == {"node-2": ["b"]}
            await dead.aclose()

    async def test_each_node_is_told_the_sum_of_the_others(self) -> None:
        async with self.two_nodes() as (one, two):
            assert await settled(one.report(Online({"live://1": 2, "live://2": 1}, 3, 2))) == Online()
            elsewhere = await settled(two.report(Online({"live://1": 5}, 6, 6)))
            assert elsewhere == Online({"live://1": 2, "live://2": 1}, 3, 2)
            assert await settled(one.report(Online({"live://1": 2}, 2, 2))) == Online({"live://1": 5}, 6, 6)
            assert await settled(two.report(Online())) == Online({"live://1": 2}, 2, 2)

    async def test_a_server_that_lost_everything_is_told_again(self) -> None:
        async with self.server() as server, at_work(server.new_registry()) as registry:
            sessions = [_session(key, mid) for key, mid in (("c", 1), ("a", 1), ("b", 2))]
            for each in sessions:
                await settled(registry.add(each))
            await settled(registry.remove(sessions[2]))
            await server.lose_everything()

            async def back() -> bool:
                return await self.mids(registry, 1, 2) == {1: [("c", "node-1"), ("a", "node-1")]}

            await self.until(back, server.alive)
            assert await self.keys(registry, "a", "b", "c") == {"node-1": ["a", "c"]}
            assert await settled(registry.remove(sessions[0]))
            assert not await settled(registry.remove(sessions[2]))

    async def test_a_registry_that_never_started_can_be_closed(self) -> None:
        async with self.server() as server:
            await server.new_registry().aclose()
