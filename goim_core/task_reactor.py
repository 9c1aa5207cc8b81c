"""Readiness where a system has neither epoll nor kqueue (Windows); and the reactor of this system."""

from __future__ import annotations

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from goim_core.poller import READ, WRITE, new_poller
from goim_core.reactor import KernelReactor, Reactor, Socket, Source

__all__ = ["TaskReactor", "new_reactor"]


class TaskReactor(Reactor):
    """One waiting task for each socket and direction: for systems with neither epoll nor kqueue."""

    def __init__(self) -> None:
        super().__init__()
        self._scopes: dict[tuple[Socket, int], anyio.CancelScope] = {}
        self._sources: dict[Socket, Source] = {}
        self._tasks: TaskGroup | None = None
        self._woken = anyio.Event()

    def add(self, sock: Socket, source: Source) -> None:
        """See :meth:`Reactor.add`."""
        self._sources[sock] = source
        self.watch(sock, read=True, write=False)

    def watch(self, sock: Socket, *, read: bool, write: bool) -> None:
        """See :meth:`Reactor.watch`."""
        for wanted, direction in ((read, READ), (write, WRITE)):
            scope = self._scopes.get((sock, direction))
            if wanted and scope is None:
                scope = self._scopes[sock, direction] = anyio.CancelScope()
                if self._tasks is not None:
                    self._tasks.start_soon(self._wait, sock, direction, scope)
            elif not wanted and scope is not None:
                del self._scopes[sock, direction]
                scope.cancel()

    def remove(self, sock: Socket) -> None:
        """See :meth:`Reactor.remove`."""
        self.watch(sock, read=False, write=False)
        del self._sources[sock]

    async def _wait(self, sock: Socket, direction: int, scope: anyio.CancelScope) -> None:
        with scope:
            while self._scopes.get((sock, direction)) is scope:
                await (anyio.wait_readable if direction == READ else anyio.wait_writable)(sock)
                if self._scopes.get((sock, direction)) is not scope:
                    return  # another source ended this one after it had become ready
                source = self._sources[sock]
                self._guarded(source, source.on_readable if direction == READ else source.on_writable)

    def sources(self) -> list[Source]:
        """See :meth:`Reactor.sources`."""
        return list(self._sources.values())

    def _wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """See :meth:`Reactor.run`."""
        async with anyio.create_task_group() as self._tasks:
            for (sock, direction), scope in self._scopes.items():
                self._tasks.start_soon(self._wait, sock, direction, scope)
            while True:
                if not self._again:
                    await self._woken.wait()
                self._woken = anyio.Event()
                self._turns()
                await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """See :meth:`Reactor.close`."""


def new_reactor() -> Reactor:
    """The reactor of this system."""
    poller = new_poller()
    return TaskReactor() if poller is None else KernelReactor(poller)
