"""The limits that need sockets: how fast connections are accepted, what is told on each door, HTTP, TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from goim_core.admission import Admission, Seats
from goim_core.auth import OpenAuth
from goim_core.channel import Counters
from goim_core.clock import Deadlines
from goim_core.errors import CloseCode
from goim_core.http_door import Request, Response
from goim_core.listener import PAUSE, Listener, bind
from goim_core.options import Options
from goim_core.protocol import Op, encode, split
from goim_core.server import Server
from goim_core.testing import ManualClock
from goim_core.wire import read_disconnect
from tests.test_listener import Watch

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


@pytest.fixture
def closing() -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:
        yield stack.enter_context


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


# How fast.


def test_accepts_a_second_who_is_more_waits_in_the_backlog(closing: Callable[..., Any]) -> None:
    clock, counters = ManualClock(), Counters()
    deadlines = Deadlines(clock)
    admission = Admission(counters, clock, Options(accept_rate=10))
    accepted = []

    def accept(sock: socket.socket, address: str) -> None:
        assert admission.refusal(address) == ""
        accepted.append(closing(sock))

    (sock,) = bind("tcp", f"{HOST}:0", 64)
    watch: Any = Watch()
    listener = Listener(closing(sock), accept, watch, deadlines, admission.room)
    clients = [closing(socket.create_connection(sock.getsockname())) for _ in range(10)]
    listener.on_readable()
    assert len(accepted) == 10
    assert counters.refusals == {}
    clients += [closing(socket.create_connection(sock.getsockname())) for _ in range(5)]
    listener.on_readable()
    assert len(accepted) == 10
    assert watch.reading == {sock: False}
    assert counters.refusals == {"accept_rate": 1}
    clock.advance(PAUSE + 0.25)
    deadlines.expire()
    assert watch.reading == {sock: True}
    listener.on_readable()
    assert len(accepted) == 15
    assert watch.reading == {sock: True}


@given(
    st.sampled_from([0.5, 1.0, 3.0, 7.0, 5000.0]),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 30)), max_size=20),
)
def test_the_rate_against_a_simple_model(rate: float, steps: list[tuple[int, int]]) -> None:
    clock = ManualClock()
    admission = Admission(Counters(), clock, Options(accept_rate=rate))
    tokens = most = max(rate, 1.0)
    for milliseconds, wanted in steps:
        clock.advance(milliseconds / 1000)
        tokens = min(most, tokens + rate * milliseconds / 1000)
        room = min(admission.room(), wanted)
        assert min(int(tokens - 0.002), wanted) <= room <= min(int(tokens + 0.002), wanted)
        for _ in range(room):
            admission.refusal("")
        tokens -= room


def test_any_number_a_second() -> None:
    admission = Admission(Counters(), ManualClock(), Options(accept_rate=0))
    for _ in range(10_000):
        assert admission.refusal("") == ""
    assert admission.room() > 10_000


# What is told.


async def answer(server: Server, door: str) -> bytes:
    async with await anyio.connect_tcp(HOST, server.port(door)) as stream:
        received = b""
        try:
            while True:
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return received


async def test_each_door_tells_in_its_own_way(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    doors = dict.fromkeys(("tcp", "ws", "tls", "wss"), f"{HOST}:0")
    with anyio.fail_after(20):
        async with Server(
            auth=OpenAuth(), ssl_context=contexts[0], options=Options(max_connections=1), **doors
        ) as server:
            async with await anyio.connect_tcp(HOST, server.port("tcp")):
                await until(lambda: server.stats().connections == 1)
                [frame] = split(await answer(server, "tcp"))
                assert frame.op == Op.DISCONNECT_REPLY
                assert read_disconnect(frame.body).code == CloseCode.TRY_AGAIN_LATER
                head, _, body = (await answer(server, "ws")).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                assert b"\r\nRetry-After: 5" in head
                assert body == b"the server is full: try again later\n"
                assert await answer(server, "tls") == b""
                assert await answer(server, "wss") == b""
            assert server.stats().refusals == {"max_connections": 4}
            await until(lambda: server.stats().connections == 0)


# HTTP.


async def get(stream: Any, header: bytes = b"") -> bytes:
    await stream.send(b"GET /x HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n")
    data: bytes = await stream.receive()
    return data.partition(b"\r\n")[0].removeprefix(b"HTTP/1.1 ")


def hello(request: Request) -> Response:
    return Response(200, b"hello")


def http_server(**options: Any) -> Server:
    routes = {"/x": {"GET": hello, "POST": hello}}
    return Server(auth=OpenAuth(), http=f"{HOST}:0", routes=routes, options=Options(**options))


async def test_http_connections_who_is_silent_longest_gives_way() -> None:
    with anyio.fail_after(20):
        async with http_server(http_max_connections=2) as server:
            streams = [await anyio.connect_tcp(HOST, server.port("http")) for _ in range(2)]
            for stream in (streams[0], streams[1], streams[0]):
                assert (await get(stream)).startswith(b"200")
            assert server.stats().http_connections == 2
            assert server.stats().refusals == {}
            streams.append(await anyio.connect_tcp(HOST, server.port("http")))
            assert (await get(streams[2])).startswith(b"200")
            assert server.stats().http_connections == 2
            assert server.stats().refusals == {"http_max_connections": 1}
            with pytest.raises(anyio.EndOfStream):
                await streams[1].receive()
            assert (await get(streams[0])).startswith(b"200")
            for stream in streams:
                await stream.aclose()
            await until(lambda: server.stats().http_connections == 0)


async def test_who_is_half_way_through_a_request_is_told_that_it_gives_way() -> None:
    with anyio.fail_after(20):
        async with http_server(http_max_connections=1) as server:
            async with await anyio.connect_tcp(HOST, server.port("http")) as slow:
                await slow.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
                await until(lambda: server.stats().http_connections == 1)
                async with await anyio.connect_tcp(HOST, server.port("http")) as other:
                    assert (await get(other)).startswith(b"200")
                assert b" 503 " in await slow.receive()


async def test_nobody_gives_way_while_a_request_is_answered() -> None:
    begun, go = anyio.Event(), anyio.Event()

    async def slowly(request: Request) -> Response:
        begun.set()
        await go.wait()
        return Response(200)

    options = Options(http_max_connections=1)
    with anyio.fail_after(20):
        async with Server(
            auth=OpenAuth(), http=f"{HOST}:0", routes={"/x": {"GET": slowly}}, options=options
        ) as server:
            first = await anyio.connect_tcp(HOST, server.port("http"))
            await first.send(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            await begun.wait()
            second = await anyio.connect_tcp(HOST, server.port("http"))
            await second.send(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: server.stats().refusals.get("http_max_connections"))
            go.set()
            assert (await first.receive()).startswith(b"HTTP/1.1 200")
            assert (await second.receive()).startswith(b"HTTP/1.1 200")
            for stream in (first, second):
                await stream.aclose()


async def test_half_of_them_at_most_are_of_one_address() -> None:
    with anyio.fail_after(20):
        async with http_server(http_max_connections=4, trusted=()) as server:
            streams = [await anyio.connect_tcp(HOST, server.port("http")) for _ in range(2)]
            for stream in streams:
                assert (await get(stream)).startswith(b"200")
            assert (await answer(server, "http")).startswith(b"HTTP/1.1 503")
            assert server.stats().refusals == {"http_max_connections": 1}
            await streams[0].aclose()
            await until(lambda: server.stats().http_connections == 1)
            async with await anyio.connect_tcp(HOST, server.port("http")) as stream:
                assert (await get(stream)).startswith(b"200")
            await streams[1].aclose()


def test_half_of_them_at_most_are_of_one_network() -> None:
    counters = Counters()
    options = Options(http_max_connections=4)
    seats = Seats(counters, Admission(counters, ManualClock(), options), options, abs)
    assert [seats.take(f"2001:db8::{number}") for number in range(4)] == [True, True, False, False]
    assert seats.take("2001:db8:0:1::1")
    for address in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"):
        seats.leave(address)
    assert (counters.http, len(seats._addresses)) == (0, 0)


async def test_the_sizes_of_a_request() -> None:
    with anyio.fail_after(20):
        async with http_server(http_max_header=200, http_max_body=100) as server:

            async def status(header: bytes) -> bytes:
                async with await anyio.connect_tcp(HOST, server.port("http")) as stream:
                    return (await get(stream, header))[:3]

            # The head: 19 bytes of request line, 9 of Host, 7 around the value; 14 and 4 each are counted.
            assert await status(b"A: " + bytes(100).replace(b"\0", b"a") + b"\r\n") == b"200"
            assert server.stats().refusals == {}
            assert await status(b"A: " + bytes(200).replace(b"\0", b"a") + b"\r\n") == b"431"
            assert await status(b"Content-Length: 101\r\n") == b"413"
            assert server.stats().refusals == {"http_max_header": 1, "http_max_body": 1}
            server.reload(options=attrs.evolve(server.options, http_max_header=1000, http_timeout=0.01))
            assert await status(b"A: " + bytes(200).replace(b"\0", b"a") + b"\r\n") == b"200"
            assert await status(b"Content-Length: 100\r\n") == b"408"
            assert server.stats().refusals["http_timeout"] == 1
            server.reload(options=attrs.evolve(server.options, http_idle=0.01))
            assert await answer(server, "http") == b"", "nothing was asked in time"


# TLS.


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert(HOST).configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def attempted(step: Callable[[], Any]) -> Any:
    """What ``step`` returns, once it need not wait."""
    with anyio.fail_after(10):
        while True:
            try:
                return step()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                await anyio.lowlevel.checkpoint()


async def test_cipher_text_that_waits_is_counted_and_has_its_time(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], closing: Callable[..., Any]
) -> None:
    clock = ManualClock()
    options = Options(write_timeout=5, outbox_total=1 << 20)
    async with Server(
        auth=OpenAuth(), tls=f"{HOST}:0", ssl_context=contexts[0], options=options, clock=clock
    ) as server:
        for end in ("time", "pressure"):
            raw, peer = socket.socketpair()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            for sock in (raw, peer):
                sock.setblocking(False)
            server.accept(raw, "tls")
            client = contexts[1].wrap_socket(peer, server_hostname=HOST, do_handshake_on_connect=False)
            closing(client)
            await attempted(client.do_handshake)
            token = b'{"mid":1,"key":"%s","accepts":[1000]}' % end.encode()
            await attempted(partial(client.send, encode(Op.AUTH, token)))
            await attempted(partial(client.recv, 100))
            await server.push_keys([end], 1000, bytes(500_000))
            await until(lambda: server.stats().outbox_bytes > 100_000)
            channel = server._comet.buckets.get(end)
            assert channel is not None
            assert channel.outbox is None, "all of it is encrypted"
            assert server.stats().outbox_bytes == channel.sock.waiting  # type: ignore[attr-defined]
            if end == "time":
                clock.advance(4.9)
                await until(lambda: clock.sleepers)
                assert server.stats().connections == 1
                clock.advance(0.7)
                await until(lambda: server.stats().closes)
                assert server.stats().closes == {CloseCode.SLOW: 1}
                clock.advance(5)
            else:
                server.reload(options=attrs.evolve(options, outbox_total=100_000))
            await until(lambda: server.stats().connections == 0)
            assert server.stats().outbox_bytes == 0
        assert server.stats().refusals == {"outbox_total": 1}
        clock.release()
