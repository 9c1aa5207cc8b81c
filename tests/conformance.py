"""Cases of RFC 6455: what a client sends, and what a server has to answer. No I/O.

They follow the families that WebSocket test suites have in common (1 framing, 2 pings, 3 reserved bits, 4 opcodes,
5 fragmentation, 6 UTF-8, 7 closing, 9 limits, 10 automatic fragmentation). Frames are made by the library
``websockets``; what is malformed is one of its frames with other bits. A message holds goim frames, and the
server's message hook echoes them, so the echo of a message is that message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen
from websockets.frames import Close, Frame, Opcode

TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
CLOSE, PING, PONG = Opcode.CLOSE, Opcode.PING, Opcode.PONG
SAY = 4
"""goim's operation for a message, whose reply here has the same body."""

Seen = tuple[str, Any]
"""("message", bytes), ("pong", bytes), ("fails", code): told and closed by the server, ("closes", code or None):
the server's answer to a close frame, or ("open", None): it goes on."""
OPEN: Seen = ("open", None)


@frozen
class Case:
    """``sent`` in these pieces has to be answered with ``seen``; ``section`` of RFC 6455 says so."""

    id: str
    section: str
    sent: list[bytes]
    seen: list[Seen]


def goim(body: bytes) -> bytes:
    return (16 + len(body)).to_bytes(4) + b"\0\x10\0\1\0\0\0\4\0\0\0\1" + body


def message(size: int, *, text: bool = False) -> bytes:
    """Goim frames of ``size`` bytes together, 16 or more; as text no byte of a header is above 0x7f."""
    frames = b""
    while size:
        part = size
        if text:
            part = next(
                n for n in range(min(size, 0x7F7F), 15, -1) if n & 0x80 == 0 and not 0 < size - n < 16
            )
        frames += goim(b"*" * (part - 16))
        size -= part
    return frames


def raw(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """A frame, legal or not."""
    legal = Frame(BINARY, data).serialize(mask=mask)
    return bytes((fin << 7 | rsv << 4 | opcode,)) + legal[1:]


def fragments(opcode: Opcode, *parts: bytes, between: bytes = b"") -> list[bytes]:
    """One message in several frames, with ``between`` after each but the last."""
    last = len(parts) - 1
    return [
        Frame(CONTINUATION if n else opcode, part, fin=n == last).serialize(mask=True) + between * (n < last)
        for n, part in enumerate(parts)
    ]


def chopped(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def echo(*messages: bytes) -> list[Seen]:
    return [("message", each) for each in messages]


def pongs(*payloads: bytes) -> list[Seen]:
    return [("pong", each) for each in payloads]


def fails(code: int = 1002) -> list[Seen]:
    return [("fails", code)]


HELLO = goim(b"Hello")
SIZES = (125, 126, 127, 128, 65535, 65536)
# Kosme in Greek: two and three bytes each.
GREEK = "κόσμε".encode()


def framing() -> Iterator[Case]:
    for opcode, kind in ((TEXT, "text"), (BINARY, "binary")):
        for size in SIZES:
            data = message(size, text=opcode is TEXT)
            yield Case(f"1 {kind} {size}", "5.2", [raw(opcode, data)], [*echo(data), OPEN])
        for size, chop in ((125, 1), (126, 1), (128, 1), (65536, 997)):
            data = message(size, text=opcode is TEXT)
            sent = chopped(raw(opcode, data), chop)
            yield Case(f"1 {kind} {size} chopped by {chop}", "5.2", sent, [*echo(data), OPEN])
    whole = raw(BINARY, HELLO)
    key, payload = whole[2:6], whole[6:]
    wide, wider = b"\x82\xfe" + len(HELLO).to_bytes(2), b"\x82\xff" + len(HELLO).to_bytes(8)
    yield Case("1 length of 16 bits that needs 7", "5.2", [wide + key + payload], fails())
    yield Case("1 length of 64 bits that needs 7", "5.2", [wider + key + payload], fails())
    yield Case("1 length of 64 bits that needs 16", "5.2", [b"\x82\xff" + (65535).to_bytes(8) + key], fails())
    yield Case("1 not masked", "5.1", [raw(BINARY, HELLO, mask=False)], fails())
    yield Case("1 ping not masked", "5.1", [raw(PING, b"x", mask=False)], fails())
    zero = whole[:2] + bytes(4) + HELLO
    yield Case("1 mask of zeros", "5.3", [zero], [*echo(HELLO), OPEN])


def pings() -> Iterator[Case]:
    section = "5.5.2"
    most = bytes(range(125))
    yield Case("2.1 ping", section, [raw(PING)], [*pongs(b""), OPEN])
    yield Case("2.2 ping with text", section, [raw(PING, b"Hello")], [*pongs(b"Hello"), OPEN])
    yield Case(
        "2.3 ping with bytes", section, [raw(PING, b"\0\xff\xfe\xfd")], [*pongs(b"\0\xff\xfe\xfd"), OPEN]
    )
    yield Case("2.4 ping of 125", section, [raw(PING, most)], [*pongs(most), OPEN])
    yield Case("2.5 ping of 126", "5.5", [raw(PING, bytes(126))], fails())
    yield Case("2.5 pong of 126", "5.5", [raw(PONG, bytes(126))], fails())
    yield Case("2.6 ping of 125 by octets", section, chopped(raw(PING, most), 1), [*pongs(most), OPEN])
    yield Case("2.7 pong unasked", "5.5.3", [raw(PONG)], [OPEN])
    yield Case("2.8 pong unasked with payload", "5.5.3", [raw(PONG, b"Hello")], [OPEN])
    yield Case("2.9 pong, then ping", "5.5.3", [raw(PONG, b"Hello"), raw(PING, b"x")], [*pongs(b"x"), OPEN])
    ten = [b"payload %d" % n for n in range(10)]
    sent = b"".join(raw(PING, each) for each in ten)
    yield Case("2.10 ten pings", section, [sent], [*pongs(*ten), OPEN])
    yield Case("2.11 ten pings by octets", section, chopped(sent, 1), [*pongs(*ten), OPEN])


def reserved() -> Iterator[Case]:
    for rsv in range(1, 8):
        yield Case(f"3 rsv {rsv}", "5.2", [raw(TEXT, HELLO, rsv=rsv)], fails())
        later = [raw(BINARY, HELLO), raw(PING, b"x", rsv=rsv), raw(BINARY, HELLO)]
        yield Case(f"3 rsv {rsv} in a ping after a message", "5.2", later, [*echo(HELLO), *fails()])
        yield Case(f"3 rsv {rsv} in a close", "5.2", [raw(CLOSE, rsv=rsv)], fails())
    later = fragments(BINARY, HELLO[:9], HELLO[9:])
    yield Case("3 rsv in a continuation", "5.2", [later[0], raw(0, HELLO[9:], rsv=4)], fails())


def opcodes() -> Iterator[Case]:
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield Case(f"4 opcode {opcode}", "5.2", [raw(opcode)], fails())
        sent = [raw(BINARY, HELLO), raw(opcode, b"x"), raw(PING)]
        yield Case(f"4 opcode {opcode} with payload after a message", "5.2", sent, [*echo(HELLO), *fails()])


def fragmentation() -> Iterator[Case]:
    section = "5.4"
    one, two = HELLO[:9], HELLO[9:]
    both = fragments(BINARY, one, two)
    good = [*echo(HELLO), OPEN]
    yield Case("5.1 ping in fragments", "5.5", [raw(PING, b"a", fin=False), raw(0, b"b")], fails())
    yield Case("5.2 pong in fragments", "5.5", [raw(PONG, b"a", fin=False), raw(0, b"b")], fails())
    yield Case("5.3 text in fragments", section, fragments(TEXT, one, two), good)
    yield Case("5.4 binary in fragments", section, [b"".join(both)], good)
    yield Case("5.5 by octets", section, chopped(b"".join(both), 1), good)
    pinged = fragments(BINARY, one, two, between=raw(PING, b"x"))
    yield Case("5.6 ping between", section, pinged, [*pongs(b"x"), *good])
    yield Case("5.8 ping between by octets", section, chopped(b"".join(pinged), 1), [*pongs(b"x"), *good])
    many = fragments(BINARY, *chopped(HELLO, 1), between=raw(PING, b"x"))
    yield Case("5.19 ping after each octet", section, many, [*pongs(*[b"x"] * (len(HELLO) - 1)), *good])
    hollow = fragments(BINARY, b"", one, b"", two, b"")
    yield Case("5 empty fragments", section, hollow, good)
    for fin in (True, False):
        alone = raw(0, b"x", fin=fin)
        yield Case(f"5.9 continuation of nothing, fin {fin:d}", section, [alone, raw(BINARY, HELLO)], fails())
        yield Case(f"5.15 after a message, fin {fin:d}", section, [*both, alone], [*echo(HELLO), *fails()])
    for opcode in (TEXT, BINARY):
        for fin in (True, False):
            sent = [both[0], raw(opcode, HELLO, fin=fin)]
            yield Case(f"5.18 new message {opcode:d} within another, fin {fin:d}", section, sent, fails())


VALID = (
    *(b"\0", b"\x7f", "\u0080".encode(), "\u07ff".encode(), "\u0800".encode(), "\ud7ff".encode()),
    *("\ue000".encode(), "\ufffd".encode(), "\ufffe".encode(), "\uffff".encode(), "\U00010000".encode()),
    *("\U0001fffe".encode(), "\U0010fffe".encode(), "\U0010ffff".encode(), GREEK),
)
INVALID = (
    *(
        b"\x80",
        b"\xbf",
        b"\x80\xbf",
        b"\x80\xbf\x80\xbf\x80\xbf\x80",
        bytes(range(0x80, 0xC0)),
    ),  # continuations
    *(
        b"\xc0 ",
        b"\xc3 ",
        b"\xdf ",
        b"\xe0 ",
        b"\xef ",
        b"\xf0 ",
        b"\xf4 ",
        b"\xf8 ",
        b"\xfc ",
    ),  # no continuation
    *(b"\xc3", b"\xdf", b"\xe0\x80", b"\xe2\x82", b"\xef\xbf", b"\xf0\x90\x80", b"\xf7\xbf\xbf"),  # cut off
    *(b"\xfe", b"\xff", b"\xfe\xfe\xff\xff", b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"),  # never
    *(
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xe0\x80\xaf",
        b"\xe0\x9f\xbf",
        b"\xf0\x80\x80\xaf",
        b"\xf0\x8f\xbf\xbf",
    ),  # overlong
    *(b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\x80\xed\xb0\x80"),  # surrogates
    *(b"\xf4\x90\x80\x80", b"\xf7\xbf\xbf\xbf", b"\xc0\x80", b"\xe0\x80\x80"),  # beyond, and zero in disguise
    GREEK + b"\xed\xa0\x80edited",
)


def utf8() -> Iterator[Case]:
    section = "8.1"
    for said in VALID:
        data = goim(said)
        yield Case(f"6 {said.hex()}", section, [raw(TEXT, data)], [*echo(data), OPEN])
    data = goim(GREEK)
    yield Case(
        "6.2 in fragments of an octet", section, fragments(TEXT, *chopped(data, 1)), [*echo(data), OPEN]
    )
    yield Case("6.2 by octets", section, chopped(raw(TEXT, data), 1), [*echo(data), OPEN])
    for said in INVALID:
        data = goim(said)
        yield Case(f"6 not {said.hex()[:40]}", section, [raw(TEXT, data)], fails(1007))
        yield Case(f"6 as bytes {said.hex()[:40]}", "5.6", [raw(BINARY, data)], [*echo(data), OPEN])
    bad = goim(b"\xf4\x90\x80\x80")
    yield Case("6.4 in fragments of an octet", section, fragments(TEXT, *chopped(bad, 1)), fails(1007))
    early = fragments(TEXT, bad[:16], bad[16:], b"more")[:2]
    yield Case("6.4.1 refused before the last fragment", section, early, fails(1007))
    split = fragments(TEXT, goim(b"\xf4\x90\x80\x80")[:17], b"\x90", b"\x80\x80")[:2]
    yield Case("6.4.2 refused within a character", section, split, fails(1007))


def closing() -> Iterator[Case]:
    section = "5.5.1"
    bye = raw(CLOSE, b"\x03\xe8")
    normal: list[Seen] = [("closes", 1000)]
    yield Case("7.1.1 message, close", section, [raw(BINARY, HELLO), bye], [*echo(HELLO), *normal])
    yield Case("7.1.2 two closes", section, [bye + bye], normal)
    yield Case("7.1.3 ping after close", section, [bye + raw(PING, b"x")], normal)
    yield Case("7.1.4 message after close", section, [bye + raw(BINARY, HELLO)], normal)
    one, two = fragments(BINARY, HELLO[:9], HELLO[9:])
    yield Case("7.1.5 close within a message", section, [one + bye + two], normal)
    large = message(65536)
    sent = [raw(BINARY, large), bye, raw(PING)]
    yield Case("7.1.6 large message, close, ping", section, sent, [*echo(large), *normal])
    yield Case("7.3.1 close without a code", section, [raw(CLOSE)], [("closes", None)])
    yield Case("7.3.2 close of one byte", section, [raw(CLOSE, b"\x03")], fails())
    reason = Close(1000, "Hello World!").serialize()
    yield Case("7.3.4 close with a reason", section, [raw(CLOSE, reason)], normal)
    longest = Close(1000, "*" * 123).serialize()
    yield Case("7.3.5 longest reason", section, [raw(CLOSE, longest)], normal)
    yield Case("7.3.5 by octets", section, chopped(raw(CLOSE, longest), 1), normal)
    yield Case("7.3.6 longer reason", section, [raw(CLOSE, longest + b"*")], fails())
    yield Case(
        "7.5.1 reason that is no UTF-8", "8.1", [raw(CLOSE, b"\x03\xe8\xce\xba\xed\xa0\x80")], fails(1007)
    )
    yield Case("7 close in fragments", "5.5", [raw(CLOSE, b"\x03\xe8", fin=False)], fails())
    for code in (*range(1000, 1004), *range(1007, 1014), 3000, 3999, 4000, 4999):
        yield Case(f"7.7 code {code}", "7.4", [raw(CLOSE, code.to_bytes(2))], [("closes", code)])
    # Registered in 2016, after the RFC: a gateway's word to a client. wsproto does not know it.
    yield Case("7.7 code 1014", "7.4", [raw(CLOSE, (1014).to_bytes(2))], fails())
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        yield Case(f"7.9 code {code}", "7.4", [raw(CLOSE, code.to_bytes(2))], fails())


def limits() -> Iterator[Case]:
    section = "10.4"
    for size in (65537, 1 << 20, 1 << 40, (1 << 63) - 1):
        for opcode in (TEXT, BINARY):
            head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8) + b"mask"
            yield Case(f"9 message {opcode:d} of {size}", section, [head], fails(1009))
    yield Case("9 length above 2^63", "5.2", [b"\x82\xff" + (1 << 63).to_bytes(8) + b"mask"], fails(1009))
    large = message(65536)
    for size in (64, 1300, 32768):
        sent = [b"".join(fragments(BINARY, *chopped(large, size)))]
        yield Case(f"10 65536 in fragments of {size}", "5.4", sent, [*echo(large), OPEN])
    longer = fragments(BINARY, large[:40000], large[40000:], b"*")
    yield Case("9 fragments of 65537", section, longer, fails(1009))
    whole = [raw(BINARY, HELLO)] * 100
    yield Case("9 a hundred messages at once", section, [b"".join(whole)], [*echo(*[HELLO] * 100), OPEN])
    # Not of the RFC, but of what a message is here.
    for opcode in (TEXT, BINARY):
        yield Case(f"goim: empty message {opcode:d}", "5.6", [raw(opcode)], fails())
        yield Case(f"goim: no frame {opcode:d}", "5.6", [raw(opcode, b"Hello")], fails())


CASES = [
    *framing(), *pings(), *reserved(), *opcodes(), *fragmentation(), *utf8(), *closing(), *limits(),
]  # fmt: skip
