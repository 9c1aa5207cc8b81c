"""Malformed sessions, from a seed: valid ones of each door, with something done to their bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from fuzz.cuts import MAX_CUTS, joined
from fuzz.messages import REQUEST
from goim_core.protocol import encode

__all__ = ["DOORS", "SESSIONS", "as_input", "malformed"]

EDGES = (
    *(
        0,
        1,
        15,
        16,
        17,
        0x7F,
        0x80,
        0xFF,
        4112,
        4113,
        0x7FFF,
        0x8000,
        0xFFFF,
        1 << 16,
        (1 << 31) - 1,
        1 << 31,
    ),
    *((1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
WORDS = (
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b"\xff\xff",
        b"\xed\xa0\x80",
        b"{",
        b"[[[[[[[[",
        b'"',
        b"%00",
        b"1e999",
        b"://",
    ),
)
BODIES = (b"live://2", b"1000,1001", b"[1,2]", b'{"room_id":"live://1"}', b"1", b"0,10", b"hello", b"")


def tcp(random: Random) -> list[bytes]:
    """The auth frame, and some more."""
    return [_auth(random), *(_frame(random) for _ in range(random.randrange(6)))]


def websocket(random: Random) -> list[bytes]:
    """The handshake, then the same in messages, with control frames among them."""
    messages = [_masked(random, 0x82, _auth(random))]
    for _ in range(random.randrange(6)):
        first = random.choice((0x82, 0x82, 0x82, 0x81, 0x02, 0x80, 0x89, 0x8A, 0x88))
        body = random.choice((b"", b"\x03\xe8bye", b"hi")) if first & 8 else _frame(random)
        messages.append(_masked(random, first, body))
    return [REQUEST, *messages]


def http(random: Random) -> list[bytes]:
    """Requests to the push API, one after the other."""
    requests = []
    for _ in range(random.randrange(1, 4)):
        target, body = random.choice(CALLS)
        line = b"%b /goim/%b HTTP/1.1\r\nHost: 127.0.0.1\r\n" % (b"POST" if body else b"GET", target)
        if not body:
            requests.append(line + b"\r\n")
        elif random.random() < 0.5:
            requests.append(line + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        else:
            chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            requests.append(line + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
    return requests


CALLS = (
    (b"push/keys?operation=1000&keys=c1&keys=c2", b"hello"),
    (b"push/mids?operation=1000&mids=1&mids=-2", b"hello"),
    (b"push/room?operation=1000&type=live&room=1", b"hello"),
    (b"push/all?operation=1001&speed=0", b"hello"),
    (b"online/top?type=live&limit=10", b""),
    (b"online/room?type=live&rooms=1&rooms=2", b""),
    (b"online/total", b""),
    (b"nodes/weighted?platform=web", b""),
)
SESSIONS: dict[str, Callable[[Random], list[bytes]]] = {"tcp": tcp, "ws": websocket, "http": http}
DOORS = tuple(SESSIONS)


def malformed(random: Random, door: str) -> bytes:
    """A session with one to six faults; every other one begins well, so that the rest is read at all."""
    parts = SESSIONS[door](random)
    intact = random.randrange(len(parts)) if random.random() < 0.5 else 0
    good, bad = b"".join(parts[:intact]), bytearray(b"".join(parts[intact:]))
    before = bytes(bad)
    for _ in range(random.randrange(1, 7)):
        random.choice(FAULTS)(random, bad)
    return good + (bytes(bad) if bad != before else bytes(reversed(before)))


def as_input(random: Random, stream: bytes) -> bytes:
    """``stream`` cut at random, as the targets take it."""
    return joined(stream, [random.randrange(1, 256) for _ in range(random.randrange(MAX_CUTS))])


def _auth(random: Random) -> bytes:
    # Of few users, so that connections are taken over, and of few rooms.
    mid = random.randrange(1, 1000)
    token = {
        "mid": mid,
        "room_id": f"live://{mid % 10}",
        "platform": "web",
        "accepts": [1000, 18, *range(20, 41)],
    }
    return encode(7, json.dumps(token).encode(), 1)


def _frame(random: Random) -> bytes:
    op = random.choice((2, 2, 4, 12, 14, 16, *range(20, 40, 2), 1000))
    return encode(op, random.choice(BODIES), random.randrange(1 << 16))


def _masked(random: Random, first: int, payload: bytes) -> bytes:
    key = random.randbytes(4)
    size = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
    return bytes((first,)) + size + key + bytes(byte ^ key[n & 3] for n, byte in enumerate(payload))


# Faults. Each changes the bytes in place.


def _flip(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _overwrite(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _edge(random: Random, data: bytearray) -> None:
    size = random.choice((1, 2, 4, 8))
    at = random.randrange(len(data) + 1)
    data[at : at + size] = (random.choice(EDGES) & ((1 << 8 * size) - 1)).to_bytes(size)


def _cut_off(random: Random, data: bytearray) -> None:
    del data[random.randrange(len(data) + 1) :]


def _remove(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    del data[at : at + random.randrange(1, 20)]


def _repeat(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = data[at : at + random.randrange(1, 60)] * random.choice((1, 2, 50))


def _noise(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.randbytes(random.randrange(1, 40))


def _word(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(WORDS)


FAULTS = (_flip, _flip, _overwrite, _edge, _edge, _cut_off, _remove, _repeat, _noise, _word)
