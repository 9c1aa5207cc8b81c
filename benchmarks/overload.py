"""What `python -m benchmarks.overload` runs: more offered than the core can send, this rule and goim's.

README.md beside this file says how it is measured. Linux only, as run.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import (
    FEW,
    HERE,
    PROTOS,
    Bench,
    BenchError,
    Load,
    Run,
    compile_all,
    describe,
    number,
    raise_descriptor_limit,
    say,
)
from benchmarks.picture import Curve, Panel, curves
from benchmarks.rules import RULES

LOADS = (0.25, 0.5, 1, 2, 4, 8, 10, 12, 16, 32, 64, 128)
"""What is offered, as multiples of what single sends could carry."""
PROMISED = 10
"""Up to here nothing is lost, and the p99 is at most PROMISED_MS."""
PROMISED_MS = 1000.0


@dataclass(frozen=True)
class Point:
    """One run: deliveries a second, counts of deliveries, milliseconds from when a push was due."""

    rule: str
    load: float
    offered: float
    delivered: float
    """While it was offered."""
    refused: int
    dropped: int
    uncounted: int
    disorder: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu: float
    merged: float

    @property
    def kept(self) -> bool:
        """Whether what is promised was kept: nothing lost, all in order, the p99 under a second."""
        whole = not (self.refused or self.dropped or self.uncounted or self.disorder)
        return whole and self.p99_ms <= PROMISED_MS

    def row(self) -> tuple[str, ...]:
        """Its line of the table."""
        return (
            self.rule,
            f"{self.load:g}",
            number(self.offered / 1e3),
            number(self.delivered / 1e3),
            f"{self.refused:,}",
            f"{self.dropped:,}",
            f"{self.uncounted:,}",
            f"{self.disorder:,}",
            number(self.p50_ms),
            number(self.p99_ms),
            number(self.max_ms),
            f"{self.cpu:.2f}",
            number(self.merged),
        )


HEAD = (
    "rule", "load", "offered k/s", "delivered k/s", "refused", "dropped", "uncounted", "disorder",
    "p50 ms", "p99 ms", "max ms", "cores", "merged",
)  # fmt: skip


@dataclass
class Overload:
    """What was asked for; ``capacity`` is how many deliveries a second single sends carry."""

    bench: Bench
    proto: str
    conns: int
    seconds: float
    capacity: float = 0.0
    points: list[Point] = field(default_factory=list)

    def run(self, *options: str, rate: float = 0.0) -> Run:
        """One server, one room, one kind of push."""
        flood = ["--flood", str(self.conns), "--seconds", str(self.seconds)]
        with self.bench.goim_core(*flood, *options, *(["--rate", str(rate)] if rate else [])) as ready:
            run = self.bench.load(self.proto, ready, self.conns, collect=self.seconds, numbered=1)
        run["end"] = ready["end"]
        return run

    def measure_capacity(self) -> None:
        """Deliveries a second with each push sent alone, as fast as it goes."""
        found = []
        for _ in range(self.bench.repeats):
            say(f"{self.proto}, {self.conns:,} connections, single sends at full speed")
            collected = self.run("--batch", "1")["collect"]
            found.append(collected["in_time"] / self.seconds)
        self.capacity = median(found)

    def measure(self, rule: str, load: float) -> None:
        """``load`` times the capacity, offered whatever becomes of it."""
        rate = load * self.capacity / self.conns
        say(f"{rule}'s rule, {load:g} times single sends: {rate:,.0f} pushes a second")
        run = self.run("--rule", rule, rate=rate)
        collected, latency, end = run["collect"], run["latency"], run["end"]
        dropped = sum(end["drops"].values())
        self.points.append(
            Point(
                rule=rule,
                load=load,
                offered=rate * self.conns,
                delivered=collected["in_time"] / self.seconds,
                refused=end["refused"] * self.conns,
                dropped=dropped,
                uncounted=end["accepted"] * self.conns - collected["deliveries"] - dropped,
                disorder=collected["disorder"],
                p50_ms=latency["p50_ms"],
                p99_ms=latency["p99_ms"],
                max_ms=latency["max_ms"],
                cpu=end["cpu_s"] / end["took"],
                merged=end["merged"],
            )
        )

    def broken(self) -> list[str]:
        """What was promised and not kept; that nothing is lost without being counted holds for any load."""
        ours = [point for point in self.points if point.rule == "goim_core"]
        wrong = [p for p in ours if p.uncounted or p.disorder or (p.load <= PROMISED and not p.kept)]
        return [f"{p.load:g} times single sends: {asdict(p)}" for p in wrong]


def table(points: list[Point]) -> str:
    """The result for people."""
    lines = [HEAD, *(point.row() for point in points)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def picture(overload: Overload, about: str) -> str:
    """Offered against delivered, and against the latency, for both rules."""
    names = {"goim_core": "goim_core: what waits", "goim": "goim's rule: 20 or 1 s, buffer of 40"}
    unit = overload.capacity

    def drawn(what: str, divisor: float) -> list[Curve]:
        return [
            Curve(
                names[rule],
                [(p.load, getattr(p, what) / divisor) for p in overload.points if p.rule == rule],
            )
            for rule in RULES
        ]

    x = f"offered, times what single sends carry ({unit / 1e3:,.0f} k deliveries a second)"
    delivered = Panel("Delivered, times what single sends carry", x, "", drawn("delivered", unit))
    late = Panel("Latency p99, ms", x, "", drawn("p99_ms", 1.0), (PROMISED_MS, "1 s"))
    return curves("More offered than the core can send", about, [delivered, late])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Offer more than the core can send, by two rules of merging."
    )
    parser.add_argument("--quick", action="store_true", help="shorter")
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument("--proto", choices=PROTOS, default="tcp")
    parser.add_argument("--conns", type=int, default=FEW, help="how many are in the room")
    parser.add_argument("--loads", default=",".join(f"{load:g}" for load in LOADS), help="comma separated")
    parser.add_argument("--json", type=Path, default=HERE / "out" / "overload.json")
    parser.add_argument("--svg", type=Path, default=HERE / "out" / "overload.svg")
    return parser.parse_args()


def main() -> int:
    """Measure, print the table, write the files; 1 where a promise was not kept."""
    options = parse()
    gcc = compile_all()
    raise_descriptor_limit()
    bench = Bench(sys.executable, options.backend, HERE / "server.py", options.quick, options.conns)
    machine: dict[str, Any] = describe(bench, gcc)
    overload = Overload(bench, options.proto, options.conns, bench.seconds(3))
    load = Load()
    overload.measure_capacity()
    for factor in options.loads.split(","):
        for rule in RULES:
            overload.measure(rule, float(factor))
    machine |= load.since()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), end="\n\n")
    print(f"{options.proto}, {options.conns:,} connections in one room, bodies of 35 bytes")
    print(f"single sends: {overload.capacity:,.0f} deliveries a second\n")
    print(table(overload.points))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    points = [asdict(point) for point in overload.points]
    result = {"machine": machine, "capacity": overload.capacity, "points": points, "runs": bench.runs}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    where = f"{options.proto}, a room of {options.conns:,}, one core; {machine['python']}, {options.backend}"
    options.svg.write_text(picture(overload, where))
    broken = overload.broken()
    print(*broken, sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"benchmarks/overload.py: {error}")
