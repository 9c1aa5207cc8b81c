"""What `make bench` runs: the server, the load client and the C baseline, each a process of its own.

README.md beside this file says what each figure means. Linux only: the load client needs epoll and /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import SECTIONS
from benchmarks.goim import SOURCE
from benchmarks.harness import (
    HERE,
    Bench,
    BenchError,
    Load,
    Row,
    compile_all,
    describe,
    number,
    raise_descriptor_limit,
)
from benchmarks.picture import Bar, Group, bars


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure goim_core against its targets.")
    parser.add_argument("--quick", action="store_true", help="each figure once, and shorter")
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma separated, of %(default)s")
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the server")
    parser.add_argument("--server", type=Path, default=HERE / "server.py", help="the program under test")
    parser.add_argument("--json", type=Path, help="where the result goes (default: out/BACKEND.json)")
    parser.add_argument("--svg", type=Path, help="where the picture goes (default: out/BACKEND.svg)")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    return options


def table(rows: list[Row]) -> str:
    """The result for people."""
    lines = [("figure", "median", "min - max", "target", "", "goim", "")]
    for row in rows:
        bound = "" if row.target is None else f"{'>=' if row.at_least else '<='} {short(row.target)}"
        span = f"{number(min(row.values))} - {number(max(row.values))}" if len(row.values) > 1 else ""
        goim = " - ".join(short(value) for value in row.goim)
        lines.append(
            (row.figure, f"{number(row.median)} {row.unit}", span, bound, row.verdict, goim, row.note)
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def short(value: float) -> str:
    """A number that was chosen, or rounded, by people."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def picture(rows: list[Row], machine: str) -> str:
    """The rows that goim or the C loop have a figure for, as bars."""
    loops = {row.figure.removesuffix(": C send() loop"): row for row in rows}
    groups = []
    for row in rows:
        if not row.goim or row.unit == "":
            continue
        found = [Bar("goim_core", row.median), Bar("goim", sum(row.goim) / len(row.goim))]
        loop = loops.get(row.figure.removesuffix(": goim_core"))
        if loop is not None and loop is not row:
            found.append(Bar("C send() loop", loop.median))
        name = row.figure.removesuffix(": goim_core")
        groups.append(Group(name, row.unit, found, row.target, more=row.at_least))
    return bars("goim_core beside goim and a C loop", f"{machine}; {SOURCE}", groups)


def main() -> int:
    """Measure, print the table, write the files; 1 where something could not be measured."""
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
    print(f"goim: {SOURCE}")
    path = options.json or HERE / "out" / f"{bench.backend}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [asdict(row) | {"median": row.median, "verdict": row.verdict} for row in rows]
    result = {"machine": machine, "rows": found, "failures": failures, "runs": bench.runs}
    path.write_text(json.dumps(result, indent=1) + "\n")
    about = f"{machine['cores']} cores, {machine['python']}, {bench.backend}"
    (options.svg or HERE / "out" / f"{bench.backend}.svg").write_text(picture(rows, about))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"benchmarks/run.py: {error}")
