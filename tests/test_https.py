"""HTTP over TLS on real sockets: the door alone, then a server with keys, certificates, and new ones of both."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from goim_core import ConfigurationError, OpenAuth, Options, Request, Response, Server, server_context
from goim_core.errors import ServerStopped
from goim_core.guard import Guard
from goim_core.http_door import HTTPDoor
from goim_core.tls import TLSSocket
from tests.e2e.clients import World, frame, serve
from tests.test_http_door import ROUTES, Peer, failure, post
from tests.tls import Authority, secured

pytestmark = pytest.mark.anyio

KEY, NEXT = "the-key-of-pushers", "the-next-key-of-pushers"
ANYWHERE = "127.0.0.1:0"
PUSH = "/goim/push/all?operation=1000"
DONE = b'{"code":0,"message":""}'
BEARER = f"Authorization: Bearer {KEY}\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("strangers"))


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    return server_context(authority.issue())


class SecuredPeer(Peer):
    """A peer whose socket is an SSLSocket, which waits for the other direction at times."""

    async def send(self, data: bytes) -> None:
        while data:
            try:
                data = data[self.sock.send(data) :]
            except ssl.SSLWantWriteError:
                await anyio.wait_writable(self.sock)
            except ssl.SSLWantReadError:
                await anyio.wait_readable(self.sock)

    async def receive(self) -> bytes:
        while True:
            try:
                return self.sock.recv(65536)
            except ssl.SSLWantReadError:
                await anyio.wait_readable(self.sock)


@asynccontextmanager
async def connected(
    door: HTTPDoor, context: ssl.SSLContext, client: ssl.SSLContext | None, **served: Any
) -> AsyncIterator[Peer]:
    """A peer of ``door``, after the handshake where it has a context for one."""
    theirs, ours = socket.socketpair()
    for sock in (theirs, ours):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await door.serve(TLSSocket(theirs, context), **served)

            tasks.start_soon(run)
            peer = Peer(ours) if client is None else SecuredPeer(await secured(ours, client))
            try:
                yield peer
            finally:
                peer.sock.close()
    assert theirs.fileno() == -1


# The door


async def test_requests_and_answers(authority: Authority, context: ssl.SSLContext) -> None:
    async with connected(HTTPDoor(ROUTES), context, authority.client()) as peer:
        assert (await peer.get("/hello")).body == b"hello"
        assert (await peer.post("/echo", b"one")).body == b"one"
        await peer.send(post("/echo", b"two") + post("/echo", b"three"))
        assert [(await peer.answer()).body, (await peer.answer()).body] == [b"two", b"three"]
        await peer.send(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await peer.answer()).body == b"hello"
        assert await peer.rest() == b""  # with TLS's own end: without it this raises


async def test_more_than_the_kernel_takes_at_once(authority: Authority, context: ssl.SSLContext) -> None:
    body = bytes(range(256)) * 4000
    async with connected(HTTPDoor(ROUTES), context, authority.client()) as peer:
        await peer.send(post("/echo", body))
        assert (await peer.answer()).body == body
        assert (await peer.get("/hello")).status == 200


async def test_a_handshake_of_more_than_the_kernel_takes_at_once(
    authority: Authority, tmp_path: Path
) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(authority.issue().read_bytes() + authority.file.read_bytes() * 30)
    async with connected(HTTPDoor(ROUTES), server_context(chain), authority.client()) as peer:
        assert (await peer.get("/hello")).body == b"hello"


async def test_the_last_answer_is_sent_to_a_slow_peer_too(
    authority: Authority, context: ssl.SSLContext
) -> None:
    body = bytes(300_000)
    async with connected(HTTPDoor(ROUTES, linger=1e-6), context, authority.client()) as peer:
        await peer.send(post("/echo", body, "Connection: close\r\n"))
        assert (await peer.answer()).body == body


async def test_a_peer_that_takes_none_of_its_answer(authority: Authority, context: ssl.SSLContext) -> None:
    def much(request: Request) -> Response:
        return Response(200, bytes(1 << 20))

    async with connected(HTTPDoor({"/": {"GET": much}}, timeout=0.1), context, authority.client()) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(OSError):  # noqa: PT011  # a stream that was cut, or a reset
            while True:
                await anyio.wait_writable(peer.sock)
                await peer.send(b"\r\n")
                await anyio.lowlevel.checkpoint()


async def test_a_refused_body_does_not_take_its_answer_away(
    authority: Authority, context: ssl.SSLContext
) -> None:
    async with connected(HTTPDoor(ROUTES, max_body=1), context, authority.client()) as peer:
        await peer.send(post("/echo", b"x" * 300_000))  # sent to the end before the answer is read
        assert (await peer.answer()).body == failure(413, "body: expected at most 1 bytes")
        assert await peer.rest() == b""


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_that_does_not_come_is_bounded(said: bytes, context: ssl.SSLContext) -> None:
    async with connected(HTTPDoor(ROUTES, timeout=0.01, idle=1000), context, None) as peer:
        await peer.send(said)
        assert await peer.rest() == b""


async def test_a_byte_of_the_handshake_now_and_then_buys_no_time(
    authority: Authority, context: ssl.SSLContext
) -> None:
    to_client, from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.client().wrap_bio(to_client, from_client, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = from_client.read()
    async with connected(HTTPDoor(ROUTES, timeout=0.05, idle=1000), context, None) as peer:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for byte in hello[: len(hello) - 1] * 100_000:
                await peer.send(bytes([byte]))
                await anyio.lowlevel.checkpoint()


async def test_the_first_request_is_as_bounded_as_the_handshake(
    authority: Authority, context: ssl.SSLContext
) -> None:
    door = HTTPDoor(ROUTES, timeout=0.3, idle=1000)
    async with connected(door, context, authority.client()) as peer:
        assert await peer.rest() == b""
    door.timeout, door.idle = 1000, 0.01
    async with connected(door, context, authority.client()) as peer:
        assert (await peer.get("/hello")).status == 200
        assert await peer.rest() == b""  # idle between two requests; TLS's own end, so no truncation


async def test_plain_http_is_not_understood(context: ssl.SSLContext) -> None:
    async with connected(HTTPDoor(ROUTES), context, None) as peer:
        await peer.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in await peer.rest()


async def test_a_guarded_body_is_not_read(authority: Authority, context: ssl.SSLContext) -> None:
    door = HTTPDoor({}, guarded={"/push": {"POST": lambda _: Response()}}, guard=Guard([KEY]))
    async with connected(door, context, authority.client()) as peer:
        await peer.send(b"POST /push HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert door.refusals == {"api_keys": 1}
    async with connected(door, context, authority.client(), certified=True) as peer:
        assert (await peer.post("/push", b"x")).status == 200


async def test_a_path_of_the_applications_own_is_its_own_to_guard(
    authority: Authority, context: ssl.SSLContext
) -> None:
    guarded = {"/push": {"POST": lambda _: Response(500)}}
    door = HTTPDoor({"/push": {"POST": lambda _: Response()}}, guarded=guarded, guard=Guard([KEY]))
    async with connected(door, context, authority.client()) as peer:
        assert (await peer.post("/push", b"x")).status == 200


# A server


@asynccontextmanager
async def dialed(
    world: World, authority: Authority, certificate: Path | None = None
) -> AsyncIterator[SecuredPeer]:
    """A client of the https door."""
    sock = await secured(
        await world.dial_address(world.server.addresses["https"][0]), authority.client(certificate)
    )
    try:
        yield SecuredPeer(sock)
    finally:
        sock.close()


async def refused(world: World, authority: Authority, certificate: Path | None) -> None:
    """Assert that the handshake fails: with TLS 1.3 a client hears of it with its first read."""
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        async with dialed(world, authority, certificate) as peer:
            await peer.get("/goim/online/total")


async def test_api_keys(authority: Authority, context: ssl.SSLContext) -> None:
    async with serve(https=ANYWHERE, ssl_context=context, api_keys=[KEY]) as world:
        client = await world.login("tcp", accepts=[1000])
        async with dialed(world, authority) as peer:
            assert (await peer.post(PUSH, b"hi", BEARER)).body == DONE
            assert (await client.frame())[16:] == b"hi"
            assert (await peer.get("/goim/nodes/weighted")).status == 200
            assert (await peer.get("/goim/online/total", headers=BEARER)).status == 200
            assert (await peer.post(PUSH, b"hi")).status == 401
        for door in ("http", "https"):  # loopback too, where there are keys
            for path in ("/goim/online/total", "/goim/online/top", "/goim/nodes/instances"):
                if door == "http":
                    status, said = await world.http("GET", path)
                    assert (status, said["code"]) == (401, -401)
                    continue
                async with dialed(world, authority) as peer:
                    assert (await peer.get(path)).status == 401


async def test_client_certificates(
    authority: Authority, strangers: Authority, context: ssl.SSLContext
) -> None:
    mutual = server_context(authority.issue(), client_ca=authority.file)
    me = authority.issue("pusher@example.org", "pusher")
    async with serve(https=ANYWHERE, ssl_context=context, https_context=mutual, api_keys=[KEY]) as world:
        async with dialed(world, authority, me) as peer:
            assert (await peer.post(PUSH, b"hi")).body == DONE
            assert (await peer.post(PUSH, b"hi", "Origin: https://evil.example\r\n")).status == 403
        await refused(world, authority, None)
        await refused(world, authority, strangers.issue("pusher@example.org", "pusher"))
        assert (await world.http("GET", "/goim/online/total"))[0] == 401  # plain, so nothing was shown


async def test_a_clients_certificate_is_none_of_a_pusher(authority: Authority) -> None:
    mutual = server_context(authority.issue(), client_ca=authority.file)
    me = authority.issue("client@example.org", "client")
    for shared in ({}, {"https_context": mutual}):
        async with serve(https=ANYWHERE, ssl_context=mutual, api_keys=[KEY], **shared) as world:
            async with dialed(world, authority, me) as peer:
                assert (await peer.post(PUSH, b"hi")).status == 401
            await refused(world, authority, None)


async def test_without_keys_on_loopback_only_web_pages_are_refused(
    authority: Authority, context: ssl.SSLContext
) -> None:
    async with serve(https=ANYWHERE, ssl_context=context) as world:
        async with dialed(world, authority) as peer:
            await peer.send(f"POST {PUSH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            assert (await peer.answer()).body == DONE
            assert (await peer.get("/goim/nodes/weighted")).status == 200  # Host: x
            assert (await peer.get("/goim/online/total")).status == 403


# Where it may listen


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", ("0.0.0.0", 0), ["127.0.0.1:0", "0.0.0.0:0"]])
async def test_beyond_loopback_it_does_not_start_without_a_key(address: Any) -> None:
    server = Server(auth=OpenAuth(), http=address)
    with pytest.raises(ConfigurationError, match="^http: at .* could push: set api_keys .--api-key-file"):
        async with server:
            pass
    async with Server(auth=OpenAuth(), http=address, api_keys=[KEY]) as server:
        assert server.port("http")


async def test_https_beyond_loopback(authority: Authority, context: ssl.SSLContext) -> None:
    everywhere: dict[str, Any] = {"auth": OpenAuth(), "https": ":0"}
    mutual = server_context(authority.issue(), client_ca=authority.file)
    for contexts in ({"ssl_context": context}, {"ssl_context": mutual}, {"https_context": context}):
        with pytest.raises(ConfigurationError, match="^https: at "):
            async with Server(**everywhere, **contexts):
                pass
        async with Server(**everywhere, **contexts, api_keys=[KEY]) as server:
            assert server.port("https")
    async with Server(**everywhere, https_context=mutual) as server:
        assert server.port("https")
    with pytest.raises(ConfigurationError, match="^http: at "):  # the other door asks for nothing
        async with Server(**everywhere, https_context=mutual, http="0.0.0.0:0"):
            pass


async def test_loopback_and_unix_sockets_need_no_key(tmp_path: Path) -> None:
    at = ["localhost:0", ":0", f"unix:{tmp_path / 'push.sock'}"]
    async with Server(auth=OpenAuth(), http=at) as server:
        assert len(server.addresses["http"]) >= 3


class Stranger:
    """A socket that somebody accepted at another address of this machine."""

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.1", 3111


async def test_a_socket_that_was_accepted_elsewhere() -> None:
    async with Server(auth=OpenAuth(), http=ANYWHERE) as server:
        with pytest.raises(ConfigurationError, match=r"^http: at 192\.0\.2\.1 "):
            server.accept(cast("Any", Stranger()), "http")
        with pytest.raises(ConfigurationError, match="^ssl_context: expected an ssl.SSLContext, which https"):
            server.accept(cast("Any", Stranger()), "https")


@pytest.mark.parametrize("argument", ["ssl_context", "https_context"])
def test_a_clients_context_is_refused(argument: str, context: ssl.SSLContext) -> None:
    contexts: dict[str, Any] = {"ssl_context": context, argument: ssl.create_default_context()}
    with pytest.raises(ConfigurationError, match=f"^{argument}: expected a server's context"):
        Server(auth=OpenAuth(), https=ANYWHERE, **contexts)


def test_https_needs_a_context() -> None:
    with pytest.raises(
        ConfigurationError, match="^ssl_context: expected an ssl.SSLContext, which https needs"
    ):
        Server(auth=OpenAuth(), https=ANYWHERE)


# Reload


def serial(peer: SecuredPeer) -> object:
    certificate = cast("ssl.SSLSocket", peer.sock).getpeercert()
    assert certificate is not None
    return certificate["serialNumber"]


async def test_new_clients_get_the_new_certificate(authority: Authority, context: ssl.SSLContext) -> None:
    doors = {"https": ANYWHERE, "wss": ANYWHERE, "ssl_context": context, "client_tls": authority.client()}
    async with serve(**doors) as world:
        old_client = await world.login("wss")
        async with dialed(world, authority) as old:
            world.server.reload(ssl_context=server_context(authority.issue("localhost", "renewed")))
            async with dialed(world, authority) as new:
                assert serial(old) != serial(new)
                assert (await new.get("/goim/nodes/weighted")).status == 200
            new_client = await world.login("wss")
            assert (await old.get("/goim/nodes/weighted")).status == 200
        assert await old_client.beat() == 0 == await new_client.beat()
        assert old_client.sock.getpeercert() != new_client.sock.getpeercert()  # type: ignore[attr-defined]


async def test_the_contexts_are_reloaded_apart(authority: Authority, context: ssl.SSLContext) -> None:
    async with serve(https=ANYWHERE, ssl_context=context, https_context=context) as world:
        world.server.reload(ssl_context=server_context(authority.issue("localhost", "renewed")))
        async with dialed(world, authority) as same:
            world.server.reload(https_context=server_context(authority.issue("localhost", "renewed")))
            async with dialed(world, authority) as new:
                assert serial(same) != serial(new)


async def test_keys_are_rotated(authority: Authority, context: ssl.SSLContext) -> None:
    async with serve(https=ANYWHERE, ssl_context=context, api_keys=[KEY]) as world:
        async with dialed(world, authority) as peer:
            for keys, good in (([KEY, NEXT], KEY), ([KEY, NEXT], NEXT), ([NEXT], NEXT)):
                world.server.reload(api_keys=keys)
                assert (await peer.post(PUSH, b"", f"X-API-Key: {good}\r\n")).body == DONE
            world.server.reload(ssl_context=context)  # says nothing of keys
            assert (await peer.post(PUSH, b"", f"X-API-Key: {KEY}\r\n")).status == 401
        world.server.reload(api_keys=())
        assert (await world.http("POST", PUSH, b""))[0] == 200


async def test_what_cannot_be_changes_nothing(authority: Authority) -> None:
    mutual = server_context(authority.issue(), client_ca=authority.file)
    me = authority.issue("pusher@example.org", "pusher")
    async with serve(https="[::]:0", https_context=mutual, http="0.0.0.0:0", api_keys=[KEY]) as world:
        with pytest.raises(ConfigurationError, match="^api_keys: expected keys of"):
            world.server.reload(api_keys=["short"], https_context=server_context(authority.issue()))
        with pytest.raises(ConfigurationError, match="^http: at "):
            world.server.reload(api_keys=(), https_context=server_context(authority.issue()))
        sock = await world.dial_address(("::1", world.server.port("https")))
        async with aclosing_socket(await secured(sock, authority.client(me))) as peer:
            assert (await peer.post(PUSH, b"")).body == DONE
        status, _ = await world.http("GET", "/goim/online/total")
        assert status == 401
    with pytest.raises(ServerStopped):
        world.server.reload(api_keys=[KEY])


@asynccontextmanager
async def aclosing_socket(sock: ssl.SSLSocket) -> AsyncIterator[SecuredPeer]:
    try:
        yield SecuredPeer(sock)
    finally:
        sock.close()


# Origins


def handshake(origin: str) -> bytes:
    return (
        "GET /sub HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{origin}\r\n"
    ).encode()


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("", b"101"),
        ("Origin: https://chat.example\r\n", b"101"),
        ("Origin: https://evil.example\r\n", b"403"),
    ],
)
async def test_pages_of_other_origins_may_not_connect(origin: str, status: bytes) -> None:
    async with serve(options=Options(origins=["https://chat.example"])) as world:
        peer = Peer(await world.dial("ws"))
        await peer.send(handshake(origin))
        assert (await peer.receive()).startswith(b"HTTP/1.1 " + status)


async def test_origins_are_reloaded() -> None:
    async with serve() as world:
        world.server.reload(options=Options(origins=["https://chat.example"]))
        client = await world.login("ws")  # names no origin
        world.server.reload(options=Options(origins=["https://chat.example"], max_body=64))
        peer = Peer(await world.dial("ws"))
        await peer.send(handshake("Origin: https://evil.example\r\n"))
        assert (await peer.receive()).startswith(b"HTTP/1.1 403 ")
        await client.send(frame(2, bytes(65)))
        assert (await client.told()).code == 1009
