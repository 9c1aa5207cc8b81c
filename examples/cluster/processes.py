"""Programs that are started, and may be killed, frozen and started again."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["NotStarted", "Process", "free_ports"]

STARTS_WITHIN = 30.0
STOPS_WITHIN = 10.0
PORTS = range(20_000, 32_000)
_given: set[int] = set()


class NotStarted(Exception):
    """A program is not there or does not start; the message says which, and what it said."""


class Process:
    """``command``, which listens at ``port``; ``ready`` matches what it then says, if it says anything.

    All that it says is in ``log``. It has a session of its own: Ctrl+C reaches only who started it, who then
    stops it in its turn.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, port: int, folder: Path, ready: str = ""
    ) -> None:
        self.name = name
        self.port = port
        self.log = folder / f"{name}.log"
        self._command = list(command)
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None
        self._from = 0

    def start(self) -> None:
        """Start it; :meth:`wait` waits until it is ready, so that several may start at once."""
        self._from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths())},
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when it is ready; raises :class:`NotStarted`."""
        end = time.monotonic() + STARTS_WITHIN
        while not self._is_ready():
            if not self.alive or time.monotonic() > end:
                raise NotStarted(f"{self.name} does not start: {self.said()[-2000:].strip()}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        if self._ready:
            return re.search(self._ready, self.said(), re.MULTILINE) is not None
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def said(self) -> str:
        """What it has said since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        if self._process is not None and self.alive:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """It ends at once, in the middle of what it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """It keeps its connections, and does nothing. Returns when all of its threads have stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def free_ports(count: int) -> list[int]:
    """Ports at which nobody listens now, all different, and different from those that were given before.

    Below those that systems give to outgoing connections, one of which might have it a moment later.
    """
    found: list[int] = []
    if len(_given) + count > len(PORTS) // 2:
        _given.clear()  # the first of them have been used by now
    for port in random.sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        if port not in _given:
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                found.append(port)
    _given.update(found)
    return found


def _paths() -> list[str]:
    """Where a node finds this package, wherever it was started."""
    here = str(Path(__file__).absolute().parents[2])
    return list(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
