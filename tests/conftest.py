"""Fixtures for every test: each async test runs on asyncio, uvloop and trio."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import hypothesis  # noqa: F401  # before trio: loaded at the end, where trio is there already, it warns
import pytest

from examples.cluster import processes
from tests.redis import RedisServer

BACKENDS: list[Any] = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
if sys.platform != "win32":
    BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))

# A shell starts what it puts in the background with Ctrl+C ignored, and so would be the programs that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Processes that test side by side have ports of their own.
_share, _of = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), 8
processes.PORTS = processes.PORTS[_share % _of :: _of]

PATIENCE = 120.0
"""Seconds of a test that waits. One that hangs then fails where it waits; pytest-timeout ends what is stuck."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _patient(pyfuncitem.obj)


def _patient(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    async def within(*args: Any, **kwargs: Any) -> None:
        with anyio.fail_after(PATIENCE):
            await test(*args, **kwargs)

    return within


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A Redis for the tests of one module."""
    server = RedisServer()
    yield server
    server.close()
