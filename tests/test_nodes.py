"""What a server tells of the nodes: the two answers of the API, and how it lives with a discovery."""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
import trustme
from anyio.abc import TaskStatus
from attrs import evolve

from goim_core import (
    BackboneError,
    ConfigurationError,
    Discovery,
    Node,
    OpenAuth,
    Options,
    Server,
    StaticDiscovery,
)
from goim_core.__main__ import parser
from goim_core.client import Backoff, ClientState, connect, connect_once
from goim_core.client.address import Target, read_nodes
from goim_core.nodes import instances, weighted
from goim_core.settings import server_of, settings_of
from goim_core.testing.clock import ManualClock
from goim_core.weigher import PATIENCE
from tests.scripted import States

pytestmark = pytest.mark.anyio

OPTIONS = Options(heartbeat=240, ws_path="/chat")
A = Node(
    "a",
    host="a.example.org",
    hosts=("192.0.2.1", "2001:db8::1"),
    addrs={"ws": "10.0.0.1:3102", "wss": ":3103"},
)
B = Node("b", host="b.example.org", addrs={"ws": "10.0.0.2:3102", "wss": "10.0.0.2:3103"})
OTHER_PORTS = Node("c", host="c.example.org", addrs={"ws": "10.0.0.3:9102", "http": "127.0.0.1:3111"})
COMET = Node("comet", host="192.0.2.9", addrs={"grpc": "10.0.0.9:3109"})


class Kept(Discovery):
    """Keeps what it is asked; knows ``others`` and its own node."""

    def __init__(self, *others: Node) -> None:
        self.others = others
        self.calls: list[str] = []
        self.own: Any = None
        self.fault: Exception | None = None
        self.running = anyio.Event()

    def nodes(self) -> Sequence[Node]:
        return (*self.others, self.own()) if self.own is not None else ()

    @property
    def trouble(self) -> str:
        return "" if self.fault is None else str(self.fault)

    async def start(self, node: Any) -> None:
        self.calls.append("start")
        if self.fault is not None:
            raise self.fault
        self.own = node

    async def update(self) -> None:
        self.calls.append("update")
        if self.fault is not None:
            raise self.fault

    async def run(self) -> None:
        self.running.set()
        await anyio.sleep_forever()

    async def cancel(self) -> None:
        self.calls.append("cancel")

    async def aclose(self) -> None:
        self.calls.append("aclose")


def server(**settings: Any) -> Server:
    return Server(**{"auth": OpenAuth(), "ws": "127.0.0.1:0", "name": "n1", "host": "127.0.0.1", **settings})


# The answers.


def test_one_node_without_a_host_says_where_its_doors_are() -> None:
    own = Node("n1", addrs={"tcp": "127.0.0.1:3101", "ws": "127.0.0.1:3102", "tls": "/run/goim.sock"})
    assert weighted([own], own, OPTIONS, "web") == {
        "domain": "", "tcp_port": 3101, "ws_port": 3102, "wss_port": 0, "heartbeat": 240, "heartbeat_max": 2,
        "nodes": [], "backoff": {"max_delay": 300, "base_delay": 3, "factor": 1.8, "jitter": 0.3},
    }  # fmt: skip


def test_a_browser_gets_names_and_others_get_addresses() -> None:
    browser = weighted([A, B], A, OPTIONS, "web")
    assert (browser["domain"], browser["nodes"]) == ("a.example.org", ["a.example.org", "b.example.org"])
    other = weighted([A, B], A, OPTIONS, "android")
    assert (other["domain"], other["nodes"]) == ("", ["192.0.2.1", "2001:db8::1", "b.example.org"])
    assert other["urls"] == [
        # A certificate is for the name.
        {"ws": "ws://192.0.2.1:3102/chat", "wss": "wss://a.example.org:3103/chat"},
        {"ws": "ws://[2001:db8::1]:3102/chat", "wss": "wss://a.example.org:3103/chat"},
        {"ws": "ws://b.example.org:3102/chat", "wss": "wss://b.example.org:3103/chat"},
    ]


def test_nodes_with_other_ports_are_for_clients_that_read_urls() -> None:
    first, last = weighted([OTHER_PORTS, A], A, OPTIONS, "web"), weighted([A, OTHER_PORTS], A, OPTIONS, "web")
    assert (first["ws_port"], first["wss_port"], first["nodes"]) == (9102, 0, ["c.example.org"])
    assert (last["ws_port"], last["wss_port"], last["nodes"]) == (3102, 3103, ["a.example.org"])
    assert first["urls"] == last["urls"][::-1]
    assert first["urls"][0] == {"ws": "ws://c.example.org:9102/chat"}, "and never the push API"


def test_a_comet_of_goim_is_taken_to_have_the_ports_of_this_node() -> None:
    told = weighted([COMET, A], A, OPTIONS, "web")
    assert (told["ws_port"], told["nodes"]) == (3102, ["192.0.2.9", "a.example.org"])
    assert told["urls"][0]["ws"] == "ws://192.0.2.9:3102/chat"


@pytest.mark.parametrize("platform", ["web", "python"])
def test_the_clients_read_what_is_told(platform: str) -> None:
    told = json.loads(json.dumps(weighted([A, OTHER_PORTS], A, OPTIONS, platform)))
    found = read_nodes(told, Target("http", "asked.example.org", 80))
    assert [target.port for target in found] == [3102, 9102] if platform == "web" else [3102, 3102, 9102]


def test_instances_are_goims() -> None:
    [told] = instances(
        [evolve(A, region="sh", zone="sh001", weight=7, connections=3, addresses=2, draining=True)]
    )
    assert told == {
        "region": "sh", "zone": "sh001", "appid": "goim.comet", "hostname": "a",
        "addrs": ["ws://10.0.0.1:3102", "wss://:3103"], "status": 1,
        "metadata": {
            "weight": "7", "offline": "true", "addrs": "192.0.2.1,2001:db8::1", "conn_count": "3", "ip_count": "2",
            "host": "a.example.org",
        },
    }  # fmt: skip


# A server and its discovery.


async def test_it_registers_before_it_serves_and_cancels_before_it_closes() -> None:
    discovery = Kept(B)
    async with server(discovery=discovery, region="sh", zone="sh001", weight=7) as running:
        await discovery.running.wait()
        assert discovery.calls == ["start"]
        [at] = running.addresses["ws"]
        port = at[1]
        expected = Node(
            "n1", host="127.0.0.1", addrs={"ws": f"127.0.0.1:{port}"}, region="sh", zone="sh001", weight=7
        )
        assert discovery.own() == expected
        async with connect_once(f"ws://127.0.0.1:{port}", mid=1):
            assert (discovery.own().connections, discovery.own().addresses) == (1, 1)
    assert discovery.calls == ["start", "cancel", "aclose"]


async def test_nobody_is_sent_to_a_door_that_is_closed() -> None:
    class Slow(Kept):
        async def cancel(self) -> None:
            async with connect_once(where, mid=1):
                await super().cancel()

    discovery = Slow()
    async with server(discovery=discovery) as running:
        where = f"ws://127.0.0.1:{running.addresses['ws'][0][1]}"
    assert "cancel" in discovery.calls


async def test_a_cancel_that_hangs_does_not_keep_it_from_stopping() -> None:
    class Hanging(Kept):
        async def cancel(self) -> None:
            await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with server(discovery=Hanging(), options=Options(drain=0.2)):
            pass


async def test_a_discovery_that_cannot_start_fails_the_start() -> None:
    discovery = Kept()
    discovery.fault = BackboneError("url: nobody there")
    with pytest.raises(BackboneError, match="url: nobody there"):
        async with server(discovery=discovery):
            raise AssertionError("it has started")
    assert discovery.calls == ["start", "aclose"]


async def test_trouble_is_in_the_stats() -> None:
    discovery = Kept()
    async with server(discovery=discovery) as running:
        assert running.stats().troubles == {}
        discovery.fault = BackboneError("url: nobody there")
        assert running.stats().troubles == {"discovery": "url: nobody there"}


async def test_drained_it_is_left_out_until_it_is_back() -> None:
    discovery = Kept(B)
    async with server(discovery=discovery, weight=20) as running:
        assert running.nodes_weighted("web", "")["nodes"][0] == "127.0.0.1"
        await running.drain()
        assert discovery.own().draining
        assert running.nodes_weighted("web", "")["nodes"] == ["b.example.org"]
        assert [told["metadata"]["offline"] for told in running.nodes_instances()] == ["false", "true"]
        await running.drain(False)
        assert len(running.nodes_weighted("web", "")["urls"]) == 2
        assert discovery.calls == ["start", "update", "update"]
        discovery.fault = BackboneError("url: nobody there")
        with pytest.raises(BackboneError):
            await running.drain()
        assert discovery.own().draining, "the others are told when they can be"


async def test_where_no_other_takes_clients_it_names_itself() -> None:
    async with server() as running:
        await running.drain()
        assert running.nodes_weighted("web", "")["nodes"] == ["127.0.0.1"]


async def test_the_region_of_a_client_is_what_the_application_says() -> None:
    class Located(Server):
        def region_of(self, address: str) -> str:
            return {"192.0.2.1": "gz"}.get(address, "sh")

    near, far = evolve(A, region="sh"), evolve(B, region="gz")
    settings: Any = {"auth": OpenAuth(), "host": "h", "name": "a", "discovery": StaticDiscovery([near, far])}
    async with Located(**settings) as running:
        assert running.nodes_weighted("web", "192.0.2.2")["nodes"][0] == "a.example.org"
        assert running.nodes_weighted("web", "192.0.2.1")["nodes"][0] == "b.example.org"


async def test_a_discovery_that_forgets_most_is_not_believed_at_once() -> None:
    clock, discovery = ManualClock(), Kept(B, OTHER_PORTS, COMET)
    async with server(discovery=discovery, clock=clock, options=Options(drain=0.01)) as running:
        assert len(running.nodes_weighted("web", "")["urls"]) == 4
        discovery.others = ()
        assert len(running.nodes_weighted("web", "")["urls"]) == 4
        clock.advance(PATIENCE)
        assert len(running.nodes_weighted("web", "")["urls"]) == 1
        clock.release()


async def test_all_addresses_are_told_as_its_host() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("n1.example.org").configure_cert(context)
    doors: dict[str, Any] = {"wss": ("0.0.0.0", 0), "http": "127.0.0.1:0", "ssl_context": context}
    async with server(host="n1.example.org", **doors) as running:
        addrs = running.node().addrs
        assert addrs["wss"] == f"n1.example.org:{running.addresses['wss'][0][1]}"
        assert addrs["http"].startswith("127.0.0.1:")


def test_clients_have_to_be_told_where() -> None:
    with pytest.raises(ConfigurationError, match="^host: missing"):
        server(discovery=Kept(), host="")


@pytest.mark.parametrize("weight", [-1, 2**20 + 1, "10", 1.5])
def test_a_weight_that_is_none(weight: Any) -> None:
    with pytest.raises(ConfigurationError, match="^weight: expected an int"):
        server(weight=weight)


async def test_a_client_goes_to_the_best_node_and_moves_when_that_is_gone() -> None:
    class Shared(Kept):
        """The nodes of one process."""

        all: ClassVar[dict[str, Any]] = {}

        def nodes(self) -> Sequence[Node]:
            return [self.all[name]() for name in sorted(self.all)]

        async def start(self, node: Any) -> None:
            self.own = self.all[node().name] = node

        async def cancel(self) -> None:
            self.all.pop(self.own().name)

    doors: dict[str, Any] = {
        "tcp": "127.0.0.1:0",
        "ws": (),
        "http": "127.0.0.1:0",
        "options": Options(drain=1),
    }
    second = server(discovery=Shared(), **{**doors, "name": "n2", "weight": 1000})
    states, stop = States(), anyio.Event()

    async def run(*, task_status: TaskStatus[None]) -> None:
        async with second:
            task_status.started()
            await stop.wait()

    with anyio.fail_after(20):
        async with server(discovery=Shared(), **doors) as first, anyio.create_task_group() as tasks:
            await tasks.start(run)
            port = first.addresses["http"][0][1]
            url, quick = f"http://127.0.0.1:{port}", Backoff(first=0, base=0)
            async with connect(url, mid=1, accepts=[1000], backoff=quick, on_state=states) as client:
                assert second.stats().users == 1
                stop.set()
                await states.until(ClientState.OPEN, 2)
                await first.push_mids([1], 1000, b"here")
                assert (await client.receive()).body == b"here"


# On the command line.

CALL = "serve --auth open --discovery http://127.0.0.1:7171,http://127.0.0.1:7172 --name n1 --host n1.example.org"


def test_where_a_node_is_comes_from_the_call_the_file_or_goims_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEPLOY_ENV", "dev")
    for name, value in (("REGION", "sh"), ("ZONE", "sh001"), ("WEIGHT", "30")):
        monkeypatch.setenv(name, value)
    config = tmp_path / "goim.toml"
    config.write_text('region = "gz"\nweight = 20\n')
    settings = settings_of(parser().parse_args([*CALL.split(), "--config", str(config), "--weight", "7"]))
    made = server_of({name: value for name, value in settings.items() if name != "log"}).node()
    assert (made.region, made.zone, made.weight) == ("gz", "sh001", 7)
    assert server_of(settings_of(parser().parse_args(CALL.split()))).node().weight == 30
    without = settings_of(parser().parse_args(["serve", "--auth", "open"]))
    assert "region" not in without, "the variables of others are left alone"
    with pytest.raises(ConfigurationError, match="^weight: expected a number, got 'much'$"):
        server_of({**settings, "weight": "much"})
