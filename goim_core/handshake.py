"""The opening handshake of WebSocket (RFC 6455 section 4): a request's bytes in, a response out."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import cast

from wsproto import ConnectionType, WSConnection
from wsproto.events import RejectConnection, Request
from wsproto.utilities import RemoteProtocolError, generate_accept_token

__all__ = ["HandshakeError", "head_size", "upgrade"]


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
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")


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


def upgrade(head: bytes, served: str) -> tuple[bytes, str, dict[str, str]]:
    """The response to the opening handshake in ``head``, its target, and its headers."""
    line = _REQUEST_LINE.match(head)
    if line is None or b"\n" in head.replace(b"\r\n", b""):
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")
    if line[1] != b"GET":
        raise HandshakeError(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET", ("Allow", "GET"))
    target = line[2].decode("ascii")
    if target.partition("?")[0] != served:
        raise HandshakeError(HTTPStatus.NOT_FOUND, f"no such path; this server answers {served}")
    request = _read_request(head)
    headers = _headers(request)
    keys = [value for name, value in request.extra_headers if name == b"sec-websocket-key"]
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key: expected 16 bytes in base64")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "a handshake has no body")
    response = _SWITCHING + generate_accept_token(keys[0]) + b"\r\n\r\n"
    return response, target, headers


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
