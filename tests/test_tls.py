"""TLS over a socket pair: a peer that is OpenSSL's own, and a kernel that takes little at a time."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goim_core.outbox import Account
from goim_core.tls import RECORD, TLSSocket

HOST = "server.example"


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert(HOST).configure_cert(server)
    authority.configure_trust(client)
    return server, client


class Pair:
    """The server's end, and a client beside it whose own end never blocks."""

    def __init__(self, contexts: tuple[ssl.SSLContext, ssl.SSLContext], verify: bool = True) -> None:
        server, client = contexts
        self.raw, self.peer = socket.socketpair()
        for sock in (self.raw, self.peer):
            sock.setblocking(False)
        self.server = TLSSocket(self.raw, server)
        self.blocked = 0
        self.server.on_blocked = self.on_blocked
        self.client = client.wrap_socket(
            self.peer, server_hostname=HOST if verify else "other.example", do_handshake_on_connect=False
        )

    def on_blocked(self) -> None:
        self.blocked += 1

    def shake_hands(self) -> None:
        for _ in range(10):
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                with pytest.raises(BlockingIOError):
                    self.server.recv(65536)
            else:
                break
        with pytest.raises(BlockingIOError):
            self.server.recv(65536)

    def client_reads(self) -> bytes:
        data = b""
        try:
            while part := self.client.recv(65536):
                data += part
        except ssl.SSLWantReadError:
            pass
        return data

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture
def pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Pair]:
    made = Pair(contexts)
    yield made
    made.close()


@pytest.fixture
def shaken(pair: Pair) -> Pair:
    pair.shake_hands()
    return pair


def small_buffers(pair: Pair) -> None:
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def test_it_is_the_socket_that_it_wraps(pair: Pair) -> None:
    assert pair.server.fileno() == pair.raw.fileno() >= 0
    pair.server.close()
    assert pair.server.fileno() == -1


def test_plain_text_both_ways(shaken: Pair) -> None:
    shaken.client.send(b"from the client")
    assert shaken.server.recv(65536) == b"from the client"
    assert shaken.server.send(b"from the server") == len(b"from the server")
    assert shaken.client_reads() == b"from the server"
    assert not shaken.server.blocked
    assert not shaken.blocked


def test_several_records_in_one_read_come_together(shaken: Pair) -> None:
    for _ in range(3):
        shaken.client.send(b"part")
    assert shaken.server.recv(65536) == b"part" * 3


def test_a_record_in_pieces(shaken: Pair) -> None:
    shaken.client.send(b"whole")
    received = b""
    blocked = 0
    for _ in range(200):
        try:
            received += shaken.server.recv(1)
        except BlockingIOError:
            blocked += 1
        if received:
            break
    assert received == b"whole"
    assert blocked > 5


def test_nothing_to_read(shaken: Pair) -> None:
    with pytest.raises(BlockingIOError):
        shaken.server.recv(65536)


def test_what_is_sent_after_the_end_does_not_wait(shaken: Pair) -> None:
    shaken.server.account = account = Account()
    shaken.server.close()
    for _ in range(2):
        with pytest.raises(OSError, match="descriptor"):
            shaken.server.send(b"of a push that is under way")
    assert account.waiting == 0


def test_sending_before_the_handshake_is_an_error_of_the_socket(pair: Pair) -> None:
    with pytest.raises(OSError, match="did not complete"):
        pair.server.send(b"too early")


def test_a_peer_that_does_not_speak_tls_is_an_error(pair: Pair) -> None:
    raw = socket.socket(fileno=pair.client.detach())
    raw.send(b"\0\0\0\x10\0\x10\0\1\0\0\0\7\0\0\0\0" * 2)
    with pytest.raises(ssl.SSLError):
        pair.server.recv(65536)
    raw.close()


def test_a_client_with_which_nothing_can_be_agreed_on_is_told_so(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # the server's certificate is of another kind
    pair = Pair((contexts[0], client))
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.do_handshake()
    with pytest.raises(ssl.SSLError):
        pair.server.recv(65536)
    with pytest.raises(ssl.SSLError, match="(?i)alert"):
        pair.client.do_handshake()
    pair.close()


def test_a_client_that_does_not_trust_the_server(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    pair = Pair(contexts, verify=False)
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.do_handshake()
    with pytest.raises(BlockingIOError):
        pair.server.recv(65536)
    with pytest.raises(ssl.SSLCertVerificationError):
        pair.client.do_handshake()
    with pytest.raises(ssl.SSLError):
        pair.server.recv(65536)
    pair.close()


def test_what_the_kernel_does_not_take_waits_and_is_told(shaken: Pair) -> None:
    small_buffers(shaken)
    data = bytes(range(256)) * 1000
    assert shaken.server.send(data) == len(data), "all plain text is taken"
    assert shaken.server.blocked
    assert shaken.blocked == 1
    with pytest.raises(BlockingIOError):
        shaken.server.send(b"more")
    received = shaken.client_reads()
    while not shaken.server.flush():
        received += shaken.client_reads()
    assert not shaken.server.blocked
    assert shaken.server.send(b"more") == 4
    received += shaken.client_reads()
    while not shaken.server.flush():
        received += shaken.client_reads()
    assert received + shaken.client_reads() == data + b"more"


def test_reading_goes_on_while_cipher_text_waits(shaken: Pair) -> None:
    small_buffers(shaken)
    shaken.server.send(bytes(500_000))
    shaken.client.send(b"hello")
    assert shaken.server.recv(65536) == b"hello"


def test_nobody_need_be_told(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    pair = Pair(contexts)
    pair.server.on_blocked = None
    pair.shake_hands()
    small_buffers(pair)
    pair.server.send(bytes(500_000))
    assert pair.server.blocked
    pair.close()


def test_large_plain_text_from_the_client(shaken: Pair) -> None:
    data = bytes(range(256)) * (2 * RECORD // 256)
    sent = received = 0
    parts = []
    while received < len(data):
        if sent < len(data):
            with contextlib.suppress(ssl.SSLWantWriteError):
                sent += shaken.client.send(data[sent:])
        try:
            parts.append(shaken.server.recv(10_000))
        except BlockingIOError:
            continue
        received += len(parts[-1])
    assert b"".join(parts) == data


def test_the_end_with_a_close_notify(shaken: Pair) -> None:
    shaken.client.send(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        shaken.client.unwrap()
    assert shaken.server.recv(65536) == b"last"
    shaken.client.shutdown(socket.SHUT_RDWR)
    assert shaken.server.recv(65536) == b""


def test_the_end_without_a_close_notify(shaken: Pair) -> None:
    shaken.client.shutdown(socket.SHUT_RDWR)
    assert shaken.server.recv(65536) == b""


def test_shutting_down_says_so_and_still_reads(shaken: Pair) -> None:
    shaken.server.send(b"goodbye")
    shaken.server.shutdown(socket.SHUT_WR)
    assert shaken.client.recv(100) == b"goodbye"
    assert shaken.client.recv(100) == b"", "a close_notify, so the end is no truncation"
    shaken.client.shutdown(socket.SHUT_RDWR)
    assert shaken.server.recv(65536) == b""


def test_shutting_down_waits_for_what_the_kernel_has_not_taken(shaken: Pair) -> None:
    small_buffers(shaken)
    data = bytes(500_000)
    shaken.server.send(data)
    shaken.server.shutdown(socket.SHUT_WR)
    received = shaken.client_reads()
    while not shaken.server.flush():
        received += shaken.client_reads()
    shaken.server.shutdown(socket.SHUT_WR)
    while part := shaken.client.recv(65536):
        received += part
    assert received == data


def test_shutting_down_before_the_handshake(pair: Pair) -> None:
    pair.server.shutdown(socket.SHUT_WR)
    with pytest.raises((ssl.SSLError, OSError)):
        pair.client.do_handshake()


def test_big_cipher_text_is_not_copied_at_every_step(shaken: Pair) -> None:
    """What waits is looked at, not cut: otherwise a packet of some megabytes is copied a thousand times."""
    small_buffers(shaken)
    shaken.server.send(bytes(1 << 20))
    waiting = shaken.server._waiting
    assert isinstance(waiting, memoryview)
    shaken.client_reads()
    shaken.server.flush()
    assert isinstance(shaken.server._waiting, memoryview)
    assert shaken.server._waiting.obj is waiting.obj
    assert len(shaken.server._waiting) < len(waiting)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=12))
def test_whatever_is_sent_arrives_whole_and_in_order(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], sizes: list[int]
) -> None:
    pair = Pair(contexts)
    pair.shake_hands()
    small_buffers(pair)
    received = b""
    data = [bytes([number]) * size for number, size in enumerate(sizes)]
    for part in data:
        while True:
            try:
                assert pair.server.send(part) == len(part)
                break
            except BlockingIOError:
                received += pair.client_reads()
    while not pair.server.flush():
        received += pair.client_reads()
    assert received + pair.client_reads() == b"".join(data)
    pair.close()
