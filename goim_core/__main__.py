"""The command line: ``goim-core serve``, ``push`` and ``listen``."""

from __future__ import annotations

import argparse
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

from goim_core.client import connect
from goim_core.errors import ConfigurationError, Disconnect
from goim_core.hooks import AuthHook, Hook, MessageHook, OpenAuth, SessionHook
from goim_core.listener import parse_address
from goim_core.options import Options
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
SETTINGS = (*DOORS, *HOOKS, "backend", "certificate", "private_key", "host", "name", "log")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a failure, 2 for a mistake in the call."""
    call = _parser().parse_args(arguments)
    try:
        status: int = call.run(call)
    except ConfigurationError as error:
        print(f"goim-core: {error}", file=sys.stderr)
        return 2
    except (OSError, Disconnect) as error:
        print(f"goim-core: {error}", file=sys.stderr)
        return 1
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
    for kind, query in (
        (room, ("type", "room")),
        (mids, ("mids",)),
        (keys, ("keys",)),
        (everyone, ("speed",)),
    ):
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
    level = settings.pop("log", "warning").upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigurationError(f"log: expected a level like 'info', got {level.lower()!r}")
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    backend, backend_options = BACKENDS[settings.pop("backend", "asyncio")]
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # so that MODULE:CLASS finds what lies here
    server = _server(settings)
    _raise_descriptor_limit()
    anyio.run(_serve_until_signal, server, backend=backend, backend_options=backend_options)
    return 0


async def _serve_until_signal(server: Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with server:
            doors = (
                f"{door}={address if isinstance(address, str) else f'{address[0]}:{address[1]}'}"
                for door, addresses in server.addresses.items()
                for address in addresses
            )
            print("ready", *doors, flush=True)
            async for _ in signals:
                return


def _settings(call: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if call.config is not None:
        try:
            settings = tomllib.loads(call.config.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{call.config}: {error}") from None
        for name in settings:
            if name not in (*SETTINGS, "options"):
                expected = ", ".join(SETTINGS)
                raise ConfigurationError(f"{call.config}: {name}: expected one of {expected}, [options]")
    settings |= {name: value for name in SETTINGS if (value := getattr(call, name)) is not None}
    if settings.get("backend", "asyncio") not in BACKENDS:
        raise ConfigurationError(f"backend: expected one of {', '.join(BACKENDS)}")
    if not any(settings.get(door) for door in DOORS):
        settings |= DEFAULT_DOORS
    return settings


def _server(settings: dict[str, Any]) -> Server:
    try:
        options = Options(**settings.pop("options", {}))
    except TypeError as error:
        raise ConfigurationError(f"options: {error}") from None
    certificate, private_key = settings.pop("certificate", None), settings.pop("private_key", None)
    return Server(
        auth=OpenAuth() if settings.get("auth") == "open" else _load("auth", settings, AuthHook),
        sessions=_load("sessions", settings, SessionHook),
        messages=_load("messages", settings, MessageHook),
        ssl_context=_ssl_context(certificate, private_key) if certificate else None,
        options=options,
        **{name: value for name, value in settings.items() if name not in HOOKS},
    )


def _load(setting: str, settings: dict[str, Any], kind: type[Hook]) -> Any:
    """An instance of the class that ``setting`` names, or None."""
    name = settings.get(setting)
    if name is None:
        return None
    module, colon, attribute = str(name).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{setting}: cannot load {name!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, kind)):
        expected = "'open' or MODULE:CLASS" if setting == "auth" else "MODULE:CLASS"
        raise ConfigurationError(f"{setting}: expected {expected} with a {kind.__name__}, got {name!r}")
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
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _push(call: argparse.Namespace) -> int:
    body = sys.stdin.buffer.read() if call.text == "-" else call.text.encode()
    query = [("operation", call.op)]
    for name in call.query:
        values = getattr(call, name)
        query += [(name, value) for value in (values.split(",") if name in ("mids", "keys") else [values])]
    host, port = _host_port("http", call.http)
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("POST", f"{call.path}?{urlencode(query)}", body)
    answer = json.loads(connection.getresponse().read())
    if answer["code"]:
        print(f"goim-core: {answer['message']}", file=sys.stderr)
        return 1
    return 0


def _listen(call: argparse.Namespace) -> int:
    try:
        anyio.run(_print_frames, call)
    except KeyboardInterrupt:
        return 130
    return 0


async def _print_frames(call: argparse.Namespace) -> None:
    host, port = _host_port("tcp", call.tcp)
    try:
        accepts = [int(op) for op in call.accepts.split(",") if op]
    except ValueError:
        expected = "operations separated by commas"
        raise ConfigurationError(f"accepts: expected {expected}, got {call.accepts!r}") from None
    async with connect(
        host,
        port,
        mid=call.mid,
        key=call.key,
        room_id=call.room,
        platform="goim-core",
        accepts=accepts,
        token=call.token.encode() if call.token else None,
    ) as client:
        print(f"listening on {call.tcp}", file=sys.stderr, flush=True)
        async for frame in client:
            if frame.op >= 64:
                print(f"{frame.op} {frame.body.decode(errors='replace')}", flush=True)


def _host_port(option: str, address: str) -> tuple[str, int]:
    target = parse_address(option, address)
    if isinstance(target, Path):
        raise ConfigurationError(f"{option}: expected 'host:port', got {address!r}")
    return target[0] or "127.0.0.1", target[1]


if __name__ == "__main__":
    sys.exit(main())
