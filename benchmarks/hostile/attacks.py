"""What hostile clients do: a script for each kind, and in what number."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.hostile.storm import SOURCES, Script, Wait
from fuzz.messages import REQUEST
from goim_core.protocol import Op, encode

__all__ = ["ATTACKS", "ROOM", "Attack", "named"]

ROOM = "live://pushed"
"""Where the well-behaved are, and some that do not read."""
HOLD = 12.0
"""Longer than the server waits for a handshake or authentication."""


@dataclass(frozen=True)
class Attack:
    """``count`` connections of a kind, ``at_once`` open; ``memory`` is what the server may gain, in MB."""

    name: str
    doors: tuple[str, ...]
    script: Callable[[str, int], Script]
    count: int
    at_once: int
    memory: float
    seconds: float = 60.0
    sources: int = SOURCES
    policy: str = ""
    """The outbox policy; with one, bodies of ``flood`` bytes go to the room meanwhile."""
    flood: int = 0


def auth(number: int, room: str = "") -> bytes:
    """An auth frame, of one user for each number."""
    token = {"mid": 1 + number % 100_000, "room_id": room, "accepts": [1000]}
    return encode(Op.AUTH, json.dumps(token).encode(), 1)


def message(data: bytes, first: int = 0x82) -> bytes:
    """In a WebSocket frame with a mask of zeros."""
    size = len(data)
    if size < 126:
        return bytes((first, 0x80 | size)) + bytes(4) + data
    return bytes((first, 0xFE)) + size.to_bytes(2) + bytes(4) + data


def opening(door: str) -> bytes:
    """What is sent before the first frame."""
    return REQUEST if door == "ws" else b""


def framed(door: str, frame: bytes) -> bytes:
    """A frame as it is sent at this door."""
    return message(frame) if door == "ws" else frame


# Never authenticate, vanish, come back.


def silent(_door: str, _number: int) -> Script:
    yield Wait(HOLD)
    return False


def vanish(door: str, number: int) -> Script:
    if number % 3:
        yield (opening(door) or b"GET /")[: number % 7]
    return number % 2 == 0


def come_and_go(door: str, number: int) -> Script:
    """Authenticate, wait for the answer, and go."""
    yield opening(door) + framed(door, auth(number))
    yield Wait(10.0, reply=True)
    return number % 2 == 0


def half_open(door: str, number: int) -> Script:
    """Authenticated, then nothing: no heartbeat, and no end."""
    yield opening(door) + framed(door, auth(number, ROOM))
    yield Wait(HOLD, size=0, deaf=True)
    return True


def deaf(door: str, number: int) -> Script:
    """The server closes, and this one does not."""
    yield opening(door) + framed(door, encode(Op.AUTH, b"no token"))
    yield Wait(HOLD, size=0, deaf=True)
    return True


# Slowly.


def drip(data: bytes, every: float) -> Script:
    for byte in data:
        yield bytes((byte,))
        yield Wait(every)
    yield Wait(HOLD)
    return False


def slow_frame(door: str, number: int) -> Script:
    return drip(opening(door) + framed(door, auth(number)), 0.2)


POST = (
    b"POST /goim/push/room?operation=1000&type=live&room=nobody HTTP/1.1\r\n"
    b"Host: 127.0.0.1\r\nContent-Length: 400\r\n\r\n"
)


def slow_header(_door: str, _number: int) -> Script:
    return drip(POST, 0.5)


def slow_body(_door: str, _number: int) -> Script:
    yield POST
    return (yield from drip(bytes(400), 0.5))


def idle_http(_door: str, _number: int) -> Script:
    """Holds a place, and says nothing."""
    yield Wait(20.0)
    return False


def slow_answer(_door: str, _number: int) -> Script:
    """Asks for more than fits into its window, and hardly reads."""
    yield b"GET /goim/operator/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 400
    for _ in range(20):
        yield Wait(1.0, size=1)
    return True


# Floods.


def live(door: str, number: int, again: Callable[[], Iterator[bytes]], seconds: float = 10.0) -> Script:
    """Authenticate, then send as fast as it is taken, and read what is answered."""
    yield opening(door) + framed(door, auth(number))
    for data in again():
        yield data
        yield Wait(seconds / FLOODS)
    return True


FLOODS = 200


def flood(data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([data * (16384 // len(data))] * FLOODS)


def pings(door: str, number: int) -> Script:
    return live(door, number, flood(message(b"", 0x89)))


def beats(door: str, number: int) -> Script:
    return live(door, number, flood(framed(door, encode(Op.HEARTBEAT, b"", 9))))


def messages(door: str, number: int) -> Script:
    return live(door, number, flood(framed(door, encode(1000, b"x" * 100, 9))))


def rooms(door: str, number: int) -> Script:
    """Join one after the other, far more than a connection may."""

    def joins() -> Iterator[bytes]:
        for turn in range(40):
            yield b"".join(
                framed(door, encode(Op.JOIN, f"live://{number}-{turn}-{n}".encode(), 9)) for n in range(25)
            )

    return live(door, number, joins)


# Never finished.


def claims(door: str, number: int) -> Script:
    """A frame of gigabytes is announced, and its beginning comes."""
    if door == "tcp":
        yield (0x7FFFFFFF).to_bytes(4) + bytes.fromhex("001000010000000700000001") + bytes(1000)
    elif door == "ws":
        yield REQUEST + b"\x82\xff" + (1 << 62).to_bytes(8) + bytes(1000)
    else:
        yield POST.replace(b"400", str(10**12).encode()) + bytes(1000)
    yield Wait(HOLD)
    return number % 2 == 0


def fragments(door: str, number: int) -> Script:
    """As much of a message as it may have, and never its end; heartbeats cannot come in between."""
    yield opening(door) + framed(door, auth(number))
    yield message(bytes(16384), 0x02)
    yield message(bytes(16384), 0x00) * 2
    yield message(bytes(16000), 0x00)
    yield Wait(HOLD)
    return True


def pieces(door: str, number: int) -> Script:
    """Authenticated or not: all of a frame but its last byte."""
    first = opening(door) + (framed(door, auth(number)) if number % 2 else b"")
    frame = framed(door, encode(1000 if number % 2 else Op.AUTH, bytes(4096), 1))
    yield first + frame[:-1]
    yield Wait(HOLD)
    return True


HELLO = b""


def hello() -> bytes:
    """A real ClientHello."""
    global HELLO  # noqa: PLW0603  # made once
    if not HELLO:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            HELLO = outgoing.read()
    return HELLO


def stalled(_door: str, number: int) -> Script:
    """TLS, left at each step in turn: at once, within the hello, after it, in and after a false Finished."""
    whole = hello() + b"\x14\x03\x03\x00\x01\x01" + b"\x17\x03\x03\x00\x35" + bytes(0x35)
    step = number % 5
    yield (b"\x16", hello()[:100], hello(), whole[:-10], whole)[step]
    yield Wait(HOLD)
    return number % 2 == 0


def hello_and_away(_door: str, number: int) -> Script:
    """Has the server reckon for a key, and goes: no work for the client."""
    yield hello()
    yield Wait(5.0, reply=True)
    return number % 2 == 0


def never_read(door: str, number: int) -> Script:
    """In a room that is pushed to."""
    yield opening(door) + framed(door, auth(number, ROOM))
    yield Wait(15.0, size=0)
    return True


def hardly_read(door: str, number: int) -> Script:
    """Just enough to stay: a little each second."""
    yield opening(door) + framed(door, auth(number, ROOM))
    for _ in range(30):
        yield Wait(0.5, size=0)
        yield Wait(0.01, size=8192)
    return True


PLAIN = ("tcp", "ws")
ATTACKS = (
    Attack("never authenticate", PLAIN, silent, 12_000, 12_000, memory=40),
    Attack("all from one address", PLAIN, silent, 10_000, 4_000, memory=40, sources=1),
    Attack("connect and vanish", ("tcp", "ws", "tls", "http"), vanish, 36_000, 500, memory=40),
    Attack("come, go, come back", PLAIN, come_and_go, 24_000, 2_000, memory=40),
    Attack("half-open", PLAIN, half_open, 4_000, 4_000, memory=40),
    Attack("close without answering", PLAIN, deaf, 4_000, 4_000, memory=40),
    Attack("one byte at a time", PLAIN, slow_frame, 1_000, 1_000, memory=40),
    Attack("slow HTTP header", ("http",), slow_header, 1_500, 1_500, memory=60, seconds=45),
    Attack("slow HTTP body", ("http",), slow_body, 1_500, 1_500, memory=60, seconds=45),
    Attack("HTTP held in silence", ("http",), idle_http, 3_000, 1_500, memory=60),
    Attack("HTTP answers not read", ("http",), slow_answer, 300, 300, memory=60),
    Attack("ping flood", ("ws",), pings, 200, 200, memory=40, seconds=15),
    Attack("heartbeat flood", PLAIN, beats, 200, 200, memory=40, seconds=15),
    Attack("message flood", PLAIN, messages, 200, 200, memory=40, seconds=15),
    Attack("many rooms", PLAIN, rooms, 400, 200, memory=40),
    Attack("huge frames claimed", ("tcp", "ws", "http"), claims, 9_000, 500, memory=40),
    Attack("frames but for a byte", PLAIN, pieces, 4_000, 4_000, memory=60),
    Attack("unfinished fragments", ("ws",), fragments, 1_500, 1_500, memory=120),
    Attack("TLS stalled", ("tls", "wss"), stalled, 3_000, 3_000, memory=300),
    Attack("TLS hellos", ("tls", "wss"), hello_and_away, 6_000, 500, memory=100),
    Attack("never read, drop_newest", PLAIN, never_read, 300, 300, 320, policy="drop_newest", flood=4000),
    Attack("never read, drop_oldest", PLAIN, never_read, 300, 300, 320, policy="drop_oldest", flood=4000),
    Attack("never read, disconnect", PLAIN, never_read, 300, 300, 320, policy="disconnect", flood=4000),
    Attack("hardly read", PLAIN, hardly_read, 300, 300, 320, policy="drop_newest", flood=4000),
)


def named(name: str) -> Attack:
    """The attack of that name. Raises StopIteration where there is none."""
    return next(attack for attack in ATTACKS if attack.name == name)
