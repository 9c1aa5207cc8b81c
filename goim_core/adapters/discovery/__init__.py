"""bilibili/discovery: :class:`BilibiliDiscovery`. Needs httpx."""

from goim_core.adapters.discovery.bilibili import BilibiliDiscovery

__all__ = ["BilibiliDiscovery"]
