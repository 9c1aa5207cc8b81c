"""Fixtures of the tests that open a page."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from playwright.sync_api import Browser

from tests.e2e.browser import HOW_TO_GET_ONE, browser, chromium


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_ONE)
        pytest.skip(HOW_TO_GET_ONE)
    with browser(program) as launched:
        yield launched


@pytest.fixture(scope="module")
def portal(window: Browser) -> Iterator[BlockingPortal]:
    """For servers of pages: they run in a thread of their own, as playwright's calls block."""
    with start_blocking_portal() as portal:
        yield portal
