"""The event loop that most client libraries need."""

from __future__ import annotations

import asyncio

from goim_core.errors import ConfigurationError

__all__ = ["check_asyncio"]


def check_asyncio(name: str) -> None:
    """Raise :class:`~goim_core.errors.ConfigurationError` where the event loop is not asyncio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(f"{name} needs asyncio: run on asyncio or uvloop") from None
