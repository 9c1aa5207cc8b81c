"""What both kinds of wire share: packets, farewells, and the TCP wire."""

from __future__ import annotations

import gc
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import Decoder, Frame, Op, encode, split
from goim_core.websocket import WebSocketWire
from goim_core.wire import TCP, WEBSOCKET, Packet, TCPWire, websocket_binary


def drain(wire: TCPWire) -> list[Frame]:
    return list(iter(wire.next_event, None))


def messages(data: bytes) -> list[bytes]:
    """The messages that a WebSocket client reads out of ``data``."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    got: list[bytes] = []
    for event in client.events():
        assert isinstance(event, BytesMessage)
        assert event.message_finished
        got.append(bytes(event.data))
    return got


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_websocket_binary_sends_what_wsproto_sends_at_each_length_form(size: int) -> None:
    payload = bytes(size)
    assert websocket_binary(payload) == Connection(ConnectionType.SERVER).send(BytesMessage(payload))


@given(st.binary(max_size=300))
def test_websocket_binary_sends_what_wsproto_sends(payload: bytes) -> None:
    assert websocket_binary(payload) == Connection(ConnectionType.SERVER).send(BytesMessage(payload))


def test_a_packet_of_one_frame_is_bare_on_both_wires() -> None:
    frame = encode(1000, b"hello")
    packet = Packet([frame])
    assert packet.count == 1
    assert packet.forms[TCP] == frame
    assert messages(packet.forms[WEBSOCKET]) == [frame]


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=6))
def test_a_packet_of_several_frames_is_an_op_9_batch_over_websocket_only(bodies: list[bytes]) -> None:
    frames = [Frame(1000 + n, body) for n, body in enumerate(bodies)]
    packet = Packet([frame.encode() for frame in frames])
    assert packet.count == len(bodies)

    decoder = Decoder()
    decoder.receive(packet.forms[TCP])
    assert list(iter(decoder.next_frame, None)) == frames

    (message,) = messages(packet.forms[WEBSOCKET])
    (batch,) = split(message)
    assert (batch.op, batch.ver, batch.seq) == (Op.RAW, 1, 0)
    assert split(batch.body) == frames


def test_a_packet_has_something_in_it() -> None:
    with pytest.raises(ValueError, match=r"^frames: "):
        Packet([])


def test_each_wire_names_its_form() -> None:
    assert (TCPWire().form, WebSocketWire().form) == (TCP, WEBSOCKET)


def test_tcp_frames_come_one_by_one() -> None:
    wire = TCPWire()
    wire.receive(encode(2, seq=1) + encode(4, b"x", seq=2) + encode(2, seq=3)[:-1])
    assert drain(wire) == [Frame(2, seq=1), Frame(4, b"x", seq=2)]
    wire.receive(encode(2, seq=3)[-1:])
    assert drain(wire) == [Frame(2, seq=3)]


def test_a_thousand_frames_in_one_packet() -> None:
    wire = TCPWire()
    wire.receive(b"".join(encode(2, seq=n) for n in range(1000)))
    assert [frame.seq for frame in drain(wire)] == list(range(1000))


def test_tcp_limits_the_body() -> None:
    wire = TCPWire(max_body=10)
    wire.receive(encode(4, bytes(10)) + encode(4, bytes(11)))
    assert wire.next_event() == Frame(4, bytes(10))
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            wire.next_event()
        assert caught.value.code == CloseCode.TOO_BIG


def test_http_on_the_tcp_port_is_refused_at_once() -> None:
    wire = TCPWire()
    wire.receive(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ProtocolError):
        wire.next_event()


def test_tcp_sends_frames_as_they_are() -> None:
    assert TCPWire().encode(b"frame") == b"frame"


def test_tcp_has_no_handshake() -> None:
    wire = TCPWire()
    wire.forget_handshake()
    assert (wire.path, dict(wire.headers)) == ("", {})


def test_tcp_farewell_is_an_op_6_frame_with_the_reason_as_json() -> None:
    (frame,) = split(TCPWire().farewell(Disconnect('bye "you"', CloseCode.GOING_AWAY)))
    assert frame == Frame(Op.DISCONNECT_REPLY, b'{"code":1001,"message":"bye \\"you\\""}')


@pytest.mark.parametrize(("reason", "told"), [("tschüß", "tschüß"), ("half \ud83d pair", "half ? pair")])
def test_tcp_farewell_in_any_language(reason: str, told: str) -> None:
    (frame,) = split(TCPWire().farewell(Disconnect(reason)))
    assert told.encode() in frame.body
    assert json.loads(frame.body) == {"code": 1000, "message": told}


def test_tcp_farewell_after_a_protocol_error() -> None:
    wire = TCPWire()
    wire.receive(bytes(16))
    with pytest.raises(ProtocolError) as caught:
        wire.next_event()
    (frame,) = split(wire.farewell(Disconnect(caught.value.reason, caught.value.code)))
    assert json.loads(frame.body)["code"] == 1002


def test_an_idle_tcp_wire_owns_nothing_but_itself() -> None:
    wires = [TCPWire(), TCPWire()]
    for wire in wires:
        wire.receive(encode(4, b"abc")[:7])
        wire.receive(encode(4, b"abc")[7:])
        assert drain(wire) == [Frame(4, b"abc")]
    assert sys.getsizeof(wires[0]) <= 64
    first, second = (list(map(id, gc.get_referents(wire))) for wire in wires)
    assert first == second
