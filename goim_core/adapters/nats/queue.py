"""NATSQueue: pushes by way of NATS JetStream, for any number of nodes. Needs nats-py, and asyncio.

One stream has the subjects ``goim-push-topic``, which every node reads, and ``goim-push-topic.<node>`` for
what is for one node alone. Each node has a durable consumer of both, so their order is the stream's.

    publish ──► Outgoing ──► Link ──► the stream ──► Link ──► Reading ──► receive, acknowledge
"""

from __future__ import annotations

import logging
import random
import re
import ssl
from collections import deque
from collections.abc import Sequence
from time import monotonic, time
from urllib.parse import urlsplit

import anyio
from attrs import evolve

from goim_core.adapters.loop import check_asyncio
from goim_core.adapters.nats.link import Link, Settings
from goim_core.adapters.nats.outgoing import Outgoing
from goim_core.adapters.nats.reading import Reading
from goim_core.adapters.nats.stream import token_of
from goim_core.adapters.pushmsg import decode_push, encode_push
from goim_core.adapters.trouble import Trouble
from goim_core.errors import BackboneError, ConfigurationError
from goim_core.queue import PushMsg, PushType, Queue

__all__ = ["NATSQueue"]

FLUSH = 0.01
"""Seconds for which acknowledgements are gathered."""
BUFFER_BYTES = 1 << 24
"""No more messages are asked for while so many bytes wait to be received."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Seconds between attempts to connect, doubled each time."""
STEADY = 10.0
"""A connection that lasted so many seconds was no failed attempt."""
CLOSING = 2.0
"""Seconds for the last acknowledgements."""
NAME_BYTES = 200
"""What JetStream allows is 255, with our own few."""

_log = logging.getLogger("goim_core.adapters.nats")


class NATSQueue(Queue):
    """A queue in the JetStream of the NATS at ``servers``, which all nodes with the same ``topic`` share.

    A push is accepted when JetStream has it on its disk; it is kept ``retention`` seconds, where the stream
    is not there already and says otherwise. A publish takes at most ``timeout`` seconds, and ``size`` may
    be under way at once. ``prefetch`` messages wait here to be received, at most. ``user``, ``password``,
    ``token`` and ``tls`` are those of nats-py; a password may also be in the URL.

    ``direct``: a push to connections goes to its node alone. Turn it off where Go processes read the topic
    and hold connections too: they read only the subject ``topic`` itself.

    The server's name is the name of its place in the stream: give each node one of its own that it keeps
    when it is started again. JetStream forgets the place of a node that is away for more than an hour.

    Delivery is at least once and in order. After a restart all comes again from the first push that was not
    acknowledged, others behind it too.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "nats://127.0.0.1:4222",
        *,
        topic: str = "goim-push-topic",
        retention: float = 60.0,
        timeout: float = 5.0,
        size: int = 1024,
        prefetch: int = 1024,
        direct: bool = True,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        addresses = [servers] if isinstance(servers, str) else list(servers)
        if not addresses or not all(map(_is_url, addresses)):
            # Not shown: there may be a password in it.
            raise ConfigurationError("servers: expected nats://host:port or tls://host:port, or several")
        if not isinstance(topic, str) or not re.fullmatch("[A-Za-z0-9_-]{1,200}", topic):
            raise ConfigurationError(f"topic: expected letters, digits, - and _, got {topic!r:.80}")
        for name, value, least in (("retention", retention, 1), ("timeout", timeout, 0.1)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1e9:
                raise ConfigurationError(f"{name}: expected seconds, {least} or more, got {value!r}")
        for name, count in (("size", size), ("prefetch", prefetch)):
            if type(count) is not int or count < 1:
                raise ConfigurationError(f"{name}: expected at least 1, got {count!r}")
        self._settings = Settings(
            servers=addresses,
            topic=topic,
            retention=retention,
            timeout=timeout,
            user=user,
            password=password,
            token=token,
            tls=tls,
        )
        self._direct = direct
        self._prefetch = prefetch
        self._node = ""
        self._trouble = Trouble(_log, f"NATS at {self._settings.address}")
        self._outgoing = Outgoing(size, timeout, self._trouble, self._settings.address)
        self._reading = Reading()
        self._link: Link | None = None
        self._buffer: deque[tuple[PushMsg, float]] = deque()
        """Each with the Unix time at which NATS stored it."""
        self._buffered = 0
        self._arrived = anyio.Event()
        self._moved = anyio.Event()
        self._skipped_told = 0.0
        self.skipped = 0
        """How many messages in the stream were no pushes."""

    # Publishing.

    async def publish(self, msg: PushMsg, *, nowait: bool = False) -> None:
        """See :meth:`Queue.publish`.

        Raises :class:`~goim_core.errors.BackboneError` within ``timeout`` seconds where NATS does not take
        it, which says whether NATS may have it all the same.
        """
        for_one = msg.type is PushType.PUSH
        topic = self._settings.topic
        subject = f"{topic}.{token_of(msg.server)}" if for_one and self._direct and msg.server else topic
        number = await self._outgoing.publish(subject, encode_push(msg), nowait=nowait)
        if not for_one or msg.server == self._node:
            self._reading.published(number)
        self._moved.set()

    @property
    def pending(self) -> int:
        """See :attr:`Queue.pending`: those under way, those to come, and those received."""
        return self._outgoing.under_way + self._reading.pending

    @property
    def full(self) -> bool:
        """See :attr:`Queue.full`."""
        return self._outgoing.full

    async def drain(self) -> None:
        """See :meth:`Queue.drain`. What is for other nodes alone is not waited for."""
        while self._outgoing.under_way or not self._reading.settled:
            await self._move()

    async def _move(self) -> None:
        """Wait until something is published or done with, after the last look at that."""
        if self._moved.is_set():
            self._moved = anyio.Event()
        await self._moved.wait()

    # Receiving.

    async def receive(self) -> PushMsg:
        """See :meth:`Queue.receive`."""
        while not self._buffer:
            self._outgoing.check_open()
            if self._arrived.is_set():
                self._arrived = anyio.Event()
            await self._arrived.wait()
        msg, stored = self._buffer.popleft()
        self._buffered -= len(msg.msg)
        self.lag = max(0.0, time() - stored)
        if self._link is not None and len(self._buffer) in (0, self._prefetch // 2):
            self._link.more()
        return msg

    def acknowledge(self, msg: PushMsg) -> None:
        """See :meth:`Queue.acknowledge`."""
        self._reading.done(msg.tag)
        self._moved.set()

    def _free(self) -> int:
        """How many messages may come: none before half of the buffer is free, so that many come at once."""
        if len(self._buffer) > self._prefetch // 2 or self._buffered > BUFFER_BYTES:
            return 0
        return self._prefetch - len(self._buffer)

    def _delivered(self, number: int, data: bytes, stored: float) -> None:
        if not self._reading.came(number):
            return
        try:
            msg = decode_push(data)
        except ValueError as error:
            self._skip(number, error)
            return
        if msg.type is PushType.PUSH and msg.server != self._node:
            self._moved.set()
            return
        self._buffer.append((evolve(msg, tag=self._reading.open(number)), stored))
        self._buffered += len(msg.msg)
        self._arrived.set()

    def _skip(self, number: int, error: ValueError) -> None:
        self.skipped += 1
        self._moved.set()
        now = monotonic()
        if now >= self._skipped_told + 1:  # whoever fills the topic does not fill the log
            self._skipped_told = now
            topic = self._settings.topic
            _log.warning("message %d of %s is no push (%d so far): %s", number, topic, self.skipped, error)

    # Life.

    @property
    def trouble(self) -> str:
        """See :attr:`Queue.trouble`."""
        return self._trouble.text

    async def start(self, node: str) -> None:
        """See :meth:`Queue.start`. On trio raises :class:`~goim_core.errors.ConfigurationError`."""
        check_asyncio("NATSQueue")
        if not node or len(token_of(node)) > NAME_BYTES:
            raise ConfigurationError(f"name: expected 1 to {NAME_BYTES} letters, got {node!r:.80}")
        self._node = node
        try:
            await self._open()
        except BackboneError as error:
            raise BackboneError(f"servers: cannot use NATS at {self._settings.address}: {error}") from error

    async def _open(self) -> None:
        link = Link(self._settings, self._node, self._delivered, self._outgoing.confirmed)
        try:
            place = await link.open(self._reading.place)
        except BaseException:
            await link.close()
            raise
        self._reading.begin(place, link.last)
        self._link = link

    async def run(self) -> None:
        """See :meth:`Queue.run`: sends, asks for messages, acknowledges, and connects again."""
        delay = FIRST_DELAY
        while True:
            if self._link is None:
                try:
                    await self._open()
                except BackboneError as error:
                    self._trouble.begin(error)
                    delay = await _wait(delay)
                    continue
                self._trouble.end()
            assert self._link is not None
            link, began = self._link, monotonic()
            await self._work(link)
            self._trouble.begin(link.reason)
            self._link = None
            await link.close()
            delay = FIRST_DELAY if monotonic() - began > STEADY else await _wait(delay)

    async def _work(self, link: Link) -> None:
        """Use ``link`` until it is broken."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._outgoing.send, link)
            tasks.start_soon(link.pull, self._free)
            tasks.start_soon(link.watch)
            tasks.start_soon(self._acknowledge, link)
            await link.broken.wait()
            tasks.cancel_scope.cancel()

    async def _acknowledge(self, link: Link) -> None:
        told = 0
        while True:
            floor = self._reading.floor
            if floor == told:
                await self._move()
            else:
                await link.acknowledge(floor)
                told = floor
                await anyio.sleep(FLUSH)

    async def aclose(self) -> None:
        """See :meth:`Queue.aclose`."""
        self._outgoing.close()
        self._arrived.set()
        link, self._link = self._link, None
        if link is not None:
            with anyio.move_on_after(CLOSING, shield=True):
                await link.acknowledge(self._reading.floor, confirmed=True)
            await link.close()


def _is_url(text: object) -> bool:
    try:
        url = urlsplit(text) if isinstance(text, str) else urlsplit("")
        return url.scheme in ("nats", "tls") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


async def _wait(delay: float) -> float:
    """Wait so long, more or less, and say for how long the next time."""
    await anyio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # so that nodes do not come all at once
    return min(2 * delay, LONGEST_DELAY)
