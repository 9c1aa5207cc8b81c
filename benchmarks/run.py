"""What `make bench` runs: the server, the load client and the C baseline, each a process of its own.

README.md beside this file says what each figure means. Linux only: the load client needs epoll and /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
BIN = HERE / "bin"
PROTOS = ("tcp", "ws")
FEW, MANY = 1000, 9000
SATURATED = 0.0
WARM_UP = 500
NAP_US = 20
"""How long the load client lets messages wait while fan-out is measured, for each connection."""
SPARE_DESCRIPTORS = 200
STOP_SECONDS = 20
RUN_SECONDS = 120

Run = dict[str, Any]
Kind = Literal["goim_core", "C loop"]


class BenchError(Exception):
    """The benchmark cannot go on; the message says what is missing or what a process reported."""


@dataclass(frozen=True)
class Row:
    """One line of the table. ``target`` is the most that is allowed, or with ``at_least`` the least."""

    figure: str
    unit: str
    values: list[float]
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        """The figure to quote."""
        return median(self.values)

    @property
    def verdict(self) -> str:
        """``ok`` or ``MISS``; empty without a target."""
        if self.target is None:
            return ""
        met = self.median >= self.target if self.at_least else self.median <= self.target
        return "ok" if met else "MISS"


@dataclass
class Bench:
    """What was asked for, and every run so far."""

    python: str
    backend: str
    server: Path
    quick: bool
    many: int
    runs: list[Run] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of connections that are compared."""
        return (FEW, self.many)

    @property
    def repeats(self) -> int:
        """How often a figure is measured; the median counts."""
        return 1 if self.quick else 3

    def seconds(self, full: float) -> float:
        """How long a phase lasts."""
        return 1.0 if self.quick else full

    @contextmanager
    def goim_core(self, *options: str) -> Iterator[Run]:
        """A fresh server under test: its ready line."""
        command = [self.python, str(self.server), "--backend", self.backend, *options]
        with started(command) as (process, ready):
            yield ready
            process.terminate()
            out, _ = process.communicate(timeout=STOP_SECONDS)
            ready["end"] = json.loads(out)

    def load(self, proto: str, ready: Run, conns: int, **options: float) -> Run:
        """One run of the load client against a server that has printed ``ready``."""
        port = ready.get(proto, ready.get("port"))
        arguments = {"proto": proto, "port": port, "conns": conns, "pid": ready["pid"], **options}
        command = [str(BIN / "goimload"), *flags(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
        if not done.stdout.endswith("}\n"):
            raise BenchError(f"goimload: {done.stderr.strip() or done.stdout}")
        run: Run = json.loads(done.stdout)
        if done.returncode:
            raise BenchError(f"goimload: connections were lost or pushes failed: {done.stderr}{done.stdout}")
        run["options"] = options
        self.runs.append(run)
        return run

    def fan_out(self, kind: Kind, proto: str, conns: int, rate: float) -> Run:
        """Pushes to one room of ``conns``, or the same sends in C; ``rate`` a second, or at full speed."""
        seconds = self.seconds(1.5)
        say(f"{kind}, {proto}, {conns:,} connections, {f'{rate:g} pushes a second' if rate else 'saturated'}")
        options = {"collect": seconds, "rate": rate, "nap": NAP_US * conns}
        if kind == "C loop":
            loop = {"proto": proto, "conns": conns, "seconds": seconds, "rate": rate}
            with started([str(BIN / "sendloop"), *flags(loop)]) as (process, ready):
                run = self.load(proto, ready, conns, **options)
                out, _ = process.communicate(timeout=STOP_SECONDS)
            run["loop"] = json.loads(out)
            run["collect"]["lost"] = run["loop"]["sent"] - run["collect"]["deliveries"]
        else:
            single = ["--batch", "1"]
            if rate:
                with self.goim_core(*single) as ready:
                    run = self.load(proto, ready, conns, push=ready["http"], pushers=1, **options)
            else:
                # Pushed from within, as the loop does it: what the push API costs is another figure.
                with self.goim_core(*single, "--flood", str(conns), "--seconds", str(seconds)) as ready:
                    run = self.load(proto, ready, conns, **options)
                run["collect"]["lost"] = ready["end"]["deliveries"] - run["collect"]["deliveries"]
        run |= {"kind": kind, "rate": rate}
        return run

    def alternate(self, proto: str, conns: int, rate: float, repeats: int) -> tuple[list[float], list[float]]:
        """CPU microseconds of one delivery, of goim_core and of the C loop, taken in turn."""
        pairs = [
            (
                delivery_cost(self.fan_out("goim_core", proto, conns, rate)),
                delivery_cost(self.fan_out("C loop", proto, conns, rate)),
            )
            for _ in range(repeats)
        ]
        return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]

    @cached_property
    def saturated(self) -> dict[tuple[str, int], tuple[list[float], list[float]]]:
        """The saturated runs, which two sections need: by protocol and number of connections."""
        return {
            (proto, n): self.alternate(proto, n, SATURATED, self.repeats)
            for proto in PROTOS
            for n in self.sizes
        }


def flags(arguments: Run) -> list[str]:
    """A command line's options."""
    return [word for name, value in arguments.items() for word in ("--" + name.replace("_", "-"), str(value))]


def say(what: str) -> None:
    """Progress, beside the result on standard output."""
    print(f"  {what}", file=sys.stderr, flush=True)


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], Run]]:
    """A process and the JSON line it prints once it listens; it is gone afterwards."""
    # This checkout is what is measured, unless the environment names another.
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(HERE.parent))))
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("{"):
                raise BenchError(f"did not start: {' '.join(command)}")
            yield process, json.loads(line)
            try:
                process.communicate(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise BenchError(f"did not stop within {STOP_SECONDS} s: {' '.join(command)}") from None
        finally:
            process.kill()


def delivery_cost(run: Run) -> float:
    """Server CPU microseconds of one delivery."""
    collected = run["collect"]
    return float(collected["cpu_s"] * 1e6 / max(collected["deliveries"], 1))


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Run by run: what was measured one after the other is compared."""
    return [a / b for a, b in zip(above, below, strict=True)]


# ---- the figures ----


def fan_out(bench: Bench) -> Iterator[Row]:
    """Deliveries for each CPU second of the server, against a bare send() loop."""
    for (proto, conns), (ours, loop) in bench.saturated.items():
        name = f"fan-out {proto} {conns:,}"
        runs = [r for r in bench.runs if (r["proto"], r["conns"], r.get("rate")) == (proto, conns, SATURATED)]
        lost = sum(abs(run["collect"]["lost"]) for run in runs)
        count = sum(run["collect"]["deliveries"] for run in runs)
        blocked = sum(run["loop"]["blocked"] for run in runs if "loop" in run)
        note = f"lost {lost:,} of {count:,}; the loop left out {blocked:,} that would have blocked"
        yield Row(f"{name}: goim_core", "1/CPU s", [1e6 / cost for cost in ours])
        yield Row(f"{name}: C send() loop", "1/CPU s", [1e6 / cost for cost in loop])
        yield Row(f"{name}: goim_core / C loop", "x", ratios(loop, ours), 0.8, at_least=True, note=note)


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
    for proto, kb, accept_us, beat_us in (("tcp", 1.5, 100, 15), ("ws", 2, 250, 25)):
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
        yield Row(f"memory of an idle connection {proto}", "KB", grown, kb)
        accepts = [run["connect"]["cpu_s"] * 1e6 / bench.many for run in runs]
        yield Row(f"accept and authenticate {proto}", "us CPU", accepts, accept_us)
        yield Row(f"heartbeat {proto}, 512 in flight", "us CPU", [beat_cost(run) for run in runs], beat_us)
        yield Row(f"heartbeat {proto}, one at a time", "us CPU", [beat_cost(run) for run in alone])


def beat_cost(run: Run) -> float:
    """Server CPU microseconds of one heartbeat."""
    return float(run["beat"]["cpu_s"] * 1e6 / max(run["beat"]["replies"], 1))


def latency(bench: Bench) -> Iterator[Row]:
    """From the post to the client, 1,000 connections in one room."""
    for proto in PROTOS:
        for rate in (20, 100):
            runs = []
            for _ in range(bench.repeats):
                say(f"goim_core, {proto}, {FEW:,} connections, {rate} pushes a second")
                with bench.goim_core() as ready:
                    collect = bench.seconds(3)
                    runs.append(bench.load(proto, ready, FEW, collect=collect, push=ready["http"], rate=rate))
            name = f"push to client {proto}, {FEW:,} in the room, {rate}/s"
            yield latency_row(name, runs, "latency", "p99", 25)
            yield lost_row(name, runs)


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


def latency_row(name: str, runs: list[Run], what: str, which: str, target: float | None = None) -> Row:
    """One percentile; the others go into the note."""
    values = {key: [float(run[what][f"{key}_ms"]) for run in runs] for key in ("p50", "p99", "max")}
    rest = ", ".join(f"{key} {number(median(values[key]))}" for key in values if key != which)
    count = sum(run[what]["count"] for run in runs)
    return Row(f"{name}: {which}", "ms", values[which], target, note=f"{rest}, of {count:,}")


def lost_row(name: str, runs: list[Run]) -> Row:
    """Pushes times connections less deliveries: what came too often counts as well."""
    count = sum(run["collect"]["deliveries"] for run in runs)
    return Row(
        f"{name}: lost", "", [sum(abs(run["collect"]["lost"]) for run in runs)], 0, note=f"of {count:,}"
    )


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "connections": connections,
    "fanout": fan_out,
    "growth": growth,
    "latency": latency,
    "heartbeat": heartbeat,
}


# ---- around them ----


def compile_all() -> str:
    """Build the C programs where they are older than their source; returns the compiler's version."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise BenchError("gcc is missing; the load client and the baseline are C (Debian: gcc, libc6-dev)")
    BIN.mkdir(exist_ok=True)
    for name in ("goimload", "sendloop"):
        source, target = HERE / f"{name}.c", BIN / name
        if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
            continue
        command = [gcc, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(target), str(source)]
        if subprocess.run(command, check=False).returncode:
            raise BenchError(f"gcc could not build {source.name}")
    version = subprocess.run([gcc, "--version"], capture_output=True, text=True, check=True)
    return version.stdout.splitlines()[0]


def raise_descriptor_limit() -> int:
    """Take all descriptors the system allows; returns how many connections that is good for, at most MANY."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed = MANY if hard == resource.RLIM_INFINITY else min(MANY, hard - SPARE_DESCRIPTORS)
    if allowed < FEW:
        raise BenchError(f"RLIMIT_NOFILE: {hard} descriptors are allowed, {FEW + SPARE_DESCRIPTORS} needed")
    return allowed


VERSIONS = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_implementation() + " " + platform.python_version()}
for name in ("goim_core", "anyio", "uvloop", "trio", "wsproto", "h11"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def describe(bench: Bench, gcc: str) -> Run:
    """The machine and the programs, to go with every figure."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = subprocess.run([bench.python, "-c", VERSIONS], capture_output=True, text=True, check=True)
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "backend": bench.backend,
        "gcc": gcc,
        **json.loads(versions.stdout),
    }


class Load:
    """What else the machine did: figures from a busy one are worth less."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.busy, self.stolen = self._machine()

    def since(self) -> Run:
        """Wall time since the start, and the mean number of cores that others used and the host took."""
        seconds = time.monotonic() - self.began
        busy, stolen = self._machine()
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        ours = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        return {
            "seconds": round(seconds),
            "cores_used_by_others": round(max(0.0, busy - self.busy - ours) / seconds, 2),
            "cores_stolen_by_the_host": round((stolen - self.stolen) / seconds, 2),
        }

    @staticmethod
    def _machine() -> tuple[float, float]:
        # proc(5): user nice system idle iowait irq softirq steal, in ticks
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in Path("/proc/stat").read_text().split()[1:9]]
        return sum(ticks[:3]) + sum(ticks[5:7]), ticks[7]


def table(rows: list[Row]) -> str:
    """The result for people."""
    lines = [("figure", "median", "min - max", "target", "", "")]
    for row in rows:
        bound = "" if row.target is None else f"{'>=' if row.at_least else '<='} {row.target:g}"
        span = f"{number(min(row.values))} - {number(max(row.values))}" if len(row.values) > 1 else ""
        lines.append((row.figure, f"{number(row.median)} {row.unit}", span, bound, row.verdict, row.note))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def number(value: float) -> str:
    """Three or four digits that mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure goim_core against its targets.")
    parser.add_argument("--quick", action="store_true", help="each figure once, and shorter")
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma separated, of %(default)s")
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the server")
    parser.add_argument("--server", type=Path, default=HERE / "server.py", help="the program under test")
    parser.add_argument("--json", type=Path, help="where the result goes (default: out/BACKEND.json)")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    return options


def main() -> int:
    """Measure, print the table, write the JSON file; 1 where something could not be measured."""
    options = parse()
    gcc = compile_all()
    bench = Bench(options.python, options.backend, options.server, options.quick, raise_descriptor_limit())
    machine = describe(bench, gcc)
    rows: list[Row] = []
    failures = []
    load = Load()
    for name in options.only:
        try:
            rows.extend(SECTIONS[name](bench))
        except (BenchError, subprocess.SubprocessError) as error:
            failures.append(f"{name}: not measured: {error}")
    machine |= load.since()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), end="\n\n")
    print(table(rows), *failures, sep="\n")
    verdicts = [row.verdict for row in rows]
    print(f"\n{verdicts.count('ok')} ok, {verdicts.count('MISS')} missed, {len(failures)} not measured")
    path = options.json or HERE / "out" / f"{bench.backend}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [asdict(row) | {"median": row.median, "verdict": row.verdict} for row in rows]
    result = {"machine": machine, "rows": found, "failures": failures, "runs": bench.runs}
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"benchmarks/run.py: {error}")
