"""The client chooses its node: what it makes of an answer, and where it goes."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.cluster.processes import free_ports
from goim_core.client import Backoff, ClientState, connect
from goim_core.client.address import Target, read_nodes
from goim_core.errors import CloseCode, Disconnect
from goim_core.http_door import HTTPDoor, Request, Response
from goim_core.testing.clock import ManualClock
from goim_core.testing.quiet import all_blocked
from goim_core.wire import disconnect_frame
from tests.scripted import Scripted, States, scripted

pytestmark = pytest.mark.anyio

PLAIN, SECURE = Target("http", "asked", 80), Target("https", "asked", 443)
AT_ONCE = Backoff(first=0, base=0)
GOIM = {"domain": "d", "tcp_port": 3101, "ws_port": 3102, "wss_port": 3103, "nodes": ["a", "::1"]}
URLS = {
    **GOIM,
    "urls": [
        {"tcp": "tcp://a:1", "tls": "tls://a:2", "ws": "ws://a:3/x", "wss": "wss://a:4/x"},
        {"tcp": "tcp://[::1]:5"},
        {"tls": "tls://b:6"},
        {},
    ],
}


def shown(data: Any, asked: Target = PLAIN, doors: tuple[str, ...] = ()) -> list[str]:
    return [f"{target.scheme}://{target.authority}" for target in read_nodes(data, asked, doors)]


# An answer.


def test_goims_answer_has_hosts_and_a_port_for_all() -> None:
    assert shown(GOIM) == ["ws://a:3102", "ws://[::1]:3102", "ws://d:3102", "ws://asked:3102"]
    assert shown(GOIM, SECURE)[:1] == ["wss://a:3103"], "the list came over https, and so goes all"
    assert shown(GOIM, doors=("tcp",))[:1] == ["tcp://a:3101"]
    assert shown({"tcp_port": 1, "nodes": None}) == ["tcp://asked:1"]
    assert {target.path for target in read_nodes(GOIM, PLAIN)} == {"/sub"}


def test_goim_cores_answer_has_the_addresses_of_each_node() -> None:
    assert shown(URLS) == ["ws://a:3", "tcp://[::1]:5", "tls://b:6"]
    assert shown(URLS, SECURE) == ["wss://a:4", "tls://b:6"]
    assert shown(URLS, doors=("tcp", "tls")) == ["tcp://a:1", "tcp://[::1]:5", "tls://b:6"]
    assert read_nodes(URLS, PLAIN)[0].path == "/x"


@pytest.mark.parametrize("data", [{}, {"nodes": ["a"]}, {"urls": [{"tcp": "tcp://a"}]}, {"wss_port": 0}])
def test_no_node_has_a_door_that_may_be_used(data: Any) -> None:
    with pytest.raises(ValueError, match="nodes: expected one with a door of wss, tls"):
        read_nodes(data, SECURE)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["ws", "tcp", "x"]), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["urls", "nodes", "domain", "ws_port", "tcp_port"]), junk))
def test_whatever_is_told_is_addresses_or_a_value_error(data: Any) -> None:
    try:
        found = read_nodes(data, PLAIN)
    except ValueError:
        return
    assert found


# A client.


class Nodes:
    """A node list of a test's own: ``told`` is the answer, each node at its TCP door."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.other: Response | None = None
        self.asked: list[Request] = []
        self.url = ""

    def answer(self, request: Request) -> Response:
        self.asked.append(request)
        if self.other is not None:
            return self.other
        data = {"urls": [{"tcp": url} for url in self.told]}
        return Response(200, json.dumps({"code": 0, "data": data}).encode())


@asynccontextmanager
async def node_list() -> AsyncIterator[Nodes]:
    nodes = Nodes()
    route = {"GET": nodes.answer}
    door = HTTPDoor({"/goim/nodes/weighted": route, "/mine": route})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        nodes.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def serve() -> None:
            while True:
                await anyio.wait_readable(listener)
                sock, _ = listener.accept()
                sock.setblocking(False)
                tasks.start_soon(door.serve, sock)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            yield nodes
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[Nodes, Scripted, Scripted]]:
    with anyio.fail_after(20):
        async with node_list() as nodes, scripted() as first, scripted() as second:
            nodes.told = [first.url, second.url]
            yield nodes, first, second


def nobody() -> str:
    """An address at which nobody listens."""
    return f"tcp://127.0.0.1:{free_ports(1)[0]}"


async def test_it_goes_to_the_first_node_that_lets_it_in() -> None:
    async with two_nodes() as (nodes, first, second):
        nodes.told.insert(0, nobody())
        first.answers.append(disconnect_frame(Disconnect("stopping", CloseCode.GOING_AWAY)))
        async with connect(nodes.url, token=b"t") as client:
            await second.peer()
            assert client.state is ClientState.OPEN
        assert [request.path for request in nodes.asked] == ["/goim/nodes/weighted"]


async def test_it_asks_before_each_connection() -> None:
    async with two_nodes() as (nodes, first, second):
        async with connect(f"{nodes.url}/mine?platform=x", token=b"t", backoff=AT_ONCE):
            peer = await first.peer()
            nodes.told = [second.url, first.url]
            await peer.close()
            await second.peer()
        assert [(request.path, dict(request.query)) for request in nodes.asked] == [
            ("/mine", {"platform": ("x",)})
        ] * 2


async def test_while_nobody_answers_the_nodes_known_last_are_tried() -> None:
    async with two_nodes() as (nodes, first, second):
        async with connect(nodes.url, token=b"t", backoff=AT_ONCE):
            peer = await first.peer()
            nodes.other = Response(503)
            await first.listener.aclose()
            await peer.close()
            await second.peer()
        assert len(nodes.asked) == 2


async def test_while_connected_it_asks_again_and_finds_who_came_since() -> None:
    """It asked while its node knew only itself; then that one dies, and with it the list."""
    clock = ManualClock()
    numbers = iter([0.0, 1.0, 0.5, 0.5])
    async with two_nodes() as (nodes, first, second):
        nodes.told = [first.url]
        options: Any = {
            "clock": clock,
            "random": lambda: next(numbers, 0.5),
            "heartbeat": 1e6,
            "backoff": AT_ONCE,
        }
        async with connect(nodes.url, token=b"t", **options):
            peer = await first.peer()
            for seconds, told in ((48, [first.url, second.url]), (72, None), (60, None)):
                nodes.other = Response(503) if told is None else None
                nodes.told = told or []
                await clock.asleep(seconds)
                asked = len(nodes.asked)
                clock.advance(seconds)
                while len(nodes.asked) == asked:
                    await anyio.lowlevel.checkpoint()
            await clock.asleep(60)
            await first.listener.aclose()
            await peer.close()
            await second.peer()


@pytest.mark.parametrize("where", ["list", "one"])
async def test_it_asks_no_more_where_it_shall_not_or_there_is_none(where: str) -> None:
    clock = ManualClock()
    async with two_nodes() as (nodes, first, _):
        address, every = (nodes.url, math.inf) if where == "list" else (first.url, 60.0)
        async with connect(address, token=b"t", clock=clock, refresh_nodes=every, heartbeat=1e6):
            await first.peer()
            await all_blocked()
            assert clock.sleepers == 1, "the client's other times"


async def test_a_node_that_turns_the_client_away_for_good_is_the_last() -> None:
    async with two_nodes() as (nodes, first, second):
        first.answers.append(disconnect_frame(Disconnect("no", CloseCode.AUTH_REFUSED)))
        with pytest.raises(Disconnect, match="no"):
            async with connect(nodes.url, token=b"t"):
                raise AssertionError("it was let in")
        assert not second.peers


async def test_all_nodes_are_gone() -> None:
    states = States()
    async with two_nodes() as (nodes, first, _):
        async with connect(nodes.url, token=b"t", backoff=AT_ONCE, on_state=states):
            peer = await first.peer()
            nodes.told = [nobody(), nobody()]
            await peer.close()
            change = await states.until(ClientState.WAITING, 2)
            assert "cannot connect to 127.0.0.1" in str(change.why)
            nodes.told = [first.url]
            await first.peer()
        with pytest.raises(OSError, match="cannot connect to 127"):
            nodes.told = [nobody()]
            async with connect(nodes.url, token=b"t"):
                raise AssertionError("it was let in")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response(404, b"{}"), "HTTP status 404"),
        (Response(200, b"<html>"), "Expecting value"),
        (Response(200, b"[" * 5000), ""),
        (
            Response(200, b'{"code":-500,"message":"stopping"}'),
            'expected an answer of code 0, got b\'{"code":-500',
        ),
        (Response(200, b'{"code":0}'), "nodes: expected one with a door"),
        (Response(200, b'{"code":0,"data":[]}'), "nodes: "),
        (Response(200, b'{"code":0,"data":{"urls":["x"]}}'), "nodes: "),
        (Response(200, b" " * (1 << 20) + b" "), "more than 1048576 bytes"),
    ],
)
async def test_an_answer_that_is_none_says_whom_it_asked(answer: Response, reason: str) -> None:
    async with node_list() as nodes:
        nodes.other = answer
        with pytest.raises(OSError, match=f"cannot ask {nodes.url} for nodes: ") as told:
            async with connect(nodes.url, token=b"t"):
                raise AssertionError("it was let in")
        assert reason in str(told.value)


async def test_nobody_to_ask() -> None:
    url = nobody().replace("tcp", "http")
    with pytest.raises(OSError, match=f"cannot ask {url} for nodes: cannot connect to {url}"):
        async with connect(url, token=b"t"):
            raise AssertionError("it was let in")


async def test_one_that_takes_the_question_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError, match=r"not within 0\.05 s"):
            async with connect(url, token=b"t", connect_timeout=0.05):
                raise AssertionError("it was let in")


async def test_a_list_over_https_has_to_prove_who_it_is() -> None:
    async with node_list() as nodes:
        with pytest.raises(OSError, match="cannot ask https://"):
            async with connect(nodes.url.replace("http", "https"), token=b"t"):
                raise AssertionError("it was let in")


@pytest.mark.parametrize(
    ("address", "options", "named"),
    [
        ("http://", {}, "address"),
        ("http://a:port", {}, "address"),
        ("http://a/ b", {}, "address"),
        ("http://a/\n", {}, "address"),
        ("ftp://a", {}, "address"),
        ("http://a", {"doors": "ws"}, "doors"),
        ("http://a", {"doors": ["http"]}, "doors"),
    ],
)
def test_what_cannot_be_asked(address: str, options: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        connect(address, token=b"t", **options)
