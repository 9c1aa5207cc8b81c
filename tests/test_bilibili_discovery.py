"""BilibiliDiscovery against a stand-in for the Go program, and against a real one where GOIM_DISCOVERY is its URL."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import evolve

from goim_core.adapters.discovery import BilibiliDiscovery
from goim_core.clock import SystemClock
from goim_core.discovery import Discovery, Node
from goim_core.errors import BackboneError, ConfigurationError
from goim_core.http_door import Response
from goim_core.testing.clock import ManualClock
from goim_core.testing.discovery_contract import DiscoveryContract, Member, New, joined, until
from tests.fake_discovery import Fake, fake_discovery

pytestmark = pytest.mark.anyio

REAL = os.environ.get("GOIM_DISCOVERY", "")
NODE = Node("n1", host="n1.example.org", zone="sh001", region="sh", addrs={"ws": "10.0.0.1:3102"})


class Hurried(SystemClock):
    """Nobody sleeps for long."""

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(min(seconds, 0.02))


class TestBilibiliDiscovery(DiscoveryContract):
    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[New]:
        async with fake_discovery() as ([fake], _):
            yield lambda: BilibiliDiscovery(fake.url, env="dev", clock=Hurried())


if REAL:

    class TestTheRealOne(DiscoveryContract):
        @asynccontextmanager
        async def cluster(self) -> AsyncIterator[New]:
            env = f"test-{uuid.uuid4()}"
            yield lambda: BilibiliDiscovery(REAL, env=env, clock=Hurried())


@asynccontextmanager
async def one(
    node: Node = NODE, servers: int = 1
) -> AsyncIterator[tuple[Member, list[Fake], ManualClock, Any]]:
    """A node with a clock that the test owns."""
    clock = ManualClock()
    with anyio.fail_after(20):
        async with fake_discovery(servers) as (fakes, tasks):
            discovery = BilibiliDiscovery([fake.url for fake in fakes], env="dev", clock=clock)
            async with joined(discovery, node) as member:
                yield member, fakes, clock, tasks


async def ticks(clock: ManualClock, times: int) -> None:
    """Ten seconds, several times."""
    for _ in range(times):
        await clock.asleep(10.0)
        clock.advance(10)
    await clock.asleep(10.0)


async def test_what_is_registered_is_what_goim_reads() -> None:
    node = evolve(NODE, hosts=("192.0.2.1", "192.0.2.2"), weight=7, connections=3, addresses=2)
    async with one(node) as (_, [fake], _, _):
        [form] = fake.asked("register")
        metadata = json.loads(form.pop("metadata")[0])
        assert form == {
            "region": ["sh"],
            "zone": ["sh001"],
            "env": ["dev"],
            "appid": ["goim.comet"],
            "hostname": ["n1"],
            "addrs": ["grpc://127.0.0.1:0", "ws://10.0.0.1:3102"],
            "version": [""],
            "status": ["1"],
        }
        assert metadata == {
            "weight": "7",
            "offline": "false",
            "addrs": "192.0.2.1,192.0.2.2",
            "conn_count": "3",
            "ip_count": "2",
            "host": "n1.example.org",
        }


async def test_a_comet_of_goim_is_a_node() -> None:
    async with one() as (member, [fake], _, _):
        await until(lambda: fake.asked("polls"))
        metadata = {
            "weight": "10",
            "offline": "true",
            "addrs": "192.0.2.9",
            "conn_count": "5",
            "ip_count": "4",
        }
        comet = {
            "region": ["sh"], "zone": ["sh001"], "env": ["dev"], "appid": ["goim.comet"], "hostname": ["comet-1"],
            "addrs": ["grpc://10.0.0.9:3109"], "status": ["1"], "metadata": [json.dumps(metadata)],
        }  # fmt: skip
        fake._register(comet)
        await until(lambda: "comet-1" in member.names)
        found = member.knows("comet-1")
        assert evolve(found, updated=0) == Node(
            "comet-1", host="192.0.2.9", addrs={"grpc": "10.0.0.9:3109"}, region="sh", zone="sh001",
            connections=5, addresses=4, draining=True,
        )  # fmt: skip


async def test_set_every_10_s_and_renew_every_30() -> None:
    async with one() as (_, [fake], clock, _):
        await ticks(clock, 6)
        told = [what for what, _ in fake.calls if what in ("set", "renew")]
        assert told == ["set", "set", "renew", "set"] * 2
        assert fake.asked("renew")[0] == {
            "zone": ["sh001"], "env": ["dev"], "appid": ["goim.comet"], "hostname": ["n1"], "region": ["sh"],
        }  # fmt: skip
        assert len(fake.asked("register")) == 1


async def test_that_a_node_drains_is_told_to_those_who_do_not_poll_at_that_moment() -> None:
    async with one() as (member, [fake], _, _):
        listed = fake.known.latest["dev", "goim.comet"]
        for times, draining in enumerate((True, False), 2):
            member.node = evolve(NODE, draining=draining)
            await member.discovery.update()
            await member.discovery.update()
            assert len(fake.asked("register")) == times
            assert len(fake.asked("set")) == times - 1
            assert fake.known.latest["dev", "goim.comet"] > listed
            listed = fake.known.latest["dev", "goim.comet"]


@pytest.mark.parametrize("times", [1, 3], ids=["set finds out", "renew finds out"])
async def test_a_server_without_memory_is_told_again(times: int) -> None:
    async with one() as (member, [fake], clock, _):
        await ticks(clock, times - 1)
        fake.known.clear()
        await ticks(clock, 1)
        assert len(fake.asked("register")) == 2
        assert ("dev", "goim.comet") in fake.known.apps
        assert not member.discovery.trouble


async def test_a_server_that_is_away_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "goim_core.adapters.discovery")
    async with one() as (member, [fake], clock, tasks):
        await until(lambda: fake.asked("polls"))
        fake.kill()
        for _ in range(5):
            await ticks(clock, 1)
        assert member.names == ["n1"]
        assert "cannot say that it lives" in member.discovery.trouble
        with pytest.raises(BackboneError, match=r"urls: no answer to set from http://127\.0\.0\.1"):
            await member.discovery.update()
        await fake.start(tasks)
        while member.discovery.trouble:
            clock.advance(10)
            await anyio.wait_all_tasks_blocked()
            await until(lambda: clock.sleepers)
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 2, "one for telling and one for hearing"
        assert len([record for record in caplog.records if "works again" in record.message]) == 2


async def test_a_silent_node_is_left_out_though_the_server_keeps_it() -> None:
    async with fake_discovery() as ([fake], _):
        discovery = BilibiliDiscovery(fake.url, env="dev", clock=Hurried())
        async with joined(discovery, NODE) as member:
            fake._register({**fake.asked("register")[0], "hostname": ["n2"]})
            app = fake.known.apps["dev", "goim.comet"]
            for seconds, names in ((89, ["n1", "n2"]), (91, ["n1"]), (0, ["n1", "n2"])):
                sign = app["sh001/n1"]["latest_timestamp"] - seconds * 10**9
                app["sh001/n2"].update(renew_timestamp=sign - 1, latest_timestamp=sign)
                told = len(fake.asked("polls"))
                await until(lambda told=told: len(fake.asked("polls")) > told + 1)  # type: ignore[misc]
                await until(lambda names=names: member.names == names)  # type: ignore[misc]


async def test_the_next_server_is_asked_at_once() -> None:
    async with one(servers=2) as (member, [first, second], clock, _):
        await until(lambda: first.asked("polls"))
        assert not second.calls
        first.kill()
        await until(lambda: second.asked("polls"))
        assert second.asked("polls")[0]["latest_timestamp"] == ["0"], "another server counts by itself"
        await ticks(clock, 1)
        assert second.asked("set")
        assert not member.discovery.trouble


async def test_a_node_that_is_registered_with_another_server() -> None:
    node = evolve(NODE, addrs={"tcp": "10.0.0.1:3101", "ws": "10.0.0.1:3102"})
    async with fake_discovery(2) as ([first, second], _):
        async with joined(BilibiliDiscovery(first.url, env="dev"), node):
            async with joined(BilibiliDiscovery(second.url, env="dev"), evolve(NODE, name="n2")) as other:
                assert other.knows("n1").addrs == {"grpc": "127.0.0.1:0", **node.addrs}
                _, told = second._fetch({"env": ["dev"], "appid": ["goim.comet"], "status": ["1"]})
                addrs = [each["addrs"] for each in told["instances"]["sh001"] if each["hostname"] == "n1"]
                assert addrs == [["grpc://127.0.0.1:0,tcp://10.0.0.1:3101,ws://10.0.0.1:3102"]]


async def test_polls_that_fail_wait_longer_each_time() -> None:
    async with one() as (_, [fake], clock, _):
        await until(lambda: fake.asked("polls"))
        fake.otherwise = lambda what: Response(503) if what == "polls" else None
        fake.known.changed.set()  # the poll that is under way
        await clock.asleep(1.0)
        clock.advance(1)
        for wait in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
            asked = len(fake.asked("polls"))
            await until(lambda asked=asked: len(fake.asked("polls")) == asked)  # type: ignore[misc]
            await clock.asleep(wait)
            clock.advance(wait)


async def test_a_server_in_protection_takes_registrations_only() -> None:
    protected = {"fetch", "polls"}
    async with fake_discovery() as ([fake], _):
        refusal = Response(200, b'{"code":-500,"message":"-500","ttl":1}')
        fake.otherwise = lambda what: refusal if what in protected else None
        async with joined(BilibiliDiscovery(fake.url, env="dev", clock=Hurried()), NODE) as member:
            assert member.names == ["n1"]
            assert "not fresh" in member.discovery.trouble
            fake._register({**fake.asked("register")[0], "hostname": ["n2"]})
            protected.clear()
            await until(lambda: member.names == ["n1", "n2"])
            await until(lambda: not member.discovery.trouble)


async def test_a_node_that_makes_no_sense_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async with one() as (member, [fake], clock, _):
        await until(lambda: fake.asked("polls"))
        form = fake.asked("register")[0]
        for name, metadata in (
            ("bad", {"weight": "much"}),
            ("worse", None),
            ("worst", [1]),
            ("n0", {"weight": "1"}),
        ):
            fake._register({**form, "hostname": [name], "metadata": [json.dumps(metadata)]})
        while "n0" not in member.names:
            await clock.asleep(1.0)
            clock.advance(1)
            await anyio.wait_all_tasks_blocked()
        assert member.names == ["n0", "n1"]
        left_out = [record.message for record in caplog.records if "left out" in record.message]
        assert len(left_out) == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response(200, b"<html>"), "no discovery server"),
        (Response(200, b'{"code":"0"}'), "no discovery server"),
        (Response(404), "HTTP status 404"),
        (Response(200, b'{"code":-401,"message":"-401"}'), "answered register with code -401"),
    ],
)
async def test_a_start_that_fails_says_why(answer: Response, reason: str) -> None:
    async with fake_discovery() as ([fake], _):
        fake.otherwise = lambda what: answer
        discovery = BilibiliDiscovery(fake.url, env="dev")
        with pytest.raises(BackboneError, match=f"urls: .*{reason}"):
            await discovery.start(lambda: NODE)
        await discovery.aclose()


async def test_nobody_there() -> None:
    discovery = BilibiliDiscovery(["http://127.0.0.1:1", "http://[::1]:1/"], env="dev")
    with pytest.raises(
        BackboneError, match=r"urls: no answer to register from http://127\.0\.0\.1:1: .*; http://"
    ):
        await discovery.start(lambda: NODE)
    await discovery.aclose()


async def test_a_list_that_is_none() -> None:
    async with one() as (member, [fake], clock, _):
        await until(lambda: fake.asked("polls"))
        fake.otherwise = lambda what: (
            Response(200, b'{"code":0,"data":{"goim.comet":{"instances":[]}}}') if what == "polls" else None
        )
        fake.known.wake(("dev", "goim.comet"))
        await clock.asleep(1.0)
        clock.advance(1)
        await until(lambda: "no list of nodes" in member.discovery.trouble)
        assert member.names == ["n1"]


async def test_going_while_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    async with one() as (member, [fake], _, _):
        await until(lambda: fake.asked("polls"))
        fake.kill()
        await member.discovery.cancel()
        assert "stays in the list for 90 s" in caplog.text


async def test_a_zone_is_needed() -> None:
    with pytest.raises(ConfigurationError, match="zone: missing"):
        await BilibiliDiscovery("http://127.0.0.1:1", env="dev").start(lambda: evolve(NODE, zone=""))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"urls": ()}, "urls"),
        ({"urls": "127.0.0.1:7171"}, "urls"),
        ({"urls": "http://a,"}, "urls"),
        ({"urls": ["http://a", "ftp://b"]}, "urls"),
        ({"urls": [7171]}, "urls"),
        ({"env": ""}, "env"),
        ({"refresh": 0}, "refresh"),
        ({"renew": -1}, "renew"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "3"}, "timeout"),
        ({"refresh": True}, "refresh"),
    ],
)
def test_arguments_that_cannot_be_used(
    wrong: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPLOY_ENV", raising=False)
    with pytest.raises(ConfigurationError, match=f"^{named}: "):
        BilibiliDiscovery(**{"urls": "http://127.0.0.1:7171", "env": "dev", **wrong})


def test_the_environment_names_the_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_ENV", "dev")
    assert isinstance(BilibiliDiscovery("https://discovery.example.org"), Discovery)
