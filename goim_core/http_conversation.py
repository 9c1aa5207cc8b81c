"""One HTTP/1.1 connection: requests and answers in turn.

h11 says what HTTP is. A plain request is read without it (http_plain.py), to the same result, and a plain
answer written as h11 wrote it before (http_heads.py). Here are the socket, the limits and the deadlines. A
socket is used as it was accepted (see inflow.py), so that it is the same on every event loop and costs no
stream objects; with TLS it is a :class:`~goim_core.tls.TLSSocket`.
"""

from __future__ import annotations

import math
import socket
from collections import Counter, OrderedDict
from typing import Protocol

import anyio
import anyio.lowlevel
import h11
from attrs import evolve

from goim_core.http_heads import Message, message, read_whole
from goim_core.http_message import Request, Response, error
from goim_core.http_message import read_target as _target
from goim_core.http_plain import plain_request
from goim_core.inflow import Inflow, Patience, SealedInflow, inflow
from goim_core.listener import ip_of
from goim_core.tls import TLSSocket

__all__ = ["Conversation", "Door"]

CHUNK = 16 * 1024
"""Bytes read at once: small enough that h11 takes them apart in a few milliseconds, whatever they are."""
DISCARD = 4 * 1024 * 1024
"""Bytes of a refused request that are read and thrown away before the socket is closed on it."""
_LIMITS = {
    401: "api_keys",
    403: "api_keys",
    408: "http_timeout",
    413: "http_max_body",
    431: "http_max_header",
}
_END = h11.EndOfMessage()
_CONTINUE = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")


class Door(Protocol):
    """What a conversation asks of :class:`~goim_core.http_door.HTTPDoor`, which says what all of it means."""

    max_header: int
    timeout: float
    idle: float
    linger: float
    refusals: Counter[str]
    waiting: OrderedDict[Conversation, None]
    turns: anyio.Lock

    def refusal(self, request: Request) -> Response | None:
        """Why ``request``, of which the head is there, is not read any further; None where it is."""

    def most_body(self, request: Request | Response) -> int:
        """The largest body that ``request`` may have."""

    async def answer(self, request: Request) -> Message:
        """The answer to a whole request."""


class _Refused(Exception):
    """The request is not read to its end; the answer says why, and the connection is closed."""

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status)
        close = ("Connection", "close")
        self.answer = evolve(answer, headers=(*answer.headers, close))


class Conversation:
    """The server's end of ``sock``, for ``door``. ``certified`` becomes that of its requests."""

    def __init__(self, door: Door, sock: socket.socket | TLSSocket, certified: bool) -> None:
        self._door = door
        self._sock = sock
        self._raw = sock.raw if isinstance(sock, TLSSocket) else sock
        self._certified = certified
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=door.max_header)
        self._scope = anyio.CancelScope()
        self._patience = Patience(self._scope)  # for what the connection waits for just now
        self._inflow: Inflow
        self._plain = b""  # the request that is being answered, where h11 does not know of it
        self._head_only = False
        self._most_body = 0
        self.address = ""
        self.answered = 0
        """How many requests it has answered."""
        self._displaced = False
        if isinstance(sock, TLSSocket):
            sock.in_turns = True
            self._inflow = SealedInflow(sock, CHUNK, door.turns, self._flush)
        else:
            self._inflow = inflow(sock, CHUNK)

    def give_way(self) -> None:
        """End soon: another is to have this one's place. Not while its request is being answered."""
        self._door.waiting.pop(self)
        self._displaced = True
        self._scope.cancel()

    async def run(self) -> str:
        """Serve the peer to the end, and say why it came. Raises OSError where the connection broke."""
        try:
            return await self._serve()
        finally:
            self._patience.close()
            self._inflow.close()

    async def _serve(self) -> str:
        if self._raw.family in (socket.AF_INET, socket.AF_INET6):
            self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.address = ip_of(self._raw.getpeername())
        refused: Response | None = None
        self._door.waiting[self] = None
        try:
            with self._scope:
                while await self._exchange():
                    pass
        except _Refused as reason:
            refused = reason.answer
        finally:
            self._door.waiting.pop(self, None)
        if self._displaced:
            self._turn_away()
            return "its place was given to another"
        if self._scope.cancelled_caught and self._request_begun():
            late = error(408, f"no whole request within {self._door.timeout:g} seconds")
            refused = _Refused(late).answer
        await self._end(refused)
        if refused is not None:
            return f"refused with {refused.status}"
        return "silent for too long" if self._scope.cancelled_caught else "closed"

    async def _end(self, refused: Response | None) -> None:
        if refused is not None:
            if refused.status in _LIMITS:
                self._door.refusals[_LIMITS[refused.status]] += 1
            # An answer this small goes out whole, or the peer does not read anyway.
            self._send(self._encode(message(refused)))
        if refused is not None or self._http.their_state is h11.MUST_CLOSE:
            await self._part()
        elif self._raw is not self._sock:
            self._sock.shutdown(socket.SHUT_WR)  # so that the end is seen to be one, and no truncation

    def _turn_away(self) -> None:
        """Tell a peer that has begun a request, if it takes that at once: its place is given to another."""
        if self._request_begun():
            full = error(503, "too many connections: try again later", (("Retry-After", "5"),))
            self._send(self._encode(message(_Refused(full).answer)))

    async def _exchange(self) -> bool:
        """One request and its answer; whether there may be another."""
        request = await self._next_request()
        if request is None:
            return False
        # A request that came while its connection gave way is not begun.
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._door.waiting.pop(self, None)
        self._patience.last(math.inf)
        if isinstance(request, Response):
            answer = message(request)
        else:
            answer = await self._door.answer(request)
        self._door.waiting[self] = None
        await self._write(self._encode(answer))
        self.answered += 1
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        return self._http.our_state is h11.IDLE

    async def _next_request(self) -> Request | Response | None:
        """The next request, or None when the peer has no more.

        A Response stands for a request that is complete and yet none: it is its answer.
        """
        self._head_only = False
        if any(self._http.trailing_data):
            return await self._read(0)
        data = await self._more(0)
        if (plain := plain_request(data)) is None:
            self._http.receive_data(data)
            return await self._read(1)
        self._plain = data
        return self._begun(*plain)

    async def _read(self, waits: int) -> Request | Response | None:
        """The same by h11, which has something of it; ``waits`` is how often it was waited for."""
        request: Request | Response | None = None
        body = bytearray()
        while True:
            event = self._next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._more(waits))
                waits += 1
            elif isinstance(event, h11.Request):
                self._head_only = event.method == b"HEAD"
                headers, size = _headers(event)
                request = self._begun(event.method.decode(), event.target.decode(), headers, size)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._most_body:
                    raise self._too_large()
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                if not waits:
                    # It was pipelined: without a wait of its own it could keep others from their turn.
                    async with self._door.turns:
                        await anyio.lowlevel.checkpoint()
                return request if isinstance(request, Response) or not body else _whole(request, bytes(body))
            else:
                return None

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as reason:
            raise _Refused(error(reason.error_status_hint, str(reason))) from None

    def _begun(
        self, method: str, target: str, headers: dict[str, str], size: int, body: bytes = b""
    ) -> Request | Response:
        """The request with this head of ``size`` bytes, or the answer where it is none."""
        # h11 measures only what is incomplete; a long header that came in one piece is as long.
        if size > self._door.max_header:
            expected = f"headers: expected at most {self._door.max_header} bytes, got {size}"
            raise _Refused(error(431, expected))
        request = self._request(method, target, headers, body)
        refusal = None if isinstance(request, Response) else self._door.refusal(request)
        if refusal is not None:
            raise _Refused(refusal)
        if "content-length" in headers and "transfer-encoding" in headers:
            # Who is in front may have read it by the other: request smuggling (RFC 9112 section 6.1).
            raise _Refused(error(400, "body: expected Content-Length or Transfer-Encoding, got both"))
        self._most_body = self._door.most_body(request)
        if int(headers.get("content-length", "0")) > self._most_body:
            raise self._too_large()
        return request

    def _too_large(self) -> _Refused:
        return _Refused(error(413, f"body: expected at most {self._most_body} bytes"))

    def _request(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Request | Response:
        try:
            path, query = _target(target)
        except ValueError as reason:
            return error(400, f"target: {reason}")
        return Request(method, path, query, headers, body, self.address, self._certified)

    async def _more(self, waits: int) -> bytes:
        """Wait for more bytes. ``waits`` is how often this request has waited for some before."""
        if self._http.they_are_waiting_for_100_continue:
            await self._write(self._http.send(_CONTINUE))
        if waits == 0:
            hurry = self._request_begun() or not self._secured()
            self._patience.last(self._door.timeout if hurry else self._door.idle)
        elif waits == 1:
            self._patience.last(self._door.timeout)
        return await self._inflow.receive()

    def _request_begun(self) -> bool:
        """Whether part of a request is here that has no answer yet."""
        if self._plain or self._http.our_state is h11.SEND_RESPONSE:
            return True
        return self._http.our_state is h11.IDLE and bool(self._http.trailing_data[0])

    def _encode(self, answer: Message) -> bytes:
        response, head, body = answer
        if self._plain:
            plain, self._plain = self._plain, b""
            if head:
                return head + body
            # The answer has something to say of the connection, maybe: h11 has to know what it is to.
            read_whole(self._http, plain)
        parts = [self._http.send(response)]
        if body and not self._head_only:
            parts.append(self._http.send(h11.Data(data=body)))
        parts.append(self._http.send(_END))
        return b"".join(parts)

    async def _part(self) -> None:
        """Close for writing, then read on for a while (RFC 9112 section 9.6).

        Closing on unread bytes is a reset, and a reset can take the answer away from the peer.
        """
        self._sock.shutdown(socket.SHUT_WR)
        left = DISCARD
        with anyio.move_on_after(self._door.linger):
            while left > 0 and (data := await self._inflow.receive()):
                left -= len(data)

    # The socket.

    def _secured(self) -> bool:
        """Whether the handshake is done, where there is one."""
        return not isinstance(self._sock, TLSSocket) or self._sock.established

    def _send(self, data: bytes) -> bytes:
        """Send what the kernel takes, and return the rest."""
        try:
            return data[self._sock.send(data) :]
        except BlockingIOError:
            return data

    async def _write(self, data: bytes) -> None:
        while data := self._send(data):
            await self._writable()
        if self._raw is not self._sock:
            await self._flush()

    async def _flush(self) -> None:
        """Send the cipher text that the kernel has not taken yet."""
        while isinstance(self._sock, TLSSocket) and not self._sock.flush():
            await self._writable()

    async def _writable(self) -> None:
        self._patience.last(self._door.timeout)
        await anyio.wait_writable(self._raw)


def _headers(head: h11.Request) -> tuple[dict[str, str], int]:
    """The headers of a request, and how many bytes its head has."""
    headers: dict[str, str] = {}
    size = len(head.method) + len(head.target) + 14
    for raw_name, raw_value in head.headers:
        size += len(raw_name) + len(raw_value) + 4
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers, size


def _whole(head: Request, body: bytes) -> Request:
    return Request(head.method, head.path, head.query, head.headers, body, head.address, head.certified)
