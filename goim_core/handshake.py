"""The opening handshake of WebSocket (RFC 6455 section 4): a request's bytes in, a response out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import cast

from attrs import define, field
from wsproto import ConnectionType, WSConnection
from wsproto.events import RejectConnection, Request
from wsproto.utilities import RemoteProtocolError, generate_accept_token

from goim_core.http_plain import plain_headers
from goim_core.protocol import HEADER_SIZE, MAX_BODY

__all__ = ["HandshakeError", "Terms", "checked_headers", "head_size", "upgrade", "usual_headers"]


def _origins(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_origin, texts))


@define(eq=False)
class Terms:
    """What all WebSocket connections of a server have in common; what is changed counts for all of them.

    ``max_body``, ``max_message`` (all fragments together) and ``max_header`` (request line and
    headers of the handshake) in bytes; ``path`` is the only one answered, a query string may follow;
    ``origins`` are those of which a browser may come (``https://example.org``), none is all.
    """

    max_body: int = MAX_BODY
    path: str = "/sub"
    max_message: int = 65536
    max_header: int = 8192
    origins: frozenset[str] = field(default=frozenset(), converter=_origins)

    def bound(self, max_body: int) -> None:
        """From now on this is the largest body of a frame; a message may have 64 KB, or more where it has."""
        self.max_body = max_body
        self.max_message = max(1 << 16, HEADER_SIZE + max_body)


class HandshakeError(Exception):
    """The handshake is refused with an HTTP response; its text is the body."""

    def __init__(self, status: HTTPStatus, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers

    def response(self) -> bytes:
        """The whole response, which closes the connection."""
        body = f"{self}\n".encode(errors="replace")
        fields = (
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *self.headers,
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n{lines}\r\n".encode() + body


# What a request can look like before its first line is complete, or with it.
_REQUEST_BEGUN = re.compile(rb"\Z|[A-Z]{1,16}(?:\Z| [ -~]*(?:\Z|\r\Z|\r\n))")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]+) HTTP/1\.1\r\n")
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")


def head_size(buffer: bytes | bytearray, limit: int) -> int:
    """The length of a request's head with its blank line; 0 while that is not there."""
    size = buffer.find(b"\r\n\r\n") + 4
    if size < 4:
        # What is no HTTP, like a goim frame or TLS, may never have a blank line to wait for.
        if not _REQUEST_BEGUN.match(buffer):
            raise HandshakeError(HTTPStatus.BAD_REQUEST, "not an HTTP request")
        size = 0
    if (size or len(buffer)) > limit:
        raise HandshakeError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"request head: expected at most {limit} bytes"
        )
    return size


def upgrade(head: bytes, terms: Terms) -> tuple[bytes, str, dict[str, str]]:
    """The response to the opening handshake in ``head``, its target, and its headers."""
    line = _REQUEST_LINE.match(head)
    if line is None or b"\n" in head.replace(b"\r\n", b""):
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")
    if line[1] != b"GET":
        raise HandshakeError(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET", ("Allow", "GET"))
    target = line[2].decode("ascii")
    if target.partition("?")[0] != terms.path:
        raise HandshakeError(HTTPStatus.NOT_FOUND, f"no such path; this server answers {terms.path}")
    headers = usual_headers(head[line.end() :])
    if headers is None:
        headers = checked_headers(head)
    if terms.origins and "origin" in headers and _origin(headers["origin"]) not in terms.origins:
        # What names none is no browser (RFC 6455 section 10.2).
        raise HandshakeError(HTTPStatus.FORBIDDEN, "Origin: pages of this origin may not connect")
    response = _SWITCHING + generate_accept_token(headers["sec-websocket-key"].encode()) + b"\r\n\r\n"
    return response, target, headers


def usual_headers(lines: bytes) -> dict[str, str] | None:
    """The headers of a handshake as clients send it; None leaves one to wsproto, to read it or to refuse it.

    What is read here is a subset of what wsproto reads, in a fifth of the time.
    """
    headers = plain_headers(lines)
    if headers is None:
        return None
    tokens = headers.get("connection", "").lower().split(",")
    if (
        "upgrade" not in [token.strip() for token in tokens]
        or headers.get("upgrade", "").lower() != "websocket"
        or headers.get("sec-websocket-version") != "13"
        or not _KEY.fullmatch(headers.get("sec-websocket-key", ""))
        or not _HOST.fullmatch(headers.get("host", ""))
        or not headers.keys().isdisjoint(_LEFT_TO_WSPROTO)
    ):
        return None
    headers.pop("sec-websocket-extensions", None)
    return headers


_LABEL = r"[a-z0-9]{1,20}(?:-[a-z0-9]{1,20}){0,2}"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL}){{0,9}}(?::[0-9]{{1,5}})?")
"""A host of the plain kind: no IDNA in it, which wsproto decodes."""
_LEFT_TO_WSPROTO = frozenset(
    ("content-length", "expect", "sec-websocket-protocol", "te", "trailer", "transfer-encoding")
)


def checked_headers(head: bytes) -> dict[str, str]:
    """The headers of any handshake that wsproto takes; raises :class:`HandshakeError` for another."""
    request = _read_request(head)
    headers = _headers(request)
    keys = [value for name, value in request.extra_headers if name == b"sec-websocket-key"]
    if len(keys) != 1 or not _KEY.fullmatch(keys[0].decode("latin-1")):
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key: expected 16 bytes in base64")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "a handshake has no body")
    return headers


def _origin(text: str) -> str:
    """An origin's one spelling: lower case, and no default port (RFC 6454 sections 4 and 6)."""
    text = text.lower()
    if text.startswith("https://"):
        return text.removesuffix(":443")
    return text.removesuffix(":80") if text.startswith("http://") else text


# Always the same but for the token, so h11 need not make it (20 of 70 us for a handshake).
_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)


def _read_request(head: bytes) -> Request:
    connection = WSConnection(ConnectionType.SERVER)
    try:
        connection.receive_data(head)
        (request,) = connection.events()
    except RemoteProtocolError as error:
        raise _refusal(head, error) from None
    except UnicodeError:
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "a header is not readable") from None
    return cast("Request", request)


def _refusal(head: bytes, error: RemoteProtocolError) -> HandshakeError:
    hint = error.event_hint
    status = hint.status_code if isinstance(hint, RejectConnection) else HTTPStatus.BAD_REQUEST
    if b"\r\nupgrade:" not in head.lower() or status == HTTPStatus.UPGRADE_REQUIRED:
        # RFC 9110 section 15.5.22 and RFC 6455 section 4.4.
        headers = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
        return HandshakeError(HTTPStatus.UPGRADE_REQUIRED, str(error), *headers)
    return HandshakeError(HTTPStatus.BAD_REQUEST, str(error))


def _headers(request: Request) -> dict[str, str]:
    # wsproto keeps these two apart from the others.
    headers = {"host": request.host}
    if request.subprotocols:
        headers["sec-websocket-protocol"] = ", ".join(request.subprotocols)
    for name, value in request.extra_headers:
        headers.setdefault(name.decode("ascii"), value.decode("latin-1"))
    return headers
