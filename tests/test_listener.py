"""Listening sockets: addresses, binding, accepting, and the descriptor limit reached and left again."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import Factory, define

from goim_core.clock import Deadlines
from goim_core.errors import ConfigurationError
from goim_core.listener import ACCEPTS_A_TURN, PAUSE, Listener, bind, parse_address
from goim_core.reactor import Reactor, Socket, Source
from goim_core.testing import ManualClock

# Addresses.


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:3101", ("127.0.0.1", 3101)),
        ("localhost:0", ("localhost", 0)),
        (":3101", ("", 3101)),
        ("[::1]:3101", ("::1", 3101)),
        ("[::]:65535", ("::", 65535)),
        (("127.0.0.1", 3101), ("127.0.0.1", 3101)),
        (("", 0), ("", 0)),
        ("unix:/run/goim.sock", Path("/run/goim.sock")),
        ("unix:goim.sock", Path("goim.sock")),
        (Path("goim.sock"), Path("goim.sock")),
    ],
)
def test_addresses(address: Any, parsed: object) -> None:
    assert parse_address("tcp", address) == parsed


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:port",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1: 80",
        ("127.0.0.1", -1),
        ("127.0.0.1", 65536),
        ("127.0.0.1", "80"),
        ("127.0.0.1", True),
        ("127.0.0.1",),
        ("127.0.0.1", 80, 0),
        (None, 80),
        5,
        None,
        b"127.0.0.1:80",
    ],
)
def test_what_is_no_address_is_refused_by_the_options_name(address: Any) -> None:
    with pytest.raises(ConfigurationError, match="^tcp: expected "):
        parse_address("tcp", address)


# Binding.


@pytest.fixture
def closing() -> Iterator[Callable[..., Any]]:
    """Registers sockets to be closed."""
    with ExitStack() as stack:
        yield stack.enter_context


def bound(closing: Callable[..., Any], address: Any) -> list[socket.socket]:
    return [closing(sock) for sock in bind("tcp", address, 16)]


def can_connect(closing: Callable[..., Any], address: Any) -> bool:
    family = (
        socket.AF_UNIX
        if isinstance(address, str)
        else socket.AF_INET6
        if ":" in address[0]
        else socket.AF_INET
    )
    sock = closing(socket.socket(family))
    return bool(sock.connect_ex(address) == 0)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def test_an_address_is_listened_on(closing: Callable[..., Any]) -> None:
    (sock,) = bound(closing, "127.0.0.1:0")
    assert not sock.getblocking()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert can_connect(closing, sock.getsockname())


@needs_ipv6
def test_an_ipv6_address(closing: Callable[..., Any]) -> None:
    (sock,) = bound(closing, "[::1]:0")
    assert sock.family == socket.AF_INET6
    assert can_connect(closing, ("::1", sock.getsockname()[1]))


@needs_ipv6
def test_all_addresses_through_one_socket(closing: Callable[..., Any]) -> None:
    (sock,) = bound(closing, ":0")
    port = sock.getsockname()[1]
    assert can_connect(closing, ("127.0.0.1", port))
    assert can_connect(closing, ("::1", port))


ABSENT = "127.0.0.99"
"""An address that the host "here" has, and this machine has not."""


def named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Give the name "here" these addresses."""
    create_server = socket.create_server

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        assert host == "here"
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
            for address in addresses
        ]

    def create_here(address: tuple[str, int], **options: Any) -> socket.socket:
        if address[0] == ABSENT:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return create_server(address, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_server", create_here)


@needs_ipv6
def test_port_0_is_the_same_for_all_addresses_of_a_host(
    closing: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, "::1", "127.0.0.1", "127.0.0.1")
    sockets = bound(closing, "here:0")
    assert [sock.family for sock in sockets] == [socket.AF_INET, socket.AF_INET6]
    assert len({sock.getsockname()[1] for sock in sockets}) == 1


@needs_ipv6
@pytest.mark.parametrize("present", ["127.0.0.1", "::1"], ids=["before", "after"])
def test_an_address_that_this_machine_has_not_is_passed_over(
    closing: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, present: str
) -> None:
    named(monkeypatch, present, ABSENT)  # which are tried in the order of their families
    (sock,) = bound(closing, "here:0")
    assert sock.getsockname()[0] == present


def test_a_host_of_which_this_machine_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, ABSENT)
    with pytest.raises(OSError, match="tcp: cannot listen on here:0: ") as raised:
        bind("tcp", "here:0", 16)
    assert raised.value.errno == errno.EADDRNOTAVAIL


@needs_ipv6
def test_a_port_that_is_taken_on_one_address_is_not_listened_on_at_the_other(
    closing: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a door would be found out only by those who come to the other half."""
    (taken,) = bound(closing, "[::1]:0")
    port = taken.getsockname()[1]
    named(monkeypatch, "127.0.0.1", "::1")
    with pytest.raises(OSError, match=f"tcp: cannot listen on here:{port}: ") as raised:
        bind("tcp", f"here:{port}", 16)
    assert raised.value.errno == errno.EADDRINUSE
    monkeypatch.undo()
    bound(closing, f"127.0.0.1:{port}")  # what was bound before is closed again


def test_a_port_in_use_names_the_option_and_the_address(closing: Callable[..., Any]) -> None:
    (taken,) = bound(closing, "127.0.0.1:0")
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    for given in (address, taken.getsockname()):
        with pytest.raises(
            OSError, match=f"ws: cannot listen on {address}: Address already in use$"
        ) as raised:
            bind("ws", given, 16)
        assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("host", ["x" * 64 + ".invalid", "a..b"])
def test_a_host_that_is_no_name(host: str) -> None:
    with pytest.raises(ConfigurationError, match="^tcp: .* is no host name"):
        bind("tcp", (host, 0), 16)


# Unix sockets.


def test_a_unix_socket(closing: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "goim.sock"
    (sock,) = bound(closing, path)
    assert not sock.getblocking()
    assert can_connect(closing, str(path))


def test_a_unix_socket_that_a_killed_process_left_behind(closing: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "goim.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    bound(closing, f"unix:{path}")
    assert can_connect(closing, str(path))


@pytest.mark.parametrize("busy", [False, True])
def test_a_unix_socket_that_another_listens_on(
    closing: Callable[..., Any], tmp_path: Path, busy: bool
) -> None:
    path = tmp_path / "goim.sock"
    other = closing(socket.socket(socket.AF_UNIX))
    other.bind(str(path))
    other.listen(0)
    for _ in range(2 if busy else 0):  # its backlog is full: one more would have to wait
        client = closing(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        client.connect_ex(str(path))
    with pytest.raises(OSError, match="tcp: cannot listen on ") as raised:
        bind("tcp", path, 16)
    assert raised.value.errno == errno.EADDRINUSE
    assert path.exists()


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "goim.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="tcp: cannot listen on "):
        bind("tcp", path, 16)
    assert path.read_text() == "precious"


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "goim.sock", tmp_path / ("x" * 200)):
        with pytest.raises(OSError, match="tcp: cannot listen on "):
            bind("tcp", path, 16)


# Accepting.


@define
class Watch:
    """A reactor that only writes down what it is asked."""

    reading: dict[Socket, bool] = Factory(dict)

    def add(self, sock: Socket, source: Source) -> None:
        self.reading[sock] = True

    def watch(self, sock: Socket, *, read: bool, write: bool) -> None:
        assert not write
        assert sock in self.reading
        self.reading[sock] = read

    def remove(self, sock: Socket) -> None:
        del self.reading[sock]


@define(eq=False)
class Door:
    """A listener with all that is around it in the test's hands."""

    sock: socket.socket
    watch: Watch = Factory(Watch)
    clock: ManualClock = Factory(ManualClock)
    accepted: list[tuple[socket.socket, str]] = Factory(list)
    refusal: OSError | None = None
    deadlines: Deadlines = Factory(lambda self: Deadlines(self.clock), takes_self=True)
    listener: Listener = Factory(
        lambda self: Listener(self.sock, self.accept, cast("Reactor", self.watch), self.deadlines),
        takes_self=True,
    )

    def accept(self, sock: socket.socket, address: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.accepted.append((sock, address))

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.expire()

    @property
    def reading(self) -> bool:
        return self.watch.reading[self.sock]

    def close(self) -> None:
        self.listener.close()
        for sock, _ in self.accepted:
            sock.close()


@pytest.fixture
def door() -> Iterator[Door]:
    (sock,) = bind("tcp", "127.0.0.1:0", 1024)
    made = Door(sock)
    yield made
    made.close()


def test_those_who_wait_are_accepted(door: Door, closing: Callable[..., Any]) -> None:
    clients = [closing(socket.create_connection(door.sock.getsockname())) for _ in range(3)]
    door.listener.on_readable()
    assert [sock.getpeername() for sock, _ in door.accepted] == [client.getsockname() for client in clients]
    assert all(address == "127.0.0.1" and not sock.getblocking() for sock, address in door.accepted)
    assert door.accepted[0][0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "inherited"
    door.listener.on_readable()  # nobody waits
    assert len(door.accepted) == 3


def test_only_so_many_are_accepted_in_a_turn(door: Door, closing: Callable[..., Any]) -> None:
    for _ in range(ACCEPTS_A_TURN + 1):
        closing(socket.create_connection(door.sock.getsockname()))
    door.listener.on_readable()
    assert len(door.accepted) == ACCEPTS_A_TURN
    door.listener.on_readable()
    assert len(door.accepted) == ACCEPTS_A_TURN + 1


@needs_ipv6
def test_an_ipv4_peer_of_a_dual_stack_socket_has_its_ipv4_address(closing: Callable[..., Any]) -> None:
    (sock,) = bind("tcp", ":0", 16)
    door = Door(sock)
    closing(socket.create_connection(("127.0.0.1", sock.getsockname()[1])))
    closing(socket.create_connection(("::1", sock.getsockname()[1])))
    door.listener.on_readable()
    assert [address for _, address in door.accepted] == ["127.0.0.1", "::1"]
    door.close()


def test_a_peer_on_a_unix_socket_has_no_address(closing: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "goim.sock"
    (sock,) = bind("tcp", path, 16)
    door = Door(sock)
    can_connect(closing, str(path))
    door.listener.on_readable()
    assert [address for _, address in door.accepted] == [""]
    assert door.listener.address == str(path)
    door.close()
    assert not path.exists()


def test_closing_stops_listening_and_leaves_the_accepted(door: Door, closing: Callable[..., Any]) -> None:
    host, port = door.sock.getsockname()
    assert door.listener.address == (host, port)
    client = closing(socket.create_connection((host, port)))
    door.listener.on_readable()
    door.listener.close()
    door.listener.close()
    assert door.watch.reading == {}
    assert not can_connect(closing, (host, port))
    door.accepted[0][0].send(b"still here")
    assert client.recv(100) == b"still here"


class Exhausted:
    """A listening socket on a machine that has no descriptor left, until it has."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.errors: list[OSError] = []
        self.tried = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.tried += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.fixture
def exhausted() -> Iterator[tuple[Door, Exhausted]]:
    (sock,) = bind("tcp", "127.0.0.1:0", 16)
    fake = Exhausted(sock)
    door = Door(cast("socket.socket", fake))
    yield door, fake
    door.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_at_the_limit_it_pauses_and_recovers(
    exhausted: tuple[Door, Exhausted],
    closing: Callable[..., Any],
    code: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    door, fake = exhausted
    closing(socket.create_connection(fake.sock.getsockname()))
    fake.errors = [OSError(code, "none left")] * 2
    with caplog.at_level(logging.WARNING, logger="goim_core.listener"):
        door.listener.on_readable()
    assert fake.tried == 1, "it does not spin"
    assert not door.reading
    assert "none left" in caplog.text
    door.pass_time(PAUSE / 2)
    assert not door.reading
    door.pass_time(PAUSE + 0.25)
    assert door.reading
    door.listener.on_readable()  # and once more
    assert not door.reading
    door.pass_time(PAUSE + 0.25)
    door.listener.on_readable()
    assert len(door.accepted) == 1, "who waited is not lost"
    assert door.reading


def test_a_peer_that_went_before_it_was_accepted_ends_nothing(
    exhausted: tuple[Door, Exhausted], closing: Callable[..., Any]
) -> None:
    door, fake = exhausted
    closing(socket.create_connection(fake.sock.getsockname()))
    fake.errors = [ConnectionAbortedError(errno.ECONNABORTED, "gone")]
    door.listener.on_readable()
    assert len(door.accepted) == 1
    assert door.reading


def test_where_the_reactor_has_no_room_the_connection_is_closed_and_it_pauses(
    door: Door, closing: Callable[..., Any]
) -> None:
    client = closing(socket.create_connection(door.sock.getsockname()))
    door.refusal = OSError(errno.ENOSPC, "no room")
    door.listener.on_readable()
    assert client.recv(1) == b""
    assert not door.reading


def test_a_listener_that_is_closed_in_its_pause_stays_closed(exhausted: tuple[Door, Exhausted]) -> None:
    door, fake = exhausted
    fake.errors = [OSError(errno.EMFILE, "none left")]
    door.listener.on_readable()
    door.listener.close()
    door.pass_time(1)
    assert door.watch.reading == {}
