"""One connection to a server: frames out, frames in, and nothing by itself but heartbeats."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import anyio
from anyio.abc import ByteStream

from goim_core.client.address import Target, parse
from goim_core.client.wire import ClientWire, PlainWire, WebSocketWire
from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import Frame, Op, encode

__all__ = ["Link", "connect_once", "dial", "reach", "stock_token"]


class Link:
    """One connection. Iterate over it for the frames that arrive; a batch (op 9) comes as its frames.

    A heartbeat goes out each ``heartbeat`` seconds while a frame is waited for, so that it needs no task
    of its own. The iteration ends when the server closes without a word, and raises
    :class:`~goim_core.errors.Disconnect` when it said why, or when the connection broke (code LOST).
    ``received`` counts the bytes that have come.
    """

    def __init__(
        self, stream: ByteStream, wire: ClientWire | None = None, heartbeat: float = math.inf
    ) -> None:
        self._stream = stream
        self._wire = PlainWire() if wire is None else wire
        self._heartbeat = heartbeat
        self._next_beat = anyio.current_time() + heartbeat
        self.received = 0

    async def send(self, op: int, body: bytes = b"", seq: int = 0) -> None:
        """Send one frame. Raises :class:`~goim_core.errors.Disconnect` when the connection broke."""
        await self.write([encode(op, body, seq)])

    async def write(self, frames: Iterable[bytes]) -> None:
        """Send encoded frames; see :meth:`send`. One task at a time; a cancelled one breaks the stream."""
        await self._send(b"".join(map(self._wire.encode, frames)))

    async def receive(self) -> Frame:
        """The next frame.

        Raises :class:`~goim_core.errors.Disconnect` when the server says why it closes or the connection
        breaks, :class:`anyio.EndOfStream` when the server just closes, and
        :class:`~goim_core.errors.ProtocolError` when what it sends is no frame.
        """
        while (frame := self._wire.next_frame()) is None:
            await self._answer()
            with anyio.CancelScope(deadline=self._next_beat):
                await self._fill()
                continue
            self._next_beat = anyio.current_time() + self._heartbeat
            await self.send(Op.HEARTBEAT)
        return frame

    async def open(self, token: bytes) -> None:
        """The handshakes of the wire, then authentication with ``token``.

        Raises :class:`~goim_core.errors.Disconnect` when the server turns the client away, and
        :class:`~goim_core.errors.ProtocolError` when it is none of goim's.
        """
        try:
            await self._send(self._wire.opening)
            while not self._wire.opened:
                await self._fill()
                self._wire.open()
            await self.send(Op.AUTH, token, 1)
            reply = await self.receive()
        except anyio.EndOfStream:
            raise Disconnect("closed without a reason", CloseCode.LOST) from None
        except ProtocolError as error:
            raise ProtocolError(f"no goim server: {error}", error.code) from None
        if reply.op != Op.AUTH_REPLY:
            raise Disconnect(f"expected an auth reply, got op {reply.op}", CloseCode.PROTOCOL_ERROR)

    async def aclose(self) -> None:
        """Say goodbye where the wire has a word for it, and close; never waits for the server."""
        with anyio.CancelScope(shield=True):
            with suppress(Disconnect), anyio.move_on_after(1):
                await self._send(self._wire.answers() + self._wire.farewell())
            await self._stream.aclose()

    async def _answer(self) -> None:
        with suppress(Disconnect):  # the reader is to find the reason first
            await self._send(self._wire.answers())

    async def _send(self, data: bytes) -> None:
        try:
            if data:
                await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise _broke() from None

    async def _fill(self) -> None:
        try:
            data = await self._stream.receive()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise _broke() from None
        self.received += len(data)
        self._wire.receive(data)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


async def dial(
    target: Target,
    *,
    ssl_context: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
    heartbeat: float = math.inf,
) -> Link:
    """A link to ``target`` that is not open yet. Raises OSError that names the address."""
    wire = WebSocketWire(target.authority, target.path, headers) if target.websocket else PlainWire()
    return Link(await reach(target, ssl_context), wire, heartbeat)


async def reach(target: Target, ssl_context: ssl.SSLContext | None = None) -> ByteStream:
    """A stream to ``target``, with TLS where that is secure. Raises OSError that names the address."""
    try:
        stream: ByteStream = await anyio.connect_tcp(target.host, target.port)
        if target.secure:
            stream = await _secured(stream, ssl_context or ssl.create_default_context(), target.host)
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise OSError(f"cannot connect to {target}: {_cause(error)}") from error
    return stream


async def _secured(stream: ByteStream, context: ssl.SSLContext, host: str) -> ByteStream:
    from anyio.streams.tls import TLSStream  # noqa: PLC0415  # a client without TLS does without it

    try:
        # Frames have lengths, so a peer that ends without a close_notify cuts nothing off unseen.
        return await TLSStream.wrap(stream, hostname=host, ssl_context=context, standard_compatible=False)
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


def _cause(error: BaseException) -> str:
    if isinstance(error, anyio.EndOfStream | anyio.BrokenResourceError):
        return "it closed during the TLS handshake"
    return str(error)


def stock_token(**fields: Any) -> bytes:
    """The token that goim's stock logic and OpenAuth read."""
    return json.dumps(fields).encode()


@asynccontextmanager
async def connect_once(
    address: str,
    port: int | None = None,
    *,
    mid: int = 0,
    key: str = "",
    room_id: str = "",
    platform: str = "python",
    accepts: Iterable[int] = (),
    token: bytes | None = None,
    heartbeat: float = 30.0,
    ssl_context: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Link]:
    """Connect and authenticate once, for the bare frames; closed when the block is left.

    For tests and tools. ``address`` is a URL, or a TCP host with ``port``. ``token`` is the auth frame's
    body; without one it is goim's JSON of the other arguments. Raises
    :class:`~goim_core.errors.Disconnect` when the server turns the client away, OSError that names the
    address when there is none, :class:`~goim_core.errors.ProtocolError` when it is none of goim's.
    """
    if token is None:
        token = stock_token(mid=mid, key=key, room_id=room_id, platform=platform, accepts=list(accepts))
    target = parse(address, port)
    link = await dial(target, ssl_context=ssl_context, headers=headers, heartbeat=heartbeat)
    try:
        await link.open(token)
        yield link
    finally:
        await link.aclose()


def _broke() -> Disconnect:
    return Disconnect("the connection broke", CloseCode.LOST)
