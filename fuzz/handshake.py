"""Target: the opening handshake of a WebSocket, cut anywhere, compared with wsproto alone."""

from __future__ import annotations

from collections.abc import Iterator

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request

from fuzz.cuts import joined, pieces
from fuzz.messages import REQUEST
from goim_core.handshake import checked_headers, usual_headers
from goim_core.websocket import WebSocketWire
from goim_core.wire import Answer

__all__ = ["check", "seeds"]


def check(data: bytes) -> None:
    """Cut or whole it is agreed to or refused alike, and what is agreed to, wsproto agrees to."""
    parts = pieces(data)
    stream = b"".join(parts)
    outcome = said(parts)
    whole = said([stream])
    if outcome is None or whole is None:
        assert outcome == whole
        return
    # What is refused early is refused with a reason of its own.
    agreed = outcome.close is None
    assert agreed == (whole.close is None)
    if agreed:
        assert outcome == whole
        head = stream[: stream.index(b"\r\n\r\n") + 4]
        assert outcome.data == wsprotos_answer(head)
        usual = usual_headers(head[head.index(b"\r\n") + 2 :])
        assert usual in (None, checked_headers(head))
    else:
        assert outcome.data.startswith(b"HTTP/1.1 4")
        assert b"\r\nConnection: close\r\n" in outcome.data


def said(parts: list[bytes]) -> Answer | None:
    """The answer to the handshake, None while there is none."""
    wire = WebSocketWire()
    for part in parts:
        wire.receive(part)
        event = wire.next_event()
        if event is not None:
            assert isinstance(event, Answer)
            if event.close is None:
                assert wire.path.partition("?")[0] == "/sub"
                assert all(name == name.lower() for name in wire.headers)
            else:
                assert wire.next_event() is None
                assert not wire.farewell(event.close)
            return event
    return None


def wsprotos_answer(head: bytes) -> bytes:
    """What wsproto answers to the same request, in the order in which it is written here."""
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(head)
    (request,) = server.events()
    assert isinstance(request, Request)
    lines = dict(line.split(b": ", 1) for line in server.send(AcceptConnection()).split(b"\r\n")[1:-2])
    token = next(value for name, value in lines.items() if name.lower() == b"sec-websocket-accept")
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"
    )


def seeds() -> Iterator[bytes]:
    """Requests that are agreed to, and some that are not."""
    yield joined(REQUEST, (10, 60, 70))
    more = b"Cookie: a=b; c=d\r\nOrigin: http://127.0.0.1\r\nSec-WebSocket-Protocol: x, y\r\n"
    more += b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    yield joined(REQUEST[:-2].replace(b"/sub", b"/sub?token=%20x&y") + more + b"\r\n")
    yield joined(REQUEST[:-2] + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n")
    yield joined(REQUEST[:-2] + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n")
    yield joined(REQUEST.replace(b": 13", b": 8"))
    yield joined(b"POST /sub HTTP/1.1\r\nHost: x\r\n\r\n")
    yield joined(b"GET /sub HTTP/1.0\r\n\r\n", (3,))
