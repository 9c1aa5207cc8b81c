"""RedisRegistry: who is where, in a Redis (or Valkey) that all nodes share. Needs redis-py and asyncio.

goim's keys are as goim writes them, so Go processes on the same Redis find the connections of these nodes
and the other way round:

    mid_<mid>     hash: key -> server
    key_<key>     string: server
    ol_<server>   hash: "0" to "63" -> JSON, how many are in each room; a room's slot is CityHash32 % 64

What there is beside them: scripts.py.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

import anyio
from attrs import define

from goim_core.adapters.loop import check_asyncio
from goim_core.adapters.redis import scripts
from goim_core.adapters.redis.counts import goim_slots, sum_up
from goim_core.adapters.redis.pipeline import (
    Command,
    RedisConnection,
    RedisPipeline,
    Unanswered,
    check_seconds,
)
from goim_core.errors import BackboneError, ConfigurationError
from goim_core.registry import Online, Registry, Routes
from goim_core.session import Session

__all__ = ["RedisRegistry"]

T = TypeVar("T")

FORGOTTEN = 100_000
"""How many routes that could not be removed are kept to be removed later; the oldest expire by themselves."""
PAGE = 100
"""How many connections or users one script looks at: while it runs, Redis does nothing else."""

_log = logging.getLogger("goim_core.adapters.redis.registry")


@define(eq=False)
class _Route:
    """A connection of this process in the registry."""

    session: Session
    id: str
    order: str = ""
    renewed: float = 0.0


class RedisRegistry(Registry):
    """The routes of all nodes, in the Redis 6.2 or newer, or Valkey, that ``url`` names; no Redis Cluster.

    ``expire`` seconds after the last renewal a route is gone (goim: 30 minutes); each is renewed three
    times in that time for as long as its connection is here, without its heartbeats. A node that gave no
    sign of life for ``alive`` seconds is forgotten with its users. ``timeout`` seconds are given to each
    question, after which it raises :class:`~goim_core.errors.BackboneError`.

    Two nodes with one key: the newer connection has it, and ``on_replaced`` is called with the session of
    the older one, on its node, within a second.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379",
        *,
        expire: int = 1800,
        alive: float = 30.0,
        timeout: float = 2.0,
    ) -> None:
        if isinstance(expire, bool) or not isinstance(expire, int) or not 1 <= expire <= 10**9:
            raise ConfigurationError(f"expire: expected whole seconds, at least 1, got {expire!r:.80}")
        self._expire = expire
        self._alive = check_seconds("alive", alive, 0.1)
        self._connection = RedisConnection(url, check_seconds("timeout", timeout), _log, scripts.SCRIPTS)
        self._pipeline = RedisPipeline(self._connection)
        self._node = ""
        self._boot = secrets.token_hex(8)
        self._numbers = count(1)
        # In the order of their renewals, the oldest first.
        self._routes: OrderedDict[str, _Route] = OrderedDict()
        self._forgotten: deque[_Route] = deque(maxlen=FORGOTTEN)
        self._verified = 0
        self._beat_at = 0.0
        self._taken = False
        self._replaced: set[Session] = set()

    # The contract.

    async def add(self, session: Session) -> None:
        """See :meth:`Registry.add`."""
        route = self._routes.get(session.key)
        if route is None or route.session is not session:
            route = _Route(session, f"{self._boot}.{next(self._numbers)}")
        sure = False
        try:
            (answer,) = await self._call(scripts.ADD, *self._own(), *_arguments(route))
            self._note(route, answer.decode(errors="replace"))
            sure = True
        except Unanswered as error:
            sure = not error.sent
            raise
        finally:
            # It may be there though nobody heard of it.
            if not sure and route is not self._routes.get(session.key):
                self._forgotten.append(route)

    async def remove(self, session: Session) -> bool:
        """See :meth:`Registry.remove`. Where Redis is away, the route is removed when it is back."""
        self._replaced.discard(session)
        route = self._routes.get(session.key)
        if route is None or route.session is not session:
            return False
        del self._routes[session.key]
        removed = True
        try:
            removed = await self._call(scripts.REMOVE, session.key, route.id) == 1
        except BackboneError:
            self._forgotten.append(route)
        except BaseException:  # cancelled
            self._forgotten.append(route)
            raise
        return removed

    async def keys(self, keys: Iterable[str]) -> Routes:
        """See :meth:`Registry.keys`."""
        routes: Routes = {}
        for page in await self._ask_all(scripts.KEYS, list(dict.fromkeys(keys))):
            for key, server in _rows(page, 2):
                routes.setdefault(server, []).append(key)
        return routes

    async def mids(self, mids: Iterable[int]) -> list[Session]:
        """See :meth:`Registry.mids`. Connections that a Go process registered come first."""
        found: dict[int, list[tuple[int, Session]]] = {mid: [] for mid in mids}
        for page in await self._ask_all(scripts.MIDS, [str(mid) for mid in found]):
            for mid, key, server, platform, order in _rows(page, 5):
                # A Go process may have written a key that is none here: nobody can push to it.
                with suppress(ValueError):
                    session = Session(mid=int(mid), key=key, platform=platform, server=server)
                    found[session.mid].append((int(order), session))
        return [session for held in found.values() for _, session in sorted(held, key=lambda each: each[0])]

    async def report(self, online: Online) -> Online:
        """See :meth:`Registry.report`."""
        now = time.time()
        slots = [part for pair in goim_slots(self._node, online.rooms, now).items() for part in pair]
        return sum_up(
            await self._call(
                scripts.REPORT,
                self._node,
                self._boot,
                self._expire,
                online.connections,
                online.addresses,
                *slots,
            ),
            now,
        )

    @property
    def trouble(self) -> str:
        """See :attr:`Registry.trouble`."""
        if self._taken:
            return f"another process has started as node {self._node!r}: its name has to be its own"
        return self._connection.trouble.text

    async def start(self, node: str) -> None:
        """See :meth:`Registry.start`."""
        check_asyncio("RedisRegistry")
        self._node = node
        (before,) = await self._connection.exchange([self._beat(claim=True)])
        if isinstance(before, Exception):
            await self._connection.aclose()
            raise BackboneError(f"url: Redis cannot be used for this: {before}")
        if before:
            _log.info("node %r takes over from its last start, which has not ended properly", node)
        self._verified = self._connection.opened
        self._beat_at = time.monotonic()

    async def run(self) -> None:
        """See :meth:`Registry.run`."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pipeline.run)
            tasks.start_soon(self._keep)

    async def aclose(self) -> None:
        """See :meth:`Registry.aclose`."""
        self._pipeline.close()
        if self._connection.opened:
            try:
                leave: list[Command] = [_command(scripts.LEAVE, self._node, self._boot)]
                cleaned = [1]
                while cleaned[-1] == 1 or cleaned[-1] == PAGE:
                    cleaned = await self._connection.exchange([*leave, _command(scripts.CLEAN, PAGE)])
            except BackboneError as error:
                _log.warning("node %r is forgotten in %g s only: %s", self._node, self._alive, error)
        await self._connection.aclose()

    # What goes on beside.

    async def _keep(self) -> None:
        while True:
            try:
                await self._turn()
            except BackboneError as error:
                _log.debug("the routes are not renewed: %s", error)  # it is in trouble, and said so
            await anyio.sleep(min(1.0, self._alive / 6))

    async def _turn(self) -> None:
        """One look at all that has to be done from time to time."""
        reconnected = self._verified != self._connection.opened
        due = time.monotonic() - self._beat_at >= self._alive / 3
        if due or reconnected or self._connection.trouble.text:
            await self._live()
        await self._hear_of_replaced()
        await self._remove_forgotten()
        await self._renew(self._due())
        for session in tuple(self._replaced):
            self.on_replaced(session)  # each time until it is removed: it may be on its way in

    async def _live(self) -> None:
        """Give a sign of life, and see that everything is as this node left it."""
        opened = self._connection.opened
        before = (await self._pipeline.call(*self._beat())).decode(errors="replace")
        taken = before not in ("", self._boot)
        if taken and not self._taken:
            _log.error("another process has started as node %r: its name has to be its own", self._node)
        self._taken = taken
        self._beat_at = time.monotonic()
        if not before or opened != self._verified:
            # Redis came back, perhaps with nothing or with what it had a while ago; or this node was
            # silent for so long that the others took it for dead.
            await self._renew(list(self._routes.values()))
            self._verified = opened
        while await self._call(scripts.CLEAN, PAGE) >= PAGE:
            pass

    async def _hear_of_replaced(self) -> None:
        taken_over = await self._pipeline.call("LPOP", f"goim_registry:replaced:{self._boot}", PAGE)
        for item in taken_over or ():
            id_, _, key = item.decode().partition(" ")
            route = self._routes.get(key)
            if route is not None and route.id == id_:
                self._lose(route)

    def _lose(self, route: _Route) -> None:
        if self._routes.get(route.session.key) is route:
            del self._routes[route.session.key]
            self._replaced.add(route.session)

    async def _remove_forgotten(self) -> None:
        while self._forgotten:
            some = [self._forgotten.popleft() for _ in range(min(PAGE, len(self._forgotten)))]
            removed = False
            try:
                await self._call(
                    scripts.REMOVE, *(part for route in some for part in (route.session.key, route.id))
                )
                removed = True
            finally:
                if not removed:
                    self._forgotten.extendleft(reversed(some))

    def _due(self) -> list[_Route]:
        """The routes whose third of ``expire`` is over."""
        until = time.monotonic() - self._expire / 3
        found = []
        for route in self._routes.values():
            if route.renewed > until:
                break
            found.append(route)
        return found

    async def _renew(self, routes: Sequence[_Route]) -> None:
        for page in _pages(routes):
            here = [route for route in page if self._routes.get(route.session.key) is route]
            arguments = [part for route in here for part in _arguments(route)]
            answers = await self._call(scripts.ADD, *self._own(), *arguments)
            for route, answer in zip(here, answers, strict=True):
                try:
                    self._note(route, answer.decode(errors="replace"))
                except BackboneError as error:
                    _log.error("the route of key %r is not renewed: %s", route.session.key, error)
                    self._renewed(route)

    def _note(self, route: _Route, answer: str) -> None:
        """What has become of ``route``."""
        if answer.startswith("!"):
            raise BackboneError(f"Redis refused: {answer[1:]}")
        if not answer:
            self._lose(route)
            return
        if not route.order:
            route.order = answer
            self._replaced.discard(route.session)
            self._routes[route.session.key] = route
        self._renewed(route)

    def _renewed(self, route: _Route) -> None:
        if self._routes.get(route.session.key) is route:
            route.renewed = time.monotonic()
            self._routes.move_to_end(route.session.key)

    # Questions.

    def _beat(self, *, claim: bool = False) -> Command:
        alive, epoch = int(self._alive * 1000), self._connection.opened
        return _command(scripts.BEAT, self._node, self._boot, epoch, alive, self._expire, "1" * claim)

    def _own(self) -> tuple[str, str, int, int]:
        # The epoch: what an old connection still had in its pipe when a new one was made is void.
        return self._boot, self._node, self._connection.opened, self._expire

    async def _call(self, script: str, *arguments: str | int | bytes) -> Any:
        return await self._pipeline.call(*_command(script, *arguments))

    async def _ask_all(self, script: str, values: list[str]) -> list[list[bytes]]:
        return await self._pipeline.calls([_command(script, *page) for page in _pages(values)])


def _command(script: str, *arguments: str | int | bytes) -> Command:
    return ("EVALSHA", scripts.sha(script), 0, *arguments)


def _arguments(route: _Route) -> tuple[str, ...]:
    session = route.session
    return session.key, route.id, str(session.mid), route.order, session.server, session.platform


def _rows(values: list[bytes], width: int) -> Iterator[tuple[str, ...]]:
    texts = [value.decode(errors="replace") for value in values]
    return zip(*[iter(texts)] * width, strict=True)


def _pages(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), PAGE):
        yield values[start : start + PAGE]
