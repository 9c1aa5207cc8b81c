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
import pkgutil
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from goim_core import CloseCode, ErrorCode, Op, OpenAuth, Options, Server
from goim_core.__main__ import _options, _parser, _read
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
UPGRADE = (
    b"GET /sub HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@attrs.frozen
class Replay:
    """A ``wire`` block, played against a server. ``over`` is when the server may stop."""

    block: Block
    server: Server
    clock: ManualClock
    over: anyio.Event

    async def run(self) -> None:
        world = World(self.server)
        try:
            client = Client(await world.dial(self.block.words[0]))
            if "live" in self.block.words:
                await self.login(client)
            for kind, what in steps(self.block):
                if isinstance(what, bytes):
                    assert kind in "<>"
                    if kind == ">":
                        await client.send_raw(what)
                    else:
                        assert await client.receive_exactly(len(what)) == what
                elif kind == "*":
                    await self.happens(world, what)
                else:
                    await client.ended()
        finally:
            world.close()
            self.clock.release()
            self.over.set()

    async def login(self, client: Client) -> None:
        auth, reply = frame(7, TOKEN, 1), frame(8, b"", 1)
        if self.block.words[0] == "ws":
            await client.send_raw(UPGRADE)
            while not client.buffer.endswith(b"\r\n\r\n"):
                client.buffer += await client.receive_raw()
            client.buffer = b""
            auth = octets(f"82{0x80 + len(auth):02x} 37fa213d ^ {auth.hex()}")
            reply = bytes((0x82, len(reply))) + reply
        await client.send_raw(auth)
        assert await client.receive_exactly(len(reply)) == reply

    async def happens(self, world: World, what: str) -> None:
        server = self.server
        if match := re.fullmatch(r"a push to (the room|the key|all) ?(\S*), op (\d+): '(.*)'", what):
            await self.push(match[1], match[2], int(match[3]), match[4].encode())
        elif match := re.fullmatch(r"(\d+) seconds? pass(?:es)?", what):
            if server.options.linger:
                await self.clock.asleep(server.options.linger)
            # Past the tick of the wheel in which a deadline falls.
            self.clock.advance(float(match[1]) + 0.5)
        elif what == "another client authenticates with the key c1":
            await world.login("tcp", mid=2, key="c1")
        elif what == "the server is stopped":
            self.over.set()
        else:
            assert what.startswith(("it is skipped", "the same with the mask")), f"not understood: {what}"

    async def push(self, whom: str, name: str, op: int, body: bytes) -> None:
        server = self.server
        if whom == "all":
            await server.push_all(op, body)
        elif whom == "the key":
            await server.push_keys([name], op, body)
        else:
            await server.push_room(name, op, body)
        queue: Any = server._queue
        await until(lambda: not queue._waiting if server.options.linger else not server.stats().pending)


@pytest.mark.anyio
@of(*blocks("wire"))
async def test_bytes(block: Block) -> None:
    given = (word.partition("=") for word in block.words)
    options = Options(**{name: float(value) for name, _, value in given if value})  # type: ignore[arg-type]
    clock, over = ManualClock(), anyio.Event()
    server = Server(auth=OpenAuth(), clock=clock, options=options, tcp="127.0.0.1:0", ws="127.0.0.1:0")
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            async with server:
                tasks.start_soon(Replay(block, server, clock, over).run)
                await over.wait()


def curl(command: str, ports: dict[str, str]) -> str:
    """What ``curl`` prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-d", dest="body")
    parser.add_argument("-w", dest="write", default="")
    parser.add_argument("url")
    call = parser.parse_args(shlex.split(command)[1:])
    target = call.url.removeprefix("http://127.0.0.1:3111")
    connection = http.client.HTTPConnection("127.0.0.1", int(ports["3111"]), timeout=PATIENCE)
    try:
        body = None if call.body is None else call.body.encode()
        connection.request("GET" if body is None else "POST", target, body)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    for shown, real in ports.items():
        text = text.replace(real, shown)
    return text + call.write.replace("%{http_code}", str(answer.status))


@pytest.mark.anyio
@of(*(block for block in blocks("console") if block.page == "protocol.md"))
async def test_answers(block: Block) -> None:
    doors = {"3101": "tcp", "3102": "ws", "3111": "http"}
    addresses: dict[str, Any] = dict.fromkeys(doors.values(), "127.0.0.1:0")
    with anyio.fail_after(PATIENCE):
        async with Server(auth=OpenAuth(), name="n1", **addresses) as server:
            world = World(server)
            client = await world.tcp()
            await client.send(frame(7, TOKEN, 1))
            await client.read()
            ports = {port: str(server.addresses[door][0][1]) for port, door in doors.items()}
            for command, answer in re.findall(r"^\$ (.*)\n(.*)$", block.text, re.MULTILINE):
                assert await anyio.to_thread.run_sync(curl, command, ports) == answer
            world.close()


# Names.

EVERYTHING = "\n".join(TEXTS.values())


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bgoim_core(?:\.[A-Za-z_]\w*)+", EVERYTHING))))
def test_a_name_exists(name: str) -> None:
    pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    # What is inside a fence is no link.
    for link in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", TEXTS[page.name])):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """GitHub's names for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_named_exist() -> None:
    for name in re.findall(r"`((?:goim_core|examples|tests|benchmarks|docs)/[\w./]*\w)`", EVERYTHING):
        assert (ROOT / name).exists(), name
    modules = set(re.findall(r"`(\w+\.py)`", TEXTS["architecture.md"]))
    assert modules >= {path.name for path in (ROOT / "goim_core").glob("*.py")} - {"__init__.py"}
    assert all((ROOT / "goim_core" / module).exists() for module in modules)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)", EVERYTHING)) <= targets


def test_every_option_has_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", TEXTS["embedding.md"], re.MULTILINE))
    assert rows == {
        field.name: f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        for field in attrs.fields(Options)
    }


@pytest.mark.parametrize("codes", [CloseCode, ErrorCode])
def test_every_code_has_its_row(codes: type[CloseCode | ErrorCode]) -> None:
    rows = re.findall(r"^\| (\d{3,4}) \| (\w+) \|", TEXTS["protocol.md"], re.MULTILINE)
    assert {(int(code), name) for code, name in rows} >= {(code.value, code.name) for code in codes}


def test_every_operation_has_its_row() -> None:
    found = {}
    for numbers, names in re.findall(r"^\| ([\d, ]+) \| ([A-Z_, ]+) \|", TEXTS["protocol.md"], re.MULTILINE):
        found.update(zip(map(int, numbers.split(",")), names.split(", "), strict=True))
    assert found == {op.value: op.name for op in Op}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def test_every_option_of_the_command_line_is_described() -> None:
    for parser in parsers(_parser()):
        for option in (name for name in parser._option_string_actions if name.startswith("--")):
            assert option == "--help" or f"`{option}" in TEXTS["embedding.md"], f"{parser.prog} {option}"


@of(*blocks("toml"))
def test_a_configuration_is_one(block: Block, tmp_path: Path) -> None:
    config = tmp_path / "goim.toml"
    config.write_text(block.text, "utf-8")
    _options(_read(config).get("options", {}))
