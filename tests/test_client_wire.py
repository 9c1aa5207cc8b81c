"""WebSocket at the client's end, against wsproto's server, without I/O."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from goim_core import Disconnect, Frame, Op, ProtocolError
from goim_core.client.wire import ClientWire, PlainWire, WebSocketWire
from goim_core.protocol import encode
from goim_core.wire import Packet, disconnect_frame


def opened(answer: Event | None = None) -> tuple[WebSocketWire, WSConnection]:
    wire = WebSocketWire("h:1", "/sub?x=1", {"Cookie": "a=b"})
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(wire.opening)
    request = next(server.events())
    assert isinstance(request, Request)
    assert (request.host, request.target) == ("h:1", "/sub?x=1")
    assert (b"cookie", b"a=b") in request.extra_headers
    assert not wire.opened
    wire.receive(server.send(answer or AcceptConnection()))
    wire.open()
    return wire, server


def frames_of(wire: ClientWire) -> list[Frame]:
    found = []
    while (frame := wire.next_frame()) is not None:
        found.append(frame)
    return found


FRAMES = st.builds(
    Frame,
    st.sampled_from([4, 1000, 2000]),
    st.binary(max_size=300),
    st.integers(0, 5),
    st.integers(0, 2**15 - 1),
)


@settings(deadline=None)  # two slow cores
@given(st.lists(st.lists(FRAMES, min_size=1, max_size=4), max_size=6), st.data())
@pytest.mark.parametrize("form", [0, 1])
def test_packets_cut_anywhere(form: int, packets: list[list[Frame]], data: st.DataObject) -> None:
    wire: ClientWire = opened()[0] if form else PlainWire()
    sent = b"".join(Packet([frame.encode() for frame in frames]).forms[form] for frames in packets)
    found = []
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        wire.receive(sent[:size])
        sent = sent[size:]
        found += frames_of(wire)
    assert found == [frame for frames in packets for frame in frames]


@given(st.lists(FRAMES, max_size=4))
def test_what_a_server_reads(frames: list[Frame]) -> None:
    wire, server = opened()
    for frame in frames:
        server.receive_data(wire.encode(frame.encode()))
    assert list(server.events()) == [BytesMessage(data=frame.encode()) for frame in frames]


def test_fragments_and_text() -> None:
    wire, server = opened()
    frame = encode(100, b"abc")
    wire.receive(server.send(BytesMessage(data=frame[:7], message_finished=False)))
    assert wire.next_frame() is None
    wire.receive(server.send(BytesMessage(data=frame[7:])) + server.send(TextMessage(data=frame.decode())))
    assert frames_of(wire) == [Frame(100, b"abc")] * 2


def test_a_ping_is_answered() -> None:
    wire, server = opened()
    wire.receive(server.send(Ping(payload=b"x")))
    assert wire.next_frame() is None
    server.receive_data(wire.answers())
    assert list(server.events()) == [Pong(payload=b"x")]
    assert wire.answers() == b""


@pytest.mark.parametrize(("code", "told"), [(1001, 1001), (4004, 4004), (None, 4007)])
def test_a_close_frame_says_why(code: int | None, told: int) -> None:
    wire, server = opened()
    wire.receive(server.send(BytesMessage(data=encode(1000))))
    wire.receive(server.send(CloseConnection(code=code, reason="bye")) if code else b"\x88\x00")
    assert wire.next_frame() == Frame(1000)
    with pytest.raises(Disconnect) as found:
        wire.next_frame()
    assert (found.value.code, found.value.reason) == (told, "bye" if code else "closed without a reason")
    assert wire.answers()[0] == 0x88
    assert wire.farewell() == b""


def test_the_disconnect_frame_comes_before_it() -> None:
    for wire in (opened()[0], PlainWire()):
        frame = disconnect_frame(Disconnect("replaced", 4004))
        wire.receive(Packet([frame]).forms[isinstance(wire, WebSocketWire)])
        with pytest.raises(Disconnect, match="replaced") as found:
            wire.next_frame()
        assert found.value.code == 4004


def test_a_farewell() -> None:
    wire, server = opened()
    server.receive_data(wire.farewell())
    [event] = server.events()
    assert isinstance(event, CloseConnection)
    assert event.code == 1000
    assert (wire.farewell(), PlainWire().farewell()) == (b"", b"")


def test_a_handshake_that_is_refused() -> None:
    with pytest.raises(ProtocolError, match="the WebSocket handshake was answered with HTTP 404"):
        opened(RejectConnection(status_code=404))
    wire = WebSocketWire("h:1", "/sub")
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(wire.opening)
    next(server.events())
    head = server.send(RejectConnection(status_code=503, has_body=True, headers=[(b"content-length", b"2")]))
    wire.receive(head + server.send(RejectData(data=b"no")))
    with pytest.raises(ProtocolError, match="HTTP 503: no$"):
        wire.open()


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x03abc",  # no frame of goim's
        b"\x82\x11" + encode(1000) + b"x",  # and something behind it
        b"\x82\x1f" + encode(9, encode(1000)[:15]),  # a batch that is none
        b"\x82\x81\0\0\0\0x",  # masked
        b"\x83\x00",  # an opcode that is none
    ],
)
def test_what_is_no_goim(data: bytes) -> None:
    wire, _ = opened()
    wire.receive(data)
    with pytest.raises(ProtocolError):
        wire.next_frame()


def test_what_is_no_websocket() -> None:
    wire = WebSocketWire("h:1", "/sub")
    wire.receive(encode(Op.AUTH_REPLY) + b"\r\n\r\n")
    with pytest.raises(ProtocolError, match="WebSocket"):
        wire.open()


@pytest.mark.parametrize(
    "name", [b"Connection", b"Upgrade", b"Sec-WebSocket-Accept", b"Sec-WebSocket-Protocol"]
)
def test_an_answer_with_a_header_that_is_no_ascii(name: bytes) -> None:
    wire = WebSocketWire("h:1", "/sub")
    wire.receive(b"HTTP/1.1 101 Switching Protocols\r\n" + name + b": \xf5\r\n\r\n")
    for _ in range(2):
        with pytest.raises(ProtocolError, match="WebSocket"):
            wire.open()
