"""What every benchmark here is made of: processes, a load client, rows of a table, the machine.

README.md beside this file says what each figure means. Linux only: the load client needs epoll and /proc.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    goim: tuple[float, ...] = ()
    """goim's own figure: see goim.py."""

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

    def fan_out(self, kind: Kind, proto: str, conns: int, rate: float, batch: int = 1) -> Run:
        """Pushes to one room of ``conns``, or the same sends in C; ``rate`` a second, or at full speed.

        ``batch`` pushes are merged into a packet, of the library only.
        """
        seconds = self.seconds(1.5)
        say(f"{kind}, {proto}, {conns:,} connections, {f'{rate:g} pushes a second' if rate else 'saturated'}")
        options: dict[str, float] = {"collect": seconds, "rate": rate, "nap": NAP_US * conns}
        if kind == "C loop":
            loop = {"proto": proto, "conns": conns, "seconds": seconds, "rate": rate}
            with started([str(BIN / "sendloop"), *flags(loop)]) as (process, ready):
                run = self.load(proto, ready, conns, **options)
                out, _ = process.communicate(timeout=STOP_SECONDS)
            run["loop"] = json.loads(out)
            run["collect"]["lost"] = run["loop"]["sent"] - run["collect"]["deliveries"]
        else:
            merged = ["--batch", str(batch)]
            if rate:
                with self.goim_core(*merged) as ready:
                    run = self.load(proto, ready, conns, push=ready["http"], pushers=1, **options)
            else:
                # Pushed from within, as the loop does it: what the push API costs is another figure.
                with self.goim_core(*merged, "--flood", str(conns), "--seconds", str(seconds)) as ready:
                    run = self.load(proto, ready, conns, numbered=1, **options)
                run["collect"]["lost"] = ready["end"]["deliveries"] - run["collect"]["deliveries"]
        run |= {"kind": kind, "rate": rate, "batch": batch}
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


def beat_cost(run: Run) -> float:
    """Server CPU microseconds of one heartbeat."""
    return float(run["beat"]["cpu_s"] * 1e6 / max(run["beat"]["replies"], 1))


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Run by run: what was measured one after the other is compared."""
    return [a / b for a, b in zip(above, below, strict=True)]


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


def number(value: float) -> str:
    """Three or four digits that mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"
