"""One connected client as those who push see it: who it is, and a place to put bytes.

Sync. Nobody ever waits for a client here: what the kernel does not take goes to the channel's
bounded outbox, and the connection behind it is asked to flush when the socket can be written again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from attrs import Factory, define, frozen

from goim_core.errors import CloseCode, Disconnect
from goim_core.options import Options, OutboxPolicy
from goim_core.outbox import Account, Outbox
from goim_core.room import Room
from goim_core.session import Session
from goim_core.wire import Packet

__all__ = [
    "NOBODY",
    "Channel",
    "Counters",
    "Gone",
    "Port",
    "Sink",
    "Unsettled",
    "deliver",
    "send_all",
    "settle",
]

NOBODY = Session(mid=0)
"""The session of a channel that has not authenticated."""


class Sink(Protocol):
    """What a channel writes to: a non-blocking socket, TLS over one, or a test's link."""

    def send(self, data: bytes, /) -> int:
        """Take some of ``data``, say how much; raise BlockingIOError for none, OSError when gone."""


@define(eq=False)
class Counters:
    """What went through all channels of a server.

    ``drops`` counts messages by reason, ``closes`` connections by close code, ``refusals`` what a limit was
    in the way of, by its option. Now: ``handshakes`` are on their way in, ``http`` the connections of the
    HTTP doors, ``outboxes`` what waits.
    """

    opened: int = 0
    closed: int = 0
    deliveries: int = 0
    drops: Counter[str] = Factory(Counter)
    closes: Counter[int] = Factory(Counter)
    refusals: Counter[str] = Factory(Counter)
    handshakes: int = 0
    http: int = 0
    outboxes: Account = Factory(Account)
    on_drop: Callable[[Channel, int, str], None] | None = None
    """Told of each drop, while somebody is traced."""


class Port(Protocol):
    """The connection behind a channel."""

    @property
    def options(self) -> Options:
        """The server's options."""

    @property
    def counters(self) -> Counters:
        """The server's counters."""

    def want_write(self) -> None:
        """Bytes wait: call :meth:`Channel.flush` when the socket takes some."""

    def close(self, why: Disconnect) -> None:
        """Tell the client why and close. Returns at once."""

    def lost(self, error: OSError) -> None:
        """The socket is broken."""


@frozen
class Gone:
    """The port of a channel that outlives its connection, in a push that is under way."""

    options: Options
    counters: Counters

    def want_write(self) -> None:
        """Nothing: it is over."""

    def close(self, why: Disconnect) -> None:
        """Nothing: it is over."""

    def lost(self, error: OSError) -> None:
        """Nothing: it is over."""


class Feed(Protocol):
    """The way to a connection for what is stored: see inbox.py."""

    saved: int
    """The number that the storage knows of, of a client that does not acknowledge."""

    def push(self, seq: int, op: int, packet: Packet) -> None:
        """A message to the user has been published; ``seq`` its number in the inbox, 0 for none."""

    def go_on(self) -> None:
        """Nothing waits in the outbox any more."""

    def beat(self) -> int:
        """A heartbeat has come.

        Returns up to which number a client that does not acknowledge has been written; 0: nothing new.
        """

    def close(self) -> int:
        """The connection ends: send no more. Returns what :meth:`beat` does."""


@define(eq=False, weakref_slot=False)
class Channel:
    """One connected client. ``form`` is the kind of wire, and picks the bytes of a packet."""

    sock: Sink
    form: int
    port: Port
    address: str = ""
    session: Session = NOBODY
    accepts: frozenset[int] = frozenset()
    room: Room[Channel] | None = None
    """The room it changed to."""
    joined: dict[str, Room[Channel]] | None = None
    """The rooms it joined beside that one, by id."""
    inbox: Feed | None = None
    """How far it has got in its user's inbox, where messages are stored."""
    outbox: Outbox | None = None
    drops: int = 0
    """Messages for this channel that were dropped."""

    def rooms(self) -> list[Room[Channel]]:
        """The rooms it is in."""
        rooms = list((self.joined or {}).values())
        if self.room is not None and self.room not in rooms:
            rooms.append(self.room)
        return rooms

    def push(self, packet: Packet) -> None:
        """Send ``packet``, or let it wait, or drop it by the outbox policy; what becomes of it is counted."""
        dropped = self.drops
        deliver((self,), packet)
        self.port.counters.deliveries += packet.count - (self.drops - dropped)

    def reply(self, data: bytes) -> None:
        """Send bytes that answer this client, already in the form of its wire.

        They are never dropped: a client that does not read its own replies is disconnected.
        """
        # At the bound, what is only corked is sent before the client is said not to read.
        if self.outbox is not None and (self.fits(data) or not self.flush()):
            if self.outbox is not None:  # sending may have found the socket broken
                self.hold(data, 0)
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.port.lost(error)
            return
        if sent != len(data):
            self.block(data, sent, 0)

    def append(self, data: bytes) -> None:
        """Send bytes that must not be lost; where some wait, behind them, be the outbox full or not."""
        if self.outbox is not None:
            self.outbox.add(data, 0)
        else:
            self.reply(data)

    def block(self, data: bytes, sent: int, count: int) -> None:
        """The kernel took only ``sent`` bytes of ``data``: keep the rest and ask for writability."""
        self.outbox = Outbox(self.port.counters.outboxes)
        self.outbox.add(memoryview(data)[sent:] if sent else data, count)
        self.outbox.started = bool(sent)
        self.port.want_write()

    def hold(self, data: bytes, count: int) -> None:
        """Queue ``data`` behind what waits; at the bound, apply the outbox policy."""
        outbox, options = self.outbox, self.port.options
        assert outbox is not None
        if self.fits(data):
            outbox.add(data, count)
        elif not count or options.outbox_policy is OutboxPolicy.DISCONNECT:
            if count:
                self.dropped(count, "disconnect")
            self.port.close(Disconnect("too slow: what waits for this connection is full", CloseCode.SLOW))
        elif options.outbox_policy is OutboxPolicy.DROP_OLDEST:
            dropped = outbox.drop_oldest(outbox.size + len(data) - options.outbox_bytes)
            if dropped:  # the newest comes in even where replies, which stay, leave it too little room
                outbox.add(data, count)
            self.dropped(dropped or count, "drop_oldest")
        else:
            self.dropped(count, "drop_newest")

    def fits(self, data: bytes) -> bool:
        """Whether the outbox, which something waits in, takes ``data`` within its bounds."""
        outbox, options = self.outbox, self.port.options
        assert outbox is not None
        return (
            outbox.size + len(data) <= options.outbox_bytes and len(outbox.packets) < options.outbox_packets
        )

    def discard(self) -> None:
        """The socket is gone: what waits for it was counted as delivered, and is lost."""
        if self.outbox is not None:
            lost = self.outbox.clear()
            self.outbox = None
            self.port.counters.deliveries -= lost
            self.dropped(lost, "lost")

    def dropped(self, count: int, reason: str) -> None:
        """Count ``count`` messages that this client does not get."""
        self.drops += count
        counters = self.port.counters
        counters.drops[reason] += count
        if counters.on_drop is not None:
            counters.on_drop(self, count, reason)

    def cork(self) -> bool:
        """Gather the replies that follow for one send; False when something waits already."""
        if self.outbox is not None:
            return False
        self.outbox = Outbox(self.port.counters.outboxes)
        return True

    def flush(self) -> bool:
        """Send what waits; True when nothing waits any more. Asks for no writability by itself."""
        outbox = self.outbox
        while outbox is not None and outbox.packets:
            data = outbox.gather()
            try:
                sent = self.sock.send(data)  # type: ignore[arg-type]  # a view is as good as bytes here
            except BlockingIOError:
                return False
            except OSError as error:
                self.port.lost(error)
                return False
            outbox.sent(sent)
            outbox.deadline = float("inf")
            if sent < len(data):
                return False
        self.outbox = None
        return True


Unsettled: TypeAlias = list[tuple[Channel, int | OSError | None]]
"""Who has not been sent all of a packet, and why: how many bytes the kernel took; the socket's error; None
where something waits already, which comes first."""


def deliver(channels: Sequence[Channel], packet: Packet) -> None:
    """Give ``packet`` to each of ``channels``, of which none may be in twice."""
    if unsettled := send_all(channels, packet):
        settle(unsettled, packet)


def send_all(channels: Sequence[Channel], packet: Packet) -> Unsettled:
    """Send to each of ``channels`` what the kernel takes: the hot loop of every push. Changes none of them.

    Inline, because a call for each member is a tenth of what the loop costs beside the system call, and
    with nothing left to do for whom the kernel has taken all.
    """
    forms, sizes = packet.forms, packet.sizes
    unsettled: Unsettled = []
    for channel in channels:
        form = channel.form
        if channel.outbox is not None:
            unsettled.append((channel, None))
            continue
        try:
            if (sent := channel.sock.send(forms[form])) == sizes[form]:
                continue
        except BlockingIOError:
            sent = 0
        except OSError as error:
            unsettled.append((channel, error.with_traceback(None)))  # which would refer to this list
            continue
        unsettled.append((channel, sent))
    return unsettled


def settle(unsettled: Unsettled, packet: Packet) -> None:
    """Do for those of :func:`send_all` what is left to do."""
    # First who is owed the rest of a frame: what is done for others may call hooks.
    for channel, outcome in unsettled:
        if isinstance(outcome, int):
            channel.block(packet.forms[channel.form], outcome, packet.count)
    for channel, outcome in unsettled:
        if isinstance(outcome, OSError):
            channel.dropped(packet.count, "lost")
            channel.port.lost(outcome)
        elif outcome is None and channel.outbox is not None:
            channel.hold(packet.forms[channel.form], packet.count)
        elif outcome is None:  # its connection has ended since
            channel.dropped(packet.count, "lost")
