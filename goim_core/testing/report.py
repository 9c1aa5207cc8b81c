"""What an assertion compares, and what it says when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from goim_core.protocol import Frame, Op

__all__ = ["Body", "Expected", "as_bytes", "describe", "matches", "name_of", "wanted"]

Body: TypeAlias = "bytes | str | dict[str, Any] | list[Any]"
"""A body to send: bytes, text as UTF-8, or what becomes JSON."""
Expected: TypeAlias = "Body | Callable[[bytes], object] | None"
"""A body to expect: equal bytes or text, equal as JSON, one for which a function is true, or None for any."""

SHOWN = 120
"""How much of a body is shown, in characters."""


def as_bytes(body: Body) -> bytes:
    """``body`` as it goes on the wire."""
    if isinstance(body, bytes):
        return body
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return text.encode()


def matches(body: bytes, expected: Expected) -> bool:
    """Whether ``body`` is what was expected."""
    if expected is None:
        return True
    if isinstance(expected, dict | list):
        try:
            return bool(json.loads(body) == expected)
        except ValueError:
            return False
    if callable(expected):
        return bool(expected(body))
    return body == as_bytes(expected)


def name_of(op: int) -> str:
    """``op 1000``, or ``HEARTBEAT_REPLY (op 3)`` for the protocol's own."""
    try:
        return f"{Op(op).name} (op {op})"
    except ValueError:
        return f"op {op}"


def wanted(what: str, op: int | None, body: Expected, seq: int | None) -> str:
    """What was looked for, in words."""
    words = [f"a {what}" if op is None else f"a {what} {name_of(op)}"]
    if seq is not None:
        words.append(f"seq {seq}")
    if callable(body):
        words.append(f"with a body for which {getattr(body, '__qualname__', body)} is true")
    elif body is not None:
        words.append(f"with body {_shown(as_bytes(body))}")
    return " ".join(words)


def describe(arrived: Iterable[tuple[str, Frame]]) -> str:
    """The frames that arrived, each with its kind, one on a line."""
    lines = [
        f"  {kind} {name_of(frame.op)} seq {frame.seq} body {_shown(frame.body)}" for kind, frame in arrived
    ]
    return "\n".join(lines) or "  nothing"


def _shown(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text:
        text = repr(body)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(body)} bytes)"
