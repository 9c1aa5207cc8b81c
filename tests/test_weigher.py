"""goim's weights: against a plain reading of its formula, and what clients see of them."""

from __future__ import annotations

import logging
import math
from collections import Counter

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from goim_core.discovery import MAX_WEIGHT, Node
from goim_core.weigher import PATIENCE, Weigher

REGIONS = ["", "sh", "gz"]


def plain_weight(node: Node, nodes: list[Node], region: str) -> float:
    """The formula as goim computes it, step by step."""
    fixed = node.weight * (1.6 if region and node.region == region else 1.0)
    all_fixed = sum(other.weight for other in nodes) - node.weight + math.floor(fixed)
    total = sum(other.connections for other in nodes)
    if total == 0:
        return 0
    lack = fixed / all_fixed - node.connections / total * 0.5
    product = lack * total
    fraction = product - math.floor(product)
    rounded = math.floor(product) + (1 if fraction > 0.5 else 0)
    found = math.trunc(fixed + rounded)
    if lack < 0:
        return max(found, 1)
    return min(found, MAX_WEIGHT)


def node_lists(least: int = 0) -> st.SearchStrategy[list[Node]]:
    node = st.builds(
        Node,
        name=st.sampled_from([f"n{number}" for number in range(12)]),
        region=st.sampled_from(REGIONS),
        weight=st.integers(1, 40) | st.integers(1, MAX_WEIGHT),
        connections=st.integers(0, 50) | st.integers(0, 10**6),
        draining=st.sampled_from([False, False, True]),
    )
    return st.lists(node, min_size=least, max_size=9, unique_by=lambda each: each.name)


@given(node_lists(), st.sampled_from(REGIONS))
def test_the_order_is_that_of_the_formula(nodes: list[Node], region: str) -> None:
    weigher = Weigher()
    weigher.update(nodes, 0)
    up = [node for node in nodes if not node.draining]
    for _ in range(4):
        chosen = weigher.choose(region)
        assert len(chosen) == min(5, len(up))
        assert {node.name for node in chosen} <= {node.name for node in up}
        weights = {node.name: plain_weight(node, up, region) for node in up}
        told = [weights[node.name] for node in chosen]
        assert told == sorted(weights.values(), reverse=True)[:5]
        # A chosen node counts one connection more the next time.
        up = [
            evolve(node, connections=node.connections + (node.name == chosen[0].name)) if chosen else node
            for node in up
        ]


def test_an_example_by_hand() -> None:
    # All have 10 of 30 weights; of 100 connections a has 50, b 30, c 20.
    # a: 10 + (1/3 - 0.25) * 100 = 18, b: 10 + (1/3 - 0.15) * 100 = 28, c: 10 + (1/3 - 0.1) * 100 = 33.
    nodes = [Node("a", connections=50), Node("b", connections=30), Node("c", connections=20)]
    weigher = Weigher()
    weigher.update(nodes, 0)
    assert [node.name for node in weigher.choose()] == ["c", "b", "a"]


def test_the_callers_region_counts_more_but_does_not_rule() -> None:
    near = Node("near", region="sh", connections=50)
    far = Node("far", region="gz", connections=50)
    weigher = Weigher()
    weigher.update([near, far], 0)
    assert weigher.choose("sh")[0].name == "near"
    assert weigher.choose("gz")[0].name == "far"
    weigher.update([evolve(near, connections=90), evolve(far, connections=10)], 0)
    assert weigher.choose("sh")[0].name == "far"


def test_where_nobody_is_connected_yet_size_and_region_decide() -> None:
    weigher = Weigher()
    weigher.update([Node("a"), Node("b", region="sh"), Node("c", weight=20)], 0)
    assert [node.name for node in weigher.choose("sh")] == ["c", "b", "a"]


def test_newcomers_spread_over_equal_nodes() -> None:
    weigher = Weigher()
    weigher.update([Node(name) for name in "abc"], 0)
    assert Counter(weigher.choose()[0].name for _ in range(300)) == {"a": 100, "b": 100, "c": 100}


def test_a_report_ends_what_was_counted_for_the_chosen() -> None:
    weigher = Weigher()
    nodes = [Node("a", connections=10, updated=1), Node("b", connections=10, updated=1)]
    weigher.update(nodes, 0)
    assert Counter(weigher.choose()[0].name for _ in range(20)) == {"a": 10, "b": 10}
    weigher.update(nodes, 0)  # nothing new: what was counted stays
    weigher.update([evolve(nodes[0], updated=2), nodes[1]], 0)
    # a has 10 again, b 10 and ten more.
    assert [weigher.choose()[0].name for _ in range(9)] == ["a"] * 9


def test_a_list_with_under_half_of_the_nodes_is_believed_late(caplog: pytest.LogCaptureFixture) -> None:
    weigher = Weigher()
    nodes = [Node(name) for name in "abcd"]
    weigher.update(nodes, 0)
    weigher.update(nodes[:2], 1)  # half of them
    assert len(weigher.choose()) == 2
    weigher.update(nodes, 2)
    with caplog.at_level(logging.WARNING, "goim_core.weigher"):
        weigher.update(nodes[:1], 3)
        weigher.update([], 4)
    assert len(weigher.choose()) == 4
    assert len(caplog.records) == 1
    weigher.update(nodes, 5)  # it was the discovery's loss of memory
    weigher.update(nodes[:1], 6)
    weigher.update(nodes[:1], 6 + PATIENCE - 0.1)
    assert len(weigher.choose()) == 4
    weigher.update(nodes[:1], 6 + PATIENCE)
    assert [node.name for node in weigher.choose()] == ["a"]


def test_that_most_are_draining_is_believed_at_once() -> None:
    weigher = Weigher()
    nodes = [Node(name) for name in "abcd"]
    weigher.update(nodes, 0)
    weigher.update([*(evolve(node, draining=True) for node in nodes[:3]), nodes[3]], 1)
    assert [node.name for node in weigher.choose()] == ["d"]


def test_no_nodes() -> None:
    weigher = Weigher()
    assert weigher.choose() == []
    weigher.update([Node("a", draining=True)], 0)
    assert weigher.choose() == []


def test_a_node_without_weight_comes_last() -> None:
    weigher = Weigher()
    weigher.update([Node("a", weight=0), Node("b", weight=1, connections=1000)], 0)
    assert [node.name for node in weigher.choose()] == ["b", "a"]
    weigher.update([Node("a", weight=0, connections=1)], 0)
    assert [node.name for node in weigher.choose()] == ["a"]


def test_a_larger_weight_gets_more_than_its_share() -> None:
    # Half the share of connections weighs against the whole share of weight: newcomers go by twice the share of
    # weight less an equal share, 2 * 1/3 - 1/2 and 2 * 2/3 - 1/2 here. docs/cluster.md says what to do with that.
    weigher = Weigher()
    weigher.update([Node("small", weight=10), Node("large", weight=20)], 0)
    found = Counter(weigher.choose()[0].name for _ in range(6000))
    assert found["small"] == pytest.approx(1000, rel=0.02)
