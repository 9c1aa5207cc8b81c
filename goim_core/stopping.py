"""How a server stops: it lets nobody in, leads its clients away at an even pace, and waits for hooks.

===================================================== ====================
what                                                  over by (of `drain`)
===================================================== ====================
other nodes are told, then the doors of clients close 1/8
what the queue took goes out                          3/8
clients are led away, one after the other             5/8
those with an answer under way are closed too         5/8
they read the reason and go; hooks come to their end  3/4
what hangs is cut short                               7/8
===================================================== ====================

The rest is for what else a process has to do to end. Each takes as long as it needs, and leaves the others
more. Pushes are taken until hooks are done. Nothing waits for a client longer than that, whatever it does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import anyio
import anyio.lowlevel
from attrs import define, field

from goim_core.conversation import Conversation
from goim_core.discovery import Discovery
from goim_core.edge import Edge
from goim_core.errors import BackboneError, CloseCode, Disconnect
from goim_core.listener import Listener
from goim_core.protocol import Op
from goim_core.queue import Queue

__all__ = ["Stopping"]

PACE = 2000
"""How many clients a second are led away, which others take in easily; more where the time is short."""
GRACE = 0.5
"""Seconds that a client which was asked to move may be late, before it is closed."""
NAP = 0.05
"""Seconds by which a client may be early, so that few are closed at once, and many in small groups."""
SHARE = 64
"""How many clients are told, or closed, before others have a turn."""
LAST_TURNS = 10_000
"""How often hooks that hang are cut short: one connection may have many, in turn."""

ANNOUNCED, SENT, LED, ENDED, OVER = 1 / 8, 3 / 8, 5 / 8, 3 / 4, 7 / 8

_log = logging.getLogger("goim_core.server")


@define(eq=False)
class Stopping:
    """One stop: :meth:`lead_away` while the server still works, then :meth:`close`."""

    edge: Edge
    queue: Queue
    discovery: Discovery
    listeners: Mapping[str, Sequence[Listener]]
    _begun: float = field(init=False)
    _hurried: bool = field(init=False, default=False)
    _scope: anyio.CancelScope = field(init=False, factory=anyio.CancelScope)

    def __attrs_post_init__(self) -> None:
        self._begun = self._now()

    async def lead_away(self) -> None:
        """Let no client in, move or close those who are here, and wait for hooks."""
        with self._patiently():
            # Before the doors close, so that nobody is sent to a closed one.
            with self._until(ANNOUNCED):
                await self.discovery.cancel()
            # Those of HTTP stay open: there clients ask where else to go, and monitors how it stands.
            self._close_doors(but=("http", "https"))
            await self._send_out(SENT)
            self.edge.empty = anyio.Event()
            with self._until(LED):
                await self._close_in_turn(self._connections())
                await self.edge.exchanges.idle()
            self._close_doors()
            with self._until(ENDED):
                for turn, connection in enumerate(self._connections()):
                    connection.close(_going_away())
                    await _share(turn)
                if self._connections():
                    await self.edge.empty.wait()
                await self.edge.exchanges.idle()

    async def close(self) -> None:
        """Close whoever is left, and cut short the hooks that hang."""
        self._close_doors()
        if self._left(ENDED):  # else not even a turn of the event loop, in which thousands of hooks are told
            with self._patiently():
                await self._send_out(ENDED)
        for connection in self._connections():
            connection.close(_going_away())  # in a hurry, nobody has told it yet
            connection.lost(ConnectionAbortedError("the server has stopped"))
        await self._cut_short()

    def hurry(self) -> None:
        """Wait for nobody any more."""
        self._hurried = True
        self._scope.cancel()

    # Clients.

    async def _close_in_turn(self, connections: Sequence[Conversation]) -> None:
        """Spread their ends evenly, so that other nodes are not stormed; returns when all were closed."""
        now, left = self._now(), self._left(LED)
        grace = min(GRACE, left / 4)
        span = min(len(connections) / PACE, left - grace)
        asked: list[tuple[float, Conversation]] = []
        ends: list[tuple[float, Conversation]] = []
        for turn, connection in enumerate(connections):
            at = now + span * turn / len(connections)
            moves = Op.MOVE in connection.channel.accepts
            ends.append((at + grace if moves else at, connection))
            if moves:
                asked.append((at, connection))
            await _share(turn)
        if not ends:
            return
        ends.sort(key=lambda end: end[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ask, asked)
            tasks.start_soon(self._until_empty, tasks.cancel_scope)
            for turn, (at, connection) in enumerate(ends):
                if at - self._now() > NAP:
                    await self.edge.deadlines.clock.sleep(at - self._now())
                connection.leave(_going_away())
                await _share(turn)
            tasks.cancel_scope.cancel()

    async def _ask(self, asked: Sequence[tuple[float, Conversation]]) -> None:
        for turn, (at, connection) in enumerate(asked):
            connection.ask_to_move(max(0.0, at - self._now()))
            await _share(turn)

    async def _until_empty(self, scope: anyio.CancelScope) -> None:
        await self.edge.empty.wait()
        scope.cancel()

    def _connections(self) -> list[Conversation]:
        return [source for source in self.edge.reactor.sources() if isinstance(source, Conversation)]

    # Doors, the queue, and hooks.

    def _close_doors(self, but: tuple[str, ...] = ()) -> None:
        for door, listeners in self.listeners.items():
            for listener in listeners if door not in but else ():
                listener.close()

    async def _send_out(self, share: float) -> None:
        try:
            with self._until(share):
                await self.queue.drain()
        except BackboneError as error:
            _log.error("nobody knows whether all pushes went out: %s", error)

    async def _cut_short(self) -> None:
        """End hooks that hang, and then those that hear of the end, each after it has begun."""
        exchanges, drain = self.edge.exchanges, self.edge.options.drain
        with self._until(OVER):
            for turn in range(LAST_TURNS):
                if not exchanges.active:
                    return
                exchanges.abort()
                if turn < 2:
                    with self.edge.deadlines.move_on_after(drain / 32):
                        await exchanges.idle()
                else:
                    await anyio.lowlevel.checkpoint()

    # Time.

    def _now(self) -> float:
        return self.edge.deadlines.clock.now()

    def _left(self, share: float) -> float:
        return max(0.0, self._begun + share * self.edge.options.drain - self._now())

    def _until(self, share: float) -> AbstractContextManager[anyio.CancelScope]:
        return self.edge.deadlines.move_on_after(self._left(share))

    @contextmanager
    def _patiently(self) -> Iterator[None]:
        with anyio.CancelScope() as self._scope:
            if self._hurried:
                self._scope.cancel()
            yield


def _going_away() -> Disconnect:
    return Disconnect("the server is stopping", CloseCode.GOING_AWAY)


async def _share(turn: int) -> None:
    if turn % SHARE == SHARE - 1:
        await anyio.lowlevel.checkpoint()
