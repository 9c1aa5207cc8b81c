"""The fuzzer's targets: their corpus again, some seconds of fuzzing, and that each would notice a fault."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest

from fuzz.mutations import DOORS, SESSIONS, as_input, malformed
from fuzz.run import CORPUS, inputs
from fuzz.storm import KEPT, Process, at_server, in_process, measured, settled
from fuzz.targets import ALL, TARGETS
from goim_core.errors import ProtocolError
from tests.e2e.processes import run

LARGEST = 300 * 1024


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_breaks_nothing(name: str) -> None:
    tried = inputs(name)
    assert len(tried) > len(list(TARGETS[name].seeds())), "there is a corpus in the tree"
    for data in tried:
        TARGETS[name].check(data)


def test_the_corpus_is_small_and_of_targets_that_are_there() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < LARGEST


def broken(*_: Any) -> NoReturn:
    raise LookupError("a fault of this test")


FAULTS: dict[str, tuple[str, Any]] = {
    "frames": ("goim_core.protocol._bad_header", lambda *_: ProtocolError("", 1007)),
    "handshake": ("goim_core.handshake._SWITCHING", b"HTTP/1.1 101 \r\nSec-WebSocket-Accept: "),
    "messages": ("goim_core.websocket._usual", lambda first, *_: first & 15 == 2),
    "requests": ("goim_core.http_conversation._target", broken),
    "sealed": ("goim_core.inflow.SealedInflow.receive", broken),
    "tokens": ("goim_core.auth.session_of", broken),
    "operations": ("goim_core.operations._decimals", broken),
    "pushes": ("goim_core.adapters.pushmsg._signed", lambda value: value),
    "nodes": ("goim_core.discovery._decimal", broken),
    "answers": ("goim_core.client.wire._disconnect", broken),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[name])
    with pytest.raises((AssertionError, LookupError)):
        for data in inputs(name):
            TARGETS[name].check(data)


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform"
)
def test_some_seconds_of_fuzzing(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(ALL.seeds()):
        (corpus / str(number)).write_bytes(seed)
    done = run("fuzz.engine", "all", "-runs=300", "-seed=1", f"-artifact_prefix={tmp_path}/", str(corpus))
    assert done.returncode == 0, done.stderr[-3000:]
    covered = re.findall(r"cov: (\d+)", done.stderr)
    assert int(covered[-1]) > 1000  # or nothing was instrumented


# The storm.


@pytest.mark.parametrize("door", DOORS)
def test_sessions_are_malformed_each_in_its_way(door: str) -> None:
    random, again = Random(1), Random(1)
    made = [malformed(random, door) for _ in range(200)]
    assert made == [malformed(again, door) for _ in range(200)]
    assert len(set(made)) > 190
    assert not set(made) & {b"".join(SESSIONS[door](random)) for _ in range(200)}
    assert as_input(random, made[0]).endswith(made[0])


def test_the_wires_stand_a_small_storm() -> None:
    in_process(400, Random(2))


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_a_server_stands_a_small_storm() -> None:
    victim = Process("fuzz.victim")
    try:
        ports = json.loads(victim.line())
        before = measured(victim)
        tally: Counter[str] = Counter()
        asyncio.run(at_server(ports, 600, Random(3), tally))
        assert tally["stuck"] == 0
        assert sum(tally[door] for door in DOORS) == 600
        after = settled(victim, before)
        assert {name: after[name] for name in KEPT} == {name: before[name] for name in KEPT}
        assert sum(after["closes"].values()) > 300
    finally:
        assert victim.end() == 0
