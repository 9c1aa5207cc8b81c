"""The registry's contract: which connection is where. And its form in memory.

goim keeps this in Redis. A route is one connection: its user, its key, and the server that holds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

from attrs import field, frozen

from goim_core.session import MaybeAwaitable, Session
from goim_core.shards import Shards

__all__ = ["MemoryRegistry", "Online", "Registry", "Routes"]

Routes = dict[str, list[str]]
"""Connection keys by the server that holds them."""


@frozen
class Online:
    """How many connections each room has, how many there are in all, and from how many addresses."""

    rooms: Mapping[str, int] = field(factory=dict)
    connections: int = 0
    addresses: int = 0


def _nobody_to_tell(_: Session) -> None:
    pass


class Registry(ABC):
    """Knows which server holds which connection. A method may be plain or an ``async def``."""

    on_replaced: Callable[[Session], object] = staticmethod(_nobody_to_tell)
    """The server's: to be called with a session of this node whose key a connection of another node has taken
    over; more than once does no harm."""

    @abstractmethod
    def add(self, session: Session) -> MaybeAwaitable[None]:
        """Record that ``session.server`` holds ``session``; replaces the route of the same key."""

    @abstractmethod
    def remove(self, session: Session) -> MaybeAwaitable[bool]:
        """Forget ``session`` and say whether it was there.

        A route that another connection has taken over under the same key stays (goim deletes it:
        a kicked connection takes its successor's route along).
        """

    def renew(self, session: Session) -> MaybeAwaitable[None]:
        """``session`` is still there. Called at each heartbeat, for registries whose routes expire."""

    @abstractmethod
    def keys(self, keys: Iterable[str]) -> MaybeAwaitable[Routes]:
        """Where these connections are; an unknown key is left out."""

    @abstractmethod
    def mids(self, mids: Iterable[int]) -> MaybeAwaitable[list[Session]]:
        """All connections of these users, each user's oldest first; an unknown user is left out.

        Of each session ``mid``, ``key``, ``platform`` and ``server`` are filled in.
        """

    def held(self, mid: int, server: str) -> int | None:
        """How many connections of the user ``server`` holds; None where to ask takes time: it counts them."""
        return None

    def report(self, online: Online) -> MaybeAwaitable[Online]:
        """Tell the other nodes who is ``online`` here; the sum of what they have told.

        Called every ``Options.census`` seconds. Raises :class:`~goim_core.errors.BackboneError` where the
        registry is not there. By default there are no other nodes.
        """
        return Online()

    @property
    def trouble(self) -> str:
        """What is wrong at the moment, in a sentence for logs and statistics; empty when nothing is."""
        return ""

    async def start(self, node: str) -> None:
        """Connect, when the server named ``node`` starts. By default there is nothing to connect to.

        Raises :class:`~goim_core.errors.BackboneError` that says what is wrong.
        """

    async def run(self) -> None:
        """Work beside the server until cancelled: renew what expires. By default there is nothing to do."""

    async def aclose(self) -> None:
        """Let go of connections, when the server has stopped. By default there are none."""


class MemoryRegistry(Registry):
    """The routes of the servers in this process."""

    def __init__(self) -> None:
        self._by_key: Shards[str, Session] = Shards()
        # Most users have one connection: it is kept bare, and a tuple only where there are more.
        self._by_mid: Shards[int, Session | tuple[Session, ...]] = Shards()

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, session: Session) -> None:
        """See :meth:`Registry.add`."""
        by_key = self._by_key.of(session.key)
        replaced = by_key.get(session.key)
        if replaced is not None:
            self.remove(replaced)
        by_key[session.key] = session
        by_mid = self._by_mid.of(session.mid)
        others = by_mid.get(session.mid)
        if others is None:
            by_mid[session.mid] = session
        else:
            by_mid[session.mid] = (*others, session) if isinstance(others, tuple) else (others, session)

    def remove(self, session: Session) -> bool:
        """See :meth:`Registry.remove`."""
        by_key = self._by_key.of(session.key)
        if by_key.get(session.key) is not session:
            return False
        del by_key[session.key]
        by_mid = self._by_mid.of(session.mid)
        rest = tuple(other for other in self._of(session.mid) if other is not session)
        if rest:
            by_mid[session.mid] = rest if len(rest) > 1 else rest[0]
        else:
            del by_mid[session.mid]
        return True

    def keys(self, keys: Iterable[str]) -> Routes:
        """See :meth:`Registry.keys`."""
        found = (self._by_key.of(key).get(key) for key in dict.fromkeys(keys))
        return _by_server(session for session in found if session is not None)

    def mids(self, mids: Iterable[int]) -> list[Session]:
        """See :meth:`Registry.mids`."""
        return [session for mid in dict.fromkeys(mids) for session in self._of(mid)]

    def held(self, mid: int, server: str) -> int:
        """See :meth:`Registry.held`."""
        found = self._by_mid.of(mid).get(mid, ())
        if isinstance(found, Session):
            return int(found.server == server)
        return sum(session.server == server for session in found)

    def _of(self, mid: int) -> tuple[Session, ...]:
        found = self._by_mid.of(mid).get(mid, ())
        return found if isinstance(found, tuple) else (found,)


def _by_server(sessions: Iterable[Session]) -> Routes:
    routes: Routes = {}
    for session in sessions:
        routes.setdefault(session.server, []).append(session.key)
    return routes
