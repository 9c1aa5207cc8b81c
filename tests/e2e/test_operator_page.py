"""The operator page in a real browser, on a server with real clients."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from anyio.from_thread import BlockingPortal
from playwright.sync_api import Browser, expect

from tests.e2e.operated import TEXT, Operated, Operator

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
ROSE = """(path) => {
    const heights = [...path.getAttribute("d").matchAll(/[ML][\\d.]+,([\\d.]+)/g)].map(([, y]) => Number(y));
    return heights.length > 1 && Math.min(...heights) < Math.max(...heights);
}"""
"""Whether a line is not flat."""


@pytest.fixture
def node(portal: BlockingPortal) -> Iterator[Operated]:
    node = Operated(portal)
    yield node
    node.stop()


Open = Callable[..., Operator]


@pytest.fixture
def page(window: Browser, node: Operated) -> Iterator[Open]:
    """Opens the page; in the end it may have had nothing to complain about but what Chromium says of HTTP."""
    opened: list[Operator] = []

    def open_it(**how: object) -> Operator:
        opened.append(Operator(window.new_context(**how), node.url))  # type: ignore[arg-type]
        return opened[-1]

    yield open_it
    for operator in opened:
        operator.page.context.close()
    complaints = [text for operator in opened for text in operator.complaints]
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def test_what_real_clients_do_is_on_the_charts(page: Open, node: Operated) -> None:
    operator = page()
    operator.is_("live")
    expect(operator.at("node")).to_have_text("node-1")
    expect(operator.at("status")).to_have_text("Live. No troubles.")
    expect(operator.at("ready")).to_have_text("ready")
    expect(operator.at("uptime")).to_have_text(re.compile(r"^up \d+ s$"))
    expect(operator.value("connections", "users")).to_have_text("0")
    with closing(node.client(1, room_id="live://1")) as one, closing(node.client(2, room_id="live://1")):
        expect(operator.value("connections", "users")).to_have_text("2")
        expect(operator.value("connections", "connections")).to_have_text("2")
        expect(operator.value("rooms", "rooms")).to_have_text("1")
        expect(operator.rows("top")).to_have_text(re.compile(r"^\s*live://1\s+2$"))
        node.call(node.server.push_room, "live://1", TEXT, b"hello")
        one.read()
        line = "[...document.querySelectorAll('[data-chart=deliveries] .line')]"
        operator.page.wait_for_function(f"() => {line}.some({ROSE})")
    expect(operator.value("connections", "connections")).to_have_text("0")
    expect(operator.rows("closes")).to_have_text(re.compile(r"^4007 lost\s+2$"))


def test_the_charts_can_be_read(page: Open, node: Operated) -> None:
    node.change = lambda data: data["stats"].update(users=1204, connections=1310)
    operator = page()
    expect(operator.value("connections", "users")).to_have_text("1,204")
    plot = operator.chart("connections").locator(".plot")
    operator.at("retry").evaluate("(button) => button.focus()")
    operator.page.keyboard.press("Tab")
    expect(plot).to_be_focused()
    operator.page.keyboard.press("Home")
    readout = operator.at("readout")
    expect(readout).to_have_text(re.compile(r"^\d+:\d\d:\d\d.*: connections 1,310, users 1,204$"))
    expect(operator.page.locator(".plot .cursor")).to_have_count(9)  # the same moment on all charts
    operator.page.keyboard.press("Tab")
    operator.page.keyboard.press("ArrowLeft")
    expect(readout).to_contain_text(re.compile(r": opened \S+, closed \S+$"))
    operator.page.keyboard.press("Shift+Tab")
    plot.evaluate("(plot) => plot.blur()")
    expect(operator.page.locator(".plot .cursor")).to_have_count(0)
    plot.hover()
    expect(operator.page.locator(".plot .cursor")).to_have_count(9)
    expect(operator.chart("rooms").locator(".at")).to_have_text(re.compile(r"^\d+:\d\d:\d\d"))


def test_what_is_counted_and_what_is_wrong(page: Open, node: Operated) -> None:
    operator = page()
    expect(operator.page.locator("[data-table=drops]")).to_contain_text("No message was dropped.")
    expect(operator.chart("drops")).to_contain_text("Nothing dropped")
    top = operator.at("chart").first.bounding_box()

    def trouble(data):
        data["draining"] = True
        data["stats"]["drops"] = {"lost": 3, "drop_newest": 12_345}
        data["stats"]["refusals"] = {"max_handshakes": 7}
        data["stats"]["closes"] = {"4005": 2, "4999": 1}
        data["stats"]["troubles"] = {"queue": "NATS is away", "registry": "so is Valkey"}

    node.change = trouble
    expect(operator.at("troubles")).to_have_text("queue: NATS is awayregistry: so is Valkey")
    expect(operator.at("status")).to_be_empty()
    expect(operator.at("ready")).to_have_text("draining")
    expect(operator.rows("drops")).to_contain_text(["drop_newest", "lost"])
    expect(operator.rows("drops").first).to_contain_text("12,345")
    expect(operator.rows("closes")).to_contain_text(["4005 slow", "4999"])
    expect(operator.rows("refusals")).to_contain_text(["max_handshakes"])
    expect(operator.value("drops", "lost")).to_have_text(re.compile("/s$"))
    assert operator.at("chart").first.bounding_box() == top  # nothing has jumped


def test_pushes_reach_clients(page: Open, node: Operated) -> None:
    operator = page()
    operator.is_("live")
    push, answer = operator.at("push"), operator.at("answer")
    choices = operator.page.get_by_role("group", name="To whom")
    with closing(node.client(7, key="key-7", room_id="live://a/b c://d")) as client:
        for choice, target, text in (
            ("Room", "live://a/b c://d", "to the room"),
            ("Users", "7, 8", "to users, caf\u00e9"),
            ("Keys", "key-7", "to keys"),
            ("All", "", "to all"),
        ):
            choices.get_by_text(choice).click()
            operator.at("target").fill(target)
            operator.at("body").fill(text)
            push.click()
            expect(answer).to_have_text("Code 0: accepted")
            body = client.read()[1]
            assert body.endswith(text.encode())
    choices.get_by_text("Room").click()
    expect(operator.at("target")).to_have_value("live://a/b c://d")  # what was typed for rooms
    operator.at("operation").fill("five")
    operator.at("body").press("Control+Enter")
    expect(answer).to_contain_text("Code -400: operation: expected an int32 that may be pushed")


def test_the_trace(page: Open, node: Operated) -> None:
    operator = page()
    lines, list_ = operator.at("lines").locator("li"), operator.at("lines")
    expect(operator.at("traced")).to_have_text("No user is traced.")
    operator.fills("mid", str(2**63 - 1))  # larger than JavaScript's numbers are exact
    stop = operator.page.get_by_role("button", name=f"Stop tracing {2**63 - 1}")
    expect(stop).to_be_visible()
    assert node.server.traced == [2**63 - 1]
    node.says(7, "<- op 1000 seq 3, 12 bytes")
    expect(lines).to_have_text([re.compile(r"^\d\d:\d\d:\d\d\.000 7 key-1 <- op 1000 seq 3, 12 bytes")])

    list_.scroll_into_view_if_needed()
    for number in range(600):
        node.says(7, f"line {number}")
    expect(lines.last).to_contain_text("line 599")
    expect(lines).to_have_count(500)
    expect(lines.last).to_be_in_viewport()
    list_.evaluate("(list) => { list.scrollTop = 0; }")
    expect(operator.at("newest")).to_be_visible()
    node.says(7, "while reading")
    expect(lines.last).to_contain_text("while reading")
    expect(lines.last).not_to_be_in_viewport()
    operator.at("newest").click()
    expect(lines.last).to_be_in_viewport()
    expect(operator.at("newest")).to_be_hidden()

    operator.at("clear").click()
    expect(lines).to_have_count(0)
    node.says(7, "after")
    expect(lines).to_have_count(1)
    stop.click()
    expect(operator.at("traced")).to_have_text("No user is traced.")
    operator.fills("mid", "me")
    expect(operator.at("traced")).to_contain_text("mid: expected a user id (int64), got 'me'")
    assert node.server.traced == []


def test_a_key_is_asked_for_and_kept_in_the_tab(page: Open, node: Operated) -> None:
    node.key = "secret-1"
    operator = page()
    operator.is_("locked")
    expect(operator.at("key")).to_be_focused()
    expect(operator.at("key-problem")).to_be_empty()
    expect(operator.page.locator("#board")).to_be_hidden()
    for wrong, problem in (
        ("wrong", "The server does not know this key."),
        ("caf\u00e9", "A key is letters"),
    ):
        operator.at("key").fill(wrong)
        operator.at("unlock").click()
        expect(operator.at("key-problem")).to_contain_text(problem)
    assert operator.page.evaluate("sessionStorage.length") == 0
    operator.fills("key", "secret-1")
    operator.is_("live")
    operator.page.reload()
    operator.is_("live")
    assert operator.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    node.key = "secret-2"  # as it is when keys rotate
    operator.is_("locked")
    expect(operator.at("key-problem")).to_have_text("The server does not know this key.")


def test_a_server_that_is_away_and_comes_back(page: Open, node: Operated) -> None:
    operator = page()
    operator.is_("live")
    expect(operator.chart("connections").locator(".line").first).to_be_attached()
    node.stop()
    operator.is_("away")
    expect(operator.at("status")).to_have_text("The server cannot be reached.")
    expect(operator.page.locator("#countdown")).to_have_text(re.compile(r"^Next try in \d+ s$"))
    expect(operator.at("retry")).to_be_visible()
    node.start()
    operator.is_("live")  # by itself
    expect(operator.at("retry")).to_be_hidden()
    lines = operator.chart("connections").locator(".line").first
    expect(lines).to_have_attribute(
        "d", re.compile("^M[^M]+M[^M]+$")
    )  # nothing is drawn of what is not known


def test_what_looks_like_a_page_stays_text(page: Open, node: Operated) -> None:
    def hostile(data):
        data["node"] = HOSTILE
        data["version"] = HOSTILE
        data["hooks"][HOSTILE] = {"count": 1, "seconds": 1}
        for mapping in ("drops", "closes", "refusals"):
            data["stats"][mapping] = {HOSTILE: 5}
        data["stats"]["troubles"] = {HOSTILE: HOSTILE}

    node.change = hostile
    node.says(7, HOSTILE, key=HOSTILE)
    with closing(node.client(7, room_id=f"live://{HOSTILE}")):
        operator = page()
        expect(operator.rows("top")).to_contain_text(f"live://{HOSTILE}")
        expect(operator.at("lines")).to_contain_text(HOSTILE)
        expect(operator.at("troubles")).to_contain_text(HOSTILE)
        for table in ("drops", "closes", "refusals"):
            expect(operator.rows(table)).to_contain_text(HOSTILE)
        expect(operator.chart("drops").locator(".legend")).to_contain_text(HOSTILE)
        expect(operator.page.locator("img, body script, main [onerror]")).to_have_count(0)
        expect(operator.page).to_have_title(f"{HOSTILE}: goim operator")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(page: Open, node: Operated, scheme: str) -> None:
    node.change = lambda data: data["stats"].update(drops={"x" * 300: 1}, troubles={"queue": "y" * 300})
    operator = page(color_scheme=scheme, **PHONE)
    expect(operator.at("troubles")).to_contain_text("queue: ")
    for hook in ("push", "start", "body"):
        operator.at(hook).scroll_into_view_if_needed()
        expect(operator.at(hook)).to_be_in_viewport(ratio=1)
    assert operator.page.evaluate("document.documentElement.scrollWidth") == 390
    card = operator.page.locator(".card").first.evaluate("(card) => getComputedStyle(card).backgroundColor")
    assert card == {"light": "rgb(255, 255, 255)", "dark": "rgb(26, 28, 31)"}[scheme]
