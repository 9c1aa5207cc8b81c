"""The server: what an application creates. Builds the parts and owns their lives."""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup, TaskStatus

from goim_core import nodes
from goim_core.channel import Counters
from goim_core.clock import Clock, Deadlines, SystemClock
from goim_core.comet import Comet
from goim_core.connection import Connection, Edge, Stage
from goim_core.conversation import Conversation
from goim_core.doors import bind_doors, checked_doors
from goim_core.errors import CloseCode, ConfigurationError, Disconnect, ServerStopped
from goim_core.flow import Exchanges
from goim_core.hooks import AuthHook, Hook, MessageHook, RoomHook, SessionHook
from goim_core.http_api import PushAPI
from goim_core.http_door import HTTPDoor, Routes
from goim_core.job import Job
from goim_core.listener import Accept, Address, Listener
from goim_core.logic import Hooks, Logic
from goim_core.operations import Operations
from goim_core.options import Options
from goim_core.presence import Presence
from goim_core.publisher import Publisher
from goim_core.queue import MemoryQueue, Queue
from goim_core.reactor import Reactor, new_reactor
from goim_core.registry import MemoryRegistry, Registry
from goim_core.session import Session
from goim_core.stats import Stats, read_stats
from goim_core.storage import StorageHook
from goim_core.tls import TLSSocket
from goim_core.websocket import WebSocketWire
from goim_core.wire import TCPWire, Wire

__all__ = ["Server", "Stats"]

H = TypeVar("H", bound=Hook)

_LAST_TURNS = 4
"""How often hooks that hang are cut short when the server stops, each in turn."""

_log = logging.getLogger("goim_core.server")


class Server:
    """goim's pipeline in this process: ``async with Server(auth=..., ws="127.0.0.1:3102") as server:``.

    ``auth`` decides who may connect and has to be chosen; ``rooms``, ``sessions`` and ``messages`` are the
    other hooks, and ``storage`` keeps messages for users who are away. ``tcp``, ``tls``, ``ws``, ``wss`` and
    ``http`` each take one address or several (see :data:`~goim_core.listener.Address`); ``tls`` and ``wss``
    need ``ssl_context``. ``http`` is the push API, on loopback unless its address names a host; ``routes``
    adds the application's own pages to it. ``queue`` and ``registry`` are in memory unless given, ``reactor``
    and ``clock`` the system's. ``name`` is this node's, unique in a cluster; ``host`` the name or address at
    which clients are told to find it.

    It runs inside the program's event loop, asyncio or trio, and runs once. Leaving the block stops it:
    it lets no one in any more, sends what was accepted, tells its clients, waits for hooks, and closes,
    within ``options.drain`` seconds.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument; on entering, OSError
    that names the address it cannot listen on.
    """

    _new_deadlines: Callable[[Clock], Deadlines] = Deadlines

    def __init__(
        self,
        *,
        auth: AuthHook | None = None,
        rooms: RoomHook | None = None,
        sessions: SessionHook | None = None,
        messages: MessageHook | None = None,
        storage: StorageHook | None = None,
        tcp: Address | Iterable[Address] = (),
        tls: Address | Iterable[Address] = (),
        ws: Address | Iterable[Address] = (),
        wss: Address | Iterable[Address] = (),
        http: Address | Iterable[Address] = (),
        ssl_context: ssl.SSLContext | None = None,
        routes: Routes | None = None,
        options: Options | None = None,
        queue: Queue | None = None,
        registry: Registry | None = None,
        reactor: Callable[[], Reactor] = new_reactor,
        clock: Clock | None = None,
        name: str = "",
        host: str = "",
    ) -> None:
        self.options = options = Options() if options is None else options
        self.name = name or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._host = host
        self._ssl_context = ssl_context
        self._doors = checked_doors(ssl_context, tcp=tcp, tls=tls, ws=ws, wss=wss, http=http)
        self._deadlines = self._new_deadlines(SystemClock() if clock is None else clock)
        self._counters = Counters()
        self._comet = Comet(options.buckets, self._counters, Presence(self._deadlines))
        self._queue = MemoryQueue(options.queue_size) if queue is None else queue
        self._registry = MemoryRegistry() if registry is None else registry
        self._storage = None if storage is None else self._hook("storage", StorageHook, storage)  # type: ignore[type-abstract]
        hooks = Hooks(
            auth=self._hook("auth", AuthHook, auth),
            rooms=self._hook("rooms", RoomHook, rooms or RoomHook()),
            sessions=self._hook("sessions", SessionHook, sessions or SessionHook()),
            messages=self._hook("messages", MessageHook, messages or MessageHook()),
            storage=self._storage,
        )
        self._publisher = Publisher(
            self._queue, self._registry, self._storage, self._deadlines, options.hook_timeout
        )
        self._logic = Logic(
            self.name,
            hooks=hooks,
            registry=self._registry,
            publisher=self._publisher,
            clock=self._deadlines.clock,
        )
        self._new_reactor = reactor
        self._http = HTTPDoor({**PushAPI(self).routes, **(routes or {})}, max_body=options.http_max_body)
        self._listeners: dict[str, list[Listener]] = {}
        self._tasks: TaskGroup | None = None
        self._running = False

    def _hook(self, argument: str, kind: type[H], hook: H | None) -> H:
        if hook is None:
            raise ConfigurationError(
                f"{argument}: choose who may connect: OpenAuth() ('open' on the command line) believes any "
                f"token and is for development; your own subclass of AuthHook decides by itself"
            )
        if not isinstance(hook, kind):
            raise ConfigurationError(f"{argument}: expected an instance of {kind.__name__}, got {hook!r}")
        hook.server = self
        return hook

    # Life.

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise ServerStopped("a Server runs once: make a new one to start again")
        sockets = bind_doors(self._doors, self.options.backlog)
        try:
            if self._storage is not None:
                await self._storage.start()
        except BaseException:
            for _, sock in sockets:
                sock.close()
            raise
        self._tasks = await anyio.create_task_group().__aenter__()
        await self._tasks.start(self._run, sockets)
        self._running = True
        _log.info("listening: %s", self.addresses)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        self._running = False
        with anyio.CancelScope(shield=True):
            await self._stop()
        self._scope.cancel()
        # What the block raised comes out as it went in: a task group would wrap it, trio's even a copy.
        if isinstance(error, Exception):
            await self._tasks.__aexit__(None, None, None)
            return False
        try:
            return await self._tasks.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if group.exceptions == (error,):
                return False
            raise

    async def _run(self, sockets: list[tuple[str, socket.socket]], *, task_status: TaskStatus[None]) -> None:
        options, deadlines = self.options, self._deadlines
        self._reactor = self._new_reactor()
        # Shielded: when the program around is cancelled, stopping still needs all of this to go on.
        with anyio.CancelScope(shield=True) as self._scope:
            async with anyio.create_task_group() as tasks:
                exchanges = Exchanges(tasks, deadlines, options.max_hooks, options.hook_timeout)
                self._edge = Edge(
                    comet=self._comet,
                    logic=self._logic,
                    operations=Operations(self._comet, self._logic, options.max_rooms),
                    exchanges=exchanges,
                    reactor=self._reactor,
                    deadlines=deadlines,
                    options=options,
                    counters=self._counters,
                )
                self._accepts = {door: self._acceptor(door, tasks) for door in self._doors}
                for door, sock in sockets:
                    listener = Listener(sock, self._accepts[door], self._reactor, deadlines)
                    self._listeners.setdefault(door, []).append(listener)
                tasks.start_soon(deadlines.run)
                tasks.start_soon(self._reactor.run)
                tasks.start_soon(Job(self._queue, self._comet, deadlines.clock, options).run)
                task_status.started()
        self._reactor.close()
        await self._queue.aclose()
        await self._registry.aclose()
        if self._storage is not None:
            await self._storage.aclose()

    def _acceptor(self, door: str, tasks: TaskGroup) -> Accept:
        """What becomes of a socket that comes in at ``door``."""
        options, edge, context = self.options, self._edge, self._ssl_context

        def new_wire() -> Wire:
            if door in ("ws", "wss"):
                return WebSocketWire(options.max_body, options.ws_path)
            return TCPWire(options.max_body)

        def accept_http(sock: socket.socket, _: str) -> None:
            tasks.start_soon(self._http.serve, sock)

        def accept(sock: socket.socket, address: str) -> None:
            stage = Stage.HANDSHAKE if door in ("ws", "wss") else Stage.AUTH
            secured = TLSSocket(sock, context) if door in ("tls", "wss") and context is not None else sock
            Conversation.open(secured, new_wire(), edge, stage, address)

        return accept_http if door == "http" else accept

    async def _stop(self) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.close()
        # Half of the time for the pushes: one that goes out slowly must not keep clients from being told.
        with self._deadlines.move_on_after(self.options.drain / 2):
            await self._queue.drain()
        with self._deadlines.move_on_after(self.options.drain * 3 / 8):
            self._edge.empty = anyio.Event()
            for connection in self._connections():
                connection.close(Disconnect("the server is stopping", CloseCode.GOING_AWAY))
                await anyio.lowlevel.checkpoint()
            if self._connections():
                await self._edge.empty.wait()
            await self._edge.exchanges.idle()
        for connection in self._connections():
            connection.lost(ConnectionAbortedError("the server has stopped"))
        # A hook that hangs is cut short, and then the one that hears of the end has its turn.
        for _ in range(_LAST_TURNS):
            self._edge.exchanges.abort()
            with self._deadlines.move_on_after(self.options.drain / 8 / _LAST_TURNS):
                await self._edge.exchanges.idle()
                break

    def _connections(self) -> list[Connection]:
        return [source for source in self._reactor.sources() if isinstance(source, Connection)]

    @property
    def addresses(self) -> dict[str, list[tuple[str, int] | str]]:
        """Where each door listens: ``(host, port)``, or the path of a Unix socket. Empty before the start."""
        return {
            door: [listener.address for listener in listeners] for door, listeners in self._listeners.items()
        }

    def accept(self, sock: socket.socket, door: str = "tcp", address: str = "") -> None:
        """Take in a connected, non-blocking socket that somebody else has accepted.

        ``door`` is what it speaks: tcp, tls, ws, wss or http; ``address`` the peer's. The socket is the
        server's from now on. Raises :class:`~goim_core.errors.ServerStopped` outside the server's block.
        """
        self._pushes()
        self._accepts[door](sock, address)

    @property
    def clock(self) -> Clock:
        """The server's clock."""
        return self._deadlines.clock

    # Pushes.

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to the connections with these keys that accept ``op``; see :class:`~goim_core.hooks.Pusher`.

        All pushes raise :class:`ValueError` that names the argument, and
        :class:`~goim_core.errors.ServerStopped` outside the server's block.
        """
        await self._pushes().push_keys(keys, op, body, nowait=nowait)

    async def push_mids(
        self, mids: Iterable[int], op: int, body: bytes, *, nowait: bool = False, idempotency_key: str = ""
    ) -> None:
        """Push to every connection of these users that accepts ``op``.

        With a storage the message is stored first; raises :class:`~goim_core.errors.StorageError` when that
        failed. Tried again with the same ``idempotency_key`` it is stored once.
        """
        await self._pushes().push_mids(mids, op, body, nowait=nowait, idempotency_key=idempotency_key)

    async def push_room(self, room_id: str, op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to every connection in the room ``type://id``."""
        await self._pushes().push_room(room_id, op, body, nowait=nowait)

    async def push_all(self, op: int, body: bytes, *, speed: int = 0, nowait: bool = False) -> None:
        """Push to every connection that accepts ``op``, at ``speed`` connections a second (0: at once)."""
        await self._pushes().push_all(op, body, speed=speed, nowait=nowait)

    async def disconnect_keys(self, keys: Iterable[str], why: Disconnect) -> None:
        """Tell the connections with these keys why, and close them."""
        await self._pushes().disconnect_keys(keys, why)

    async def disconnect_mids(self, mids: Iterable[int], why: Disconnect) -> None:
        """Tell every connection of these users why, and close them."""
        await self._pushes().disconnect_mids(mids, why)

    def _pushes(self) -> Publisher:
        if not self._running:
            raise ServerStopped("the server is not running")
        return self._publisher

    # Figures.

    def online_top(self, kind: str, limit: int) -> list[tuple[str, int]]:
        """The rooms ``kind://id`` with the most connections: id and count, largest first."""
        return self._comet.online_top(kind, limit)

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        """How many connections are in each of these rooms."""
        return {room_id: self._comet.online(room_id) for room_id in room_ids}

    def online_total(self) -> tuple[int, int]:
        """How many addresses, and how many connections."""
        return len(self._comet.addresses), len(self._comet.buckets)

    def members(self, room_id: str, *, offset: int = 0, limit: int = 100) -> list[Session]:
        """Who is in the room on this node, in the order they came: at most ``limit`` after ``offset``."""
        return self._comet.members(room_id, offset, limit)

    def stats(self) -> Stats:
        """The server's figures now."""
        return read_stats(self._counters, self._comet, self._queue)

    def nodes_weighted(self, platform: str, address: str) -> dict[str, Any]:
        """Where clients shall connect: see :func:`goim_core.nodes.weighted`."""
        return nodes.weighted(self._host, self.addresses, self.options, platform)

    def nodes_instances(self) -> list[dict[str, Any]]:
        """The nodes there are: see :func:`goim_core.nodes.instances`."""
        ips, connections = self.online_total()
        return nodes.instances(self.name, self._host, self.addresses, ips, connections)
