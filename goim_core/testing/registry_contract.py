"""What every registry does: a suite to run on one of your own.

::

    class TestMyRegistry(RegistryContract):
        @asynccontextmanager
        async def opened(self):
            registry = MyRegistry(...)
            yield registry
            await registry.aclose()
"""

from __future__ import annotations

import inspect
import random
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from goim_core.registry import Registry
from goim_core.session import Session

__all__ = ["RegistryContract"]

KEYS = ("a", "b", "c", "\N{SNOWMAN}")
MIDS = (1, 2, -(2**63))


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


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
        routes = await _settled(registry.keys(keys))
        return {server: sorted(found) for server, found in routes.items()}

    async def mids(self, registry: Registry, *mids: int) -> dict[int, list[tuple[str, str]]]:
        """The key and the server of each connection that the registry finds, by user, in its order."""
        found: dict[int, list[tuple[str, str]]] = {}
        for session in await _settled(registry.mids(mids)):
            found.setdefault(session.mid, []).append((session.key, session.server))
        return found

    async def test_what_was_added_is_found(self) -> None:
        async with self.opened() as registry:
            await _settled(registry.add(_session("a", mid=7)))
            assert await self.keys(registry, "a") == {"node-1": ["a"]}
            assert await self.mids(registry, 7) == {7: [("a", "node-1")]}

    async def test_a_connection_is_found_with_what_was_said_of_it(self) -> None:
        async with self.opened() as registry:
            await _settled(registry.add(_session("\N{SNOWMAN}", -(2**63), "node-2", "web")))
            (found,) = await _settled(registry.mids([-(2**63)]))
            assert isinstance(found, Session)
            assert (found.mid, found.key, found.platform, found.server) == (
                -(2**63),
                "\N{SNOWMAN}",
                "web",
                "node-2",
            )

    async def test_what_is_unknown_is_left_out(self) -> None:
        async with self.opened() as registry:
            await _settled(registry.add(_session("a")))
            assert await self.keys(registry, "x", "a", "y") == {"node-1": ["a"]}
            assert await self.mids(registry, 5, 1, 6) == {1: [("a", "node-1")]}
            assert await self.keys(registry) == {}
            assert await self.mids(registry) == {}

    async def test_asking_twice_for_one_gives_it_once(self) -> None:
        async with self.opened() as registry:
            await _settled(registry.add(_session("a")))
            assert await self.keys(registry, "a", "a") == {"node-1": ["a"]}
            assert await self.mids(registry, 1, 1) == {1: [("a", "node-1")]}

    async def test_a_users_connections_come_oldest_first(self) -> None:
        async with self.opened() as registry:
            for key in ("c", "a", "b"):
                await _settled(registry.add(_session(key)))
            assert [key for key, _ in (await self.mids(registry, 1))[1]] == ["c", "a", "b"]

    async def test_a_user_may_have_connections_on_several_servers(self) -> None:
        async with self.opened() as registry:
            sessions = [_session("a"), _session("b", server="node-2"), _session("c"), _session("d", mid=2)]
            for each in sessions:
                await _settled(registry.add(each))
            routes = [("a", "node-1"), ("b", "node-2"), ("c", "node-1")]
            assert await self.mids(registry, 1) == {1: routes}
            assert await self.mids(registry, 1, 2) == {1: routes, 2: [("d", "node-1")]}
            for index in range(3):
                assert await _settled(registry.remove(sessions[index]))
                rest = routes[index + 1 :]
                assert await self.mids(registry, 1) == ({1: rest} if rest else {})

    async def test_what_was_removed_is_gone_and_gone_once(self) -> None:
        async with self.opened() as registry:
            added = _session("a")
            await _settled(registry.add(added))
            assert await _settled(registry.remove(added))
            assert not await _settled(registry.remove(added))
            assert await self.keys(registry, "a") == {}
            assert await self.mids(registry, 1) == {}

    async def test_a_newer_connection_takes_the_key_over(self) -> None:
        async with self.opened() as registry:
            old, new = _session("a", mid=1), _session("a", mid=2, server="node-2")
            await _settled(registry.add(old))
            await _settled(registry.add(new))
            assert await self.keys(registry, "a") == {"node-2": ["a"]}
            assert await self.mids(registry, 1) == {}
            assert await self.mids(registry, 2) == {2: [("a", "node-2")]}

    @pytest.mark.parametrize("server", ["node-1", "node-2"])
    async def test_a_connection_removes_only_its_own_route(self, server: str) -> None:
        async with self.opened() as registry:
            old, new = _session("a"), _session("a", server=server)
            await _settled(registry.add(old))
            await _settled(registry.add(new))
            assert not await _settled(registry.remove(old))
            assert await self.keys(registry, "a") == {server: ["a"]}
            assert await self.mids(registry, 1) == {1: [("a", server)]}
            assert await _settled(registry.remove(new))

    async def test_adding_again_changes_nothing(self) -> None:
        async with self.opened() as registry:
            added = _session("a")
            await _settled(registry.add(added))
            await _settled(registry.add(added))
            assert await self.mids(registry, 1) == {1: [("a", "node-1")]}
            assert await _settled(registry.remove(added))
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
                    await _settled(registry.add(made[-1]))
                    # The last of a dict is the newest: one that is taken over is no more in its place.
                    model.pop(made[-1].key, None)
                    model[made[-1].key] = made[-1]
                    continue
                chosen = chance.choice(made)
                held = model.get(chosen.key) is chosen
                if what == "remove":
                    assert bool(await _settled(registry.remove(chosen))) == held
                    if held:
                        del model[chosen.key]
                elif held:
                    await _settled(registry.renew(chosen))
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
