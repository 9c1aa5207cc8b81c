"""Programs of this project as processes of their own, the way a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["PATIENCE", "ROOT", "Program", "environment", "run", "started"]

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a program that says nothing has failed. Nothing in a test that passes waits for it."""


def environment() -> dict[str, str]:
    """This process's, with the project importable from any directory, and loopback reached directly."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "no_proxy": "127.0.0.1,localhost"}


def run(
    *arguments: str, cwd: Path = ROOT, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -m ARGUMENTS`` from beginning to end."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        env={**environment(), **(env or {})},
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class Program:
    """``python -m ARGUMENTS``, running."""

    def __init__(self, *arguments: str, cwd: Path = ROOT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        # A pipe has no timeout: a program that hangs is killed, and its pipes end.
        self._watchdog = threading.Timer(PATIENCE, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def line(self) -> str:
        """The next line of its output; empty when it has ended."""
        return self._pipe(self.process.stdout).readline().rstrip("\n")

    def error_line(self) -> str:
        """The next line of its standard error; empty when it has ended."""
        return self._pipe(self.process.stderr).readline().rstrip("\n")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send it a signal; returns its exit status and what else it had to say once it has ended."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        """Wait for its end; returns its exit status and what else it had to say."""
        out, err = self.process.communicate()
        return self.process.returncode, out, err

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._watchdog.cancel()
        for pipe in (self.process.stdout, self.process.stderr):
            self._pipe(pipe).close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@contextmanager
def started(*arguments: str, cwd: Path = ROOT) -> Iterator[Program]:
    """A program that does not outlive the block."""
    program = Program(*arguments, cwd=cwd)
    try:
        yield program
    finally:
        program.close()
