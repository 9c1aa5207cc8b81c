"""The walk-through, replayed as its reader would: files are written, commands typed, what they print compared.

A block of ``docs/walkthrough.md`` says what becomes of it:

- ``python FILE`` and ``toml FILE``: added to that file;
- ``console TERMINAL``: typed into that terminal. ``$`` starts a command, ``^C`` stops the one that runs (``^\\`` kills it), and
  every other line is what the terminal shows next. ``goim-core serve`` and ``listen`` go on running; any
  other command has to end, with nothing else to say.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import PATIENCE, environment
from tests.pages import FENCE, TEXTS

PAGE = TEXTS["walkthrough.md"]
PORTS = ("3101", "3102", "3111")
MOST_LINES = 80
STOPS = {"^C": signal.SIGINT, "^\\": signal.SIGQUIT}

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl"
)


def lines_of_code() -> int:
    """The lines of the application on the page: what is neither blank nor its test."""
    files = [match[3] for match in FENCE.finditer(PAGE) if match[1] == "python" and match[2] != "test_chat.py"]
    return sum(1 for line in "".join(files).splitlines() if line.strip())


class Terminal:
    """A shell's window, with at most one command running in it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.running: subprocess.Popen[str] | None = None

    def start(self, command: str) -> None:
        assert self.running is None or self.running.poll() is not None, f"still running: {self.running.args}"
        self.close()
        self.running = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        # A pipe has no timeout: a command that hangs is killed, and its pipe ends.
        self.watchdog = threading.Timer(PATIENCE, self.kill, (signal.SIGKILL,))
        self.watchdog.daemon = True
        self.watchdog.start()

    def kill(self, number: int) -> None:
        assert self.running is not None
        if self.running.poll() is None:
            os.killpg(self.running.pid, number)

    def line(self) -> str:
        """What it shows next; empty when the command has ended."""
        assert self.running is not None
        assert self.running.stdout is not None
        return self.running.stdout.readline().rstrip("\n")

    def close(self) -> None:
        if self.running is not None:
            self.kill(signal.SIGKILL)
            self.running.wait()
            self.watchdog.cancel()
            assert self.running.stdout is not None
            self.running.stdout.close()


@pytest.fixture
def ports() -> dict[str, str]:
    """Free ports, in place of the page's."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    found = {port: str(sock.getsockname()[1]) for port, sock in zip(PORTS, sockets, strict=True)}
    for sock in sockets:
        sock.close()
    return found


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[dict[str, Terminal]]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, what in (("goim-core", "-m goim_core"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -W error {what} "$@"\n')
        (programs / name).chmod(0o755)
    found = environment()
    # curl says nothing of its progress where its output is no terminal but a pipe's.
    (tmp_path / ".curlrc").write_text("silent\n")
    found |= {"PATH": f"{programs}:{found['PATH']}", "CURL_HOME": str(tmp_path)}
    made: dict[str, Terminal] = {}
    folder = tmp_path / "chat"
    folder.mkdir()
    for match in FENCE.finditer(PAGE):
        if match[1] == "console":
            made[match[2]] = Terminal(folder, found)
    yield made
    for terminal in made.values():
        terminal.close()


def goes_on(command: str) -> bool:
    return command.startswith(("goim-core serve", "goim-core listen", "python serve.py"))


def type_in(terminal: Terminal, text: str) -> None:
    """Do what a console block says, and compare what it shows."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if line in STOPS:
            terminal.kill(STOPS[line])
            assert terminal.running is not None
            terminal.running.wait(PATIENCE)
        elif line.startswith("$ "):
            terminal.start(line.removeprefix("$ "))
        else:
            assert shown(terminal.line()) == shown(line)
            if index + 1 < len(lines) and not lines[index + 1].startswith(("$ ", *STOPS)):
                continue
        following = lines[index + 1 : index + 2]
        over = not following or following[0].startswith("$ ")
        if over and terminal.running is not None and not goes_on(str(terminal.running.args[-1])):
            assert terminal.line() == ""
            assert terminal.running.wait(PATIENCE) == 0


def shown(line: str) -> str:
    """A line without what differs from time to time."""
    return re.sub(r"\d+\.\d+s", "0.0s", line)


def test_the_page_as_it_is_written(
    terminals: dict[str, Terminal], ports: dict[str, str], tmp_path: Path
) -> None:
    page = PAGE.replace("goim-core listen", "goim-core listen --tcp 127.0.0.1:3101")
    for port, free in ports.items():
        page = page.replace(port, free)
    for match in FENCE.finditer(page):
        language, name, text = match.groups()
        if language in ("python", "toml"):
            with (tmp_path / "chat" / name).open("a", encoding="utf-8") as file:
                file.write(text)
        elif language == "console":
            line = page.count("\n", 0, match.start()) + 1
            try:
                type_in(terminals[name], text)
            except AssertionError as error:
                raise AssertionError(f"walkthrough.md:{line}: {error}") from None


def test_it_takes_as_few_lines_as_it_says() -> None:
    assert lines_of_code() < MOST_LINES
    assert f"{lines_of_code()} lines of Python" in PAGE.replace("\n", " ")
