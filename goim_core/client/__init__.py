"""A client for goim's protocol over TCP and WebSocket, on asyncio and trio.

:func:`connect` is a client that stays connected: it connects again, takes up where it was, drops what
it has seen before, and acknowledges. :func:`connect_once` is one connection and its bare frames, for tests
and tools.
"""

from goim_core.client.backoff import Backoff
from goim_core.client.client import Client, connect
from goim_core.client.link import Link, connect_once
from goim_core.client.messages import ClientState, LastSeen, Members, Message, Presence, StateChange
from goim_core.client.settings import EXTENSIONS, Options, Token, TokenSource

__all__ = [
    "EXTENSIONS", "Backoff", "Client", "ClientState", "LastSeen", "Link", "Members", "Message", "Options",
    "Presence", "StateChange", "Token", "TokenSource", "connect", "connect_once",
]  # fmt: skip
