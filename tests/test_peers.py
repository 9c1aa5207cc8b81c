"""The servers that goim_core is compared with: each lets a client in and pushes to it, where its library is here."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request, TextMessage

from goim_core.protocol import encode, split

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="they end on a signal")

CHECKOUT = Path(__file__).resolve().parent.parent
TOKEN = '{"mid":1,"key":"","room_id":"bench://1","platform":"bench","accepts":[1000]}'


class Client:
    """A WebSocket client that waits for what it expects, at most ten seconds for each read."""

    def __init__(self, port: int, path: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.sock.sendall(self.ws.send(Request(host="127.0.0.1", target=path)))
        self.events = self._events()

    def _events(self) -> Iterator[object]:
        while data := self.sock.recv(65536):
            self.ws.receive_data(data)
            yield from self.ws.events()

    def send(self, data: bytes | str) -> None:
        event = BytesMessage(data) if isinstance(data, bytes) else TextMessage(data)
        self.sock.sendall(self.ws.send(event))

    def next(self, kind: type) -> object:
        event = next(self.events)
        assert isinstance(event, kind), event
        return event.data if isinstance(event, BytesMessage | TextMessage) else None


def goim(client: Client) -> bytes:
    """Come in as goim's clients do; the body of the first push."""
    client.send(encode(7, TOKEN.encode(), 1))
    (reply,) = split(client.next(BytesMessage))
    assert (reply.op, reply.body) == (8, b"")
    (push,) = split(client.next(BytesMessage))
    assert push.op == 1000
    return push.body


def socketio(client: Client) -> bytes:
    """Come in as Socket.IO's clients do; the argument of the first event."""
    assert str(client.next(TextMessage)).startswith("0{")
    client.send("40" + TOKEN)
    assert str(client.next(TextMessage)).startswith('40{"sid"')
    event = str(client.next(TextMessage))
    assert event.startswith("42")
    name, argument = json.loads(event[2:])
    assert name == "push"
    return json.dumps(argument).encode()


@contextmanager
def server(module: str) -> Iterator[tuple[int, Callable[[], dict[str, float]]]]:
    """Its port, and what stops it and returns its last line."""
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", "--flood", "1", "--seconds", "0.01"]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout

        def stop() -> dict[str, float]:
            process.terminate()
            end: dict[str, float] = json.loads(lines.readline())
            return end

        try:
            yield json.loads(lines.readline())["port"], stop
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("library", "path", "come_in"),
    [
        ("goim_core", "/sub", goim),
        ("picows", "/sub", goim),
        ("websockets", "/sub", goim),
        ("aiohttp", "/sub", goim),
        ("socketio", "/socket.io/?EIO=4&transport=websocket", socketio),
    ],
)
def test_a_client_comes_in_and_is_pushed_to(
    library: str, path: str, come_in: Callable[[Client], bytes]
) -> None:
    pytest.importorskip(library)
    with server(f"{library}_server") as (port, stop):
        client = Client(port, path)
        with client.sock:
            client.next(AcceptConnection)
            assert json.loads(come_in(client))["test"] == 1
            assert stop()["deliveries"] >= 1
