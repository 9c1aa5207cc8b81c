"""A bucket: a share of the channels, by a stable hash of their keys. Sync.

goim has buckets so that goroutines share locks less. Here they bound work: a broadcast walks one
bucket at a time, and no table grows so large that growing it holds up the loop.
"""

from __future__ import annotations

from zlib import crc32

from attrs import Factory, define

from goim_core.channel import Channel

__all__ = ["Bucket", "Buckets"]


@define(eq=False, weakref_slot=False)
class Bucket:
    """Channels by key."""

    channels: dict[str, Channel] = Factory(dict)

    def put(self, channel: Channel) -> Channel | None:
        """Take ``channel`` in under its key; returns the one that it replaces."""
        key = channel.session.key
        replaced = self.channels.get(key)
        self.channels[key] = channel
        return replaced

    def remove(self, channel: Channel) -> bool:
        """Let ``channel`` out; False where its key is not its own any more."""
        key = channel.session.key
        if self.channels.get(key) is not channel:
            return False
        del self.channels[key]
        return True


class Buckets:
    """All the channels of a server, spread over ``count`` buckets."""

    def __init__(self, count: int) -> None:
        self.all = tuple(Bucket() for _ in range(count))

    def __len__(self) -> int:
        return sum(len(bucket.channels) for bucket in self.all)

    def of(self, key: str) -> Bucket:
        """The bucket that ``key`` belongs to: the same in every process and on every machine."""
        return self.all[crc32(key.encode()) % len(self.all)]

    def get(self, key: str) -> Channel | None:
        """The channel with ``key``."""
        return self.of(key).channels.get(key)
