"""What ``goim-core serve`` is told, by its call and its configuration file, and the server made of it."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import ssl
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from goim_core.auth import OpenAuth, SignedTokenAuth
from goim_core.choices import CHOICES, PARTS, load, made
from goim_core.errors import ConfigurationError
from goim_core.hooks import AuthHook
from goim_core.options import Options
from goim_core.server import Server
from goim_core.tls import server_context

__all__ = [
    "API_KEYS_VARIABLE",
    "BACKENDS",
    "DEFAULT_DOORS",
    "DOORS",
    "RELOADED",
    "SECRET_VARIABLE",
    "SETTINGS",
    "TABLES",
    "backend_of",
    "log_level",
    "options_of",
    "read_api_keys",
    "read_config",
    "read_secrets",
    "security_of",
    "server_of",
    "settings_of",
]

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
DOORS = ("tcp", "tls", "ws", "wss", "http", "https")
DEFAULT_DOORS = {"tcp": ":3101", "ws": ":3102", "http": "127.0.0.1:3111"}
"""goim's ports."""
PLACE = ("region", "zone", "weight")
"""What other nodes and clients choose this one by: goim's REGION, ZONE and WEIGHT unless given."""
SECURITY = ("certificate", "private_key", "client_ca", "api_key_file", "api_client_ca")
"""The files that say who is who: read again when the server is told to."""
SETTINGS = (*DOORS, *PARTS, "backend", *SECURITY, "host", "name", "log", "log_format", *PLACE)
RELOADED = frozenset(("options", "log", *SECURITY))
"""What a running server can be told anew."""
SIGNED = ("secret_file", "cookie", "origins")
JWT = (
    "key_file", "jwks", "algorithms", "audience", "issuer", "leeway", "mid_claim", "claims", "require",
    "cookie", "origins",
)  # fmt: skip
TABLES: dict[str, tuple[str, ...]] = {
    "options": tuple(attrs.fields_dict(Options)),
    "signed": SIGNED,
    "jwt": JWT,
}
"""The tables of a configuration file, and what may be in each."""
SECRET_VARIABLE = "GOIM_CORE_SECRET"  # noqa: S105  # its name only
API_KEYS_VARIABLE = "GOIM_CORE_API_KEYS"


def settings_of(call: argparse.Namespace) -> dict[str, Any]:
    """The settings of the configuration file, and over them those of the call."""
    settings = read_config(call.config) if call.config is not None else {}
    settings |= {name: value for name in SETTINGS if (value := getattr(call, name)) is not None}
    if call.secret_file is not None:
        settings["signed"] = {**settings.get("signed", {}), "secret_file": call.secret_file}
    if not any(settings.get(door) for door in DOORS):
        settings |= DEFAULT_DOORS
    if settings.get("discovery"):
        named = {name: os.environ.get(name.upper()) for name in PLACE}
        settings = {name: value for name, value in named.items() if value} | settings
    return settings


def read_config(config: Path) -> dict[str, Any]:
    """The settings and tables in a TOML file; raises ConfigurationError that names the file."""
    try:
        settings = tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"config: cannot read {str(config)!r}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{config}: {error}") from None
    for name, value in settings.items():
        if name in TABLES:
            _check_table(name, value)
            continue
        if name not in SETTINGS:
            tables = ", ".join(f"[{table}]" for table in TABLES)
            raise ConfigurationError(f"{config}: {name}: expected one of {', '.join(SETTINGS)}, {tables}")
        texts = value if name in DOORS and isinstance(value, list) else [value]
        if not all(isinstance(text, int if name == "weight" else str) for text in texts):
            raise ConfigurationError(f"{config}: {name}: expected text, got {_kind(value)}")
    return settings


def _check_table(table: str, given: Any) -> None:
    if not isinstance(given, dict):
        raise ConfigurationError(f"{table}: expected a table, got {_kind(given)}")
    for name in given:
        if name not in TABLES[table]:
            raise ConfigurationError(f"{table}: {name}: expected one of {', '.join(TABLES[table])}")


def _kind(value: object) -> str:
    """What a value is, in place of the value: it may be a secret that stands in the wrong line."""
    return type(value).__name__


def backend_of(name: str) -> tuple[str, dict[str, Any]]:
    """anyio's name of the event loop and its options; raises ConfigurationError where it is missing."""
    if name not in BACKENDS:
        raise ConfigurationError(f"backend: expected one of {', '.join(BACKENDS)}; got {name!r}")
    try:
        importlib.import_module(name)
    except ImportError:
        raise ConfigurationError(f"backend: {name} is missing; pip install 'goim_core[{name}]'") from None
    return BACKENDS[name]


def log_level(settings: dict[str, Any]) -> str:
    """The log level as :mod:`logging` names it; raises ConfigurationError where it knows none like it."""
    level: str = settings.get("log", "warning")
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigurationError(f"log: expected a level like 'info', got {level!r}")
    return level.upper()


def server_of(settings: dict[str, Any]) -> Server:
    """The server that the settings describe; raises ConfigurationError that names one."""
    others = ("log", "log_format", "backend")  # of the process around it
    settings = {name: value for name, value in settings.items() if name not in others}
    tables = {table: settings.pop(table, {}) for table in TABLES}
    chosen = {name: settings.pop(name, None) for name in PARTS}
    security = security_of(settings)
    settings = {name: value for name, value in settings.items() if name not in SECURITY}
    if chosen["auth"] is None:
        raise ConfigurationError(
            f"auth: missing: expected {CHOICES['auth']}. 'open' believes any token, for development; "
            "'signed' takes those of goim-core token"
        )
    if isinstance(settings.get("weight"), str):
        settings["weight"] = _weight(settings["weight"])
    parts = {name: _part(name, choice, tables) for name, choice in chosen.items() if choice is not None}
    return Server(**parts, **security, options=options_of(tables["options"]), **settings)


def security_of(settings: dict[str, Any]) -> dict[str, Any]:
    """``ssl_context``, ``https_context`` and ``api_keys`` of the settings, for Server and for its reload.

    Raises ConfigurationError that names the setting.
    """
    certificate = settings.get("certificate")
    if not certificate and any(settings.get(door) for door in ("tls", "wss", "https")):
        raise ConfigurationError("certificate: missing, tls, wss and https need one")
    clients, pushers = settings.get("client_ca"), settings.get("api_client_ca")
    if clients and not (settings.get("tls") or settings.get("wss")):
        raise ConfigurationError("client_ca: it is for tls and wss, and the server has neither")
    if pushers and not settings.get("https"):
        raise ConfigurationError("api_client_ca: it is for https, and the server has none")

    def context(client_ca: str | None) -> ssl.SSLContext | None:
        key = settings.get("private_key")
        return server_context(certificate, key, client_ca=client_ca) if certificate else None

    # Two, so that a client's certificate is none of those who may push.
    return {
        "ssl_context": context(clients),
        "https_context": context(pushers),
        "api_keys": read_api_keys(settings.get("api_key_file")),
    }


def _weight(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(f"weight: expected a number, got {text!r:.80}")
    return int(text)


def options_of(given: Any) -> Options:
    """The options in a configuration file's table; raises ConfigurationError that names one."""
    _check_table("options", given)
    return Options(**given)


# Parts.


def _part(setting: str, choice: str, tables: dict[str, dict[str, Any]]) -> Any:
    if setting == "auth" and choice in _AUTHS:
        return _AUTHS[choice](tables)
    return made(setting, choice)


def _open(_: dict[str, dict[str, Any]]) -> AuthHook:
    return OpenAuth()


def _signed(tables: dict[str, dict[str, Any]]) -> AuthHook:
    table = dict(tables["signed"])
    return SignedTokenAuth(read_secrets(table.pop("secret_file", None)), **table)


def _jwt(tables: dict[str, dict[str, Any]]) -> AuthHook:
    table = dict(tables["jwt"])
    hook = load("auth", "goim_core.adapters.jwt:JWTAuth")
    if "algorithms" not in table:
        raise ConfigurationError("algorithms: missing from the table [jwt] of the configuration file")
    if ("key_file" in table) == ("jwks" in table):
        raise ConfigurationError("key_file: the table [jwt] needs either key_file or jwks")
    if "key_file" in table:
        # A shared secret may have any bytes, but that an editor ends the file with a line is no part of it.
        table["key"] = _read_file("key_file", table.pop("key_file")).removesuffix(b"\n").removesuffix(b"\r")
    return hook(**table)  # type: ignore[no-any-return]


_AUTHS: dict[str, Callable[[dict[str, dict[str, Any]]], AuthHook]] = {
    "open": _open,
    "signed": _signed,
    "jwt": _jwt,
}


# Files.


def read_secrets(path: str | None) -> list[bytes]:
    """The secrets in a file, or else in the environment: one a line, of which the first one signs."""
    secrets = _lines("secret-file", "a secret", path, SECRET_VARIABLE)
    if secrets is None:
        raise ConfigurationError(f"secret-file: missing: name a file, or set {SECRET_VARIABLE}")
    return secrets


def read_api_keys(path: str | None) -> list[str]:
    """The API keys in a file, or else in the environment, one a line; none where there is neither."""
    return [os.fsdecode(key) for key in _lines("api-key-file", "a key", path, API_KEYS_VARIABLE) or ()]


def _lines(setting: str, expected: str, path: str | None, variable: str) -> list[bytes] | None:
    """What the lines of the file say, or those of the variable where no file is named."""
    if path is not None:
        text, source = _read_file(setting, path), repr(path)
    elif (value := os.environ.get(variable)) is not None:
        text, source = os.fsencode(value), variable
    else:
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigurationError(f"{setting}: expected {expected} in a line, {source} is empty")
    return lines


def _read_file(setting: str, path: object) -> bytes:
    if not isinstance(path, str):
        raise ConfigurationError(f"{setting}: expected a file's name, got {_kind(path)}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting}: cannot read {path!r}: {error.strerror}") from None
