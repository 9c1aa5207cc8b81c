"""Redis and Valkey: :class:`RedisQueue`, :class:`RedisRegistry`, :class:`RedisDiscovery`.

Needs redis-py, and asyncio.
"""

from goim_core.adapters.redis.discovery import RedisDiscovery
from goim_core.adapters.redis.queue import RedisQueue
from goim_core.adapters.redis.registry import RedisRegistry

__all__ = ["RedisDiscovery", "RedisQueue", "RedisRegistry"]
