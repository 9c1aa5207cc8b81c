"""The command line: ``goim-core serve``, ``push`` and ``listen``."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib
import json
import logging
import os
import signal
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
import attrs

from goim_core.client import connect
from goim_core.errors import ConfigurationError, GoimError
from goim_core.hooks import AuthHook, Hook, MessageHook, OpenAuth, SessionHook
from goim_core.listener import parse_address
from goim_core.options import Options
from goim_core.protocol import Op
from goim_core.server import Server

__all__ = ["main"]

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
DOORS = ("tcp", "tls", "ws", "wss", "http")
DEFAULT_DOORS = {"tcp": ":3101", "ws": ":3102", "http": "127.0.0.1:3111"}
"""goim's ports."""
HOOKS = ("auth", "sessions", "messages")
AUTH_CHOICES = "'open' believes any token, for development; MODULE:CLASS is your own subclass of AuthHook"
SETTINGS = (*DOORS, *HOOKS, "backend", "certificate", "private_key", "host", "name", "log")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a failure, 2 for a mistake, 130 for Ctrl+C."""
    call = _parser().parse_args(arguments)
    try:
        status: int = call.run(call)
    except ConfigurationError as error:
        print(f"goim-core: {error}", file=sys.stderr)
        return 2
    except (OSError, GoimError) as error:
        print(f"goim-core: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="goim-core", description="goim's messaging pipeline in one process."
    )
    commands = parser.add_subparsers(required=True, metavar="serve | push | listen")

    serve = commands.add_parser("serve", help="run a server", description=_serve.__doc__)
    serve.set_defaults(run=_serve)
    protocols = ("TCP", "TCP with TLS", "WebSocket", "WebSocket with TLS", "the push API")
    for door, what in zip(DOORS, protocols, strict=True):
        serve.add_argument(f"--{door}", action="append", metavar="HOST:PORT", help=f"listen here for {what}")
    serve.add_argument("--auth", metavar="open|MODULE:CLASS", help="who may connect; has to be chosen")
    serve.add_argument("--sessions", metavar="MODULE:CLASS", help="a session hook")
    serve.add_argument("--messages", metavar="MODULE:CLASS", help="a message hook")
    serve.add_argument("--backend", choices=BACKENDS, help="the event loop (default: asyncio)")
    serve.add_argument("--certificate", metavar="FILE.pem", help="certificate chain for --tls and --wss")
    serve.add_argument("--private-key", metavar="FILE.pem", help="its key, where that is another file")
    serve.add_argument("--host", help="the name at which clients are told to find this server")
    serve.add_argument("--name", help="this node's name")
    serve.add_argument("--log", metavar="LEVEL", help="the log level (default: warning)")
    serve.add_argument("--config", metavar="FILE.toml", type=Path, help="the same settings, and [options]")

    push = commands.add_parser("push", help="push a message through the push API")
    kinds = push.add_subparsers(required=True, metavar="room | mids | keys | all")
    room = kinds.add_parser("room", help="to a room")
    room.add_argument("type")
    room.add_argument("room")
    mids = kinds.add_parser("mids", help="to users")
    mids.add_argument("mids", metavar="MID[,MID...]")
    keys = kinds.add_parser("keys", help="to connections")
    keys.add_argument("keys", metavar="KEY[,KEY...]")
    everyone = kinds.add_parser("all", help="to everyone")
    everyone.add_argument("--speed", default="0", help="connections a second (default: 0, at once)")
    queries = ((room, ("type", "room")), (mids, ("mids",)), (keys, ("keys",)), (everyone, ("speed",)))
    for kind, query in queries:
        kind.add_argument("--op", required=True, help="the operation that clients see, 64 or more")
        kind.add_argument("--http", default="127.0.0.1:3111", metavar="HOST:PORT", help="the push API")
        kind.add_argument("text", help="the message; '-' reads it from standard input")
        kind.set_defaults(run=_push, query=query, path=f"/goim/push/{kind.prog.split()[-1]}")

    listen = commands.add_parser("listen", help="connect as a client and print what arrives")
    listen.set_defaults(run=_listen)
    listen.add_argument("--tcp", default="127.0.0.1:3101", metavar="HOST:PORT", help="the server")
    listen.add_argument("--room", default="", metavar="TYPE://ID", help="the room to enter")
    listen.add_argument("--mid", type=int, default=1, help="the user to be (default: 1)")
    listen.add_argument("--key", default="", help="the connection's key")
    listen.add_argument("--accepts", default="1000", metavar="OP[,OP...]", help="operations (default: 1000)")
    listen.add_argument("--token", help="the whole token, instead of the four above")
    return parser


def _serve(call: argparse.Namespace) -> int:
    """Run a server until SIGTERM or SIGINT. Prints 'ready' and its addresses in one line once it listens."""
    settings = _settings(call)
    level = settings.pop("log", "warning")
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigurationError(f"log: expected a level like 'info', got {level!r}")
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    backend, backend_options = _backend(settings.pop("backend", "asyncio"))
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # so that MODULE:CLASS finds what lies here
    server = _server(settings)
    _raise_descriptor_limit()
    anyio.run(_serve_until_signal, server, backend=backend, backend_options=backend_options)
    return 0


async def _serve_until_signal(server: Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with server:
            doors = server.addresses.items()
            print("ready", *(f"{door}={_shown(at)}" for door, found in doors for at in found), flush=True)
            async for _ in signals:
                return


def _shown(address: tuple[str, int] | str) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _settings(call: argparse.Namespace) -> dict[str, Any]:
    """The settings of the configuration file, and over them those of the call."""
    settings = _read(call.config) if call.config is not None else {}
    settings |= {name: value for name in SETTINGS if (value := getattr(call, name)) is not None}
    if not any(settings.get(door) for door in DOORS):
        settings |= DEFAULT_DOORS
    return settings


def _read(config: Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"config: cannot read {str(config)!r}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{config}: {error}") from None
    for name, value in settings.items():
        if name not in (*SETTINGS, "options"):
            raise ConfigurationError(f"{config}: {name}: expected one of {', '.join(SETTINGS)}, [options]")
        texts = value if name in DOORS and isinstance(value, list) else [value]
        if name != "options" and not all(isinstance(text, str) for text in texts):
            raise ConfigurationError(f"{config}: {name}: expected text, got {value!r}")
    return settings


def _backend(name: str) -> tuple[str, dict[str, Any]]:
    if name not in BACKENDS:
        raise ConfigurationError(f"backend: expected one of {', '.join(BACKENDS)}; got {name!r}")
    try:
        importlib.import_module(name)
    except ImportError:
        raise ConfigurationError(f"backend: {name} is missing; pip install 'goim_core[{name}]'") from None
    return BACKENDS[name]


def _server(settings: dict[str, Any]) -> Server:
    options, hooks = settings.pop("options", {}), {name: settings.pop(name, None) for name in HOOKS}
    certificate, private_key = settings.pop("certificate", None), settings.pop("private_key", None)
    if not certificate and (settings.get("tls") or settings.get("wss")):
        raise ConfigurationError("certificate: missing, tls and wss need one")
    if hooks["auth"] is None:
        raise ConfigurationError(f"auth: missing: {AUTH_CHOICES}")
    return Server(
        auth=OpenAuth() if hooks["auth"] == "open" else _load("auth", hooks["auth"], AuthHook),
        sessions=_load("sessions", hooks["sessions"], SessionHook),
        messages=_load("messages", hooks["messages"], MessageHook),
        ssl_context=_ssl_context(certificate, private_key) if certificate else None,
        options=_options(options),
        **settings,
    )


def _options(given: Any) -> Options:
    known = attrs.fields_dict(Options)
    if not isinstance(given, dict):
        raise ConfigurationError(f"options: expected a table, got {given!r}")
    for name in given:
        if name not in known:
            raise ConfigurationError(f"options: {name}: expected one of {', '.join(known)}")
    return Options(**given)


def _load(setting: str, name: str | None, kind: type[Hook]) -> Any:
    """An instance of the class ``name``, MODULE:CLASS, or None without a name."""
    if name is None:
        return None
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{setting}: cannot load {name!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, kind)):
        expected = ("'open' or " if setting == "auth" else "") + "MODULE:CLASS, a subclass of"
        raise ConfigurationError(f"{setting}: expected {expected} {kind.__name__}; got {name!r}")
    return found()


def _ssl_context(certificate: str, private_key: str | None) -> Any:
    import ssl  # noqa: PLC0415  # a server without TLS does without OpenSSL

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, private_key)
    except OSError as error:
        raise ConfigurationError(f"certificate: cannot load {certificate!r}: {error}") from None
    return context


def _raise_descriptor_limit() -> None:
    if sys.platform == "win32":
        return  # it has no such limit
    import resource  # noqa: PLC0415

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS names a hard limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _push(call: argparse.Namespace) -> int:
    """Push one message through the push API of a running server."""
    body = sys.stdin.buffer.read() if call.text == "-" else os.fsencode(call.text)
    query = [("operation", call.op)]
    for name in call.query:
        values = getattr(call, name)
        query += [(name, value) for value in (values.split(",") if name in ("mids", "keys") else [values])]
    host, port = _host_port("http", call.http)
    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=30)) as connection:
            connection.request("POST", f"{call.path}?{urlencode(query)}", body)
            answer = json.loads(connection.getresponse().read())
        failure = answer["message"] if answer["code"] else ""
    except OSError as error:
        raise OSError(f"cannot push to {call.http}: {error.strerror or error}") from None
    except (http.client.HTTPException, ValueError, LookupError, TypeError):
        raise OSError(f"cannot push to {call.http}: what answers there is no push API") from None
    if failure:
        print(f"goim-core: {failure}", file=sys.stderr)
        return 1
    return 0


def _listen(call: argparse.Namespace) -> int:
    """Connect as a client and print each push as one line, its operation and its body."""
    anyio.run(_print_frames, call)
    return 0


async def _print_frames(call: argparse.Namespace) -> None:
    host, port = _host_port("tcp", call.tcp)
    try:
        accepts = [int(op) for op in call.accepts.split(",") if op]
    except ValueError:
        expected = "operations separated by commas"
        raise ConfigurationError(f"accepts: expected {expected}, got {call.accepts!r}") from None
    who = {"mid": call.mid, "key": call.key, "room_id": call.room, "platform": "goim-core"}
    token = os.fsencode(call.token) if call.token else None
    async with connect(host, port, **who, accepts=accepts, token=token) as client:
        print(f"listening on {call.tcp}", file=sys.stderr, flush=True)
        async for frame in client:
            if frame.op != Op.HEARTBEAT_REPLY:
                print(f"{frame.op} {frame.body.decode(errors='replace')}", flush=True)


def _host_port(option: str, address: str) -> tuple[str, int]:
    target = parse_address(option, address)
    if isinstance(target, Path):
        raise ConfigurationError(f"{option}: expected 'host:port', got {address!r}")
    return target[0] or "127.0.0.1", target[1]


if __name__ == "__main__":
    sys.exit(main())
