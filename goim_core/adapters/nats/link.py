"""One connection to NATS, for as long as it lasts.

It is never mended: what breaks is closed, and :class:`~goim_core.adapters.nats.NATSQueue` opens another.
So there is one way to begin, at the start and after each trouble, and nothing of an old connection is left.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

import anyio
from attrs import field, frozen

from goim_core.adapters.nats.stream import SECOND, Place, Stream
from goim_core.errors import BackboneError
from goim_core.masked import masked

try:
    import nats.errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
except ImportError as error:
    raise ImportError("NATSQueue needs nats-py: pip install 'goim_core[nats]'") from error

__all__ = ["Link", "Settings"]

PING_EVERY = 2.0
"""Seconds; a connection on which two of them are not answered is broken."""
HEARTBEAT = 2.0
"""Seconds in which JetStream says that a request for messages still stands; three missed, and it does not."""
ASK_FOR = 30.0
"""Seconds for which a request for messages stands."""
REQUEST_BYTES = 1 << 23
"""What one request brings at most, or a single message where that is larger."""
LEAST_OPENING = 2.0
"""Seconds that a connection gets to be made, where the timeout is less."""
CLOSING = 1.0
"""Seconds that a connection gets to say goodbye; one that is frozen never does."""
FOREIGN = (nats.errors.Error, OSError, ValueError)
"""What nats-py raises: its own, the socket's, and asyncio's for a line that is too long."""
GONE = re.compile("deleted|shutdown|leadership", re.IGNORECASE)
"""What a status of 409 says when the consumer is not there any more; otherwise only the request is over."""

_log = logging.getLogger("goim_core.adapters.nats")


@frozen(kw_only=True)
class Settings:
    """What NATSQueue was told, of what a connection needs."""

    servers: Sequence[str] = field(repr=False)
    topic: str
    retention: float
    timeout: float
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    token: str | None = field(repr=False)
    tls: ssl.SSLContext | None

    @property
    def address(self) -> str:
        """Where it is, without passwords."""
        return ", ".join(map(masked, self.servers))


class Link:
    """A connection as the node named ``node``.

    ``delivered`` is called with the number in the stream, the bytes and the Unix time of each message, in
    order, some of them again; ``confirmed`` with the number and the answer of each publish. ``broken`` is set
    when the connection is of no use any more, and ``reason`` says why. ``complaint`` is what the server said
    last.
    """

    def __init__(
        self,
        settings: Settings,
        node: str,
        delivered: Callable[[int, bytes, float], None],
        confirmed: Callable[[int, bytes], None],
    ) -> None:
        self._settings = settings
        self._node = node
        self._delivered = delivered
        self._confirmed = confirmed
        self._client = Client()
        self.complaint = ""
        self._inbox = self._client.new_inbox()
        self._consumer = ""
        self._request = 0
        self._asked = 0
        self._turn = anyio.Event()
        self._heard = monotonic()
        self._replies: deque[tuple[int, str]] = deque()
        self.last = 0
        self.broken = anyio.Event()
        self.reason = ""

    # Opening.

    async def open(self, place: Place | None) -> Place:
        """Connect, and find or make the stream and the consumer; deliver what is behind ``place``.

        Where that is None the place is where this node's last process was, or the stream's end. Returns
        the place where it begins. Raises :class:`~goim_core.errors.BackboneError`.
        """
        settings = self._settings
        try:
            with anyio.fail_after(max(settings.timeout, LEAST_OPENING)):
                await self._connect()
                for what, called in (("pull", self._on_pulled), ("sent", self._on_confirmed)):
                    await self._client.subscribe(f"{self._inbox}.{what}.*", cb=called, pending_msgs_limit=0)
                stream = Stream(self._client, settings.topic, settings.retention, settings.timeout)
                self._consumer, place = await stream.attach(self._node, place)
                self.last = stream.last
                return place
        except TimeoutError:
            raise BackboneError(self.complaint or "no answer in time from what should be NATS") from None
        except FOREIGN as error:
            raise BackboneError(self.complaint or _words(error)) from error

    async def _connect(self) -> None:
        settings = self._settings
        await self._client.connect(
            list(settings.servers),
            name=f"goim_core {self._node}",
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=max(1, int(settings.timeout)),
            ping_interval=PING_EVERY,  # type: ignore[arg-type]  # it sleeps for so long
            max_outstanding_pings=2,
            user=settings.user,
            password=settings.password,
            token=settings.token,
            tls=settings.tls,
        )
        self.complaint = ""
        # nats-py encrypts where the server asks for it, whatever the client was told.
        if settings.tls is not None and not self._client._server_info.get("tls_required"):  # noqa: SLF001
            raise BackboneError("tls: the server does not ask for TLS")

    # Work.

    @property
    def max_payload(self) -> int:
        """How many bytes a message may have at most, headers and all."""
        return self._client.max_payload

    async def publish(self, number: int, subject: str, headers: dict[str, str], data: bytes) -> None:
        """Send it; :attr:`confirmed` will be called with ``number``."""
        try:
            await self._client.publish(subject, data, reply=f"{self._inbox}.sent.{number}", headers=headers)
        except FOREIGN as error:
            self._break(_words(error))

    async def pull(self, free: Callable[[], int]) -> None:
        """Ask for as many messages as are ``free`` to come, whenever none is to come; until cancelled."""
        while True:
            self._turn = anyio.Event()
            count = 0 if self._asked else free()
            if count:
                self._asked = count
                self._request += 1
                self._heard = monotonic()
                await self._tell(
                    f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.topic}.{self._consumer}",
                    self._request_for(count),
                    f"{self._inbox}.pull.{self._request}",
                )
            await self._turn.wait()

    def more(self) -> None:
        """Look again whether messages are free to come."""
        self._turn.set()

    def _request_for(self, count: int) -> bytes:
        request = {
            "batch": count,
            "max_bytes": max(REQUEST_BYTES, 2 * self.max_payload),
            "expires": int(ASK_FOR * SECOND),
            "idle_heartbeat": int(HEARTBEAT * SECOND),
        }
        return json.dumps(request).encode()

    async def acknowledge(self, floor: int, *, confirmed: bool = False) -> None:
        """Say that all messages up to ``floor`` are done with; wait until that is ``confirmed``."""
        reply = ""
        while self._replies and self._replies[0][0] <= floor:
            reply = self._replies.popleft()[1]
        if reply and confirmed:
            with suppress(*FOREIGN):
                await self._client.request(reply, b"+ACK", timeout=CLOSING)
        elif reply:
            await self._tell(reply, b"+ACK")

    async def _tell(self, subject: str, data: bytes, reply: str = "") -> None:
        try:
            await self._client.publish(subject, data, reply=reply)
        except FOREIGN as error:
            self._break(_words(error))

    async def watch(self) -> None:
        """See that neither the connection nor a request for messages is forgotten, until it is broken."""
        while not self.broken.is_set():
            await anyio.sleep(PING_EVERY)
            if self._client.is_closed:
                # nats-py gave it up, and waits to send what the server does not take.
                self._break(_words(self._client.last_error))
            elif self._asked and monotonic() - self._heard > 3 * HEARTBEAT:
                self._break(self.complaint or "JetStream does not answer a request for messages")

    async def close(self) -> None:
        """Send what is to be sent, if that is possible, and close."""
        if not self._client.servers:
            return  # it never began, and nats-py minds
        with anyio.move_on_after(CLOSING, shield=True) as scope:
            with suppress(*FOREIGN):
                await self._client.close()
        transport = getattr(self._client._transport, "_io_writer", None)  # noqa: SLF001  # no public way
        if scope.cancelled_caught and isinstance(transport, asyncio.StreamWriter):
            transport.transport.abort()

    # What comes in.

    async def _on_pulled(self, msg: Msg) -> None:
        self._heard = monotonic()
        if msg.reply.startswith("$JS.ACK."):
            self._asked = max(0, self._asked - 1)
            # .stream.consumer.times.number.number_here.time.left, behind a domain and an account or not
            tokens = msg.reply.split(".")
            at = 5 if len(tokens) == 9 else 7
            number, stored = int(tokens[at]), int(tokens[at + 2]) / SECOND
            self._replies.append((number, msg.reply))
            self._delivered(number, msg.data, stored)
            if not self._asked:
                self.more()
            return
        status = (msg.headers or {}).get("Status", "")
        said = (msg.headers or {}).get("Description", "")
        if status == "503" or (status == "409" and GONE.search(said)):
            self._break(
                f"the consumer of this node is gone ({said or 'no JetStream'}); "
                f"has another process the name {self._node!r}?"
            )
        elif status != "100" and msg.subject.endswith(f".{self._request}"):
            self._asked = 0
            self.more()

    async def _on_confirmed(self, msg: Msg) -> None:
        if (msg.headers or {}).get("Status") == "503":
            self._break("the stream is gone")
            return
        self._confirmed(int(msg.subject.rpartition(".")[2]), msg.data)

    async def _on_error(self, error: Exception) -> None:
        if not isinstance(error, FOREIGN):
            _log.error("what NATS sent could not be handled", exc_info=error)
        self.complaint = _words(error)

    async def _on_disconnected(self) -> None:
        self._break(self.complaint or _words(self._client.last_error))

    def _break(self, reason: str) -> None:
        if not self.broken.is_set():
            self.reason = reason
            self.broken.set()


def _words(error: Exception | None) -> str:
    said = masked(error or "the connection was lost").removeprefix("nats: ").strip("'\r\n")
    said = said or masked(repr(error))
    if "authorization" in said.lower():
        return f"{said} (user, password, token)"
    return f"{said} (tls)" if isinstance(error, ssl.SSLError) else said
