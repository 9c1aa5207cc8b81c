"""The page of the example of live comments in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.e2e.processes import started

FLOOD = """for (let number = 0; number < 40; number++) {
    document.querySelector("#text").value = number;
    document.querySelector("form").requestSubmit();
}"""


def says(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.locator("#text").press("Enter")


def test_comments_fly_by_for_everyone(window: Browser, tmp_path: Path) -> None:
    doors = ("--ws", "127.0.0.1:0", "--http", "127.0.0.1:0", "--secret-file", str(tmp_path / "secret"))
    complaints: list[str] = []
    with started("examples.danmaku.app", *doors) as program:
        line = program.line()
        [url] = re.findall(r"http://\S+", line)
        ada, grace = (window.new_context().new_page() for _ in range(2))
        for page in (ada, grace):
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
            page.goto(url)
        for page in (ada, grace):
            expect(page.locator("#online")).to_have_text("2 watching")
        says(ada, "<b>wow</b>")
        for page in (ada, grace):
            expect(page.locator("#screen p")).to_have_text("<b>wow</b>")
        ada.evaluate(FLOOD)
        expect(ada.locator("#problem")).to_contain_text("at most 5 frames a second")
        assert program.stop() == (0, "", "")
    assert complaints == []
