"""``goim-core push``: one message through the push API of a server that runs."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from goim_core.errors import ConfigurationError
from goim_core.listener import parse_address
from goim_core.settings import API_KEYS_VARIABLE, read_api_keys

__all__ = ["add_push", "add_trust", "host_port", "trust"]

TIMEOUT = 30.0
_PORTS = {"http": 80, "https": 443}


def add_push(commands: Any) -> None:
    """Add it to the commands of a parser."""
    push = commands.add_parser("push", help="push a message through the push API", description=_push.__doc__)
    kinds = push.add_subparsers(required=True, metavar="room | mids | keys | all")
    room = kinds.add_parser("room", help="to the room TYPE://ROOM")
    room.add_argument("type", metavar="TYPE")
    room.add_argument("room", metavar="ROOM")
    mids = kinds.add_parser("mids", help="to users")
    mids.add_argument("mids", metavar="MID[,MID...]")
    once = "tried again with the same, it is stored once"
    mids.add_argument("--idempotency-key", default="", metavar="KEY", help=once)
    keys = kinds.add_parser("keys", help="to connections")
    keys.add_argument("keys", metavar="KEY[,KEY...]")
    everyone = kinds.add_parser("all", help="to everyone")
    everyone.add_argument("--speed", default="0", help="connections a second (default: 0, at once)")
    queries = ((room, ("type", "room")), (mids, ("mids",)), (keys, ("keys",)), (everyone, ("speed",)))
    for kind, query in queries:
        _add_server(kind)
        kind.add_argument("--op", required=True, help="the operation that clients see, 64 or more")
        kind.add_argument("text", metavar="TEXT", help="the message; '-' reads it from standard input")
        kind.set_defaults(run=_push, query=query, path=f"/goim/push/{kind.prog.split()[-1]}")


def _add_server(kind: argparse.ArgumentParser) -> None:
    api = "the push API (default: 127.0.0.1:3111)"
    kind.add_argument("--http", default="127.0.0.1:3111", metavar="HOST:PORT|URL", help=api)
    keys = f"the API key is its first line (default: {API_KEYS_VARIABLE})"
    kind.add_argument("--api-key-file", metavar="FILE", help=keys)
    add_trust(kind, "https")


def add_trust(command: argparse.ArgumentParser, door: str) -> None:
    """Add the options that :func:`trust` reads, for a command that connects to ``door``."""
    ca = f"who is trusted, for {door} (default: the system's)"
    command.add_argument("--ca", metavar="FILE.pem", help=ca)
    command.add_argument("--certificate", metavar="FILE.pem", help="what is shown, where one is asked for")
    command.add_argument("--private-key", metavar="FILE.pem", help="its key, where that is another file")


def _push(call: argparse.Namespace) -> int:
    """Push one message through the push API of a running server."""
    body = sys.stdin.buffer.read() if call.text == "-" else os.fsencode(call.text)
    query = [("operation", call.op)]
    for name in call.query:
        values = getattr(call, name)
        query += [(name, value) for value in (values.split(",") if name in ("mids", "keys") else [values])]
    connection, headers = _connection(call), _headers(call)
    try:
        with contextlib.closing(connection):
            connection.request("POST", f"{call.path}?{urlencode(query)}", body, headers)
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


def _headers(call: argparse.Namespace) -> dict[str, str]:
    keys = read_api_keys(call.api_key_file)
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    once = getattr(call, "idempotency_key", "")
    return {**headers, "Idempotency-Key": once} if once else headers


def _connection(call: argparse.Namespace) -> http.client.HTTPConnection:
    scheme, host, port = _server(call.http)
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=trust(call))
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT)


def _server(address: str) -> tuple[str, str, int]:
    """Scheme, host and port of HOST:PORT or of a URL."""
    if "://" not in address and "@" not in address:
        return "http", *host_port("http", address)
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port or _PORTS.get(url.scheme)
        fits = url.scheme in _PORTS and "@" not in url.netloc and url[2:] in (("",) * 3, ("/", "", ""))
    except ValueError:
        fits = False
    if not fits or not host or not port:
        # It is not shown: there may be a password in it.
        raise ConfigurationError("http: expected HOST:PORT, http://HOST:PORT or https://HOST:PORT")
    return url.scheme, host, port


def trust(call: argparse.Namespace) -> ssl.SSLContext:
    """Whom the call trusts and what it shows; raises ConfigurationError where a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=call.ca)
        if call.certificate:
            context.load_cert_chain(call.certificate, call.private_key)
    except OSError as error:
        raise ConfigurationError(f"ca, certificate: cannot use them: {error}") from None
    return context


def host_port(option: str, address: str) -> tuple[str, int]:
    """The host, loopback where there is none, and the port that ``address`` names."""
    target = parse_address(option, address)
    if isinstance(target, Path):
        raise ConfigurationError(f"{option}: expected 'host:port', got {address!r}")
    return target[0] or "127.0.0.1", target[1]
