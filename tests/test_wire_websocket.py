"""The WebSocket wire: the same events as wsproto gives, without keeping a parser."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from fuzz.oracle import observe, reference
from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.handshake import Terms
from goim_core.protocol import Frame, Op, encode, split
from goim_core.websocket import WebSocketWire
from goim_core.wire import Answer

REQUEST = (
    b"GET /sub HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
# The key and its answer are the example of RFC 6455 section 1.3.
RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
HEARTBEAT = encode(Op.HEARTBEAT, seq=1)
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def open_wire(terms: Terms | None = None, **options: Any) -> WebSocketWire:
    wire = WebSocketWire(terms or Terms(**options))
    wire.receive(REQUEST)
    assert wire.next_event() == Answer(RESPONSE)
    return wire


def client_frame(
    opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0, mask: bool = True
) -> bytes:
    """A client's frame, legal or not, with the shortest length and a fixed key."""
    size = len(payload)
    if size < 126:
        length = bytes((mask << 7 | size,))
    elif size < 1 << 16:
        length = bytes((mask << 7 | 126,)) + size.to_bytes(2)
    else:
        length = bytes((mask << 7 | 127,)) + size.to_bytes(8)
    first = bytes((fin << 7 | rsv << 4 | opcode,))
    if not mask:
        return first + length + payload
    key = b"\x01\x80\xfe\x37"
    return first + length + key + bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    cuts = sorted(cuts)
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        yield data[start:end]


# What clients send: a wsproto client makes the bytes.

SMALL = st.integers(0, 127)
FRAMES = st.builds(
    Frame, op=SMALL, body=st.text("aü€😀", max_size=25).map(str.encode), seq=SMALL, ver=st.just(1)
)  # all of it UTF-8
MESSAGES = st.lists(FRAMES, min_size=1, max_size=4).map(lambda frames: b"".join(f.encode() for f in frames))
CONTROLS = st.one_of(st.builds(Ping, st.binary(max_size=125)), st.builds(Pong, st.binary(max_size=125)))


@st.composite
def steps(draw: st.DrawFn) -> list[Event]:
    """A control frame, or a message in fragments with control frames between them."""
    if draw(st.booleans()):
        return [draw(CONTROLS)]
    message = draw(MESSAGES)
    whole: Any = message.decode() if draw(st.booleans()) else message
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    kind: Any = TextMessage if isinstance(whole, str) else BytesMessage
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    return [kind(part, message_finished=n == len(cuts)) for n, part in enumerate(parts)]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    client = Connection(ConnectionType.CLIENT)
    stream = b""
    for events in draw(st.lists(steps(), max_size=5)):
        for event in events:
            stream += client.send(event)
            if draw(st.integers(0, 3)) == 0:
                stream += client.send(draw(CONTROLS))
    if draw(st.booleans()):
        stream += client.send(
            CloseConnection(code=draw(st.sampled_from([1000, 1001, 3000, 4999])), reason="bye")
        )
    return stream


RAW_FRAMES = st.builds(
    client_frame,
    opcode=st.sampled_from([CONTINUATION, TEXT, BINARY, BINARY, CLOSE, PING, PONG, 3, 11]),
    payload=st.one_of(
        MESSAGES,
        st.sampled_from(
            [b"", b"\x03", b"\x03\xe8", b"\x03\xedx", b"\x03\xe8bye", b"\x03\xe8\xff", b"\x10\x00"]
        ),
        st.binary(max_size=130),
    ),
    fin=st.sampled_from([True, True, True, False]),
    rsv=st.sampled_from([0] * 9 + [1, 2, 4]),
    mask=st.sampled_from([True] * 9 + [False]),
)


@given(streams(), st.data())
def test_any_traffic_gives_what_wsproto_gives(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    assert observe(open_wire(), pieces(stream, cuts)) == reference(stream)


@given(st.lists(RAW_FRAMES, max_size=5).map(b"".join), st.data())
def test_legal_or_not_is_what_wsproto_says(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    assert observe(open_wire(), pieces(stream, cuts)) == reference(stream)


@given(st.binary(max_size=200), st.booleans())
def test_bytes_of_any_kind_give_events_or_a_protocol_error(noise: bytes, opened: bool) -> None:
    wire = open_wire() if opened else WebSocketWire()
    observe(wire, [noise])
    assert isinstance(wire.farewell(Disconnect("bye")), bytes)


def test_a_mixed_stream_byte_by_byte() -> None:
    client = Connection(ConnectionType.CLIENT)
    events = [
        BytesMessage(HEARTBEAT * 9),
        BytesMessage(encode(4, bytes(300))[:100], message_finished=False),
        Ping(b"between"),
        BytesMessage(encode(4, bytes(300))[100:]),
        TextMessage(HEARTBEAT.decode()),
        CloseConnection(code=1000),
    ]
    stream = b"".join(client.send(event) for event in events)
    seen = observe(open_wire(), list(pieces(stream, list(range(len(stream))))))
    assert seen == reference(stream)
    assert len(seen) == 9 + 1 + 1 + 1 + 2


@pytest.mark.parametrize("body", [0, 1, 109, 110, 111, 4096])
def test_the_usual_frame_at_each_length_form(body: int) -> None:
    frame = Frame(4, bytes(n % 251 for n in range(body)), seq=9)
    assert observe(open_wire(), [client_frame(BINARY, frame.encode())]) == [frame]


def test_a_thousand_frames_in_one_packet() -> None:
    packet = b"".join(client_frame(BINARY, encode(2, seq=n)) for n in range(1000))
    assert observe(open_wire(), [packet]) == [Frame(2, seq=n) for n in range(1000)]


def test_a_thousand_frames_in_one_message() -> None:
    message = b"".join(encode(2, seq=n) for n in range(1000))
    assert observe(open_wire(), [client_frame(BINARY, message)]) == [Frame(2, seq=n) for n in range(1000)]


def test_text_cut_inside_a_character() -> None:
    frame = Frame(4, "ü".encode())
    data = client_frame(TEXT, frame.encode()[:-1], fin=False) + client_frame(
        CONTINUATION, frame.encode()[-1:]
    )
    assert observe(open_wire(), [data]) == [frame]


def test_sending_a_frame() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(open_wire().encode(HEARTBEAT))
    (event,) = client.events()
    assert event == BytesMessage(HEARTBEAT)


# What a message may hold


@pytest.mark.parametrize("opcode", [BINARY, TEXT])
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(HEARTBEAT[:15], id="part of a header"),
        pytest.param(encode(4, b"body")[:-1], id="a frame longer than its message"),
        pytest.param(b"\0\0\x10\x10" + HEARTBEAT[4:], id="a length that claims other bytes"),
        pytest.param(b"\0\0\0\x0f" + HEARTBEAT[4:], id="a length below the header"),
        pytest.param(HEARTBEAT[:5] + b"\x11" + HEARTBEAT[6:], id="a header length of 17"),
    ],
)
def test_a_message_that_is_no_frame_is_refused(opcode: int, message: bytes) -> None:
    # The next message must not be taken for the missing bytes.
    stream = client_frame(opcode, message) + client_frame(BINARY, HEARTBEAT)
    assert observe(open_wire(), [stream]) == [("error", CloseCode.PROTOCOL_ERROR)]


@pytest.mark.parametrize("rest", [HEARTBEAT[:8], b"x", encode(4, b"xy")[:-1]])
def test_frames_before_the_bad_part_of_a_message_come_first(rest: bytes) -> None:
    seen = observe(open_wire(), [client_frame(BINARY, HEARTBEAT + rest)])
    assert seen == [Frame(2, seq=1), ("error", CloseCode.PROTOCOL_ERROR)]


def test_a_body_of_max_body_is_accepted_and_one_byte_more_refused() -> None:
    for opcode in (BINARY, TEXT):
        stream = client_frame(opcode, encode(4, bytes(10))) + client_frame(opcode, encode(4, bytes(11)))
        assert observe(open_wire(max_body=10), [stream]) == [
            Frame(4, bytes(10)),
            ("error", CloseCode.TOO_BIG),
        ]


def test_the_default_limit_of_a_body_is_goims() -> None:
    stream = client_frame(BINARY, encode(4, bytes(4096))) + client_frame(BINARY, encode(4, bytes(4097)))
    assert observe(open_wire(), [stream]) == [Frame(4, bytes(4096)), ("error", CloseCode.TOO_BIG)]


@pytest.mark.parametrize("opcode", [BINARY, TEXT])
@pytest.mark.parametrize("limit", [64, 160, 65536])
def test_a_message_of_max_message_is_accepted_and_one_byte_more_refused(opcode: int, limit: int) -> None:
    full = HEARTBEAT * (limit // 16)
    seen = observe(open_wire(max_message=limit), [client_frame(opcode, full)])
    assert seen == [Frame(2, seq=1)] * (limit // 16)
    # The header is enough to refuse it.
    longer = client_frame(opcode, full + b"x")[: -len(full) - 1]
    assert observe(open_wire(max_message=limit), [longer]) == [("error", CloseCode.TOO_BIG)]


def test_the_limit_of_a_message_is_for_all_its_fragments_together() -> None:
    def fragments(*sizes: int) -> bytes:
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        return b"".join(
            client_frame(
                CONTINUATION if n else BINARY, (HEARTBEAT * 9)[end - size : end], fin=end == sum(sizes)
            )
            for n, (size, end) in enumerate(zip(sizes, ends, strict=True))
        )

    assert observe(open_wire(max_message=64), [fragments(30, 4, 30)]) == [Frame(2, seq=1)] * 4
    assert observe(open_wire(max_message=64), [fragments(30, 4, 31)]) == [("error", CloseCode.TOO_BIG)]


def test_control_frames_do_not_count_towards_the_message() -> None:
    stream = (
        client_frame(BINARY, HEARTBEAT[:8], fin=False)
        + client_frame(PING, bytes(125))
        + client_frame(CONTINUATION, HEARTBEAT[8:])
    )
    assert observe(open_wire(max_message=16), [stream]) == [b"\x8a\x7d" + bytes(125), Frame(2, seq=1)]


@pytest.mark.parametrize("size", [2**16, 2**32, 2**63 - 1])
def test_a_64_bit_length_is_refused_before_its_payload(size: int) -> None:
    wire = open_wire(max_message=2**16 - 1)
    assert observe(wire, [b"\x82\xff" + size.to_bytes(8) + b"mask"]) == [("error", CloseCode.TOO_BIG)]


# What RFC 6455 forbids


@pytest.mark.parametrize(
    ("header", "code"),
    [
        pytest.param(client_frame(BINARY, bytes(64), mask=False)[:2], 1002, id="unmasked"),
        pytest.param(client_frame(TEXT, bytes(300), mask=False)[:4], 1002, id="unmasked, 16 bits"),
        pytest.param(client_frame(BINARY, bytes(64), rsv=4)[:6], 1002, id="RSV1"),
        pytest.param(client_frame(BINARY, bytes(64), rsv=1)[:6], 1002, id="RSV3"),
        pytest.param(client_frame(3, bytes(64))[:6], 1002, id="reserved opcode"),
        pytest.param(client_frame(11, bytes(64))[:6], 1002, id="reserved control opcode"),
        pytest.param(client_frame(PING, bytes(126))[:8], 1002, id="control frame of 126 bytes"),
        pytest.param(client_frame(PING, bytes(70000))[:14], 1002, id="control frame with a 64-bit length"),
        pytest.param(client_frame(PING, bytes(5), fin=False)[:6], 1002, id="fragmented control frame"),
        pytest.param(b"\x82\xfe\x00\x7dmask", 1002, id="125 bytes in a 16-bit length"),
        pytest.param(b"\x82\xff" + (65535).to_bytes(8) + b"mask", 1002, id="65535 bytes in a 64-bit length"),
    ],
)
def test_an_illegal_header_is_refused_without_waiting_for_the_payload(header: bytes, code: int) -> None:
    assert observe(open_wire(), [header]) == [("error", code)]
    assert observe(open_wire(), list(pieces(header, list(range(len(header)))))) == [("error", code)]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        pytest.param(client_frame(TEXT, b"\xff" * 16), 1007, id="text that is no UTF-8"),
        pytest.param(client_frame(CONTINUATION, HEARTBEAT), 1002, id="continuation of nothing"),
        pytest.param(
            client_frame(BINARY, HEARTBEAT, fin=False) + client_frame(BINARY, HEARTBEAT),
            1002,
            id="interleaved",
        ),
        pytest.param(client_frame(CLOSE, b"\x03"), 1002, id="half a close code"),
        pytest.param(client_frame(CLOSE, (1005).to_bytes(2)), 1002, id="a close code that nobody may send"),
        pytest.param(
            client_frame(CLOSE, (1000).to_bytes(2) + b"\xff"), 1007, id="close reason that is no UTF-8"
        ),
    ],
)
def test_an_illegal_frame_is_refused(stream: bytes, code: int) -> None:
    assert observe(open_wire(), [stream]) == [("error", code)]


def test_an_error_stays() -> None:
    wire = open_wire()
    wire.receive(client_frame(BINARY, HEARTBEAT) + client_frame(BINARY, HEARTBEAT, mask=False))
    assert wire.next_event() == Frame(2, seq=1)
    told = []
    for _ in range(3):
        with pytest.raises(ProtocolError) as caught:
            wire.next_event()
        told.append((caught.value.reason, caught.value.code))
        wire.receive(client_frame(BINARY, HEARTBEAT))
    assert told == [told[0]] * 3
    wire.farewell(Disconnect(*told[0]))
    with pytest.raises(ProtocolError):
        wire.next_event()


# Control frames


def test_a_ping_is_answered_at_once_also_between_fragments() -> None:
    wire = open_wire()
    wire.receive(client_frame(BINARY, HEARTBEAT[:7], fin=False))
    assert wire.next_event() == Answer(b""), "an event of its own, so that a flood of them is noticed"
    assert wire.next_event() is None
    wire.receive(client_frame(PING, b"still there?"))
    assert wire.next_event() == Answer(b"\x8a\x0cstill there?")
    assert wire.next_event() is None
    wire.receive(client_frame(CONTINUATION, HEARTBEAT[7:]))
    assert wire.next_event() == Frame(2, seq=1)


def test_an_empty_ping_and_a_pong() -> None:
    stream = (
        client_frame(PING)
        + client_frame(PONG, b"unasked")
        + client_frame(PONG)
        + client_frame(BINARY, HEARTBEAT)
    )
    assert observe(open_wire(), [stream]) == [b"\x8a\x00", Frame(2, seq=1)]


@pytest.mark.parametrize(
    ("payload", "reply", "code", "reason"),
    [
        (b"", b"\x88\x00", 1000, "closed by the client"),
        (b"\x03\xe8", b"\x88\x02\x03\xe8", 1000, "closed by the client"),
        (b"\x03\xe9leaving", b"\x88\x02\x03\xe9", 1001, "leaving"),
        (b"\x13\x87", b"\x88\x02\x13\x87", 4999, "closed by the client"),
    ],
)
def test_a_close_is_answered_with_its_code(payload: bytes, reply: bytes, code: int, reason: str) -> None:
    wire = open_wire()
    wire.receive(client_frame(CLOSE, payload) + client_frame(BINARY, HEARTBEAT))
    answer = wire.next_event()
    assert isinstance(answer, Answer)
    assert answer.data == reply
    assert answer.close is not None
    assert (answer.close.code, answer.close.reason) == (code, reason)
    # What follows a close is not looked at, and nothing more is said.
    wire.receive(client_frame(BINARY, HEARTBEAT))
    assert wire.next_event() is None
    assert wire.farewell(Disconnect("bye")) == b""


# Farewell


def read_farewell(data: bytes) -> tuple[Any, CloseConnection]:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    message, close = client.events()
    assert isinstance(message, BytesMessage)
    assert isinstance(close, CloseConnection)
    assert client.state is ConnectionState.REMOTE_CLOSING
    (frame,) = split(bytes(message.data))
    assert (frame.op, frame.seq) == (Op.DISCONNECT_REPLY, 0)
    return json.loads(frame.body), close


@pytest.mark.parametrize(
    "before",
    [
        b"",
        client_frame(BINARY, HEARTBEAT)[:9],
        client_frame(BINARY, HEARTBEAT[:7], fin=False),
        client_frame(BINARY, HEARTBEAT, mask=False),
    ],
    ids=["idle", "within a frame", "within a message", "after an error"],
)
def test_farewell_says_why_as_a_frame_and_as_a_close(before: bytes) -> None:
    wire = open_wire()
    observe(wire, [before])
    body, close = read_farewell(wire.farewell(Disconnect("another device", CloseCode.REPLACED)))
    assert body == {"code": 4004, "message": "another device"}
    assert (close.code, close.reason) == (4004, "another device")
    assert wire.farewell(Disconnect("again")) == b""


def test_after_the_farewell_no_frame_comes() -> None:
    wire = open_wire()
    wire.receive(client_frame(BINARY, HEARTBEAT * 3) + client_frame(BINARY, HEARTBEAT))
    assert wire.next_event() == Frame(2, seq=1)
    wire.farewell(Disconnect("enough"))
    wire.receive(client_frame(BINARY, HEARTBEAT))
    assert wire.next_event() is None


@pytest.mark.parametrize(
    ("reason", "told"), [("a" * 123, 123), ("a" * 124, 123), ("ü" * 62, 122), ("\ud83d", 1)]
)
def test_the_close_reason_is_cut_at_a_character(reason: str, told: int) -> None:
    body, close = read_farewell(open_wire().farewell(Disconnect(reason)))
    assert close.reason is not None
    assert len(close.reason.encode()) == told
    assert body["message"].startswith(close.reason)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (CloseCode.HANDSHAKE_TIMEOUT, b"408 Request Timeout"),
        (CloseCode.GOING_AWAY, b"503 Service Unavailable"),
        (CloseCode.PROTOCOL_ERROR, b"400 Bad Request"),
    ],
)
def test_before_the_handshake_the_farewell_is_an_http_response(code: int, status: bytes) -> None:
    wire = WebSocketWire()
    wire.receive(REQUEST[:30])
    assert wire.next_event() is None
    said = wire.farewell(Disconnect("too\r\nlate", code))
    assert said.startswith(b"HTTP/1.1 " + status + b"\r\n")
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert body == b"too\r\nlate\n"
    wire.receive(REQUEST[30:])
    assert wire.next_event() is None
    assert wire.farewell(Disconnect("again")) == b""


# Memory: most connections are idle


def test_an_idle_wire_owns_nothing_but_itself() -> None:
    terms = Terms()
    wires = [open_wire(terms), open_wire(terms)]
    traffic = [
        client_frame(BINARY, HEARTBEAT * 2),
        client_frame(BINARY, HEARTBEAT)[:5],
        client_frame(BINARY, HEARTBEAT)[5:],
        client_frame(TEXT, HEARTBEAT),
        client_frame(PING, b"p") + client_frame(PONG, b"p"),
        client_frame(BINARY, HEARTBEAT[:9], fin=False) + client_frame(CONTINUATION, HEARTBEAT[9:]),
    ]
    for wire in wires:
        assert len(observe(wire, traffic)) == 6
        wire.forget_handshake()
    assert sys.getsizeof(wires[0]) <= 120
    first, second = (list(map(id, gc.get_referents(wire))) for wire in wires)
    assert first == second  # whatever they refer to, they share


@pytest.mark.parametrize(
    "end",
    [
        client_frame(BINARY, b"\0" * 16),
        client_frame(BINARY, HEARTBEAT + b"x"),
        client_frame(BINARY, HEARTBEAT, fin=False) + client_frame(TEXT),
        client_frame(CLOSE),
    ],
    ids=["frame error", "message error", "WebSocket error", "close"],
)
def test_after_its_end_a_wire_holds_no_bytes(end: bytes) -> None:
    wire = open_wire()
    observe(wire, [end + bytes(10_000)])
    wire.receive(bytes(10_000))
    held = [thing for thing in gc.get_referents(wire) if isinstance(thing, bytes | bytearray)]
    assert sum(map(len, held)) == 0


@pytest.mark.parametrize("rest", [b"", b"\0"])
def test_a_handshake_frames_and_errors_leave_nothing_to_the_garbage_collector(rest: bytes) -> None:
    gc.collect()
    gc.disable()
    try:
        wire = open_wire()
        assert len(observe(wire, [client_frame(BINARY, HEARTBEAT + rest)])) == 1 + len(rest)
        del wire
        assert gc.collect() == 0
    finally:
        gc.enable()


@given(st.binary(min_size=1, max_size=8) | st.sampled_from([encode(4, b"x"), HEARTBEAT, HEARTBEAT[:-1]]))
def test_a_lone_frame_is_taken_only_where_nothing_waits(begun: bytes) -> None:
    message = client_frame(BINARY, HEARTBEAT)
    wire = open_wire()
    assert wire.lone(message) == Frame(Op.HEARTBEAT, seq=1)
    assert wire.lone(message + b"\x82") is None
    assert wire.lone(client_frame(BINARY, HEARTBEAT + HEARTBEAT)) is None
    wire.receive(client_frame(BINARY, begun)[:-1])
    assert wire.next_event() is None
    assert wire.lone(message) is None
    assert WebSocketWire().lone(message) is None, "the handshake comes first"
