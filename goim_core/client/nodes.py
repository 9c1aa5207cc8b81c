"""Asking where to connect: goim's ``GET /goim/nodes/weighted``."""

from __future__ import annotations

import json
import logging
import math
import ssl
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import urlsplit

import anyio
import h11

from goim_core.client.address import Target, parse, read_nodes
from goim_core.client.link import reach
from goim_core.client.settings import Settings
from goim_core.masked import masked

__all__ = ["Address", "NodeList", "Where", "where"]

PATH = "/goim/nodes/weighted"
LONGEST = 1 << 20
"""How many bytes of an answer are read."""
JITTER = 0.2
"""By which part the time until the nodes are asked for again is longer or shorter."""

_log = logging.getLogger("goim_core.client")


class Where(Protocol):
    """Says where to connect."""

    async def targets(self) -> Sequence[Target]:
        """The addresses to try, one after the other. Raises OSError that names what was asked."""

    async def keep_fresh(self, connected: Callable[[], bool]) -> None:
        """Ask again now and then, while ``connected``, until cancelled; raises nothing."""


class Address:
    """One address, always the same."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def targets(self) -> Sequence[Target]:
        """See :meth:`Where.targets`."""
        return [self._target]

    async def keep_fresh(self, connected: Callable[[], bool]) -> None:
        """See :meth:`Where.keep_fresh`. There is nothing to ask."""


class NodeList:
    """The nodes that ``url`` names, asked for each time, and now and then while there is a connection.

    While nobody answers, they are those that it named last.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self._shown = masked(url.partition("?")[0])
        self._asked = _parse(url)
        self._settings = settings
        self._known: Sequence[Target] = ()

    async def targets(self) -> Sequence[Target]:
        """See :meth:`Where.targets`."""
        try:
            self._known = await self._ask()
        except OSError:
            if not self._known:
                raise
        return self._known

    async def keep_fresh(self, connected: Callable[[], bool]) -> None:
        """See :meth:`Where.keep_fresh`."""
        settings = self._settings
        while settings.refresh_nodes < math.inf:
            # Clients that came all at once, as after a restart, do not ask all at once.
            await settings.clock.sleep(settings.refresh_nodes * (1 + JITTER * (2 * settings.random() - 1)))
            if connected():
                try:
                    self._known = await self._ask()
                except OSError as error:
                    _log.debug("the nodes known are those of before: %s", error)

    async def _ask(self) -> Sequence[Target]:
        seconds = self._settings.connect_timeout
        try:
            with anyio.fail_after(seconds):
                status, body = await _get(self._asked, self._settings.ssl_context)
            return read_nodes(_data(status, body), self._asked, self._settings.doors)
        except TimeoutError:
            raise TimeoutError(f"cannot ask {self._shown} for nodes: not within {seconds:g} s") from None
        except (
            OSError,
            ValueError,
            RecursionError,
            anyio.BrokenResourceError,
            h11.RemoteProtocolError,
        ) as error:
            raise OSError(f"cannot ask {self._shown} for nodes: {error}") from error


def where(address: str, port: int | None, settings: Settings) -> Where:
    """What ``address`` of :func:`goim_core.client.connect` means."""
    if port is None and address.startswith(("http://", "https://")):
        return NodeList(address, settings)
    return Address(parse(address, port))


def _parse(url: str) -> Target:
    try:
        parsed = urlsplit(url)
        host, port = parsed.hostname, parsed.port
    except ValueError as error:
        raise ValueError(f"address: {error}, got {masked(url)!r}") from None
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"address: expected http://host:port, got {masked(url)!r}")
    path = (parsed.path if parsed.path not in ("", "/") else PATH) + (
        f"?{parsed.query}" if parsed.query else ""
    )
    return Target(parsed.scheme, host, port or (443 if parsed.scheme == "https" else 80), path)


def _data(status: int, body: bytes) -> dict[str, Any]:
    if status != 200:
        raise ValueError(f"HTTP status {status}")
    answer = json.loads(body)
    if not isinstance(answer, dict) or answer.get("code") != 0:
        raise ValueError(f"expected an answer of code 0, got {body!r:.80}")
    return answer.get("data") or {}


async def _get(asked: Target, ssl_context: ssl.SSLContext | None) -> tuple[int, bytes]:
    """Status and body of what is there."""
    http = h11.Connection(h11.CLIENT)
    headers = [("Host", asked.authority), ("Accept", "application/json"), ("Connection", "close")]
    status, body = 0, bytearray()
    async with aclosing(await reach(asked, ssl_context)) as stream:
        request = h11.Request(method="GET", target=asked.path, headers=headers)
        await stream.send((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        while True:
            event: Any = http.next_event()
            if event is h11.NEED_DATA:
                try:
                    http.receive_data(await stream.receive())
                except anyio.EndOfStream:
                    http.receive_data(b"")
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > LONGEST:
                    raise ValueError(f"more than {LONGEST} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(body)
