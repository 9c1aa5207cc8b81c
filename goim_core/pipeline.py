"""A server at work: its sockets and its tasks."""

from __future__ import annotations

import socket
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup, TaskStatus
from attrs import define, field

from goim_core.admission import Admission, Seats, turn_away
from goim_core.budget import Budget
from goim_core.census import Census
from goim_core.channel import Counters
from goim_core.clock import Deadlines
from goim_core.comet import Comet
from goim_core.conversation import Conversation, taken_over
from goim_core.discovery import Discovery
from goim_core.doors import TLS_DOORS, Contexts, check_guarded
from goim_core.edge import Edge
from goim_core.errors import ConfigurationError
from goim_core.exchanges import Exchanges
from goim_core.guard import Guard
from goim_core.handshake import Terms
from goim_core.http_door import HTTPDoor
from goim_core.job import Job
from goim_core.listener import Accept, Listener
from goim_core.logic import Logic
from goim_core.metrics import Instruments
from goim_core.operations import Operations
from goim_core.options import FIXED, Options
from goim_core.parts import kept_running
from goim_core.pressure import Pressure
from goim_core.publisher import Publisher
from goim_core.queue import Queue
from goim_core.reactor import Reactor
from goim_core.registry import Registry
from goim_core.senders import Senders, other_cores
from goim_core.session import Session
from goim_core.shards import Tally
from goim_core.stage import Stage
from goim_core.stopping import Stopping
from goim_core.tls import TLSSocket
from goim_core.trace import Tracer
from goim_core.unfinished import Unfinished
from goim_core.websocket import WebSocketWire
from goim_core.wire import TCPWire, Wire

__all__ = ["Pipeline"]

HTTP_DOORS = ("http", "https")


@define(eq=False, kw_only=True)
class Pipeline:
    """What runs while a server does. :class:`goim_core.Server` makes it, and has the parts."""

    comet: Comet
    logic: Logic
    publisher: Publisher
    queue: Queue
    registry: Registry
    discovery: Discovery
    http: HTTPDoor
    deadlines: Deadlines
    options: Options
    counters: Counters
    instruments: Instruments
    tracer: Tracer
    contexts: Contexts
    new_reactor: Callable[[], Reactor]
    listeners: dict[str, list[Listener]] = field(init=False, factory=dict)
    edge: Edge = field(init=False)
    _seats: Seats = field(init=False)
    _pressure: Pressure = field(init=False)
    _census: Census = field(init=False)
    _job: Job = field(init=False)
    stopping: Stopping | None = field(init=False, default=None)
    _scope: anyio.CancelScope = field(init=False)
    _tasks: TaskGroup = field(init=False)
    _terms: Terms = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._terms = _terms_of(self.options)

    async def run(self, sockets: list[tuple[str, socket.socket]], *, task_status: TaskStatus[None]) -> None:
        """Serve what comes in at ``sockets``, each with the name of its door, until :meth:`end`."""
        options, deadlines, reactor = self.options, self.deadlines, self.new_reactor()
        sealed = any(door in TLS_DOORS for door, _ in sockets)
        if sockets and not sealed:
            self.comet.senders = Senders(min(options.send_threads, other_cores()))
        self.registry.on_replaced = self._replaced
        if type(self.registry).held is Registry.held:
            self.comet.users = Tally()
        # Shielded: when the program around is cancelled, stopping still needs all of this to go on.
        with anyio.CancelScope(shield=True) as self._scope:
            async with anyio.create_task_group() as self._tasks:
                self.edge = Edge(
                    comet=self.comet,
                    logic=self.logic,
                    operations=Operations(self.comet, self.logic, options),
                    exchanges=Exchanges(
                        self._tasks,
                        deadlines,
                        options.max_hooks,
                        options.hook_timeout,
                        self.instruments.hooks,
                    ),
                    reactor=reactor,
                    deadlines=deadlines,
                    options=options,
                    counters=self.counters,
                    tracer=self.tracer,
                    admission=Admission(self.counters, deadlines.clock, options),
                    budget=Budget(self.counters, deadlines, options, reactor.again),
                    unfinished=Unfinished(self.counters, options),
                )
                self._seats = Seats(self.counters, self.edge.admission, options, self.http.make_way)
                self._pressure = Pressure(self.counters, reactor, self._connections, options)
                self._bound_http(options)
                for door, sock in sockets:
                    room = (self._seats if door in HTTP_DOORS else self.edge.admission).room
                    listener = Listener(sock, self.acceptor(door), reactor, deadlines, room)
                    self.listeners.setdefault(door, []).append(listener)
                self._tasks.start_soon(deadlines.run)
                self._tasks.start_soon(reactor.run)
                for part in (self.queue, self.registry, self.discovery):
                    name = f"{type(part).__name__}.run"
                    self._tasks.start_soon(kept_running, name, part.run, deadlines.clock)
                self._census = Census(self.comet, self.registry, deadlines.clock, options.census)
                self._job = Job(self.queue, self.comet, deadlines.clock, options, self.instruments.batches)
                self._tasks.start_soon(self._census.run)
                self._tasks.start_soon(self._job.run)
                task_status.started()
        reactor.close()
        self.comet.senders.close()

    def reload(self, options: Options, contexts: Contexts, guard: Guard) -> None:
        """See :meth:`goim_core.Server.reload`."""
        for door, listeners in self.listeners.items():
            for listener in [each for each in listeners if each.open]:
                check_guarded(door, listener.sock, guard, contexts)
        for name in FIXED:
            now, wanted = getattr(self.options, name), getattr(options, name)
            if now != wanted:
                raise ConfigurationError(f"{name}: it is {now!r} while the server runs, got {wanted!r}")
        self.contexts, self.http.guard = contexts, guard
        self.options = self._job.options = options
        self.edge.reload(options)
        self.publisher.timeout = options.hook_timeout
        self._census.interval = options.census
        self._terms = _terms_of(options)
        self._pressure.reload(options)
        self._bound_http(options)
        for connection in self._connections():
            connection.wire.bound(options.max_body)

    def _connections(self) -> list[Conversation]:
        return [source for source in self.edge.reactor.sources() if isinstance(source, Conversation)]

    def _bound_http(self, options: Options) -> None:
        http = self.http
        http.max_body, http.max_header = options.http_max_body, options.http_max_header
        http.timeout, http.idle = options.http_timeout, options.http_idle
        http.refusals = self.counters.refusals
        self._seats.most = options.http_max_connections

    def end(self) -> None:
        """Cancel whatever is left."""
        self._scope.cancel()

    def acceptor(self, door: str) -> Accept:
        """What becomes of a socket that comes in at ``door``."""
        edge = self.edge
        websocket, tls = door in ("ws", "wss"), door in TLS_DOORS
        stage = Stage.HANDSHAKE if websocket else Stage.AUTH

        def secured(sock: socket.socket) -> TLSSocket:
            context = self.contexts.of(door)
            assert context is not None
            return TLSSocket(sock, context)

        def accept_http(sock: socket.socket, address: str) -> None:
            if self._seats.take(address):
                self._tasks.start_soon(self._serve_http, secured(sock) if tls else sock, door, address)
            else:
                turn_away(sock, door)

        def accept(sock: socket.socket, address: str) -> None:
            if edge.admission.refusal(address):
                turn_away(sock, door)
                return
            wire: Wire = WebSocketWire(self._terms) if websocket else TCPWire(edge.options.max_body)
            Conversation.open(secured(sock) if tls else sock, wire, edge, stage, address)

        return accept_http if door in HTTP_DOORS else accept

    async def _serve_http(self, sock: socket.socket | TLSSocket, door: str, address: str) -> None:
        try:
            await self.http.serve(sock, certified=door == "https" and self.contexts.certified)
        finally:
            if self._seats.leave(address):
                for name in HTTP_DOORS:
                    for listener in self.listeners.get(name, ()):
                        listener.on_turn()

    def _replaced(self, session: Session) -> None:
        channel = self.comet.buckets.get(session.key)
        if channel is not None and channel.session is session:
            channel.port.close(taken_over())

    # The end.

    async def lead_away(self) -> None:
        """Begin to stop: see :meth:`Stopping.lead_away`."""
        self.stopping = Stopping(self.edge, self.queue, self.discovery, self.listeners)
        await self.stopping.lead_away()

    async def close(self) -> None:
        """Stop: see :meth:`Stopping.close`."""
        assert self.stopping is not None
        await self.stopping.close()


def _terms_of(options: Options) -> Terms:
    terms = Terms(path=options.ws_path, origins=options.origins)
    terms.bound(options.max_body)
    return terms
