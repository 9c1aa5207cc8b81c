"""Every error that goim_core raises, and the codes a client sees.

Two of them travel to clients and differ in what happens next: :class:`Refused` answers one
frame and the connection goes on; :class:`Disconnect` tells the client why and closes.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "BackboneError",
    "CloseCode",
    "ConfigurationError",
    "Disconnect",
    "ErrorCode",
    "GoimError",
    "HookError",
    "ProtocolError",
    "QueueFull",
    "Refused",
    "ServerStopped",
    "StorageError",
]


class CloseCode(IntEnum):
    """Why a connection was closed: the code of an op-6 body and of a WebSocket close frame.

    Below 4000 the codes are those of RFC 6455 section 7.4.1; from 4000 they are ours (section 7.4.2
    leaves 4000 to 4999 to applications).
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    """A limit of the server is reached (registered with IANA for WebSocket by RFC 6455's rules)."""
    AUTH_REFUSED = 4001
    AUTH_TIMEOUT = 4002
    HEARTBEAT_TIMEOUT = 4003
    REPLACED = 4004
    SLOW = 4005
    HANDSHAKE_TIMEOUT = 4006
    EXPIRED = 4008
    """The token ran out and was not refreshed."""
    TOO_MANY_LOGINS = 4009
    """The login policy allows no more connections of this user: this one gave way, or was refused."""
    LOST = 4007
    """The peer is gone (end of stream, reset): told to hooks and logs, never to the peer."""


class ErrorCode(IntEnum):
    """Why one frame was refused: the code of an ERROR (op 18) body. The meanings are HTTP's."""

    BAD_REQUEST = 400
    FORBIDDEN = 403
    NOT_FOUND = 404
    CONFLICT = 409
    TOO_MANY = 429
    INTERNAL = 500
    TIMEOUT = 504


class GoimError(Exception):
    """The base of every error of this package."""


class ConfigurationError(GoimError, ValueError):
    """An option has a value that cannot be used; the message names the option."""


class ProtocolError(GoimError):
    """The peer broke the wire protocol. The connection cannot go on.

    ``code`` is the close code it is told.
    """

    def __init__(self, reason: str, code: int = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = int(code)


class Refused(GoimError):
    """Raise it from a hook to refuse one frame: the client is answered, its connection goes on.

    Raised by ``authenticate`` it refuses the connection, which is told and closed.
    """

    def __init__(self, reason: str, code: int = ErrorCode.FORBIDDEN) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = int(code)


class Disconnect(GoimError):
    """Raise it from a hook to tell a client why and close its connection.

    ``code`` is sent as the WebSocket close code too, so it has to be one that RFC 6455 section 7.4
    lets an endpoint send: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
    """

    def __init__(self, reason: str, code: int = CloseCode.NORMAL) -> None:
        code = int(code)
        if not (code in _SENDABLE or 3000 <= code <= 4999):
            raise ValueError(f"code: {code} is no close code that may be sent (RFC 6455 section 7.4)")
        super().__init__(reason)
        self.reason = reason
        self.code = code


_SENDABLE = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015)))


class HookError(GoimError, TypeError):
    """A hook returned what it may not return; the message says what is allowed."""


class BackboneError(GoimError):
    """A queue, a registry or a discovery that other nodes share cannot be reached, or will not do it."""


class QueueFull(GoimError):
    """The push queue has no room and the publisher chose not to wait."""


class StorageError(GoimError):
    """The storage cannot do what it was asked; the message says why, and whether it may have been done."""


class ServerStopped(GoimError):
    """The server is not running: it has not started, or it has stopped."""
