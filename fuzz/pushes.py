"""Target: a push on a queue that other programs write to, compared with Google's protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from goim_core.adapters.pushmsg import decode_push, encode_push
from goim_core.queue import PushMsg, PushType

__all__ = ["check", "peer_class", "seeds"]

SAME = ("type", "operation", "speed", "server", "room", "msg")


def peer_class() -> Any:
    """A class for goim's message, made from the published numbers."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="push.proto", package="goim.logic", syntax="proto3")
    declared = file.message_type.add(name="PushMsg")
    enum = declared.enum_type.add(name="Type")
    for number, name in enumerate(("PUSH", "ROOM", "BROADCAST")):
        enum.value.add(name=name, number=number)
    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    declared.field.add(
        name="type", number=1, type=kinds.TYPE_ENUM, label=one, type_name=".goim.logic.PushMsg.Type"
    )
    declared.field.add(name="operation", number=2, type=kinds.TYPE_INT32, label=one)
    declared.field.add(name="speed", number=3, type=kinds.TYPE_INT32, label=one)
    declared.field.add(name="server", number=4, type=kinds.TYPE_STRING, label=one)
    declared.field.add(name="room", number=5, type=kinds.TYPE_STRING, label=one)
    declared.field.add(name="keys", number=6, type=kinds.TYPE_STRING, label=many)
    declared.field.add(name="msg", number=7, type=kinds.TYPE_BYTES, label=one)
    declared.field.add(name="seqs", number=100, type=kinds.TYPE_INT32, label=many)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("goim.logic.PushMsg"))


Peer = peer_class()


def check(data: bytes) -> None:
    """It is what protobuf reads in it, or a ValueError that names a field."""
    try:
        push = decode_push(data)
    except ValueError as error:
        assert type(error) is ValueError  # one of another kind would not name the field
        assert len(str(error)) < 500
        return
    peer = Peer()
    peer.ParseFromString(data)
    assert [getattr(peer, name) for name in SAME] == [getattr(push, name) for name in SAME]
    assert (tuple(peer.keys), tuple(peer.seqs)) == (push.keys, push.seqs)
    assert decode_push(encode_push(push)) == push


def seeds() -> Iterator[bytes]:
    """Pushes of each type."""
    yield encode_push(PushMsg(PushType.PUSH, 1000, b"hi", server="n1", keys=("a", "b"), seqs=(1, 300)))
    yield encode_push(PushMsg(PushType.ROOM, 1000, b"hi", room="live://1000"))
    yield encode_push(PushMsg(PushType.BROADCAST, -1, b"", speed=70000))
    yield b"\x40\x05\x49" + bytes(8) + b"\x52\x03abc\x5d" + bytes(4) + b"\x32\x01a\xa0\x06\x01"
