"""What the hot paths cost, counted instead of timed: the same figures on any machine, busy or not.

Counted are system calls (by the method that makes them), calls of functions, bytecode instructions, and bytes. A bound is what the path takes today, some hundredths more of
instructions, of which Python 3.11 needs the most. So one more call in a path fails here. What they are in
microseconds is in docs/performance.md; a change that costs more has to show that it pays.
"""

from __future__ import annotations

import gc
import json
import logging
import select
import socket
import struct
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from attrs import Factory, define

import goim_core
from goim_core import OpenAuth, Server
from goim_core.clock import Deadlines, SystemClock
from goim_core.exchanges import Exchanges
from goim_core.flow import Flow, settle
from goim_core.protocol import Op, encode
from goim_core.wire import Packet

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="epoll's calls are counted"),
]

ROOM = "live://1"
KINDS = ("tcp", "ws")
OURS = (str(Path(goim_core.__file__).parent), "<attrs generated")
FREE = {"fileno", "gettimeout", "detach"}
"""Methods that ask the kernel nothing."""
SOCKET: type = socket.socket.__mro__[1]  # the class in C, which has the methods


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def ours(frame: FrameType | None) -> bool:
    """Whether it runs the library's code: what anyio and asyncio call among themselves is theirs."""
    return frame is not None and frame.f_code.co_filename.startswith(OURS)


def looping(frame: FrameType) -> bool:
    """Whether it runs the event loop's code."""
    return Path(frame.f_code.co_filename).parent.name == "asyncio" or "selectors" in frame.f_code.co_filename


@define
class Cost:
    """What was counted: system calls, and calls by the library, of Python and of C; all instructions."""

    system: Counter[str] = Factory(Counter)
    loop: Counter[str] = Factory(Counter)
    """System calls of the event loop's own."""
    python: int = 0
    c: int = 0
    instructions: int = 0

    def on_call(self, frame: FrameType, event: str, what: Any) -> None:
        if event == "call":
            self.python += ours(frame) or ours(frame.f_back)
        elif event == "c_call":
            self.c += ours(frame)
            owner = getattr(what, "__self__", None)
            if isinstance(owner, SOCKET | select.epoll) and what.__name__ not in FREE:
                (self.loop if looping(frame) else self.system)[what.__name__] += 1

    def on_instruction(self, *_: object) -> None:
        self.instructions += 1

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self.instructions += event == "opcode"
        return self.trace


@contextmanager
def counted(*, instructions: bool = False) -> Iterator[Cost]:
    """Counts what this thread does in the block: calls, or instructions."""
    cost = Cost()
    gc.disable()  # a collection may call finalizers
    try:
        with stepping(cost) if instructions else profiling(cost):
            yield cost
    finally:
        gc.enable()


@contextmanager
def profiling(cost: Cost) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(cost.on_call)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextmanager
def stepping(cost: Cost) -> Iterator[None]:
    if sys.version_info < (3, 12):
        before = sys.gettrace()
        sys.settrace(cost.trace)
        try:
            yield
        finally:
            sys.settrace(before)
        return
    monitoring, tool = sys.monitoring, 4
    monitoring.use_tool_id(tool, "test_costs")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, cost.on_instruction)
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)


def _idle(*, instructions: bool) -> Cost:
    with counted(instructions=instructions) as cost:
        pass
    return cost


class Wire:
    """A server whose turns a test takes itself, and clients in the same thread."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.reactor: Any = server._pipeline.edge.reactor
        self.clients: list[socket.socket] = []

    def turn(self) -> None:
        """Serve what a client has sent, which has to be there before long."""
        assert select.select([self.reactor._poller], [], [], 5)[0]
        self.reactor._turn()

    def connect(self, kind: str, turn: Callable[[], None] | None = None) -> socket.socket:
        """A client that is let in; ``turn`` is what serves it."""
        turn = turn or self.turn
        client = socket.create_connection(("127.0.0.1", self.server.port(kind)), timeout=5)
        self.clients.append(client)
        turn()
        if kind == "ws":
            client.sendall(UPGRADE)
            turn()
            assert client.recv(4096).startswith(b"HTTP/1.1 101")
        client.sendall(sent(kind, Op.AUTH, token(1000 + len(self.clients))))
        turn()
        assert client.recv(4096).endswith(encode(Op.AUTH_REPLY, b"", 1))
        return client

    def beat(self, kind: str, client: socket.socket, turn: Callable[[], None] | None = None) -> None:
        """One heartbeat and its answer."""
        client.sendall(sent(kind, Op.HEARTBEAT))
        (turn or self.turn)()
        assert len(client.recv(4096)) == (20 if kind == "tcp" else 22)


UPGRADE = (
    b"GET /sub HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def token(mid: int) -> bytes:
    return json.dumps({"mid": mid, "room_id": ROOM, "accepts": [1000]}).encode()


def sent(kind: str, op: int, body: bytes = b"") -> bytes:
    """A client's frame; over WebSocket with a mask of nothing."""
    frame = encode(op, body, 1)
    assert len(frame) < 126
    return frame if kind == "tcp" else struct.pack("!BB4x", 0x82, 0x80 + len(frame)) + frame


class Still(SystemClock):
    """Stands still: a new slot of the wheel, four a second, would be counted with whoever needs it first."""

    def now(self) -> float:
        return 1000.0


@asynccontextmanager
async def wire(**doors: str) -> AsyncIterator[Wire]:
    log = logging.getLogger("goim_core")
    log.setLevel(logging.ERROR)  # OpenAuth warns
    doors = {"tcp": "127.0.0.1:0", "ws": "127.0.0.1:0", **doors}
    async with Server(auth=OpenAuth(), clock=Still(), **doors) as server:
        found = Wire(server)
        try:
            yield found
        finally:
            for client in found.clients:
                client.close()
            log.setLevel(logging.NOTSET)


@define
class Turns:
    """Takes a wire's turns and counts them, and nothing that the client does meanwhile."""

    wire: Wire
    instructions: bool = False
    total: Cost = Factory(Cost)

    def __call__(self) -> None:
        assert select.select([self.wire.reactor._poller], [], [], 5)[0]
        with counted(instructions=self.instructions) as cost:
            self.wire.reactor._turn()
        idle = _idle(instructions=self.instructions)  # what the counting itself is
        self.total.system += cost.system
        self.total.python += cost.python - idle.python
        self.total.c += cost.c - idle.c
        self.total.instructions += cost.instructions - idle.instructions


def costs(wire: Wire, act: Callable[[Callable[[], None]], object]) -> Cost:
    """The cost of the turns that ``act`` takes, which is done a few times before."""
    for _ in range(3):
        act(wire.turn)
    calls, instructions = Turns(wire), Turns(wire, instructions=True)
    act(calls)
    act(instructions)
    calls.total.instructions = instructions.total.instructions
    return calls.total


@define
class Bound:
    """The most that a path may take; ``system`` is exact."""

    system: dict[str, int]
    python: int
    c: int
    instructions: int

    def holds(self, cost: Cost) -> None:
        assert dict(cost.system) == self.system
        counts = (cost.python, cost.c, cost.instructions)
        assert all(map(int.__le__, counts, (self.python, self.c, self.instructions))), (cost, self)
        assert cost.instructions > self.instructions / 3, "they were not counted"


HEARTBEAT = {
    "tcp": Bound({"poll": 1, "recv": 1, "send": 1}, python=15, c=12, instructions=390),
    "ws": Bound({"poll": 1, "recv": 1, "send": 1}, python=17, c=17, instructions=500),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_heartbeat(kind: str) -> None:
    """One read, one write, and the wheel of deadlines is not touched."""
    async with wire() as w:
        client = w.connect(kind)
        HEARTBEAT[kind].holds(costs(w, lambda turn: w.beat(kind, client, turn)))


CONNECT = {
    # The second accept says that nobody else waits.
    "tcp": Bound(
        {"poll": 2, "_accept": 2, "setblocking": 1, "register": 1, "recv": 1, "send": 1},
        python=115,
        c=93,
        instructions=3180,
    ),
    "ws": Bound(
        {"poll": 3, "_accept": 2, "setblocking": 1, "register": 1, "recv": 2, "send": 2},
        python=147,
        c=150,
        instructions=4380,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connect(kind: str) -> None:
    """One `epoll_ctl` for a connection, at its birth, and no option of a socket that is inherited."""
    async with wire() as w:
        CONNECT[kind].holds(costs(w, lambda turn: w.connect(kind, turn)))


async def test_a_disconnect() -> None:
    """The end of a client is read, and the socket is taken out of epoll and closed: no more."""
    async with wire() as w:
        clients = [w.connect("tcp") for _ in range(3)]
        clients[0].close()
        w.turn()
        turns = Turns(w)
        clients[1].close()
        turns()
        assert turns.total.system == {"poll": 1, "recv": 1, "unregister": 1, "close": 1}
        assert turns.total.python <= 81
        assert turns.total.c <= 43


async def test_a_delivery() -> None:
    """The loop over a room is one `send` for each member: no call of Python, few instructions."""
    few, many = 20, 120
    found = {}
    async with wire() as w:
        packet = Packet([encode(1000, b"a message")])
        for size in (few, many):
            while len(w.clients) < size:
                w.connect("tcp")
            pushes = [w.server._comet.push_room(ROOM, packet) for _ in range(2)]
            with counted() as calls:
                list(pushes[0])
            with counted(instructions=True) as instructions:
                list(pushes[1])
            found[size] = (calls.system["send"], calls.python, calls.c, instructions.instructions)
    sends, python, c, instructions_each = (
        (found[many][i] - found[few][i]) / (many - few) for i in range(len(found[few]))
    )
    assert (sends, python) == (1, 0)
    assert c <= 1
    assert 10 < instructions_each <= 25


async def test_a_push_on_its_way() -> None:
    """From `push_room` through queue and job to comet, beside the deliveries: a constant number of calls."""
    async with wire() as w:
        w.connect("tcp")

        async def push() -> None:
            await w.server.push_room(ROOM, 1000, b"a message")
            while w.server._queue.pending:
                await anyio.lowlevel.checkpoint()

        await push()
        pushes = 50
        with counted() as cost:
            for _ in range(pushes):
                await push()
    assert cost.system == {"send": pushes}
    assert cost.loop["poll"] <= 1.1 * pushes
    assert cost.python / pushes <= 57
    assert cost.c / pushes <= 39


async def test_a_push_through_the_http_api() -> None:
    """One read and one write for each, and the event loop is told of neither its socket nor its deadline."""
    posts = 50
    body = b"a message"
    head = f"POST /goim/push/room?operation=1000&type=live&room=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    answer = b'{"code":0,"message":""}'
    async with wire(http="127.0.0.1:0") as w:
        client = socket.create_connection(("127.0.0.1", w.server.port("http")), timeout=5)
        w.clients.append(client)
        done, here = anyio.Event(), anyio.lowlevel.current_token()

        def post(count: int) -> None:
            for _ in range(count):
                client.sendall(f"{head}\r\n\r\n".encode() + body)
                assert client.recv(4096).endswith(answer)

        def post_all() -> None:
            post(posts)
            anyio.from_thread.run_sync(done.set, token=here)

        await anyio.to_thread.run_sync(post, 3)
        with counted() as cost:
            thread = threading.Thread(target=post_all)
            thread.start()
            await done.wait()
        thread.join()
    assert cost.system == {"recv": posts, "send": posts}
    assert not cost.loop.keys() & {"register", "modify", "unregister"}
    assert cost.loop["poll"] <= 3.2 * posts  # and fewer where the next one is there already
    assert cost.python / posts <= 117
    assert cost.c / posts <= 97


async def test_a_merged_push() -> None:
    """What comes at once leaves in one packet: one `send` for 100 pushes."""
    async with wire() as w:
        client = w.connect("tcp")
        with counted() as cost:
            for number in range(100):
                await w.server.push_room(ROOM, 1000, bytes([number]))
            while w.server._queue.pending:
                await anyio.lowlevel.checkpoint()
        assert cost.system["send"] == 1
        assert len(client.recv(4096)) == 1700


TURNS = [
    pytest.param("asyncio", 1.1, 1.1, id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), 1.1, 0.0, id="uvloop"),
]


@pytest.mark.parametrize(("anyio_backend", "own", "loop"), TURNS)
async def test_a_turn_of_the_event_loop(anyio_backend: Any, own: float, loop: float) -> None:
    """A lone heartbeat is one poll of the loop and one of the reactor, and nothing is registered for it each time."""
    beats = 100
    async with wire() as w:
        client = await anyio.to_thread.run_sync(lambda: w.connect("tcp", lambda: None))
        done = anyio.Event()
        here = anyio.lowlevel.current_token()

        def beat() -> None:
            for _ in range(beats):
                w.beat("tcp", client, lambda: None)
            anyio.from_thread.run_sync(done.set, token=here)

        thread = threading.Thread(target=beat)
        with counted() as cost:
            thread.start()
            await done.wait()
        thread.join()
    polls = cost.system.pop("poll")
    assert cost.system == {"recv": beats, "send": beats}
    assert polls <= own * beats
    assert cost.loop["poll"] <= loop * beats
    assert not cost.loop.keys() & {"register", "modify", "unregister"}


MEMORY = {"tcp": 1150, "ws": 1200}
"""Bytes of a connection in a room, of a user of its own, with its place in every table. Of the
300 connections here, each has its share of tables that have just grown."""


@pytest.mark.parametrize("kind", KINDS)
async def test_memory(kind: str) -> None:
    """What Python allocates for an idle connection; the kernel's part is not in it."""
    clients = 300
    async with wire() as w:
        for _ in range(20):
            w.connect(kind)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(clients):
                w.connect(kind)
            gc.collect()
            size = (tracemalloc.get_traced_memory()[0] - before) / clients
        finally:
            tracemalloc.stop()
    assert MEMORY[kind] / 2 < size <= MEMORY[kind]


WAITS = 800
"""Bytes of an exchange that waits for its turn with a hook; one that has it has a task, of six times that."""


async def test_what_waits_for_its_turn_with_a_hook() -> None:
    """Thousands of clients that come back at once are no thousands of tasks."""
    many, never = 1000, anyio.Event()

    def flow() -> Flow[None]:
        yield from settle(never.wait())

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(Still()), 1, 30.0)
        exchanges.begin(flow(), print, print)
        await anyio.wait_all_tasks_blocked()
        tracemalloc.start()
        try:
            for _ in range(many):
                exchanges.begin(flow(), print, print)
            size = tracemalloc.get_traced_memory()[0] / many
        finally:
            tracemalloc.stop()
        tasks.cancel_scope.cancel()
    assert WAITS / 2 < size <= WAITS
