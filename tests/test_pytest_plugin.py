"""pytest's plugin, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

OWN = """
from contextlib import asynccontextmanager

import pytest
from goim_core import Frame, MemoryRegistry, MessageHook, Session
from goim_core.testing import App
from goim_core.testing.registry_contract import RegistryContract

pytestmark = pytest.mark.anyio


class Echo(MessageHook):
    def receive(self, session: Session, frame: Frame) -> bytes:
        return frame.body


@pytest.fixture
def goim_settings():
    return {"messages": Echo()}


async def test_an_answer(goim_app: App) -> None:
    client = await goim_app.connect({"mid": 1}, wire="ws")
    assert (await client.request(1000, "hello")).body == b"hello"


async def test_another(goim_app: App) -> None:
    client = await goim_app.connect({"mid": 1})
    await client.send(1000, "hello")
    await client.assert_reply(1000, "goodbye")


class Forgetful(MemoryRegistry):
    def keys(self, keys):
        return {}


class TestForgetful(RegistryContract):
    @asynccontextmanager
    async def opened(self):
        yield Forgetful()
"""

UNCONCERNED = """
import sys


def test_nothing_of_goim_core_is_imported() -> None:
    assert not [name for name in sys.modules if name.split(".")[0] == "goim_core"]


def test_its_fixture_is_there(goim_settings) -> None:
    assert goim_settings == {}
"""


def run(directory: Path, source: str, *arguments: str) -> str:
    """What pytest says of ``source`` with anyio's plugin and ours, and no others."""
    (directory / "test_own.py").write_text(source)
    plugins = ("-p", "anyio", "-p", "_goim_core_pytest", "-p", "no:cacheprovider", "-W", "error")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "--rootdir", str(directory), *arguments, "."],
        cwd=directory,
        env={
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": "",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_its_fixtures_run_an_app_on_asyncio_and_trio(tmp_path: Path) -> None:
    said = run(tmp_path, OWN, "-k", "answer or another")
    assert "2 failed, 2 passed" in said
    for backend in ("asyncio", "trio"):
        assert f"FAILED test_own.py::test_another[{backend}]" in said
    assert "expected a reply op 1000 with body goodbye" in said
    assert "reply op 1000 seq 10002 body hello" in said
    assert "in _take" not in said, "the failure points at the test, not into the kit"


def test_a_contract_that_is_broken_fails_with_what_was_compared(tmp_path: Path) -> None:
    said = run(tmp_path, OWN, "-k", "TestForgetful and test_what_was_added")
    assert "2 failed" in said
    assert "assert {} == {'node-1': ['a']}" in said


@pytest.mark.parametrize("plugin", ["anyio", "no:anyio"])
def test_who_does_not_use_it_has_nothing_of_it(tmp_path: Path, plugin: str) -> None:
    assert "2 passed" in run(tmp_path, UNCONCERNED, "-p", plugin)
