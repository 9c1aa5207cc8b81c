"""The operator page's files and how they are served; what they do is in e2e/test_operator_page.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import goim_core
from goim_core import CloseCode
from goim_core.http_door import Request, Response
from goim_core.http_pages import operator_page

FOLDER = Path(goim_core.__file__).parent / "operator"
FILES = sorted(FOLDER.iterdir())


def get(path: str) -> Response:
    answer = operator_page()[path]["GET"](Request("GET", path, {}, {}, b""))
    assert isinstance(answer, Response)
    return answer


def test_every_file_is_served_and_nothing_else() -> None:
    names = {f"/goim/operator/{file.name}" for file in FILES}
    assert set(operator_page()) == {"/goim/operator", "/goim/operator/", *names}
    assert get("/goim/operator/").body == (FOLDER / "index.html").read_bytes()


def test_no_other_page_has_it_in_a_frame_and_no_other_script_runs() -> None:
    for path in operator_page():
        headers = dict(get(path).headers)
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        )
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def test_its_folder_without_a_slash_leads_to_it() -> None:
    answer = get("/goim/operator")
    assert (answer.status, dict(answer.headers)["Location"]) == (308, "operator/")


def test_a_copy_that_is_still_good_has_the_headers_too() -> None:
    found = get("/goim/operator/")
    tag = dict(found.headers)["ETag"]
    request = Request("GET", "/goim/operator/", {}, {"if-none-match": tag}, b"")
    assert operator_page()["/goim/operator/"]["GET"](request) == Response(304, headers=found.headers)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_its_files_are_small_and_its_own(file: Path) -> None:
    text = file.read_text("ascii")
    assert len(text.splitlines()) <= 360
    addresses = set(re.findall(r"https?://[^\s'\"]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not addresses
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
    )
    assert not re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", text)


def test_close_codes_have_their_names() -> None:
    table = re.search(r"CLOSES = \{(.*?)\};", (FOLDER / "tables.js").read_text(), re.DOTALL)
    assert table is not None
    named = {int(code): name for code, name in re.findall(r"(\d+): \"(.*?)\"", table[1])}
    assert named == {code.value: code.name.replace("_", " ").lower() for code in CloseCode}
