"""goim's protobuf message ``goim.logic.PushMsg``: what Go processes read and write on the same queue.

    1 type       enum: PUSH 0, ROOM 1, BROADCAST 2
    2 operation  int32
    3 speed      int32
    4 server     string
    5 room       string
    6 keys       repeated string
    7 msg        bytes
    100 seqs     repeated int32, packed: the library's own, which goim passes over

A codec of its own (https://protobuf.dev/programming-guides/encoding/): eight fields need no generated code.
"""

from __future__ import annotations

from collections.abc import Iterator

from goim_core.queue import PushMsg, PushType
from goim_core.session import check_room_id

__all__ = ["decode_push", "encode_push"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""The wire types that proto3 uses."""
NAMES = {1: "type", 2: "operation", 3: "speed", 4: "server", 5: "room", 6: "keys", 7: "msg", 100: "seqs"}
WIRE_TYPES = {1: VARINT, 2: VARINT, 3: VARINT, 4: BYTES, 5: BYTES, 6: BYTES, 7: BYTES, 100: BYTES}
FIXED = {FIXED64: 8, FIXED32: 4}
TAG_BITS = 32
"""A field's number has 29 bits, its wire type three."""


def encode_push(msg: PushMsg) -> bytes:
    """The bytes of ``msg``, fields in the order of their numbers, as protobuf writes them.

    Raises :class:`ValueError` that names the field where a number is no int32 or a text no UTF-8.
    """
    out = bytearray()
    for number, value in ((1, msg.type), (2, msg.operation), (3, msg.speed)):
        if value:  # proto3 leaves out what is zero or empty
            out += _tag(number, VARINT)
            out += _int32(number, value)
    for number, text in ((4, msg.server), (5, msg.room)):
        if text:
            _put(out, number, _utf8(number, text))
    for key in msg.keys:
        _put(out, 6, _utf8(6, key))
    if msg.msg:
        _put(out, 7, msg.msg)
    if msg.seqs:
        _put(out, 100, b"".join(_int32(100, seq) for seq in msg.seqs))
    return bytes(out)


def decode_push(data: bytes) -> PushMsg:
    """The push in ``data``. Unknown fields are passed over; of a field that comes twice the last counts.

    Raises :class:`ValueError` that names the field for whatever is no PushMsg that can be delivered.
    """
    numbers: dict[int, int] = {}
    texts: dict[int, str] = {}
    msg = b""
    keys: list[str] = []
    seqs: list[int] = []
    for number, value in _fields(data):
        if number == 6:
            keys.append(_text(6, value))
        elif number == 100:
            seqs += [value] if isinstance(value, int) else _packed(value)
        elif isinstance(value, int):
            numbers[number] = value
        elif number == 7:
            msg = value
        else:
            texts[number] = _text(number, value)
    return _checked(
        PushMsg(
            _type(numbers.get(1, 0)),
            numbers.get(2, 0),
            msg,
            server=texts.get(4, ""),
            room=texts.get(5, ""),
            keys=tuple(keys),
            seqs=tuple(seqs),
            speed=numbers.get(3, 0),
        )
    )


def _checked(msg: PushMsg) -> PushMsg:
    """``msg`` where job and comet can make something of it."""
    if msg.speed < 0:
        raise ValueError(f"speed: expected connections a second, 0 or more, got {msg.speed}")
    if msg.seqs and (len(msg.seqs) != len(msg.keys) or min(msg.seqs) < 0):
        raise ValueError("seqs: expected one number, 0 or more, for each of keys")
    if msg.type is PushType.ROOM:
        try:
            check_room_id(msg.room)
        except ValueError:
            raise ValueError(f"room: expected 'type://id', got {msg.room[:80]!r}") from None
    return msg


def _type(number: int) -> PushType:
    try:
        return PushType(number)
    except ValueError:
        raise ValueError(f"type: expected 0 to 2, got {number}") from None


# Writing.


def _put(out: bytearray, number: int, value: bytes) -> None:
    out += _tag(number, BYTES)
    out += _varint(len(value))
    out += value


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _int32(number: int, value: int) -> bytes:
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{NAMES[number]}: expected an int32, got {value}")
    return _varint(value & 0xFFFFFFFFFFFFFFFF)  # a negative one as 64 bits: ten bytes


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _utf8(number: int, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{NAMES[number]}: expected text that UTF-8 can say, got {text[:80]!r}") from None


# Reading.


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each known field: its number, and an int32 or bytes."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at, "tag", TAG_BITS)
        number, wire_type = tag >> 3, tag & 7
        name = NAMES.get(number, f"field {number}")
        if not number:
            raise ValueError("tag: there is no field 0")
        if wire_type == VARINT:
            found, at = _read_varint(data, at, name)
            value: int | bytes = _signed(found)
        else:
            value, at = _read_bytes(data, at, name, wire_type)
        if number in NAMES:
            # Numbers may come one by one where they are usually packed.
            if wire_type != WIRE_TYPES[number] and (number, wire_type) != (100, VARINT):
                raise ValueError(f"{name}: wire type {wire_type} is not this field's")
            yield number, value


def _read_bytes(data: bytes, at: int, name: str, wire_type: int) -> tuple[bytes, int]:
    if wire_type == BYTES:
        length, at = _read_varint(data, at, name)
    elif wire_type in FIXED:
        length = FIXED[wire_type]
    else:
        raise ValueError(f"{name}: wire type {wire_type} is none of proto3")
    if length > len(data) - at:
        raise ValueError(f"{name}: {length} bytes, where {len(data) - at} are left")
    return data[at : at + length], at + length


def _read_varint(data: bytes, at: int, name: str, bits: int = 64) -> tuple[int, int]:
    """The number at ``at``, and where it ends."""
    value = 0
    for shift in range(0, bits, 7):
        if at >= len(data):
            raise ValueError(f"{name}: a number without an end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> bits:
                break
            return value, at
    raise ValueError(f"{name}: a number of more than {bits} bits")


def _signed(value: int) -> int:
    """An int32: the low 32 bits, as every protobuf reads it."""
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


def _packed(data: bytes) -> list[int]:
    found = []
    at = 0
    while at < len(data):
        value, at = _read_varint(data, at, NAMES[100])
        found.append(_signed(value))
    return found


def _text(number: int, value: int | bytes) -> str:
    assert isinstance(value, bytes)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{NAMES[number]}: expected UTF-8") from None
