"""The example chat's page in a real browser, its server in a process of its own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import ChatServer, Visitor
from tests.e2e.processes import environment

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}

Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def server(window: Browser) -> Iterator[ChatServer]:
    running = ChatServer()
    yield running
    running.stop()


@pytest.fixture
def visit(window: Browser, server: ChatServer) -> Iterator[Visit]:
    """Opens the page; in the end no page may have had anything to complain about."""
    visitors: list[Visitor] = []

    def opened(name: str, room: str, at: ChatServer = server, **how: object) -> Visitor:
        context = window.new_context(**{**DESKTOP, **how})  # type: ignore[arg-type]
        visitors.append(Visitor(context, at.url, room, name))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.close()
    assert [complaint for visitor in visitors for complaint in visitor.complaints] == []


def test_two_pages_see_what_each_other_sends(visit: Visit) -> None:
    ada, grace = visit("Ada", "talk"), visit("Grace", "talk")
    ada.says("Hello, is anyone here?")
    ada.sees("Hello, is anyone here?", "[data-kind=own][data-state=sent]")
    grace.sees("Hello, is anyone here?", "[data-kind=other]")
    expect(grace.message("Hello, is anyone here?")).to_contain_text("Ada")
    grace.fills("text", "I am, Ada.")  # Enter sends as the button does
    grace.sees("I am, Ada.", "[data-kind=own][data-state=sent]")
    ada.sees("I am, Ada.", "[data-kind=other]")
    assert ada.texts() == grace.texts() == ["Hello, is anyone here?", "I am, Ada."]
    for page in (ada, grace):
        expect(page.at("text")).to_have_value("")
        expect(page.at("banner")).to_be_hidden()


def test_everyone_sees_what_curl_pushes(visit: Visit) -> None:
    # The command is the page's own, for a room whose name has to be encoded in it.
    ada, grace = visit("Ada", "caf\u00e9"), visit("Grace", "caf\u00e9")
    command = shlex.split(ada.at("curl").text_content() or "")
    assert command[:3] == ["curl", "-d", "hello"]
    if shutil.which("curl"):
        done = subprocess.run(
            [*command, "--silent"], capture_output=True, timeout=30, env=environment(), check=True
        )
        answer = done.stdout
    else:
        with urllib.request.urlopen(command[3], command[2].encode()) as response:
            answer = response.read()
    assert answer == b'{"code":0,"message":""}'
    for page in (ada, grace):
        page.sees("hello", "[data-kind=notice]")


def test_what_looks_like_a_page_stays_text(visit: Visit) -> None:
    ada, grace = visit("<b>Ada</b>", "safe"), visit("Grace", "safe")
    texts = [
        "<img src=x onerror=\"document.title='owned'\">",
        "<script>document.title='owned'</script>",
        '"><svg onload=alert(1)>',
    ]
    for text in texts:
        ada.says(text)
        grace.sees(text, "[data-kind=other]")
    address = shlex.split(ada.at("curl").text_content() or "")[3]
    texts.append("<img src=x onerror=alert(2)>")
    with urllib.request.urlopen(address, texts[-1].encode()):
        grace.sees(texts[-1], "[data-kind=notice]")
    assert grace.texts() == texts
    expect(grace.message(texts[0])).to_contain_text("<b>Ada</b>")
    expect(grace.at("messages").locator("img, script, b, svg[onload]")).to_have_count(0)
    expect(grace.page).to_have_title("#safe")


def test_the_room_shows_how_many_are_online(visit: Visit) -> None:
    ada = visit("Ada", "count")
    ada.counts(1)
    grace = visit("Grace", "count")
    for page in (ada, grace):
        page.counts(2)
    grace.close()
    ada.counts(1)


def test_changing_the_room(visit: Visit) -> None:
    ada, grace = visit("Ada", "here"), visit("Grace", "here")
    ada.says("before")
    grace.sees("before")
    addresses: list[str] = []
    ada.page.on("websocket", lambda socket: addresses.append(socket.url))

    ada.at("room").fill(" #Team Red ")
    ada.at("join").click()
    expect(ada.at("title")).to_have_text("#team-red")
    expect(ada.page).to_have_url(re.compile("#team-red$"))
    for page in (ada, grace):
        page.counts(1)
    ada.says("to myself")
    ada.sees("to myself", "[data-state=sent]")
    grace.says("where are you?")
    grace.sees("where are you?", "[data-state=sent]")
    assert ada.texts() == ["to myself"]
    assert grace.texts() == ["before", "where are you?"]

    ada.page.go_back()
    expect(ada.at("title")).to_have_text("#here")
    ada.sees("before")  # what the room showed when it was left
    grace.says("welcome back")
    ada.sees("welcome back")
    assert addresses == []  # one connection all the while


def test_a_new_name_is_used_at_once_and_remembered(visit: Visit) -> None:
    ada, grace = visit("Ada", "names"), visit("Grace", "names")
    ada.at("name").fill("Countess")
    ada.at("rename").click()
    expect(ada.at("system").last).to_have_text("You are in #names as Countess")
    user = ada.page.evaluate("sessionStorage.getItem('goim-chat-mid')")
    ada.says("a new name")
    expect(grace.message("a new name")).to_contain_text("Countess")

    ada.page.reload()
    ada.is_("open")
    expect(ada.at("name")).to_have_value("Countess")
    assert ada.page.evaluate("sessionStorage.getItem('goim-chat-mid')") == user
    ada.says("still me")
    expect(grace.message("still me")).to_contain_text("Countess")
    grace.counts(2)


def test_a_refused_message_shows_why_and_can_be_edited(visit: Visit) -> None:
    ada, grace = visit("Ada", "limits"), visit("Grace", "limits")
    long = "x" * 1001
    ada.says(long)
    ada.sees(long, "[data-kind=own][data-state=failed]")
    failed = ada.message(long)
    expect(failed).to_contain_text("text: expected 1 to 1000 characters")
    failed.get_by_test_id("again").click()
    expect(ada.message(long)).to_have_count(0)
    expect(ada.at("text")).to_have_value(long)
    ada.says(long[1:])
    ada.sees(long[1:], "[data-state=sent]")
    grace.sees(long[1:])
    assert grace.texts() == [long[1:]]


def test_a_phone(visit: Visit) -> None:
    ada, grace = visit("Ada", "pocket"), visit("Grace", "elsewhere", **PHONE)
    expect(grace.at("panel")).to_be_hidden()
    grace.page.get_by_role("button", name="Settings").tap()
    expect(grace.at("panel")).to_be_visible()
    grace.at("room").fill("pocket")
    grace.at("join").tap()
    expect(grace.at("panel")).to_be_hidden()
    expect(grace.at("title")).to_have_text("#pocket")
    grace.counts(2)
    ada.says("words without an end " * 20 + "w" * 200)
    expect(grace.at("message-text")).to_have_count(1)
    grace.at("text").fill("from the phone")
    grace.at("send").tap()
    ada.sees("from the phone")
    expect(grace.at("send")).to_be_in_viewport()
    expect(grace.message("from the phone")).to_be_in_viewport()
    assert grace.page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_stopped_server_is_found_again_when_it_is_back(visit: Visit) -> None:
    server = ChatServer()
    try:
        ada, grace = visit("Ada", "restart", server), visit("Grace", "restart", server)
        ada.says("before")
        grace.sees("before")
        server.stop()
        for page in (ada, grace):
            page.is_("waiting")
            expect(page.at("banner")).to_contain_text("Connection lost. Reconnecting")
        ada.says("written while it was away")
        ada.sees("written while it was away", "[data-state=pending]")
        server.start()
        for page in (ada, grace):
            page.is_("open")
            expect(page.at("banner")).to_be_hidden()
            page.counts(2)
        ada.sees("written while it was away", "[data-state=sent]")
        grace.says("back again")
        ada.sees("back again")
        ada.says("so am I")
        grace.sees("so am I")
        grace.sees("before")
        # Chromium itself reports each try at a port where no one listens.
        for page in (ada, grace):
            page.complaints = [text for text in page.complaints if "ERR_CONNECTION_REFUSED" not in text]
    finally:
        server.close()
