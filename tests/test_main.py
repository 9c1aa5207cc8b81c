"""The command line in this process: what it says to a call or a configuration that cannot work.

What it does where all is well is in tests/e2e/test_command_line.py.
"""

from __future__ import annotations

import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from goim_core.__main__ import main
from goim_core.auth import SignedTokenAuth
from goim_core.choices import READY
from goim_core.session import AuthRequest, Session
from goim_core.settings import API_KEYS_VARIABLE, SECRET_VARIABLE, SETTINGS, server_of

NO_AUTH = (
    "auth: missing: expected 'open', 'signed', 'jwt' or MODULE:CLASS. "
    "'open' believes any token, for development; 'signed' takes those of goim-core token"
)
AUTH = "auth: expected 'open', 'signed', 'jwt' or MODULE:CLASS, a subclass of AuthHook;"
STORAGE = "storage: expected 'memory', 'sqlite:FILE', 'postgres:DSN' or MODULE:CLASS"
NAMES = f"{', '.join(SETTINGS)}, [options], [signed], [jwt]"
SECRET = "an example of a secret, long enough"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory to be in; what the call does to ``sys.path`` ends with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in (SECRET_VARIABLE, API_KEYS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def is_a_mistake(message: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"goim-core: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", NO_AUTH),
        ("--auth anyone", f"{AUTH} got 'anyone'"),
        ("--auth goim_core:SessionHook", f"{AUTH} got 'goim_core:SessionHook'"),
        ("--auth json:loads", f"{AUTH} got 'json:loads'"),
        ("--auth :Auth", "auth: cannot load ':Auth': Empty module name"),
        ("--auth nowhere:Auth", "auth: cannot load 'nowhere:Auth': No module named 'nowhere'"),
        ("--auth json:Auth", "auth: cannot load 'json:Auth': module 'json' has no attribute 'Auth'"),
        (
            "--auth open --messages goim_core:OpenAuth",
            "messages: expected MODULE:CLASS, a subclass of MessageHook; got 'goim_core:OpenAuth'",
        ),
        (
            "--auth open --sessions open",
            "sessions: expected MODULE:CLASS, a subclass of SessionHook; got 'open'",
        ),
        (
            "--auth open --rooms open",
            "rooms: expected MODULE:CLASS, a subclass of RoomHook; got 'open'",
        ),
        ("--auth open --storage anywhere", f"{STORAGE}, a subclass of StorageHook; got 'anywhere'"),
        ("--auth open --storage memory:x", "storage: cannot load 'memory:x': No module named 'memory'"),
        ("--auth open --storage sqlite:", f"{STORAGE}; got 'sqlite:'"),
        ("--auth open --storage mysql://me:secret@db/x", f"{STORAGE}; got 'mysql://...'"),
        ("--auth open --storage postgres", f"{STORAGE}; got 'postgres'"),
        ("--auth signed", "secret-file: missing: name a file, or set GOIM_CORE_SECRET"),
        (
            "--auth signed --secret-file no.secret",
            "secret-file: cannot read 'no.secret': No such file or directory",
        ),
        ("--auth jwt", "algorithms: missing from the table [jwt] of the configuration file"),
        ("--auth open --tcp 3101", "tcp: expected 'host:port', got '3101'"),
        ("--auth open --ws localhost:", "ws: expected 'host:port', got 'localhost:'"),
        ("--auth open --http :65536", "http: expected a port from 0 to 65535, got 65536"),
        ("--auth open --tls :0", "certificate: missing, tls, wss and https need one"),
        ("--auth open --wss :0 --private-key a.pem", "certificate: missing, tls, wss and https need one"),
        (
            "--auth open --tls :0 --certificate no.pem",
            "certificate: cannot read 'no.pem': No such file or directory",
        ),
        ("--auth open --https :0", "certificate: missing, tls, wss and https need one"),
        (
            "--auth open --wss :0 --certificate a.pem --api-client-ca a.pem",
            "api_client_ca: it is for https, and the server has none",
        ),
        (
            "--auth open --https :0 --certificate a.pem --client-ca a.pem",
            "client_ca: it is for tls and wss, and the server has neither",
        ),
        (
            "--auth open --api-key-file no.keys",
            "api-key-file: cannot read 'no.keys': No such file or directory",
        ),
        (
            "--auth open --tcp 127.0.0.1:0 --http 0.0.0.0:0",
            (
                "http: at 0.0.0.0 anyone who can reach this machine could push: set api_keys (--api-key-file), "
                "or ask for client certificates (https with https_context, --api-client-ca), "
                "or listen on loopback or a Unix socket only"
            ),
        ),
        ("--auth open --log loud", "log: expected a level like 'info', got 'loud'"),
        ("--config no.toml", "config: cannot read 'no.toml': No such file or directory"),
    ],
)
def test_serve_with_a_mistake(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    is_a_mistake(message, capsys, "serve", *arguments.split())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("tcp = ", "c.toml: Invalid value (at end of document)"),
        ("\udcff", "c.toml: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("prot = 1", f"c.toml: prot: expected one of {NAMES}"),
        ("[server]\ntcp = ':0'", f"c.toml: server: expected one of {NAMES}"),
        ("tcp = 3101", "c.toml: tcp: expected text, got int"),
        ("tcp = [':0', 3101]", "c.toml: tcp: expected text, got list"),
        ("log = 10", "c.toml: log: expected text, got int"),
        ("auth = 'open'\nlog_format = 'xml'", "log_format: expected one of text, json; got 'xml'"),
        ("name = ['a']", "c.toml: name: expected text, got list"),
        ("backend = 'curio'", "backend: expected one of asyncio, uvloop, trio; got 'curio'"),
        ("auth = 'anyone'", f"{AUTH} got 'anyone'"),
        ("auth = 'open'\noptions = 3", "options: expected a table, got int"),
        ("auth = 'open'\njwt = 'x'", "jwt: expected a table, got str"),
        ("[signed]\nsecret = 'x'", "signed: secret: expected one of secret_file, cookie, origins"),
        ("auth = 'signed'\n[signed]\nsecret_file = 5", "secret-file: expected a file's name, got int"),
        (
            "auth = 'signed'\n[signed]\nsecret_file = 'c.toml'\ncookie = 5",
            "cookie: expected a cookie's name, got 5",
        ),
        (
            "auth = 'signed'\n[signed]\nsecret_file = 'c.toml'\n#\n",
            "secrets: expected at least 16 bytes (random ones), got 15",
        ),
        (
            "auth = 'jwt'\n[jwt]\nalgorithms = 'HS256'",
            "key_file: the table [jwt] needs either key_file or jwks",
        ),
        (
            "auth = 'jwt'\n[jwt]\nalgorithms = 'HS256'\njwks = 'no.json'",
            "jwks: cannot use 'no.json': No such file or directory",
        ),
        (
            "auth = 'jwt'\n[jwt]\nalgorithms = 'HS256'\nkey_file = 'c.toml'\nleeway = 'x'",
            "leeway: expected seconds, 0 to 86400, got 'x'",
        ),
        (
            "auth = 'open'\n[options]\ndrain = -1",
            "drain: expected float, at least 0.001, at most 1e+09; got -1",
        ),
        (
            "auth = 'open'\n[options]\nbuckets = 0",
            "buckets: expected int, at least 1, at most 65536; got 0",
        ),
        (
            "auth = 'open'\n[options]\noutbox_policy = 'wait'",
            "outbox_policy: expected one of drop_newest, drop_oldest, disconnect; got 'wait'",
        ),
    ],
)
def test_a_configuration_file_with_a_mistake(
    config: str, message: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "c.toml").write_bytes(config.encode(errors="surrogateescape"))
    is_a_mistake(message, capsys, "serve", "--config", "c.toml")


def test_an_unknown_option_is_told_which_there_are(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "c.toml").write_text("[options]\nheartbeet = 30\n")
    assert main(["serve", "--auth", "open", "--config", "c.toml"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("goim-core: options: heartbeet: expected one of max_body, ws_path, heartbeat, ")


@pytest.mark.parametrize("backend", ["uvloop", "trio"])
def test_a_backend_that_is_not_installed(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    message = f"backend: {backend} is missing; pip install 'goim_core[{backend}]'"
    is_a_mistake(message, capsys, "serve", "--auth", "open", "--backend", backend)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("push all --op 1000 --http 3111 hi", "http: expected 'host:port', got '3111'"),
        ("push all --op 1000 --http unix:a hi", "http: expected 'host:port', got 'unix:a'"),
        *(
            (
                f"push all --op 1000 --http {url} hi",
                "http: expected HOST:PORT, http://HOST:PORT or https://HOST:PORT",
            )
            for url in (
                "ftp://a:1",
                "https://me:hidden@a",
                "https://a/b",
                "https://",
                "http://a:x",
                "http://[a",
            )
        ),
        (
            "push all --op 1000 --http https://a --ca no.pem hi",
            "ca, certificate: cannot use them: [Errno 2] No such file or directory",
        ),
        (
            "push all --op 1000 --api-key-file no.keys hi",
            "api-key-file: cannot read 'no.keys': No such file or directory",
        ),
        ("listen --tcp 3101", "tcp: expected 'host:port', got '3101'"),
        ("listen --tcp unix:a", "tcp: expected 'host:port', got 'unix:a'"),
        (
            "listen --url http://a:1",
            "url: expected tcp://, tls://, ws:// or wss:// and a host, got 'http://a:1'",
        ),
        (
            "listen --url wss://a:1 --ca no.pem",
            "ca, certificate: cannot use them: [Errno 2] No such file or directory",
        ),
        ("listen --accepts 1000,x", "accepts: expected operations separated by commas, got '1000,x'"),
    ],
)
def test_push_and_listen_with_a_mistake(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    is_a_mistake(message, capsys, *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: serve | push | listen | token"),
        ("run", "invalid choice: 'run'"),
        ("push", "the following arguments are required: room | mids | keys | all"),
        ("push room live --op 1000 hi", "the following arguments are required: TEXT"),
        ("push all hi", "the following arguments are required: --op"),
        ("serve --backend curio", "invalid choice: 'curio'"),
        ("listen --mid me", "invalid int value: 'me'"),
        ("token", "the following arguments are required: --mid"),
        ("token --mid 7 --expires soon", "invalid float value: 'soon'"),
    ],
)
def test_a_call_that_is_none(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.startswith("usage: goim-core")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"goim_core {metadata.version('goim_core')}\n"


def test_an_adapter_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    monkeypatch.delitem(sys.modules, "goim_core.adapters.jwt", raising=False)
    (elsewhere / "c.toml").write_text("auth = 'jwt'\n[jwt]\nalgorithms = 'HS256'\njwks = 'keys.json'\n")
    message = (
        "auth: cannot load 'goim_core.adapters.jwt:JWTAuth': "
        "goim_core.adapters.jwt needs PyJWT: pip install 'goim_core[jwt]'"
    )
    is_a_mistake(message, capsys, "serve", "--config", "c.toml")


STORES = """
from goim_core.memory_storage import MemoryStorage

class Mine(MemoryStorage):
    def __init__(self, where="nowhere"):
        super().__init__()
        self.where = where
"""


@pytest.mark.parametrize(
    ("storage", "where"),
    [
        ("stores:Mine", "nowhere"),
        ("sqlite:inbox.db", "inbox.db"),
        ("sqlite:/var/lib/a:b.db", "/var/lib/a:b.db"),
        ("postgres:host=db dbname=chat", "host=db dbname=chat"),
        ("postgres:postgresql://me@db/chat", "postgresql://me@db/chat"),
        ("postgresql://me@db/chat", "postgresql://me@db/chat"),
        ("postgres://me@db/chat", "postgres://me@db/chat"),
    ],
)
def test_a_storage_is_told_where(
    storage: str, where: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "stores.py").write_text(STORES)
    monkeypatch.syspath_prepend(str(elsewhere))
    for name in ("sqlite", "postgres", "postgresql"):
        monkeypatch.setitem(READY["storage"], name, ("stores:Mine", READY["storage"][name][1]))
    given: list[Any] = []
    monkeypatch.setattr("goim_core.settings.Server", lambda **settings: given.append(settings["storage"]))
    server_of({"auth": "open", "storage": storage})
    assert [found.where for found in given] == [where]


# API keys


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("", "api-key-file: expected a key in a line, GOIM_CORE_API_KEYS is empty"),
        ("tooshort-hidden", "api_keys: expected keys of {}, got text of 15 characters"),
        ("long enough, hidden, but with blanks", "api_keys: expected keys of {}, got text of 36 characters"),
        ("0123456789abcde\xe9", "api_keys: expected keys of {}, got text of 16 characters"),
    ],
)
def test_api_keys_that_are_none(
    keys: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, keys)
    expected = "16 or more printable characters of ASCII without blanks"
    is_a_mistake(message.format(expected), capsys, "serve", "--auth", "open")


# token


def test_a_token_that_the_server_takes(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "secrets").write_text(f"{SECRET}\n\n  the one before it, good for a while  \n")
    names = "--key k --room live://1 --platform web --device phone --accepts 1000,18 --expires 60"
    call = ["token", "--mid", "-7", "--secret-file", "secrets", *names.split(" "), "--data", '{"a":[1]}']
    before = time.time()
    assert main(call) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    session = SignedTokenAuth(SECRET).authenticate(AuthRequest(token=out.encode()))
    assert before + 60 <= session.expires <= time.time() + 60
    assert (session.mid, session.key, session.room_id, session.platform) == (-7, "k", "live://1", "web")
    assert (session.device, session.accepts, session.data) == ("phone", {1000, 18}, {"a": [1]})


def test_the_secret_may_be_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    before = time.time()
    assert main(["token", "--mid", "7"]) == 0
    token = capsys.readouterr().out.strip().encode()
    session = SignedTokenAuth(SECRET).authenticate(AuthRequest(token=token))
    assert isinstance(session, Session)
    assert before + 3600 <= session.expires <= time.time() + 3600
    chosen = SignedTokenAuth(SECRET).authenticate(
        AuthRequest(token=b'{"token":"%s","room_id":"a://b","accepts":[1000]}' % token)
    )
    assert (chosen.room_id, chosen.accepts) == ("a://b", {1000})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--mid 9223372036854775808", "mid: expected an int64, got 9223372036854775808"),
        ("--mid 7 --expires inf", "expires: expected seconds since 1970, got inf"),
        (
            "--mid 7 --room live",
            "room_id: expected 'type://id' of at most 256 printable characters, got 'live'",
        ),
        ("--mid 7 --accepts 1000,x", "accepts: expected operations separated by commas, got '1000,x'"),
        ("--mid 7 --accepts -1", "accepts: expected operations as int32, got -1"),
        (
            "--mid 7 --data {",
            "data: expected JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            "--mid 7 --data NaN",
            "data: expected what JSON can say: Out of range float values are not JSON compliant",
        ),
    ],
)
def test_a_token_that_cannot_be(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    assert main(["token", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"goim-core: {message}")


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (None, "secret-file: missing: name a file, or set GOIM_CORE_SECRET"),
        ("", "secret-file: expected a secret in a line, GOIM_CORE_SECRET is empty"),
        (" \n", "secret-file: expected a secret in a line, GOIM_CORE_SECRET is empty"),
        ("short", "secret: expected at least 16 bytes (random ones), got 5"),
    ],
)
def test_a_secret_that_is_none(
    secret: str | None, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if secret is not None:
        monkeypatch.setenv(SECRET_VARIABLE, secret)
    is_a_mistake(message, capsys, "token", "--mid", "7")


def test_help_names_goims_ports(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "goim's ports: --tcp :3101, --ws :3102, --http 127.0.0.1:3111." in told
