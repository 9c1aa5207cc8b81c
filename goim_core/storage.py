"""The inbox: messages kept for users who are away. Its contract; memory_storage.py is its form in memory.

Every user has one inbox, numbered from 1 without a gap in the order of storing, and in it a cursor for
each of the user's devices: what that device has acknowledged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from enum import StrEnum
from math import isnan
from typing import Any

from attrs import field, frozen

from goim_core.errors import ConfigurationError
from goim_core.hooks import Hook
from goim_core.protocol import INT32_MAX
from goim_core.session import MaybeAwaitable, check_mid

__all__ = ["Retention", "StorageHook", "Stored", "StorePolicy", "check_append", "check_idempotency_key"]

MAX_IDEMPOTENCY_KEY = 256
"""The longest idempotency key, in characters."""


class StorePolicy(StrEnum):
    """Which pushes to users are stored."""

    ALL = "all"
    """Every one: each carries its number, and what a device did not acknowledge is given again."""
    OFFLINE = "offline"
    """Only those for users without a connection at that moment: what is live is not numbered."""


@frozen
class Stored:
    """A message in an inbox. ``seq`` its number there, ``at`` when it was stored (seconds since 1970)."""

    seq: int
    op: int
    body: bytes
    at: float


class StorageHook(Hook, ABC):
    """Keeps inboxes. A method may be plain or an ``async def``; a plain one must not block.

    Whatever a method raises refuses the push, or ends the exchange with the client, that needed it:
    :class:`~goim_core.errors.StorageError` with a message for the caller, anything else is logged.
    """

    policy: StorePolicy = StorePolicy.ALL
    """Which pushes to users are stored."""

    @abstractmethod
    def append(
        self, mids: Sequence[int], op: int, body: bytes, *, idempotency_key: str = ""
    ) -> MaybeAwaitable[dict[int, int]]:
        """Store a message for each of these users; its number in the inbox of each.

        All or nothing, and for good once it returns. A message whose ``idempotency_key`` is in a user's
        inbox already is not stored there again: the number is that of the first.
        """

    @abstractmethod
    def after(self, mid: int, seq: int, limit: int, size: int) -> MaybeAwaitable[Sequence[Stored]]:
        """The messages behind number ``seq``, in order: at most ``limit``, and no more than fit ``size``.

        ``size`` is bytes of bodies; the first message comes however large it is. Empty at the end only.
        """

    @abstractmethod
    def acknowledge(self, mid: int, device: str, seq: int) -> MaybeAwaitable[int]:
        """Move the device's cursor to ``seq``; where it is now.

        It never moves back, and a ``seq`` beyond the last message that was stored moves nothing.
        """

    @abstractmethod
    def cursor(self, mid: int, device: str) -> MaybeAwaitable[int]:
        """The last number that this device acknowledged; 0 for a device that never did."""

    @abstractmethod
    def saw(self, mid: int, at: float) -> MaybeAwaitable[None]:
        """The user's last connection ended at ``at`` (seconds since 1970)."""

    @abstractmethod
    def last_seen(self, mids: Iterable[int]) -> MaybeAwaitable[dict[int, float]]:
        """What :meth:`saw` was last told of these users; one that never was is left out."""


def _at_least_one(_: Any, attribute: Any, value: Any) -> None:
    if type(value) is not int or not 1 <= value <= INT32_MAX:
        raise ConfigurationError(f"{attribute.name}: expected 1 or more, got {value!r:.80}")


def _seconds(_: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or isnan(value) or value <= 0:
        raise ConfigurationError(f"{attribute.name}: expected seconds, more than 0, got {value!r:.80}")


def _store_policy(value: Any) -> StorePolicy:
    try:
        return StorePolicy(value)
    except ValueError:
        choices = ", ".join(StorePolicy)
        raise ConfigurationError(f"policy: expected one of {choices}; got {value!r:.80}") from None


DEVICES = 100
"""Of how many devices a user's cursors are kept, unless told."""


@frozen
class Retention:
    """What a storage keeps: ``keep`` messages a user, ``keep_for`` seconds, of the pushes in ``policy``.

    And cursors of ``devices`` devices a user: when one more acknowledges, the one that is furthest behind is
    forgotten, or a client that names ever new ones would fill the disk.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the field.
    """

    keep: int = field(validator=_at_least_one)
    keep_for: float = field(validator=_seconds)
    policy: StorePolicy = field(converter=_store_policy)
    devices: int = field(default=DEVICES, validator=_at_least_one)

    @property
    def slack(self) -> int:
        """How many messages too many an inbox may hold before they are removed, all at once.

        They are not given out any more; removing them one by one would cost more than the appends.
        """
        return self.keep // 100


def check_idempotency_key(key: str) -> str:
    """Return ``key`` when a storage takes it; raise :class:`ValueError` when not."""
    if not isinstance(key, str) or len(key) > MAX_IDEMPOTENCY_KEY:
        raise ValueError(
            f"idempotency_key: expected text of at most {MAX_IDEMPOTENCY_KEY} characters, got {key!r:.80}"
        )
    return key


def check_append(mids: Sequence[int], op: int, body: bytes, key: str) -> tuple[int, ...]:
    """The users of an append, each once; raises :class:`ValueError` that names what does not fit."""
    for mid in mids:
        check_mid(mid)
    if type(op) is not int or not 0 <= op <= INT32_MAX:
        raise ValueError(f"op: expected an int32, got {op!r:.80}")
    if not isinstance(body, bytes):
        raise ValueError(f"body: expected bytes, got {type(body).__name__}")
    check_idempotency_key(key)
    return tuple(mids) if len(mids) == 1 else tuple(dict.fromkeys(mids))
