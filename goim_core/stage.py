"""Where a connection is in its life: the table of the stages is in connection.py."""

from __future__ import annotations

from enum import IntEnum

from goim_core.errors import CloseCode

__all__ = ["AUTH", "CLOSED", "CLOSING", "HANDSHAKE", "LATE", "LIVE", "Stage"]


class Stage(IntEnum):
    """Where a connection is in its life."""

    HANDSHAKE = 0
    AUTH = 1
    LIVE = 2
    CLOSING = 3
    CLOSED = 4


HANDSHAKE, AUTH, LIVE, CLOSING, CLOSED = Stage


LATE = {
    HANDSHAKE: ("no handshake in time", CloseCode.HANDSHAKE_TIMEOUT),
    AUTH: ("no authentication in time", CloseCode.AUTH_TIMEOUT),
    LIVE: ("no heartbeat in time", CloseCode.HEARTBEAT_TIMEOUT),
}
"""Why a connection is closed that stays in a stage for too long."""
