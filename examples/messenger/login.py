"""POST /login: a token for a name and a password."""

from __future__ import annotations

import json

from examples.messenger.directory import Directory
from examples.messenger.hooks import Message
from goim_core import Op, Request, Response
from goim_core.auth import SignedTokenAuth

LIFETIME = 12 * 3600.0
"""Seconds for which a token is good. A client that stays longer logs in again and sends a REFRESH."""
ACCEPTS = [*Message, Op.ERROR, Op.ACK, Op.SYNC, Op.JOIN, Op.LEAVE, Op.MEMBERS, Op.WATCH, Op.UNWATCH]
ACCEPTS += [Op.PRESENCE, Op.LAST_SEEN, Op.REFRESH, Op.EXPIRING]


class Login:
    """``{"name":"Violet","password":"...","device":"phone"}`` for ``{"mid":1,"token":"..."}``."""

    def __init__(self, directory: Directory, auth: SignedTokenAuth) -> None:
        self._directory = directory
        self._auth = auth

    async def __call__(self, request: Request) -> Response:
        try:
            asked = json.loads(request.body)
            name, password, device = (asked[field].strip() for field in ("name", "password", "device"))
        except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
            return _answer(400, error="expected a JSON object with name, password and device")
        if not all(0 < len(text) <= 40 and text.isprintable() for text in (name, device)) or not password:
            return _answer(400, error="expected 1 to 40 characters for the name and for the device")
        mid = await self._directory.log_in(name, password)
        if mid is None:
            return _answer(403, error="wrong password")
        # The key is the device's: when it connects again, its old connection gives way.
        token = self._auth.sign(
            mid=mid,
            expires=self._auth.now() + LIFETIME,
            key=f"{mid}/{device}",
            device=device,
            accepts=ACCEPTS,
            data=name,
        )
        return _answer(200, mid=mid, token=token)


def _answer(status: int, **fields: object) -> Response:
    return Response(status, json.dumps(fields).encode())
