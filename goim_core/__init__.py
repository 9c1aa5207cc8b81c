"""goim's instant-messaging and push pipeline as one embeddable library.

Create a :class:`Server` with an :class:`AuthHook` and the addresses to listen on, and push with its
``push_*`` methods; docs/embedding.md shows how.
"""

from goim_core.errors import (
    CloseCode,
    ConfigurationError,
    Disconnect,
    ErrorCode,
    GoimError,
    HookError,
    ProtocolError,
    QueueFull,
    Refused,
    ServerStopped,
)
from goim_core.hooks import AuthHook, AuthRequest, MessageHook, OpenAuth, Pusher, Session, SessionHook
from goim_core.http_door import Request, Response
from goim_core.http_pages import pages
from goim_core.options import Options, OutboxPolicy
from goim_core.protocol import Frame, Op
from goim_core.queue import MemoryQueue, PushMsg, PushType, Queue
from goim_core.registry import MemoryRegistry, Registry
from goim_core.server import Server, Stats

__all__ = [
    "AuthHook", "AuthRequest", "CloseCode", "ConfigurationError", "Disconnect", "ErrorCode", "Frame",
    "GoimError", "HookError", "MemoryQueue", "MemoryRegistry", "MessageHook", "Op", "OpenAuth", "Options",
    "OutboxPolicy", "ProtocolError", "PushMsg", "PushType", "Pusher", "Queue", "QueueFull", "Refused",
    "Registry", "Request", "Response", "Server", "ServerStopped", "Session", "SessionHook", "Stats", "pages",
]  # fmt: skip
