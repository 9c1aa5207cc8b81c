"""What clients are told about the nodes to connect to, in goim's shapes. One node: this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from goim_core.options import Options

__all__ = ["Addresses", "instances", "weighted"]

Addresses: TypeAlias = Mapping[str, Sequence[tuple[str, int] | str]]
"""Where each door listens: ``(host, port)``, or the path of a Unix socket."""

BACKOFF = {"max_delay": 300, "base_delay": 3, "factor": 1.8, "jitter": 0.3}
"""How clients are told to wait between tries, in seconds: goim's example values."""


def weighted(host: str, addresses: Addresses, options: Options, platform: str) -> dict[str, Any]:
    """goim's ``/goim/nodes/weighted``; times in seconds.

    One node has nothing to weigh: it names itself, by ``host`` where that is given.
    """
    return {
        "domain": host if platform == "web" else "",
        "tcp_port": _port(addresses, "tcp"),
        "ws_port": _port(addresses, "ws"),
        "wss_port": _port(addresses, "wss"),
        "heartbeat": int(options.heartbeat),
        "heartbeat_max": options.heartbeat_max,
        "nodes": [host] if host else [],
        "backoff": BACKOFF,
    }


def instances(name: str, host: str, addresses: Addresses, ips: int, connections: int) -> list[dict[str, Any]]:
    """goim's ``/goim/nodes/instances``."""
    return [
        {
            "appid": "goim.comet",
            "hostname": name,
            "addrs": [
                f"{door}://{shown(address)}" for door, listening in addresses.items() for address in listening
            ],
            "status": 1,
            "metadata": {"conn_count": str(connections), "ip_count": str(ips), "addrs": host},
        }
    ]


def shown(address: tuple[str, int] | str) -> str:
    """``host:port`` as in a URL, or the path of a Unix socket."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(addresses: Addresses, door: str) -> int:
    return next((address[1] for address in addresses.get(door, ()) if not isinstance(address, str)), 0)
