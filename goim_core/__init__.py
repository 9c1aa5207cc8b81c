"""goim's instant-messaging and push pipeline as one embeddable library.

Create a :class:`Server` with an :class:`AuthHook` and the addresses to listen on, and push with its
``push_*`` methods; docs/embedding.md shows how.
"""

from goim_core.auth import OpenAuth, SignedTokenAuth, sign_token
from goim_core.discovery import Discovery, Node, StaticDiscovery
from goim_core.errors import (
    BackboneError,
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
    StorageError,
)
from goim_core.hooks import AuthHook, LoginPolicy, MessageHook, Pusher, RoomHook, SessionHook
from goim_core.http_message import Request, Response
from goim_core.http_pages import pages
from goim_core.memory_storage import MemoryStorage
from goim_core.options import Options, OutboxPolicy
from goim_core.protocol import Frame, Op
from goim_core.queue import MemoryQueue, PushMsg, PushType, Queue
from goim_core.registry import MemoryRegistry, Registry
from goim_core.server import Server
from goim_core.session import AuthRequest, Session
from goim_core.stats import Stats
from goim_core.storage import StorageHook, Stored, StorePolicy
from goim_core.tls import server_context
from goim_core.token_auth import TokenAuth

__all__ = [
    "AuthHook", "AuthRequest", "BackboneError", "CloseCode", "ConfigurationError", "Disconnect",
    "Discovery", "ErrorCode", "Frame", "GoimError", "HookError", "LoginPolicy", "MemoryQueue",
    "MemoryRegistry", "MemoryStorage", "MessageHook", "Node", "Op", "OpenAuth", "Options",
    "OutboxPolicy", "ProtocolError", "PushMsg", "PushType", "Pusher", "Queue", "QueueFull", "Refused",
    "Registry", "Request", "Response", "RoomHook", "Server", "ServerStopped", "Session", "SessionHook",
    "SignedTokenAuth", "StaticDiscovery", "Stats", "StorageError", "StorageHook", "StorePolicy",
    "Stored", "TokenAuth", "pages", "server_context", "sign_token",
]  # fmt: skip
