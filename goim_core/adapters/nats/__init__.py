"""NATS: :class:`NATSQueue`. Needs nats-py, and asyncio."""

from goim_core.adapters.nats.queue import NATSQueue

__all__ = ["NATSQueue"]
