"""The registry in memory: the suite that every form of it keeps, and what this one adds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from goim_core.registry import MemoryRegistry, Registry
from goim_core.session import Session
from goim_core.testing.registry_contract import RegistryContract


class TestMemoryRegistry(RegistryContract):
    """The form in memory."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Registry]:
        registry = MemoryRegistry()
        yield registry
        await registry.aclose()

    async def test_it_keeps_nothing_of_what_was_removed(self) -> None:
        registry = MemoryRegistry()
        sessions = [Session(mid=number % 3, key=f"key-{number}") for number in range(9)]
        for each in sessions:
            registry.add(each)
        assert len(registry) == 9
        for each in sessions:
            registry.remove(each)
        assert len(registry) == 0
        assert not registry._by_mid
