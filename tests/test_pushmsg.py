"""goim's PushMsg in protobuf, compared with what Google's implementation makes of the same fields."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import message
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.pushes import Peer
from goim_core.adapters.pushmsg import decode_push, encode_push
from goim_core.queue import PushMsg, PushType

FIELDS = ("type", "operation", "speed", "server", "room", "msg")
int32s = st.integers(-(2**31), 2**31 - 1)
counts = st.integers(0, 2**31 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)
rooms = st.builds("{}://{}".format, names, names)
inboxes = st.lists(st.tuples(texts, counts), max_size=40)


@st.composite
def pushes(draw: st.DrawFn) -> PushMsg:
    inbox = draw(inboxes)
    kind = draw(st.sampled_from(PushType))
    return PushMsg(
        kind,
        draw(int32s),
        draw(st.binary(max_size=300)),
        server=draw(texts),
        room=draw(rooms if kind is PushType.ROOM else texts),
        keys=tuple(key for key, _ in inbox),
        seqs=tuple(seq for _, seq in inbox) if draw(st.booleans()) else (),
        speed=draw(counts),
    )


def as_peer(msg: PushMsg) -> Any:
    values = {name: getattr(msg, name) for name in FIELDS}
    return Peer(**values, keys=msg.keys, seqs=msg.seqs)


def read_by_peer(data: bytes) -> Any:
    peer = Peer()
    peer.ParseFromString(data)
    return peer


@given(pushes())
def test_bytes_are_those_of_protobuf(msg: PushMsg) -> None:
    assert encode_push(msg) == as_peer(msg).SerializeToString(deterministic=True)


@given(pushes())
def test_what_is_encoded_is_decoded(msg: PushMsg) -> None:
    assert decode_push(encode_push(msg)) == msg


def test_a_push_as_goim_writes_it() -> None:
    msg = PushMsg(PushType.ROOM, 1000, b"hi", room="live://1000")
    assert encode_push(msg) == b"\x08\x01\x10\xe8\x07*\x0blive://1000:\x02hi"
    assert decode_push(b"\x08\x01\x10\xe8\x07*\x0blive://1000:\x02hi") == msg
    assert encode_push(PushMsg(PushType.PUSH, -1, b"")) == b"\x10" + b"\xff" * 9 + b"\x01"


field = st.one_of(
    st.sampled_from([b"\x08\x01", b"*\x03a:/", b"\x32\x01a", b"\xa0\x06\x01", b"\xa2\x06\x02\x01\x02"]),
    st.binary(min_size=1, max_size=12),
    pushes().map(encode_push),
)


@given(st.lists(field, max_size=6).map(b"".join))
@example(b"\x22\x01\xff\x22\x01a")  # the first of two texts is no UTF-8
@example(b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02")
@example(b"\x10" + b"\x80" * 10 + b"\x00")
@example(b"\x10\xff\xff\xff\xff\x1f")
@example(b"\x88\x80\x80\x80\x80\x00\x01")
@example(b"\x80\x80\x80\x80\x10\x01")
def test_any_bytes_are_a_push_as_protobuf_reads_it_or_a_value_error(data: bytes) -> None:
    try:
        msg = decode_push(data)
    except ValueError as error:
        assert type(error) is ValueError  # one of another kind would not name the field
        assert str(error).partition(":")[0].split()[0] in (*FIELDS, "keys", "seqs", "tag", "field")
        return
    peer = read_by_peer(data)
    assert [getattr(peer, name) for name in FIELDS] == [getattr(msg, name) for name in FIELDS]
    assert (tuple(peer.keys), tuple(peer.seqs)) == (msg.keys, msg.seqs)


@given(pushes(), st.data())
def test_what_is_cut_off_inside_a_field_is_refused_as_protobuf_refuses_it(
    msg: PushMsg, data: st.DataObject
) -> None:
    encoded = encode_push(msg)
    part = encoded[: data.draw(st.integers(0, len(encoded)))]
    try:
        read_by_peer(part)
    except message.DecodeError:
        with pytest.raises(ValueError, match="^[a-z]+( [0-9]+)?: "):
            decode_push(part)


def test_numbers_may_be_packed_or_not_or_both() -> None:
    keys = b"\x32\x01a\x32\x01b\x32\x01c"
    for seqs in (b"\xa0\x06\x01\xa0\x06\x02\xa0\x06\x03", b"\xa2\x06\x02\x01\x02\xa0\x06\x03"):
        assert decode_push(keys + seqs).seqs == (1, 2, 3)


def test_unknown_fields_are_passed_over() -> None:
    unknown = b"\x40\x05" + b"\x49" + bytes(8) + b"\x52\x03abc" + b"\x5d" + bytes(4)
    msg = PushMsg(PushType.BROADCAST, 5, b"x", speed=7)
    assert decode_push(unknown + encode_push(msg) + unknown) == msg


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x08\x03", "type: expected 0 to 2, got 3"),
        (b"\x08\x80", "type: a number without an end"),
        (b"\x0a\x01a", "type: wire type 2 is not this field's"),
        (b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "operation: a number of more than 64 bits"),
        (b"\x18" + b"\xff" * 9 + b"\x01", "speed: expected connections a second, 0 or more, got -1"),
        (b"\x22\x02a", "server: 2 bytes, where 1 are left"),
        (b"\x08\x01*\x01a", "room: expected 'type://id', got 'a'"),
        (b"\x08\x01", "room: expected 'type://id', got ''"),
        (b"\x32\x01\xff", "keys: expected UTF-8"),
        (b"\x38\x01", "msg: wire type 0 is not this field's"),
        (b"\xa2\x06\x01\x01", "seqs: expected one number, 0 or more, for each of keys"),
        (b"\x32\x01a\xa0\x06" + b"\xff" * 9 + b"\x01", "seqs: expected one number, 0 or more, for each of keys"),
        (b"\xa2\x06\x01\x80", "seqs: a number without an end"),
        (b"\x00\x01", "tag: there is no field 0"),
        (b"\xff\xff\xff\xff\x1f", "tag: a number of more than 32 bits"),
        (b"\x43", "field 8: wire type 3 is none of proto3"),
        (b"\x49\x01", "field 9: 8 bytes, where 1 are left"),
    ],
)  # fmt: skip
def test_poison_is_told_by_field(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        decode_push(data)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("msg", "reason"),
    [
        (PushMsg(PushType.PUSH, 2**31, b""), "operation: expected an int32, got 2147483648"),
        (PushMsg(PushType.PUSH, 1, b"", keys=("a",), seqs=(2**31,)), "seqs: expected an int32"),
        (PushMsg(PushType.PUSH, 1, b"", keys=("\ud800",)), "keys: expected text that UTF-8 can say"),
    ],
)
def test_what_does_not_fit_is_not_encoded(msg: PushMsg, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        encode_push(msg)
