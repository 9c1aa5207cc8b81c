"""Attack after attack against one server, and what it costs the well-behaved clients beside them. Linux.

Exit code 1 where a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.hostile.attacks import ATTACKS, Attack
from fuzz.storm import Process

BOUNDS = {"beat": 250.0, "push": 500.0, "come": 2000.0, "ask": 2000.0}
"""The longest that a well-behaved client may have to wait, in milliseconds. What a heartbeat takes
at an idle server meanwhile is added: it has the machine to blame."""
SETTLED = ("connections", "rooms", "tasks", "errors")
"""Figures of the server that have to be afterwards what they were before, as have its descriptors."""
SLACK = 12
"""Connections that the well-behaved may have open or not at a moment."""
PATIENCE = 90.0
"""Seconds within which the server has to be as it was before."""
CALM = 5.0
ROOT = Path(__file__).parent.parent.parent
BURN = "import os\nos.nice(19)\nwhile True: pass"

Figures = dict[str, Any]


class Victim(Process):
    """The server, and what the kernel knows of it."""

    def told(self, line: str) -> Figures:
        """Its answer to ``line``, with the descriptors that it has open."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        found: Figures = json.loads(self.line())
        return {**found, "descriptors": self.descriptors, "memory": self.memory}

    def forget_peak(self) -> None:
        """From now on :attr:`peak` is of what comes."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def peak(self) -> float:
        """The most that was resident, in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def attacked(attack: Attack, count: int, victim: Victim, ports: Figures) -> Figures:
    """Run one, and wait until the server has let go of everything."""
    if attack.policy:
        victim.told(f"policy {attack.policy}")
    before = victim.told("figures")
    victim.forget_peak()
    if attack.flood:
        victim.told(f"flood {attack.flood}")
    command = [
        sys.executable,
        "-m",
        "benchmarks.hostile.attacker",
        attack.name,
        str(count),
        json.dumps(ports),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=attack.seconds + 60, check=True)
    attackers: Figures = json.loads(done.stdout)
    spent = victim.told("flood 0")
    after = spent
    until = time.monotonic() + PATIENCE
    while kept(before, after) and time.monotonic() < until:
        time.sleep(0.5)
        after = victim.told("figures")
    return {
        "attackers": attackers,
        "before": before,
        "after": after,
        "peak": victim.peak,
        "cpu": spent["cpu"] - before["cpu"],
    }


def kept(before: Figures, after: Figures) -> list[str]:
    """What the server still holds. The well-behaved come and go, so a few are none."""
    return [
        name
        for name in (*SETTLED, "descriptors")
        if after[name] > before[name] + (0 if name in ("errors", "rooms") else SLACK)
    ] + (["waiting"] if after["waiting"] > 1 << 20 else [])


def faults(attack: Attack, found: Figures, beside: Figures, elsewhere: float) -> list[str]:
    """The bounds that were broken. ``elsewhere`` is the longest heartbeat at the idle server, in ms."""
    wrong = [f"{name} kept" for name in kept(found["before"], found["after"])]
    growth = found["peak"] - found["before"]["memory"]
    if growth > attack.memory:
        wrong.append(f"memory grew by {growth:.0f} MB of {attack.memory:.0f}")
    for kind, most in BOUNDS.items():
        if not beside[kind]["count"] or beside[kind]["max"] > most + elsewhere:
            wrong.append(f"{kind} took {beside[kind]['max'] or 0:.0f} ms")
        if beside[kind]["failed"]:
            wrong.append(f"{kind} failed {beside[kind]['failed']} times: {beside[kind]['why']}")
    return wrong


def grown(found: Figures, name: str) -> str:
    """What was counted during the attack."""
    counts = Counter(found["after"][name]) - Counter(found["before"][name])
    return ", ".join(f"{key} {count}" for key, count in counts.most_common())


def latency(beside: Figures) -> str:
    return "  ".join(
        f"{kind} {figures['p50'] or 0:.1f} {figures['p99'] or 0:.1f} {figures['max'] or 0:.1f}"
        for kind, figures in beside.items()
    )


def show(attack: Attack, found: Figures, beside: Figures, wrong: list[str]) -> None:
    before, after, attackers = found["before"], found["after"], found["attackers"]
    print(f"{attack.name}: {attackers['tried']} connections in {attackers['seconds']:.0f} s")
    print(f"  how they ended: {', '.join(f'{how} {n}' for how, n in attackers['ends'].items())}")
    for name in ("refusals", "closes", "drops"):
        if said := grown(found, name):
            print(f"  {name}: {said}")
    print(
        f"  memory, MB: {before['memory']:.1f} before, {found['peak']:.1f} peak, {after['memory']:.1f} after"
    )
    for name in ("descriptors", "tasks"):
        print(f"  {name}: {before[name]} before, {after[name]} after")
    print(f"  CPU: server {found['cpu']:.1f} s, attackers {attackers['cpu']:.1f} s")
    print(f"  the well-behaved, ms (p50 p99 max): {latency(beside)}")
    print(f"  at an idle server beside: {latency({'beat': found['elsewhere']})}")
    for fault in wrong:
        print(f"  FAULT: {fault}")
    sys.stdout.flush()


def table(results: list[Figures]) -> str:
    """The same in short, for the documentation."""
    names = ["attack", "connections", "what met it", "memory, MB", "heartbeat, ms", "at an idle server"]
    names += ["push, ms", "newcomer, ms"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for found in results:
        met = [part for part in (grown(found, "refusals"), grown(found, "drops")) if part]
        beside = found["beside"]
        ways = [
            f"{figures['p99']:.0f}, {figures['max']:.0f}"
            for figures in (beside["beat"], found["elsewhere"], beside["push"], beside["come"])
        ]
        growth = max(0.0, found["peak"] - found["before"]["memory"])
        cells = (found["attack"], f"{found['attackers']['tried']:,}", "; ".join(met), f"{growth:.0f}", *ways)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@contextmanager
def burners(count: int) -> Iterator[None]:
    """So many processes that only take time, as nice as the attackers."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", BURN]))
            stack.callback(process.kill)
        yield


def run(arguments: argparse.Namespace) -> int:
    victim, idle = Victim("benchmarks.hostile.victim"), Victim("benchmarks.hostile.victim")
    ports = json.loads(victim.line())
    neighbours = Process("benchmarks.hostile.neighbours", json.dumps(ports))
    elsewhere = Process("benchmarks.hostile.neighbours", idle.line(), "--beat")
    assert neighbours.line() == elsewhere.line() == "ready\n"
    time.sleep(CALM)
    neighbours.asked()
    time.sleep(CALM)
    print(f"alone, ms (p50 p99 max): {latency(neighbours.asked())}")
    with burners(os.cpu_count() or 1):
        time.sleep(CALM)
        print(f"beside as many idle burners of CPU as cores: {latency(neighbours.asked())}", flush=True)
    results, broken, total = [], 0, 0
    for attack in ATTACKS:
        if not re.search(arguments.only, attack.name):
            continue
        count = max(1, round(attack.count * arguments.connections / sum(each.count for each in ATTACKS)))
        count = count if arguments.connections else attack.count
        victim.told("trim")
        neighbours.asked(), elsewhere.asked()
        found = attacked(attack, count, victim, ports)
        beside, found["elsewhere"] = neighbours.asked(), elsewhere.asked()["beat"]
        wrong = faults(attack, found, beside, found["elsewhere"]["max"])
        show(attack, found, beside, wrong)
        broken += bool(wrong)
        total += found["attackers"]["tried"]
        results.append({"attack": attack.name, "beside": beside, "faults": wrong, **found})
    codes = neighbours.end(), victim.end(), elsewhere.end(), idle.end()
    print(table(results))
    print(f"{total} hostile connections, {broken} attacks with faults, exit codes {codes}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))
    return int(bool(broken or any(codes)))


def main() -> int:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("--connections", type=int, default=0, help="in all (more than 100,000)")
    parser.add_argument("--only", default="", help="attacks with this in their name, a regular expression")
    parser.add_argument("--json", help="write the figures to this file")
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
