"""A client for goim's protocol over TCP: for trying a server by hand, and for tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
from anyio.abc import ByteStream

from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import INT32_MAX, Decoder, Frame, Op, encode

__all__ = ["Client", "connect"]


class Client:
    """One authenticated connection. Iterate over it for the frames that arrive.

    A heartbeat goes out each ``heartbeat`` seconds while a frame is waited for, so that it needs no task
    of its own. The iteration ends when the server closes without a word, and raises
    :class:`~goim_core.errors.Disconnect` when it said why, or when the connection broke (code LOST).
    """

    def __init__(self, stream: ByteStream, heartbeat: float) -> None:
        self._stream = stream
        self._heartbeat = heartbeat
        self._next_beat = anyio.current_time() + heartbeat
        # What a server may send has no limit of its own.
        self._decoder = Decoder(max_body=INT32_MAX - 16)

    async def send(self, op: int, body: bytes = b"", seq: int = 0) -> None:
        """Send one frame. Raises :class:`~goim_core.errors.Disconnect` when the connection broke."""
        try:
            await self._stream.send(encode(op, body, seq))
        except anyio.BrokenResourceError:
            raise _broke() from None

    async def receive(self) -> Frame:
        """The next frame.

        Raises :class:`~goim_core.errors.Disconnect` when the server says why it closes or the connection
        breaks, :class:`anyio.EndOfStream` when the server just closes, and
        :class:`~goim_core.errors.ProtocolError` when what it sends is no frame.
        """
        while (frame := self._decoder.next_frame()) is None:
            with anyio.CancelScope(deadline=self._next_beat):
                try:
                    self._decoder.receive(await self._stream.receive())
                except anyio.BrokenResourceError:
                    raise _broke() from None
                continue
            self._next_beat = anyio.current_time() + self._heartbeat
            await self.send(Op.HEARTBEAT)
        if frame.op == Op.DISCONNECT_REPLY:
            raise _reason(frame.body)
        return frame

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


@asynccontextmanager
async def connect(
    host: str,
    port: int,
    *,
    mid: int = 0,
    key: str = "",
    room_id: str = "",
    platform: str = "python",
    accepts: Iterable[int] = (),
    token: bytes | None = None,
    heartbeat: float = 30.0,
) -> AsyncIterator[Client]:
    """Connect and authenticate; the connection is closed when the block is left.

    ``token`` is the auth frame's body; without one it is goim's JSON of the other arguments. Raises
    :class:`~goim_core.errors.Disconnect` when the server turns the client away, OSError that names the
    address when there is none, :class:`~goim_core.errors.ProtocolError` when it is none of goim's.
    """
    if token is None:
        fields: dict[str, Any] = {"mid": mid, "key": key, "room_id": room_id, "platform": platform}
        token = json.dumps({**fields, "accepts": list(accepts)}).encode()
    try:
        connecting = await anyio.connect_tcp(host, port)
    except OSError as error:
        raise OSError(f"cannot connect to {host}:{port}: {error}") from error
    async with connecting as stream:
        client = Client(stream, heartbeat)
        await client.send(Op.AUTH, token, 1)
        try:
            reply = await client.receive()
        except anyio.EndOfStream:
            raise Disconnect("closed without a reason", CloseCode.AUTH_REFUSED) from None
        except ProtocolError as error:
            raise ProtocolError(f"no goim server: {error}", error.code) from None
        if reply.op != Op.AUTH_REPLY:
            raise Disconnect(f"expected an auth reply, got op {reply.op}", CloseCode.PROTOCOL_ERROR)
        yield client


def _broke() -> Disconnect:
    return Disconnect("the connection broke", CloseCode.LOST)


def _reason(body: bytes) -> Disconnect:
    try:
        reason = json.loads(body)
        return Disconnect(str(reason["message"]), int(reason["code"]))
    except (ValueError, KeyError, TypeError):
        # goim leaves the body to the application.
        return Disconnect(body.decode(errors="replace"))
