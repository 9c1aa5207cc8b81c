"""Fixtures for every test: each async test runs on asyncio, uvloop and trio."""

from __future__ import annotations

import signal
import sys
from typing import Any

import hypothesis  # noqa: F401  # before trio: loaded at the end, where trio is there already, it warns
import pytest

BACKENDS: list[Any] = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
if sys.platform != "win32":
    BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))

# A shell starts what it puts in the background with Ctrl+C ignored, and so would be the programs that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param
