"""Who is let in: how many connections there may be, of whom, how fast, and how many on their way in. Sync.

Asked for each accepted socket before any object is made for it. Once a client is let in, it costs
nothing here but a number for its address.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from math import inf
from typing import Protocol

from goim_core.channel import Counters
from goim_core.clock import Clock
from goim_core.errors import CloseCode, Disconnect
from goim_core.handshake import HandshakeError
from goim_core.options import Options
from goim_core.session import Session
from goim_core.shards import Tally
from goim_core.wire import disconnect_frame

__all__ = ["Admission", "Entrant", "Seats", "turn_away"]

RETRY_AFTER = 5
"""How many seconds later a WebSocket client that is turned away is asked to come back."""
MAKE_WAY = 64
"""One in so many HTTP connections gives way at a time: more are asked for when these places are taken."""
SPARE_DESCRIPTORS = 64
"""How many of the process's descriptors are left to the rest of the program, where nothing else is said."""

_log = logging.getLogger("goim_core.admission")


class Entrant(Protocol):
    """A connection on its way in."""

    def cut(self, why: Disconnect) -> None:
        """Tell the peer why, if it takes that at once, and end the connection."""


class Admission:
    """Lets connections in, within the limits of ``options``, and counts those that it does not.

    What is refused is in ``counters.refusals`` under the name of the option.
    """

    def __init__(self, counters: Counters, clock: Clock, options: Options) -> None:
        self._counters = counters
        self._clock = clock
        self._addresses: Tally[str | bytes] = Tally()
        # Who got no further for the longest is first. An OrderedDict: taking the first of a dict looks at
        # every place that was emptied before it.
        self._entering: OrderedDict[Entrant, None] = OrderedDict()
        self._paced = self._asked = 0.0
        self._accepted = 0
        self._quiet_until = 0.0
        self._untold: Counter[str] = Counter()
        self.reload(options)

    def reload(self, options: Options) -> None:
        """From now on, these are the options."""
        self._options = options
        self._most = options.max_connections or max(1, _descriptors() - SPARE_DESCRIPTORS)
        networks = [ip_network(text) for text in options.trusted]

        @lru_cache(maxsize=4096)
        def trusted(address: str) -> bool:
            try:
                found = ip_address(address)
            except ValueError:
                return False
            return any(found in network for network in networks)

        self._trusted = trusted

    # How fast.

    def room(self) -> int:
        """How many may be accepted now. 0 is counted: it is asked when somebody waits."""
        rate = self._options.accept_rate
        accepted, self._accepted = self._accepted, 0
        if not rate:
            return sys.maxsize
        # A token bucket that holds a second's worth, kept as the time at which it would be full again. What
        # was accepted was so right after the last question.
        self._paced = max(self._paced, self._asked) + accepted / rate
        self._asked = now = self._clock.now()
        room = int(min(0.0, now - self._paced) * rate + max(rate, 1.0) + 0.001)
        if room < 1:
            self._counters.refusals["accept_rate"] += 1
            return 0
        return room

    # One accepted socket.

    def refusal(self, address: str) -> str:
        """Why a socket of the IP ``address`` cannot stay, as the name of an option; empty when it can."""
        self._accepted += 1
        counters, options = self._counters, self._options
        option = ""
        if counters.opened - counters.closed >= self._most:
            option = "max_connections"
        elif self._too_many_of(address, options.max_address_connections):
            option = "max_address_connections"
        elif counters.handshakes >= options.max_handshakes:
            option = self._make_way()
        if option:
            self._count(option)
        return option

    def _too_many_of(self, address: str, at_most: int) -> bool:
        return 0 < at_most <= self._addresses.get(_network(address), 0) and not self.trusts(address)

    def trusts(self, address: str) -> bool:
        """Whether the connections of ``address`` are not counted, or are of no address at all."""
        return not address or self._trusted(address)

    def _make_way(self) -> str:
        """Let those go who got no further for the longest, but for whom a hook is deciding about."""
        counters, at_most = self._counters, self._options.max_handshakes
        while self._entering and counters.handshakes >= at_most:
            self._count("max_handshakes")
            oldest = next(iter(self._entering))
            oldest.cut(Disconnect("too many are on their way in: try again later", CloseCode.TRY_AGAIN_LATER))
        return "max_handshakes" if counters.handshakes >= at_most else ""

    def _count(self, option: str) -> None:
        self._counters.refusals[option] += 1
        self._untold[option] += 1
        now = self._clock.now()
        if now >= self._quiet_until:
            told = ", ".join(f"{count} by {name}" for name, count in sorted(self._untold.items()))
            _log.warning("connections refused: %s", told)
            self._untold.clear()
            self._quiet_until = now + 1.0

    # The life of those who stay.

    def came(self, connection: Entrant, address: str) -> None:
        """``connection`` is on its way in."""
        self._entering[connection] = None
        self._counters.handshakes += 1
        if address:
            self._addresses.add(_network(address))

    def went_on(self, connection: Entrant) -> None:
        """It has got further: others give way before it."""
        self._entering.move_to_end(connection)

    def asks(self, connection: Entrant) -> None:
        """A hook decides about it from now on, until :meth:`answered`."""
        del self._entering[connection]

    def answered(self) -> None:
        """A hook has decided, be the connection still there or not."""
        self._counters.handshakes -= 1

    def gave_up(self, connection: Entrant) -> None:
        """It ends; where a hook is deciding, that is waited for."""
        if self._entering.pop(connection, self) is None:
            self._counters.handshakes -= 1

    def left(self, address: str) -> None:
        """A connection of ``address`` is closed."""
        if address:
            self._addresses.add(_network(address), -1)

    # Who it is.

    def unfit(self, session: Session, others: Callable[[Session], int]) -> Disconnect | None:
        """Why ``session`` cannot be let in. ``others`` counts its user's connections here beside it."""
        options, of_user = self._options, self._options.max_user_connections
        if len(session.key) > options.max_key:
            option, why = "max_key", Disconnect(_long("key", options.max_key), CloseCode.AUTH_REFUSED)
        elif len(session.room_id) > options.max_room_id:
            option, why = (
                "max_room_id",
                Disconnect(_long("room_id", options.max_room_id), CloseCode.AUTH_REFUSED),
            )
        elif session.mid and of_user and others(session) >= of_user:
            at_most = f"at most {of_user} connections of a user"
            option, why = "max_user_connections", Disconnect(at_most, CloseCode.TOO_MANY_LOGINS)
        else:
            return None
        self._counters.refusals[option] += 1
        return why


class Seats:
    """How many connections the HTTP doors have. Half of them at most are of one address, unless trusted.

    ``make_way`` has so many of them end that keep the door waiting, when others want in.
    """

    def __init__(
        self, counters: Counters, admission: Admission, options: Options, make_way: Callable[[int], None]
    ) -> None:
        self._counters = counters
        self._admission = admission
        self._make_way = make_way
        self._addresses: Tally[str | bytes] = Tally()
        self.most = options.http_max_connections

    def room(self) -> int:
        """How many may be accepted now. 0 is counted, and makes others give way: somebody waits."""
        room = max(0, self.most - self._counters.http)
        if not room:
            self._counters.refusals["http_max_connections"] += 1
            self._make_way(-(-self.most // MAKE_WAY))
        return room

    def take(self, address: str) -> bool:
        """A connection of ``address`` has been accepted; whether it may stay."""
        most = max(1, self.most // 2)
        if self._addresses.get(_network(address), 0) >= most and not self._admission.trusts(address):
            self._counters.refusals["http_max_connections"] += 1
            return False
        self._addresses.add(_network(address))
        self._counters.http += 1
        return True

    def leave(self, address: str) -> bool:
        """A connection has ended; whether there was no room before."""
        self._addresses.add(_network(address), -1)
        self._counters.http -= 1
        return self._counters.http + 1 >= self.most


def turn_away(sock: socket.socket, door: str) -> None:
    """Close a socket that was just accepted, and say why if it takes that at once. Over TLS nothing is."""
    reason = "the server is full: try again later"
    said = b""
    if door == "tcp":
        said = disconnect_frame(Disconnect(reason, CloseCode.TRY_AGAIN_LATER))
    elif door in ("ws", "http"):
        retry = ("Retry-After", str(RETRY_AFTER))
        said = HandshakeError(HTTPStatus.SERVICE_UNAVAILABLE, reason, retry).response()
    with contextlib.suppress(OSError):
        if said:
            sock.send(said)
    sock.close()


def _long(field: str, most: int) -> str:
    return f"{field}: expected at most {most} characters"


def _network(address: str) -> str | bytes:
    """What is counted as one: an IPv4 address, or an IPv6 network of /64, which one user may have whole."""
    if ":" in address:
        try:
            return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8]
        except OSError:
            pass
    return address


def _descriptors() -> float:
    """How many descriptors the process may have; infinity where the system does not say (Windows)."""
    if sys.platform == "win32":
        return inf
    import resource  # noqa: PLC0415  # there is none on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else soft
