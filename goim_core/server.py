"""The server: what an application creates. Builds the parts and owns their lives."""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
from collections.abc import Iterable, Mapping
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup, TaskStatus
from attrs import frozen

from goim_core.channel import Counters
from goim_core.clock import Clock, Deadlines, SystemClock
from goim_core.comet import Comet
from goim_core.connection import Connection, Edge, Stage
from goim_core.conversation import Conversation
from goim_core.errors import CloseCode, ConfigurationError, Disconnect, ServerStopped
from goim_core.flow import Exchanges
from goim_core.hooks import AuthHook, Hook, MessageHook, SessionHook
from goim_core.http_api import PushAPI
from goim_core.http_door import HTTPDoor, Routes
from goim_core.job import Job
from goim_core.listener import Accept, Address, Listener, bind, parse_address
from goim_core.logic import Logic
from goim_core.options import Options
from goim_core.queue import MemoryQueue, Queue
from goim_core.reactor import new_reactor
from goim_core.registry import MemoryRegistry, Registry
from goim_core.tls import TLSSocket
from goim_core.websocket import WebSocketWire
from goim_core.wire import TCPWire, Wire

__all__ = ["Server", "Stats"]

H = TypeVar("H", bound=Hook)

BACKOFF = {"max_delay": 300, "base_delay": 3, "factor": 1.8, "jitter": 0.3}
"""How clients are told to wait between tries, in seconds: goim's example values."""

_log = logging.getLogger("goim_core.server")


@frozen
class Stats:
    """A server's figures at one moment.

    ``connections`` are all open sockets of clients, ``users`` those that are authenticated; ``opened`` and
    ``deliveries`` count since the start, as do ``drops`` (messages by reason) and ``closes`` (connections
    by close code); ``pending`` is how many pushes are accepted and not yet sent.
    """

    connections: int
    users: int
    addresses: int
    rooms: int
    opened: int
    deliveries: int
    pending: int
    drops: Mapping[str, int]
    closes: Mapping[int, int]


class Server:
    """goim's pipeline in this process: ``async with Server(auth=..., ws="127.0.0.1:3102") as server:``.

    ``auth`` decides who may connect and has to be chosen; ``sessions`` and ``messages`` are the other
    hooks. ``tcp``, ``tls``, ``ws``, ``wss`` and ``http`` each take one address or several (see
    :data:`~goim_core.listener.Address`); ``tls`` and ``wss`` need ``ssl_context``. ``http`` is the push
    API, on loopback unless its address names a host; ``routes`` adds the application's own pages to it.
    ``queue`` and ``registry`` are in memory unless given. ``name`` is this node's, unique in a cluster;
    ``host`` is the name or address at which clients are told to find it.

    It runs inside the program's event loop, asyncio or trio, and runs once. Leaving the block stops it:
    it lets no one in any more, sends what was accepted, tells its clients, waits for hooks, and closes,
    within ``options.drain`` seconds.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument; on entering, OSError
    that names the address it cannot listen on.
    """

    def __init__(
        self,
        *,
        auth: AuthHook | None = None,
        sessions: SessionHook | None = None,
        messages: MessageHook | None = None,
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
        clock: Clock | None = None,
        name: str = "",
        host: str = "",
    ) -> None:
        self.options = options = Options() if options is None else options
        self.name = name or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._host = host
        self._ssl_context = ssl_context
        self._doors = _checked_doors(ssl_context, tcp=tcp, tls=tls, ws=ws, wss=wss, http=http)
        self._deadlines = Deadlines(SystemClock() if clock is None else clock)
        self._counters = Counters()
        self._comet = Comet(options.buckets, self._counters)
        self._queue = MemoryQueue(options.queue_size) if queue is None else queue
        self._registry = MemoryRegistry() if registry is None else registry
        self._logic = Logic(
            self.name,
            comet=self._comet,
            registry=self._registry,
            queue=self._queue,
            auth=self._hook("auth", AuthHook, auth),
            sessions=self._hook("sessions", SessionHook, sessions or SessionHook()),
            messages=self._hook("messages", MessageHook, messages or MessageHook()),
        )
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
        sockets = self._bind()
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

    def _bind(self) -> list[tuple[str, socket.socket]]:
        sockets: list[tuple[str, socket.socket]] = []
        try:
            for door, addresses in self._doors.items():
                for address in addresses:
                    sockets += [(door, sock) for sock in bind(door, address, self.options.backlog)]
        except BaseException:
            for _, sock in sockets:
                sock.close()
            raise
        return sockets

    async def _run(self, sockets: list[tuple[str, socket.socket]], *, task_status: TaskStatus[None]) -> None:
        options, deadlines = self.options, self._deadlines
        self._reactor = new_reactor()
        # Shielded: when the program around is cancelled, stopping still needs all of this to go on.
        with anyio.CancelScope(shield=True) as self._scope:
            async with anyio.create_task_group() as tasks:
                exchanges = Exchanges(tasks, deadlines, options.max_hooks, options.hook_timeout)
                self._edge = Edge(
                    self._comet, self._logic, exchanges, self._reactor, deadlines, options, self._counters
                )
                for door, sock in sockets:
                    listener = Listener(sock, self._acceptor(door, tasks), self._reactor, deadlines)
                    self._listeners.setdefault(door, []).append(listener)
                tasks.start_soon(deadlines.run)
                tasks.start_soon(self._reactor.run)
                tasks.start_soon(Job(self._queue, self._comet, deadlines.clock, options).run)
                task_status.started()
        self._reactor.close()
        await self._queue.aclose()
        await self._registry.aclose()

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
        with self._deadlines.move_on_after(self.options.drain / 2):
            self._edge.empty = anyio.Event()
            for connection in self._connections():
                connection.close(Disconnect("the server is stopping", CloseCode.GOING_AWAY))
                await anyio.lowlevel.checkpoint()
            if self._connections():
                await self._edge.empty.wait()
            await self._edge.exchanges.idle()
        for connection in self._connections():
            connection.lost(ConnectionAbortedError("the server has stopped"))

    def _connections(self) -> list[Connection]:
        return [source for source in self._reactor.sources() if isinstance(source, Connection)]

    @property
    def addresses(self) -> dict[str, list[tuple[str, int] | str]]:
        """Where each door listens: ``(host, port)``, or the path of a Unix socket. Empty before the start."""
        return {
            door: [listener.address for listener in listeners] for door, listeners in self._listeners.items()
        }

    # Pushes.

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to the connections with these keys that accept ``op``; see :class:`~goim_core.hooks.Pusher`.

        All pushes raise :class:`ValueError` that names the argument, and
        :class:`~goim_core.errors.ServerStopped` outside the server's block.
        """
        await self._pushes().push_keys(keys, op, body, nowait=nowait)

    async def push_mids(self, mids: Iterable[int], op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to every connection of these users that accepts ``op``."""
        await self._pushes().push_mids(mids, op, body, nowait=nowait)

    async def push_room(self, room_id: str, op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to every connection in the room ``type://id``."""
        await self._pushes().push_room(room_id, op, body, nowait=nowait)

    async def push_all(self, op: int, body: bytes, *, speed: int = 0, nowait: bool = False) -> None:
        """Push to every connection that accepts ``op``, at ``speed`` connections a second (0: at once)."""
        await self._pushes().push_all(op, body, speed=speed, nowait=nowait)

    def _pushes(self) -> Logic:
        if not self._running:
            raise ServerStopped("the server is not running")
        return self._logic

    # Figures.

    def online_top(self, kind: str, limit: int) -> list[tuple[str, int]]:
        """The rooms ``kind://id`` with the most connections: id and count, largest first."""
        return self._logic.online_top(kind, limit)

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        """How many connections are in each of these rooms."""
        return self._logic.online_rooms(room_ids)

    def online_total(self) -> tuple[int, int]:
        """How many addresses, and how many connections."""
        return self._logic.online_total()

    def stats(self) -> Stats:
        """The server's figures now."""
        counters, comet = self._counters, self._comet
        return Stats(
            connections=counters.opened - counters.closed,
            users=len(comet.buckets),
            addresses=len(comet.addresses),
            rooms=len(comet.rooms),
            opened=counters.opened,
            deliveries=counters.deliveries,
            pending=self._queue.pending,
            drops=dict(counters.drops),
            closes=dict(counters.closes),
        )

    def nodes_weighted(self, platform: str, address: str) -> dict[str, Any]:
        """Where clients shall connect, in the shape of goim's ``/goim/nodes/weighted``. Times in seconds.

        One node has nothing to weigh: it names itself, by ``host`` where that is given.
        """
        host = self._host
        return {
            "domain": host if platform == "web" else "",
            "tcp_port": self._port("tcp"),
            "ws_port": self._port("ws"),
            "wss_port": self._port("wss"),
            "heartbeat": int(self.options.heartbeat),
            "heartbeat_max": self.options.heartbeat_max,
            "nodes": [host] if host else [],
            "backoff": BACKOFF,
        }

    def nodes_instances(self) -> list[dict[str, Any]]:
        """The nodes there are, in the shape of goim's ``/goim/nodes/instances``: this one."""
        addresses = [
            f"{door}://{address}" if isinstance(address, str) else f"{door}://{address[0]}:{address[1]}"
            for door, listening in self.addresses.items()
            for address in listening
        ]
        ips, connections = self.online_total()
        metadata = {"conn_count": str(connections), "ip_count": str(ips), "addrs": self._host}
        return [
            {
                "appid": "goim.comet",
                "hostname": self.name,
                "addrs": addresses,
                "status": 1,
                "metadata": metadata,
            }
        ]

    def _port(self, door: str) -> int:
        return next((a[1] for a in self.addresses.get(door, ()) if not isinstance(a, str)), 0)


def _checked_doors(
    ssl_context: ssl.SSLContext | None, **doors: Address | Iterable[Address]
) -> dict[str, list[Address]]:
    checked = {}
    for door, value in doors.items():
        addresses: list[Any] = [value] if _is_address(value) else list(value)  # type: ignore[arg-type]
        for index, address in enumerate(addresses):
            parsed = parse_address(door, address)
            if door == "http" and isinstance(parsed, tuple) and not parsed[0]:
                addresses[index] = ("localhost", parsed[1])
        if addresses and door in ("tls", "wss") and ssl_context is None:
            raise ConfigurationError(f"ssl_context: expected an ssl.SSLContext, which {door} needs")
        checked[door] = addresses
    return checked


def _is_address(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[1], int)
    return isinstance(value, str | PathLike)
