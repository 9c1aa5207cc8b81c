"""What clients are told about the nodes to connect to, in goim's shapes."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from goim_core.discovery import Node, in_url, instance
from goim_core.options import Options

__all__ = ["instances", "listening", "weighted"]

BACKOFF = {"max_delay": 300, "base_delay": 3, "factor": 1.8, "jitter": 0.3}
"""How clients are told to wait between tries, in seconds: goim's example values."""

CLIENT_DOORS = ("tcp", "tls", "ws", "wss")
_ANY = ("0.0.0.0", "::")  # noqa: S104  # all addresses of the machine


def listening(sockets: Iterable[tuple[str, socket.socket]], host: str) -> dict[str, str]:
    """``addrs`` of a node: where each door is reached, on all addresses at ``host`` where that is given."""
    found: dict[str, str] = {}
    for door, sock in sockets:
        name = sock.getsockname()
        at = name if isinstance(name, str) else f"{in_url(_reached(name[0], host))}:{name[1]}"
        found.setdefault(door, at)
    return found


def _reached(bound: str, host: str) -> str:
    return host if host and bound in _ANY else bound


def weighted(ranked: Sequence[Node], own: Node, options: Options, platform: str) -> dict[str, Any]:
    """goim's ``/goim/nodes/weighted`` of the node ``own``: ``ranked``, best first, of which there is one.

    Times in seconds. goim tells one port of each door, for all nodes; here they are those of the best node,
    and ``nodes`` are those that have the same. ``urls`` has every address, for clients that know it.
    """
    ports = _ports(ranked[0], own)
    reply = {
        "domain": own.host if platform == "web" else "",
        "tcp_port": ports.get("tcp", 0),
        "ws_port": ports.get("ws", 0),
        "wss_port": ports.get("wss", 0),
        "heartbeat": int(options.heartbeat),
        "heartbeat_max": options.heartbeat_max,
        "nodes": [host for node in ranked if _ports(node, own) == ports for host in _hosts(node, platform)],
        "backoff": BACKOFF,
    }
    urls = [
        _urls(node, host, _ports(node, own), options.ws_path)
        for node in ranked
        for host in _hosts(node, platform)
    ]
    return {**reply, "urls": urls} if urls else reply


def _hosts(node: Node, platform: str) -> Sequence[str]:
    if node.hosts and platform != "web":
        return node.hosts
    return (node.host,) if node.host else ()


def _ports(node: Node, own: Node) -> Mapping[str, int]:
    """The ports of a node's doors; a comet of goim says none, and is taken to have those of ``own``."""
    said = {door: node.port(door) for door in CLIENT_DOORS if node.port(door)}
    return said or {door: own.port(door) for door in CLIENT_DOORS if own.port(door)}


def _urls(node: Node, host: str, ports: Mapping[str, int], ws_path: str) -> dict[str, str]:
    urls = {}
    for door, port in ports.items():
        # A certificate is for a name.
        at = node.host if node.host and door in ("tls", "wss") else host
        urls[door] = f"{door}://{in_url(at)}:{port}" + (ws_path if door in ("ws", "wss") else "")
    return urls


def instances(nodes: Iterable[Node]) -> list[dict[str, Any]]:
    """goim's ``/goim/nodes/instances``."""
    return [instance(node) for node in nodes]
