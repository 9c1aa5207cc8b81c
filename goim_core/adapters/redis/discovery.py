"""RedisDiscovery: the nodes in a Redis (or Valkey) that all of them share. Needs redis-py and asyncio.

goim_core:node:<name>   string, with an expiry: the node as JSON, an instance as bilibili/discovery has it
goim_core:nodes         set: the names, so that nobody has to look through all keys
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from goim_core.adapters.loop import check_asyncio
from goim_core.adapters.redis.pipeline import Command, RedisConnection, check_seconds
from goim_core.adapters.trouble import Trouble
from goim_core.clock import Clock, SystemClock
from goim_core.discovery import Discovery, Node, instance, read_instance
from goim_core.errors import BackboneError, ConfigurationError

__all__ = ["RedisDiscovery"]

NAMES = "goim_core:nodes"
NODE = "goim_core:node:"

_log = logging.getLogger("goim_core.adapters.redis.discovery")


class RedisDiscovery(Discovery):
    """The nodes that have told the Redis at ``url`` within the last ``alive`` seconds that they live.

    Each tells it every ``refresh`` seconds, with how many connections it has, and asks for the others. So a
    node that dies is forgotten everywhere after at most ``alive`` and ``refresh`` seconds. ``timeout``
    seconds are given to each question.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379",
        *,
        alive: float = 30.0,
        refresh: float = 3.0,
        timeout: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        self._alive = check_seconds("alive", alive, 0.1)
        self._refresh = check_seconds("refresh", refresh)
        if refresh * 2 > alive:
            raise ConfigurationError(f"refresh: expected at most half of alive, got {refresh:g} of {alive:g}")
        self._connection = RedisConnection(url, check_seconds("timeout", timeout), _log)
        self._turn = anyio.Lock()
        self._clock = SystemClock() if clock is None else clock
        self._own: Callable[[], Node] | None = None
        self._told = 0
        self._nodes: tuple[Node, ...] = ()
        self._broken: set[str] = set()
        self._refused = Trouble(_log, "the list of nodes is not fresh")

    def nodes(self) -> Sequence[Node]:
        """See :meth:`~goim_core.discovery.Discovery.nodes`."""
        return self._nodes

    @property
    def trouble(self) -> str:
        """See :attr:`~goim_core.discovery.Discovery.trouble`."""
        return self._connection.trouble.text or self._refused.text

    async def start(self, node: Callable[[], Node]) -> None:
        """See :meth:`~goim_core.discovery.Discovery.start`."""
        check_asyncio("RedisDiscovery")
        self._own = node
        await self._refresh_now()

    async def update(self) -> None:
        """See :meth:`~goim_core.discovery.Discovery.update`."""
        if self._own is not None:
            await self._refresh_now()

    async def run(self) -> None:
        """See :meth:`~goim_core.discovery.Discovery.run`."""
        while True:
            await self._clock.sleep(self._refresh)
            try:
                await self._refresh_now()
            except BackboneError as error:
                _log.debug("the list of nodes is not fresh: %s", error)  # it is in trouble, and said so

    async def cancel(self) -> None:
        """See :meth:`~goim_core.discovery.Discovery.cancel`."""
        if self._own is None:
            return
        name, self._own = self._own().name, None
        try:
            async with self._turn:
                await self._ask(("DEL", NODE + name), ("SREM", NAMES, name))
        except BackboneError as error:
            _log.warning("this node stays in the list for %g s: %s", self._alive, error)

    async def aclose(self) -> None:
        """See :meth:`~goim_core.discovery.Discovery.aclose`."""
        await self._connection.aclose()

    async def _refresh_now(self) -> None:
        async with self._turn:
            *_, members = await self._ask(*self._telling(), ("SMEMBERS", NAMES))
            names = sorted(member.decode(errors="replace") for member in members)
            if not names:
                self._nodes = ()
                return
            (values,) = await self._ask(("MGET", *(NODE + name for name in names)))
            found = dict(zip(names, values, strict=True))
            # One that comes back at this moment says its name again the next time.
            gone = [name for name, value in found.items() if value is None]
            if gone:
                await self._ask(("SREM", NAMES, *gone))
        nodes = [self._read(name, value) for name, value in found.items() if value is not None]
        self._nodes = tuple(node for node in nodes if node is not None)
        self._refused.end()

    def _telling(self) -> list[Command]:
        if self._own is None:
            return []
        own = self._own()
        self._told = max(self._told + 1, int(self._clock.time() * 1e9))
        fields = json.dumps({**instance(own), "latest_timestamp": self._told})
        expiry = int(self._alive * 1000)
        return [("SET", NODE + own.name, fields, "PX", expiry), ("SADD", NAMES, own.name)]

    def _read(self, name: str, value: bytes) -> Node | None:
        try:
            return read_instance(json.loads(value))
        except (ValueError, AttributeError, RecursionError) as error:
            if name not in self._broken and len(self._broken) < 1000:
                self._broken.add(name)
                _log.warning("node %r is left out: %s", name[:80], error)
            return None

    async def _ask(self, *commands: Command) -> list[Any]:
        replies = await self._connection.exchange(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                self._refused.begin(f"Redis refused: {reply}")
                raise BackboneError(f"url: Redis refused: {reply}")
        return replies
