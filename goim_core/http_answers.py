"""Requests and answers in goim's shape: parameters in, ``{"code":0,"message":"","data":...}`` out.

What routes of this package have in common; see http_api.py for the codes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from goim_core.errors import ConfigurationError, GoimError
from goim_core.flow import settled
from goim_core.http_message import JSON, Handler, Request, Response
from goim_core.session import MaybeAwaitable

__all__ = ["BadRequest", "answered", "first", "integer", "required", "several"]

OK = 0
BAD_REQUEST = -400
SERVER_ERROR = -500

# int() takes more than Go does: spaces, underscores, digits of other scripts.
_DECIMAL = re.compile(r"[+-]?[0-9]{1,40}")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class BadRequest(Exception):
    """A parameter does not fit; the message is for the caller."""


def answered(call: Callable[[Request], MaybeAwaitable[Any]]) -> Handler:
    """The route that answers with what ``call`` returns or raises."""

    async def handle(request: Request) -> Response:
        try:
            data = await settled(call(request))
        except BadRequest as reason:
            return _answer(BAD_REQUEST, str(reason))
        except ConfigurationError as reason:  # it asks for what this server has not got
            return _answer(BAD_REQUEST, str(reason))
        except GoimError as reason:
            return _answer(SERVER_ERROR, str(reason))
        return _DONE if data is None else _answer(OK, data=data)

    return handle


_DONE = Response(200, b'{"code":0,"message":""}', JSON)


def _answer(code: int, message: str = "", data: Any = None) -> Response:
    fields = {"code": code, "message": message}
    if data is not None:
        fields["data"] = data
    # A room's name may have come from a token with half a surrogate pair in it.
    return Response(200, _encode(fields).encode("utf-8", "replace"), JSON)


def several(request: Request, name: str, expected: str) -> list[str]:
    """Every value of the parameter ``name`` that is not empty; raises :class:`BadRequest` for none."""
    found = [value for value in request.query.get(name, ()) if value]
    if not found:
        raise BadRequest(f"{name}: missing, expected {expected}")
    return found


def first(request: Request, name: str) -> str:
    """The first value of the parameter ``name``, empty where there is none."""
    return request.query.get(name, ("",))[0]


def required(request: Request, name: str, expected: str) -> str:
    """The same, where there has to be one; raises :class:`BadRequest` that says what was expected."""
    value = first(request, name)
    if not value:
        raise BadRequest(f"{name}: missing, expected {expected}")
    return value


def integer(name: str, text: str, expected: str, least: int, most: int) -> int:
    """``text`` as a decimal number from ``least`` to ``most``; raises :class:`BadRequest`."""
    if not _DECIMAL.fullmatch(text) or not least <= int(text) <= most:
        raise BadRequest(f"{name}: expected {expected}, got {text[:80]!r}")
    return int(text)
