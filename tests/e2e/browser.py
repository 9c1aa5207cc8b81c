"""Headless Chromium with the example chat's page in it."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from tests.e2e.processes import Program

__all__ = ["ChatServer", "Visitor", "browser", "chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOW_TO_GET_ONE = (
    "no Chromium: install one (apt-get install chromium; or python -m playwright install chromium), "
    "or name its program in GOIM_CHROMIUM"
)
PATIENCE = 20_000
"""Milliseconds after which a condition that is waited for has failed."""

expect.set_options(timeout=PATIENCE)


def chromium() -> str | None:
    """The program to start: the one GOIM_CHROMIUM names, one on PATH, or Playwright's own."""
    named = os.environ.get("GOIM_CHROMIUM")
    if named:
        return named
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        with sync_playwright() as playwright:
            own = playwright.chromium.executable_path
        found = own if Path(own).exists() else None
    return found


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield launched
        finally:
            launched.close()


class ChatServer:
    """The example chat in a process of its own. Started again, it listens where it did before."""

    def __init__(self, *, tcp: int = 0, ws: int = 0, http: int = 0) -> None:
        self.ports = {"tcp": tcp, "ws": ws, "http": http}
        self._program: Program | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['http']}/"

    def start(self) -> None:
        doors = [text for door, port in self.ports.items() for text in (f"--{door}", str(port))]
        self._program = Program("examples.chat.app", *doors)
        line = self._program.line()
        assert line.startswith("ready: open http://127.0.0.1:"), line or self._program.ended()
        self.ports["http"] = int(line.split("/")[2].rpartition(":")[2])
        with urllib.request.urlopen(f"{self.url}goim/nodes/weighted") as answer:
            nodes: dict[str, Any] = json.load(answer)["data"]
        self.ports.update(tcp=nodes["tcp_port"], ws=nodes["ws_port"])

    def stop(self) -> None:
        """SIGTERM; it has to end by itself and without a complaint."""
        assert self._program is not None
        status, _, complaints = self._program.stop()
        assert status == 0, complaints
        assert "Traceback" not in complaints
        self.close()

    def close(self) -> None:
        if self._program is not None:
            self._program.close()
            self._program = None


class Visitor:
    """Someone with the page open: what they do, and what they have to see."""

    def __init__(self, context: BrowserContext, url: str, room: str, name: str) -> None:
        self.name = name
        self.context = context
        self.complaints: list[str] = []
        # As someone who has been here before: the page remembers the name.
        script = "(([key, name]) => localStorage.getItem(key) ?? localStorage.setItem(key, name))"
        context.add_init_script(f"{script}({json.dumps(['goim-chat-name', name])})")
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None,
        )
        self.page.goto(f"{url}#{room}")
        self.is_("open")

    def at(self, hook: str) -> Locator:
        return self.page.get_by_test_id(hook)

    def is_(self, state: str) -> None:
        """The page shows this connection state."""
        expect(self.at("state")).to_have_attribute("data-state", state)

    def says(self, text: str) -> None:
        self.at("text").fill(text)
        self.at("send").click()

    def message(self, text: str, selector: str = "") -> Locator:
        """The message with exactly this text; ``selector`` says more about it."""
        having = self.page.get_by_text(text, exact=True)
        return self.page.locator(f"[data-testid=message]{selector}").filter(has=having)

    def sees(self, text: str, selector: str = "") -> None:
        expect(self.message(text, selector)).to_have_count(1)

    def texts(self) -> list[str]:
        return self.at("message-text").all_text_contents()

    def counts(self, online: int) -> None:
        expect(self.at("online")).to_have_text(str(online))

    def fills(self, field: str, text: str) -> None:
        self.at(field).fill(text)
        self.at(field).press("Enter")

    def close(self) -> None:
        self.context.close()
