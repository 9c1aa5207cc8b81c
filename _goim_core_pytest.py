"""pytest's door to goim_core: the fixtures ``goim_app`` and ``goim_settings``. See docs/testing.md.

A module of its own beside the package: pytest loads it in every project of the environment, and importing
a module of goim_core would import all of goim_core, in projects that do not use it, and before coverage has
begun in those that do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from goim_core.testing import App

__all__ = ["goim_app", "goim_settings"]

# The contract suites fail with what was compared, like tests of one's own.
pytest.register_assert_rewrite("goim_core.testing")


@pytest.fixture
def goim_settings() -> dict[str, Any]:
    """The arguments of :func:`goim_core.testing.running` that ``goim_app`` is made with: override it."""
    return {}


@pytest.fixture
async def goim_app(goim_settings: dict[str, Any]) -> AsyncIterator[App]:
    """An :class:`~goim_core.testing.App` that runs for one test, on asyncio and trio by anyio's plugin."""
    from goim_core.testing import running  # noqa: PLC0415  # only where a test uses it

    async with running(**goim_settings) as app:
        yield app
