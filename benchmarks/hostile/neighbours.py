"""The well-behaved clients: ``python -m benchmarks.hostile.neighbours PORTS [--beat]``.

Each does one thing again and again, in a thread of its own, and takes down how long it took, which is printed
at each line on stdin:

- ``beat``: a heartbeat to its answer, over TCP, WebSocket and TLS;
- ``push``: a push to the room through the HTTP API, over one connection, to its arrival;
- ``come``: a new connection, to the answer to its authentication;
- ``ask``: a request over a new HTTP connection, to its answer.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from collections.abc import Callable
from threading import Event, Thread

from benchmarks.hostile.attacks import ROOM, auth, message
from benchmarks.hostile.certificate import client_context
from fuzz.bystander import BEAT, REPLY, connected, exactly
from fuzz.messages import REQUEST
from goim_core.protocol import HEADER_SIZE, Op

__all__: list[str] = []

EVERY = 0.02
FIRST = 1 << 20
"""Their users, whom no attacker is."""
HOST = "127.0.0.1"


class Neighbour(Thread):
    """Does ``what`` again and again."""

    def __init__(self, kind: str, what: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.kind = kind
        self.what = what
        self.took: list[float] = []
        self.failed: list[str] = []
        self.ready = Event()

    def run(self) -> None:
        while True:
            begun = time.perf_counter()
            try:
                self.what()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{self.kind}: {error!r}")
            self.took.append(time.perf_counter() - begun)
            self.ready.set()
            time.sleep(EVERY)


def frame(sock: socket.socket) -> tuple[int, bytes]:
    """The next frame over TCP: its operation and its body."""
    head = exactly(sock, HEADER_SIZE)
    return int.from_bytes(head[8:12]), exactly(sock, int.from_bytes(head[:4]) - HEADER_SIZE)


def let_in(sock: socket.socket, number: int, room: str = "") -> socket.socket:
    """Authenticated, over TCP."""
    sock.sendall(auth(FIRST + number, room).replace(b'"mid": ', b'"mid":1'))
    assert frame(sock)[0] == Op.AUTH_REPLY
    return sock


def beats_over_tcp(port: int) -> Callable[[], object]:
    return _beats(let_in(connected(port), 1), BEAT, b"")


def beats_over_tls(port: int) -> Callable[[], object]:
    return _beats(let_in(client_context().wrap_socket(connected(port)), 2), BEAT, b"")


def beats_over_ws(port: int) -> Callable[[], object]:
    sock = connected(port)
    sock.sendall(REQUEST + message(auth(FIRST + 3)))
    exactly(sock, 129 + 18)
    return _beats(sock, message(BEAT), b"\x82\x14")


def _beats(sock: socket.socket, sent: bytes, head: bytes) -> Callable[[], object]:
    def beat() -> None:
        sock.sendall(sent)
        reply = exactly(sock, len(head) + len(REPLY) + 4)
        assert reply.startswith(head + REPLY), reply

    return beat


def pushes(port: int, http_port: int) -> Callable[[], object]:
    """Each has a number; what else is pushed to the room is passed over."""
    member = let_in(connected(port), 4, ROOM)
    api = http.client.HTTPConnection(HOST, http_port, timeout=30)
    numbers = iter(range(1 << 60))
    path = "/goim/push/room?operation=1000&type=live&room=pushed"

    def push() -> None:
        member.sendall(BEAT)
        body = b"calm %d" % next(numbers)
        api.request("POST", path, body)
        answer = api.getresponse().read()
        if json.loads(answer)["code"]:
            raise OSError(answer.decode())
        while not _brings(member, body):
            pass

    return push


def _brings(member: socket.socket, body: bytes) -> bool:
    op, found = frame(member)
    return body == found or (op == Op.RAW and body in found)


def coming(port: int) -> Callable[[], object]:
    def come() -> None:
        with connected(port) as sock:
            let_in(sock, 5)

    return come


def asking(port: int) -> Callable[[], object]:
    def ask() -> None:
        with connected(port) as sock:
            sock.sendall(b"GET /goim/online/total HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := sock.recv(4096):
                answer += data
            if not answer.startswith(b"HTTP/1.1 200"):
                raise OSError(answer[:40].decode(errors="replace"))

    return ask


def summary(neighbours: list[Neighbour]) -> dict[str, object]:
    """What they have seen since the last time; milliseconds."""
    found: dict[str, object] = {}
    for kind in dict.fromkeys(neighbour.kind for neighbour in neighbours):
        took: list[float] = []
        failed: list[str] = []
        for neighbour in neighbours:
            if neighbour.kind == kind:
                took += neighbour.took
                failed += neighbour.failed
                neighbour.took, neighbour.failed = [], []
        took.sort()
        at = {"p50": len(took) // 2, "p99": len(took) * 99 // 100, "max": -1}
        found[kind] = {
            "count": len(took),
            "failed": len(failed),
            "why": failed[:1],
            **{name: took[n] * 1000 if took else None for name, n in at.items()},
        }
    return found


def main() -> None:
    ports = json.loads(sys.argv[1])
    neighbours = [
        Neighbour("beat", beats_over_tcp(ports["tcp"])),
        Neighbour("beat", beats_over_ws(ports["ws"])),
        Neighbour("beat", beats_over_tls(ports["tls"])),
    ]
    if "--beat" not in sys.argv:
        neighbours += others(ports)
    for neighbour in neighbours:
        neighbour.start()
    for neighbour in neighbours:
        neighbour.ready.wait()
    print("ready", flush=True)
    while sys.stdin.readline():
        print(json.dumps(summary(neighbours)), flush=True)


def others(ports: dict[str, int]) -> list[Neighbour]:
    """Those who do more than beat."""
    return [
        Neighbour("push", pushes(ports["tcp"], ports["http"])),
        Neighbour("come", coming(ports["tcp"])),
        Neighbour("ask", asking(ports["http"])),
    ]


if __name__ == "__main__":
    main()
