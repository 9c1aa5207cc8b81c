"""The walk-through, replayed as its reader would: files are written, commands typed, what they print compared.

A block of ``docs/walkthrough.md`` says what becomes of it:

- ``python FILE`` and ``toml FILE``: added to that file;
- ``console TERMINAL``: typed into that terminal. ``$`` starts a command, ``>`` is a line for it to read, ``^D`` the
  end of its input, ``^C`` and ``^\\`` stop it; every other line is what the terminal shows next. Servers and clients
  go on running; any other command has to end, with nothing else to say.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.cluster.processes import free_ports
from tests.e2e.processes import PATIENCE, ROOT, environment
from tests.pages import FENCE, TEXTS

PAGE = TEXTS["walkthrough.md"]
PORTS = ("3101", "3102", "3111")
MOST_LINES = 80
LASTING = ("goim-core serve", "goim-core listen", "python talk.py", "python serve.py")
STOPS = {"^C": signal.SIGINT, "^\\": signal.SIGQUIT}

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not (shutil.which("bash") and shutil.which("curl")),
    reason="needs bash and curl",
)


def lines_of_code() -> int:
    """The lines of the application on the page: what is neither blank nor its test."""
    files = [
        match[3] for match in FENCE.finditer(PAGE) if match[1] == "python" and match[2] != "test_chat.py"
    ]
    return sum(1 for line in "".join(files).splitlines() if line.strip())


class Terminal:
    """A shell's window, with at most one command running in it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.command = ""
        self.running: subprocess.Popen[str] | None = None

    def start(self, command: str) -> None:
        assert self.running is None or self.running.poll() is not None, f"still running: {self.command}"
        self.close()
        self.command = command
        self.running = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        # A pipe has no timeout: a command that hangs is killed, and its pipe ends.
        self.watchdog = threading.Timer(PATIENCE, self.kill, (signal.SIGKILL,))
        self.watchdog.daemon = True
        self.watchdog.start()

    @property
    def goes_on(self) -> bool:
        """Whether what was started last runs until it is stopped."""
        return self.command.startswith(LASTING)

    def kill(self, number: int) -> None:
        assert self.running is not None
        if self.running.poll() is None:
            os.killpg(self.running.pid, number)

    def line(self) -> str:
        """What it shows next; empty when the command has ended."""
        assert self.running is not None
        assert self.running.stdout is not None
        return self.running.stdout.readline().rstrip("\n")

    def type(self, line: str) -> None:
        """Have it read a line."""
        assert self.running is not None
        assert self.running.stdin is not None
        self.running.stdin.write(f"{line}\n")
        self.running.stdin.flush()

    def end(self) -> None:
        """Have it read the end of its input, and stop."""
        assert self.running is not None
        assert self.running.stdin is not None
        self.running.stdin.close()
        assert self.line() == ""
        assert self.running.wait(PATIENCE) == 0

    def close(self) -> None:
        if self.running is not None:
            self.kill(signal.SIGKILL)
            self.running.wait()
            self.watchdog.cancel()
            for pipe in (self.running.stdin, self.running.stdout):
                assert pipe is not None
                pipe.close()


@pytest.fixture
def ports() -> dict[str, str]:
    """Free ports, in place of the page's."""
    return dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))


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


def type_in(terminal: Terminal, text: str) -> None:
    """Do what a console block says, and compare what it shows."""
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line in STOPS:
            terminal.kill(STOPS[line])
            assert terminal.running is not None
            terminal.running.wait(PATIENCE)
        elif line == "^D":
            terminal.end()
        elif line.startswith("> "):
            terminal.type(line.removeprefix("> "))
        elif line.startswith("$ "):
            terminal.start(line.removeprefix("$ "))
        else:
            assert shown(terminal.line()) == shown(line)
        if (not following or following.startswith("$ ")) and not terminal.goes_on:
            terminal.end()


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


def test_its_files_have_right_types(tmp_path: Path) -> None:
    for match in FENCE.finditer(PAGE):
        if match[1] == "python":
            with (tmp_path / match[2]).open("a", encoding="utf-8") as file:
                file.write(match[3])
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "."]
    where = {**environment(), "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_it_takes_as_few_lines_as_it_says() -> None:
    assert lines_of_code() < MOST_LINES
    assert f"{lines_of_code()} lines of Python" in PAGE.replace("\n", " ")
