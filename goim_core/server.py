"""The server: what an application creates. Builds the parts and owns their lives."""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import evolve

from goim_core import nodes
from goim_core.channel import Counters
from goim_core.clock import Clock, Deadlines, SystemClock
from goim_core.comet import Comet
from goim_core.discovery import Discovery, Node, StaticDiscovery
from goim_core.doors import Contexts, bind_doors, check_guarded, checked_doors
from goim_core.errors import ConfigurationError, Disconnect, ServerStopped
from goim_core.guard import Guard
from goim_core.hooks import AuthHook, Hook, MessageHook, RoomHook, SessionHook
from goim_core.http_api import PushAPI
from goim_core.http_door import Routes
from goim_core.http_routes import http_door
from goim_core.listener import Address
from goim_core.logic import Hooks, Logic
from goim_core.metrics import Instruments
from goim_core.operator_api import OperatorAPI
from goim_core.options import Options
from goim_core.overview import Overview
from goim_core.pipeline import Pipeline
from goim_core.presence import Presence
from goim_core.publisher import Publisher
from goim_core.queue import MemoryQueue, Queue
from goim_core.reactor import Reactor
from goim_core.registry import MemoryRegistry, Registry
from goim_core.stats import Stats
from goim_core.storage import StorageHook
from goim_core.task_reactor import new_reactor
from goim_core.taskgroup import leave
from goim_core.trace import Tracer
from goim_core.weigher import Weigher

__all__ = ["Server", "Stats"]

H = TypeVar("H", bound=Hook)

_log = logging.getLogger("goim_core.server")


class Server(Overview):
    """goim's pipeline in this process: ``async with Server(auth=..., ws="127.0.0.1:3102") as server:``.

    ``auth`` decides who may connect and has to be chosen; ``rooms``, ``sessions`` and ``messages`` are the
    other hooks, and ``storage`` keeps messages for users who are away. ``tcp``, ``tls``, ``ws``, ``wss``,
    ``http`` and ``https`` each take one address or several (see :data:`~goim_core.listener.Address`); those
    with TLS need ``ssl_context`` (:func:`~goim_core.tls.server_context` makes one). ``http`` and ``https``
    are the push API, and ``routes`` adds the application's own pages; ``http`` is on loopback unless its
    address names a host. Who pushes shows one of ``api_keys``, or at ``https`` a certificate that
    ``https_context`` asks for; a server with neither does not start where others than programs of this
    machine could push.
    ``queue`` and ``registry`` are in memory unless given, ``reactor`` and ``clock`` the system's. ``name`` is
    this node's, unique in a cluster; ``host`` the name or address at which clients are told to find it.
    ``discovery`` knows the other nodes, and needs ``host``; the others know this one by ``region``, ``zone``
    and ``weight``, which share of the clients it is to get.

    It runs inside the program's event loop, asyncio or trio, and runs once. Leaving the block stops it:
    it lets no one in any more, sends what was accepted, tells its clients and waits for hooks, all within
    ``options.drain`` seconds, and then closes its parts, each within as many.

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
        https: Address | Iterable[Address] = (),
        ssl_context: ssl.SSLContext | None = None,
        https_context: ssl.SSLContext | None = None,
        api_keys: Iterable[str] = (),
        routes: Routes | None = None,
        options: Options | None = None,
        queue: Queue | None = None,
        registry: Registry | None = None,
        discovery: Discovery | None = None,
        reactor: Callable[[], Reactor] = new_reactor,
        clock: Clock | None = None,
        name: str = "",
        host: str = "",
        region: str = "",
        zone: str = "",
        weight: int = 10,
    ) -> None:
        self.options = options = Options() if options is None else options
        self.name = name or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        if discovery is not None and not host:
            raise ConfigurationError("host: missing: discovery tells clients to connect there")
        self._node = Node(self.name, host=host, region=region, zone=zone, weight=weight)
        self._discovery = StaticDiscovery(()) if discovery is None else discovery
        self._weigher = Weigher()
        contexts = Contexts(ssl_context, https_context)
        self._doors = checked_doors(contexts, tcp=tcp, tls=tls, ws=ws, wss=wss, http=http, https=https)
        self._deadlines = self._new_deadlines(SystemClock() if clock is None else clock)
        self.instruments = Instruments(self._deadlines.clock.now)
        self._deadlines.on_tick = self.instruments.loop.observe
        self._tracer = Tracer(self._deadlines.clock)
        self._counters = Counters()
        self._comet = Comet(options.buckets, self._counters, Presence(self._deadlines))
        self._queue = MemoryQueue(options.queue_size) if queue is None else queue
        self._registry = MemoryRegistry() if registry is None else registry
        self._hooks: list[Hook] = []
        self._storage = None if storage is None else self._hook("storage", StorageHook, storage)  # type: ignore[type-abstract]
        hooks = Hooks(
            auth=self._hook("auth", AuthHook, auth),
            rooms=self._hook("rooms", RoomHook, rooms or RoomHook()),
            sessions=self._hook("sessions", SessionHook, sessions or SessionHook()),
            messages=self._hook("messages", MessageHook, messages or MessageHook()),
            storage=self._storage,
        )
        self._publisher = Publisher(
            self._queue,
            self._registry,
            self._storage,
            self._deadlines,
            options.hook_timeout,
            pushes=self.instruments.pushes,
        )
        self._logic = Logic(
            self.name,
            hooks=hooks,
            registry=self._registry,
            publisher=self._publisher,
            clock=self._deadlines.clock,
        )
        self._pipeline = Pipeline(
            comet=self._comet,
            logic=self._logic,
            publisher=self._publisher,
            queue=self._queue,
            registry=self._registry,
            discovery=self._discovery,
            http=http_door(PushAPI(self), OperatorAPI(self), routes or {}, Guard(api_keys), options),
            deadlines=self._deadlines,
            options=options,
            counters=self._counters,
            instruments=self.instruments,
            tracer=self._tracer,
            contexts=contexts,
            new_reactor=reactor,
        )
        self._listeners = self._pipeline.listeners
        self._tasks: TaskGroup | None = None
        self._running = False

    def _hook(self, argument: str, kind: type[H], hook: H | None) -> H:
        if hook is None:
            raise ConfigurationError(
                f"{argument}: choose who may connect: OpenAuth() ('open' on the command line) believes any "
                f"token and is for development; your own subclass of AuthHook decides by itself"
            )
        if not isinstance(hook, kind):
            raise ConfigurationError(
                f"{argument}: expected an instance of {kind.__name__}, got {type(hook).__name__}"
            )
        hook.server = self
        if hook not in self._hooks:  # one object may be several
            self._hooks.append(hook)
        return hook

    # Life.

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise ServerStopped("a Server runs once: make a new one to start again")
        sockets = bind_doors(self._doors, self.options.backlog)
        try:
            for door, sock in sockets:
                check_guarded(door, sock, self._pipeline.http.guard, self._pipeline.contexts)
            async with AsyncExitStack() as opened:
                for hook in self._hooks:
                    opened.push_async_callback(self._close, hook)
                    await hook.start()
                for part in (self._registry, self._queue):
                    opened.push_async_callback(self._close, part)
                    await part.start(self.name)
                self._node = evolve(self._node, addrs=nodes.listening(sockets, self._node.host))
                opened.push_async_callback(self._close, self._discovery)
                await self._discovery.start(self.node)
                # Whoever was cancelled meanwhile goes no further: half started it could not be stopped.
                await anyio.lowlevel.checkpoint_if_cancelled()
                await self._begin(sockets)
                self._opened = opened.pop_all()
        except BaseException:
            for _, sock in sockets:
                sock.close()
            raise
        self._running, self._started = True, self.clock.now()
        _log.info("listening: %s", self.addresses)
        return self

    async def _begin(self, sockets: list[tuple[str, socket.socket]]) -> None:
        self._tasks = await anyio.create_task_group().__aenter__()
        try:
            with anyio.CancelScope(shield=True):
                await self._tasks.start(self._pipeline.run, sockets)
        except BaseException as error:
            await leave(self._tasks, type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        self._node = evolve(self._node, draining=True)
        try:
            with anyio.CancelScope(shield=True):
                await self._stop()
        finally:
            self._running = False
            self._pipeline.end()
            try:
                ended = await leave(self._tasks, kind, error, trace)
            finally:
                await self._opened.aclose()
        return ended

    async def _close(self, part: Hook | Queue | Registry | Discovery) -> None:
        with anyio.move_on_after(self.options.drain, shield=True) as scope:
            await part.aclose()
        if scope.cancelled_caught:
            _log.error("%s.aclose took longer than %g s", type(part).__name__, self.options.drain)

    async def _stop(self) -> None:
        await self._pipeline.lead_away()
        self._running = False
        await self._pipeline.close()

    def hurry(self) -> None:
        """End a stop that is under way at once: nobody is waited for any more. Otherwise nothing happens."""
        if self._pipeline.stopping is not None:
            self._pipeline.stopping.hurry()

    def accept(self, sock: socket.socket, door: str = "tcp", address: str = "") -> None:
        """Take in a connected, non-blocking socket that somebody else has accepted.

        ``door`` is what it speaks: tcp, tls, ws, wss, http or https; ``address`` the peer's. The socket is
        the server's from now on. Raises :class:`~goim_core.errors.ServerStopped` outside the server's block,
        :class:`ValueError` for another door, and :class:`~goim_core.errors.ConfigurationError` for TLS
        without a context, and for a socket of the push API that is neither local nor guarded.
        """
        self._pushes()
        if self._pipeline.stopping is not None:
            raise ServerStopped("the server is stopping")
        if door not in self._doors:
            raise ValueError(f"door: expected one of {', '.join(self._doors)}; got {door!r:.80}")
        contexts = self._pipeline.contexts
        contexts.of(door)
        check_guarded(door, sock, self._pipeline.http.guard, contexts)
        self._pipeline.acceptor(door)(sock, address)

    def reload(
        self,
        *,
        options: Options | None = None,
        ssl_context: ssl.SSLContext | None = None,
        https_context: ssl.SSLContext | None = None,
        api_keys: Iterable[str] | None = None,
    ) -> None:
        """Change what is given while it runs: all of it, or nothing where this raises.

        Who is connected has the new limits and times from its next frame on, and keeps its TLS as it is; who
        connects from now on gets the new contexts. API keys are the new ones from the next request on.

        Raises :class:`~goim_core.errors.ConfigurationError` that names what cannot be, an option that cannot
        change (``backlog``, ``buckets``, ``queue_size``, ``ws_path``) for one, and
        :class:`~goim_core.errors.ServerStopped` outside the server's block.
        """
        self._pushes()
        now = self._pipeline.contexts
        contexts = Contexts(ssl_context or now.clients, https_context or now.pushers)
        guard = self._pipeline.http.guard if api_keys is None else Guard(api_keys)
        options = options or self.options
        self._pipeline.reload(options, contexts, guard)
        self.options = options

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

    # Nodes.

    async def drain(self, draining: bool = True) -> None:
        """Get no more clients from node lists, and keep those that are here; or get some again.

        Raises :class:`~goim_core.errors.BackboneError` when the other nodes could not be told now: they
        will be, as soon as they can.
        """
        self._node = evolve(self._node, draining=draining)
        await self._discovery.update()
