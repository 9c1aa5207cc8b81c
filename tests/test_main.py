"""The command line in this process: what it says to a call or a configuration that cannot work.

What it does where all is well is in tests/e2e/test_command_line.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from goim_core.__main__ import SETTINGS, main

NO_AUTH = (
    "auth: missing: 'open' believes any token, for development; MODULE:CLASS is your own subclass of AuthHook"
)
AUTH = "auth: expected 'open' or MODULE:CLASS, a subclass of AuthHook;"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory to be in; what the call does to ``sys.path`` ends with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
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
        ("--auth open --tcp 3101", "tcp: expected 'host:port', got '3101'"),
        ("--auth open --ws localhost:", "ws: expected 'host:port', got 'localhost:'"),
        ("--auth open --http :65536", "http: expected a port from 0 to 65535, got 65536"),
        ("--auth open --tls :0", "certificate: missing, tls and wss need one"),
        ("--auth open --wss :0 --private-key a.pem", "certificate: missing, tls and wss need one"),
        (
            "--auth open --tls :0 --certificate no.pem",
            "certificate: cannot load 'no.pem': [Errno 2] No such file or directory",
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
        ("prot = 1", f"c.toml: prot: expected one of {', '.join(SETTINGS)}, [options]"),
        ("[server]\ntcp = ':0'", f"c.toml: server: expected one of {', '.join(SETTINGS)}, [options]"),
        ("tcp = 3101", "c.toml: tcp: expected text, got 3101"),
        ("tcp = [':0', 3101]", "c.toml: tcp: expected text, got [':0', 3101]"),
        ("log = 10", "c.toml: log: expected text, got 10"),
        ("name = ['a']", "c.toml: name: expected text, got ['a']"),
        ("backend = 'curio'", "backend: expected one of asyncio, uvloop, trio; got 'curio'"),
        ("auth = 'anyone'", f"{AUTH} got 'anyone'"),
        ("auth = 'open'\noptions = 3", "options: expected a table, got 3"),
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
        ("listen --tcp 3101", "tcp: expected 'host:port', got '3101'"),
        ("listen --tcp unix:a", "tcp: expected 'host:port', got 'unix:a'"),
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
        ("", "the following arguments are required: serve | push | listen"),
        ("run", "invalid choice: 'run'"),
        ("push", "the following arguments are required: room | mids | keys | all"),
        ("push room live --op 1000 hi", "the following arguments are required: text"),
        ("push all hi", "the following arguments are required: --op"),
        ("serve --backend curio", "invalid choice: 'curio'"),
        ("listen --mid me", "invalid int value: 'me'"),
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
