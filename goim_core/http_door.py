"""HTTP/1.1 on accepted sockets: requests in, routes, answers out. The one module that knows h11.

h11 reads and writes every byte of the protocol; here are the socket, the limits and the deadlines. A
socket is used as it was accepted, with :func:`anyio.wait_readable`, so that it is the same on every
event loop and costs no stream objects.

Errors that the door itself answers have goim's shape, ``{"code":-404,"message":"..."}``, with the
HTTP status to match.
"""

from __future__ import annotations

import json
import logging
import math
import socket
from collections.abc import Callable, Mapping
from typing import TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
import anyio.lowlevel
import h11
from attrs import frozen

from goim_core.errors import ConfigurationError, HookError
from goim_core.flow import settled
from goim_core.session import MaybeAwaitable

__all__ = ["JSON", "HTTPDoor", "Handler", "Request", "Response", "Routes", "error"]

JSON = "application/json; charset=utf-8"
"""The content type of goim's answers."""

_CHUNK = 16 * 1024
"""Bytes read at once: small enough that h11 takes them apart in a few milliseconds, whatever they are."""
_DISCARD = 4 * 1024 * 1024
"""Bytes of a refused request that are read and thrown away before the socket is closed on it."""
_NO_BODY = (204, 304)
_END = h11.EndOfMessage()
_CONTINUE = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")

_log = logging.getLogger("goim_core.http")


@frozen(eq=False)
class Request:
    """One whole request.

    ``path`` and ``query`` are percent-decoded, ``query`` with all values of a name in order (one without
    a value is empty); ``headers`` have lower-case names, and a repeated one is joined with commas (RFC
    9110 section 5.3); ``address`` is the peer's IP address, empty on a Unix socket.
    """

    method: str
    path: str
    query: Mapping[str, tuple[str, ...]]
    headers: Mapping[str, str]
    body: bytes
    address: str = ""


@frozen
class Response:
    """An answer. The door adds Content-Length; ``headers`` is for whatever else there is to say."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Handler: TypeAlias = Callable[[Request], MaybeAwaitable[Response]]
"""Answers a request. A plain function must not block. What it raises is logged and answered 500."""
Routes: TypeAlias = Mapping[str, Mapping[str, Handler]]
"""Handlers by path, then by method. A GET route answers HEAD too."""


def error(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """An answer in goim's shape for the HTTP status ``status``; its code is that number, negative."""
    body = json.dumps({"code": -status, "message": message}, separators=(",", ":"))
    return Response(status, body.encode(), JSON, headers)


class HTTPDoor:
    """Serves ``routes`` on sockets that somebody else accepts.

    ``max_body`` and ``max_header`` bytes of a request, above which it is answered 413 or 431 and its
    connection closed; ``timeout`` seconds for a whole request to arrive after its first byte (then 408),
    and for a peer that takes none of its answer; ``idle`` seconds between requests; ``linger`` seconds
    for the peer of a refused request to read why. A handler has no time limit.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the option which cannot be used.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        max_body: int = 1024 * 1024,
        max_header: int = 64 * 1024,
        timeout: float = 30.0,
        idle: float = 75.0,
        linger: float = 2.0,
    ) -> None:
        for name, value, least in (("max_body", max_body, 0), ("max_header", max_header, 1)):
            if value < least:
                raise ConfigurationError(f"{name}: expected at least {least}, got {value}")
        for name, seconds in (("timeout", timeout), ("idle", idle), ("linger", linger)):
            if not seconds > 0:
                raise ConfigurationError(f"{name}: expected more than 0 seconds, got {seconds}")
        for path, methods in routes.items():
            if not path.startswith("/"):
                raise ConfigurationError(f"routes: expected a path that begins with '/', got {path!r}")
            for method in methods:
                # After a CONNECT that succeeds the connection would no longer be HTTP.
                if not method.isupper() or method == "CONNECT":
                    raise ConfigurationError(f"routes: {path}: expected a method like 'GET', got {method!r}")
        self.routes = routes
        self.max_body = max_body
        self.max_header = max_header
        self.timeout = timeout
        self.idle = idle
        self.linger = linger

    async def serve(self, sock: socket.socket) -> None:
        """Serve ``sock``, accepted and non-blocking, until it ends. Closes it, also when cancelled.

        Raises nothing for what the peer does or a handler raises.
        """
        try:
            await _Conversation(self, sock).run()
        except (OSError, anyio.ClosedResourceError) as ended:
            _log.debug("connection ended: %r", ended)
        finally:
            sock.close()

    async def answer(self, request: Request) -> tuple[h11.Response, bytes]:
        """The answer of the route that ``request`` names, or the error that says why there is none."""
        methods = self.routes.get(request.path)
        if methods is None:
            return _message(error(404, f"no such path: {request.path[:80]!r}"))
        handler = methods.get(request.method)
        if handler is None and request.method == "HEAD":
            handler = methods.get("GET")
        if handler is None:
            allow = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
            return _message(error(405, f"{request.path}: expected {allow}", (("Allow", allow),)))
        try:
            return _message(_checked(await settled(handler(request))))
        except Exception:  # noqa: BLE001 - the border to the application's routes: its faults end here
            _log.exception("%s %s: the route failed", request.method, request.path)
            return _message(error(500, "internal error"))


def _checked(returned: object) -> Response:
    if not isinstance(returned, Response):
        raise HookError(f"a route has to return a Response, got {returned!r:.80}")
    return returned


def _message(response: Response) -> tuple[h11.Response, bytes]:
    body = response.body
    headers = list(response.headers)
    if response.status in _NO_BODY:
        body = b""
    else:
        headers += [("Content-Type", response.content_type), ("Content-Length", str(len(body)))]
    return h11.Response(status_code=response.status, headers=headers), body


class _Refused(Exception):
    """The request is not one that can be read to its end."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Conversation:
    """One connection: requests and answers in turn, over one h11 state machine."""

    def __init__(self, door: HTTPDoor, sock: socket.socket) -> None:
        self.door = door
        self.sock = sock
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=door.max_header)
        self.scope = anyio.CancelScope()  # its deadline is what the connection waits for just now
        self.head_only = False
        self.address = ""

    async def run(self) -> None:
        if self.sock.family in (socket.AF_INET, socket.AF_INET6):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.address = self.sock.getpeername()[0]
        refused: _Refused | None = None
        with self.scope:
            try:
                while await self.exchange():
                    pass
            except _Refused as reason:
                refused = reason
        if self.scope.cancelled_caught and self.request_begun():
            refused = _Refused(408, f"no whole request within {self.door.timeout:g} seconds")
        if refused is not None:
            close = (("Connection", "close"),)
            # An answer this small goes out whole, or the peer does not read anyway.
            self.send(self.encode(*_message(error(refused.status, str(refused), close))))
        if refused is not None or self.http.their_state is h11.MUST_CLOSE:
            await self.part()

    async def exchange(self) -> bool:
        """One request and its answer; whether there may be another."""
        request = await self.next_request()
        if request is None:
            return False
        self.scope.deadline = math.inf
        if isinstance(request, Response):
            response, body = _message(request)
        else:
            response, body = await self.door.answer(request)
        await self.write(self.encode(response, body))
        if self.http.our_state is not h11.DONE:
            return False
        self.http.start_next_cycle()
        return True

    async def next_request(self) -> Request | Response | None:
        """The next request, or None when the peer has no more.

        A Response stands for a request that is complete and yet none: it is its answer.
        """
        head: h11.Request | None = None
        body = bytearray()
        waits = 0
        self.head_only = False
        while True:
            event = self.next_event()
            if event is h11.NEED_DATA:
                await self.more(waits)
                waits += 1
            elif isinstance(event, h11.Request):
                self.check_head(event)
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self.door.max_body:
                    raise self.too_large()
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                if not waits:
                    # It was pipelined: without a wait of its own it could keep others from their turn.
                    await anyio.lowlevel.checkpoint()
                return _request(head, bytes(body), self.address)
            else:
                return None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self.http.next_event()
        except h11.RemoteProtocolError as reason:
            raise _Refused(reason.error_status_hint, str(reason)) from None

    def check_head(self, head: h11.Request) -> None:
        self.head_only = head.method == b"HEAD"
        # h11 measures only what is incomplete; a long header that came in one piece is as long.
        size = len(head.method) + len(head.target) + 14
        size += sum(len(name) + len(value) + 4 for name, value in head.headers)
        if size > self.door.max_header:
            raise _Refused(431, f"headers: expected at most {self.door.max_header} bytes, got {size}")
        for name, value in head.headers:
            if name == b"content-length" and int(value) > self.door.max_body:
                raise self.too_large()

    def too_large(self) -> _Refused:
        return _Refused(413, f"body: expected at most {self.door.max_body} bytes")

    async def more(self, waits: int) -> None:
        """Give h11 more bytes. ``waits`` is how often this request has waited for some before."""
        if self.http.they_are_waiting_for_100_continue:
            await self.write(self.http.send(_CONTINUE))
        if waits == 0:
            patience = self.door.timeout if self.request_begun() else self.door.idle
            self.scope.deadline = anyio.current_time() + patience
        elif waits == 1:
            self.scope.deadline = anyio.current_time() + self.door.timeout
        self.http.receive_data(await self.receive())

    def request_begun(self) -> bool:
        """Whether part of a request is here that has no answer yet."""
        if self.http.our_state is h11.SEND_RESPONSE:
            return True
        return self.http.our_state is h11.IDLE and bool(self.http.trailing_data[0])

    def encode(self, response: h11.Response, body: bytes) -> bytes:
        parts = [self.http.send(response)]
        if body and not self.head_only:
            parts.append(self.http.send(h11.Data(data=body)))
        parts.append(self.http.send(_END))
        return b"".join(parts)

    async def part(self) -> None:
        """Close for writing, then read on for a while (RFC 9112 section 9.6).

        Closing on unread bytes is a reset, and a reset can take the answer away from the peer.
        """
        self.sock.shutdown(socket.SHUT_WR)
        left = _DISCARD
        with anyio.move_on_after(self.door.linger):
            while left > 0 and (data := await self.receive()):
                left -= len(data)

    async def receive(self) -> bytes:
        while True:
            # On uvloop a wait that is over as soon as it begins is never cancelled: a peer that sends
            # without a pause would outlive every deadline.
            await anyio.lowlevel.checkpoint_if_cancelled()
            await anyio.wait_readable(self.sock)
            try:
                return self.sock.recv(_CHUNK)
            except BlockingIOError:
                continue

    def send(self, data: bytes) -> bytes:
        """Send what the kernel takes, and return the rest."""
        try:
            return data[self.sock.send(data) :]
        except BlockingIOError:
            return data

    async def write(self, data: bytes) -> None:
        while data := self.send(data):
            self.scope.deadline = anyio.current_time() + self.door.timeout
            await anyio.wait_writable(self.sock)


def _request(head: h11.Request, body: bytes, address: str) -> Request | Response:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    try:
        path, query = _target(head.target.decode("ascii"))
    except ValueError as reason:
        return error(400, f"target: {reason}")
    return Request(head.method.decode("ascii"), path, query, headers, body, address)


def _target(target: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    path, _, query = target.partition("?")
    if "://" in path and not path.startswith("/"):
        path = urlsplit(path).path or "/"  # absolute-form, which a server takes (RFC 9112 section 3.2.2)
    values = parse_qs(query, keep_blank_values=True, errors="strict") if query else {}
    return unquote(path, errors="strict"), {name: tuple(found) for name, found in values.items()}
