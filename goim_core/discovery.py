"""The discovery's contract: which nodes a cluster has. And its static form, a list.

goim keeps this in bilibili/discovery: each comet is an *instance* there, which tells how many connections
it has. :func:`instance` and :func:`read_instance` are that form of a :class:`Node`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from goim_core.errors import ConfigurationError

__all__ = [
    "APPID",
    "MAX_WEIGHT",
    "Discovery",
    "Node",
    "StaticDiscovery",
    "in_url",
    "instance",
    "read_instance",
]

APPID = "goim.comet"
"""Under this name goim's nodes are registered."""
MAX_WEIGHT = 1 << 20
"""goim's."""


def _count(maximum: int) -> Any:
    def check(_: Any, attribute: Any, value: Any) -> None:
        if type(value) is not int or not 0 <= value <= maximum:
            raise ConfigurationError(
                f"{attribute.name}: expected an int from 0 to {maximum}, got {value!r:.80}"
            )

    return check


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _name(_: Any, __: Any, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"name: expected a node's name, got {value!r:.80}")


@frozen
class Node:
    """One node of a cluster, as it said it was.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the field.
    """

    name: str = field(validator=_name)
    host: str = ""
    """Where browsers and whoever checks a certificate find it: a name, or an address."""
    hosts: Sequence[str] = field(default=(), converter=_texts)
    """Where other clients find it, goim's ``addrs``; empty: at ``host``."""
    addrs: Mapping[str, str] = field(factory=dict)
    """Where each door listens: ``{"ws": "10.0.0.1:3102"}``."""
    region: str = ""
    zone: str = ""
    weight: int = field(default=10, validator=_count(MAX_WEIGHT))
    """Which share of the clients it is to get, against the weights of the others."""
    connections: int = field(default=0, validator=_count(2**63))
    addresses: int = field(default=0, validator=_count(2**63))
    """From how many addresses its connections come."""
    draining: bool = False
    """It keeps the clients it has, and gets no more: goim's ``offline``."""
    metadata: Mapping[str, str] = field(factory=dict)
    """Whatever else there is to say."""
    updated: float = 0
    """Which report this is, another one for each, on any scale."""

    def port(self, door: str) -> int:
        """The port of a door; 0 where it has none, or listens at the path of a Unix socket."""
        port = self.addrs.get(door, "").rpartition(":")[2]
        return int(port) if port.isdecimal() else 0


class Discovery(ABC):
    """Knows the nodes of a cluster, and tells them of this one.

    The server calls :meth:`start`, runs :meth:`run` beside itself, calls :meth:`cancel` when it is about to
    stop, and :meth:`aclose` when it has. A node that died is forgotten within a time that each form states.
    """

    @abstractmethod
    def nodes(self) -> Sequence[Node]:
        """The nodes there are, by name, drained ones too. From memory: never waits."""

    @property
    def trouble(self) -> str:
        """What is wrong at the moment, in a sentence for logs and statistics; empty when nothing is.

        While there is some, :meth:`nodes` are those that were known last.
        """
        return ""

    async def start(self, node: Callable[[], Node]) -> None:
        """Register this node, and learn of the others. ``node`` is called for what this one is like now.

        Raises :class:`~goim_core.errors.BackboneError` that says what is wrong.
        """

    async def update(self) -> None:
        """Tell the others now what this node is like; :meth:`run` does so every few seconds.

        Raises :class:`~goim_core.errors.BackboneError` when they could not be told.
        """

    async def run(self) -> None:
        """Work beside the server until cancelled: say that this node lives, and hear of the others."""

    async def cancel(self) -> None:
        """Tell the others that this node goes, within seconds. Raises nothing: it would be forgotten."""

    async def aclose(self) -> None:
        """Let go of connections, when the server has stopped. By default there are none."""


class StaticDiscovery(Discovery):
    """The nodes of a list, which never changes but that this node is draining.

    ``nodes`` have ``host`` and, where their ports differ, ``addrs``; the name of each is what
    ``Server(name=...)`` is there.

    Raises :class:`~goim_core.errors.ConfigurationError` for a name that two have.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = tuple(sorted(nodes, key=lambda node: node.name))
        names = [node.name for node in self._nodes]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"nodes: expected each name once, got {', '.join(names)}")
        self._own: Callable[[], Node] | None = None

    def nodes(self) -> Sequence[Node]:
        """See :meth:`Discovery.nodes`."""
        return self._nodes

    async def start(self, node: Callable[[], Node]) -> None:
        """See :meth:`Discovery.start`."""
        self._own = node

    async def update(self) -> None:
        """See :meth:`Discovery.update`. Nobody is told: only this node's own answers leave it out."""
        if self._own is not None:
            own = self._own()
            self._nodes = tuple(
                evolve(node, draining=own.draining) if node.name == own.name else node for node in self._nodes
            )


# As goim has it.


def instance(node: Node) -> dict[str, Any]:
    """``node`` as an instance of bilibili/discovery: the metadata is that of goim's comet, and ``host``."""
    return {
        "region": node.region,
        "zone": node.zone,
        "appid": APPID,
        "hostname": node.name,
        "addrs": [f"{door}://{address}" for door, address in node.addrs.items()],
        "status": 1,
        "metadata": {
            **node.metadata,
            "weight": str(node.weight),
            "offline": "true" if node.draining else "false",
            "addrs": ",".join(node.hosts or (node.host,)),
            "conn_count": str(node.connections),
            "ip_count": str(node.addresses),
            "host": node.host,
        },
    }


def read_instance(fields: Mapping[str, Any]) -> Node:
    """The node of an instance, be it a comet of goim. Raises :class:`ValueError` that names a field."""
    name = fields.get("hostname")
    try:
        metadata = dict(fields.get("metadata") or {})
        hosts = tuple(host for host in metadata.pop("addrs", "").split(",") if host)
        host = metadata.pop("host", "") or (hosts[0] if hosts else "")
        addrs = (
            address.partition("://") for text in fields.get("addrs") or () for address in _JOINED.split(text)
        )
        return Node(
            name=name,  # type: ignore[arg-type]  # checked there
            host=host,
            hosts=() if hosts == (host,) else hosts,
            addrs={door: address for door, _, address in addrs},
            region=str(fields.get("region", "")),
            zone=str(fields.get("zone", "")),
            weight=_decimal("weight", metadata.pop("weight", "")),
            connections=_decimal("conn_count", metadata.pop("conn_count", "0")),
            addresses=_decimal("ip_count", metadata.pop("ip_count", "0")),
            draining=metadata.pop("offline", "false") not in _FALSE,
            metadata=metadata,
            updated=fields.get("latest_timestamp", 0),
        )
    except (AttributeError, TypeError) as error:
        raise ValueError(f"no instance: {error}") from None


_JOINED = re.compile(r",(?=[a-z]+://)")
"""bilibili/discovery hands the addresses on to its other servers as one, with commas between them."""


def in_url(host: str) -> str:
    """``host`` as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


_FALSE = ("", "0", "f", "F", "false", "False", "FALSE")
"""Go's ParseBool, and nothing said; what is neither true nor false takes no clients, as in goim."""


def _decimal(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"{name}: expected a number, got {text!r:.80}")
    return int(text)
