"""Hostile clients: what bounds them, one by one, and every attack of benchmarks/hostile in small."""

from __future__ import annotations

import dataclasses
import json
import ssl
import sys
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import attrs
import pytest

from benchmarks.hostile import attacks
from benchmarks.hostile.attacks import ATTACKS, Attack
from fuzz.storm import Process
from goim_core.errors import CloseCode
from goim_core.options import Options
from goim_core.protocol import encode
from goim_core.task_reactor import TaskReactor
from goim_core.testing import App, Client, running
from goim_core.unfinished import OWN
from tests.test_tls import Pair, contexts

__all__ = ["contexts"]


# What is never finished.

BODY = 20_000
PART = 12_000
FRAME = encode(1000, bytes(BODY))
BOUNDED = Options(max_body=BODY, unfinished_total=2 * PART)


def unfinished(app: App) -> int:
    return app.server._pipeline.edge.unfinished.total


async def begin(app: App, *, size: int = PART, wire: str = "tcp") -> Client:
    """A client that has sent the beginning of a frame."""
    client = await app.connect({"mid": 1}, wire)
    await client.send_bytes(FRAME[:size])
    await app.idle()
    return client


@pytest.mark.anyio
async def test_who_is_unfinished_for_the_longest_goes_first() -> None:
    async with running(options=BOUNDED) as app:
        first, second = await begin(app), await begin(app)
        assert unfinished(app) == 2 * PART
        assert app.server.stats().refusals == {}
        third = await begin(app)
        await first.assert_closed(CloseCode.TRY_AGAIN_LATER)
        assert app.server.stats().refusals == {"unfinished_total": 1}
        assert unfinished(app) == 2 * PART
        for client in (second, third):
            await client.assert_open()


@pytest.mark.anyio
async def test_what_is_finished_is_held_no_more() -> None:
    async with running(options=BOUNDED) as app:
        first, second = await begin(app), await begin(app)
        await first.send_bytes(FRAME[PART:])
        await app.idle()
        assert unfinished(app) == PART
        second.close()
        await app.idle()
        assert unfinished(app) == 0
        await first.send_bytes(FRAME[:OWN])
        await app.idle()
        assert unfinished(app) == 0, "so much of it is a connection's own"
        await first.send_bytes(FRAME[OWN : OWN + 1])
        await app.idle()
        assert unfinished(app) == OWN + 1


@pytest.mark.anyio
async def test_another_bound_while_it_runs() -> None:
    async with running(options=BOUNDED) as app:
        first, second = await begin(app), await begin(app)
        app.server.reload(options=attrs.evolve(BOUNDED, unfinished_total=PART + 1))
        await first.assert_open()
        await second.send_bytes(FRAME[PART : PART + 1])
        await app.idle()
        await first.assert_closed(CloseCode.TRY_AGAIN_LATER)
        await second.assert_open()
        app.server.reload(options=attrs.evolve(BOUNDED, unfinished_total=OWN))
        await second.send_bytes(FRAME[PART + 1 : PART + 2])
        await second.assert_closed(CloseCode.TRY_AGAIN_LATER)


# What takes long has a slice of each turn.


class Slow:
    """Takes a millisecond for each turn, and asks for ``turns`` of them."""

    def __init__(self, loop: Turns, name: str, turns: int) -> None:
        self.loop = loop
        self.name = name
        self.turns = turns

    def on_turn(self) -> None:
        self.loop.said.append(self.name)
        self.loop.now += 0.001
        self.turns -= 1
        if self.turns:
            self.loop.again(self)


class Turns(TaskReactor):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.said: list[str] = []

    def turn(self) -> str:
        self.said.clear()
        self._turns()
        return " ".join(self.said)


def test_who_asks_for_turns_has_a_slice_of_each_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    monkeypatch.setattr("goim_core.reactor.time.monotonic", lambda: turns.now)
    for name in "abcde":
        turns.again(Slow(turns, name, 2))
    assert turns.turn() == "a b c", "3 ms"
    assert turns.turn() == "d e a"
    turns.again(Slow(turns, "f", 1))
    assert turns.turn() == "b c d"
    assert turns.turn() == "e f"
    assert turns.turn() == ""


def test_who_asks_again_has_no_second_turn_in_one() -> None:
    turns = Turns()
    turns.again(Slow(turns, "a", 3))
    assert [turns.turn() for _ in range(4)] == ["a", "a", "a", ""]


def test_a_handshake_goes_on_when_it_is_told_to(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    pair = Pair(contexts)
    pair.server.in_turns = True
    try:
        for _ in range(2):
            with pytest.raises(ssl.SSLWantReadError):
                pair.client.do_handshake()
            with pytest.raises(BlockingIOError):
                pair.server.recv(65536)
            assert pair.server.due
            with pytest.raises(ssl.SSLWantReadError):
                pair.client.do_handshake()  # nothing has been answered
            assert pair.server.go_on() == b""
            assert not pair.server.due
            try:
                pair.client.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        pair.client.send(b"with the last of the handshake")
        with pytest.raises(BlockingIOError):
            pair.server.recv(65536)
        assert pair.server.go_on() == b"with the last of the handshake"
        pair.client.send(b"later")
        assert pair.server.recv(65536) == b"later"
    finally:
        pair.close()


# The attacks.

LATENCY = 1000.0
"""The longest a well-behaved client may wait here, in ms: other tests may have the machine."""
PATIENCE = 20.0
ENOUGH = {"all from one address": 1100, "HTTP held in silence": 1100, "connect and vanish": 400}
"""What some need to meet the limit that they are about; of the others a hundredth will do."""
SIGNS: dict[str, tuple[str, str]] = {
    "all from one address": ("refusals", "max_address_connections"),
    "HTTP held in silence": ("refusals", "http_max_connections"),
    "close without answering": ("closes", "4001"),
    "huge frames claimed": ("refusals", "max_body"),
    "come, go, come back": ("closes", "4007"),
    "ping flood": ("closes", "4007"),
}
"""By what the server shows that it was attacked."""


class Beside:
    """A server under attack, and the well-behaved client beside."""

    def __init__(self) -> None:
        self.victim = Process("benchmarks.hostile.victim")
        self.ports: dict[str, int] = json.loads(self.victim.line())
        self.bystander = Process("fuzz.bystander", str(self.ports["tcp"]), str(self.ports["ws"]))
        assert self.bystander.line() == "ready\n"

    def figures(self, command: str = "figures") -> dict[str, Any]:
        stdin = self.victim.process.stdin
        assert stdin is not None
        stdin.write(command.encode() + b"\n")
        stdin.flush()
        found = json.loads(self.victim.line())
        return {**found, "descriptors": self.victim.descriptors, "memory": self.victim.memory}

    def settled(self, before: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while True:
            found = self.figures()
            kept = [name for name in HELD if found[name] > before[name]]
            if not kept:
                return found
            assert time.monotonic() < until, kept
            time.sleep(0.02)


HELD = ("connections", "rooms", "tasks", "descriptors", "errors", "waiting", "unfinished")


@pytest.fixture(scope="module")
def beside() -> Iterator[Beside]:
    if sys.platform != "linux":
        pytest.skip("the attackers use epoll, and /proc is looked into")
    found = Beside()
    yield found
    assert found.bystander.end() == 0
    assert found.victim.end() == 0


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_in_small(attack: Attack, beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.hostile.attacker import at_door

    monkeypatch.setattr(attacks, "HOLD", 0.2)
    count = ENOUGH.get(attack.name, max(20, attack.count // 100))
    small = dataclasses.replace(attack, at_once=count)
    before = beside.figures(f"policy {attack.policy or 'drop_newest'}")
    beside.bystander.asked()
    beside.figures(f"flood {attack.flood}")
    storms = [at_door(small, door, beside.ports[door], count) for door in attack.doors]
    threads = [Thread(target=storm.run, args=(0.4,)) for storm in storms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    beside.figures("flood 0")
    after = beside.settled(before)
    assert sum(storm.tally.total() for storm in storms) == count
    assert beside.bystander.asked()["worst"] < LATENCY
    assert after["memory"] - before["memory"] < attack.memory
    if attack.name in SIGNS:
        table, key = SIGNS[attack.name]
        assert after[table].get(key, 0) > before[table].get(key, 0)


def test_every_sign_is_of_an_attack() -> None:
    assert {*SIGNS, *ENOUGH} <= {attack.name for attack in ATTACKS}
