"""What may be said under one video, how fast, and by whom. No network, no waiting: plain rules."""

from __future__ import annotations

from attrs import Factory, define

from goim_core import ErrorCode, Refused

MAX_TEXT = 100
MAX_BLOCKED = 1000
ROOM_RATE = 20.0
"""How many comments a second one video shows: more could not be read."""
ROOM_BURST = 40


@define(eq=False)
class Rules:
    """The rules of one video. Times are seconds of the server's monotonic clock."""

    slow: float = 0.0
    """How many seconds a viewer has to wait between two comments."""
    blocked: set[str] = Factory(set)
    """Words, in lower case, that no comment may contain."""
    muted: dict[int, float] = Factory(dict)
    """Until when each of these viewers may not comment."""
    banned: set[int] = Factory(set)
    """Viewers who may not even watch."""
    _spoke: dict[int, float] = Factory(dict)
    _paced: float = 0.0

    @property
    def untouched(self) -> bool:
        """Whether no moderator has set anything here."""
        return not (self.slow or self.blocked or self.muted or self.banned)

    def check(self, mid: int, text: str, now: float) -> str:
        """The comment as it is shown. Raises Refused with the reason and an HTTP-like code."""
        text = " ".join(text.split())
        if not 0 < len(text) <= MAX_TEXT:
            raise Refused(f"a comment has 1 to {MAX_TEXT} characters", ErrorCode.BAD_REQUEST)
        if self.muted.get(mid, now) > now:
            raise Refused(f"you are muted for {self.muted[mid] - now:.0f} s")
        if any(word in text.lower() for word in self.blocked):
            raise Refused("this is not said here")
        wait = self._spoke.get(mid, -self.slow) + self.slow - now
        if wait > 0:
            raise Refused(f"slow mode: wait {wait:.0f} s", ErrorCode.TOO_MANY)
        self._take_place(now)
        if self.slow:
            self._spoke[mid] = now
        return text

    def _take_place(self, now: float) -> None:
        # A token bucket, kept as the time at which it would be full again; half a place is for rounding.
        paced = max(self._paced, now) + 1 / ROOM_RATE
        if (paced - now) * ROOM_RATE > ROOM_BURST + 0.5:
            raise Refused("too many comments at once, try again", ErrorCode.TOO_MANY)
        self._paced = paced

    def block(self, word: str) -> None:
        """No comment may contain ``word`` from now on."""
        word = word.strip().lower()
        if not 0 < len(word) <= MAX_TEXT or len(self.blocked) >= MAX_BLOCKED:
            raise Refused(f"expected a word, at most {MAX_BLOCKED} in all", ErrorCode.BAD_REQUEST)
        self.blocked.add(word)

    def mute(self, mid: int, now: float, seconds: float) -> None:
        """``mid`` may not comment for ``seconds``; those whose time is over are forgotten."""
        self.muted = {other: until for other, until in self.muted.items() if until > now}
        self.muted[mid] = now + seconds

    def forget(self, mid: int) -> None:
        """A viewer is gone, and slow mode with them: what is kept is bounded by who is watching."""
        self._spoke.pop(mid, None)
