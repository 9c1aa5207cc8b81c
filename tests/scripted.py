"""A server whose answers a test writes, and a witness of a client's states."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream

from goim_core.client import ClientState, StateChange
from goim_core.protocol import Decoder, Frame, Op, encode

__all__ = ["WELCOME", "Peer", "Scripted", "States", "scripted"]

WELCOME = encode(Op.AUTH_REPLY, b"", 1)


class Peer:
    """The server's end of one connection. ``token`` is what the client brought."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.token = b""
        self._decoder = Decoder()

    async def frame(self) -> Frame:
        """The next frame. Raises :class:`anyio.EndOfStream` at the end."""
        while (frame := self._decoder.next_frame()) is None:
            self._decoder.receive(await self.stream.receive())
        return frame

    async def request(self, op: int) -> Frame:
        """The next frame, which has to be of this operation."""
        frame = await self.frame()
        assert frame.op == op, frame
        return frame

    async def send(self, op: int, body: bytes = b"", seq: int = 0) -> None:
        await self.stream.send(encode(op, body, seq))

    async def reply(self, frame: Frame, body: bytes | None = None) -> None:
        await self.send(frame.op + 1, frame.body if body is None else body, frame.seq)

    async def ended(self) -> None:
        """The client has to have nothing more to say."""
        try:
            frame = await self.frame()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            await self.stream.aclose()
        else:
            raise AssertionError(frame)

    async def close(self) -> None:
        await self.stream.aclose()


class Scripted:
    """Takes connections and answers each token with the next of ``answers``, or a welcome."""

    def __init__(self, listener: SocketListener) -> None:
        self.answers: deque[bytes] = deque()
        self.peers: list[Peer] = []
        self.address = listener.extra(SocketAttribute.local_address)
        self.url = f"tcp://{self.address[0]}:{self.address[1]}"
        self.listener = listener
        self._come, self._peers = anyio.create_memory_object_stream[Peer](100)

    async def serve(self) -> None:
        with suppress(anyio.ClosedResourceError), self._come, self._peers:
            while True:
                peer = Peer(await self.listener.accept())
                self.peers.append(peer)
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    peer.token = (await peer.request(Op.AUTH)).body
                    await peer.stream.send(self.answers.popleft() if self.answers else WELCOME)
                    self._come.send_nowait(peer)

    async def peer(self) -> Peer:
        """The next client that has brought a token."""
        return await self._peers.receive()


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listeners:
        [listener] = listeners.listeners
        assert isinstance(listener, SocketListener)
        server = Scripted(listener)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.serve)
                try:
                    yield server
                finally:
                    with anyio.CancelScope(shield=True):
                        for peer in server.peers:
                            await peer.close()
                    tasks.cancel_scope.cancel()


class States:
    """What ``on_state`` was told."""

    def __init__(self) -> None:
        self.changes: list[StateChange] = []
        self._changed = anyio.Event()

    def __call__(self, change: StateChange) -> None:
        self.changes.append(change)
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, state: ClientState, times: int = 1) -> StateChange:
        """The change to ``state``, once it has come that many times."""
        while len(found := [change for change in self.changes if change.state is state]) < times:
            await self._changed.wait()
        return found[times - 1]

    @property
    def names(self) -> list[Any]:
        return [change.state.value for change in self.changes]
