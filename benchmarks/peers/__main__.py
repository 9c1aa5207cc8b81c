"""What `make bench-peers` runs: the same room with goim_core and with other WebSocket libraries, in turn.

docs/peers.md says what each figure means and what each server does. Linux only, as run.py; the libraries
are the extra `peers`, and one that is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from benchmarks.harness import (
    FEW,
    HERE,
    NAP_US,
    STOP_SECONDS,
    WARM_UP,
    Bench,
    BenchError,
    Load,
    Run,
    compile_all,
    describe,
    flags,
    number,
    raise_descriptor_limit,
    say,
    started,
)

SMALL = 100
BURST = 20
"""How many pushes come at a time where merging may show."""


@dataclass(frozen=True)
class Contender:
    """A server: its module beside this file, what the load client speaks to it, and the package it needs."""

    name: str
    module: str
    package: str
    proto: str = "ws"
    single: tuple[str, ...] = ()
    """Options that make it send each push alone, where it would not."""
    patience: int = 1
    """How many times as long it is waited for what it pushes."""

    @property
    def here(self) -> bool:
        """Whether its library is installed."""
        return find_spec(self.module.removesuffix("_server")) is not None


OURS = Contender("goim_core", "goim_core_server", "goim_core", single=("--batch", "1"))
CONTENDERS = (
    OURS,
    Contender("picows", "picows_server", "picows"),
    Contender("websockets", "websockets_server", "websockets"),
    Contender("aiohttp", "aiohttp_server", "aiohttp"),
    Contender("python-socketio", "socketio_server", "python-socketio", proto="sio", patience=3),
)


@dataclass(frozen=True)
class Figure:
    """A column of the table. ``more`` says whether more is better."""

    name: str
    unit: str
    more: bool = False


MEMORY = Figure("idle connection", "KB")
CONNECT = Figure("connect and authenticate", "us CPU")


def fan_out(conns: int, burst: int = 1) -> Figure:
    """The column of a room of that size, with so many pushes at a time."""
    name = f"room of {conns:,}" + (f", {burst} at a time" if burst > 1 else "")
    return Figure(name, "deliveries / CPU s", more=True)


@dataclass
class Contest:
    """The runs so far: for each contender and figure one value a round."""

    bench: Bench
    values: dict[str, dict[Figure, list[float]]] = field(default_factory=dict)
    user: dict[str, dict[Figure, list[float]]] = field(default_factory=dict)
    """Of the CPU microseconds of a delivery, those outside the kernel."""

    def add(self, who: Contender, figure: Figure, value: float) -> None:
        """Take in the value of a round."""
        self.values.setdefault(who.name, {}).setdefault(figure, []).append(value)

    def ratio(self, who: str, figure: Figure) -> float:
        """How many times better goim_core is, round by round; above 1 it is ahead."""
        pairs = zip(self.values[OURS.name][figure], self.values[who][figure], strict=True)
        return median(ours / theirs if figure.more else theirs / ours for ours, theirs in pairs)

    @contextmanager
    def server(self, who: Contender, *options: str) -> Iterator[Run]:
        """A fresh server: its ready line, to which its last line is added as ``end``."""
        module = f"benchmarks.peers.{who.module}"
        command = [self.bench.python, "-m", module, "--backend", self.bench.backend, *options]
        with started(command) as (process, ready):
            yield ready
            process.terminate()
            out, _ = process.communicate(timeout=STOP_SECONDS)
            ready["end"] = json.loads(out)

    def connections(self, who: Contender) -> None:
        """Memory of an idle connection, and CPU to let it in."""
        many = self.bench.many
        say(f"{who.name}: {many:,} connections")
        with self.server(who) as ready:
            self.bench.load(who.proto, ready, WARM_UP)
            time.sleep(0.5)  # until the server has let go of them
            run = self.bench.load(who.proto, ready, many)
        run["who"] = who.name
        found = run["connect"]
        # What the warm-up left behind is used again: those connections are taken to have been free.
        self.add(who, MEMORY, (found["rss_kb"] - found["rss_kb_before"]) / (many - WARM_UP))
        self.add(who, CONNECT, found["cpu_s"] * 1e6 / many)

    def fan_out(self, who: Contender, conns: int, burst: int = 1) -> None:
        """Pushes to one room as fast as the server goes."""
        figure = fan_out(conns, burst)
        say(f"{who.name}: {figure.name}")
        seconds = self.bench.seconds(1.5)
        options = {"flood": conns, "seconds": seconds, "burst": burst}
        with self.server(who, *flags(options), *(who.single if burst == 1 else ())) as ready:
            collect = seconds * who.patience
            run = self.bench.load(who.proto, ready, conns, collect=collect, nap=NAP_US * conns)
        run |= {"who": who.name, "end": ready["end"]}
        count = run["collect"]["deliveries"]
        if count != ready["end"]["deliveries"] or not count:
            raise BenchError(f"{who.name}: pushed {ready['end']['deliveries']} times, {count} arrived")
        self.add(who, figure, count / run["collect"]["cpu_s"])
        user = self.user.setdefault(who.name, {}).setdefault(figure, [])
        user.append(ready["end"]["user_s"] * 1e6 / count)


def table(contest: Contest, figures: list[Figure]) -> str:
    """The medians, and in brackets how many times better goim_core is."""
    lines = [["", *(f"{figure.name}, {figure.unit}" for figure in figures)], ["---"] * (len(figures) + 1)]
    for who, values in contest.values.items():
        cells = []
        for figure in figures:
            ratio = "" if who == OURS.name else f" ({contest.ratio(who, figure):.2f})"
            user = contest.user.get(who, {}).get(figure)
            split = f", {median(user):.2f} us user" if user else ""
            cells.append(number(median(values[figure])) + ratio + split)
        lines.append([who, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(figures) + 1)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def result(contest: Contest, figures: list[Figure]) -> list[Run]:
    """The table for a program."""
    return [
        {
            "who": who,
            "figure": figure.name,
            "unit": figure.unit,
            "values": values[figure],
            "median": median(values[figure]),
            "times_better": contest.ratio(who, figure),
            "user_us": contest.user.get(who, {}).get(figure),
        }
        for who, values in contest.values.items()
        for figure in figures
    ]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description="Compare with other libraries.")
    parser.add_argument("--quick", action="store_true", help="one round, shorter, without the largest room")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--backend", choices=("asyncio", "uvloop"), default="uvloop", help="of all of them")
    parser.add_argument("--rooms", help="comma separated sizes (default: 100, 1,000 and up to 9,000)")
    parser.add_argument("--only", default="", help="comma separated names; goim_core is always measured")
    parser.add_argument("--json", type=Path, help="where the result goes (default: out/peers-BACKEND.json)")
    return parser.parse_args()


def contenders(only: str) -> list[Contender]:
    """Those that were asked for and can run."""
    names = only.split(",") if only else [who.name for who in CONTENDERS]
    if unknown := set(names) - {who.name for who in CONTENDERS}:
        raise BenchError(f"--only: {', '.join(sorted(unknown))}: not among the contenders")
    chosen = [who for who in CONTENDERS if who is OURS or who.name in names]
    for who in chosen:
        if not who.here:
            say(f"{who.name} is not installed: left out (pip install '.[peers]')")
    return [who for who in chosen if who.here]


def main() -> int:
    """Measure, print the table, write the JSON file."""
    options = parse()
    gcc = compile_all()
    bench = Bench(sys.executable, options.backend, HERE, options.quick, raise_descriptor_limit())
    chosen = contenders(options.only)
    sizes = [SMALL, FEW] if options.quick else [SMALL, FEW, bench.many]
    if options.rooms:
        sizes = [int(size) for size in options.rooms.split(",")]
    contest, load = Contest(bench), Load()
    for _ in range(1 if options.quick else options.rounds):
        for who in chosen:
            contest.connections(who)
        for size in sizes:
            for who in chosen:
                contest.fan_out(who, size)
        for who in chosen:
            contest.fan_out(who, FEW, BURST)
    figures = [*map(fan_out, sizes), fan_out(FEW, BURST), MEMORY, CONNECT]
    machine = describe(bench, gcc) | {who.package: version(who.package) for who in chosen} | load.since()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), end="\n\n")
    print(table(contest, figures))
    path = options.json or HERE / "out" / f"peers-{bench.backend}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "figures": result(contest, figures), "runs": bench.runs}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"benchmarks.peers: {error}")
