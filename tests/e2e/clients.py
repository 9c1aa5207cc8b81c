"""A server, and clients for it made of plain sockets.

They are written from the protocol's description and share no code with goim_core: frames are made
with struct, WebSocket is wsproto's client side, HTTP is http.client.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self

import anyio
import anyio.lowlevel
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Request

from goim_core import OpenAuth, Server
from goim_core.testing import ManualClock

both = pytest.mark.parametrize("wire", ["tcp", "ws"])

PATIENCE = 20.0
"""Seconds after which a test that waits has failed. Nothing in a test that passes waits for it."""


def frame(op: int, body: bytes = b"", seq: int = 0, ver: int = 1) -> bytes:
    return struct.pack(">ihhii", 16 + len(body), 16, ver, op, seq) + body


def int32(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


def op_of(data: bytes) -> int:
    return int.from_bytes(data[8:12], "big", signed=True)


def split(data: bytes) -> list[bytes]:
    """The frames in ``data``, which has to be whole frames only."""
    frames = []
    while data:
        size = int.from_bytes(data[:4], "big")
        assert 16 <= size <= len(data)
        frames.append(data[:size])
        data = data[size:]
    return frames


class Told(NamedTuple):
    """What an op-6 frame says."""

    code: int
    message: str


class Client:
    """A TCP client. ``read`` and ``send`` are what differs on another wire."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.batch: list[bytes] = []

    # Bytes.

    async def send_raw(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await anyio.wait_writable(self.sock)

    async def receive_raw(self) -> bytes:
        """Some bytes; none at the end of the stream."""
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                return self.sock.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                await anyio.wait_readable(self.sock)

    async def receive_exactly(self, size: int) -> bytes:
        """Bytes as they are on the socket. Not to be mixed with ``read`` on a WebSocket."""
        while len(self.buffer) < size:
            data = await self.receive_raw()
            if not data:
                raise anyio.EndOfStream
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def rest(self) -> bytes:
        """All bytes to the end of the stream."""
        parts = [self.buffer]
        while data := await self.receive_raw():
            parts.append(data)
        self.buffer = b""
        return b"".join(parts)

    def on_wire(self, data: bytes) -> bytes:
        """The bytes that carry ``data`` from the server."""
        return data

    # Frames.

    def as_sent(self, data: bytes) -> bytes:
        """The bytes that carry ``data`` to the server."""
        return data

    async def send(self, *frames: bytes) -> None:
        await self.send_raw(b"".join(self.as_sent(data) for data in frames))

    async def read(self) -> bytes:
        """The next frame; on a WebSocket the next message, which may be an op-9 frame."""
        head = await self.receive_exactly(4)
        return head + await self.receive_exactly(int.from_bytes(head, "big") - 4)

    async def frame(self) -> bytes:
        """The next frame that is no batch."""
        while not self.batch:
            data = await self.read()
            self.batch = split(data[16:]) if op_of(data) == 9 else [data]
        return self.batch.pop(0)

    # Exchanges.

    async def login(self, mid: int = 1, room: str = "", **token: Any) -> Self:
        await self.send(frame(7, json.dumps({"mid": mid, "room_id": room, **token}).encode(), seq=1))
        assert await self.read() == frame(8, seq=1)
        return self

    async def beat(self) -> int:
        """A heartbeat and its answer, which has to be the next frame; how many are in the room."""
        await self.send(frame(2, seq=77))
        reply = await self.read()
        assert reply[:16] == frame(3, int32(0), seq=77)[:16]
        return int.from_bytes(reply[16:], "big")

    async def told(self) -> Told:
        """What the server says before it closes. It has to be next, and the end after it."""
        told = read_farewell(await self.frame())
        await self.ended()
        return told

    async def ended(self) -> None:
        """The stream has to end here."""
        assert self.buffer == await self.receive_raw() == b""
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def read_farewell(data: bytes) -> Told:
    assert data[:16] == frame(6, data[16:])[:16]
    return Told(**json.loads(data[16:]))


class WebSocket(Client):
    """A WebSocket client. ``ws`` is wsproto's."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.ws = WSConnection(ConnectionType.CLIENT)

    async def handshake(self, target: str = "/sub") -> Self:
        await self.send_raw(self.ws.send(Request(host="localhost", target=target)))
        assert isinstance(await self.event(), AcceptConnection)
        return self

    async def event(self) -> Event:
        """What the server sends next, as wsproto sees it."""
        while True:
            event = next(self.ws.events(), None)
            if event is not None:
                return event
            data = await self.receive_raw()
            if not data:
                raise anyio.EndOfStream
            self.ws.receive_data(data)

    def as_sent(self, data: bytes) -> bytes:
        return self.ws.send(BytesMessage(data=data))

    def on_wire(self, data: bytes) -> bytes:
        size = len(data)
        return (b"\x82" + bytes([size]) if size < 126 else b"\x82\x7e" + size.to_bytes(2, "big")) + data

    async def read(self) -> bytes:
        data = bytearray()
        while True:
            event = await self.event()
            assert isinstance(event, BytesMessage), event
            data += event.data
            if event.message_finished:
                return bytes(data)

    async def closed(self, code: int, reason: str | None = None) -> None:
        """A close frame with these has to be next. It is answered, and the stream has to end."""
        event = await self.event()
        assert isinstance(event, CloseConnection), event
        assert (event.code, event.reason or None) == (code, reason)
        await self.send_raw(self.ws.send(event.response()))
        await self.ended()

    async def told(self) -> Told:
        told = read_farewell(await self.frame())
        await self.closed(told.code, told.message[:123])
        return told


class World:
    """A running server and the clients that a test makes for it."""

    def __init__(self, server: Server, tls: ssl.SSLContext | None = None) -> None:
        self.server = server
        self.tls = tls
        self.sockets: list[socket.socket] = []

    async def dial(self, door: str, receive_buffer: int = 0) -> socket.socket:
        """A connected socket, which the server has accepted: its deadlines count from now."""
        opened = self.server.stats().opened
        sock = await self.dial_address(self.server.addresses[door][0], receive_buffer)
        if door != "http":
            await until(lambda: self.server.stats().opened > opened)
        return sock

    async def dial_address(self, address: tuple[str, int] | str, receive_buffer: int = 0) -> socket.socket:
        family = socket.AF_INET
        if isinstance(address, str):
            family = socket.AF_UNIX
        elif ":" in address[0]:
            family = socket.AF_INET6
        sock = socket.socket(family)
        self.sockets.append(sock)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(sock)
        return sock

    async def tcp(self, receive_buffer: int = 0) -> Client:
        return Client(await self.dial("tcp", receive_buffer))

    async def websocket(self, receive_buffer: int = 0) -> WebSocket:
        return await WebSocket(await self.dial("ws", receive_buffer)).handshake()

    async def secure(self, door: str, receive_buffer: int = 0) -> Client:
        """A client for the ``tls`` or ``wss`` door."""
        assert self.tls is not None
        # A stream that ends without TLS's own end is an error here, as it is for a careful client.
        sock = self.tls.wrap_socket(
            await self.dial(door, receive_buffer),
            server_hostname="localhost",
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        self.sockets.append(sock)
        while True:
            try:
                sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                await anyio.wait_readable(sock)
        return await WebSocket(sock).handshake() if door == "wss" else Client(sock)

    async def connect(self, wire: str, receive_buffer: int = 0) -> Client:
        if wire in ("tls", "wss"):
            return await self.secure(wire, receive_buffer)
        return await (self.websocket if wire == "ws" else self.tcp)(receive_buffer)

    async def login(self, wire: str, *, receive_buffer: int = 0, **token: Any) -> Client:
        return await (await self.connect(wire, receive_buffer)).login(**token)

    async def http(self, method: str, target: str, body: bytes | None = None) -> tuple[int, Any]:
        """One HTTP request to the push API; status and JSON of the answer."""
        address = self.server.addresses["http"][0]

        def request() -> tuple[int, Any]:
            connection = http.client.HTTPConnection(str(address[0]), int(address[1]), timeout=PATIENCE)
            try:
                connection.request(method, target, body)
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            finally:
                connection.close()

        return await anyio.to_thread.run_sync(request)

    async def sent(self) -> None:
        """Wait until all pushes have been given to the connections that they are for."""
        await until(lambda: not self.server.stats().pending)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@asynccontextmanager
async def serve(*, client_tls: ssl.SSLContext | None = None, **settings: Any) -> AsyncIterator[World]:
    """A server with a TCP, a WebSocket and an HTTP door, unless ``settings`` say otherwise."""
    doors: dict[str, Any] = dict.fromkeys(("tcp", "ws", "http"), "127.0.0.1:0")
    with anyio.fail_after(PATIENCE):
        async with Server(**{"auth": OpenAuth(), **doors, **settings}) as server:
            world = World(server, client_tls)
            try:
                yield world
            finally:
                world.close()
                if isinstance(settings.get("clock"), ManualClock):
                    settings["clock"].release()


async def until(condition: Callable[[], object]) -> None:
    """Let the program run until ``condition`` holds."""
    while not condition():
        await anyio.lowlevel.checkpoint()
