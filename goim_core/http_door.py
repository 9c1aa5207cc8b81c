"""HTTP/1.1 on accepted sockets: routes, and what is answered where none fits.

Errors that the door itself answers have goim's shape, ``{"code":-404,"message":"..."}``, with the
HTTP status to match.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, OrderedDict
from itertools import islice

import anyio

from goim_core.errors import ConfigurationError, HookError
from goim_core.flow import settled
from goim_core.guard import Guard
from goim_core.http_conversation import Conversation
from goim_core.http_heads import Message, message
from goim_core.http_message import JSON, Handler, Request, Response, Routes, error
from goim_core.logs import ending_told, tell_http_ending
from goim_core.tls import TLSSocket

__all__ = ["JSON", "HTTPDoor", "Handler", "Request", "Response", "Routes", "error"]

UNASKED = 1 << 14
"""The largest body that a GET may have, or a request that no route is for (RFC 9110 section 9.3.1)."""

_log = logging.getLogger("goim_core.http")


class HTTPDoor:
    """Serves ``routes`` on sockets that somebody else accepts, and ``guarded`` to those whom ``guard`` lets.

    ``max_body`` and ``max_header`` bytes of a request, above which it is answered 413 or 431 and its
    connection closed (a body that no route asks for has 16 KB at most); ``timeout`` seconds for a TLS
    handshake with the first request, for a whole request to arrive after its first byte (then 408), and
    for a peer that takes none of its answer; ``idle``
    seconds between requests; ``linger`` seconds for the peer of a refused request to read why. A handler
    has no time limit.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the option which cannot be used.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        guarded: Routes | None = None,
        guard: Guard | None = None,
        max_body: int = 1024 * 1024,
        max_header: int = 64 * 1024,
        timeout: float = 30.0,
        idle: float = 75.0,
        linger: float = 2.0,
    ) -> None:
        for name, value, least in (("max_body", max_body, 0), ("max_header", max_header, 1)):
            if value < least:
                raise ConfigurationError(f"{name}: expected at least {least}, got {value}")
        for name, seconds in (("timeout", timeout), ("idle", idle), ("linger", linger)):
            if not seconds > 0:
                raise ConfigurationError(f"{name}: expected more than 0 seconds, got {seconds}")
        guarded = guarded or {}
        # A path of the application's own is the application's to guard.
        self.guarded = guarded.keys() - routes.keys()
        self.guard = Guard() if guard is None else guard
        self.routes = {**guarded, **routes}
        _check(self.routes)
        self.max_body = max_body
        self.max_header = max_header
        self.timeout = timeout
        self.idle = idle
        self.linger = linger
        self.refusals: Counter[str] = Counter()
        """How often a request was not read to its end, by the option that says so."""
        self.waiting: OrderedDict[Conversation, None] = OrderedDict()
        """The connections that wait for their peer, first the one whose last answer is longest ago."""

        self.turns = anyio.Lock()
        """Held for a turn of the loop: one pipelined request, or step of a TLS handshake, in each."""

    def make_way(self, count: int) -> None:
        """End the first ``count`` of :attr:`waiting`. Nobody gives way while a request is being answered."""
        for conversation in list(islice(self.waiting, count)):
            conversation.give_way()

    async def serve(self, sock: socket.socket | TLSSocket, *, certified: bool = False) -> None:
        """Serve ``sock``, accepted and non-blocking, until it ends. Closes it, also when cancelled.

        ``certified``: whoever is at its other end has a certificate that the guard counts. Raises nothing
        for what the peer does or a handler raises.
        """
        conversation, why = Conversation(self, sock, certified), "the server is stopping"
        try:
            why = await conversation.run()
        except (OSError, anyio.ClosedResourceError) as lost:
            why = f"connection lost: {getattr(lost, 'strerror', None) or repr(lost)}"
        finally:
            sock.close()
            if ending_told():
                transport = "https" if isinstance(sock, TLSSocket) else "http"
                tell_http_ending(conversation.address, transport, why, conversation.answered)

    def refusal(self, request: Request) -> Response | None:
        """The guard's answer to ``request``, asked before its body is read; None where it lets it in."""
        return self.guard.refusal(request) if request.path in self.guarded else None

    def most_body(self, request: Request | Response) -> int:
        """The largest body that ``request`` may have: none is kept that no route asks for."""
        asked = (
            isinstance(request, Request)
            and request.method not in ("GET", "HEAD")
            and request.method in self.routes.get(request.path, ())
        )
        return self.max_body if asked else min(self.max_body, UNASKED)

    async def answer(self, request: Request) -> Message:
        """The answer of the route that ``request`` names, or the error that says why there is none."""
        methods = self.routes.get(request.path)
        if methods is None:
            return message(error(404, f"no such path: {request.path[:80]!r}"))
        handler = methods.get(request.method)
        if handler is None and request.method == "HEAD":
            handler = methods.get("GET")
        if handler is None:
            allow = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
            return message(error(405, f"{request.path}: expected {allow}", (("Allow", allow),)))
        try:
            return message(_checked(await settled(handler(request))))
        except Exception:  # noqa: BLE001 - the border to the application's routes: its faults end here
            _log.exception("%s %s: the route failed", request.method, request.path)
            return message(error(500, "internal error"))


def _check(routes: Routes) -> None:
    for path, methods in routes.items():
        if not path.startswith("/"):
            raise ConfigurationError(f"routes: expected a path that begins with '/', got {path!r}")
        for method in methods:
            # After a CONNECT that succeeds the connection would no longer be HTTP.
            if not method.isupper() or method == "CONNECT":
                raise ConfigurationError(f"routes: {path}: expected a method like 'GET', got {method!r}")


def _checked(returned: object) -> Response:
    if not isinstance(returned, Response):
        # Not what it returned: there may be a token in it.
        raise HookError(f"a route has to return a Response, got {type(returned).__name__}")
    return returned
