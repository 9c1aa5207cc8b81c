"""What a setting names: a ready-made part by its URL, or a class of the application's own."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from goim_core.discovery import Discovery
from goim_core.errors import ConfigurationError
from goim_core.hooks import AuthHook, MessageHook, RoomHook, SessionHook
from goim_core.queue import Queue
from goim_core.registry import Registry
from goim_core.storage import StorageHook

__all__ = ["CHOICES", "PARTS", "READY", "load", "made"]

PARTS: dict[str, type] = {
    "auth": AuthHook,
    "rooms": RoomHook,
    "sessions": SessionHook,
    "messages": MessageHook,
    "storage": StorageHook,
    "queue": Queue,
    "registry": Registry,
    "discovery": Discovery,
}
"""The parts of a server that a setting may name, and what each has to be."""

CHOICES = {
    "auth": "'open', 'signed', 'jwt' or MODULE:CLASS",
    "storage": "'memory', 'sqlite:FILE', 'postgres:DSN' or MODULE:CLASS",
    "queue": "'nats://HOST:PORT', 'kafka://HOST:PORT', 'redis://HOST:PORT' or MODULE:CLASS",
    "registry": "'redis://HOST:PORT' or MODULE:CLASS",
    "discovery": "'http://HOST:PORT' of a bilibili/discovery, 'redis://HOST:PORT' or MODULE:CLASS",
}
"""What a setting may be, where it is more than MODULE:CLASS."""


def _whole(choice: str) -> str:
    return choice


def _behind_colon(choice: str) -> str:
    return choice.partition(":")[2]


def _dsn(choice: str) -> str:
    behind = _behind_colon(choice)
    return choice if behind.startswith("//") else behind


def _host_port(choice: str) -> str:
    return choice.partition("://")[2]


# Loaded by name: an adapter needs what may not be installed.
READY: dict[str, dict[str, tuple[str, Callable[[str], str]]]] = {
    "storage": {
        "sqlite": ("goim_core.adapters.sqlite:SQLiteStorage", _behind_colon),
        "postgres": ("goim_core.adapters.postgres:PostgresStorage", _dsn),
        "postgresql": ("goim_core.adapters.postgres:PostgresStorage", _dsn),
    },
    "queue": {
        "nats": ("goim_core.adapters.nats:NATSQueue", _whole),
        "kafka": ("goim_core.adapters.kafka:KafkaQueue", _host_port),
        "redis": ("goim_core.adapters.redis:RedisQueue", _whole),
        "rediss": ("goim_core.adapters.redis:RedisQueue", _whole),
    },
    "registry": {
        "redis": ("goim_core.adapters.redis:RedisRegistry", _whole),
        "rediss": ("goim_core.adapters.redis:RedisRegistry", _whole),
    },
    "discovery": {
        "http": ("goim_core.adapters.discovery:BilibiliDiscovery", _whole),
        "https": ("goim_core.adapters.discovery:BilibiliDiscovery", _whole),
        "redis": ("goim_core.adapters.redis:RedisDiscovery", _whole),
        "rediss": ("goim_core.adapters.redis:RedisDiscovery", _whole),
    },
}


def made(setting: str, choice: str) -> Any:
    """The part that ``choice`` names; raises ConfigurationError that names the setting."""
    if (setting, choice) == ("storage", "memory"):
        return load(setting, "goim_core.memory_storage:MemoryStorage")()
    ready = READY.get(setting, {}).get(choice.partition(":")[0])
    if ready is None:
        return load(setting, choice)()
    name, argument = ready
    where = argument(choice)
    if not where:
        raise ConfigurationError(f"{setting}: expected {CHOICES[setting]}; got {_shown(choice)}")
    return load(setting, name)(where)


def load(setting: str, name: str) -> Any:
    """The class ``name``, MODULE:CLASS; raises ConfigurationError that names the setting."""
    expected = CHOICES.get(setting, "MODULE:CLASS")
    if "//" in name:
        raise ConfigurationError(f"{setting}: expected {expected}; got {_shown(name)}")
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{setting}: cannot load {_shown(name)}: {error}") from None
    kind = PARTS[setting]
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigurationError(
            f"{setting}: expected {expected}, a subclass of {kind.__name__}; got {_shown(name)}"
        )
    return found


def _shown(name: str) -> str:
    """``name``, of anything but MODULE:CLASS only the beginning: there may be a password in the rest."""
    if re.fullmatch(r"[\w.]*(:[\w.]*)?", name):
        return repr(name)
    begin = re.match(r"([\w.+-]+:(//)?)?", name)
    return f"'{begin[0] if begin else ''}...'"
