"""The client: what an application holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import TracebackType
from typing import Self, Unpack

import anyio
from anyio.abc import TaskGroup

from goim_core.client.keeper import Keeper
from goim_core.client.link import stock_token
from goim_core.client.messages import ClientState, LastSeen, Members, Message, read_last_seen
from goim_core.client.nodes import Where, where
from goim_core.client.settings import EXTENSIONS, Options, Settings, TokenSource
from goim_core.errors import Disconnect
from goim_core.protocol import Frame, Op, split
from goim_core.taskgroup import leave

__all__ = ["Client", "connect"]


class Client:
    """A client that stays connected until its block is left: see :func:`connect`.

    Iterate over it for messages. The iteration ends after :meth:`aclose`, and raises
    :class:`~goim_core.errors.Disconnect` when the server ended it for good. Every method may be called
    while the connection is lost: it waits for the next one, up to its ``timeout``, in seconds.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        self._where = where
        self._settings = settings
        self._tasks: TaskGroup | None = None
        self._taken: Message | None = None

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("a Client runs once: connect() makes another")
        self._keeper = Keeper(self._where, self._settings)
        self._tasks = await anyio.create_task_group().__aenter__()
        try:
            self._tasks.start_soon(self._keeper.timers.run)
            await self._tasks.start(self._keeper.run)
            self._tasks.start_soon(self._where.keep_fresh, lambda: self.state is ClientState.OPEN)
            for room_id in self._settings.rooms:
                await self.join(room_id)
        except BaseException as error:
            self._tasks.cancel_scope.cancel()
            await leave(self._tasks, type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        if error is None:
            await self._acknowledge_taken()
        await self._keeper.close()
        self._tasks.cancel_scope.cancel()
        return await leave(self._tasks, kind, error, trace)

    async def aclose(self) -> None:
        """End it, as leaving the block does: what waits is sent, what was acknowledged is told."""
        await self._keeper.close()

    # What it is doing.

    @property
    def state(self) -> ClientState:
        """What it is doing."""
        return self._keeper.state

    @property
    def why(self) -> Disconnect | None:
        """Why the server ended it for good; None while it has not."""
        return self._keeper.why

    @property
    def online(self) -> int | None:
        """How many connections are in its room, as the last heartbeat told; None before the first."""
        return self._keeper.dialogue.online

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms that it changed to or joined; the token's room is the server's to know."""
        places = self._keeper.dialogue.places
        return frozenset((*places.joined, places.room or "")) - {""}

    @property
    def seen(self) -> int:
        """The last number of the inbox that was received: what ``after`` of :func:`connect` takes."""
        return self._keeper.dialogue.inbox.seen

    @property
    def acknowledged(self) -> int:
        """The number up to which every message of the inbox has been acknowledged by the application."""
        return self._keeper.dialogue.inbox.acknowledged

    # Messages in.

    async def receive(self) -> Message:
        """The next message; with ``ack="auto"`` the one before it counts as done.

        Raises :class:`~goim_core.errors.Disconnect` when the server ended it for good, and
        :class:`anyio.ClosedResourceError` after :meth:`aclose`; what came before is given first.
        """
        await self._acknowledge_taken()
        message = await self._keeper.buffer.take()
        if message is None:
            raise self._keeper.ended()
        if self._settings.ack == "auto":
            self._taken = message
        return message

    async def _acknowledge_taken(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None:
            await taken.ack()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except anyio.ClosedResourceError:
            raise StopAsyncIteration from None

    # Frames out.

    async def send(self, op: int, body: bytes | str = b"", *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # on its own clock
        """Send a frame, and do not wait for what the server says to it; a refusal is logged.

        Raises :class:`ValueError` for a body above ``max_body``; TimeoutError while there is no connection.
        """
        await self._keeper.send(op, _bytes(body), self._timeout(timeout))

    async def request(self, op: int, body: bytes | str = b"", *, timeout: float | None = None) -> Frame:  # noqa: ASYNC109
        """Send a frame; the server's reply to it.

        Raises :class:`~goim_core.errors.Refused` with the server's code, TimeoutError without a reply in
        time, and :class:`~goim_core.errors.Disconnect` (code LOST) where the connection broke in between:
        it may or may not have been done. :class:`ValueError` for a body above ``max_body``.
        """
        return await self._keeper.request(op, _bytes(body), self._timeout(timeout))

    def _timeout(self, timeout: float | None) -> float:
        return self._settings.request_timeout if timeout is None else timeout

    # Rooms. All raise as request() does; each holds for the connections to come, too.

    async def change_room(self, room_id: str) -> None:
        """Leave the room it is in for this one; empty leaves it for none."""
        await self.request(Op.CHANGE_ROOM, room_id)

    async def join(self, room_id: str) -> None:
        """Be in this room too."""
        await self.request(Op.JOIN, room_id)

    async def leave(self, room_id: str) -> None:
        """Be no longer in a room that it joined."""
        await self.request(Op.LEAVE, room_id)

    async def watch(self, room_id: str) -> None:
        """Hear of who comes to this room and who leaves: messages of op 34, see :class:`Presence`."""
        await self.request(Op.WATCH, room_id)

    async def unwatch(self, room_id: str) -> None:
        """Hear no more of who comes and leaves."""
        await self.request(Op.UNWATCH, room_id)

    async def subscribe(self, *ops: int) -> None:
        """Get pushes of these operations, beside those that the token accepts."""
        if ops:
            await self.request(Op.SUB, ",".join(map(str, ops)))

    async def unsubscribe(self, *ops: int) -> None:
        """Get no more pushes of these operations."""
        if ops:
            await self.request(Op.UNSUB, ",".join(map(str, ops)))

    # Questions. All raise as request() does.

    async def members(self, room_id: str, *, offset: int = 0, limit: int = 100) -> Members:
        """A page of who is in a room that it is in."""
        asked = {"room_id": room_id, "offset": offset, "limit": limit}
        return Members.read((await self.request(Op.MEMBERS, json.dumps(asked))).body)

    async def last_seen(self, mids: Iterable[int]) -> dict[int, LastSeen]:
        """Who of these users is online, and when the others were; at most 100 of them."""
        return read_last_seen((await self.request(Op.LAST_SEEN, json.dumps(list(mids)))).body)

    async def sync(self, after: int, limit: int = 100) -> list[Message]:
        """The inbox behind the number ``after``: at most ``limit`` (1 to 1000) messages; empty at its end.

        For a history: it changes nothing of what is received or acknowledged.
        """
        reply = await self.request(Op.SYNC, f"{after},{limit}")
        return [Message(frame.op, frame.body, frame.seq) for frame in split(reply.body)]

    # The token.

    async def refresh(self, token: TokenSource | None = None) -> None:
        """Give the server a fresh token, of ``token`` from now on where that is given.

        Not needed where ``token`` of :func:`connect` is a function: it is called when the time comes.
        """
        if token is not None:
            self._keeper.token = token
        await self._keeper.refresh()


def connect(
    address: str,
    port: int | None = None,
    *,
    token: TokenSource | None = None,
    mid: int = 0,
    key: str = "",
    room_id: str = "",
    platform: str = "python",
    device: str = "",
    accepts: Iterable[int] = (),
    **options: Unpack[Options],
) -> Client:
    """A client for ``async with``: it connects on entering and stays connected until the block is left.

    ``address`` is ``tcp://host:port``, ``tls://``, ``ws://`` or ``wss://`` (``/sub`` unless it has a path),
    or a TCP host with ``port``. An ``http://`` or ``https://`` address is not the server's but that of a
    node list (``/goim/nodes/weighted`` unless it has a path), which is asked for before each connection, and
    each ``refresh_nodes`` seconds: its nodes are tried in their order, each at the best of its ``doors``.

    ``token`` is what the server's AuthHook reads: bytes, text, a mapping (sent as JSON), or a plain or async
    function that is called for each connection, and when the server says that a token runs out. Its
    ``accepts`` should list :data:`EXTENSIONS`. Without ``token`` it is goim's JSON of the arguments behind
    it, with :data:`EXTENSIONS` accepted. ``options``: see :class:`Options`.

    Raises :class:`ValueError` that names an argument. On entering: OSError that names the address where no
    connection can be made, :class:`~goim_core.errors.Disconnect` where the server turns it away,
    :class:`~goim_core.errors.ProtocolError` where it is none of goim's, and
    :class:`~goim_core.errors.Refused` for one of ``rooms``. A connection that is lost later is made again.
    """
    if token is None:
        wanted = sorted({*accepts, *EXTENSIONS})
        who = {"mid": mid, "key": key, "room_id": room_id, "platform": platform, "device": device}
        token = stock_token(**who, accepts=wanted)
    settings = Settings(token=token, **options)
    return Client(where(address, port, settings), settings)


def _bytes(body: bytes | str) -> bytes:
    return body.encode() if isinstance(body, str) else body
