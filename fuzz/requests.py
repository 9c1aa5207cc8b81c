"""Target: requests to the push API through the HTTP door, cut anywhere."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import h11

from fuzz.cuts import joined, pieces
from fuzz.loop import nothing_logged, run
from goim_core.http_api import PushAPI
from goim_core.http_door import HTTPDoor
from goim_core.http_plain import plain_request
from goim_core.protocol import pushable
from goim_core.session import check_mid, check_room_id
from goim_core.steps import Steps

__all__ = ["Service", "answers_in", "check", "door_to", "exchanged", "read_by_h11", "seeds"]

MAX_BODY = 512
MAX_HEADER = 1024
STATUSES = {100, 200, 400, 404, 405, 408, 413, 417, 431, 501, 505}
"""What the door may answer. 500 is not among them: nothing behind it fails."""
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[!-9;-~]+: [ -~]*\r\n)*)\r\n")
_LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)


class Service:
    """What the API pushes to: it takes whatever was promised to it, and nothing else."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes) -> None:
        self._take(op, body, keys=[key for key in keys if key])

    async def push_mids(
        self, mids: Iterable[int], op: int, body: bytes, *, idempotency_key: str = ""
    ) -> None:
        self._take(op, body, mids=[check_mid(mid) for mid in mids], key=idempotency_key)

    async def push_room(self, room_id: str, op: int, body: bytes) -> None:
        self._take(op, body, room=check_room_id(room_id))

    async def push_all(self, op: int, body: bytes, *, speed: int = 0) -> None:
        assert 0 <= speed < 1 << 31
        self._take(op, body, speed=speed)

    def _take(self, op: int, body: bytes, **where: Any) -> None:
        assert pushable(op)
        assert len(body) <= MAX_BODY
        self.heard.append((op, body, where))

    def ranking(self, kind: str, limit: int) -> Steps[list[tuple[str, int]]]:
        yield
        assert kind
        assert limit > 0
        return [("1000", 1)]

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        return {check_room_id(room_id): 1 for room_id in room_ids}

    def online_total(self) -> tuple[int, int]:
        return 1, 1

    def nodes_weighted(self, platform: str, address: str) -> dict[str, Any]:
        return {"platform": platform, "address": address}

    def nodes_instances(self) -> list[dict[str, Any]]:
        return []


class _Cut(socket.socket):
    """A socket that gives what it has received in pieces of these lengths, then the rest."""

    lengths: list[int]

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return super().recv(min(size, self.lengths.pop(0)) if self.lengths else size, flags)


def check(data: bytes) -> None:
    """Every answer is one of HTTP, none is a fault, and it does not matter where the stream was cut."""
    parts = pieces(data)
    stream = b"".join(parts)
    plain = plain_request(stream)
    assert plain is None or plain == read_by_h11(stream)[:-1]
    answers = exchanged(stream, [len(part) for part in parts])
    if not any(status == 431 for status, _ in answers[0]):  # h11 measures what has come so far
        assert answers == exchanged(stream, [])


def read_by_h11(data: bytes) -> tuple[str, str, dict[str, str], int, bytes, h11.Connection]:
    """What http_plain.py says of ``data``, by h11, which has one request then and waits for nothing more."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(data)
    head, body = http.next_event(), b""
    assert isinstance(head, h11.Request)
    while isinstance(event := http.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert http.trailing_data == (b"", False)
    headers = {name.decode(): value.decode() for name, value in head.headers}
    assert len(headers) == len(head.headers)
    size = sum(len(name) + len(value) + 4 for name, value in head.headers)
    size += len(head.method) + len(head.target) + len("  HTTP/1.1\r\n\r\n")
    return head.method.decode(), head.target.decode(), headers, size, body, http


def door_to(service: Service) -> HTTPDoor:
    """The door with the push API over ``service``, and small limits."""
    routes = PushAPI(service).routes
    return HTTPDoor(routes, max_body=MAX_BODY, max_header=MAX_HEADER, timeout=5, idle=5, linger=5)


def exchanged(stream: bytes, lengths: list[int]) -> tuple[list[tuple[int, bytes]], list[Any]]:
    """What is answered to ``stream``, and what the service behind the door has heard."""
    service = Service()
    door = door_to(service)
    client, server = socket.socketpair()
    with client, nothing_logged():
        accepted = _Cut(server.family, server.type, server.proto, fileno=server.detach())
        accepted.lengths = lengths
        accepted.setblocking(False)
        client.sendall(stream)
        client.shutdown(socket.SHUT_WR)
        run(door.serve(accepted))
        client.setblocking(False)  # the door has closed its end: all there is has come
        received = bytearray()
        while data := client.recv(1 << 16):
            received += data
    return list(answers_in(bytes(received))), service.heard


def answers_in(received: bytes) -> Iterator[tuple[int, bytes]]:
    """Status and body of each answer but 100; whatever is none fails."""
    while received:
        head = _HEAD.match(received)
        assert head is not None, received[:200]
        status = int(head[1])
        assert status in STATUSES, received[:200]
        received = received[head.end() :]
        length = _LENGTH.search(head[2])
        if length is None or not received.startswith((b"{", b"[")):  # the answer to a HEAD has none
            body = b""
        else:
            body, received = received[: int(length[1])], received[int(length[1]) :]
            assert len(body) == int(length[1])
        if status != 100:
            yield status, body if status == 200 else b""  # h11 says what is wrong in other words


def seeds() -> Iterator[bytes]:
    """Calls of the API as clients write them."""
    host = b"Host: 127.0.0.1\r\n"
    for line in (
        b"keys?operation=1000&keys=c1&keys=%C3%BC",
        b"mids?operation=1000&mids=1&mids=-2",
        b"room?operation=1000&type=live&room=1000",
        b"all?operation=1000&speed=100",
    ):
        yield joined(
            b"POST /goim/push/" + line + b" HTTP/1.1\r\n" + host + b"Content-Length: 5\r\n\r\nhello", (9, 70)
        )
    for line in (
        b"online/top?type=live&limit=10",
        b"online/room?type=live&rooms=1&rooms=2",
        b"online/total",
        b"nodes/weighted?platform=web",
        b"nodes/instances",
    ):
        request = b"GET /goim/" + line + b" HTTP/1.1\r\n" + host + b"\r\n"
        yield joined(request + b"HEAD" + request[3:], (40,))
    chunks = b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\n"
    yield joined(b"POST http://h/goim/push/all?operation=64 HTTP/1.1\r\n" + host + chunks, (200, 20))
    yield joined(b"GET /goim/online/total HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    yield joined(b"OPTIONS * HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: upgrade, close\r\n\r\n")
