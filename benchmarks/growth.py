"""How the cost of everything grows with the number of connections: ``python -m benchmarks.growth``.

On sockets with 100, 1,000 and 9,000, beside the bare loop in C; without sockets up to a million
(structures.py). Prints tables and writes out/growth.json and out/growth.svg. Linux; needs gcc.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import log10
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import (
    HERE,
    SATURATED,
    WARM_UP,
    Bench,
    BenchError,
    Load,
    Run,
    beat_cost,
    compile_all,
    describe,
    raise_descriptor_limit,
    say,
)
from goim_core.protocol import HEADER_SIZE, Op, encode

SIZES = (100, 1_000)
"""How many connections there are on sockets, before as many as the system allows, up to 9,000."""
RATE = 45_000
"""Deliveries a second, where their number is fixed."""
SMALL = 10
STRUCTURES_SECONDS = 900

Table = dict[str, list[float]]
"""By figure, a value for each number of connections."""


# On sockets.


@contextmanager
def crowd(port: int, number: int) -> Iterator[None]:
    """So many connections in another room, which send nothing."""
    with ExitStack() as opened:
        for mid in range(number):
            sock = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            token = json.dumps({"mid": mid + 1, "room_id": "crowd://1", "platform": "", "accepts": []})
            sock.sendall(encode(Op.AUTH, token.encode()))
            if len(sock.recv(HEADER_SIZE)) < HEADER_SIZE:
                raise BenchError("the crowd was not let in")
        yield


def on_sockets(bench: Bench, proto: str) -> tuple[list[int], Table]:
    """Deliveries, connects, heartbeats, and pushes to a small room."""
    sizes = [*SIZES, bench.many]
    table: Table = {}
    for size in sizes:
        for name, rate in (("saturated", SATURATED), (f"{RATE:,} a second", RATE / size)):
            ours, loop = bench.alternate(proto, size, rate, bench.repeats)
            add(table, f"delivery, {name}: us CPU", ours)
            add(table, f"delivery, {name}, C loop: us CPU", loop)
        connects, beats, pushes, late = [], [], [], []
        for _ in range(bench.repeats):
            say(
                f"goim_core, {proto}, {size:,} connections: connects, heartbeats, pushes to a room of {SMALL}"
            )
            with bench.goim_core() as ready:
                bench.load(proto, ready, WARM_UP, beat=0.3)
                run = bench.load(proto, ready, size, beat=bench.seconds(2))
                connects.append(run["connect"]["cpu_s"] * 1e6 / size)
                beats.append(beat_cost(run))
            with bench.goim_core() as ready, crowd(ready["tcp"], size):
                options = {"collect": bench.seconds(3), "push": ready["http"], "rate": 100}
                run = bench.load(proto, ready, SMALL, **options)
                pushes.append(run["collect"]["cpu_s"] * 1e6 / run["collect"]["pushed"])
                late.append(run["latency"]["p50_ms"])
        add(table, "connect: us CPU", connects)
        add(table, "heartbeat: us CPU", beats)
        add(table, f"push to a room of {SMALL}, with the push API: us CPU", pushes)
        add(table, f"push to a room of {SMALL}: ms to the client, p50", late)
    return sizes, table


def add(table: Table, name: str, values: list[float]) -> None:
    """The median is what counts."""
    table.setdefault(name, []).append(median(values))


# Without sockets.


def structures(collector: str, connections: int) -> list[Run]:
    """What structures.py finds, level by level."""
    say(f"structures, up to {connections:,} connections, collector: {collector}")
    command = [sys.executable, "-m", "benchmarks.structures", "--collector", collector]
    command += ["--connections", str(connections)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=STRUCTURES_SECONDS)
    found: list[Run] = json.loads(done.stdout)
    return found


STRUCTURES = {
    "memory of a connection: bytes": ("memory", "bytes_each"),
    "connect: us": ("connect", "each_us"),
    "connect: longest, ms CPU": ("connect", "longest_cpu_ms"),
    "disconnect: us": ("disconnect", "each_us"),
    "heartbeat: us": ("heartbeat", "each_us"),
    "push to one: us": ("push to one", "each_us"),
    "push to a room of 10: us": ("push to a room of 10", "each_us"),
    "push to the room of all: ms": ("push to the room of all", "total_ms"),
    "push to the room of all: longest step, ms": ("push to the room of all", "longest_ms"),
    "push to the room of all: longest step, ms CPU": ("push to the room of all", "longest_cpu_ms"),
    "broadcast: ms": ("push to all", "total_ms"),
    "broadcast: longest step, ms": ("push to all", "longest_ms"),
    "broadcast: longest step, ms CPU": ("push to all", "longest_cpu_ms"),
    "collector while they connect: pauses, ms": ("collector", "total_ms"),
    "collector while they connect: longest pause, ms CPU": ("collector", "longest_cpu_ms"),
}
AT_THE_END = {
    "all time out: longest step, ms CPU": ("all time out", "longest_cpu_ms"),
    "as many rooms: longest to add one, ms CPU": ("a room more", "longest_cpu_ms"),
    "as many rooms: their census, longest step, ms CPU": ("census", "longest_cpu_ms"),
    "as many rooms: the 10 largest, longest step, ms CPU": ("the 10 largest rooms", "longest_cpu_ms"),
}


def columns(levels: list[Run]) -> tuple[list[int], Table]:
    """The figures of structures.py as a table."""
    table = {name: [level[part][what] for level in levels] for name, (part, what) in STRUCTURES.items()}
    table |= {name: [levels[-1][part][what]] for name, (part, what) in AT_THE_END.items()}
    return [level["connections"] for level in levels], table


# What comes out.


def markdown(title: str, sizes: list[int], table: Table) -> str:
    """For people. A figure of the last size only stands in its column."""
    lines = [f"| {title} | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
    lines.append("|---|" + "---|" * len(sizes))
    for name, values in table.items():
        cells = [""] * (len(sizes) - len(values)) + [number(value) for value in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Two or three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


PICTURED = {
    "push to a room of 10: us": "#2a6fdb",
    "heartbeat: us": "#1f9d63",
    "connect: us": "#b0531c",
    "push to the room of all: longest step, ms CPU": "#8b3fc1",
}


def picture(sizes: list[int], table: Table) -> str:
    """Costs over the number of connections, both logarithmic: what is flat does not grow."""
    left, top, step, decade = 40, 20, 130, 55
    right, bottom = left + step * (len(sizes) - 1), top + 4 * decade
    parts = []
    for power in range(-2, 3):
        y = bottom - (power + 2) * decade
        parts.append(
            f'<path d="M{left} {y}H{right}" stroke="#8886"/><text x="4" y="{y + 4}">{10.0**power:g}</text>'
        )
    for n, size in enumerate(sizes):
        parts.append(f'<text x="{left + n * step}" y="{bottom + 18}" text-anchor="middle">{size:,}</text>')
    for line, (name, colour) in enumerate(PICTURED.items()):
        points = [
            f"{left + n * step},{bottom - (log10(max(value, 0.01)) + 2) * decade:.1f}"
            for n, value in enumerate(table[name])
        ]
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="{right + 12}" y="{top + 20 + 18 * line}" fill="{colour}">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 330} {bottom + 28}" '
        f'font-family="sans-serif" font-size="12" fill="#777">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure how costs grow with the number of connections.")
    parser.add_argument("--quick", action="store_true", help="each figure once, and shorter")
    parser.add_argument("--only", choices=("sockets", "structures"), help="one part (default: both)")
    parser.add_argument("--proto", choices=("tcp", "ws"), default="tcp")
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument(
        "--connections", type=int, default=1_000_000, help="without sockets (default: a million)"
    )
    parser.add_argument(
        "--json", type=Path, default=HERE / "out" / "growth.json", help="where the result goes"
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables, write the files."""
    options = parse()
    bench = Bench(
        sys.executable, options.backend, HERE / "server.py", options.quick, raise_descriptor_limit()
    )
    load = Load()
    result: dict[str, Any] = {"machine": describe(bench, compile_all())}
    if options.only != "structures":
        sizes, table = on_sockets(bench, options.proto)
        result["sockets"] = {"connections": sizes, "figures": table}
        print(markdown(f"on sockets, {options.proto}", sizes, table), end="\n\n")
    if options.only != "sockets":
        for collector in ("spared", "default"):
            levels = structures(collector, options.connections)
            sizes, table = columns(levels)
            result[f"structures, collector {collector}"] = {
                "connections": sizes,
                "figures": table,
                "all": levels,
            }
            print(markdown(f"without sockets, collector: {collector}", sizes, table), end="\n\n")
            if collector == "spared":
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.with_suffix(".svg").write_text(picture(sizes, table))
    result["machine"] |= load.since()
    print("\n".join(f"{name}: {value}" for name, value in result["machine"].items()))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"benchmarks/growth.py: {error}")
