"""Pushes on their way to NATS: many at once, each until it is confirmed, refused or given up."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections import deque

import anyio
from attrs import define

from goim_core.adapters.nats.link import Link
from goim_core.adapters.trouble import Trouble
from goim_core.errors import BackboneError, QueueFull, ServerStopped

__all__ = ["Outgoing"]

HEADERS_SIZE = 100
"""More than the headers of a push are; they count as its bytes."""


@define(eq=False)
class _Push:
    number: int
    subject: str
    data: bytes
    confirmed: asyncio.Future[int]
    sent: bool = False


class Outgoing:
    """Publishes at most ``size`` pushes at a time, each for at most ``timeout`` seconds.

    One task sends them all, in the order they came, whatever connection there is. On a new connection it
    first sends again what was not confirmed, and the server recognises what it has by its ``Nats-Msg-Id``.
    """

    def __init__(self, size: int, timeout: float, trouble: Trouble, address: str) -> None:
        self._size = size
        self._timeout = timeout
        self._trouble = trouble
        self._address = address
        self._places = anyio.Semaphore(size, fast_acquire=True)
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._under_way: dict[int, _Push] = {}
        self._to_send: deque[_Push] = deque()
        self._arrived = anyio.Event()
        self._link: Link | None = None
        self._closed = False

    @property
    def under_way(self) -> int:
        """How many pushes are not confirmed."""
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """Whether another push would have to wait."""
        return not self._places.value

    def check_open(self) -> None:
        """Raise ServerStopped where this is closed."""
        if self._closed:
            raise ServerStopped("the push queue is closed")

    def close(self) -> None:
        """Tell all who publish, and all who come later, that this is closed."""
        self._closed = True
        self._places.release()
        for push in self._under_way.values():
            _fail(push, ServerStopped(f"the push queue is closed; {self._has_it(push)}"))

    async def publish(self, subject: str, data: bytes, *, nowait: bool) -> int:
        """Return the number of the push in the stream when NATS has confirmed it."""
        self.check_open()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout
        await self._take_place(nowait)
        push = _Push(next(self._numbers), subject, data, loop.create_future())
        self._under_way[push.number] = push
        self._to_send.append(push)
        self._arrived.set()
        timer = loop.call_at(until, self._give_up, push)
        try:
            return await push.confirmed
        finally:
            timer.cancel()
            del self._under_way[push.number]
            self._places.release()

    async def _take_place(self, nowait: bool) -> None:
        if nowait:
            try:
                self._places.acquire_nowait()
            except anyio.WouldBlock:
                raise QueueFull(f"the push queue is full: {self._size} pushes are not confirmed") from None
        else:
            with anyio.move_on_after(self._timeout) as scope:
                await self._places.acquire()
            if scope.cancelled_caught:
                reason = f"{self._size} pushes before it are not confirmed"
                raise BackboneError(f"NATS at {self._address} does not have the push: {reason}")
        if self._closed:
            self._places.release()  # the next that waits is to be told too
            self.check_open()

    def _give_up(self, push: _Push) -> None:
        reason = f"did not confirm a push within {self._timeout:g} s{self._complaint()}"
        error = BackboneError(f"NATS at {self._address} {reason}; {self._has_it(push)}")
        if _fail(push, error) and push.sent:
            self._trouble.begin(reason)

    def _complaint(self) -> str:
        # Such as that it is not allowed to publish: which push that is about is not said.
        link = self._link
        return f" ({link.complaint})" if link and link.complaint and not link.broken.is_set() else ""

    def _has_it(self, push: _Push) -> str:
        return "it may have it" if push.sent else "it does not have it"

    async def send(self, link: Link) -> None:
        """Send what comes, by way of ``link``, until cancelled."""
        self._link = link
        self._to_send = deque(self._under_way.values())
        while True:
            self._arrived = anyio.Event()
            while self._to_send:
                push = self._to_send.popleft()
                if push.confirmed.done():
                    continue
                if len(push.data) + HEADERS_SIZE > link.max_payload:
                    # The server would break the connection off.
                    self._refuse(push, f"{len(push.data)} bytes, max_payload is {link.max_payload}")
                    continue
                push.sent = True
                headers = {"Nats-Msg-Id": f"{self._process}-{push.number}"}
                await link.publish(push.number, push.subject, headers, push.data)
            await self._arrived.wait()

    def confirmed(self, number: int, answer: bytes) -> None:
        """NATS has answered."""
        said = json.loads(answer)
        push = self._under_way.get(number)  # None where it was given up: too late for it, but no old news
        if "error" in said:
            reason = said["error"].get("description", "no reason given")
            self._trouble.begin(f"refuses pushes: {reason}")
            self._refuse(push, reason)
        else:
            self._trouble.end()
            if push is not None and not push.confirmed.done():
                push.confirmed.set_result(said["seq"])

    def _refuse(self, push: _Push | None, reason: str) -> None:
        if push is not None:
            _fail(push, BackboneError(f"NATS at {self._address} refused the push: {reason}"))


def _fail(push: _Push, error: Exception) -> bool:
    if push.confirmed.done():
        return False
    push.confirmed.set_exception(error)
    return True
