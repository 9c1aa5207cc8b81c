"""What `python -m benchmarks.where` runs: each path under perf, in microseconds by system call and library.

It needs perf and the right to use it (Linux; `kernel.perf_event_paranoid` at most 1, or root). The sampling
itself costs a few percent, and a figure is as good as the machine is quiet.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    FEW,
    HERE,
    NAP_US,
    PROTOS,
    RUN_SECONDS,
    Bench,
    BenchError,
    compile_all,
    flags,
    raise_descriptor_limit,
    say,
)

SECONDS = 2.0
PERF_SECONDS = 0.3
"""Until perf has begun."""
_SHARE = re.compile(r"\s*([\d.]+)%\s+(?:[\d.]+%\s+)?(?:\[[.k]\]\s+)?(\S+)")


@dataclass(frozen=True)
class Work:
    """One thing that the server does: what it is told, what the load client does, and how often that is."""

    name: str
    proto: str
    server: dict[str, float]
    load: dict[str, Any]
    phase: str
    count: str
    seconds: float
    """Of samples: what comes after is something else."""


def paths(many: int) -> list[Work]:
    """Everything that is looked at."""
    flood = {"flood": FEW, "batch": 1, "seconds": SECONDS}
    collect = {"conns": FEW, "collect": SECONDS, "nap": NAP_US * FEW}
    stay = {"conns": many, "collect": 2 * SECONDS}  # so that the end of the connections is not seen
    beat = {"conns": FEW, "beat": SECONDS}
    found = []
    for proto in PROTOS:
        found.append(Work("delivery", proto, flood, collect, "collect", "deliveries", 2 * SECONDS))
        found.append(Work("connect", proto, {}, stay, "connect", "live", SECONDS))
        found.append(Work("heartbeat", proto, {}, beat, "beat", "replies", SECONDS))
    return found


def shares(data: Path, *how: str) -> dict[str, float]:
    """What part of the samples is in each library, or under each function."""
    command = ["perf", "report", "-i", str(data), "--stdio", "-g", "none", *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    lines = (_SHARE.match(line) for line in done.stdout.splitlines())
    return {line[2]: float(line[1]) / 100 for line in lines if line}


def measure(bench: Bench, work: Work, data: Path) -> dict[str, float]:
    """Microseconds of one operation: in all, by library, and by system call."""
    say(f"{work.name} {work.proto}")
    with bench.goim_core(*flags(dict(work.server))) as ready:
        command = ["perf", "record", "-q", "-g", "-e", "cpu-clock", "-F", "4999", "-o", str(data)]
        command += ["-p", str(ready["pid"]), "--", "sleep", str(work.seconds)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as perf:
            time.sleep(PERF_SECONDS)
            run = bench.load(work.proto, ready, **work.load)[work.phase]
            perf.wait(RUN_SECONDS)
    cost = float(run["cpu_s"]) * 1e6 / run[work.count]
    libraries = shares(data, "--no-children", "--sort", "dso")
    calls = shares(data, "--children", "--sort", "symbol")
    found = {name: share for name, share in libraries.items() if share > 0.01}
    found |= {
        name.removeprefix("__x64_sys_"): share
        for name, share in calls.items()
        if name.startswith("__x64_sys_") and share > 0.005
    }
    return {"all": cost, **{name: share * cost for name, share in found.items()}}


def main() -> int:
    """Measure and print; 1 where perf is missing."""
    parser = argparse.ArgumentParser(description="Profile the server's hot paths.")
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument("--only", help="one path: delivery, connect or heartbeat")
    options = parser.parse_args()
    if shutil.which("perf") is None:
        raise BenchError("perf is missing (Debian: linux-perf)")
    compile_all()
    many = raise_descriptor_limit()
    bench = Bench(sys.executable, options.backend, HERE / "server.py", quick=False, many=many)
    with tempfile.TemporaryDirectory() as folder:
        for work in paths(many):
            if options.only in (None, work.name):
                parts = measure(bench, work, Path(folder) / "perf.data")
                line = ", ".join(f"{name} {us:.2f}" for name, us in parts.items())
                print(f"{work.name} {work.proto}, us: {line}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"benchmarks/where.py: {error}")
