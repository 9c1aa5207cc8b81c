"""Logs that a program can read and nobody can forge: two formats, and the line for a connection's end."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

__all__ = ["JSONFormatter", "TextFormatter", "ending_told", "shown", "tell_ending", "tell_http_ending"]

_endings = logging.getLogger("goim_core.connection")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest is what was given as ``extra``."""


def shown(text: str) -> str:
    """``text`` on one line: what cannot be printed is escaped, so that a value cannot look like a line.

    Text that can be printed stays as it is, a backslash in it too.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


class TextFormatter(logging.Formatter):
    """One line for each record, whatever is in its message; a traceback follows on lines of its own."""

    def __init__(self, fmt: str = "%(levelname)s %(name)s: %(message)s") -> None:
        super().__init__(fmt)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line."""
        record.message = shown(record.message)
        return super().formatMessage(record)


class JSONFormatter(logging.Formatter):
    """One JSON object on a line for each record.

    ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, then what was given as ``extra``, and
    ``exception`` with the traceback and ``stack`` where there are some. ASCII only. Values that JSON does
    not have are shown by ``repr``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                found.setdefault(name, value)
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            found["stack"] = self.formatStack(record.stack_info)
        return json.dumps(found, default=repr)


def ending_told() -> bool:
    """Whether anybody wants to hear of the ends of connections."""
    return _endings.isEnabledFor(logging.INFO)


def tell_ending(
    *, key: str, mid: int, address: str, transport: str, room: str, code: int, reason: str, drops: int
) -> None:
    """Log that a connection has ended. ``key`` is empty where it had not authenticated."""
    who = f"{key} (user {mid}, {transport} from {address})" if key else f"{address} ({transport}, nobody yet)"
    extra = {
        "key": key, "mid": mid, "address": address, "transport": transport, "room": room,
        "code": code, "reason": reason, "drops": drops,
    }  # fmt: skip
    _endings.info("%s ended: %s (%d), %d dropped", who, shown(reason), code, drops, extra=extra)


def tell_http_ending(address: str, transport: str, reason: str, requests: int) -> None:
    """The same of a connection with HTTP, of which so many ``requests`` were answered."""
    extra = {"address": address, "transport": transport, "reason": reason, "requests": requests}
    _endings.info("%s (%s) ended: %s, %d requests", address, transport, shown(reason), requests, extra=extra)
