"""The documentation, held to the code: its programs run, its bytes are the server's, its names exist.

How a fenced block is marked says what is done with it:

- ``python``: a program or a module; type-checked, then run to its end;
- ``python serves``: type-checked, then run until it has printed a line, and stopped as with Ctrl+C;
- ``python no-run``: a part of a program; compiled;
- ``wire tcp`` or ``wire ws``: replayed against a server (``live``: after authentication; ``linger=1``: an option);
- ``console`` in protocol.md: its curls are made against a server, and the answers compared;
- ``toml``: read as the command line's configuration.
"""

from __future__ import annotations

import argparse
import http.client
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

import goim_core
from goim_core import CloseCode, ErrorCode, Op, OpenAuth, Options, Server
from goim_core.__main__ import SETTINGS, _parser
from tests.clocks import ManualClock
from tests.e2e.clients import Client, World, frame, until
from tests.e2e.processes import PATIENCE, ROOT, environment

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text("utf-8") for page in PAGES}
_BLOCK = re.compile(r"^```(\S+)[ \t]*(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


@attrs.frozen
class Block:
    """A fenced block of a page, with the words after its language."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def module(self) -> str:
        """A name for it as a file."""
        return re.sub(r"\W", "_", str(self)).lower()


def blocks(language: str) -> list[Block]:
    found = []
    for page, text in TEXTS.items():
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[1], tuple(match[2].split()), match[3]))
    return [block for block in found if block.language == language]


def of(*found: Block) -> Any:
    return pytest.mark.parametrize("block", found, ids=str)


PROGRAMS = [block for block in blocks("python") if "no-run" not in block.words]


# Programs.


def test_pages_are_there() -> None:
    assert {"README.md", "architecture.md", "protocol.md", "embedding.md", "operations.md"} <= set(TEXTS)
    assert len(PROGRAMS) > 5
    assert len(blocks("wire")) > 15


@of(*(block for block in blocks("python") if "no-run" in block.words))
def test_a_part_of_a_program_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


def test_programs_have_right_types(tmp_path: Path) -> None:
    for block in PROGRAMS:
        (tmp_path / f"{block.module}.py").write_text(block.text, "utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def on_free_ports(text: str, folder: Path) -> str:
    """``text`` with a free port for each that it names, and paths of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        first = probe.getsockname()[1]
    fresh = iter(range(first, first + 10))
    for port in sorted(set(re.findall(r":(31\d\d)\b", text))):
        text = text.replace(port, str(next(fresh)))
    return text.replace("/run/", f"{folder}/")


@of(*(block for block in PROGRAMS if "serves" not in block.words))
def test_a_program_runs(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(on_free_ports(block.text, tmp_path), "utf-8")
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=environment(), check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGINT for another process")
@of(*(block for block in PROGRAMS if "serves" in block.words))
def test_a_program_serves(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(on_free_ports(block.text, tmp_path), "utf-8")
    command = [sys.executable, "-W", "error", str(program)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert running.stdout is not None
    ready = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=PATIENCE)
    assert ready, errors
    # An interrupted program may end with the interrupt, and with nothing else.
    assert not errors or errors.rstrip().endswith("KeyboardInterrupt"), errors


# Bytes.


def octets(line: str) -> bytes:
    """The bytes that a line of a ``wire`` block stands for."""
    plain, caret, masked = line.partition(" ^ ")
    if caret:
        key = octets(plain)[-4:]
        return octets(plain) + bytes(byte ^ key[at % 4] for at, byte in enumerate(octets(masked)))
    match = re.fullmatch(r"([0-9a-f ]*)(?:'(.*)')?([0-9a-f ]*)", line)
    assert match is not None, f"not understood: {line!r}"
    return bytes.fromhex(match[1]) + (match[2] or "").encode() + bytes.fromhex(match[3])


def steps(block: Block) -> Iterator[tuple[str, str | bytes]]:
    """What happens: ``>`` and ``<`` with bytes, or ``end``, and ``*`` with words."""
    text = re.sub(r"\n {2}(?! )", "\n| ", block.text)
    for step in re.findall(r"^[<>*] .*\n(?:\| .*\n)*", text, re.MULTILINE):
        first, *more = step[2:].splitlines()
        if step[0] == "*" or first == "end":
            yield step[0], first
        else:
            # A mask runs on over the lines that follow.
            plain, caret, masked = first.partition(" ^ ")
            lines = [masked if caret else first, *(line[2:] for line in more)]
            data = b"".join(octets(line) for line in lines)
            yield step[0], octets(f"{plain} ^ {data.hex()}") if caret else data


TOKEN = b'{"mid":1,"key":"c1","room_id":"live://1000","platform":"web","accepts":[1000,18]}'


class Replay:
    """A wire block, played against a server."""

    def __init__(self, world: World, clock: ManualClock, tasks: anyio.abc.TaskGroup) -> None:
        self.world, self.clock, self.tasks = world, clock, tasks

    async def happens(self, what: str) -> None:
        for pattern, action in self.ACTIONS.items():
            match = re.fullmatch(pattern, what)
            if match:
                await action(self, *match.groups())
                return
        assert what.startswith(("it is skipped", "the same with the mask")), f"not understood: {what!r}"

    async def push(self, whom: str, name: str, op: str, text: str) -> None:
        server, body = self.world.server, text.encode()
        if whom == "the room":
            await server.push_room(name.strip(), int(op), body)
        elif whom == "the key":
            await server.push_keys([name.strip()], int(op), body)
        else:
            await server.push_all(int(op), body)
        await until(lambda: server.stats().pending == 0 or server.options.linger)

    async def replace(self, key: str) -> None:
        await self.world.login("tcp", mid=2, key=key)

    async def wait(self, seconds: str) -> None:
        if self.world.server.options.linger:
            await self.clock.asleep(self.world.server.options.linger)
        # Past the tick of the wheel in which a deadline falls.
        self.clock.advance(float(seconds) + 0.5)

    async def stop(self) -> None:
        self.tasks.cancel_scope.cancel()

    ACTIONS: dict[str, Callable[..., Any]] = {  # noqa: RUF012  # never changed
        r"a push to (the room|the key|all)( \S+)?, op (\d+): '(.*)'": push,
        r"another client authenticates with the key (\S+)": replace,
        r"(\d+) seconds? pass(?:es)?": wait,
        r"the server is stopped": stop,
    }


@pytest.mark.anyio
@of(*blocks("wire"))
async def test_bytes(block: Block) -> None:
    door, *words = block.words
    options = Options(**{name: float(value) for name, _, value in (w.partition("=") for w in words) if value})
    clock = ManualClock()
    doors = dict.fromkeys(("tcp", "ws"), "127.0.0.1:0")
    server = Server(auth=OpenAuth(), clock=clock, options=options, **doors)  # type: ignore[arg-type]

    async def serve(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with server:
            task_status.started()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tests:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                await tasks.start(serve)
                world = World(server)
                replay = Replay(world, clock, tasks)
                tests.start_soon(play, block, door, replay)
                await anyio.sleep_forever()


async def play(block: Block, door: str, replay: Replay) -> None:
    raise NotImplementedError
