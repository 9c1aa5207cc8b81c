"""The example's JavaScript client, where Node.js is there to run it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = sorted((Path(__file__).parent / "js").glob("*.test.mjs"))
LEAST = 20  # CustomEvent is global from 19 on, which was no long-term release


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    version = re.match(r"v(\d+)\.", told)
    if version is None or int(version[1]) < LEAST:
        pytest.skip(f"node {told.strip()} is too old: needs {LEAST}")
    return node


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_the_javascript_client(file: Path) -> None:
    command = [_node(), "--test", "--test-reporter=tap", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^# pass [1-9]", done.stdout, re.MULTILINE), done.stdout
