"""The command line: ``goim-core serve``, ``push``, ``listen`` and ``token``."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from goim_core import collector
from goim_core.auth import sign_token
from goim_core.client import connect_once
from goim_core.client.address import parse
from goim_core.errors import ConfigurationError, GoimError
from goim_core.logs import JSONFormatter, TextFormatter
from goim_core.operator_api import version
from goim_core.protocol import Op
from goim_core.push_command import add_push, add_trust, host_port, trust
from goim_core.server import Server
from goim_core.serving import Reload, serve_until_signal
from goim_core.settings import (
    API_KEYS_VARIABLE,
    BACKENDS,
    DEFAULT_DOORS,
    DOORS,
    SECRET_VARIABLE,
    backend_of,
    log_level,
    read_secrets,
    server_of,
    settings_of,
)

__all__ = ["main", "parser"]

LOG_FORMATS: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JSONFormatter}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a failure, 2 for a mistake, 130 for Ctrl+C."""
    call = parser().parse_args(arguments)
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


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    found = argparse.ArgumentParser(prog="goim-core", description="goim's messaging pipeline in one process.")
    found.add_argument("--version", action="version", version=f"goim_core {version()}")
    commands = found.add_subparsers(required=True, metavar="serve | push | listen | token")
    for add in (_add_serve, add_push, _add_listen, _add_token):
        add(commands)
    return found


# serve.


def _add_serve(commands: Any) -> None:
    defaults = ", ".join(f"--{door} {address}" for door, address in DEFAULT_DOORS.items())
    serve = commands.add_parser(
        "serve",
        usage="%(prog)s [--config FILE.toml] [--auth HOW] [option ...]",
        help="run a server",
        description=f"{_serve.__doc__} At SIGHUP it reads its files again. "
        f"Without any address it listens on goim's ports: {defaults}.",
    )
    serve.set_defaults(run=_serve)
    tables = "the same settings, and [options], [signed], [jwt]; options here go first"
    serve.add_argument("--config", metavar="FILE.toml", type=Path, help=tables)
    _add_doors(serve.add_argument_group("where it listens; each may be repeated"))
    _add_parts(serve.add_argument_group("what it is made of"))
    _add_security(serve.add_argument_group("TLS, and who may push"))
    _add_node(serve.add_argument_group("one node of many"))
    process = serve.add_argument_group("the process")
    process.add_argument("--backend", choices=BACKENDS, help="the event loop (default: asyncio)")
    process.add_argument("--log", metavar="LEVEL", help="the log level (default: warning)")
    process.add_argument("--log-format", choices=LOG_FORMATS, help="how a record is written (default: text)")


def _add_doors(group: Any) -> None:
    api = "the push API and the operator page"
    protocols = ("TCP", "TCP with TLS", "WebSocket", "WebSocket with TLS", api, f"{api}, with TLS")
    for door, what in zip(DOORS, protocols, strict=True):
        group.add_argument(f"--{door}", action="append", metavar="HOST:PORT", help=what)


def _add_parts(group: Any) -> None:
    auths = "who may connect: has to be chosen, here or in --config"
    group.add_argument("--auth", metavar="open|signed|jwt|MODULE:CLASS", help=auths)
    _add_secret_file(group, "--auth signed")
    group.add_argument("--rooms", metavar="MODULE:CLASS", help="a room hook: who may be in which room")
    group.add_argument(
        "--sessions", metavar="MODULE:CLASS", help="a session hook: how many logins, who is here"
    )
    group.add_argument("--messages", metavar="MODULE:CLASS", help="a message hook: what clients send")
    storages = "memory|sqlite:FILE|postgres:DSN|MODULE:CLASS"
    group.add_argument("--storage", metavar=storages, help="the inboxes of users (default: none)")


def _add_node(group: Any) -> None:
    for part in ("queue", "registry", "discovery"):
        group.add_argument(f"--{part}", metavar="URL|MODULE:CLASS", help=f"the {part} that nodes share")
    group.add_argument("--host", help="the name at which clients are told to find this server")
    group.add_argument("--name", help="this node's name")
    for place in ("region", "zone", "weight"):
        text = f"of this node, for --discovery (default: {place.upper()} of the environment)"
        group.add_argument(f"--{place}", help=text)


def _add_security(group: Any) -> None:
    chain = "certificate chain for --tls, --wss and --https"
    group.add_argument("--certificate", metavar="FILE.pem", help=chain)
    group.add_argument("--private-key", metavar="FILE.pem", help="its key, where that is another file")
    clients = "ask clients at --tls and --wss for a certificate of these authorities"
    group.add_argument("--client-ca", metavar="FILE.pem", help=clients)
    keys = f"the keys of those who may push, one a line (default: {API_KEYS_VARIABLE})"
    group.add_argument("--api-key-file", metavar="FILE", help=keys)
    pushers = "ask those who push at --https for a certificate of these authorities"
    group.add_argument("--api-client-ca", metavar="FILE.pem", help=pushers)


def _add_secret_file(command: Any, purpose: str) -> None:
    text = f"the secrets of {purpose}, one a line, the first one signs (default: {SECRET_VARIABLE})"
    command.add_argument("--secret-file", metavar="FILE", help=text)


def _serve(call: argparse.Namespace) -> int:
    """Run a server until SIGTERM or SIGINT. Prints 'ready' and its addresses in one line once it listens."""
    settings = settings_of(call)
    log_format = settings.get("log_format", "text")
    if log_format not in LOG_FORMATS:
        raise ConfigurationError(f"log_format: expected one of {', '.join(LOG_FORMATS)}; got {log_format!r}")
    lines = logging.StreamHandler()
    lines.setFormatter(LOG_FORMATS[log_format]())
    logging.basicConfig(level=log_level(settings), handlers=[lines])
    backend, backend_options = backend_of(settings.get("backend", "asyncio"))
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # so that MODULE:CLASS finds what lies here
    server = server_of(settings)
    _raise_descriptor_limit()
    collector.spare()
    reload = Reload(server, settings, partial(settings_of, call))
    serve = partial(serve_until_signal, server, ready=partial(_ready, server), reload=reload)
    anyio.run(serve, backend=backend, backend_options=backend_options)
    return 0


def _ready(server: Server) -> None:
    doors = server.addresses.items()
    print("ready", *(f"{door}={_shown(at)}" for door, found in doors for at in found), flush=True)


def _shown(address: tuple[str, int] | str) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _raise_descriptor_limit() -> None:
    if sys.platform == "win32":
        return  # it has no such limit
    import resource  # noqa: PLC0415

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS names a hard limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# listen.


def _add_listen(commands: Any) -> None:
    listen = commands.add_parser(
        "listen", help="connect as a client and print what arrives", description=_listen.__doc__
    )
    listen.set_defaults(run=_listen)
    where = listen.add_mutually_exclusive_group()
    server = "the server (default: 127.0.0.1:3101)"
    where.add_argument("--tcp", default="127.0.0.1:3101", metavar="HOST:PORT", help=server)
    where.add_argument("--url", help="the server as tcp://, tls://, ws:// or wss://HOST:PORT")
    listen.add_argument("--room", default="", metavar="TYPE://ID", help="the room to enter")
    listen.add_argument("--mid", type=int, default=1, help="the user to be (default: 1)")
    listen.add_argument("--key", default="", help="the connection's key")
    listen.add_argument("--accepts", default="1000", metavar="OP[,OP...]", help="operations (default: 1000)")
    listen.add_argument("--token", help="the whole token, instead of the four above")
    add_trust(listen, "tls and wss")


def _listen(call: argparse.Namespace) -> int:
    """Connect as a client and print each push as one line, its operation and its body."""
    anyio.run(_print_frames, call)
    return 0


async def _print_frames(call: argparse.Namespace) -> None:
    address, port = (_url(call.url), None) if call.url else host_port("tcp", call.tcp)
    who: dict[str, Any] = {"mid": call.mid, "key": call.key, "room_id": call.room, "platform": "goim-core"}
    token = os.fsencode(call.token) if call.token else None
    who |= {"accepts": _operations(call.accepts), "token": token, "ssl_context": trust(call)}
    async with connect_once(address, port, **who) as client:
        print(f"listening on {call.url or call.tcp}", file=sys.stderr, flush=True)
        async for frame in client:
            if frame.op != Op.HEARTBEAT_REPLY:
                print(f"{frame.op} {frame.body.decode(errors='replace')}", flush=True)


def _url(address: str) -> str:
    try:
        parse(address)
    except ValueError as error:
        raise ConfigurationError(str(error).replace("address:", "url:", 1)) from None
    return address


# token.


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token",
        help="make a token for --auth signed",
        description=f"{_token.__doc__} What is not given is left to the client.",
    )
    token.set_defaults(run=_token)
    token.add_argument("--mid", type=int, required=True, help="the user")
    lifetime = "how long it is good (default: 3600)"
    token.add_argument("--expires", type=float, default=3600.0, metavar="SECONDS", help=lifetime)
    token.add_argument("--key", default="", help="the connection's key")
    token.add_argument("--room", metavar="TYPE://ID", help="the room to enter")
    token.add_argument("--platform", help="what the client runs on")
    token.add_argument("--device", help="the device whose place in the inbox is kept")
    token.add_argument("--accepts", metavar="OP[,OP...]", help="operations")
    token.add_argument("--data", metavar="JSON", help="the application's own, which clients can read")
    _add_secret_file(token, "the server")


def _token(call: argparse.Namespace) -> int:
    """Print a signed token, which SignedTokenAuth lets in."""
    try:
        token = sign_token(
            read_secrets(call.secret_file)[0],
            mid=call.mid,
            expires=time.time() + call.expires,
            key=call.key,
            room_id=call.room,
            platform=call.platform,
            device=call.device,
            accepts=None if call.accepts is None else _operations(call.accepts),
            data=None if call.data is None else json.loads(call.data),
        )
    except ConfigurationError:
        raise
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"data: expected JSON: {error}") from None
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    print(token)
    return 0


def _operations(text: str) -> list[int]:
    try:
        return [int(op) for op in text.split(",") if op]
    except ValueError:
        expected = "operations separated by commas"
        raise ConfigurationError(f"accepts: expected {expected}, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
