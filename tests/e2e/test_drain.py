"""A node that is stopped under its clients, and one that reads its settings again: real processes."""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trustme

from examples.cluster.processes import free_ports
from goim_core import Disconnect
from goim_core.client import Backoff, Client, Link, connect, connect_once
from goim_core.errors import CloseCode
from goim_core.protocol import Frame, Op, encode
from tests.e2e.processes import PATIENCE, Program, started
from tests.e2e.test_command_line import ANYWHERE, asked, connected, listening, logged_in, receive

unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

PARTS = """
import json, pathlib
import anyio
from goim_core import Frame, MessageHook, Node, StaticDiscovery

class Slow(MessageHook):
    async def receive(self, session, frame):
        await anyio.sleep(float(frame.body))
        return Frame(5, b"done", frame.seq)

class Nodes(StaticDiscovery):
    def __init__(self):
        super().__init__(Node(**node) for node in json.loads(pathlib.Path("nodes.json").read_text()))
"""
DRAIN = 2.0
SLACK = 3.0
"""Seconds that the interpreter of a busy machine may take to end."""


# A node is stopped.


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@contextlib.contextmanager
def two_nodes(folder: Path, backend: str) -> Any:
    """Two nodes that share inboxes and know each other; the addresses of each."""
    (folder / "parts.py").write_text(PARTS)
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    doors = ("tcp", "ws", "tls", "http")
    ports = free_ports(8)
    at = [
        {door: f"127.0.0.1:{port}" for door, port in zip(doors, ports[begin : begin + 4], strict=True)}
        for begin in (0, 4)
    ]
    nodes = [
        {"name": name, "host": "127.0.0.1", "addrs": found} for name, found in zip("ab", at, strict=True)
    ]
    (folder / "nodes.json").write_text(json.dumps(nodes))
    (folder / "c.toml").write_text(f"""
        auth = "open"
        messages = "parts:Slow"
        discovery = "parts:Nodes"
        storage = "sqlite:inbox.db"
        certificate = "both.pem"
        host = "127.0.0.1"
        backend = "{backend}"
        [options]
        drain = {DRAIN}
    """)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with contextlib.ExitStack() as stack:
        programs = []
        for name, found in zip("ab", at, strict=True):
            given = [text for door, address in found.items() for text in (f"--{door}", address)]
            call = ("goim_core", "serve", "--config", "c.toml", "--name", name, *given)
            programs.append(stack.enter_context(started(*call, cwd=folder)))
        for program in programs:
            listening(program)
        yield programs, at, context


class Ours:
    """A client of this project, and what it has got."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.got: list[int] = []
        self._more = anyio.Event()

    async def read(self) -> None:
        async for message in self.client:
            self.got.append(int(message.body))
            self._more.set()
            self._more = anyio.Event()

    async def until(self, number: int) -> None:
        while not self.got or self.got[-1] != number:
            await self._more.wait()


async def told(link: Link, before: list[Frame]) -> None:
    """The link ends with 1001, after these frames."""
    frames = []
    with pytest.raises(Disconnect) as why:
        while True:
            frames.append(await link.receive())
    assert (why.value.code, frames) == (CloseCode.GOING_AWAY, before)


async def push(at: dict[str, str], numbers: range) -> None:
    for number in numbers:
        path = "/goim/push/mids?operation=1000&mids=1&mids=2&mids=3&mids=4"
        await anyio.to_thread.run_sync(asked, at["http"], path, str(number).encode())


@unix
@pytest.mark.anyio
async def test_a_node_is_stopped_under_clients_of_all_kinds(tmp_path: Path, anyio_backend: str) -> None:
    with anyio.fail_after(60), two_nodes(tmp_path, anyio_backend) as ((first, second), at, context):
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            ours = []
            for mid, door in enumerate(("tcp", "ws", "tls", "ws"), 1):
                backoff = Backoff(first=100, base=100)  # nobody has to wait for one
                options: Any = {"doors": (door,), "ssl_context": context, "backoff": backoff}
                url = f"http://{at[0]['http']}"
                client = connect(url, mid=mid, device="d", accepts=[1000], **options)
                # The nodes are equally good: all are to begin with the first.
                client._where = First(client._where, at[0][door])
                ours.append(Ours(await stack.enter_async_context(client)))
                tasks.start_soon(ours[-1].read)
            under_way = []
            for url in (f"tcp://{at[0]['tcp']}", f"ws://{at[0]['ws']}"):
                idle = await stack.enter_async_context(connect_once(url, mid=9))
                tasks.start_soon(told, idle, [])
                waits = await stack.enter_async_context(connect_once(url, mid=9))
                under_way.append(waits)
                tasks.start_soon(told, waits, [Frame(5, b"done", 7)])
                for room, seconds in (("", b"60"), ("r://stuck", b"0")):  # a hook that hangs, a full outbox
                    deaf = await stack.enter_async_context(connect_once(url, mid=9, room_id=room))
                    await deaf.send(2000, seconds)
            for _ in range(12):
                path = "/goim/push/room?operation=1000&type=r&room=stuck"
                await anyio.to_thread.run_sync(asked, at[0]["http"], path, bytes(1 << 20))
            await push(at[0], range(20))
            for waits in under_way:
                await waits.send(2000, b"0.5", 7)

            begun = time.monotonic()
            first.process.send_signal(signal.SIGTERM)
            await push(at[1], range(20, 40))
            status, out, err = await anyio.to_thread.run_sync(first.ended)
            assert time.monotonic() - begun < DRAIN + SLACK
            assert (status, out) == (0, "")
            assert all("OpenAuth" in line for line in err.splitlines()), err
            await push(at[1], range(40, 50))
            for each in ours:
                await each.until(49)
                assert each.got == list(range(50))
            assert asked(at[1]["http"], "/goim/online/total")["conn_count"] == 4
            for each in ours:
                await each.client.aclose()
        assert second.stop()[0] == 0


class First:
    """Where to connect: as it is, but for an address that comes first."""

    def __init__(self, where: Any, address: str) -> None:
        self._where = where
        self._address = address

    async def targets(self) -> Any:
        return sorted(await self._where.targets(), key=lambda target: target.authority != self._address)

    async def keep_fresh(self, connected: Any) -> None:
        await self._where.keep_fresh(connected)


@unix
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_a_second_signal_ends_it_at_once(backend: str, tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "c.toml").write_text("auth = 'open'\nmessages = 'parts:Slow'\n[options]\ndrain = 1000\n")
    call = ("goim_core", "serve", "--config", "c.toml", "--tcp", ANYWHERE, "--backend", backend)
    with started(*call, cwd=tmp_path) as server:
        at = listening(server)
        with logged_in(at["tcp"]) as idle, logged_in(at["tcp"]) as hangs:
            hangs.sendall(encode(2000, b"1000", 2) + encode(Op.HEARTBEAT))
            server.process.send_signal(signal.SIGINT)
            assert json.loads(receive(idle).body)["code"] == CloseCode.GOING_AWAY
            begun = time.monotonic()
            assert server.stop()[0] == 0
            assert time.monotonic() - begun < SLACK


# Settings are read again.


class Serving:
    """A server whose configuration a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program: Program
        self.at: dict[str, str] = {}

    def write(self, text: str) -> None:
        (self.folder / "c.toml").write_text(text)

    def reload(self, *lines: str) -> None:
        """Send it SIGHUP; it has to say all this."""
        self.program.process.send_signal(signal.SIGHUP)
        for expected in lines:
            assert self.said() == expected

    def said(self) -> str:
        """The next line of its log, but for the ends of connections."""
        while (line := self.program.error_line()).startswith(ENDED):
            pass
        return line

    def takes(self, size: int) -> bool:
        with logged_in(self.at["tcp"]) as client:
            client.sendall(encode(2000, bytes(size), 2))
            return receive(client).op != Op.DISCONNECT_REPLY


@contextlib.contextmanager
def serving(folder: Path, config: str, *arguments: str) -> Any:
    found = Serving(folder)
    found.write(config)
    call = ("goim_core", "serve", "--config", "c.toml", "--tcp", ANYWHERE, "--http", ANYWHERE)
    with started(*call, *arguments, cwd=folder) as found.program:
        found.at = listening(found.program)
        assert "OpenAuth" in found.program.error_line()
        assert "listening" in found.program.error_line()
        yield found
        status, out, err = found.program.stop()
        assert (status, out) == (0, "")
        assert all(line.startswith(ENDED) for line in err.splitlines()), err


ENDED = "INFO goim_core.connection: "
OLD, NEW = "an-old-key-that-is-long-enough", "a-new-key-that-is-long-enough"
LOADED = "INFO goim_core.server: the settings were loaded again"
KEPT = "WARNING goim_core.server: {}: only a new start changes that"
FAILED = "ERROR goim_core.server: nothing was loaded again: {}"
BEFORE = "auth = 'open'\nlog = 'info'\nname = 'n'\n[options]\nmax_body = 100\n"


@unix
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_limits_are_read_again(backend: str, tmp_path: Path) -> None:
    with serving(tmp_path, BEFORE, "--backend", backend) as server:
        with logged_in(server.at["tcp"]) as client:
            assert not server.takes(200)
            server.write(BEFORE.replace("100", "300") + "heartbeat = 7\n")
            server.reload(LOADED)
            assert server.takes(200)
            assert asked(server.at["http"], "/goim/nodes/weighted?platform=web")["heartbeat"] == 7
            client.sendall(encode(2000, bytes(200), 2))  # who is connected has the new ones, too
            assert receive(client).op == 2000


@unix
def test_what_needs_a_new_start_is_named_and_the_rest_is_done(tmp_path: Path) -> None:
    with serving(tmp_path, BEFORE) as server:
        server.write(
            "auth = 'signed'\nlog = 'warning'\nzone = 'z'\n[signed]\nsecret_file = 'x'\n"
            "[options]\nmax_body = 300\nws_path = '/x'\n"
        )
        server.reload(KEPT.format("options.ws_path, auth, name, signed, zone"))
        assert server.takes(200)
        server.write(BEFORE)
        server.reload(LOADED)


@unix
def test_a_mistake_changes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, BEFORE) as server:
        for text, message in (
            (
                BEFORE.replace("100", "-300"),
                "max_body: expected int, at least 0, ",
            ),
            ("log = 'loud'\n[options]\nmax_body = 300\n", "log: expected a level like 'info', got 'loud'"),
            ("colour = 'blue'\n", "c.toml: colour: expected one of "),
            ("[options]\nmax_body = ", "c.toml: Invalid value"),
        ):
            server.write(text)
            server.program.process.send_signal(signal.SIGHUP)
            line = server.said()
            assert line.startswith(FAILED.format(message)), line
        (tmp_path / "c.toml").unlink()
        server.reload(FAILED.format("config: cannot read 'c.toml': No such file or directory"))
        assert server.takes(100)
        assert not server.takes(101)
        server.write(BEFORE)
        server.reload(LOADED)


@unix
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_certificates_and_keys_are_read_again(backend: str, tmp_path: Path) -> None:
    def authority() -> ssl.SSLContext:
        made, context = trustme.CA(), ssl.create_default_context()
        made.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
        made.configure_trust(context)
        return context

    def connects(context: ssl.SSLContext) -> bool:
        with connected(server.at["tls"]) as sock:
            try:
                context.wrap_socket(sock, server_hostname="127.0.0.1").close()
            except ssl.SSLCertVerificationError:
                return False
            return True

    def may_push(key: str) -> bool:
        host, _, port = server.at["http"].rpartition(":")
        with contextlib.closing(HTTPConnection(host, int(port), timeout=PATIENCE)) as connection:
            headers = {"Authorization": f"Bearer {key}"}
            connection.request("POST", "/goim/push/all?operation=1000", b"x", headers)
            return bool(json.loads(connection.getresponse().read())["code"] == 0)

    keys = tmp_path / "keys"
    keys.write_text(f"{OLD}\n")
    before = authority()
    config = BEFORE.replace("[options]", "certificate = 'both.pem'\napi_key_file = 'keys'\n[options]")
    with serving(tmp_path, config, "--backend", backend, "--tls", ANYWHERE) as server:
        with before.wrap_socket(connected(server.at["tls"]), server_hostname="127.0.0.1") as stays:
            after = authority()
            keys.write_text(f"{NEW}\n{OLD}\n")
            assert (connects(before), connects(after)) == (True, False)
            assert (may_push(OLD), may_push(NEW)) == (True, False)
            assert "does not fit" in server.said()
            server.reload(LOADED)
            assert (connects(before), connects(after)) == (False, True)
            assert (may_push(OLD), may_push(NEW)) == (True, True)
            (tmp_path / "both.pem").write_text("no certificate")
            keys.write_text(f"{NEW}\n")
            server.program.process.send_signal(signal.SIGHUP)
            assert server.said().startswith(FAILED.format("certificate: cannot use 'both.pem'"))
            assert connects(after)
            assert may_push(OLD), "all or nothing"
            stays.sendall(encode(Op.AUTH, b'{"mid":1}', 7))
            assert receive(stays) == Frame(Op.AUTH_REPLY, b"", 7)
