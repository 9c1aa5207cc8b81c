"""BilibiliDiscovery: the nodes in bilibili/discovery, which goim's own processes use. Needs httpx.

By its HTTP API: ``register`` at the start, ``set`` and ``renew`` while the node lives, ``cancel`` at the end;
``polls`` waits at the server until a node comes, goes or tells something new.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio

from goim_core.adapters.discovery.servers import Servers
from goim_core.adapters.trouble import Trouble
from goim_core.clock import Clock, SystemClock
from goim_core.discovery import APPID, Discovery, Node, instance, read_instance
from goim_core.errors import BackboneError, ConfigurationError

__all__ = ["BilibiliDiscovery"]

UNCHANGED = -304
UNKNOWN = (-404, -400)
"""Codes for a node that is not registered: ``renew`` says the one, ``set`` the other."""
UP = "1"
"""The status of a node that takes traffic. Polls tell of no other, so that drained nodes have it, too."""
HELD = 30.0
"""How many seconds the server holds a poll."""
PAUSE = 1.0
"""Between two polls, in seconds: in a large cluster somebody always tells something new."""
LONGEST_WAIT = 30.0
SILENT = 90
"""After how many seconds without a sign of life a node is forgotten."""
NO_GRPC = {"grpc": "127.0.0.1:0"}
"""A goim job calls each node at this door, and takes in none over one node that has no such door. Nothing can
listen at port 0, so that the call fails at once, and reaches no comet that runs beside the node."""

_log = logging.getLogger("goim_core.adapters.discovery")


class BilibiliDiscovery(Discovery):
    """The nodes that are registered as ``appid`` in ``env`` with the servers at ``urls``.

    ``urls`` is one or several, such as ``"http://10.0.0.1:7171"`` (in one text with commas between them),
    which replicate to each other: one is asked until it fails, then the next. ``env`` is that of DEPLOY_ENV
    unless given. ``Server`` needs a ``zone``, in which its name is unique. Every ``refresh`` seconds this
    node tells how many connections it has, every ``renew`` seconds that it lives. One that is silent for
    90 s is left out, though the discovery may keep it: up to an hour, when it suspects itself, which in a
    small cluster one silent node is enough for. ``timeout`` is for one answer.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        urls: str | Iterable[str],
        *,
        env: str = "",
        appid: str = APPID,
        refresh: float = 10.0,
        renew: float = 30.0,
        timeout: float = 3.0,
        clock: Clock | None = None,
    ) -> None:
        env = env or os.environ.get("DEPLOY_ENV", "")
        if not env:
            raise ConfigurationError("env: missing: give it, or set DEPLOY_ENV, to such as 'dev' or 'prod'")
        for name, seconds in (("refresh", refresh), ("renew", renew), ("timeout", timeout)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
                raise ConfigurationError(f"{name}: expected seconds above 0, got {seconds!r:.80}")
        self._servers = Servers(urls.split(",") if isinstance(urls, str) else list(urls), timeout)
        self._env = env
        self._appid = appid
        self._refresh = refresh
        self._renew = renew
        self._clock = SystemClock() if clock is None else clock
        self._own: Callable[[], Node] | None = None
        self._nodes: tuple[Node, ...] = ()
        self._since = (0, "")
        self._renewed = 0.0
        self._draining = False
        self._broken: set[str] = set()
        self._telling: anyio.CancelScope | None = None
        self._untold = Trouble(_log, "this node cannot say that it lives")
        self._unheard = Trouble(_log, "the list of nodes is not fresh")

    def nodes(self) -> Sequence[Node]:
        """See :meth:`~goim_core.discovery.Discovery.nodes`."""
        return self._nodes

    @property
    def trouble(self) -> str:
        """See :attr:`~goim_core.discovery.Discovery.trouble`."""
        return self._untold.text or self._unheard.text

    # Telling of this node.

    async def start(self, node: Callable[[], Node]) -> None:
        """See :meth:`~goim_core.discovery.Discovery.start`."""
        own = node()
        if not own.zone:
            raise ConfigurationError("zone: missing: bilibili/discovery keeps nodes by zone")
        self._own = node
        self._nodes = (own,)
        await self._register(own)
        try:
            await self._fetch()
        except BackboneError as error:
            # One that has just started itself takes registrations, and answers nothing for a minute.
            self._unheard.begin(error)

    async def _register(self, own: Node) -> None:
        # A server hands a list on to another as one text with commas, of which Go reads what comes first.
        addrs = [f"{door}://{address}" for door, address in {**NO_GRPC, **own.addrs}.items()]
        await self._tell("register", own, addrs=addrs, version="", status=UP, metadata=_metadata(own))
        self._renewed = self._clock.now()
        self._draining = own.draining

    async def update(self) -> None:
        """See :meth:`~goim_core.discovery.Discovery.update`."""
        if self._own is None:
            return
        own = self._own()
        if own.draining == self._draining:
            code = await self._tell("set", own, UNKNOWN, status=UP, metadata=_metadata(own))
            if code not in UNKNOWN:
                return
        # A set is heard by those whose poll waits just then. A register makes a newer list, which all get.
        await self._register(own)

    async def _renew_in_time(self, own: Node) -> None:
        if self._clock.now() - self._renewed < self._renew - self._refresh / 2:
            return
        code = await self._tell("renew", own, UNKNOWN)
        if code in UNKNOWN:
            await self._register(own)
        self._renewed = self._clock.now()

    async def cancel(self) -> None:
        """See :meth:`~goim_core.discovery.Discovery.cancel`."""
        if self._own is None:
            return
        own, self._own = self._own(), None
        if self._telling is not None:
            self._telling.cancel()
        try:
            await self._tell("cancel", own, UNKNOWN)
        except BackboneError as error:
            _log.warning("this node stays in the list for %d s and more: %s", SILENT, error)

    async def _tell(self, what: str, own: Node, also: Iterable[int] = (), **fields: str | list[str]) -> int:
        """Its code: 0, or one of ``also``."""
        who = {"zone": own.zone, "env": self._env, "appid": self._appid, "hostname": own.name}
        form = {**who, "region": own.region, **fields}
        code, _ = await self._servers.ask("POST", what, form)
        if code and code not in also:
            raise BackboneError(f"urls: {self._servers.current} answered {what} with code {code}")
        return code

    # Hearing of the others.

    async def _fetch(self) -> None:
        fields = {"env": self._env, "appid": self._appid, "status": UP}
        code, data = await self._servers.ask("GET", "fetch", fields)
        if code:
            raise BackboneError(f"urls: {self._servers.current} answered fetch with code {code}")
        self._take(data, self._servers.current)

    async def _poll(self, hostname: str) -> None:
        server = self._servers.current
        since = self._since[0] if self._since[1] == server else 0  # each server counts by itself
        fields = {
            "env": self._env,
            "hostname": hostname,
            "appid": self._appid,
            "latest_timestamp": str(since),
        }
        code, data = await self._servers.ask("GET", "polls", fields, tries=1, held=HELD)
        if code not in (0, UNCHANGED):
            self._servers.leave(server)
            raise BackboneError(f"urls: {server} answered polls with code {code}")
        if not code and isinstance(data, dict) and data.get(self._appid):
            self._take(data[self._appid], server)

    def _take(self, data: Any, server: str) -> None:
        try:
            found = _living([fields for zone in data["instances"].values() for fields in zone or ()])
            self._since = int(data["latest_timestamp"]), server
        except (TypeError, ValueError, LookupError, AttributeError):
            raise BackboneError(f"urls: no list of nodes from {server}: {data!r:.80}") from None
        nodes = {node.name: node for fields in found if (node := self._read(fields)) is not None}
        if self._own is not None:
            own = self._own()
            nodes.setdefault(own.name, own)
        self._nodes = tuple(nodes[name] for name in sorted(nodes))

    def _read(self, fields: Mapping[str, Any]) -> Node | None:
        try:
            return read_instance(fields)
        except ValueError as error:
            who = str(fields.get("hostname") if isinstance(fields, dict) else fields)[:80]
            if who not in self._broken and len(self._broken) < 1000:
                self._broken.add(who)
                _log.warning("node %r is left out: %s", who, error)
            return None

    # While the server runs.

    async def run(self) -> None:
        """See :meth:`~goim_core.discovery.Discovery.run`."""
        if self._own is None:
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._go_on_hearing, self._own().name)
            with anyio.CancelScope() as self._telling:
                await self._go_on_telling(self._own)

    async def _go_on_telling(self, own: Callable[[], Node]) -> None:
        while True:
            await self._clock.sleep(self._refresh)
            try:
                await self._renew_in_time(own())
                await self.update()
            except BackboneError as error:
                self._untold.begin(error)
            else:
                self._untold.end()

    async def _go_on_hearing(self, hostname: str) -> None:
        failures = 0
        while True:
            try:
                await self._poll(hostname)
            except BackboneError as error:
                self._unheard.begin(error)
                # The others are tried at once.
                wait = 0.0 if failures < len(self._servers) - 1 else 2.0 ** min(failures, 10)
                failures += 1
                await self._clock.sleep(min(LONGEST_WAIT, wait))
            else:
                failures = 0
                self._unheard.end()
                await self._clock.sleep(PAUSE)

    async def aclose(self) -> None:
        """See :meth:`~goim_core.discovery.Discovery.aclose`."""
        await self._servers.aclose()


def _living(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that gave a sign of life not long before the latest of all, by the discovery's own clock."""
    signs = [max(int(each.get(f"{name}_timestamp", 0)) for name in ("renew", "latest")) for each in instances]
    oldest = max(signs, default=0) - SILENT * 10**9
    return [each for each, sign in zip(instances, signs, strict=True) if sign >= oldest]


def _metadata(own: Node) -> str:
    return json.dumps(instance(own)["metadata"])
