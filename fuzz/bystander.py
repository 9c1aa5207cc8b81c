"""A well-behaved client in the storm: heartbeats over TCP and WebSocket, and how long each took.

``python -m fuzz.bystander TCP_PORT WS_PORT``. At each line on stdin it prints what it has seen since then.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

from fuzz.messages import REQUEST

__all__: list[str] = []

EVERY = 0.01
BEAT = bytes.fromhex("00000010001000010000000200000009")
REPLY = bytes.fromhex("00000014001000010000000300000009")
AUTH = b'{"mid":1000000,"room_id":"live://calm","accepts":[]}'
AUTH = (16 + len(AUTH)).to_bytes(4) + bytes.fromhex("001000010000000700000001") + AUTH


def connected(port: int) -> socket.socket:
    """A connection of one that waits 30 seconds at most."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def message(data: bytes) -> bytes:
    """In a WebSocket frame with a mask of zeros."""
    return bytes((0x82, 0x80 | len(data))) + bytes(4) + data


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionError("the server closed the connection of a well-behaved client")
        data += part
    return data


def beat(sock: socket.socket, sent: bytes, head: bytes) -> float:
    """One heartbeat; how many seconds its answer took."""
    begun = time.perf_counter()
    sock.sendall(sent)
    reply = exactly(sock, len(head) + len(REPLY) + 4)
    took = time.perf_counter() - begun
    assert reply == head + REPLY + (2).to_bytes(4), reply
    return took


def main() -> None:
    """Beat until stdin ends."""
    tcp, ws = (connected(int(port)) for port in sys.argv[1:3])
    tcp.sendall(AUTH)
    exactly(tcp, 16)
    ws.sendall(REQUEST + message(AUTH))
    exactly(ws, 129 + 18)
    took: list[float] = []
    print("ready", flush=True)
    while True:
        took += [beat(tcp, BEAT, b""), beat(ws, message(BEAT), b"\x82\x14")]
        if select.select([sys.stdin], [], [], EVERY)[0]:
            if not sys.stdin.readline():
                return
            took.sort()
            at = {"p50": len(took) // 2, "p99": len(took) * 99 // 100, "worst": -1}
            print(
                json.dumps({"beats": len(took), **{name: took[n] * 1000 for name, n in at.items()}}),
                flush=True,
            )
            took = []


if __name__ == "__main__":
    main()
