"""The command line as a user runs it: each command a process of its own."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme

from goim_core.protocol import Frame, Op, encode, frame_at
from tests.e2e.processes import PATIENCE, Program, run, started
from tests.tls import Authority

ANYWHERE = "127.0.0.1:0"
OPERATION = "operation: expected an int32 that may be pushed (64 or more, or 4, 5), got '9'"


def listening(program: Program) -> dict[str, str]:
    """Where a server says it listens, by door; the last one where a door has several."""
    ready, *doors = program.line().split(" ")
    assert ready == "ready", program.ended()
    return dict(door.split("=", 1) for door in doors)


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE)


def receive(sock: socket.socket) -> Frame:
    data = b""
    while (frame := frame_at(data, 0)) is None:
        part = sock.recv(1)  # nothing of the next frame
        assert part, "the server closed the connection"
        data += part
    return frame


def logged_in(address: str, **token: Any) -> socket.socket:
    sock = connected(address)
    sock.sendall(encode(Op.AUTH, json.dumps({"mid": 1, **token}).encode(), 1))
    assert receive(sock) == Frame(Op.AUTH_REPLY, b"", 1)
    return sock


def asked(address: str, path: str, body: bytes | None = None) -> Any:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    connection.request("GET" if body is None else "POST", path, body)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["code"] == 0, answer
    return answer.get("data")


# serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_serve_until_a_signal(backend: str, number: signal.Signals, tmp_path: Path) -> None:
    # A connection that takes nothing would be closed after 10 s by itself: stopping must not wait for that.
    drain = 1.0
    (tmp_path / "c.toml").write_text(f"[options]\ndrain = {drain}\n")
    doors = [text for door in ("tcp", "ws", "http") for text in (f"--{door}", ANYWHERE)]
    call = ("goim_core", "serve", "--auth", "open", "--backend", backend, "--config", "c.toml", *doors)
    with started(*call, cwd=tmp_path) as server:
        at = listening(server)
        assert sorted(at) == ["http", "tcp", "ws"]
        with logged_in(at["tcp"]) as reader, logged_in(at["tcp"], room_id="r://stuck") as deaf:
            for _ in range(12):  # more than the kernel holds for a socket
                asked(at["http"], "/goim/push/room?operation=1000&type=r&room=stuck", bytes(1 << 20))
            begun = time.monotonic()
            server.process.send_signal(number)
            told = receive(reader)
            assert (told.op, json.loads(told.body)["code"]) == (Op.DISCONNECT_REPLY, 1001)
            assert reader.recv(1) == b""
            status, out, err = server.ended()
            assert time.monotonic() - begun < drain + 3  # a busy machine's interpreter takes time to end
            assert deaf.recv(1)
    assert (status, out) == (0, "")
    assert err.splitlines() == [
        "WARNING goim_core.auth: OpenAuth is on: any client may name itself any user. For development only."
    ]


def test_serve_from_a_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "goim.toml").write_text(f"""
        auth = "open"
        tcp = ["{ANYWHERE}", "unix:goim.sock"]
        ws = "{ANYWHERE}"
        http = "{ANYWHERE}"
        backend = "trio"
        host = "push.example.org"
        name = "from the file"
        log = "error"

        [options]
        heartbeat = 30
        heartbeat_max = 3
        ws_path = "/live"
        outbox_policy = "disconnect"
    """)
    call = ("goim_core", "serve", "--config", "goim.toml", "--name", "from the call")
    with started(*call, cwd=tmp_path) as server:
        at = listening(server)
        assert at["tcp"] == "unix:goim.sock"
        nodes = asked(at["http"], "/goim/nodes/weighted?platform=web")
        assert (nodes["domain"], nodes["heartbeat"], nodes["heartbeat_max"]) == ("push.example.org", 30, 3)
        assert asked(at["http"], "/goim/nodes/instances")[0]["hostname"] == "from the call"
        assert upgraded(connected(at["ws"]), "/live").startswith(b"HTTP/1.1 101 ")
        assert server.stop() == (0, "", "")
    assert not (tmp_path / "goim.sock").exists()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_an_operator_sees(log_format: str, tmp_path: Path) -> None:
    doors = ("--tcp", ANYWHERE, "--http", ANYWHERE)
    call = ("goim_core", "serve", "--auth", "open", "--log", "info", "--log-format", log_format, *doors)
    with started(*call, cwd=tmp_path) as server:
        at = listening(server)
        for path in ("/healthz", "/readyz"):
            assert asked(at["http"], path) is None
        asked(at["http"], "/goim/operator/trace?mid=7&on=1", b"")
        with logged_in(at["tcp"], mid=7, key="a key", room_id="r://hall"):
            connection = http.client.HTTPConnection("127.0.0.1", int(at["http"].partition(":")[2]), PATIENCE)
            connection.request("GET", "/metrics")
            assert b"\ngoim_core_users 1\n" in connection.getresponse().read()
            connection.close()
        for _ in range(10_000):  # until the server has seen the end
            if not asked(at["http"], "/goim/operator/stats")["stats"]["connections"]:
                break
        status, out, err = server.stop()
    assert (status, out) == (0, "")
    reason = "connection lost: connection closed by the peer"
    if log_format == "text":
        assert (
            f"INFO goim_core.connection: a key (user 7, tcp from 127.0.0.1) ended: {reason} (4007), 0 dropped"
            in err
        )
        assert "INFO goim_core.trace: 7 a key: -> op 8 seq 1, 0 bytes\n" in err
        return
    lines = [json.loads(line) for line in err.splitlines()]
    endings = [line for line in lines if line["logger"] == "goim_core.connection"]
    [ending] = [line for line in endings if line["transport"] == "tcp"]
    assert {"transport": "http", "address": "127.0.0.1", "requests": 1}.items() <= endings[0].items()
    assert {
        "key": "a key",
        "mid": 7,
        "room": "r://hall",
        "code": 4007,
        "reason": reason,
        "drops": 0,
    }.items() <= ending.items()
    [*_, traced] = [line for line in lines if line["logger"] == "goim_core.trace"]
    assert {"mid": 7, "key": "a key", "level": "INFO"}.items() <= traced.items()


SECRET = "an example of a secret, long enough"


def refused(address: str, token: bytes) -> tuple[int, str]:
    """What the server tells a client with this token before it closes."""
    with connected(address) as sock:
        sock.sendall(encode(Op.AUTH, token, 1))
        told = receive(sock)
        assert told.op == Op.DISCONNECT_REPLY
        assert sock.recv(1) == b""
    reason = json.loads(told.body)
    return reason["code"], reason["message"]


def printed(*arguments: str, **settings: Any) -> str:
    """The one line that a command prints."""
    done = run("goim_core", *arguments, **settings)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    return done.stdout.strip()


def test_serve_with_signed_tokens(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text(f"a newer one of those, as long\n{SECRET}\n")
    new = printed("token", "--mid", "7", "--room", "live://1", "--secret-file", "secrets", cwd=tmp_path)
    old = printed("token", "--mid", "8", "--accepts", "1001", env={"GOIM_CORE_SECRET": SECRET})
    late = printed("token", "--mid", "7", "--expires", "-1", env={"GOIM_CORE_SECRET": SECRET})
    doors = ("--tcp", ANYWHERE, "--http", ANYWHERE)
    call = ("serve", "--auth", "signed", "--secret-file", "secrets", *doors)
    with started("goim_core", *call, cwd=tmp_path) as server:
        at = listening(server)
        listen = ("goim_core", "listen", "--tcp", at["tcp"], "--token")
        with started(*listen, new) as first, started(*listen, old) as second:
            assert first.error_line() == second.error_line() == f"listening on {at['tcp']}"
            asked(at["http"], "/goim/push/room?operation=1000&type=live&room=1", b"to the room")
            asked(at["http"], "/goim/push/mids?operation=1001&mids=8", b"to a user")
            assert (first.line(), second.line()) == ("1000 to the room", "1001 to a user")
        assert refused(at["tcp"], b'{"mid":7}') == (4001, "token: missing")
        assert refused(at["tcp"], new[:-1].encode()) == (
            4001,
            "token: expected 'goim1.', claims, '.' and a signature",
        )
        assert refused(at["tcp"], late.encode()) == (4008, "token: expired")
        assert server.stop() == (0, "", "")


def test_serve_with_the_jwts_of_an_application(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    (tmp_path / "goim.toml").write_text(f"""
        auth = "jwt"
        tcp = "{ANYWHERE}"

        [jwt]
        key_file = "secret"
        algorithms = ["HS256"]
        audience = "chat"
        issuer = "https://id.example.org"
        leeway = 5
        mid_claim = "uid"
        claims = {{ room_id = "room" }}
    """)
    claims = {
        "uid": 7,
        "exp": time.time() + 60,
        "aud": "chat",
        "iss": "https://id.example.org",
        "room": "a://b",
    }
    with started("goim_core", "serve", "--config", "goim.toml", cwd=tmp_path) as server:
        address = listening(server)["tcp"]
        with connected(address) as sock:
            sock.sendall(
                encode(Op.AUTH, jwt.encode(claims, SECRET).encode(), 1) + encode(Op.HEARTBEAT, b"", 2)
            )
            assert receive(sock) == Frame(Op.AUTH_REPLY, b"", 1)
            assert receive(sock) == Frame(Op.HEARTBEAT_REPLY, b"\0\0\0\1", 2)  # one in its room
        another = jwt.encode({**claims, "aud": "mail"}, SECRET).encode()
        assert refused(address, another) == (4001, "aud: the token is not for this server")
        assert server.stop() == (0, "", "")


def test_serve_with_rooms_and_a_storage(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text("""
from goim_core import RoomHook

class Rooms(RoomHook):
    def may_enter(self, session, room_id):
        return room_id != "r://private"
""")
    hooks = ("--auth", "open", "--rooms", "application:Rooms", "--storage", "sqlite:inbox.db")
    call = ("goim_core", "serve", *hooks, "--tcp", ANYWHERE, "--http", ANYWHERE)
    with started(*call, cwd=tmp_path) as server:
        at = listening(server)
        assert refused(at["tcp"], b'{"mid":1,"room_id":"r://private"}')[0] == 4001
        asked(at["http"], "/goim/push/mids?operation=1000&mids=7", b"while away")
        assert server.stop()[0] == 0
    with started(*call, cwd=tmp_path) as server:
        with logged_in(listening(server)["tcp"], mid=7, room_id="r://hall", accepts=[1000]) as sock:
            assert receive(sock) == Frame(1000, b"while away", 1)
        assert server.stop()[0] == 0


def test_serve_where_signals_cannot_be_received(tmp_path: Path) -> None:
    # asyncio on Windows. There, as here then, Ctrl+C is a KeyboardInterrupt.
    (tmp_path / "windows.py").write_text("""
import asyncio, sys

def add_signal_handler(*_):
    raise NotImplementedError

asyncio.SelectorEventLoop.add_signal_handler = add_signal_handler
from goim_core.__main__ import main
sys.exit(main(sys.argv[1:]))
""")
    with started(
        "windows", "serve", "--auth", "open", "--log", "error", "--tcp", ANYWHERE, cwd=tmp_path
    ) as server:
        with logged_in(listening(server)["tcp"]) as sock:
            server.process.send_signal(signal.SIGINT)
            told = receive(sock)
            assert (told.op, json.loads(told.body)["code"]) == (Op.DISCONNECT_REPLY, 1001)
        assert server.ended() == (130, "", "")


def upgraded(sock: socket.socket, path: str) -> bytes:
    """The first bytes of the answer to a WebSocket handshake."""
    with sock:
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        return sock.recv(1024)


def test_serve_with_an_applications_own_hooks(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text("""
from goim_core import AuthHook, Disconnect, MessageHook, Session, SessionHook

class Auth(AuthHook):
    def authenticate(self, request):
        if request.token != b"sesame":
            raise Disconnect("closed", 4321)
        return Session(mid=1, room_id="r://hall")

class Greeter(SessionHook):
    async def connected(self, session):
        await self.server.push_room("r://hall", 1000, b"welcome")

class Shout(MessageHook):
    def receive(self, session, frame):
        return frame.body.upper()
""")
    hooks = ("--auth", "Auth", "--sessions", "Greeter", "--messages", "Shout")
    arguments = [text if text.startswith("--") else f"application:{text}" for text in hooks]
    with started("goim_core", "serve", *arguments, "--tcp", ANYWHERE, cwd=tmp_path) as server:
        address = listening(server)["tcp"]
        with connected(address) as stranger:
            stranger.sendall(encode(Op.AUTH, b"please"))
            told = receive(stranger)
            assert (told.op, json.loads(told.body)) == (6, {"code": 4321, "message": "closed"})
        with connected(address) as guest:
            guest.sendall(encode(Op.AUTH, b"sesame", 1) + encode(1234, b"quiet", 2))
            assert receive(guest) == Frame(Op.AUTH_REPLY, b"", 1)
            # The greeting goes through the queue, and may come before the reply or after it.
            assert {receive(guest), receive(guest)} == {Frame(1000, b"welcome"), Frame(1234, b"QUIET", 2)}
        assert server.stop() == (0, "", "")


@pytest.mark.parametrize("files", ["one", "two"])
def test_serve_with_a_certificate(files: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    if files == "one":
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
        arguments = ["--certificate", "both.pem"]
    else:
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
        arguments = ["--certificate", "chain.pem", "--private-key", "key.pem"]
    context = ssl.create_default_context()
    authority.configure_trust(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    doors = ("--tls", ANYWHERE, "--wss", ANYWHERE)
    with started("goim_core", "serve", "--auth", "open", *doors, *arguments, cwd=tmp_path) as server:
        at = listening(server)
        with context.wrap_socket(connected(at["tls"]), server_hostname="127.0.0.1") as secured:
            secured.sendall(encode(Op.AUTH, b'{"mid":1}', 7))
            assert receive(secured) == Frame(Op.AUTH_REPLY, b"", 7)
        wss = context.wrap_socket(connected(at["wss"]), server_hostname="127.0.0.1")
        assert upgraded(wss, "/sub").startswith(b"HTTP/1.1 101 ")
        for door in ("tls", "wss"):
            url = f"{door}://{at[door]}"
            with started("goim_core", "listen", "--url", url, "--ca", "ca.pem", cwd=tmp_path) as listener:
                assert listener.error_line() == f"listening on {url}"
        assert "CERTIFICATE_VERIFY_FAILED" in run("goim_core", "listen", "--url", url).stderr
        assert server.stop()[0] == 0


def test_serve_with_https_and_push_to_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue("localhost", "server")
    authority.issue("pusher@example.org", "pusher")
    (tmp_path / "keys").write_text("the-new-key-of-pushers\nthe-old-key-of-pushers\n")
    (tmp_path / "wrong").write_text("no-key-of-any-pusher\n")
    (tmp_path / "c.toml").write_text('certificate = "server.pem"\napi_key_file = "keys"\n')
    doors = ("--tcp", ANYWHERE, "--https", "localhost:0", "--http", ANYWHERE)

    def push(url: str, *arguments: str) -> tuple[int, str]:
        call = ("push", "all", "--op", "1000", "--http", url, *arguments, "hi")
        done = run("goim_core", *call, cwd=tmp_path)
        assert not done.stdout
        return done.returncode, done.stderr

    serve = ("goim_core", "serve", "--auth", "open", "--config", "c.toml", *doors)
    with started(*serve, cwd=tmp_path) as server:
        at = listening(server)
        url = f"https://localhost:{at['https'].rpartition(':')[2]}"
        with logged_in(at["tcp"], accepts=[1000]) as client:
            assert push(url, "--ca", "ca.pem", "--api-key-file", "keys") == (0, "")
            assert receive(client).body == b"hi"
            assert push(f"http://{at['http']}", "--api-key-file", "keys") == (0, "")
            assert receive(client).body == b"hi"
        assert push(at["http"], "--api-key-file", "wrong") == (1, "goim-core: the API key does not fit\n")
        status, complaint = push(url, "--api-key-file", "keys")
        assert (status, "CERTIFICATE_VERIFY_FAILED" in complaint) == (1, True)
        assert server.stop()[0] == 0
    with started(*serve, "--api-client-ca", "ca.pem", cwd=tmp_path) as server:
        url = f"https://localhost:{listening(server)['https'].rpartition(':')[2]}/"
        assert push(url, "--ca", "ca.pem", "--certificate", "pusher.pem") == (0, "")
        assert push(url, "--ca", "ca.pem", "--api-key-file", "keys")[0] == 1
        assert server.stop()[0] == 0


def test_serve_shows_an_ipv6_address_so_that_it_can_be_used_again() -> None:
    with started("goim_core", "serve", "--auth", "open", "--tcp", ":0") as server:
        address = listening(server)["tcp"]
        assert address.startswith(("[::]:", "0.0.0.0:"))
        logged_in(f"127.0.0.1:{address.rpartition(':')[2]}").close()
        assert server.stop()[0] == 0


def test_serve_where_another_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        done = run("goim_core", "serve", "--auth", "open", "--tcp", ANYWHERE, "--http", taken)
    assert (done.returncode, done.stdout) == (1, "")
    complaint = done.stderr.splitlines()[-1]
    assert complaint.startswith(f"goim-core: http: cannot listen on {taken}: Address already in use")


# push and listen


@pytest.fixture(scope="module")
def doors() -> Iterator[dict[str, str]]:
    """The addresses of a server that runs."""
    with started("goim_core", "serve", "--auth", "open", "--tcp", ANYWHERE, "--http", ANYWHERE) as server:
        yield listening(server)
        assert server.stop()[0] == 0


def test_listen_shows_what_push_sends(doors: dict[str, str]) -> None:
    who = ("--room", "live://1000", "--mid", "7", "--key", "k", "--accepts", "1000,1001")
    with started("goim_core", "listen", "--tcp", doors["tcp"], *who) as listener:
        assert listener.error_line() == f"listening on {doors['tcp']}"

        def push(*arguments: str, stdin: bytes = b"") -> str:
            done = run("goim_core", "push", *arguments, "--http", doors["http"], stdin=stdin)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            return listener.line()

        assert push("room", "live", "1000", "--op", "1234", "to the room") == "1234 to the room"
        assert push("mids", "6,7", "--op", "1000", "to users") == "1000 to users"
        assert push("keys", "j,k", "--op", "1001", "to keys") == "1001 to keys"
        assert push("all", "--op", "1000", "--speed", "10", "caf\u00e9") == "1000 caf\u00e9"
        text = "from standard input, \u4f60\u597d"
        assert push("room", "live", "1000", "--op", "4", "-", stdin=text.encode()) == f"4 {text}"
        status, out, err = listener.stop(signal.SIGINT)
        assert (status, out, err) == (130, "", "")


def test_listen_with_a_token_of_the_applications_own(doors: dict[str, str]) -> None:
    token = '{"mid":1,"room_id":"own://token"}'
    with started("goim_core", "listen", "--tcp", doors["tcp"], "--token", token) as listener:
        assert listener.error_line().startswith("listening on ")
        asked(doors["http"], "/goim/push/room?operation=1000&type=own&room=token", b"x")
        assert listener.line() == "1000 x"


def test_listen_ends_when_the_server_does() -> None:
    with (
        started("goim_core", "serve", "--auth", "open", "--tcp", ANYWHERE) as server,
        started("goim_core", "listen", "--tcp", listening(server)["tcp"]) as listener,
    ):
        listener.error_line()
        assert server.stop()[0] == 0
        assert listener.ended() == (1, "", "goim-core: the server is stopping\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("push all --op 9 --http http x", OPERATION),
        ("push mids 1,x --op 64 --http http x", "mids: expected user ids (int64), got 'x'"),
        ("push all --op 64 --http tcp x", "cannot push to TCP: what answers there is no push API"),
        ("push all --op 64 --http nobody x", "cannot push to NOBODY: Connection refused"),
        ("listen --tcp nobody", "cannot connect to NOBODY: All connection attempts failed"),
        ("listen --tcp tcp --token {}", "mid: missing from the token"),
        ("listen --tcp tcp --token x", "token: expected JSON"),
        ("listen --tcp http", "no goim server: header length: expected 16, got 12081"),  # "HTTP/1"
    ],
)
def test_push_and_listen_that_cannot_work(arguments: str, message: str, doors: dict[str, str]) -> None:
    with socket.socket() as nobody:  # bound and not listening: who tries is refused
        nobody.bind(("127.0.0.1", 0))
        at = {**doors, "nobody": f"127.0.0.1:{nobody.getsockname()[1]}"}
        done = run("goim_core", *(at.get(text, text) for text in arguments.split()))
    for name, address in at.items():
        message = message.replace(f" {name.upper()}:", f" {address}:")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"goim-core: {message}\n")
