"""The registry: a suite that every form of it keeps, run on the form in memory."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goim_core.hooks import Session
from goim_core.registry import MemoryRegistry, Registry, Routes

pytestmark = pytest.mark.anyio


async def settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def session(key: str, mid: int = 1, server: str = "node-1") -> Session:
    return Session(mid=mid, key=key, server=server)


def unordered(routes: Routes) -> dict[str, list[str]]:
    """Routes to compare: no key twice, and their order is nobody's promise."""
    return {server: sorted(keys) for server, keys in routes.items()}


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "renew"]),
        st.integers(0, 20),
        st.sampled_from(["a", "b", "c", "\N{SNOWMAN}"]),
        st.sampled_from([1, 2, -(2**63)]),
        st.sampled_from(["node-1", "node-2"]),
    ),
    max_size=30,
)


class RegistryContract:
    """What every registry does. Subclass it as ``Test...`` and say how a registry is opened."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Registry]:
        """An empty registry, closed at the end."""
        raise NotImplementedError
        yield

    async def keys(self, registry: Registry, *keys: str) -> dict[str, list[str]]:
        return unordered(await settled(registry.keys(keys)))

    async def mids(self, registry: Registry, *mids: int) -> dict[str, list[str]]:
        return unordered(await settled(registry.mids(mids)))

    async def test_what_was_added_is_found(self) -> None:
        async with self.opened() as registry:
            await settled(registry.add(session("a", mid=7)))
            assert await self.keys(registry, "a") == {"node-1": ["a"]}
            assert await self.mids(registry, 7) == {"node-1": ["a"]}

    async def test_what_is_unknown_is_left_out(self) -> None:
        async with self.opened() as registry:
            await settled(registry.add(session("a")))
            assert await self.keys(registry, "x", "a", "y") == {"node-1": ["a"]}
            assert await self.mids(registry, 5, 1, 6) == {"node-1": ["a"]}
            assert await self.keys(registry) == {}
            assert await self.mids(registry) == {}

    async def test_asking_twice_for_one_gives_it_once(self) -> None:
        async with self.opened() as registry:
            await settled(registry.add(session("a")))
            assert await self.keys(registry, "a", "a") == {"node-1": ["a"]}
            assert await self.mids(registry, 1, 1) == {"node-1": ["a"]}

    async def test_a_user_may_have_connections_on_several_servers(self) -> None:
        async with self.opened() as registry:
            sessions = [session("a"), session("b", server="node-2"), session("c"), session("d", mid=2)]
            for each in sessions:
                await settled(registry.add(each))
            assert await self.mids(registry, 1) == {"node-1": ["a", "c"], "node-2": ["b"]}
            assert await self.mids(registry, 1, 2) == {"node-1": ["a", "c", "d"], "node-2": ["b"]}
            assert await settled(registry.remove(sessions[0]))
            assert await self.mids(registry, 1) == {"node-1": ["c"], "node-2": ["b"]}
            assert await settled(registry.remove(sessions[1]))
            assert await settled(registry.remove(sessions[2]))
            assert await self.mids(registry, 1) == {}

    async def test_what_was_removed_is_gone_and_gone_once(self) -> None:
        async with self.opened() as registry:
            added = session("a")
            await settled(registry.add(added))
            assert await settled(registry.remove(added))
            assert not await settled(registry.remove(added))
            assert await self.keys(registry, "a") == {}
            assert await self.mids(registry, 1) == {}

    async def test_a_newer_connection_takes_the_key_over(self) -> None:
        async with self.opened() as registry:
            old, new = session("a", mid=1), session("a", mid=2, server="node-2")
            await settled(registry.add(old))
            await settled(registry.add(new))
            assert await self.keys(registry, "a") == {"node-2": ["a"]}
            assert await self.mids(registry, 1) == {}
            assert await self.mids(registry, 2) == {"node-2": ["a"]}

    @pytest.mark.parametrize("server", ["node-1", "node-2"])
    async def test_a_connection_removes_only_its_own_route(self, server: str) -> None:
        async with self.opened() as registry:
            old, new = session("a"), session("a", server=server)
            await settled(registry.add(old))
            await settled(registry.add(new))
            assert not await settled(registry.remove(old))
            assert await self.keys(registry, "a") == {server: ["a"]}
            assert await self.mids(registry, 1) == {server: ["a"]}
            assert await settled(registry.remove(new))

    async def test_adding_again_changes_nothing(self) -> None:
        async with self.opened() as registry:
            added = session("a")
            await settled(registry.add(added))
            await settled(registry.add(added))
            assert await self.mids(registry, 1) == {"node-1": ["a"]}
            assert await settled(registry.remove(added))
            assert await self.mids(registry, 1) == {}

    @settings(max_examples=40, deadline=None)
    @given(operations=OPERATIONS)
    async def test_against_a_model(self, operations: list[tuple[str, int, str, int, str]]) -> None:
        model: dict[str, Session] = {}
        made: list[Session] = []
        async with self.opened() as registry:
            for what, index, key, mid, server in operations:
                if what == "add" or not made:
                    made.append(session(key, mid, server))
                    await settled(registry.add(made[-1]))
                    model[key] = made[-1]
                    continue
                chosen = made[index % len(made)]
                held = model.get(chosen.key) is chosen
                if what == "remove":
                    assert bool(await settled(registry.remove(chosen))) == held
                    if held:
                        del model[chosen.key]
                elif held:
                    await settled(registry.renew(chosen))
            routes: dict[str, list[str]] = {}
            for key in sorted(model):
                routes.setdefault(model[key].server, []).append(key)
            assert await self.keys(registry, "a", "b", "c", "\N{SNOWMAN}") == routes
            assert await self.mids(registry, 1, 2, -(2**63)) == routes
            for mid in (1, 2):
                own = {key for key, each in model.items() if each.mid == mid}
                found = await self.mids(registry, mid)
                assert {key for keys in found.values() for key in keys} == own


class TestMemoryRegistry(RegistryContract):
    """The form in memory."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Registry]:
        registry = MemoryRegistry()
        yield registry
        await registry.aclose()

    async def test_it_keeps_nothing_of_what_was_removed(self) -> None:
        registry = MemoryRegistry()
        sessions = [session(f"key-{number}", mid=number % 3) for number in range(9)]
        for each in sessions:
            registry.add(each)
        assert len(registry) == 9
        for each in sessions:
            registry.remove(each)
        assert len(registry) == 0
        assert registry._by_mid == {}
