"""The messenger: its hooks put together, and a server for them.

python -m examples.messenger.app --folder /tmp/messenger
python -m examples.messenger.talk Violet                    in another terminal, and Orange in a third
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio

from examples.messenger.directory import Directory
from examples.messenger.hooks import Devices, Messages, Rooms
from examples.messenger.login import Login
from goim_core import GoimError, Options, Server
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.auth import SignedTokenAuth
from goim_core.settings import API_KEYS_VARIABLE, read_api_keys

OPTIONS = Options(rate=20, rate_burst=200, max_body=16_384)


@contextmanager
def opened(folder: Path) -> Iterator[dict[str, Any]]:
    """The messenger's files in ``folder``, as arguments for a Server or for a test's ``running``."""
    folder.mkdir(mode=0o700, exist_ok=True)
    auth = SignedTokenAuth(_secret(folder / "secret"))
    inbox = SQLiteStorage(folder / "inbox.db")
    with closing(Directory(folder / "people.db")) as directory:
        yield {
            "auth": auth,
            "rooms": Rooms(directory),
            "sessions": Devices(directory),
            "messages": Messages(directory, inbox),
            "storage": inbox,
            "options": OPTIONS,
            "routes": {"/login": {"POST": Login(directory, auth)}},
        }


def _secret(file: Path) -> str:
    """What signs tokens: made once, so that they outlive the process."""
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(32))
    return file.read_text()


async def main() -> None:
    parser = argparse.ArgumentParser(description="The example messenger.")
    parser.add_argument("--folder", type=Path, default=Path("messenger"), help="where its files are")
    parser.add_argument("--tcp", default="127.0.0.1:3101")
    parser.add_argument("--ws", default="127.0.0.1:3102")
    http = f"POST /login, and the push API; beyond this machine with keys in {API_KEYS_VARIABLE}"
    parser.add_argument("--http", default="127.0.0.1:3111", help=http)
    call = parser.parse_args()
    doors = {"tcp": call.tcp, "ws": call.ws, "http": call.http, "api_keys": read_api_keys(None)}
    with opened(call.folder) as parts, anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with Server(**parts, **doors) as server:
            print("ready", server.addresses, flush=True)
            async for _ in signals:
                break


if __name__ == "__main__":
    try:
        anyio.run(main)
    except (GoimError, OSError) as error:
        sys.exit(f"messenger: {getattr(error, 'strerror', None) or error}")
