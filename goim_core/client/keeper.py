"""Keeps a client connected: one connection after the other, and a place for those who wait for one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup, TaskStatus

from goim_core.client.address import Target
from goim_core.client.buffer import Buffer
from goim_core.client.connection import Connection
from goim_core.client.dialogue import Dialogue
from goim_core.client.inbox import Inbox
from goim_core.client.link import Link, dial
from goim_core.client.messages import ClientState, StateChange
from goim_core.client.nodes import Where
from goim_core.client.settings import Settings, token_bytes
from goim_core.client.signal import Signal
from goim_core.client.timers import Timers
from goim_core.errors import CloseCode, Disconnect, ProtocolError, Refused
from goim_core.protocol import Frame, Op

__all__ = ["Keeper"]

HIGH_WATER = 65536
"""How many bytes may wait to be sent before a sender waits."""

_log = logging.getLogger("goim_core.client")


class Keeper:
    """The life of a client. ``token`` may be replaced; :meth:`refresh` tells the server.

    ``state`` what it is doing; ``why`` the server ended it for good, else None.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        self.token = settings.token
        self.timers = Timers(settings.clock)
        inbox = Inbox(settings.after, every=settings.ack_every, delay=settings.ack_delay)
        self.dialogue = Dialogue(inbox, settings.max_body, self._on_ack)
        self.buffer = Buffer(settings.buffer)
        self.state = ClientState.CONNECTING
        self.why: Disconnect | None = None
        self._where = where
        self._settings = settings
        self._changed = Signal()
        self._connection: Connection | None = None
        self._tries = 0
        self._target: Target | None = None
        self._moving = False
        self._life = anyio.CancelScope()

    # What the application asks for.

    async def send(self, op: int, body: bytes, seconds: float) -> None:
        """Send a frame once there is a connection. Raises as :meth:`request` does, but waits for no reply."""
        sent = False
        with self.timers.move_on_after(seconds):
            connection = await self._writable()
            self.dialogue.put(op, body)
            connection.plan()
            sent = True
        if not sent:
            raise TimeoutError(f"operation {op}: not connected within {seconds:g} s")

    async def request(self, op: int, body: bytes, seconds: float) -> Frame:
        """Send a request once there is a connection; its reply.

        Raises :class:`~goim_core.errors.Refused`; TimeoutError; :class:`~goim_core.errors.Disconnect` where
        the connection ended before the reply, so that nobody knows what became of it.
        """
        done, pending = anyio.Event(), None
        self.buffer.ask()
        try:
            with self.timers.move_on_after(seconds):
                connection = await self._writable()
                pending = self.dialogue.request(op, body, done.set)
                connection.plan()
                await done.wait()
        finally:
            self.buffer.asking -= 1
            if pending is not None:
                self.dialogue.requests.forget(pending)
        if pending is None or pending.outcome is None:
            raise TimeoutError(f"operation {op}: no reply within {seconds:g} s")
        if isinstance(pending.outcome, Frame):
            return pending.outcome
        raise pending.outcome

    async def _writable(self) -> Connection:
        while self._connection is None or self.dialogue.queued > HIGH_WATER:
            if self.state is ClientState.CLOSED:
                raise self.ended()
            await self._changed.wait()
        return self._connection

    def ended(self) -> Exception:
        """What a call on a client that has ended raises."""
        if self.why is None:
            return anyio.ClosedResourceError()
        return Disconnect(self.why.reason, self.why.code)

    async def refresh(self) -> None:
        """Give the server a fresh token; raises as :meth:`request` does."""
        await self.request(Op.REFRESH, await token_bytes(self.token), self._settings.request_timeout)

    def _on_ack(self, number: int, epoch: int) -> None:
        if self._settings.ack != "none":
            self.dialogue.inbox.acknowledge(number, epoch, self.timers.clock.now())
            if self._connection is not None:
                self._connection.plan()

    async def close(self) -> None:
        """Send what waits and the acknowledgements, as far as they go within ``close_timeout``; then end."""
        self.buffer.ask()
        self.dialogue.inbox.hurry()
        with anyio.move_on_after(self._settings.close_timeout, shield=True):
            while self._connection is not None and not self._idle(self._connection):
                self._connection.plan()
                await self._changed.wait()
        self._life.cancel()
        with anyio.CancelScope(shield=True):
            while self.state is not ClientState.CLOSED:
                await self._changed.wait()

    def _idle(self, connection: Connection) -> bool:
        return self.dialogue.inbox.settled and not self.dialogue.queued and not connection.writing

    # One connection after the other.

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Connect, raising what goes wrong; then stay connected until it is closed, or told to stay away."""
        try:
            with self._life:
                self._enter(StateChange(ClientState.CONNECTING))
                link: Link | None = await self._open()
                opened: Callable[[], object] = task_status.started
                while link is not None:
                    link = await self._again(await self._serve(link, opened))
                    opened = _nothing
        finally:
            self.buffer.end()
            self._enter(StateChange(ClientState.CLOSED, self.why))

    async def _serve(self, link: Link, opened: Callable[[], object]) -> Disconnect:
        def open_to_all() -> None:
            self._connection = connection
            self._enter(StateChange(ClientState.OPEN))
            opened()

        connection = Connection(
            link,
            dialogue=self.dialogue,
            buffer=self.buffer,
            settings=self._settings,
            timers=self.timers,
            changed=self._changed,
        )
        since = self.timers.clock.now()
        try:
            return await connection.run(open_to_all, self._expiring)
        finally:
            self._connection = None
            self._moving = connection.moving
            backoff = self._settings.backoff
            if backoff is not None and self.timers.clock.now() - since >= backoff.stable:
                self._tries = 0

    async def _again(self, why: Disconnect) -> Link | None:
        """The next connection after one that ended; None where there shall be none."""
        settings = self._settings
        while settings.backoff is not None and why.code not in settings.stop_on:
            # Who was asked to move was given its own moment, and need not look for another.
            now = self._moving and not self._tries
            delay = 0.0 if now else settings.backoff.delay(self._tries, settings.random)
            self._tries += 1
            self._enter(StateChange(ClientState.WAITING, why, delay))
            if delay:
                await settings.clock.sleep(delay)
            self._enter(StateChange(ClientState.CONNECTING, why))
            try:
                return await self._open()
            except Disconnect as told:
                why = told
            except ProtocolError as error:
                why = Disconnect(error.reason, error.code)
            except OSError as error:
                why = Disconnect(str(error), CloseCode.LOST)
        self.why = why
        return None

    async def _open(self) -> Link:
        """A connection to the first that lets this client in."""
        failure: OSError | ProtocolError | Disconnect | None = None
        targets = await self._where.targets()
        if self._moving:  # the list may not know yet that the server goes
            self._moving = False
            targets = sorted(targets, key=lambda target: target == self._target)
        for target in targets:
            try:
                return await self._open_at(target)
            except Disconnect as why:
                if why.code in self._settings.stop_on:
                    raise
                failure = why
            except (OSError, ProtocolError) as error:
                failure = error
        assert failure is not None, "there is always an address to try"
        raise failure

    async def _open_at(self, target: Target) -> Link:
        settings, link = self._settings, None
        with self.timers.move_on_after(settings.connect_timeout) as scope:
            token = await token_bytes(self.token)
            link = await dial(target, ssl_context=settings.ssl_context, headers=settings.headers)
            try:
                await link.open(token)
            except BaseException:
                await link.aclose()
                raise
        if link is None or scope.cancelled_caught:
            raise TimeoutError(f"cannot connect to {target}: not within {settings.connect_timeout:g} s")
        self._target = target
        return link

    def _enter(self, change: StateChange) -> None:
        self.state = change.state
        self._changed.fire()
        if self._settings.on_state is not None:
            self._settings.on_state(change)

    def _expiring(self, tasks: TaskGroup) -> None:
        if callable(self.token):
            tasks.start_soon(self._refresh_in_time)
        else:
            _log.warning("the token runs out, and there is no function that makes another")

    async def _refresh_in_time(self) -> None:
        try:
            await self.refresh()
        except (Refused, Disconnect, OSError) as error:
            _log.warning("the token could not be refreshed: %s", error)


def _nothing() -> None:
    pass
