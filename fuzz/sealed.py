"""Target: the HTTP door over TLS: requests in records, cut anywhere; or bytes that are no TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, TypeVar

import trustme

from fuzz import requests
from fuzz.cuts import pieces
from fuzz.loop import nothing_logged, run
from goim_core.tls import TLSSocket

__all__ = ["check", "seeds"]

T = TypeVar("T")
RAW = 0x80
"""A first byte with this bit: what follows is sent as it is, and not as TLS."""
SIZE = 1 << 16


def check(data: bytes) -> None:
    """Over TLS the door answers as it does without; and to what is no TLS with records, or not at all."""
    parts = pieces(data)
    if data and data[0] & RAW:
        _check_records(run(_exchanged_raw(b"".join(parts))))
        return
    answered, heard = run(_exchanged(parts))
    answers = list(requests.answers_in(answered))
    if not any(status == 431 for status, _ in answers):  # h11 measures what has come so far
        assert (answers, heard) == requests.exchanged(b"".join(parts), [])


def _check_records(received: bytes) -> None:
    while received:
        assert received[0] in (20, 21, 22, 23), received[:20]
        assert received[1] == 3, received[:20]
        end = 5 + int.from_bytes(received[3:5])
        assert end <= len(received), received[:20]
        received = received[end:]


async def _exchanged_raw(stream: bytes) -> bytes:
    service = requests.Service()
    client, server = _pair()
    with client, nothing_logged():
        client.sendall(stream)
        client.shutdown(socket.SHUT_WR)
        await requests.door_to(service).serve(TLSSocket(server, _contexts()[0]))
        assert not service.heard
        return await _rest(client)


async def _exchanged(parts: list[bytes]) -> tuple[bytes, list[Any]]:
    service = requests.Service()
    client, server = _pair()
    with client, nothing_logged():
        serving = requests.door_to(service).serve(TLSSocket(server, _contexts()[0]))
        answered, _ = await asyncio.gather(_Client(client).exchange(parts), serving)
        return answered, service.heard


class _Client:
    """The other end of TLS over ``sock``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _contexts()[1].wrap_bio(self._incoming, self._outgoing)

    async def exchange(self, parts: list[bytes]) -> bytes:
        """Send each part in a record of its own and end; what is answered."""
        await self._through(self._tls.do_handshake)
        for part in parts:
            await self._through(partial(self._tls.write, part))
        self._sock.shutdown(socket.SHUT_WR)
        received = b""
        while part := await self._through(self._read):
            received += part
        return received

    def _read(self) -> bytes:
        try:
            return self._tls.read(SIZE)
        except ssl.SSLZeroReturnError:
            return b""

    async def _through(self, call: Callable[[], T]) -> T:
        while True:
            try:
                found = call()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await asyncio.get_running_loop().sock_recv(self._sock, SIZE):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return found

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await asyncio.get_running_loop().sock_sendall(self._sock, data)


def _pair() -> tuple[socket.socket, socket.socket]:
    client, server = socket.socketpair()
    client.setblocking(False)
    server.setblocking(False)
    return client, server


async def _rest(client: socket.socket) -> bytes:
    received = b""
    while data := await asyncio.get_running_loop().sock_recv(client, SIZE):
        received += data
    return received


@lru_cache
def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's, and one of a client that takes any certificate."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return server, client


def seeds() -> Iterator[bytes]:
    """The requests of the other target, and the begin of a handshake."""
    yield from requests.seeds()
    yield bytes((RAW,)) + b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"
    yield bytes((RAW,)) + b"GET / HTTP/1.1\r\n\r\n"
