"""All targets by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from fuzz import answers, frames, handshake, messages, nodes, operations, pushes, requests, sealed, tokens

__all__ = ["ALL", "TARGETS", "Target"]


@frozen
class Target:
    """``check`` takes any bytes and raises nothing, unless there is a fault; ``seeds`` are good inputs.

    ``longest`` in bytes is how long the fuzzer makes them; ``words`` are what it puts in.
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    longest: int
    words: tuple[bytes, ...] = ()


HEADER = b"\x00\x10\x00\x01\x00\x00\x00"
"""The middle of every frame's header: its length, version 1, an operation below 256."""
CLAIMS = tuple(
    b'"%b":' % name for name in (b"mid", b"key", b"room_id", b"platform", b"accepts", b"exp", b"data")
)
JSON = (b'{"', b"[[[[", b"]]]]", b"null", b"true", b"1e999", b"NaN", b"-9223372036854775809", b'"\\ud83d"')
HANDSHAKE = (
    *(b"Upgrade: ", b"Connection: ", b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Version: ", b"Host: "),
    *(b"Sec-WebSocket-Extensions: ", b"Sec-WebSocket-Protocol: ", b"websocket", b"\r\n\r\n", b"\r\n\t"),
    *(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1\r\n"),
)
HTTP = (
    *(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"\r\n0\r\n\r\n"),
    *(b"POST ", b"GET ", b"HEAD ", b"CONNECT ", b"HTTP/1.0\r\n", b"Connection: close\r\n", b"http://["),
    *(b"/goim/push/keys", b"/goim/push/mids", b"/goim/push/room", b"/goim/push/all", b"/goim/online/top"),
    *(b"&operation=", b"&type=", b"&room=", b"&keys=", b"&mids=", b"&speed=", b"%ff", b"%ed%a0%80"),
)

TARGETS = {
    "frames": Target(frames.check, frames.seeds, 8192, (HEADER, b"\x00\x00\x10\x10", b"\x7f\xff\xff\xff")),
    "handshake": Target(handshake.check, handshake.seeds, 9000, HANDSHAKE),
    "messages": Target(
        messages.check,
        messages.seeds,
        4096,
        (b"\x00\x00\x00\x10" + HEADER, b"\x82\x90", b"\x89\x80", b"\x88\x82"),
    ),
    "requests": Target(requests.check, requests.seeds, 4096, HTTP),
    "sealed": Target(
        sealed.check, sealed.seeds, 2048, (*HTTP, b"\x16\x03\x01", b"\x17\x03\x03", b"\x15\x03\x03")
    ),
    "tokens": Target(tokens.check, tokens.seeds, 4096, (*CLAIMS, *JSON, b"goim1.", b"Cookie: token=")),
    "operations": Target(operations.check, operations.seeds, 1024, (b"live://", b'"room_id":', *JSON)),
    "pushes": Target(pushes.check, pushes.seeds, 1024, (b"\xa2\x06", b"\xff" * 9 + b"\x01", b"live://")),
    "nodes": Target(nodes.check, nodes.seeds, 4096, (b'"metadata":', b'"addrs":', b'"weight":', *JSON)),
    "answers": Target(
        answers.check, answers.seeds, 4096, (HEADER, b"\x82\x10", b"\x88\x02\x03\xe8", b'"code":')
    ),
}


def _any(data: bytes) -> None:
    targets = list(TARGETS.values())
    if data:
        targets[data[0] % len(targets)].check(data[1:])


def _seeds() -> Iterator[bytes]:
    for number, target in enumerate(TARGETS.values()):
        for seed in target.seeds():
            yield bytes((number,)) + seed


ALL = Target(_any, _seeds, max(target.longest for target in TARGETS.values()))
"""Every target: the first byte says which."""
