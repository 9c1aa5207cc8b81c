"""goim's own figures, to stand beside ours.

Measured with the same load client on another day and another machine with two cores, each as lowest and
highest of several runs: so they say how much, not how much exactly.
"""

from __future__ import annotations

__all__ = [
    "ACCEPT_US",
    "BEAT_US",
    "LINGER_US",
    "LOST_OF_A_BURST",
    "MEMORY_KB",
    "MERGED",
    "P50_MS",
    "P99_MS",
    "SINGLE",
    "SOURCE",
]

SOURCE = "goim's figures: Go 1.19, the same load client, measured on a machine with two cores"

SINGLE = (102_000.0, 134_000.0)
"""Deliveries for each second of CPU time, one message a packet, TCP and WebSocket."""
MERGED = (1_950_000.0, 2_100_000.0)
"""The same with 20 messages merged."""
MEMORY_KB = {"tcp": (36.0,), "ws": (41.0,)}
"""Of an idle connection."""
ACCEPT_US = {"tcp": (95.0, 105.0), "ws": (105.0, 178.0)}
"""CPU time to accept and authenticate a connection."""
BEAT_US = (14.0, 16.0)
"""CPU time of a heartbeat."""
P50_MS = {20: (405.0,), 100: (86.0,)}
"""From the push API to 1,000 clients in a room, by pushes a second."""
P99_MS = {20: (810.0,), 100: (170.0,)}
LINGER_US = (0.62,)
"""CPU time of a delivery at 100 pushes a second, merged by goim's rule."""
LOST_OF_A_BURST = (0.9,)
"""At least this share of 1,000 pushes to one room at once."""
