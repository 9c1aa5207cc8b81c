"""The process that pushes: to rooms by way of each node, to users until each message is accepted.

A push to a room is numbered and pushed once. A push to a user is pushed again with the same idempotency
key, by way of one node or the other, until the answer is 0, as an application would do it that must not
lose a message.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection

from benchmarks.soak.client import LOUD, ROOM_OP, USER_OP

__all__ = ["Load", "Pushed", "push"]

PATIENCE = 30.0
"""Seconds for one answer: more than a server takes, whatever is wrong."""
PAUSE = 0.2
"""Seconds before a push is tried again."""
BLOB = b"x" * 32_768
"""What a push to the loud room has behind its number."""


@dataclass(frozen=True)
class Load:
    """How much is pushed."""

    ports: list[int]
    """The HTTP port of each node."""
    rooms: int
    room_rate: float
    """Pushes a second to rooms, by way of all nodes together."""
    loud_rate: float
    hard: float
    """For so many seconds from the begin, loud pushes come twice as often."""
    users: int
    user_rate: float
    lines: int = 4
    """How many pushers share the users."""


@dataclass
class Pushed:
    """What was pushed since it was last asked for."""

    rooms: list[tuple[int, int, float, float, bool]] = field(default_factory=list)
    """To which room, by whom, when, when it was answered, whether it was accepted; in order."""
    users: list[tuple[int, float]] = field(default_factory=list)
    """To whom, and when it was accepted; in order."""
    refused: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    """How many pushes to users are being tried at this moment."""


class Pushing:
    """All pushers, each a thread with a connection of its own to each node."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._pushed = Pushed()
        self._waiting = 0

    def start(self) -> None:
        """Begin."""
        load = self.load
        works: list[tuple[Callable[[int], None], int]] = [
            (self.to_rooms, node) for node in range(len(load.ports))
        ]
        works += [(self.to_users, line) for line in range(load.lines)]
        for work, which in [*works, (self.loudly, 0)]:
            threading.Thread(target=work, args=(which,), daemon=True).start()

    def take(self) -> Pushed:
        """What was pushed; the next one begins anew."""
        with self._lock:
            pushed, self._pushed = self._pushed, Pushed()
            pushed.waiting = self._waiting
        return pushed

    # The three kinds.

    def to_rooms(self, node: int) -> None:
        """To one room after the other by way of one node; the numbers are those of that node's pusher."""
        load, poster = self.load, Poster(self.load.ports)
        numbers = [0] * (load.rooms + 1)
        for turn in self._turns(load.room_rate / len(load.ports)):
            room = 1 + turn % load.rooms
            numbers[room] += 1
            self._to_room(poster, node, room, node, numbers[room])

    def loudly(self, node: int) -> None:
        """Large ones to the loud room."""
        poster = Poster(self.load.ports)
        rate = self.load.loud_rate
        turns = chain(self._turns(2 * rate, self.load.hard), self._turns(rate))
        for number, _ in enumerate(turns, 1):
            self._to_room(poster, node, LOUD, node, number, BLOB)

    def _to_room(
        self, poster: Poster, node: int, room: int, who: int, number: int, blob: bytes = b""
    ) -> None:
        sent = time.monotonic_ns()
        body = b"%d %d %d %b" % (who, number, sent, blob)
        why = poster.post(node, f"/goim/push/room?operation={ROOM_OP}&type=soak&room={room}", body)
        with self._lock:
            self._pushed.rooms.append((room, who, sent / 1e9, time.monotonic(), not why))
            if why:
                self._pushed.refused[why] += 1

    def to_users(self, line: int) -> None:
        """To users at random, each of whom only this thread pushes to."""
        load, poster, some = self.load, Poster(self.load.ports), random.Random(line)
        counts: Counter[int] = Counter()
        for turn in self._turns(load.user_rate / load.lines):
            mid = 1 + line + load.lines * some.randrange(load.users // load.lines)
            counts[mid] += 1
            body = b"%d %d" % (counts[mid], time.monotonic_ns())
            path = f"/goim/push/mids?operation={USER_OP}&mids={mid}"
            self._surely(poster, turn, path, body, f"{mid}-{counts[mid]}")
            with self._lock:
                self._pushed.users.append((mid, time.monotonic()))

    def _surely(self, poster: Poster, turn: int, path: str, body: bytes, key: str) -> None:
        with self._lock:
            self._waiting += 1
        while why := poster.post(turn % len(self.load.ports), path, body, key):
            turn += 1
            with self._lock:
                self._pushed.refused[f"{why}; tried again"] += 1
            time.sleep(PAUSE)
        with self._lock:
            self._waiting -= 1

    def _turns(self, rate: float, seconds: float = math.inf) -> TurnsOf:
        return TurnsOf(self.stopping, rate, seconds)


class TurnsOf:
    """Counts turns, ``rate`` a second, for so many seconds; those that were missed are left out."""

    def __init__(self, stopping: threading.Event, rate: float, seconds: float = math.inf) -> None:
        self._stopping, self._gap = stopping, 1 / rate
        self._next = time.monotonic() + self._gap * random.random()
        self._end = time.monotonic() + seconds
        self._turn = -1

    def __iter__(self) -> TurnsOf:
        return self

    def __next__(self) -> int:
        now = time.monotonic()
        if self._next > self._end or self._stopping.wait(max(0.0, self._next - now)):
            raise StopIteration
        self._next = max(self._next, now) + self._gap
        self._turn += 1
        return self._turn


class Poster:
    """One connection to the HTTP door of each node, made again where it broke."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._open: dict[int, http.client.HTTPConnection] = {}

    def post(self, node: int, path: str, body: bytes, key: str = "") -> str:
        """Push; why it was not accepted, empty when it was."""
        connection = self._open.pop(node, None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._ports[node], timeout=PATIENCE)
        try:
            connection.request("POST", path, body, {"Idempotency-Key": key} if key else {})
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return "the node is away" if isinstance(error, OSError) else type(error).__name__
        self._open[node] = connection
        return f"{answer['code']} {answer['message'][:60]}" if answer["code"] else ""


def push(load: Load, pipe: Connection) -> None:
    """The process: it obeys the words that come through ``pipe``."""
    pushing = Pushing(load)
    pushing.start()
    with suppress(EOFError):  # whoever started this is gone
        while (word := pipe.recv()) != "end":
            if word == "stop":
                pushing.stopping.set()
            elif word == "pushed":
                pipe.send(pushing.take())
