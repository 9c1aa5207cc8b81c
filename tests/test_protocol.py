"""The frame codec: its bytes, its limits from both sides, streams cut anywhere."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goim_core.errors import CloseCode, ProtocolError
from goim_core.protocol import (
    HEADER_SIZE,
    INT32_MAX,
    MAX_BODY,
    Decoder,
    Frame,
    Op,
    encode,
    encode_heartbeat_reply,
    frame_at,
    pushable,
    split,
)

INT32 = st.integers(-(2**31), 2**31 - 1)
INT16 = st.integers(-(2**15), 2**15 - 1)
FRAMES = st.builds(Frame, op=INT32, body=st.binary(max_size=64), seq=INT32, ver=INT16)


def drain(decoder: Decoder) -> list[Frame]:
    return list(iter(decoder.next_frame, None))


def header(length: int, header_length: int = 16) -> bytes:
    return struct.pack(">ihhii", length, header_length, 1, Op.SEND_MSG, 0)


def test_the_bytes_of_a_frame() -> None:
    expected = bytes.fromhex("00000013 0010 0001 000003e8 00000005") + b"abc"
    assert encode(1000, b"abc", seq=5) == expected
    assert Frame(1000, b"abc", seq=5).encode() == expected


def test_the_bytes_of_a_heartbeat_reply() -> None:
    assert encode_heartbeat_reply(7, seq=5, ver=2) == encode(Op.HEARTBEAT_REPLY, b"\0\0\0\x07", 5, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("op", 2**31), ("op", -(2**31) - 1), ("seq", 2**31), ("ver", 2**15), ("ver", -(2**15) - 1), ("op", "4")],
)
def test_encode_names_the_field_that_does_not_fit(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        encode(**{"op": 4, field: value})


@pytest.mark.parametrize(
    ("op", "allowed"),
    [
        (3, False),
        (4, True),
        (5, True),
        (6, False),
        (9, False),
        (63, False),
        (64, True),
        (INT32_MAX, True),
        (INT32_MAX + 1, False),
        (-1, False),
    ],
)
def test_pushable(op: int, allowed: bool) -> None:
    assert pushable(op) is allowed


@given(FRAMES)
def test_one_frame_cut_at_every_byte(frame: Frame) -> None:
    data = frame.encode()
    for cut in range(len(data) + 1):
        decoder = Decoder()
        decoder.receive(data[:cut])
        early = drain(decoder)
        assert early == ([frame] if cut == len(data) else [])
        assert decoder.pending == (0 if early else cut)
        decoder.receive(data[cut:])
        assert early + drain(decoder) == [frame]
        assert decoder.pending == 0


@given(st.lists(FRAMES, max_size=8), st.data())
def test_a_stream_cut_anywhere(frames: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(frame.encode() for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder()
    got: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.receive(stream[start:end])
        # Not always drained: bytes may come while frames wait.
        if data.draw(st.booleans()):
            got += drain(decoder)
    assert got + drain(decoder) == frames


def test_a_stream_byte_by_byte() -> None:
    frames = [Frame(4, bytes(n), seq=n) for n in (0, 1, 300)]
    decoder = Decoder()
    got: list[Frame] = []
    for byte in b"".join(frame.encode() for frame in frames):
        decoder.receive(bytes((byte,)))
        got += drain(decoder)
    assert got == frames


@pytest.mark.parametrize("max_body", [0, 1, MAX_BODY])
def test_the_largest_body_is_accepted_and_one_byte_more_refused(max_body: int) -> None:
    decoder = Decoder(max_body)
    decoder.receive(encode(4, bytes(max_body)))
    assert drain(decoder) == [Frame(4, bytes(max_body))]
    decoder.receive(encode(4, bytes(max_body + 1))[:HEADER_SIZE])  # without waiting for the body
    with pytest.raises(ProtocolError, match=rf"at most {max_body + 16}, got {max_body + 17}") as caught:
        decoder.next_frame()
    assert caught.value.code == CloseCode.TOO_BIG


def test_the_default_limit_is_goims() -> None:
    assert Decoder().max_body == 4096


@pytest.mark.parametrize("length", [15, 0, -1, -(2**31)])
def test_a_package_length_below_the_header_is_refused(length: int) -> None:
    decoder = Decoder()
    decoder.receive(header(length))
    with pytest.raises(ProtocolError, match=f"at least 16, got {length}") as caught:
        decoder.next_frame()
    assert caught.value.code == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("header_length", [15, 17, 0, -16])
def test_a_header_length_other_than_16_is_refused(header_length: int) -> None:
    decoder = Decoder()
    decoder.receive(header(16, header_length))
    with pytest.raises(ProtocolError, match=f"expected 16, got {header_length}") as caught:
        decoder.next_frame()
    assert caught.value.code == CloseCode.PROTOCOL_ERROR


def test_a_huge_length_is_too_big() -> None:
    decoder = Decoder()
    decoder.receive(header(INT32_MAX))
    with pytest.raises(ProtocolError) as caught:
        decoder.next_frame()
    assert caught.value.code == CloseCode.TOO_BIG


def test_frames_before_the_bad_one_come_first_and_the_error_stays() -> None:
    decoder = Decoder()
    decoder.receive(encode(4, b"good") + header(15) + encode(4, b"never"))
    assert decoder.next_frame() == Frame(4, b"good")
    for _ in range(3):
        with pytest.raises(ProtocolError, match="got 15"):
            decoder.next_frame()
        decoder.receive(encode(4, b"never"))


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_give_frames_or_a_protocol_error(data: bytes) -> None:
    decoder = Decoder(max_body=64)
    decoder.receive(data)
    try:
        frames = drain(decoder)
    except ProtocolError:
        return
    taken = b"".join(frame.encode() for frame in frames)
    assert data.startswith(taken)
    assert decoder.pending == len(data) - len(taken)


def test_frame_at_looks_where_it_is_told() -> None:
    buffer = b"xyz" + encode(4, b"body") + b"xyz"
    assert frame_at(buffer, 3) == Frame(4, b"body")
    assert frame_at(buffer[:-4], 3) is None
    assert frame_at(buffer, len(buffer)) is None


@given(st.lists(FRAMES, max_size=8))
def test_split_takes_a_batch_apart(frames: list[Frame]) -> None:
    assert split(b"".join(frame.encode() for frame in frames)) == frames


def test_split_takes_bodies_that_no_client_may_send() -> None:
    big = encode(1000, bytes(MAX_BODY + 1))
    assert split(big) == [Frame(1000, bytes(MAX_BODY + 1))]


@pytest.mark.parametrize("batch", [encode(4)[:-1], encode(4) + b"x", encode(4) + encode(4, b"xy")[:-1]])
def test_split_refuses_a_cut_batch(batch: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^batch: \d+ bytes left"):
        split(batch)


def test_split_refuses_a_malformed_frame() -> None:
    with pytest.raises(ProtocolError, match="header length"):
        split(encode(4) + header(16, 17))


@given(st.binary(max_size=40) | FRAMES.map(Frame.encode), st.binary(max_size=2), st.booleans())
def test_a_lone_frame_is_what_the_buffer_would_give(data: bytes, more: bytes, waits: bool) -> None:
    lone, buffered = Decoder(max_body=20), Decoder(max_body=20)
    if waits:
        lone.receive(encode(4)[:5])
    frame = lone.lone_frame(data + more)
    if frame is None:
        return
    assert not waits
    buffered.receive(data + more)
    assert drain(buffered) == [frame]
    assert buffered.pending == lone.pending == 0


@given(FRAMES)
def test_a_whole_frame_is_a_lone_frame(frame: Frame) -> None:
    assert Decoder().lone_frame(frame.encode()) == frame
    assert Decoder(max_body=len(frame.body) - 1).lone_frame(frame.encode()) is None
