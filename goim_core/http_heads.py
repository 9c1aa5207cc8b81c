"""Heads of answers as h11 writes them. No I/O."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import h11

from goim_core.http_message import Response

__all__ = ["Message", "message", "read_whole"]

_NO_BODY = (204, 304)

Message: TypeAlias = tuple[h11.Response, bytes, bytes]
"""An answer's head, the bytes of that where it is always the same, and the body; ready to be written."""


def message(response: Response) -> Message:
    """``response`` as h11 writes it; raises what h11 raises for one that HTTP cannot say."""
    body = b"" if response.status in _NO_BODY else response.body
    if response.headers:
        return _new_head(response.status, response.content_type, len(body), *response.headers), b"", body
    return *_head(response.status, response.content_type, len(body)), body


def _new_head(status: int, content_type: str, size: int, *headers: tuple[str, str]) -> h11.Response:
    own = () if status in _NO_BODY else (("Content-Type", content_type), ("Content-Length", str(size)))
    return h11.Response(status_code=status, headers=[*headers, *own])


@lru_cache(maxsize=256, typed=True)
def _head(status: int, content_type: str, size: int) -> tuple[h11.Response, bytes]:
    """The same for answers alike, as nearly all are; and its bytes where the connection goes on.

    h11 checks each byte of a head that is made, which takes longer than most routes.
    """
    head = _new_head(status, content_type, size)
    http = h11.Connection(h11.SERVER)
    read_whole(http, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return head, http.send(head)


def read_whole(http: h11.Connection, request: bytes) -> None:
    """Have ``http`` read ``request``, which is a whole one."""
    http.receive_data(request)
    while not isinstance(http.next_event(), h11.EndOfMessage):
        pass
