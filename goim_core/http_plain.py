"""HTTP/1.1 requests of the plain kind (RFC 9112), read without a parser's state. No I/O.

What is read here is a subset of what h11 reads, to the same result, in a fifth of the time. Whatever is not
plain, be it unusual or wrong, is None here, and h11's to read or to refuse.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["PlainRequest", "plain_headers", "plain_request"]


class PlainRequest(NamedTuple):
    """A whole request. ``size`` is that of its head in bytes, a blank before each value."""

    method: str
    target: str
    headers: dict[str, str]
    size: int
    body: bytes


_REQUEST_LINE = re.compile(rb"(GET|POST) ([!-~]+) HTTP/1\.1\r\n")
_HEADER = re.compile(
    r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[!-~](?:[ \t!-~]*[!-~])?)?)[ \t]*\r$", re.MULTILINE
)
"""A line of the plain kind (RFC 9112 section 5): not folded, and without bytes beyond ASCII."""
_LENGTH = re.compile(r"[0-9]{1,9}")


def plain_headers(lines: bytes) -> dict[str, str] | None:
    """The header ``lines`` of a head, with the blank line behind them, by lower-case names."""
    text = lines.decode("latin-1")  # what is beyond ASCII is in no plain header
    found = _HEADER.findall(text)
    headers = {name.lower(): value for name, value in found}
    if len(headers) != len(found) or len(found) != text.count("\n") - 1:
        return None  # a name is repeated, or a line is no plain header
    return headers


def plain_request(data: bytes) -> PlainRequest | None:
    """The request in ``data``, where that is one whole request, and nothing else."""
    line = _REQUEST_LINE.match(data)
    end = data.find(b"\r\n\r\n") + 4
    if line is None or end < 4:
        return None
    headers = plain_headers(data[line.end() : end])
    if headers is None or "host" not in headers or "transfer-encoding" in headers:
        return None
    if headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length) or int(length) != len(data) - end:
        return None
    # As h11's events give it, which leave out the blanks around a value.
    size = line.end() + 2 + sum(map(len, headers)) + sum(map(len, headers.values())) + 4 * len(headers)
    return PlainRequest(line[1].decode(), line[2].decode(), headers, size, data[end:])
