"""The JavaScript client in a real browser, against a real server with an inbox."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from anyio.from_thread import BlockingPortal
from playwright.sync_api import Browser

from goim_core import Op
from tests.e2e.tab import TEXT, Node, Tab, await_item


def numbered(numbers: Sequence[int]) -> list[str]:
    return [f"m{number}" for number in numbers]


@pytest.fixture
def node(portal: BlockingPortal) -> Iterator[Node]:
    node = Node(portal)
    yield node
    node.stop()


Open = Callable[..., Tab]


@pytest.fixture
def tab(window: Browser, node: Node) -> Iterator[Open]:
    """Opens a page of its own browser profile; in the end no page may have failed."""
    tabs: list[Tab] = []

    def opened(mid: int, at: Node = node, **token: object) -> Tab:
        context = window.new_context()
        tabs.append(Tab(context.new_page(), at.url, mid, **token))
        return tabs[-1]

    yield opened
    for each in tabs:
        each.page.context.close()
    assert [error for each in tabs for error in each.errors] == []


# The inbox.


def test_what_was_stored_comes_first_then_what_is_live(node: Node, tab: Open) -> None:
    stored = numbered(range(1, 251))  # more than a page of the server's
    node.push(1, *stored)
    ada = tab(1)
    ada.enter()
    node.push(1, "live", "too")
    ada.has(*stored, "live", "too")
    assert [seq for seq, _ in ada.page.evaluate("given")] == list(range(1, 253))
    await_item(node.storage.acknowledged, (1, 252))


def test_what_was_acknowledged_does_not_come_to_the_page_that_is_loaded_again(node: Node, tab: Open) -> None:
    node.push(1, *numbered(range(1, 6)))
    ada = tab(1)
    ada.enter()
    ada.has(*numbered(range(1, 6)))
    await_item(node.storage.acknowledged, (1, 5))
    ada.page.goto("about:blank")
    node.push(1, "m6")
    ada.page.goto(node.url)
    ada.enter()
    node.push(1, "m7")
    ada.has("m6", "m7")
    assert ada.numbers() == [6, 7]


def test_what_was_seen_and_not_acknowledged_is_not_given_twice(node: Node, tab: Open) -> None:
    node.push(1, "m1", "m2", "m3")
    ada = tab(1)
    ada.enter(acknowledge="manual")
    ada.has("m1", "m2", "m3")
    ada.page.evaluate("client.ack(1)")
    await_item(node.storage.acknowledged, (1, 1))
    ada.load_again(acknowledge="manual")  # with the number that the page kept
    node.push(1, "m4")
    ada.has("m4")
    assert ada.numbers() == [2, 3, 4]
    ada.page.evaluate("client.ack(4)")
    await_item(node.storage.acknowledged, (1, 4))
    ada.load_again(acknowledge="manual")
    node.push(1, "m5")
    ada.has("m5")
    assert ada.numbers() == [5]


def test_a_client_that_closes_has_acknowledged(node: Node, tab: Open) -> None:
    node.push(1, "m1", "m2")
    ada = tab(1)
    ada.enter(ackDelay=3600)
    ada.has("m1", "m2")
    ada.page.evaluate("client.close()")
    await_item(node.storage.acknowledged, (1, 2))


def test_a_page_that_is_left_has_acknowledged(node: Node, tab: Open) -> None:
    node.push(1, "m1", "m2")
    ada = tab(1)
    ada.enter(ackDelay=3600)
    ada.has("m1", "m2")
    ada.page.reload()
    await_item(node.storage.acknowledged, (1, 2))


def test_each_device_has_a_place_of_its_own(node: Node, tab: Open) -> None:
    phone, desk = tab(1, device="phone"), tab(1, device="desk")
    phone.enter()
    node.push(1, "m1")
    phone.has("m1")
    await_item(node.storage.acknowledged, (1, 1))
    desk.enter()
    desk.has("m1")


def test_a_client_without_ack_is_served_as_goim_would(node: Node, tab: Open) -> None:
    node.push(1, "m1")
    ada = tab(1, accepts=[TEXT])
    ada.enter()
    ada.has("m1")
    ada.page.evaluate("client.close()")
    await_item(node.storage.acknowledged, (1, 1))  # what was written counts
    assert ada.page.evaluate("sent(20)") == 0


def test_sync_reads_the_inbox_again_page_by_page(node: Node, tab: Open) -> None:
    node.push(1, *numbered(range(1, 26)))
    ada = tab(1)
    ada.enter()
    ada.has(*numbered(range(1, 26)))
    script = """async () => {
      const pages = [];
      for await (const page of client.sync({ after: 3, limit: 10 })) pages.push(page.map(({ seq }) => seq));
      return pages;
    }"""
    assert ada.page.evaluate(script) == [[*range(4, 14)], [*range(14, 24)], [24, 25]]


def test_a_server_that_stops_and_is_back_loses_and_repeats_nothing(node: Node, tab: Open) -> None:
    ada, grace = tab(1), tab(2)
    for each in (ada, grace):
        each.enter()
    assert ada.call("join", "live://1") is None
    node.push(1, "m1", "m2")
    ada.has("m1", "m2")
    node.stop()
    for each in (ada, grace):
        each.is_("waiting")
    # What another node of the cluster would have stored.
    node.storage.append([1, 2], TEXT, b"m3")
    node.start()
    node.push(1, "m4")
    for each in (ada, grace):
        each.is_("open")
    await_item(node.rooms.entries, (1, "live://1"))  # before the stop
    await_item(node.rooms.entries, (1, "live://1"))
    node.push(1, "m5")
    ada.has("m1", "m2", "m3", "m4", "m5")
    node.push_room("live://1", "for the room")
    ada.has("m1", "m2", "m3", "m4", "m5", "for the room")
    grace.has("m3")
    assert ada.told("error") == []


def test_it_goes_on_through_restart_after_restart(node: Node, tab: Open) -> None:
    ada = tab(1)
    ada.enter(ackDelay=0.01)
    for number in range(1, 21, 4):
        node.push(1, *numbered(range(number, number + 2)))
        node.stop()  # with acknowledges under way
        node.start()
        node.push(1, *numbered(range(number + 2, number + 4)))
    ada.has(*numbered(range(1, 21)))


# Rooms.


def test_rooms_are_joined_and_left_and_some_are_closed(node: Node, tab: Open) -> None:
    ada = tab(1)
    ada.enter()
    assert ada.call("join", "live://1") is None
    assert ada.call("join", "live://2") is None
    refused = {"code": 403, "message": "room_id: closed://1 is not open to this user"}
    assert ada.call("join", "closed://1") == refused
    assert ada.call("changeRoom", "closed://1") == refused
    assert ada.call("leave", "live://3")["code"] == 404
    assert ada.call("join", "nothing")["code"] == 400
    for room_id in ("live://1", "closed://1", "live://2", "test://1"):
        node.push_room(room_id, room_id)
    ada.has("live://1", "live://2", "test://1")
    assert ada.call("leave", "live://1") is None
    node.push_room("live://1", "gone")
    node.push_room("live://2", "still here")
    ada.has("live://1", "live://2", "test://1", "still here")
    assert ada.page.evaluate("client.rooms") == ["live://2"]
    assert ada.call("members", "live://1")["code"] == 403
    assert ada.call("members", "live://2", {"limit": 10}) == {
        "roomId": "live://2",
        "online": 1,
        "mids": [1],
        "next": None,
    }


def test_a_room_that_is_watched_tells_who_comes_and_goes(node: Node, tab: Open) -> None:
    ada, grace = tab(1, room_id="live://1"), tab(2, room_id="live://1")
    ada.enter()
    assert ada.call("watch", "live://1") is None
    assert ada.call("watch", "live://2")["code"] == 403
    grace.enter()
    ada.until("seen('presence').some(({ joined }) => joined.includes(2))")
    assert ada.call("lastSeen", [2, 3]) == {
        "2": {"online": True, "seen": None},
        "3": {"online": False, "seen": None},
    }
    grace.page.evaluate("client.close()")
    ada.until("seen('presence').some(({ left }) => left.includes(2))")
    assert ada.told("presence")[-1] == {"roomId": "live://1", "joined": [], "left": [2], "online": 1}
    gone = ada.call("lastSeen", [2])["2"]
    assert gone["online"] is False
    assert 0 <= time.time() - gone["seen"] < 3600


# Who may stay.


def test_a_token_that_runs_out_is_refreshed_on_the_connection(node: Node, tab: Open) -> None:
    ada = tab(1)
    ada.page.evaluate("lifetimes = [2]")  # seconds; the tokens after it do not run out
    ada.enter()
    ada.until("seen('expiring').length === 1 && tokens === 2")
    assert ada.call("send", 4, "an answer comes after that of REFRESH") is not None
    assert node.session(1, "test://1").expires == float("inf")
    assert len(ada.wires) == 1
    other = ada.call("refresh", {"mid": 2})
    assert other == {"code": 403, "message": "token: it is another user's"}
    ada.is_("open")


def test_a_token_that_is_not_refreshed_ends_the_connection_and_a_new_one_begins(
    node: Node, tab: Open
) -> None:
    ada = tab(1)
    ada.page.evaluate("lifetimes = [3], stuck = true")
    ada.enter()
    ada.until("seen('disconnect').length === 1 && seen('error').length && client.state === 'open'")
    assert ada.told("disconnect") == [{"code": 4008, "message": "the token has expired", "final": False}]
    assert ada.told("error")[0]["op"] == Op.REFRESH
    assert len(ada.wires) == 2


def test_a_client_that_is_replaced_does_not_come_back(node: Node, tab: Open) -> None:
    old, new = tab(1, key="the same"), tab(1, key="the same")
    old.enter()
    new.enter()
    old.is_("refused")
    assert old.told("disconnect")[-1]["code"] == 4004
    new.is_("open")
    bad = tab(1)
    bad.token["accepts"] = "none"
    bad.page.evaluate("([token]) => enter(token, {})", [bad.token])
    bad.is_("refused")
    assert bad.told("disconnect")[-1]["code"] == 4001


def test_the_rate_limit_is_seen_and_acknowledges_pass_it_in_the_end(
    portal: BlockingPortal, tab: Open
) -> None:
    strict = Node(portal, rate=2.0, rate_burst=2)
    try:
        ada = tab(1, strict)
        ada.enter()
        script = "Promise.allSettled([1, 2, 3, 4].map(() => client.send(1000))).then((all) => all.map(({ reason }) => reason?.code))"
        assert ada.page.evaluate(script) == [None, None, 429, 429]
        strict.push(1, "m1")
        ada.has("m1")
        await_item(strict.storage.acknowledged, (1, 1))
    finally:
        strict.stop()
