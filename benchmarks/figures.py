"""The rows of the table that `make bench` prints, by section. README.md says what each means."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

from benchmarks import goim
from benchmarks.harness import (
    FEW,
    PROTOS,
    SATURATED,
    WARM_UP,
    Bench,
    Row,
    Run,
    beat_cost,
    delivery_cost,
    number,
    ratios,
    say,
)

__all__ = ["SECTIONS"]

AHEAD = 1.25
"""How many times goim's figure of a delivery is the target."""
MERGED = 20
"""How many messages goim merges."""
BURST = 1000
"""So many pushes at once, of which goim loses most."""


def fan_out(bench: Bench) -> Iterator[Row]:
    """Deliveries for each CPU second of the server, against a bare send() loop."""
    for (proto, conns), (ours, loop) in bench.saturated.items():
        name = f"fan-out {proto} {conns:,}"
        wanted = {"proto": proto, "conns": conns, "rate": SATURATED, "batch": 1}
        runs = [run for run in bench.runs if wanted.items() <= run.items()]
        lost = sum(abs(run["collect"]["lost"]) for run in runs)
        count = sum(run["collect"]["deliveries"] for run in runs)
        blocked = sum(run["loop"]["blocked"] for run in runs if "loop" in run)
        note = f"lost {lost:,} of {count:,}; the loop left out {blocked:,} that would have blocked"
        yield Row(
            f"{name}: goim_core",
            "1/CPU s",
            [1e6 / cost for cost in ours],
            AHEAD * max(goim.SINGLE),
            at_least=True,
            goim=goim.SINGLE,
        )
        yield Row(f"{name}: C send() loop", "1/CPU s", [1e6 / cost for cost in loop])
        yield Row(f"{name}: goim_core / C loop", "x", ratios(loop, ours), 0.9, at_least=True, note=note)


def merged(bench: Bench) -> Iterator[Row]:
    """The same with as many messages merged as goim merges."""
    for proto in PROTOS:
        runs = [bench.fan_out("goim_core", proto, FEW, SATURATED, MERGED) for _ in range(bench.repeats)]
        values = [1e6 / delivery_cost(run) for run in runs]
        name = f"fan-out {proto} {FEW:,}, {MERGED} merged"
        target = AHEAD * max(goim.MERGED)
        yield Row(name, "1/CPU s", values, target, at_least=True, goim=goim.MERGED)
        yield lost_row(name, runs)


def growth(bench: Bench) -> Iterator[Row]:
    """What a delivery costs among many connections, against among few."""
    many, few = bench.many, FEW
    for proto in PROTOS:
        at_rate = {n: bench.alternate(proto, n, 45_000 / n, min(bench.repeats, 2)) for n in bench.sizes}
        saturated = {n: bench.saturated[proto, n] for n in bench.sizes}
        for how, cost in (("saturated", saturated), ("45,000/s", at_rate)):
            name = f"cost of a delivery {proto} {many:,} / {few:,}, {how}"
            ours = ratios(cost[many][0], cost[few][0])
            loop = ratios(cost[many][1], cost[few][1])
            note = f"{median(cost[few][0]):.2f} -> {median(cost[many][0]):.2f} us"
            yield Row(f"{name}: goim_core", "x", ours, 1.3, note=note)
            note = f"{median(cost[few][1]):.2f} -> {median(cost[many][1]):.2f} us"
            yield Row(f"{name}: C loop", "x", loop, note=note)


def connections(bench: Bench) -> Iterator[Row]:
    """Memory of an idle connection; CPU to accept and authenticate one, and of a heartbeat."""
    for proto, kb, accept_us, beat_us in (("tcp", 1.0, 70, 9), ("ws", 1.2, 150, 14)):
        runs, alone = [], []
        for _ in range(bench.repeats):
            say(f"goim_core, {proto}, {bench.many:,} connections, idle and with heartbeats")
            with bench.goim_core() as ready:
                bench.load(proto, ready, WARM_UP, beat=0.3)
                time.sleep(0.3)  # until the server has let go of them
                runs.append(bench.load(proto, ready, bench.many, beat=bench.seconds(2)))
                alone.append(bench.load(proto, ready, FEW, beat=bench.seconds(1), beat_window=1))
        # What the warm-up left behind is used again: those connections are taken to have been free.
        grown = [
            (run["connect"]["rss_kb"] - run["connect"]["rss_kb_before"]) / (bench.many - WARM_UP)
            for run in runs
        ]
        yield Row(f"memory of an idle connection {proto}", "KB", grown, kb, goim=goim.MEMORY_KB[proto])
        accepts = [run["connect"]["cpu_s"] * 1e6 / bench.many for run in runs]
        yield Row(
            f"accept and authenticate {proto}", "us CPU", accepts, accept_us, goim=goim.ACCEPT_US[proto]
        )
        beats = [beat_cost(run) for run in runs]
        yield Row(f"heartbeat {proto}, 512 in flight", "us CPU", beats, beat_us, goim=goim.BEAT_US)
        yield Row(f"heartbeat {proto}, one at a time", "us CPU", [beat_cost(run) for run in alone])


def latency(bench: Bench) -> Iterator[Row]:
    """From the post to the client, 1,000 connections in one room."""
    for proto in PROTOS:
        for rate, p50, p99 in ((20, 5, 12), (100, 6, 20)):
            runs = []
            for _ in range(bench.repeats):
                say(f"goim_core, {proto}, {FEW:,} connections, {rate} pushes a second")
                with bench.goim_core() as ready:
                    collect = bench.seconds(3)
                    runs.append(bench.load(proto, ready, FEW, collect=collect, push=ready["http"], rate=rate))
            name = f"push to {FEW:,} clients {proto}, {rate}/s"
            yield latency_row(name, runs, "latency", "p50", p50, goim.P50_MS[rate])
            yield latency_row(name, runs, "latency", "p99", p99, goim.P99_MS[rate])
            yield lost_row(name, runs)


def linger(bench: Bench) -> Iterator[Row]:
    """The cost of a delivery where pushes wait for each other as long as they do with goim."""
    for proto in PROTOS:
        runs = []
        for _ in range(bench.repeats):
            say(f"goim_core, {proto}, {FEW:,} connections, 100 pushes a second that linger")
            with bench.goim_core("--linger", "1", "--batch", str(MERGED)) as ready:
                collect = bench.seconds(3)
                runs.append(bench.load(proto, ready, FEW, collect=collect, push=ready["http"], rate=100))
        name = f"lingering delivery {proto}, 100 pushes/s"
        costs = [delivery_cost(run) for run in runs]
        note = f"p99 {number(median(run['latency']['p99_ms'] for run in runs))} ms"
        yield Row(name, "us CPU", costs, max(goim.LINGER_US), goim=goim.LINGER_US, note=note)
        yield lost_row(name, runs)


def burst(bench: Bench) -> Iterator[Row]:
    """Many pushes to one room at once."""
    for proto in PROTOS:
        runs = []
        for _ in range(bench.repeats):
            say(f"goim_core, {proto}, {FEW:,} connections, {BURST:,} pushes at once")
            with bench.goim_core("--flood", str(FEW), "--burst", str(BURST)) as ready:
                runs.append(bench.load(proto, ready, FEW, collect=bench.seconds(1.5), numbered=1))
            runs[-1]["collect"]["lost"] = BURST * FEW - runs[-1]["collect"]["deliveries"]
        name = f"burst {proto}, {BURST:,} pushes to a room of {FEW:,} at once"
        yield lost_row(name, runs, tuple(share * BURST * FEW for share in goim.LOST_OF_A_BURST))
        yield latency_row(name, runs, "latency", "max")


def heartbeat(bench: Bench) -> Iterator[Row]:
    """How long another connection waits for a heartbeat while a large room is pushed to."""
    for proto in PROTOS:
        for rate in (5, 10):
            runs = []
            for _ in range(bench.repeats):
                say(f"goim_core, {proto}, {bench.many:,} connections, {rate} pushes a second, and one more")
                with bench.goim_core() as ready:
                    options = {"collect": bench.seconds(3), "push": ready["http"], "rate": rate, "probe": 15}
                    runs.append(bench.load(proto, ready, bench.many, **options))
            name = f"heartbeat of another {proto}, {bench.many:,} in a room, {rate}/s"
            yield latency_row(name, runs, "probe", "max", 30)
            yield latency_row(f"{name}: the pushes", runs, "latency", "p99")
            yield lost_row(f"{name}: the pushes", runs)


def latency_row(
    name: str,
    runs: list[Run],
    what: str,
    which: str,
    target: float | None = None,
    theirs: tuple[float, ...] = (),
) -> Row:
    """One percentile; the others go into the note."""
    values = {key: [float(run[what][f"{key}_ms"]) for run in runs] for key in ("p50", "p99", "max")}
    rest = ", ".join(f"{key} {number(median(values[key]))}" for key in values if key != which)
    count = sum(run[what]["count"] for run in runs)
    return Row(f"{name}: {which}", "ms", values[which], target, note=f"{rest}, of {count:,}", goim=theirs)


def lost_row(name: str, runs: list[Run], theirs: tuple[float, ...] = ()) -> Row:
    """Pushes times connections less deliveries: what came too often counts as well."""
    count = sum(run["collect"]["deliveries"] for run in runs)
    lost = [sum(abs(run["collect"]["lost"]) for run in runs)]
    return Row(f"{name}: lost", "", lost, 0, note=f"of {count:,}", goim=theirs)


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "connections": connections,
    "fanout": fan_out,
    "merged": merged,
    "growth": growth,
    "latency": latency,
    "linger": linger,
    "burst": burst,
    "heartbeat": heartbeat,
}
