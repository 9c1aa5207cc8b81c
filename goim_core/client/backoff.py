"""How long to wait before connecting again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import field, frozen

__all__ = ["Backoff"]


def _at_least(minimum: float) -> Any:
    def check(_: Any, attribute: Any, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= minimum:
            raise ValueError(f"{attribute.name}: expected a number of at least {minimum:g}, got {value!r}")

    return check


@frozen(kw_only=True)
class Backoff:
    """Exponential backoff with jitter; the numbers are those of goim's ``/goim/nodes/weighted``.

    The first try comes after a random part of ``first`` seconds: quick, but when a server restarts its
    clients do not come all at once. The next waits ``base`` seconds, each further one ``factor`` times as
    long, up to ``longest``; every wait is lengthened or shortened by a random part of up to ``jitter``. A
    connection that lasted ``stable`` seconds makes the next loss a first one again.

    Raises :class:`ValueError` that names the field.
    """

    first: float = field(default=0.5, validator=_at_least(0))
    base: float = field(default=3.0, validator=_at_least(0))
    factor: float = field(default=1.8, validator=_at_least(1))
    longest: float = field(default=300.0, validator=_at_least(0))
    jitter: float = field(default=0.3, validator=_at_least(0))
    stable: float = field(default=10.0, validator=_at_least(0))

    def delay(self, tries: int, random: Callable[[], float]) -> float:
        """Seconds to wait after ``tries`` tries that failed; ``random`` gives numbers from 0 to 1."""
        if not tries:
            return self.first * random()
        delay = min(self.longest, self.base)
        for _ in range(tries - 1):
            if delay >= self.longest or self.factor == 1:
                break
            delay = min(self.longest, delay * self.factor)
        return max(0.0, delay * (1 + self.jitter * (2 * random() - 1)))
