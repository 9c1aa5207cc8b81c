"""Fuzz: ``make fuzz SECONDS=60 TARGET=name``, or ``python -m fuzz.run``.

Each target runs under libFuzzer for some seconds, beginning with the corpus in the tree (``fuzz/corpus``) and
what earlier runs have found (``fuzz/found``, not in the tree): a long run goes on where the last one ended.
An input that breaks something is written to ``fuzz/broken``, shown, and makes the exit code 1.

``--merge`` puts into the corpus what reaches code that it does not reach yet, and adds nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import frozen

from fuzz.targets import TARGETS

__all__ = ["CORPUS", "inputs"]

HERE = Path(__file__).parent
CORPUS, FOUND, BROKEN = HERE / "corpus", HERE / "found", HERE / "broken"
LIMITS = ("-rss_limit_mb=1024", "-timeout=10", "-print_final_stats=1")
"""A run that takes more memory, or an input that takes more seconds, is a fault."""
BRANCHES = "-use_counters=0"
"""For a merge: whether a branch was reached, not how often, which keeps a corpus small."""


@frozen
class Run:
    """How one target's run went."""

    name: str
    code: int
    output: str

    def __str__(self) -> str:
        tried = self.number("stat::number_of_executed_units:")
        memory = self.number("stat::peak_rss_mb:")
        if "MERGE-OUTER" in self.output:
            return f"{self.name:<12}{len(list((CORPUS / self.name).glob('*'))):>10} inputs in the corpus"
        return (
            f"{self.name:<12}{tried:>10} inputs, {memory:>4} MB at most  {'ok' if not self.code else 'FAULT'}"
        )

    def number(self, label: str) -> str:
        """One of libFuzzer's figures."""
        return self.output.partition(label)[2].split("\n", 1)[0].strip() or "?"


def inputs(name: str) -> list[bytes]:
    """The corpus of a target in the tree, with the good inputs that it begins with."""
    kept = sorted((CORPUS / name).glob("*"))
    return [*TARGETS[name].seeds(), *(path.read_bytes() for path in kept)]


def fuzz(name: str, options: Iterable[str]) -> Run:
    """Run one target until libFuzzer has had enough."""
    for directory in (FOUND / name, BROKEN / name, CORPUS / name):
        directory.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[name].seeds():
        (FOUND / name / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    with tempfile.NamedTemporaryFile("w", suffix=".dict") as dictionary:
        for word in TARGETS[name].words:
            dictionary.write('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n')
        dictionary.flush()
        where = (f"-dict={dictionary.name}", f"-artifact_prefix={BROKEN / name}/")
        return _engine(name, *LIMITS, *where, *options, str(FOUND / name), str(CORPUS / name))


def merge(name: str) -> Run:
    """Put into the corpus what reaches more."""
    return _engine(name, "-merge=1", BRANCHES, str(CORPUS / name), str(FOUND / name))


def _engine(name: str, *arguments: str) -> Run:
    command = [sys.executable, "-m", "fuzz.engine", name, *arguments]
    done = subprocess.run(
        command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return Run(name, done.returncode, done.stdout.decode(errors="replace"))


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description="Fuzz the targets: " + ", ".join(TARGETS))
    parser.add_argument("targets", nargs="*", help="which; all unless given")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--inputs", type=int, help="how many inputs for each target, in place of a time")
    parser.add_argument("--seed", type=int, default=0, help="begin the same way each time; 0: by chance")
    parser.add_argument("--at-once", type=int, default=2, help="how many targets run at a time (2)")
    parser.add_argument(
        "--merge", action="store_true", help="add to the corpus in the tree what reaches more"
    )
    arguments = parser.parse_args()
    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    enough = f"-runs={arguments.inputs}" if arguments.inputs else f"-max_total_time={arguments.seconds}"

    def work(name: str) -> Run:
        return merge(name) if arguments.merge else fuzz(name, (enough, f"-seed={arguments.seed}"))

    with ThreadPoolExecutor(arguments.at_once) as threads:
        runs = []
        for run in threads.map(work, names):
            print(run, flush=True)
            if run.code:
                print(run.output[-4000:])
            runs.append(run)
    return int(any(run.code for run in runs))


if __name__ == "__main__":
    sys.exit(main())
