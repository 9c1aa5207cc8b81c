"""What is read without h11 is what h11 reads; and who sees only the wire cannot tell which has read it."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz.requests import read_by_h11
from goim_core.http_heads import message
from goim_core.http_message import Response
from goim_core.http_plain import plain_request

USUAL = [
    "Accept: */*",
    "User-Agent: curl/8.1  ",
    "X-Api-Key:k",
    "Connection: keep-alive",
    "Accept-Encoding: gzip",
]
ODD = [
    "Host: b", "Host:", "host: localhost:3111", "Content-Length: 4", "Connection: Keep-Alive", "Connection: close",
    "Connection: Upgrade", "Connection: keep-alive, close", "Upgrade: h2c", "Expect: 100-continue",
    "Transfer-Encoding: chunked", "TE: trailers", "X Y: z", "X-Y : z", ": z", "X-Long: " + "y" * 300, "X-Tab:\ta\tb",
    "X-High: \xe9", "X-Low: a\x01b", " folded", "X-Nul: \0", "no colon", "X-Lf: a\nX-Other: b", "Accept: text/html",
]  # fmt: skip
LENGTHS = ["3", "5", "04", "+4", "-4", "4, 4", "4;", "0x4", "0" * 30 + "4"]
STARTS = [
    "GET / HTTP/1.1", "GET * HTTP/1.1", "GET http://a/b HTTP/1.1", "GET /\xe9 HTTP/1.1", "GET  / HTTP/1.1", "GET /",
    "GET / HTTP/1.0", "GET / HTTP/2.0", "HEAD / HTTP/1.1", "CONNECT a:1 HTTP/1.1", "get / HTTP/1.1", "PUT /x HTTP/1.1",
    "POST / HTTP/1.1 ",
]  # fmt: skip
ENDS = ["\n", "\r", "\r\r\n", " \r\n", "\r\n\r\n"]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A plain request, or one that has one or two things about it that may not be."""
    body = draw(st.sampled_from([b"", b"body"]))
    lines = ["POST /goim/push/room?operation=1000&type=a&room=b HTTP/1.1", "Host: a"]
    lines += draw(st.lists(st.sampled_from(USUAL), unique=True, max_size=2))
    length = draw(st.sampled_from(["4"] * 20 + LENGTHS))
    if body:
        lines.append(f"Content-Length: {length}")
    ends = ["\r\n"] * 10
    for odd in draw(st.lists(st.sampled_from(["line", "less", "start", "end", "body"]), max_size=2)):
        if odd == "line":
            lines.insert(draw(st.integers(1, len(lines))), draw(st.sampled_from(ODD)))
        elif odd == "less" and len(lines) > 1:
            del lines[draw(st.integers(1, len(lines) - 1))]
        elif odd == "start":
            lines[0] = draw(st.sampled_from(STARTS))
        elif odd == "end":
            ends[draw(st.integers(0, len(lines)))] = draw(st.sampled_from(ENDS))
        elif odd == "body":
            body = draw(st.sampled_from([b"bod", b"bodyGET / HTTP/1.1\r\n", b"\r\n"]))
    text = "".join(map("".join, zip([*lines, ""], ends, strict=False)))
    return text.encode("latin-1") + body


@given(requests() | st.binary(max_size=60))
@settings(max_examples=1000)
@example(b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
@example(b"GET / HTTP/1.1\r\nHost:a\r\n\r\n")
def test_it_reads_what_h11_reads_or_leaves_it_to_h11(data: bytes) -> None:
    found = plain_request(data)
    if found is not None:
        *expected, http = read_by_h11(data)
        assert found == tuple(expected)
        # The connection goes on, and the answer has nothing to say of it.
        head, plain, body = message(Response(200, b"{}"))
        assert http.send(head) == plain
        http.send(h11.Data(data=body))
        http.send(h11.EndOfMessage())
        http.start_next_cycle()
        assert http.our_state is h11.IDLE


@pytest.mark.parametrize(
    "data",
    [
        b"GET /goim/online/total HTTP/1.1\r\nHost: localhost:3111\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
        b"POST /goim/push/mids?operation=1000&mids=1 HTTP/1.1\r\nHost: 127.0.0.1:3111\r\n"  # noqa: ISC004
        b"User-Agent: Go-http-client/1.1\r\nContent-Length: 4\r\nAccept-Encoding: gzip\r\n\r\nbody",
        b"POST / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: identity\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
    ],
    ids=["curl", "Go", "Python"],
)
def test_what_pushers_send_is_plain(data: bytes) -> None:
    found = plain_request(data)
    assert found is not None
    assert found == read_by_h11(data)[:-1]
    for end in range(len(data)):
        assert plain_request(data[:end]) is None  # the rest is to come
    assert plain_request(data + b"G") is None  # two requests keep their order


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +0",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A : b",
        "GET / HTTP/1.1\r\nHost: a\nX-A: b",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a",
        "GET / HTTP/1.1\r\nX-A: b",
        "GET / HTTP/1.0\r\nHost: a",
        "HEAD / HTTP/1.1\r\nHost: a",
    ],
)
def test_what_is_unusual_or_wrong_is_left_to_h11(head: str) -> None:
    assert plain_request(f"{head}\r\n\r\n".encode()) is None


@pytest.mark.parametrize("status", [200, 204, 304, 404, 500])
def test_a_head_is_written_as_h11_writes_it(status: int) -> None:
    head, plain, body = message(Response(status, b"text", "text/plain"))
    http = read_by_h11(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[-1]
    assert http.send(head) == plain
    assert body == (b"" if status in (204, 304) else b"text")
    assert message(Response(status, b"text", "text/plain", (("X-A", "b"),)))[1] == b""
