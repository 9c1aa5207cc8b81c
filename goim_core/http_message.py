"""Requests and answers of HTTP, and the routes from one to the other. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from attrs import field, frozen

from goim_core.session import MaybeAwaitable

__all__ = ["JSON", "Handler", "Request", "Response", "Routes", "error", "read_target"]

JSON = "application/json; charset=utf-8"
"""The content type of goim's answers."""


@frozen(eq=False)
class Request:
    """One whole request.

    ``path`` and ``query`` are percent-decoded, ``query`` with all values of a name in order (one without
    a value is empty); ``headers`` have lower-case names, and a repeated one is joined with commas (RFC
    9110 section 5.3); ``address`` is the peer's IP address, empty on a Unix socket; ``certified`` says
    that the peer has shown a certificate of those who may push.
    """

    method: str
    path: str
    query: Mapping[str, tuple[str, ...]]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    address: str = ""
    certified: bool = False


@frozen
class Response:
    """An answer. The door adds Content-Length; ``headers`` is for whatever else there is to say."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Handler: TypeAlias = Callable[[Request], MaybeAwaitable[Response]]
"""Answers a request. A plain function must not block. What it raises is logged and answered 500."""
Routes: TypeAlias = Mapping[str, Mapping[str, Handler]]
"""Handlers by path, then by method. A GET route answers HEAD too."""


def error(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """An answer in goim's shape for the HTTP status ``status``; its code is that number, negative."""
    body = json.dumps({"code": -status, "message": message}, separators=(",", ":"))
    return Response(status, body.encode(), JSON, headers)


def read_target(target: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The path and the query of a request's target, decoded; raises ValueError where it is none."""
    path, _, query = target.partition("?")
    if "://" in path and not path.startswith("/"):
        path = urlsplit(path).path or "/"  # absolute-form, which a server takes (RFC 9112 section 3.2.2)
    return unquote(path, errors="strict"), {name: tuple(found) for name, found in _values(query).items()}


def _values(query: str) -> dict[str, list[str]]:
    if "%" in query or "+" in query:
        return parse_qs(query, keep_blank_values=True, errors="strict")
    values: dict[str, list[str]] = {}
    for part in filter(None, query.split("&")):  # what parse_qs does where nothing is coded
        name, _, value = part.partition("=")
        values.setdefault(name, []).append(value)
    return values
