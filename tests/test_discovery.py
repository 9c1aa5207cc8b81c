"""Nodes, their form as instances of bilibili/discovery, and the discovery that is a list."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from goim_core.discovery import MAX_WEIGHT, Discovery, Node, StaticDiscovery, in_url, instance, read_instance
from goim_core.errors import ConfigurationError

words = st.text(st.characters(exclude_characters=",", exclude_categories=["Cs"]), max_size=9)
nodes = st.builds(
    Node,
    name=words.filter(bool),
    host=words.filter(bool),
    hosts=st.lists(words.filter(bool), min_size=2, max_size=3),
    addrs=st.dictionaries(st.sampled_from(["tcp", "ws", "grpc"]), words, max_size=3),
    region=words,
    zone=words,
    weight=st.integers(0, MAX_WEIGHT),
    connections=st.integers(0, 2**63),
    addresses=st.integers(0, 2**63),
    draining=st.booleans(),
    metadata=st.dictionaries(words.map("x-{}".format), words, max_size=2),
)


@given(nodes)
def test_a_node_is_the_same_after_its_travels(node: Node) -> None:
    assert read_instance(json.loads(json.dumps(instance(node)))) == node


def test_one_host_needs_no_list() -> None:
    node = Node("n1", host="a.example.org")
    assert instance(node)["metadata"]["addrs"] == "a.example.org"
    assert read_instance(instance(node)) == node


def test_addresses_that_another_server_of_discovery_joined() -> None:
    doors = {"grpc": "127.0.0.1:0", "tcp": "[2001:db8::1]:3101", "ws": "/run/a,b"}
    node = Node("n1", host="a.example.org", addrs=doors)
    fields = instance(node)
    assert read_instance({**fields, "addrs": [",".join(fields["addrs"])]}) == node


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["hostname", "addrs", "region", "metadata", "latest_timestamp"]
METADATA = ["weight", "offline", "addrs", "conn_count", "ip_count", "host", "more"]


@given(
    st.dictionaries(st.sampled_from(FIELDS), junk), st.dictionaries(st.sampled_from(METADATA), junk) | junk
)
def test_an_instance_is_a_node_or_a_value_error(fields: Any, metadata: Any) -> None:
    fields = {"hostname": "n1", **fields, "metadata": metadata}
    try:
        node = read_instance(fields)
    except ValueError:
        return
    assert node.name == fields["hostname"]


@pytest.mark.parametrize(
    ("offline", "draining"),
    [("true", True), ("1", True), ("T", True), ("false", False), ("0", False), ("", False), ("maybe", True)],
)
def test_offline_as_go_writes_it(offline: str, draining: bool) -> None:
    fields = {"hostname": "n1", "metadata": {"weight": "1", "offline": offline}}
    assert read_instance(fields).draining is draining


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"weight": -1}, "weight"),
        ({"weight": MAX_WEIGHT + 1}, "weight"),
        ({"weight": 1.5}, "weight"),
        ({"weight": True}, "weight"),
        ({"connections": -1}, "connections"),
        ({"addresses": "3"}, "addresses"),
    ],
)
def test_fields_that_cannot_be(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{named}: "):
        Node(**{"name": "n1", **fields})


def test_ports() -> None:
    node = Node("n1", addrs={"ws": "192.0.2.1:3102", "tcp": "[2001:db8::1]:3101", "tls": "/run/goim.sock"})
    assert [node.port(door) for door in ("ws", "tcp", "tls", "wss")] == [3102, 3101, 0, 0]


def test_hosts_in_a_url() -> None:
    assert [in_url(host) for host in ("a.example.org", "192.0.2.1", "::1")] == [
        "a.example.org",
        "192.0.2.1",
        "[::1]",
    ]


class TestStaticDiscovery:
    pytestmark = pytest.mark.anyio

    async def test_a_list_is_what_it_is(self) -> None:
        listed = [Node("b", host="b.example.org"), Node("a", host="a.example.org", weight=3)]
        discovery = StaticDiscovery(listed)
        own = Node("a", host="elsewhere", connections=5)
        await discovery.start(lambda: own)
        await discovery.run()
        await discovery.update()
        assert list(discovery.nodes()) == [listed[1], listed[0]]
        assert discovery.trouble == ""
        await discovery.cancel()
        await discovery.aclose()

    async def test_this_node_is_left_out_while_it_drains(self) -> None:
        discovery: Discovery = StaticDiscovery([Node("a"), Node("b")])
        await discovery.update()  # nothing has started
        own = Node("a")
        await discovery.start(lambda: own)
        for draining in (True, False):
            own = evolve(own, draining=draining)
            await discovery.update()
            assert [node.draining for node in discovery.nodes()] == [draining, False]

    def test_each_name_once(self) -> None:
        with pytest.raises(ConfigurationError, match="nodes: expected each name once, got a, a, b"):
            StaticDiscovery([Node("a"), Node("b"), Node("a")])
