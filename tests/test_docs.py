"""The documentation, held to the code: its programs run, its names and links lead somewhere.

How a fenced block is marked says what is done with it:

- ``python``: a program or a module; type-checked, then run to its end;
- ``python serves``: type-checked, then run until it has printed a line, and stopped as with Ctrl+C;
- ``python test``: type-checked, then run by pytest;
- ``python no-run``: a part of a program; compiled;
- ``python NAME.py``: a part of that file; test_walkthrough.py puts it together;
- ``toml``: read as the command line's configuration;
- ``layers``: the layers that test_laws.py keeps.

test_protocol_page.py has the blocks of docs/protocol.md.
"""

from __future__ import annotations

import argparse
import pkgutil
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from goim_core import Options, OutboxPolicy, Stats
from goim_core.__main__ import parser as command_line
from goim_core.settings import options_of, read_config
from tests.e2e.processes import PATIENCE, ROOT, environment
from tests.pages import FENCE, PAGES, TEXTS, Block, blocks, of
from tests.test_laws import LAYERS

OPEN = "OpenAuth is on: any client may name itself any user. For development only.\n"
"""What Python prints of the library's warning where a program sets up no logging."""
PARTS = [block for block in blocks("python") if "no-run" in block.words]
FILES = [block for block in blocks("python") if block.words and block.words[0].endswith(".py")]
PROGRAMS = [block for block in blocks("python") if block not in PARTS + FILES]


# Programs.


def test_pages_are_there() -> None:
    assert {"README.md", "architecture.md", "protocol.md", "embedding.md", "operations.md"} <= set(TEXTS)
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in TEXTS["README.md"], page.name
    assert len(PROGRAMS) > 5
    assert len(blocks("wire")) > 15
    assert (ROOT / "docs" / "chat.png").is_file()


@of(*PARTS)
def test_a_part_of_a_program_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


def test_programs_have_right_types(tmp_path: Path) -> None:
    for block in PROGRAMS:
        (tmp_path / f"{block.module}.py").write_text(block.text, "utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def on_free_ports(text: str) -> str:
    """``text`` with port 0, any that is free, for each of goim's."""
    return re.sub(r":31\d\d\b", ":0", text)


@of(*(block for block in PROGRAMS if "serves" not in block.words))
def test_a_program_runs(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(on_free_ports(block.text), "utf-8")
    command = [sys.executable, "-W", "error", str(program)]
    if "test" in block.words:
        command[-1:] = ["-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(program)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=environment(), check=False
    )
    assert (done.returncode, done.stderr.replace(OPEN, "")) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGINT for another process")
@of(*(block for block in PROGRAMS if "serves" in block.words))
def test_a_program_serves(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(on_free_ports(block.text), "utf-8")
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
    assert not errors.replace(OPEN, "") or errors.rstrip().endswith("KeyboardInterrupt"), errors


# Names.

EVERYTHING = "\n".join(TEXTS.values())
SOURCE = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "goim_core").glob("*.py")))
LOGGERS = set(re.findall(r'getLogger\("(.*?)"\)', SOURCE))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bgoim_core(?:\.[A-Za-z_]\w*)+", EVERYTHING))))
def test_a_name_exists(name: str) -> None:
    if name in LOGGERS:
        return
    pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    # What is inside a fence is no link.
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[page.name])):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """GitHub's names for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_named_exist() -> None:
    for name in re.findall(r"`((?:goim_core|examples|tests|benchmarks|docs)/[\w./]*\w)`", EVERYTHING):
        assert (ROOT / name).exists(), name
    modules = set(re.findall(r"`(\w+\.py)`", TEXTS["architecture.md"]))
    assert all((ROOT / "goim_core" / module).exists() for module in modules)


def test_every_logger_has_its_row() -> None:
    assert set(re.findall(r"^\| `(goim_core\.\w+)` \|", TEXTS["observability.md"], re.MULTILINE)) == LOGGERS


def test_every_figure_has_its_row() -> None:
    # The table of metrics is test_metrics.py's.
    row = re.compile(r"^\| `(\w+)` \| (?!gauge|counter|histogram)", re.MULTILINE)
    assert set(row.findall(TEXTS["observability.md"])) == {field.name for field in attrs.fields(Stats)}
    assert set(row.findall(TEXTS["operations.md"])) >= set(OutboxPolicy)


def test_layers_are_the_laws() -> None:
    [block] = blocks("layers")
    shown = [set(re.findall(r"(\w+)(?:\.py|/)(?= |$)", line)) for line in block.text.splitlines()]
    assert shown == [layer - {"__init__"} for layer in LAYERS]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)", EVERYTHING)) <= targets


def test_every_option_has_its_default() -> None:
    table = TEXTS["embedding.md"].partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE))
    assert rows == {
        field.name: f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        for field in attrs.fields(Options)
    }


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def test_every_option_of_the_command_line_is_described() -> None:
    for parser in parsers(command_line()):
        for option in (name for name in parser._option_string_actions if name.startswith("--")):
            assert option == "--help" or f"`{option}" in TEXTS["embedding.md"], f"{parser.prog} {option}"


@of(*blocks("toml"))
def test_a_configuration_is_one(block: Block, tmp_path: Path) -> None:
    config = tmp_path / "goim.toml"
    config.write_text(block.text, "utf-8")
    options_of(read_config(config).get("options", {}))
