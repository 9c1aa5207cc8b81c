"""One connection to NATS, with the stream and the node's consumer, for as long as it lasts.

It is never mended: what breaks is closed, and :class:`~goim_core.adapters.nats.NATSQueue` opens another.
So there is one way to begin, at the start and after each trouble, and nothing of an old connection is left.

The JetStream API is JSON over requests: https://docs.nats.io/reference/reference-protocols/nats_api_reference
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import anyio
from attrs import field, frozen

from goim_core.errors import BackboneError

try:
    import nats.errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
except ImportError as error:
    raise ImportError("NATSQueue needs nats-py: pip install 'goim_core[nats]'") from error

__all__ = ["Link", "Place", "Settings", "token_of"]

SECOND = 1_000_000_000
"""JetStream's durations are nanoseconds."""
PING_EVERY = 2.0
"""Seconds; a connection on which two of them are not answered is broken."""
HEARTBEAT = 2.0
"""Seconds in which JetStream says that a request for messages still stands; three missed, and it does not."""
ASK_FOR = 30.0
"""Seconds for which a request for messages stands."""
REQUEST_BYTES = 1 << 23
"""What one request brings at most, or a single message where that is larger."""
KEEP_PLACE = 3600.0
"""Seconds for which JetStream keeps the place of a node that is away, or twice the retention."""
DUPLICATES = 10.0
"""Seconds within which a push that is sent again is recognised, or twice the timeout."""
CLOSING = 1.0
"""Seconds that a connection gets to say goodbye; one that is frozen never does."""
FOREIGN = (nats.errors.Error, OSError, ValueError)
"""What nats-py raises: its own, the socket's, and asyncio's for a line that is too long."""
STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, OTHER_SHAPE = 10059, 10014, 10058
GONE = re.compile("deleted|shutdown|leadership", re.IGNORECASE)
"""What a status of 409 says when the consumer is not there any more; otherwise only the request is over."""


@frozen(kw_only=True)
class Settings:
    """What NATSQueue was told, of what a connection needs."""

    servers: Sequence[str]
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
        return ", ".join(re.sub("//[^/@]*@", "//", server) for server in self.servers)


@frozen
class Place:
    """How far a node has read: ``floor`` and all before it are acknowledged; of which stream, made when."""

    stream: str
    floor: int


class Link:
    """A connection as the node named ``node``.

    ``delivered`` is called with the number in the stream and the bytes of each message, in order, some of
    them again; ``confirmed`` with the number and the answer of each publish. ``broken`` is set when the
    connection is of no use any more, and ``reason`` says why.
    """

    def __init__(
        self,
        settings: Settings,
        node: str,
        delivered: Callable[[int, bytes], None],
        confirmed: Callable[[int, bytes], None],
    ) -> None:
        self._settings = settings
        self._node = node
        self._delivered = delivered
        self._confirmed = confirmed
        self._client = Client()
        self._complaint = ""
        self._inbox = self._client.new_inbox()
        self._consumer = ""
        self._request = 0
        self._asked = 0
        self._heard = monotonic()
        self._replies: deque[tuple[int, str]] = deque()
        self.stream = ""
        self.last = 0
        self.broken = anyio.Event()
        self.reason = ""

    # Opening.

    async def open(self, place: Place | None) -> Place:
        """Connect, and find or make the stream and the consumer; deliver what is behind ``place``.

        Where that is None the place is where this node's last process was, or the stream's end. Returns
        the place where it begins. Raises :class:`~goim_core.errors.BackboneError`.
        """
        address = self._settings.address
        try:
            with anyio.fail_after(self._settings.timeout):
                await self._connect()
                return await self._attach(place)
        except TimeoutError:
            said = self._complaint or f"no answer within {self._settings.timeout:g} s"
            raise BackboneError(f"cannot use NATS at {address}: {said}") from None
        except FOREIGN as error:
            said = self._complaint or _words(error)
            raise BackboneError(f"cannot use NATS at {address}: {said}") from error

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
        self._complaint = ""
        # nats-py encrypts where the server asks for it, whatever the client was told.
        if settings.tls is not None and not self._client._server_info.get("tls_required"):  # noqa: SLF001
            raise BackboneError(f"tls: NATS at {settings.address} does not ask for TLS")

    async def _attach(self, place: Place | None) -> Place:
        topic = self._settings.topic
        info = await self._found_stream()
        self.stream, self.last = info["created"], info["state"]["last_seq"]
        self._check_shape(info["config"])
        names = [f"{token_of(self._node)}%{number}" for number in (1, 2)]
        floors = {name: floor for name in names if (floor := await self._floor(name)) is not None}
        if place is None:
            floor = max(floors.values(), default=self.last)
        elif place.stream != self.stream:
            floor = 0  # another one, of which everything is new
        else:
            floor = place.floor
        floor = min(floor, self.last)
        if len(floors) == len(names):
            # A process ended between the two steps below: the lower one is the older.
            lower = min(names, key=floors.__getitem__)
            await self._ask(f"CONSUMER.DELETE.{topic}.{lower}")
            del floors[lower]
        await self._client.subscribe(f"{self._inbox}.pull.*", cb=self._on_pulled, pending_msgs_limit=0)
        await self._client.subscribe(f"{self._inbox}.sent.*", cb=self._on_confirmed, pending_msgs_limit=0)
        # JetStream gives again what is not acknowledged only after a time, behind what is newer. A new
        # consumer gives all of it at once, in order. The old one keeps the place until it is there.
        self._consumer = next(name for name in names if name not in floors)
        await self._make_consumer(floor)
        for name in floors:
            await self._ask(f"CONSUMER.DELETE.{topic}.{name}")
        return Place(self.stream, floor)

    async def _found_stream(self) -> dict[str, Any]:
        topic = self._settings.topic
        info = await self._ask(f"STREAM.INFO.{topic}", allowed=STREAM_NOT_FOUND)
        if "error" not in info:
            return info
        duplicates = min(self._settings.retention, max(DUPLICATES, 2 * self._settings.timeout))
        wanted = {
            "name": topic,
            "subjects": _subjects(topic),
            "retention": "limits",
            "storage": "file",
            "max_age": int(self._settings.retention * SECOND),
            # What was accepted is not thrown out for what comes later: at a limit publishers are told.
            "discard": "new",
            "duplicate_window": int(duplicates * SECOND),
        }
        info = await self._ask(f"STREAM.CREATE.{topic}", wanted, allowed=OTHER_SHAPE)
        # Another node may have been faster.
        return info if "error" not in info else await self._ask(f"STREAM.INFO.{topic}")

    def _check_shape(self, config: dict[str, Any]) -> None:
        topic, subjects = self._settings.topic, config.get("subjects") or []
        kept = all(any(_covers(each, wanted) for each in subjects) for wanted in _subjects(topic))
        for wrong, what in (
            (not kept, f"the subjects {', '.join(subjects)}, not {' and '.join(_subjects(topic))}"),
            (config["retention"] != "limits", f"the retention {config['retention']!r}, not 'limits'"),
            (config.get("no_ack"), "no_ack: it confirms nothing"),
            (config.get("sealed"), "been sealed: it takes nothing"),
        ):
            if wrong:
                raise BackboneError(f"topic: the stream {topic!r} of NATS has {what}")

    async def _floor(self, name: str) -> int | None:
        info = await self._ask(f"CONSUMER.INFO.{self._settings.topic}.{name}", allowed=CONSUMER_NOT_FOUND)
        if "error" in info:
            return None
        floor: int = info["ack_floor"]["stream_seq"]
        return max(floor, info["config"].get("opt_start_seq", 1) - 1)

    async def _make_consumer(self, floor: int) -> None:
        topic, retention = self._settings.topic, self._settings.retention
        config = {
            "durable_name": self._consumer,
            "description": f"goim_core node {self._node}",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": floor + 1,
            "ack_policy": "all",
            "ack_wait": int(max(KEEP_PLACE, 2 * retention) * SECOND),
            "max_ack_pending": -1,  # what waits here is bounded by what is asked for
            "filter_subjects": [topic, f"{topic}.{token_of(self._node)}"],
            "inactive_threshold": int(max(KEEP_PLACE, 2 * retention) * SECOND),
        }
        await self._ask(
            f"CONSUMER.DURABLE.CREATE.{topic}.{self._consumer}", {"stream_name": topic, "config": config}
        )

    async def _ask(self, what: str, body: object = None, *, allowed: int = 0) -> dict[str, Any]:
        """The answer of JetStream's API; errors but ``allowed`` are raised."""
        request = b"" if body is None else json.dumps(body).encode()
        try:
            msg = await self._client.request(f"$JS.API.{what}", request, timeout=self._settings.timeout)
        except nats.errors.NoRespondersError:
            raise BackboneError(
                f"cannot use NATS at {self._settings.address}: JetStream is not enabled there (nats-server -js)"
            ) from None
        answer: dict[str, Any] = json.loads(msg.data)
        error = answer.get("error")
        if error and error.get("err_code") != allowed:
            description = error.get("description", error)
            raise BackboneError(f"cannot use NATS at {self._settings.address}: {what}: {description}")
        return answer

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

    async def pull(self, count: int) -> None:
        """Ask for ``count`` messages, unless some that were asked for are still to come."""
        if self._asked or count < 1:
            return
        self._asked = count
        self._request += 1
        self._heard = monotonic()
        request = {
            "batch": count,
            "max_bytes": max(REQUEST_BYTES, 2 * self.max_payload),
            "expires": int(ASK_FOR * SECOND),
            "idle_heartbeat": int(HEARTBEAT * SECOND),
        }
        await self._tell(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.topic}.{self._consumer}",
            json.dumps(request).encode(),
            f"{self._inbox}.pull.{self._request}",
        )

    async def acknowledge(self, floor: int) -> None:
        """Say that all messages up to ``floor`` are done with."""
        reply = ""
        while self._replies and self._replies[0][0] <= floor:
            reply = self._replies.popleft()[1]
        if reply:
            await self._tell(reply, b"+ACK")

    async def _tell(self, subject: str, data: bytes, reply: str = "") -> None:
        try:
            await self._client.publish(subject, data, reply=reply)
        except FOREIGN as error:
            self._break(_words(error))

    async def watch(self) -> None:
        """See that a request for messages is not forgotten, until the connection is broken."""
        while not self.broken.is_set():
            await anyio.sleep(HEARTBEAT)
            if self._asked and monotonic() - self._heard > 3 * HEARTBEAT:
                self._break("JetStream says nothing of the messages it was asked for")

    async def close(self) -> None:
        """Send what is to be sent, if that is possible, and close."""
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
            number = int(tokens[5] if len(tokens) == 9 else tokens[7])
            self._replies.append((number, msg.reply))
            self._delivered(number, msg.data)
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
            self._delivered(0, b"")

    async def _on_confirmed(self, msg: Msg) -> None:
        if (msg.headers or {}).get("Status") == "503":
            self._break("the stream is gone")
            return
        self._confirmed(int(msg.subject.rpartition(".")[2]), msg.data)

    async def _on_error(self, error: Exception) -> None:
        self._complaint = _words(error)

    async def _on_disconnected(self) -> None:
        self._break(self._complaint or _words(self._client.last_error))

    def _break(self, reason: str) -> None:
        if not self.broken.is_set():
            self.reason = reason
            self.broken.set()


def token_of(node: str) -> str:
    """``node`` as one token of a subject and a name of a consumer, which have no dots, blanks and stars."""
    return re.sub(rb"[^A-Za-z0-9_-]", lambda found: b"=%02X" % found[0], node.encode()).decode()


def _subjects(topic: str) -> list[str]:
    return [topic, f"{topic}.*"]


def _covers(subject: str, wanted: str) -> bool:
    return subject in (wanted, ">") or (subject.endswith(".>") and wanted.startswith(subject[:-1]))


def _words(error: Exception | None) -> str:
    return str(error or "the connection was lost").removeprefix("nats: ").strip("'\r\n") or repr(error)
