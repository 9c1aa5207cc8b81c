"""The two ends that a channel needs, in memory: a socket with as much room as a test gives it."""

from __future__ import annotations

from attrs import Factory, define, field

from goim_core.channel import NOBODY, Channel, Counters
from goim_core.errors import Disconnect
from goim_core.options import Options
from goim_core.protocol import Frame, split
from goim_core.session import Session
from goim_core.wire import TCP

__all__ = ["Link"]


@define(eq=False)
class Link:
    """A channel's socket and connection at once. ``room`` is how many bytes it takes; None is any number."""

    session: Session = NOBODY
    options: Options = Factory(Options)
    counters: Counters = Factory(Counters)
    form: int = TCP
    address: str = ""
    room: int | None = None
    channel: Channel = field(init=False)
    taken: bytearray = Factory(bytearray)
    sends: list[bytes | memoryview] = Factory(list)
    broken: OSError | None = None
    """What sending raises from now on."""
    writes_wanted: int = 0
    closed: list[Disconnect] = Factory(list)
    errors: list[OSError] = Factory(list)

    def __attrs_post_init__(self) -> None:
        self.channel = Channel(self, self.form, self, self.address, self.session, self.session.accepts)

    # The socket.

    def send(self, data: bytes | memoryview, /) -> int:
        if self.broken is not None:
            raise self.broken
        if self.room == 0:
            raise BlockingIOError
        size = len(data) if self.room is None else min(self.room, len(data))
        if self.room is not None:
            self.room -= size
        self.sends.append(data)
        self.taken += data[:size]
        return size

    # The connection.

    def want_write(self) -> None:
        self.writes_wanted += 1

    def close(self, why: Disconnect) -> None:
        self.closed.append(why)

    def lost(self, error: OSError) -> None:
        self.errors.append(error)

    # What a test looks at.

    def frames(self) -> list[Frame]:
        """What the peer has received, which has to end with a whole frame."""
        return split(bytes(self.taken))

    def bodies(self) -> list[bytes]:
        """The bodies of :meth:`frames`."""
        return [frame.body for frame in self.frames()]
