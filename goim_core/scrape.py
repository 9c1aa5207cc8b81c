"""All figures of a server as Prometheus asks for them. Sync.

What there is to tell is kept by those who do the work (stats.py, metrics.py); here it gets its names. The
time that a scrape takes does not depend on how many are connected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import frozen

from goim_core.metrics import Instruments
from goim_core.options import OutboxPolicy
from goim_core.overview import Overview
from goim_core.process import PROCESS, write_process
from goim_core.prometheus import Page
from goim_core.stats import Stats

__all__ = ["FAMILIES", "scrape"]


@frozen
class _Figure:
    """How a field of :class:`Stats` is named, and for a mapping what its keys are."""

    name: str
    kind: str
    meaning: str
    label: str = ""
    known: tuple[str, ...] = ()
    """Keys that are told as 0 while there is none: a rate needs a first value."""


_STATS = {
    "connections": _Figure("goim_core_connections", "gauge", "Open client sockets, authenticated or not."),
    "users": _Figure("goim_core_users", "gauge", "Authenticated connections."),
    "addresses": _Figure("goim_core_addresses", "gauge", "Different IP addresses of those."),
    "rooms": _Figure("goim_core_rooms", "gauge", "Rooms with at least one connection."),
    "opened": _Figure("goim_core_connections_opened_total", "counter", "Connections since the start."),
    "closes": _Figure(
        "goim_core_connections_closed_total", "counter", "Connections that have ended, by close code.", "code"
    ),
    "deliveries": _Figure("goim_core_deliveries_total", "counter", "Messages given to a connection."),
    "drops": _Figure(
        "goim_core_drops_total",
        "counter",
        "Messages that a connection did not get, by reason.",
        "reason",
        (*OutboxPolicy, "lost", "inbox", "operation"),
    ),
    "pending": _Figure("goim_core_queue_pending", "gauge", "Pushes accepted and not yet given to all."),
    "refusals": _Figure(
        "goim_core_refusals_total", "counter", "What a limit refused, by the option's name.", "limit"
    ),
    "handshakes": _Figure("goim_core_handshakes", "gauge", "Connections on their way in."),
    "http_connections": _Figure("goim_core_http_connections", "gauge", "Open HTTP connections."),
    "outbox_bytes": _Figure("goim_core_outbox_bytes", "gauge", "What waits for all clients together."),
    "troubles": _Figure(
        "goim_core_trouble",
        "gauge",
        "1 where something is wrong with a part that nodes share.",
        "part",
        ("queue", "registry", "discovery"),
    ),
}
_OWN = {
    "goim_core_info": ("gauge", "1; the labels say which node this is."),
    "goim_core_uptime_seconds": ("gauge", "For how long the server has been running."),
    "goim_core_ready": ("gauge", "1 when clients may come, as /readyz says."),
    "goim_core_pushes_total": ("counter", "Pushes by kind and outcome (ok, refused, failed)."),
    "goim_core_batch_messages": ("histogram", "Messages merged into one packet."),
    "goim_core_hook_seconds": ("histogram", "Time of an exchange with the application's hooks."),
    "goim_core_hook_outcomes_total": ("counter", "Those exchanges by what came of them."),
    "goim_core_loop_lag_seconds": ("histogram", "How late a timer of four a second fires."),
    "goim_core_loop_lag_worst_seconds": ("gauge", "The latest of the last 30 to 60 seconds."),
    "goim_core_queue_lag_seconds": ("gauge", "How long the push that came off the queue last had waited."),
    "goim_core_traced_users": ("gauge", "Users that are traced."),
}
FAMILIES = {figure.name: (figure.kind, figure.meaning) for figure in _STATS.values()} | _OWN | PROCESS
"""Kind and meaning of every family."""


def scrape(server: Overview) -> bytes:
    """The figures of ``server`` now, as :data:`goim_core.prometheus.CONTENT_TYPE`."""
    page = Page()
    _write_stats(page, server.stats())
    page.family("goim_core_info", *_OWN["goim_core_info"])
    page.sample("goim_core_info", 1, (("node", server.node().name),))
    _write_instruments(page, server.instruments)
    values = {
        "goim_core_uptime_seconds": server.uptime,
        "goim_core_ready": int(not server.unready),
        "goim_core_queue_lag_seconds": server.queue_lag,
        "goim_core_traced_users": len(server.traced),
    }
    for name, value in values.items():
        page.family(name, *_OWN[name])
        page.sample(name, value)
    write_process(page)
    return page.encode()


def _write_stats(page: Page, stats: Stats) -> None:
    for field in attrs.fields(type(stats)):
        value: Any = getattr(stats, field.name)
        # A field that has no name here yet is told all the same.
        untold = _Figure(f"goim_core_{field.name}", "untyped", f"Stats.{field.name}", "name")
        figure = _STATS.get(field.name, untold)
        page.family(figure.name, figure.kind, figure.meaning)
        if isinstance(value, Mapping):
            found = dict.fromkeys(map(str, figure.known), 0) | {
                str(key): 1 if isinstance(of, str) else of for key, of in value.items()
            }
            page.samples(figure.name, figure.label, found)
        else:
            page.sample(figure.name, value)


def _write_instruments(page: Page, instruments: Instruments) -> None:
    def family(name: str) -> str:
        page.family(name, *_OWN[name])
        return name

    name = family("goim_core_pushes_total")
    for kind, count in instruments.pushes.items():
        for outcome, number in attrs.asdict(count).items():
            page.sample(name, number, (("kind", kind), ("outcome", outcome)))
    page.histogram(family("goim_core_batch_messages"), instruments.batches)
    name = family("goim_core_hook_seconds")
    for hook, times in instruments.hooks.items():
        page.histogram(name, times.seconds, (("hook", hook),))
    name = family("goim_core_hook_outcomes_total")
    for hook, times in instruments.hooks.items():
        for outcome, number in times.outcomes.items():
            page.sample(name, number, (("hook", hook), ("outcome", outcome)))
    page.histogram(family("goim_core_loop_lag_seconds"), instruments.loop.seconds)
    page.sample(family("goim_core_loop_lag_worst_seconds"), instruments.loop.worst)
