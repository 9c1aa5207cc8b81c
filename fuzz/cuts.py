"""How an input says where its stream is cut: ``n``, n lengths of one byte each, the stream.

One byte is not much, so a cut is at most 255 bytes after the one before it. What is left is the last piece.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["MAX_CUTS", "joined", "pieces"]

MAX_CUTS = 15


def pieces(data: bytes) -> list[bytes]:
    """The stream in ``data``, in the pieces in which it shall arrive; an empty one would be its end."""
    count = data[0] & MAX_CUTS if data else 0
    at = 1 + count
    found = []
    for length in data[1:at]:
        found.append(data[at : at + length])
        at += length
    return [piece for piece in (*found, data[at:]) if piece]


def joined(stream: bytes, lengths: Iterable[int] = ()) -> bytes:
    """The input for ``stream`` with pieces of these lengths: what :func:`pieces` takes apart."""
    cuts = bytes(lengths)
    return bytes((len(cuts),)) + cuts + stream
