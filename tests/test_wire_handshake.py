"""The WebSocket wire's opening handshake: what is let in, and what others are told."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request
from wsproto.extensions import PerMessageDeflate

from goim_core.errors import CloseCode, Disconnect
from goim_core.handshake import Terms, checked_headers, usual_headers
from goim_core.protocol import Frame, encode
from goim_core.websocket import WebSocketWire
from goim_core.wire import Answer

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
# The example of RFC 6455 section 1.3.
RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
HEARTBEAT_MESSAGE = b"\x82\x90\0\0\0\0" + encode(2)


def request(*more: str, line: str = "GET /sub HTTP/1.1", without: str = "") -> bytes:
    """A handshake; a header in ``more`` takes the place of one with the same name."""
    fields = {
        "host": "Host: example.org",
        "upgrade": "Upgrade: websocket",
        "connection": "Connection: Upgrade",
        "sec-websocket-key": f"Sec-WebSocket-Key: {KEY}",
        "sec-websocket-version": "Sec-WebSocket-Version: 13",
    }
    for field in more:
        fields[field.partition(":")[0].lower()] = field
    fields.pop(without.lower(), None)
    return "\r\n".join([line, *fields.values(), "", ""]).encode("latin-1")


def answer_to(data: bytes, wire: WebSocketWire | None = None) -> Answer:
    wire = wire or WebSocketWire()
    wire.receive(data)
    answer = wire.next_event()
    assert isinstance(answer, Answer)
    return answer


def refused(answer: Answer, status: int) -> tuple[bytes, Disconnect]:
    head, blank, body = answer.data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert blank
    assert b"\r\nConnection: close" in head
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert body
    assert answer.close is not None
    return head, answer.close


def test_the_example_of_the_rfc() -> None:
    assert answer_to(request()) == Answer(RESPONSE)


def test_a_wsproto_client_takes_the_answer() -> None:
    client = WSConnection(ConnectionType.CLIENT)
    offer = Request(
        host="example.org", target="/sub", subprotocols=["chat", "goim"], extensions=[PerMessageDeflate()]
    )
    wire = WebSocketWire()
    client.receive_data(answer_to(client.send(offer), wire).data)
    (accepted,) = client.events()
    assert isinstance(accepted, AcceptConnection)
    assert (accepted.extensions, accepted.subprotocol) == ([], None)
    assert wire.headers["sec-websocket-protocol"] == "chat, goim"


def test_cut_at_every_byte_with_the_first_frame_behind() -> None:
    data = request() + HEARTBEAT_MESSAGE
    end = len(request())
    for cut in range(1, len(data)):
        wire = WebSocketWire()
        wire.receive(data[:cut])
        events = list(iter(wire.next_event, None))
        assert events == ([Answer(RESPONSE)] if cut >= end else [])
        wire.receive(data[cut:])
        assert events + list(iter(wire.next_event, None)) == [Answer(RESPONSE), Frame(2)]


def test_byte_by_byte() -> None:
    wire = WebSocketWire()
    events = []
    for byte in request() + HEARTBEAT_MESSAGE:
        wire.receive(bytes((byte,)))
        events += list(iter(wire.next_event, None))
    assert events == [Answer(RESPONSE), Frame(2)]


@pytest.mark.parametrize(
    "field",
    [
        "connection: keep-alive, Upgrade",
        "CONNECTION: UPGRADE,keep-alive",
        "uPgRaDe: WebSocket",
        "SEC-WEBSOCKET-VERSION: 13",
        f"sec-websocket-key:{KEY}",
        "Content-Length: 0",
        "Host: [::1]:3102",
        "User-Agent: Gr\xfc\xdfe",
    ],
)
def test_accepted(field: str) -> None:
    assert answer_to(request(field)) == Answer(RESPONSE)


def test_path_and_headers_are_there_until_they_are_forgotten() -> None:
    wire = WebSocketWire()
    assert (wire.path, dict(wire.headers)) == ("", {})
    answer_to(
        request("Cookie: a=1", "X-Name: first\r\nX-Name: second", line="GET /sub?t=a%20b HTTP/1.1"), wire
    )
    assert wire.path == "/sub?t=a%20b"
    assert wire.headers["host"] == "example.org"
    assert wire.headers["cookie"] == "a=1"
    assert wire.headers["x-name"] == "first"
    wire.forget_handshake()
    assert (wire.path, dict(wire.headers)) == ("", {})


@pytest.mark.parametrize("target", ["/", "/sub/", "/subs", "/SUB", "/sub%20", "//sub", "*", "/x?/sub"])
def test_another_path_is_not_found(target: str) -> None:
    refused(answer_to(request(line=f"GET {target} HTTP/1.1")), 404)


def test_another_path_can_be_served() -> None:
    assert answer_to(request(line="GET /live HTTP/1.1"), WebSocketWire(Terms(path="/live"))) == Answer(
        RESPONSE
    )
    refused(answer_to(request(), WebSocketWire(Terms(path="/live"))), 404)


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "PUT"])
def test_another_method_is_not_allowed(method: str) -> None:
    head, _ = refused(answer_to(request(line=f"{method} /sub HTTP/1.1")), 405)
    assert b"\r\nAllow: GET" in head


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(request(without="Upgrade"), id="no upgrade"),
        pytest.param(b"GET /sub HTTP/1.1\r\nHost: example.org\r\n\r\n", id="a browser's address bar"),
        pytest.param(request("Sec-WebSocket-Version: 12"), id="version 12"),
        pytest.param(request("Sec-WebSocket-Version: 8, 13"), id="two versions"),
    ],
)
def test_upgrade_required(data: bytes) -> None:
    head, _ = refused(answer_to(data), 426)
    assert b"\r\nUpgrade: websocket" in head
    assert b"\r\nSec-WebSocket-Version: 13" in head


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(request("Upgrade: h2c"), id="another upgrade"),
        pytest.param(request(without="Connection"), id="no connection"),
        pytest.param(request("Connection: keep-alive"), id="connection without upgrade"),
        pytest.param(request(without="Sec-WebSocket-Version"), id="no version"),
        pytest.param(request(without="Sec-WebSocket-Key"), id="no key"),
        pytest.param(request("Sec-WebSocket-Key: "), id="empty key"),
        pytest.param(
            request("Sec-WebSocket-Key: " + base64.b64encode(bytes(15)).decode()), id="key of 15 bytes"
        ),
        pytest.param(
            request("Sec-WebSocket-Key: " + base64.b64encode(bytes(17)).decode()), id="key of 17 bytes"
        ),
        pytest.param(request(f"Sec-WebSocket-Key: {KEY}x"), id="key and more"),
        pytest.param(request(f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Key: {KEY}"), id="two keys"),
        pytest.param(request(without="Host"), id="no host"),
        pytest.param(request("Host: \xfc.org"), id="a host not in ASCII"),
        pytest.param(request("Connection: Upgrade, \xfc"), id="connection not in ASCII"),
        pytest.param(request("Content-Length: 5"), id="a body"),
        pytest.param(request("Transfer-Encoding: chunked"), id="a chunked body"),
        pytest.param(request("No colon"), id="a header without a colon"),
        pytest.param(request(line="GET /sub HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(request(line="GET /sub HTTP/2"), id="HTTP/2"),
        pytest.param(request(line="GET  /sub HTTP/1.1"), id="two spaces"),
        pytest.param(request("X: 1\n\nGET / HTTP/1.1"), id="a bare line feed"),
    ],
)
def test_bad_request(data: bytes) -> None:
    _, close = refused(answer_to(data), 400)
    assert close.code == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(encode(7, b'{"mid":1}'), id="a goim frame"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", id="TLS"),
        pytest.param(b"\0", id="one byte"),
        pytest.param(b"get /sub HTTP/1.1\r\n", id="lower case"),
        pytest.param(b"hello\r\n", id="a word"),
        pytest.param(b"GET /sub HTTP/1.1\n", id="a bare line feed"),
        pytest.param(b"GET /\xff", id="a target that is no ASCII"),
        pytest.param(b"A" * 17, id="an endless method"),
        pytest.param(b"\r\n", id="an empty line"),
    ],
)
def test_what_cannot_become_http_is_refused_without_waiting(garbage: bytes) -> None:
    refused(answer_to(garbage), 400)


def test_a_request_of_max_header_is_accepted_and_one_byte_more_refused() -> None:
    size = len(request())
    assert answer_to(request(), WebSocketWire(Terms(max_header=size))) == Answer(RESPONSE)
    # What follows the request does not count.
    assert answer_to(request() + HEARTBEAT_MESSAGE, WebSocketWire(Terms(max_header=size))) == Answer(RESPONSE)
    _, close = refused(answer_to(request(), WebSocketWire(Terms(max_header=size - 1))), 431)
    assert close.code == CloseCode.TOO_BIG


def test_a_request_without_an_end_is_refused_at_the_limit() -> None:
    wire = WebSocketWire(Terms(max_header=200))
    wire.receive(request("X: " + "x" * 500)[:200])
    assert wire.next_event() is None
    refused(answer_to(b"x", wire), 431)


def test_the_default_limit_is_8192_bytes() -> None:
    room = 8192 - len(request("X: "))
    assert answer_to(request("X: " + "x" * room)) == Answer(RESPONSE)
    refused(answer_to(request("X: " + "x" * (room + 1))), 431)


def test_nothing_is_read_or_said_after_a_refusal() -> None:
    wire = WebSocketWire()
    refused(answer_to(request(line="GET / HTTP/1.1") + request(), wire), 404)
    wire.receive(request())
    assert wire.next_event() is None
    assert wire.farewell(Disconnect("bye")) == b""


@given(
    st.lists(
        st.sampled_from(
            [
                *(
                    "GET ",
                    "/sub",
                    " HTTP/1.1",
                    "\r\n",
                    "\n",
                    "\r",
                    ":",
                    " ",
                    ",",
                    "\0",
                    "\xff",
                    "13",
                    KEY,
                    "a" * 70,
                ),
                *("Host: ", "Upgrade: ", "websocket", "Connection: ", "close", "Expect: 100-continue\r\n"),
                *(
                    "Sec-WebSocket-Key: ",
                    "Sec-WebSocket-Version: ",
                    "Sec-WebSocket-Protocol: ",
                    "Content-Length: ",
                ),
            ]
        ),
        max_size=4,
    ).map("".join),
    st.integers(0, len(request())),
    st.integers(0, 20),
)
def test_a_damaged_request_is_answered_or_waited_for(patch: str, at: int, removed: int) -> None:
    good = request()
    wire = WebSocketWire()
    wire.receive(good[:at] + patch.encode("latin-1") + good[at + removed :])
    event = wire.next_event()
    assert event is None or isinstance(event, Answer)


FIELDS = st.sampled_from(
    [
        *(
            "Host: a.example",
            "host:b:80",
            "Host: A.example",
            "Host: [::1]:80",
            "Host: ",
            "Host: xn--a",
            "Host: a,b",
        ),
        *("Upgrade: websocket", "upgrade: WebSocket ", "Upgrade: h2c", "Upgrade:"),
        *(
            "Connection: Upgrade",
            "Connection: keep-alive, upgrade",
            "Connection: close",
            "Connection: up grade",
        ),
        *(f"Sec-WebSocket-Key: {KEY}", f"sec-websocket-key:\t{KEY}\t", "Sec-WebSocket-Key: short"),
        *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version:  13", "Sec-WebSocket-Version: 8"),
        *("Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Extensions: permessage-deflate"),
        *("Content-Length: 0", "Content-Length: 5", "Transfer-Encoding: chunked", "Expect: 100-continue"),
        *(
            "Cookie: a=b; c=d",
            "Cookie: e=f",
            "Origin: null",
            "X: \xe4",
            " folded",
            "no colon",
            "A B: c",
            "X:\x01",
            ":v",
        ),
    ]
)


@given(st.lists(FIELDS, max_size=3), st.permutations(request().decode().split("\r\n")[1:-2]), st.data())
def test_what_is_read_here_is_what_wsproto_reads(
    more: list[str], usual: list[str], data: st.DataObject
) -> None:
    kept = data.draw(st.integers(4, 5))
    lines = "\r\n".join([*usual[:kept], *more, "", ""]).encode("latin-1")
    found = usual_headers(lines)
    if found is not None:
        assert found == checked_headers(b"GET /sub HTTP/1.1\r\n" + lines)


def test_the_usual_is_read_here() -> None:
    lines = request("Cookie: a=b", "Sec-WebSocket-Extensions: x").partition(b"\r\n")[2]
    assert usual_headers(lines) == checked_headers(b"GET /sub HTTP/1.1\r\n" + lines)


# Origins


ALLOWED = ("https://Chat.example", "http://[::1]:80", "https://chat.example:8443", "null", "app://goim")


@pytest.mark.parametrize("other", ["X-A: b", "TE: trailers"], ids=["usual", "by wsproto"])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),  # no browser
        ("https://chat.example", 101),
        ("https://chat.example:443", 101),
        ("HTTPS://CHAT.EXAMPLE", 101),
        ("https://chat.example:8443", 101),
        ("http://[::1]", 101),
        ("http://[::1]:80", 101),
        ("null", 101),
        ("app://goim", 101),
        ("http://chat.example", 403),
        ("https://chat.example:80", 403),
        ("https://chat.example.evil.example", 403),
        ("https://evil-chat.example", 403),
        ("https://chat.example/", 403),
        ("chat.example", 403),
        ("https://chat.example https://evil.example", 403),
        ("app://goim:80", 403),
        ("", 403),
    ],
)
def test_origins(origin: str | None, status: int, other: str) -> None:
    data = request(other, *([] if origin is None else [f"Origin: {origin}"]))
    answer = answer_to(data, WebSocketWire(Terms(origins=ALLOWED)))
    if status == 101:
        assert answer == Answer(RESPONSE)
    else:
        _, close = refused(answer, status)
        assert close.reason == "WebSocket handshake: Origin: pages of this origin may not connect"
    assert answer_to(data) == Answer(RESPONSE), "without a list, any"
