"""A connection to Redis, and how many tasks share it. What RedisRegistry and RedisQueue have in common.

While the server answers one round of commands, what others want of it gathers, and goes together in the
next. So the commands of a thousand tasks cost a few round trips, and keep the order in which they were given.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import anyio
from attrs import define

from goim_core.adapters.trouble import Trouble
from goim_core.errors import BackboneError, ConfigurationError
from goim_core.masked import masked

try:
    from redis import exceptions
    from redis.asyncio.connection import AbstractConnection, ConnectionPool
except ImportError as error:
    raise ImportError("RedisRegistry and RedisQueue need redis-py: pip install 'goim_core[redis]'") from error

__all__ = ["Command", "RedisConnection", "RedisPipeline", "Unanswered", "check_seconds"]

Command = Sequence[bytes | str | int]
"""A command and its arguments."""
ROUND = 500
"""How many commands go in one round: what waits behind them waits no longer than they take."""
CLOSED = "the connection to Redis is closed"
MOVED_ON = (exceptions.ReadOnlyError, exceptions.MasterDownError)
"""Replies of a server that is no primary any more: the next connection may find the one that is."""


REFUSALS = (
    exceptions.AuthenticationError,
    exceptions.InvalidResponse,
    exceptions.ResponseError,
)
"""No connection was made, and trying again would not help."""


class Unanswered(BackboneError):
    """The connection broke or the time was over before the answer came; ``sent``: after the question left."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(f"{reason}: {'it may have been done' if sent else 'nothing was sent'}")
        self.reason = reason
        self.sent = sent


def check_seconds(name: str, value: float, minimum: float = 0.001) -> float:
    """``value``, when it is a number of seconds; else :class:`~goim_core.errors.ConfigurationError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value <= 1e9:
        raise ConfigurationError(f"{name}: expected seconds, at least {minimum:g}, got {value!r:.80}")
    return value


class RedisConnection:
    """One connection to the server that ``url`` names, made when it is needed, and again when it broke.

    ``timeout`` seconds are given to each :meth:`exchange`, connecting included. ``scripts`` are there for
    EVALSHA. Raises :class:`~goim_core.errors.ConfigurationError` for a url that is none.
    """

    def __init__(self, url: str, timeout: float, log: logging.Logger, scripts: Iterable[str] = ()) -> None:
        self._connection = _unconnected(url)
        named = vars(self._connection)
        place = named.get("path") or f"{named['host']}:{named['port']}"
        self._name = f"Redis at {place}"
        self.trouble = Trouble(log, self._name)
        self.timeout = timeout
        self._scripts = tuple(scripts)
        self.opened = 0
        """How often a connection was made."""

    async def exchange(self, commands: Sequence[Command], patience: float = 0.0) -> list[Any]:
        """The reply to each of ``commands``; an error that the server replied stands in its place.

        ``patience`` seconds more are given to commands that wait on the server. Raises
        :class:`Unanswered`, or :class:`~goim_core.errors.BackboneError` where the server lets nobody in.
        """
        sent = done = False
        try:
            with anyio.fail_after(self.timeout + patience):
                await self._connect()
                sent = True
                replies = await self._ask(commands)
                if any(isinstance(reply, exceptions.NoScriptError) for reply in replies):
                    await self._ask_again(commands, replies)
            done = not any(isinstance(reply, MOVED_ON) for reply in replies)
        except (exceptions.RedisError, OSError) as error:
            reason = self._reason(error, sent=sent)
            self.trouble.begin(reason)
            if isinstance(error, REFUSALS):
                raise BackboneError(f"{self._name}: {reason}") from error
            raise Unanswered(f"{self._name}: {reason}", sent=sent) from error
        finally:
            if not done:  # cancelled too: what is still to come would be taken for another's reply
                await self.aclose()
        self.trouble.end()
        return replies

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        with anyio.CancelScope(shield=True):
            await self._connection.disconnect(nowait=True)

    async def _connect(self) -> None:
        if self._connection.is_connected:
            return
        await self._connection.connect()  # type: ignore[no-untyped-call]
        (pong,) = await self._ask([("PING",)])
        if isinstance(pong, Exception):
            raise pong
        await self._load()
        self.opened += 1

    async def _load(self) -> None:
        for reply in await self._ask([("SCRIPT", "LOAD", script) for script in self._scripts]):
            if isinstance(reply, Exception):
                raise reply

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return [await self._reply() for _ in commands]

    async def _ask_again(self, commands: Sequence[Command], replies: list[Any]) -> None:
        """Somebody flushed the scripts: load them, and carry out what did not find them."""
        await self._load()
        again = [at for at, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        for at, reply in zip(again, await self._ask([commands[at] for at in again]), strict=True):
            replies[at] = reply

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response()
        except exceptions.ResponseError as error:
            return error

    def late(self) -> str:
        """What is said where no answer came in time."""
        reason = f"no answer within {self.timeout:g} s"
        self.trouble.begin(reason)
        return f"{self._name}: {reason}"

    def _reason(self, error: Exception, *, sent: bool) -> str:
        """What happened, for the operator."""
        said = masked(error)
        if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
            return f"it refused the credentials of url: {said}"
        if isinstance(error, exceptions.InvalidResponse):
            return f"what answers there is not Redis: check url: {said}"
        if isinstance(error, exceptions.ResponseError):
            return f"it refused the connection: check url: {said}"
        if isinstance(error, TimeoutError | exceptions.TimeoutError):
            return f"no answer within {self.timeout:g} s"
        what = "the connection broke" if sent else "cannot connect, check url"
        return f"{what}: {said.rstrip('.')}"


def _unconnected(url: str) -> AbstractConnection:
    try:
        pool = ConnectionPool.from_url(url, protocol=2)
        # Whatever the url says: replies are bytes, and how long to wait is decided here.
        forced = {"decode_responses": False, "socket_timeout": None, "socket_connect_timeout": None}
        pool.connection_kwargs.update(forced, retry=None, retry_on_timeout=False)
        connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    except (AttributeError, TypeError, ValueError, exceptions.RedisError):
        # Neither shown nor chained: there may be a password in it.
        raise ConfigurationError(
            "url: expected redis://HOST:PORT, rediss://HOST:PORT or unix://PATH, "
            "see https://redis.readthedocs.io/en/stable/connections.html"
        ) from None
    if connection.protocol != 2:
        raise ConfigurationError("url: expected no protocol in it, or protocol=2")
    return connection


@define(eq=False)
class _Call:
    command: Command
    future: asyncio.Future[Any]
    sent: bool = False


class RedisPipeline:
    """The commands of many tasks on one ``connection``, carried out by :meth:`run`."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._waiting: deque[_Call] = deque()
        self._wake = anyio.Event()
        self._closed = False

    async def call(self, *command: bytes | str | int) -> Any:
        """The reply to ``command``; see :meth:`calls`."""
        (reply,) = await self.calls([command])
        return reply

    async def calls(self, commands: Iterable[Command], *, within: float | None = None) -> list[Any]:
        """The replies to ``commands``, which are carried out in this order and behind earlier ones.

        Raises :class:`~goim_core.errors.BackboneError` where the server refused one, and its kind
        :class:`Unanswered` where no answer came ``within`` so many seconds (the connection's timeout).
        """
        if self._closed:
            raise Unanswered(CLOSED, sent=False)
        loop = asyncio.get_running_loop()
        # In bytes already: what cannot be encoded shall not stop the round in which others' commands go.
        made = [_Call([_encoded(part) for part in command], loop.create_future()) for command in commands]
        self._waiting.extend(made)
        self._wake.set()
        try:
            with anyio.fail_after(self._connection.timeout if within is None else within):
                return [await call.future for call in made]
        except TimeoutError:
            raise Unanswered(self._connection.late(), sent=any(call.sent for call in made)) from None
        finally:
            for call in made:
                _abandon(call.future)

    def close(self) -> None:
        """Whoever waits, and all who come later, are told that it is too late."""
        self._closed = True
        for call in self._waiting:
            _settle(call, Unanswered(CLOSED, sent=False))
        self._waiting.clear()

    async def run(self) -> None:
        """Carry out commands until cancelled."""
        while True:
            if not self._waiting:
                self._wake = anyio.Event()
                await self._wake.wait()
            taken = [self._waiting.popleft() for _ in range(min(ROUND, len(self._waiting)))]
            await self._carry_out([call for call in taken if not call.future.done()])

    async def _carry_out(self, calls: list[_Call]) -> None:
        failure: BackboneError = Unanswered(CLOSED, sent=True)
        replies: list[Any] = []
        for call in calls:
            call.sent = True
        try:
            if calls:
                replies = await self._connection.exchange([call.command for call in calls])
        except BackboneError as error:
            failure = error
        finally:
            for call, reply in zip(calls, replies or [failure] * len(calls), strict=True):
                _settle(call, reply)


def _encoded(part: bytes | str | int) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode(errors="replace")


def _settle(call: _Call, reply: Any) -> None:
    if call.future.done():
        return
    if isinstance(reply, Unanswered):
        call.sent = reply.sent
        call.future.set_exception(Unanswered(reply.reason, sent=reply.sent))
    elif isinstance(reply, exceptions.ResponseError):
        call.future.set_exception(BackboneError(f"Redis refused: {_first_words(reply)}"))
    elif isinstance(reply, BackboneError):
        call.future.set_exception(BackboneError(str(reply)))
    else:
        call.future.set_result(reply)


def _abandon(future: asyncio.Future[Any]) -> None:
    if not future.cancel() and not future.cancelled():
        future.exception()  # nobody else will ask, and asyncio would complain


def _first_words(error: Exception) -> str:
    """What a script's error says, without where in the script."""
    return masked(error).partition(" script: ")[0].rstrip(",")
