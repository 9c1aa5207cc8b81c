"""Fixtures for every test: each async test runs on asyncio, uvloop and trio."""

from __future__ import annotations

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


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param
