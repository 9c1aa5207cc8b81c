"""A whole server in a test: the real pipeline on links in memory, and a clock that the test owns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from math import inf
from typing import Any, cast

import anyio
import anyio.to_thread
from attrs import define, field

from goim_core.auth import OpenAuth
from goim_core.client.wire import ClientWire, PlainWire, WebSocketWire
from goim_core.connection import Connection
from goim_core.errors import CloseCode, ConfigurationError, Disconnect
from goim_core.hooks import AuthHook, MessageHook, RoomHook, SessionHook
from goim_core.options import Options
from goim_core.protocol import Op
from goim_core.queue import Queue
from goim_core.server import Server
from goim_core.storage import StorageHook
from goim_core.testing.client import Client
from goim_core.testing.clock import ManualClock, ManualDeadlines
from goim_core.testing.link import CAPACITY, Link, MemoryReactor
from goim_core.testing.queue import FaultyQueue
from goim_core.testing.quiet import all_blocked, others_may_wake
from goim_core.testing.report import Body, as_bytes

__all__ = ["App", "running"]

STUCK = 30.0
"""Real seconds after which a test in which something goes on for ever is told so."""
THREADS = 10.0
"""Real seconds that worker threads are waited for."""
PAUSE = 0.0005
"""Real seconds between two looks at threads and at the world outside."""
NO_HEADERS: Mapping[str, str] = {}


class _AnyToken(OpenAuth):
    """Its warning is not for tests."""

    def __init__(self) -> None: ...


class SocketlessServer(Server):
    """A server without doors. When it stops, time flies: what waits for a deadline need not wait for real."""

    app: App
    _new_deadlines = ManualDeadlines

    def __init__(self, clock: ManualClock, **settings: Any) -> None:
        self.links = MemoryReactor()
        super().__init__(clock=clock, reactor=lambda: self.links, **settings)

    @property
    def asking(self) -> bool:
        """Hooks or the storage are at work for a client."""
        return self._pipeline.edge.exchanges.active

    async def _stop(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.app.let_time_fly)
            await super()._stop()
            tasks.cancel_scope.cancel()


@define(eq=False, repr=False)
class App:
    """A running server, its clients and its time. Made by :func:`running`."""

    server: SocketlessServer
    clock: ManualClock
    queue: Queue
    """The :class:`FaultyQueue`, unless the test brought a queue of its own."""
    _patience: float
    _clients: list[Client] = field(init=False, factory=list)
    _threads: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._threads = _threads()

    @property
    def faults(self) -> FaultyQueue:
        """The queue in memory, where pushes can be dropped, delayed and doubled."""
        if not isinstance(self.queue, FaultyQueue):
            raise ConfigurationError(f"queue: expected a FaultyQueue, the test brought {self.queue!r}")
        return self.queue

    # Clients.

    async def open(
        self,
        wire: str = "tcp",
        *,
        address: str = "127.0.0.1",
        path: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        capacity: int = CAPACITY,
    ) -> Client:
        """A client that has not authenticated. See :meth:`connect`.

        Raises :class:`~goim_core.errors.Disconnect` where a limit leaves no room for it.
        """
        ends: ClientWire
        if wire == "tcp":
            if path is not None or headers:
                raise ValueError("path, headers: expected none, TCP has no handshake")
            ends = PlainWire()
        elif wire == "ws":
            ends = WebSocketWire("localhost", path or self.server.options.ws_path, headers)
        else:
            raise ValueError(f"wire: expected 'tcp' or 'ws', got {wire!r}")
        link = Link(capacity)
        self.server.accept(cast("Any", link), wire, address)
        connection = cast("Connection", self.server.links.source(link))
        client = Client(link, connection, ends, self.idle, self._note)
        if link.fileno() < 0:
            client.pump()
            raise client.told or Disconnect("closed without a word", CloseCode.LOST)
        self._clients.append(client)
        link.write(ends.opening)
        await self.idle()
        return client

    async def connect(
        self,
        token: Body = b"",
        wire: str = "tcp",
        *,
        address: str = "127.0.0.1",
        path: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        capacity: int = CAPACITY,
    ) -> Client:
        """A client that has been let in with ``token``; a dict becomes goim's JSON.

        ``wire`` is "tcp" or "ws"; ``path`` (with a query) and ``headers`` are those of the WebSocket
        handshake; ``capacity`` is how many bytes the link takes while the client does not read.

        Raises :class:`~goim_core.errors.Disconnect` with the server's code and reason when it is turned away.
        """
        __tracebackhide__ = True
        client = await self.open(wire, address=address, path=path, headers=headers, capacity=capacity)
        if not client.link.ended:
            await client.send(Op.AUTH, token)
            await self.idle()
        if client.link.ended:
            raise client.told or Disconnect("closed without a word", CloseCode.LOST)
        await client.assert_reply(Op.AUTH_REPLY)
        return client

    def __repr__(self) -> str:
        return f"<App with {len(self._clients)} clients>"

    # Pushes, as the server has them, but for bodies that may be text or JSON.

    async def push_keys(self, keys: Iterable[str], op: int, body: Body = b"", **settings: Any) -> None:
        """See :meth:`goim_core.Server.push_keys`."""
        await self.server.push_keys(keys, op, as_bytes(body), **settings)

    async def push_mids(self, mids: Iterable[int], op: int, body: Body = b"", **settings: Any) -> None:
        """See :meth:`goim_core.Server.push_mids`."""
        await self.server.push_mids(mids, op, as_bytes(body), **settings)

    async def push_room(self, room_id: str, op: int, body: Body = b"", **settings: Any) -> None:
        """See :meth:`goim_core.Server.push_room`."""
        await self.server.push_room(room_id, op, as_bytes(body), **settings)

    async def push_all(self, op: int, body: Body = b"", **settings: Any) -> None:
        """See :meth:`goim_core.Server.push_all`."""
        await self.server.push_all(op, as_bytes(body), **settings)

    # Time.

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, step by step: whatever falls due runs to its end before the next does."""
        until = self.clock.now() + seconds
        await self.idle()
        while (due := self.clock.next_due()) <= until:
            self.clock.advance_to(max(due, self.clock.now()))
            await self.idle()
        self.clock.advance_to(max(until, self.clock.now()))
        await self.idle()

    async def let_time_fly(self) -> None:
        """Let time pass whenever there is nothing else to do, until cancelled. For the kit."""
        while True:
            with anyio.move_on_after(THREADS):
                await self._idle()
            due = self.clock.next_due()
            if due < inf:
                self.clock.advance_to(max(due, self.clock.now()))
            else:
                await anyio.sleep(PAUSE)

    # Idleness.

    async def idle(self) -> None:
        """Return when nothing can happen any more, unless the test does something or lets time pass.

        Waits for what is done in worker threads, and for hooks that wait for something outside of the
        program, like a database; for these ``patience`` real seconds at most.
        """
        try:
            with anyio.fail_after(STUCK):
                await self._idle()
        except TimeoutError:
            names = ", ".join(sorted({str(task.name) for task in anyio.get_running_tasks()}))
            raise AssertionError(f"something goes on for ever; it is one of these tasks: {names}") from None

    async def _idle(self) -> None:
        since: float | None = None
        while True:
            await all_blocked()
            if [client for client in self._clients if client.pump()]:
                continue
            since = anyio.current_time() if since is None else since
            if anyio.current_time() - since >= self._worth_waiting():
                return
            await anyio.sleep(PAUSE)

    def _worth_waiting(self) -> float:
        """How long what others may be doing for this app is to be waited for."""
        if _threads() > self._threads:
            return THREADS
        asks = self.server.asking or (not isinstance(self.queue, FaultyQueue) and self.queue.pending > 0)
        return self._patience if asks and others_may_wake(self._patience) else 0.0

    def _note(self) -> str:
        """What may help to understand why something did not come."""
        notes = []
        if self.server.asking:
            notes.append("  a hook is still at work")
        due = self.clock.next_waking() - self.clock.now()
        if due < inf:
            notes.append(f"  something waits for time to pass: await app.advance({round(due, 6):g})")
        if isinstance(self.queue, FaultyQueue) and self.queue.delayed:
            notes.append(f"  the queue keeps {len(self.queue.delayed)} pushes back")
        return "\n".join(notes)

    def leave(self) -> None:
        """End what the test has put in the way of a server that stops. For the kit."""
        if isinstance(self.queue, FaultyQueue):
            self.queue.heal()
        for client in self._clients:
            client.link.resume()


@asynccontextmanager
async def running(
    *,
    auth: AuthHook | None = None,
    rooms: RoomHook | None = None,
    sessions: SessionHook | None = None,
    messages: MessageHook | None = None,
    storage: StorageHook | None = None,
    options: Options | None = None,
    queue: Queue | None = None,
    clock: ManualClock | None = None,
    patience: float = 1.0,
    **settings: Any,
) -> AsyncIterator[App]:
    """The real pipeline with these hooks, on no socket and no port: ``async with running(...) as app:``.

    ``auth`` is :class:`~goim_core.OpenAuth` unless given, ``queue`` a :class:`FaultyQueue`, ``clock`` a
    :class:`ManualClock`. ``settings`` go to :class:`~goim_core.Server`. ``patience`` is how many
    real seconds :meth:`App.idle` waits for hooks that wait for the world outside.
    """
    clock = ManualClock() if clock is None else clock
    options = Options() if options is None else options
    queue = FaultyQueue(options.queue_size, clock) if queue is None else queue
    server = SocketlessServer(
        clock,
        auth=_AnyToken() if auth is None else auth,
        rooms=rooms,
        sessions=sessions,
        messages=messages,
        storage=storage,
        options=options,
        queue=queue,
        **settings,
    )
    server.app = app = App(server, clock, queue, patience)
    async with server:
        try:
            yield app
        finally:
            app.leave()


def _threads() -> int:
    return int(anyio.to_thread.current_default_thread_limiter().borrowed_tokens)
