"""The HTTP door on real sockets: every limit, every way a peer can end, on every event loop."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs

import anyio
import anyio.lowlevel
import pytest
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goim_core import http_conversation
from goim_core.errors import ConfigurationError
from goim_core.http_door import UNASKED, Handler, HTTPDoor, Request, Response, Routes
from goim_core.http_message import read_target
from goim_core.http_pages import pages
from goim_core.protocol import Frame, Op

pytestmark = pytest.mark.anyio


@frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Peer:
    """The client's end of a connection: bytes out, answers in."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.served = anyio.Event()
        """Set when the door is done with its end."""
        self.cancel = anyio.CancelScope()
        """Around the door's end."""
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(self.sock)

    async def receive(self) -> bytes:
        await anyio.wait_readable(self.sock)
        return self.sock.recv(65536)

    async def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        while data := await self.receive():
            self._buffer += data
        found, self._buffer = self._buffer, b""
        return found

    async def _until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            data = await self.receive()
            assert data, f"the stream ended after {self._buffer!r}"
            self._buffer += data

    async def answer(self, *, bodiless: bool = False) -> Answer:
        await self._until(lambda: b"\r\n\r\n" in self._buffer)
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        version, status, *_ = status_line.split(" ")
        assert version == "HTTP/1.1"
        length = 0 if bodiless or status in {"100", "204", "304"} else int(headers["content-length"])
        await self._until(lambda: len(self._buffer) >= length)
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(status), headers, body)

    async def get(self, path: str, method: str = "GET", headers: str = "") -> Answer:
        await self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        return await self.answer(bodiless=method == "HEAD")

    async def post(self, path: str, body: bytes, headers: str = "") -> Answer:
        await self.send(post(path, body, headers))
        return await self.answer()


def post(path: str, body: bytes, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(path: str, *chunks: bytes) -> bytes:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + coded


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return listener.accept()[0], client


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@asynccontextmanager
async def connected(
    door: HTTPDoor, pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair
) -> AsyncIterator[Peer]:
    """A peer of ``door``. Leaving closes its end, on which the door has to let go of its own."""
    theirs, ours = pair()
    theirs.setblocking(False)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            peer = Peer(ours)

            async def serve() -> None:
                with peer.cancel:
                    await door.serve(theirs)
                peer.served.set()

            tasks.start_soon(serve)
            try:
                yield peer
            finally:
                ours.close()
    assert theirs.fileno() == -1


async def echo(request: Request) -> Response:
    await anyio.lowlevel.checkpoint()
    return Response(200, request.body, "application/octet-stream")


def hello(request: Request) -> Response:
    return Response(200, b"hello", "text/plain", (("X-Path", request.path),))


ROUTES: Routes = {"/echo": {"POST": echo}, "/hello": {"GET": hello, "PUT": hello}}


def failure(status: int, message: str) -> bytes:
    return f'{{"code":-{status},"message":"{message}"}}'.encode()


# What an answer looks like


async def test_an_answer_is_these_bytes() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert await peer.rest() == (
            b"HTTP/1.1 200 \r\nX-Path: /hello\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n"
            b"Connection: close\r\n\r\nhello"
        )


@given(st.text("xy=&;%2+", max_size=12))
def test_a_query_is_read_as_the_standard_library_does(query: str) -> None:
    found = parse_qs(query, keep_blank_values=True)
    assert read_target(f"/?{query}") == ("/", {name: tuple(values) for name, values in found.items()})


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
async def test_a_handler_sees_the_whole_request(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    seen: list[Request] = []

    def keep(request: Request) -> Response:
        seen.append(request)
        return Response()

    async with connected(HTTPDoor({"/caf\u00e9 1": {"POST": keep}}), pair) as peer:
        answer = await peer.post(
            "/caf%C3%A9%201?a=1&b=%26+%2B&a=2&c=&d", b"body", "X-Many: 1\r\nCookie: k=v\r\nx-many: 2\r\n"
        )
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", b"")
    [request] = seen
    assert request.method == "POST"
    assert request.path == "/caf\u00e9 1"
    assert request.query == {"a": ("1", "2"), "b": ("& +",), "c": ("",), "d": ("",)}
    assert request.headers == {"host": "x", "x-many": "1, 2", "cookie": "k=v", "content-length": "4"}
    assert request.body == b"body"
    assert request.address == ("127.0.0.1" if pair is tcp_pair else "")


async def test_a_target_may_name_the_host_too() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        assert (await peer.get("http://x:80/hello?a")).headers["x-path"] == "/hello"
        assert (await peer.get("http://x")).status == 404


@pytest.mark.parametrize("target", ["/hello%ff", "/hello?a=%ff", "http://[/hello"])
async def test_a_target_that_says_nothing_ends_no_connection(target: str) -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        answer = await peer.get(target)
        assert answer.status == 400
        assert answer.body.startswith(b'{"code":-400,"message":"target: ')
        assert (await peer.get("/hello")).body == b"hello"


async def test_head_is_a_get_without_the_body() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        answer = await peer.get("/hello", "HEAD")
        assert (answer.status, answer.headers["content-length"]) == (200, "5")
        assert (await peer.get("/nowhere", "HEAD")).status == 404
        assert (await peer.get("/hello")).body == b"hello"


@pytest.mark.parametrize("status", [204, 304])
async def test_some_answers_have_no_body(status: int) -> None:
    def nothing(request: Request) -> Response:
        return Response(status, b"dropped", headers=(("X-A", "b"),))

    async with connected(HTTPDoor({"/": {"GET": nothing}})) as peer:
        for _ in range(2):
            assert await peer.get("/") == Answer(status, {"x-a": "b"}, b"")


async def test_unknown_paths_and_methods() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        for method, path in (("GET", "/nowhere"), ("OPTIONS", "*"), ("CONNECT", "x:1")):
            answer = await peer.get(path, method)
            assert (answer.status, answer.body) == (404, failure(404, f"no such path: '{path}'"))
            assert answer.headers["content-type"] == "application/json; charset=utf-8"
        answer = await peer.post("/hello", b"x")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, PUT")
        assert answer.body == failure(405, "/hello: expected GET, HEAD, PUT")
        answer = await peer.get("/echo", "HEAD")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        assert (await peer.get("/sub", headers=upgrade)).status == 404
        assert (await peer.get("/hello")).status == 200


# One connection, many requests


async def test_a_connection_is_kept() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        for number in range(5):
            body = b"%d" % number * 100
            assert (await peer.post("/echo", body)).body == body
            assert (await peer.get("/hello")).body == b"hello"


async def test_pipelined_requests_are_answered_in_order() -> None:
    bodies = [b"%d" % number for number in range(200)]
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(b"".join(post("/echo", body) for body in bodies))
        assert [(await peer.answer()).body for _ in bodies] == bodies


async def test_pipelined_plain_requests_leave_others_their_turn() -> None:
    turns: list[str] = []

    def turn(request: Request) -> Response:
        turns.append(request.path)
        return Response()

    door = HTTPDoor({"/a": {"GET": turn}, "/b": {"GET": turn}})
    async with connected(door) as a, connected(door) as b:
        await a.send(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        await b.send(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        for _ in range(100):
            await a.answer()
            await b.answer()
    assert turns != sorted(turns)
    assert turns != sorted(turns, reverse=True)


async def test_a_handler_that_waits_keeps_nobody_else_waiting() -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    async def wait(request: Request) -> Response:
        entered.set()
        await go_on.wait()
        return Response(200, b"waited")

    door = HTTPDoor({**ROUTES, "/wait": {"GET": wait}})
    async with connected(door) as slow, connected(door) as quick:
        await slow.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await entered.wait()
        assert (await quick.get("/hello")).body == b"hello"
        go_on.set()
        assert (await slow.answer()).body == b"waited"


@pytest.mark.parametrize(
    "head", ["GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", "GET /hello HTTP/1.0\r\n"]
)
async def test_a_connection_that_is_not_to_be_kept_ends_without_a_reset(head: str) -> None:
    async with connected(HTTPDoor(ROUTES), tcp_pair) as peer:
        # The bytes after the request are never read as one: closing on them would be a reset.
        await peer.send(head.encode() + b"\r\n" + b"\r\n" * 100_000)
        answer = await peer.rest()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"Connection: close\r\n\r\nhello")


async def test_a_request_cut_anywhere_is_the_same_request() -> None:
    raw = chunked("/echo?a=b", b"one", b"two") + post("/echo", b"three")
    for cut in range(1, len(raw)):
        async with connected(HTTPDoor(ROUTES)) as peer:
            await peer.send(raw[:cut])
            for _ in range(4):
                await anyio.lowlevel.checkpoint()  # the door reads what is there
            await peer.send(raw[cut:])
            assert (await peer.answer()).body == b"onetwo"
            assert (await peer.answer()).body == b"three"


# Bodies


async def test_a_body_that_waits_to_be_asked_for() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        for _ in range(2):
            await peer.send(
                b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
            )
            assert (await peer.answer()).status == 100
            await peer.send(b"body")
            assert (await peer.answer()).body == b"body"
        # One that comes along unasked is not asked for.
        assert (await peer.post("/echo", b"body", "Expect: 100-continue\r\n")).status == 200


async def test_a_body_too_large_is_not_asked_for() -> None:
    async with connected(HTTPDoor(ROUTES, max_body=3)) as peer:
        await peer.send(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
        assert (await peer.answer()).status == 413


@pytest.mark.parametrize("size", [0, 1, 70_000])
async def test_the_largest_body_is_taken(size: int) -> None:
    body = b"x" * size
    async with connected(HTTPDoor(ROUTES, max_body=size)) as peer:
        assert (await peer.post("/echo", body)).body == body
        await peer.send(
            chunked("/echo", body[:1], body[1:]) if size > 1 else chunked("/echo", *[body] * size)
        )
        assert (await peer.answer()).body == body


@pytest.mark.parametrize("size", [0, 1, 70_000])
async def test_a_larger_body_is_refused(size: int) -> None:
    body = b"x" * (size + 1)
    for request in (post("/echo", body), chunked("/echo", body[:1], *([body[1:]] if size else []))):
        async with connected(HTTPDoor(ROUTES, max_body=size), tcp_pair) as peer:
            await peer.send(request)
            answer = await peer.answer()
            assert (answer.status, answer.headers["connection"]) == (413, "close")
            assert answer.body == failure(413, f"body: expected at most {size} bytes")
            assert await peer.rest() == b""


@pytest.mark.parametrize(
    "request_", [("POST", "/nowhere"), ("GET", "/hello"), ("PUT", "/echo"), ("POST", "%zz%ff")]
)
async def test_no_large_body_is_kept_that_no_route_asks_for(request_: tuple[str, str]) -> None:
    line = "{} {} HTTP/1.1\r\nHost: x\r\nContent-Length: {{}}\r\n\r\n".format(*request_)
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(line.format(UNASKED).encode() + b"x" * UNASKED)
        assert (await peer.answer()).status in (200, 400, 404, 405)
        await peer.send(line.format(UNASKED + 1).encode())
        assert (await peer.answer()).status == 413


async def test_a_body_of_two_lengths_is_refused() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
        await peer.send(
            b"POST /echo HTTP/1.1\r\nHost: x\r\n" + both + b"\r\n0\r\n\r\nGET /hello HTTP/1.1\r\n"
        )
        assert (await peer.answer()).status == 400
        assert await peer.rest() == b"", "what follows is not read"


async def test_a_length_that_is_no_number_one_can_have_is_refused() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n")
        assert (await peer.answer()).status == 400


async def test_a_refused_body_does_not_reset_its_answer_away() -> None:
    async with connected(HTTPDoor(ROUTES, max_body=1), tcp_pair) as peer:
        await peer.send(post("/echo", b"x" * 3_000_000))  # sent to the end before the answer is read
        assert (await peer.answer()).status == 413
        assert await peer.rest() == b""


async def test_a_refused_body_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_conversation, "DISCARD", 100_000)
    async with connected(HTTPDoor(ROUTES, max_body=1, linger=100), tcp_pair) as peer:
        await peer.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n")

        async def flood() -> None:
            while True:
                await peer.send(b"x" * 65536)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await flood()


async def test_a_refused_peer_that_stays_is_left() -> None:
    async with connected(HTTPDoor(ROUTES, linger=0.01)) as peer:
        await peer.send(b"\0")
        await peer.served.wait()
        assert (await peer.rest()).startswith(b"HTTP/1.1 400 ")


# Headers


def padded(size: int) -> bytes:
    head = b"GET /hello HTTP/1.1\r\nHost: x\r\nX-Pad: %b\r\n\r\n"
    return head % (b"x" * (size - len(head) + 2))


async def test_the_longest_header_is_taken_and_no_longer_one() -> None:
    assert len(padded(300)) == 300
    async with connected(HTTPDoor(ROUTES, max_header=300)) as peer:
        for _ in range(2):
            await peer.send(padded(300))
            assert (await peer.answer()).status == 200
        await peer.send(padded(301))
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert answer.body == failure(431, "headers: expected at most 300 bytes, got 301")
        assert await peer.rest() == b""


async def test_a_header_without_end_is_refused() -> None:
    async with connected(HTTPDoor(ROUTES, max_header=300), tcp_pair) as peer:
        await peer.send(b"GET /hello HTTP/1.1\r\nHost: x\r\nX-Pad: " + b"x" * 500_000)
        answer = await peer.answer()
        assert (answer.status, answer.body[:12]) == (431, b'{"code":-431')
        assert await peer.rest() == b""


# Peers that do not speak HTTP, or stop


@pytest.mark.parametrize(
    "garbage",
    [
        Frame(Op.AUTH, b'{"mid":1}', 1).encode(),
        Frame(Op.HEARTBEAT, b"", 7).encode() * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /hello HTTP/1.1\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_garbage_is_answered_and_the_connection_closed(garbage: bytes) -> None:
    async with connected(HTTPDoor(ROUTES), tcp_pair) as other, connected(HTTPDoor(ROUTES), tcp_pair) as peer:
        await peer.send(garbage)
        answer = await peer.answer()
        if answer.status == 404:  # the HTTP/2 preface begins like a request
            answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert answer.body.startswith(b'{"code":-400,"message":"')
        assert await peer.rest() == b""
        assert (await other.get("/hello")).status == 200


async def test_garbage_after_a_good_request() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(post("/echo", b"body") + b"\0\0\0\x10")
        assert (await peer.answer()).body == b"body"
        assert (await peer.answer()).status == 400
        assert await peer.rest() == b""
    async with connected(HTTPDoor(ROUTES)) as peer:
        assert (await peer.get("/hello", "HEAD")).status == 200
        await peer.send(b"\0")
        assert (await peer.answer()).body.startswith(b'{"code":-400,')


async def test_a_coding_that_is_not_known() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n")
        assert (await peer.answer()).status == 501


@pytest.mark.parametrize(
    "part", [b"GET /hel", b"GET /hello HTTP/1.1\r\nHost: x\r\n", post("/echo", b"abc")[:-1]]
)
async def test_half_a_request(part: bytes) -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(part)
        peer.sock.shutdown(socket.SHUT_WR)
        assert (await peer.rest()).startswith(b"HTTP/1.1 400 ")
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(part)  # and closed: leaving waits for the door


async def test_a_peer_may_stop_writing_and_wait_for_its_answer() -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(post("/echo", b"body"))
        peer.sock.shutdown(socket.SHUT_WR)
        assert (await peer.rest()).endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize("part", [b"", b"GET /hel", post("/echo", b"abc")[:-1]])
async def test_a_peer_that_resets(part: bytes) -> None:
    async with connected(HTTPDoor(ROUTES), tcp_pair) as peer:
        await peer.send(part)
        await anyio.lowlevel.checkpoint()
        reset(peer.sock)
        await peer.served.wait()


async def test_a_peer_that_is_gone_before_it_is_served() -> None:
    def gone() -> tuple[socket.socket, socket.socket]:
        theirs, ours = tcp_pair()
        reset(ours)
        return theirs, socket.socket()

    async with connected(HTTPDoor(ROUTES), gone) as peer:
        await peer.served.wait()


async def test_a_peer_that_resets_before_its_answer() -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    async def wait(request: Request) -> Response:
        entered.set()
        await go_on.wait()
        return Response(200, bytes(5_000_000))

    async with connected(HTTPDoor({"/": {"GET": wait}}), tcp_pair) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await entered.wait()
        reset(peer.sock)
        go_on.set()
        await peer.served.wait()


async def test_plain_and_unusual_requests_and_answers_take_turns_on_one_connection() -> None:
    def told(request: Request) -> Response:
        return Response(200, b"told", headers=(("X-Told", "yes"),))

    async with connected(HTTPDoor({**ROUTES, "/told": {"GET": told}})) as peer:
        for _ in range(2):
            assert (await peer.post("/echo", b"plain")).body == b"plain"
            await peer.send(chunked("/echo", b"un", b"usual"))
            assert (await peer.answer()).body == b"unusual"
            answer = await peer.get("/told")
            assert (answer.body, answer.headers["x-told"]) == (b"told", "yes")
            assert (await peer.get("/hello", "HEAD")).status == 200
            await peer.send(post("/echo", b"one") + post("/echo", b"after") + chunked("/echo", b"another"))
            assert [(await peer.answer()).body for _ in range(3)] == [b"one", b"after", b"another"]
            assert (await peer.get("/nowhere")).status == 404
            assert (await peer.get("/echo", "DELETE")).headers["allow"]
        await peer.send(post("/echo", b"last", "Connection: close\r\n"))
        assert (await peer.answer()).headers["connection"] == "close"
        assert await peer.rest() == b""


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [
                    b"GET /hello HTTP/1.1\r\n",
                    b"Host: x\r\n",
                    b"\r\n",
                    b"Expect: 100-continue\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b"Content-Length: 3\r\n",
                    b"Connection: close\r\n",
                    b"3\r\nabc\r\n",
                    b"0\r\n\r\n",
                    post("/echo", b"abc"),
                ]
            ),
        ),
        max_size=12,
    )
)
async def test_whatever_is_sent_the_door_answers_in_http_and_closes(parts: list[bytes]) -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(b"".join(parts))
        peer.sock.shutdown(socket.SHUT_WR)
        answers = await peer.rest()
        assert answers[:9] in (b"", b"HTTP/1.1 ")


# Time


@pytest.mark.parametrize(
    "part", [b"G", b"GET /hello HTTP/1.1\r\nHost:", post("/echo", b"abc")[:-1], post("/echo", b"") + b"GET /"]
)
async def test_a_slow_request_is_answered_so(part: bytes) -> None:
    async with connected(HTTPDoor(ROUTES, timeout=0.01)) as peer:
        await peer.send(part)
        if part.endswith(b"GET /"):
            assert (await peer.answer()).status == 200
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert answer.body == failure(408, "no whole request within 0.01 seconds")
        assert await peer.rest() == b""


async def test_a_byte_now_and_then_buys_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each byte is there before the door waits for it: on uvloop such a wait is never cancelled.
    monkeypatch.setattr(http_conversation, "CHUNK", 1)
    async with connected(HTTPDoor(ROUTES, timeout=0.005, linger=0.1, max_header=50_000)) as peer:
        await peer.send(padded(50_000))
        assert (await peer.answer()).status == 408


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with connected(HTTPDoor(ROUTES, idle=0.01)) as peer:
        assert await peer.rest() == b""
    async with connected(HTTPDoor(ROUTES, idle=0.1)) as peer:
        assert (await peer.get("/hello")).status == 200
        assert await peer.rest() == b""


async def test_the_end_of_a_connection_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "goim_core.connection")
    door = HTTPDoor(ROUTES, idle=0.05)
    async with connected(door, tcp_pair) as peer:
        await peer.get("/hello")
        await peer.get("/hello")
    async with connected(door) as peer:
        await peer.send(b"\0")
        await peer.answer()
    async with connected(door) as peer:
        await peer.served.wait()
    async with connected(door, tcp_pair) as peer:
        reset(peer.sock)
        await peer.served.wait()
    async with connected(door) as peer:
        peer.cancel.cancel()
        await peer.served.wait()
    ends = [record for record in caplog.records if record.name == "goim_core.connection"]
    assert [record.getMessage() for record in ends[:3]] == [
        "127.0.0.1 (http) ended: closed, 2 requests",
        " (http) ended: refused with 400, 0 requests",
        " (http) ended: silent for too long, 0 requests",
    ]
    assert "connection lost: " in ends[3].getMessage()
    assert (ends[4].__dict__["reason"], ends[0].__dict__["requests"]) == ("the server is stopping", 2)
    caplog.set_level(logging.WARNING, "goim_core.connection")
    async with connected(door) as peer:
        await peer.get("/hello")
    assert len([record for record in caplog.records if record.name == "goim_core.connection"]) == 5


async def test_a_handler_may_take_longer_than_a_request() -> None:
    async def wait(request: Request) -> Response:
        with anyio.move_on_after(0.1):
            await anyio.sleep_forever()
        return Response(200, b"waited")

    async with connected(HTTPDoor({"/": {"GET": wait}}, timeout=0.02, idle=0.02)) as peer:
        assert (await peer.get("/")).body == b"waited"


async def test_a_peer_that_takes_nothing_of_its_answer_is_left() -> None:
    async with connected(
        HTTPDoor({"/": {"GET": lambda _: Response(200, bytes(20_000_000))}}, timeout=0.05), tcp_pair
    ) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.served.wait()
        assert len(await peer.rest()) < 20_000_000


async def test_a_large_answer_arrives_whole() -> None:
    body = bytes(range(256)) * 20_000
    async with connected(HTTPDoor({"/": {"GET": lambda _: Response(200, body)}})) as peer:
        for _ in range(2):
            assert (await peer.get("/")).body == body


async def test_an_answer_waits_for_room() -> None:
    filled = 0

    def full() -> tuple[socket.socket, socket.socket]:
        nonlocal filled
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                filled += theirs.send(bytes(4096))
        return theirs, ours

    async with connected(HTTPDoor(ROUTES), full) as peer:
        await peer.send(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for _ in range(10):
            await anyio.lowlevel.checkpoint()  # the door comes to its answer
        answer = await peer.rest()
        assert answer[:filled] == bytes(filled)
        assert answer[filled:].startswith(b"HTTP/1.1 200 ")


# Cancelling


@pytest.mark.parametrize("part", [b"", b"GET /hel", post("/echo", b"abc")[:-1], b"\0"])
async def test_cancelling_closes_the_socket(part: bytes) -> None:
    async with connected(HTTPDoor(ROUTES)) as peer:
        await peer.send(part)
        for _ in range(4):
            await anyio.lowlevel.checkpoint()
        peer.cancel.cancel()
        await peer.served.wait()
        assert (await peer.rest())[:13] in (b"", b"HTTP/1.1 400 ")


async def test_cancelling_ends_a_peer_that_never_pauses() -> None:
    async with connected(HTTPDoor(ROUTES), tcp_pair) as peer:

        async def ask() -> None:
            while not peer.served.is_set():
                await peer.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            for _ in range(100):
                await peer.answer()
            peer.cancel.cancel()
            await peer.served.wait()
            tasks.cancel_scope.cancel()


async def test_cancelling_a_handler_and_an_answer_closes_the_socket() -> None:
    entered, cancelled = anyio.Event(), anyio.Event()

    async def wait(request: Request) -> Response:
        entered.set()
        try:
            await anyio.sleep_forever()
            return Response()
        finally:
            cancelled.set()

    async with connected(HTTPDoor({"/": {"GET": wait}})) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await entered.wait()
        peer.cancel.cancel()
        await cancelled.wait()
        assert await peer.rest() == b""
    async with connected(HTTPDoor({"/": {"GET": lambda _: Response(200, bytes(20_000_000))}})) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.receive()).startswith(b"HTTP/1.1 200 ")
        peer.cancel.cancel()
        assert len(await peer.rest()) < 20_000_000


# Handlers with faults


def raises(request: Request) -> Response:
    raise LookupError("secret")


async def raises_later(request: Request) -> Response:
    await anyio.lowlevel.checkpoint()
    raise OSError("secret")


@pytest.mark.parametrize(
    ("handler", "logged"),
    [
        (raises, "secret"),
        (raises_later, "secret"),
        (lambda _: None, "a route has to return a Response, got NoneType"),
        (lambda _: b"bytes", "a route has to return a Response, got bytes"),
        (lambda _: Response(headers=(("X-A", "b\r\nX-C: d"),)), "Illegal header value"),
        (lambda _: Response(99), "status_code"),
    ],
)
async def test_a_handler_that_fails_is_logged_and_the_connection_goes_on(
    handler: Handler, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(HTTPDoor({**ROUTES, "/bad": {"GET": handler}})) as peer:
        answer = await peer.get("/bad")
        assert (answer.status, answer.body) == (500, failure(500, "internal error"))
        assert (await peer.get("/hello")).status == 200
    [record] = caplog.records
    assert (record.name, record.levelno) == ("goim_core.http", logging.ERROR)
    assert record.getMessage() == "GET /bad: the route failed"
    assert logged in caplog.text


# Options and pages


@pytest.mark.parametrize(
    ("routes", "options", "message"),
    [
        ({}, {"max_body": -1}, "max_body: expected at least 0, got -1"),
        ({}, {"max_header": 0}, "max_header: expected at least 1, got 0"),
        ({}, {"timeout": 0}, "timeout: expected more than 0 seconds, got 0"),
        ({}, {"idle": -1.5}, "idle: expected more than 0 seconds, got -1.5"),
        ({}, {"linger": float("nan")}, "linger: expected more than 0 seconds, got nan"),
        ({"a": {}}, {}, "routes: expected a path that begins with '/', got 'a'"),
        ({"/a": {"get": hello}}, {}, "routes: /a: expected a method like 'GET', got 'get'"),
        ({"/a": {"CONNECT": hello}}, {}, "routes: /a: expected a method like 'GET', got 'CONNECT'"),
    ],
)
def test_options_that_cannot_be_used(routes: Routes, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        HTTPDoor(routes, **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "index.html").write_text("<p>caf\u00e9", encoding="utf-8")
    (folder / "sub" / "index.html").write_text("sub")
    (folder / "a b.css").write_text("a")
    (folder / "data.unheard-of").write_bytes(b"\0")
    (tmp_path / "secret").write_text("secret")
    return folder


async def test_pages(site: Path) -> None:
    async with connected(HTTPDoor(pages(site))) as peer:
        (site / "index.html").write_text("changed")
        answer = await peer.get("/")
        assert (answer.status, answer.body) == (200, "<p>caf\u00e9".encode())
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        tag = answer.headers["etag"]
        assert await peer.get("/index.html") == answer
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            unchanged = await peer.get("/", headers=f"If-None-Match: {known}\r\n")
            assert unchanged == Answer(304, {"etag": tag, "cache-control": "no-cache"}, b"")
        assert (await peer.get("/", headers='If-None-Match: "other"\r\n')).status == 200
        assert (await peer.get("/sub/")).body == b"sub"
        assert (await peer.get("/a%20b.css")).headers["content-type"] == "text/css; charset=utf-8"
        assert (await peer.get("/data.unheard-of")).headers["content-type"] == "application/octet-stream"
        assert (await peer.get("/", "HEAD")).headers["content-length"] == "8"
        assert (await peer.get("/", "PUT")).headers["allow"] == "GET, HEAD"
        for path in ("/../secret", "/%2e%2e/secret", "/.git/config", "//", "/sub", "/sub/../index.html"):
            assert (await peer.get(path)).status == 404


async def test_pages_below_a_prefix_beside_other_routes(site: Path) -> None:
    async with connected(HTTPDoor({**pages(site, "/chat"), **ROUTES})) as peer:
        assert (await peer.get("/chat/")).status == 200
        assert (await peer.get("/chat/sub/index.html")).body == b"sub"
        assert (await peer.get("/hello")).status == 200
        assert (await peer.get("/")).status == 404


def test_pages_need_a_folder(site: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder: expected a folder"):
        pages(site.parent / "secret")
