"""Soak: ``python -m benchmarks.soak --minutes 30``. README.md in the folder above says what is done.

Linux only: what processes hold is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import time
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.soak.books import Books
from benchmarks.soak.crowd import Plan, Seen, live_clients
from benchmarks.soak.field import FAULTS, IDLE, Field, others_cpu
from benchmarks.soak.ledger import GRACE
from benchmarks.soak.pushers import Load, Pushed, push
from benchmarks.soak.report import Held, Level, Minute, picture
from benchmarks.soak.verdicts import WARM_UP, of_ends, of_memory, of_nodes, of_pushes
from examples.cluster.processes import NotStarted

OUT = Path(__file__).parent.parent / "out"
QUIET = 45.0
"""Seconds at the end without a fault."""
SETTLES_WITHIN = 120.0
LEAVES_WITHIN = 60.0
SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """A process that obeys words."""

    def __init__(self, target: Any, plan: Any) -> None:
        self._pipe, its = SPAWN.Pipe()
        self._process = SPAWN.Process(target=target, args=(plan, its), daemon=True)
        self._process.start()
        its.close()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def tell(self, word: str) -> None:
        self._pipe.send(word)

    def hear(self) -> Any:
        return self._pipe.recv()


class Soak:
    """One run."""

    def __init__(self, call: argparse.Namespace, field: Field) -> None:
        self.call, self.field, self.books = call, field, Books()
        self.hard = call.gap * WARM_UP * len(call.faults)
        self.begin = time.monotonic()
        self.minutes: list[Minute] = []
        self.levels: list[Level] = []
        self.events: list[str] = []
        self.ends: list[str] = []
        self.start = [node.warm() for node in field.nodes]
        ports = [(node.tcp, node.ws) for node in field.nodes]
        share = call.conns // call.processes
        self.crowds = [
            Worker(
                live_clients,
                Plan(
                    ports, range(1 + at * share, 1 + (at + 1) * share), call.rooms,
                    slow=call.slow // call.processes, churn=call.churn / call.processes,
                ),
            )
            for at in range(call.processes)
        ]  # fmt: skip
        self.pusher: Worker | None = None
        self.others = others_cpu(field, [crowd.pid for crowd in self.crowds])

    def connect(self) -> None:
        """Return when nearly all are connected, with the pushers at work."""
        end = time.monotonic() + 300
        while self.look()[0] < 0.98 * self.call.conns and time.monotonic() < end:
            time.sleep(1)
        load = Load(
            [node.port for node in self.field.nodes], self.call.rooms, self.call.room_rate,
            self.call.loud_rate, self.hard, self.call.conns, self.call.user_rate,
        )  # fmt: skip
        self.pusher = Worker(push, load)
        self.others = others_cpu(self.field, [worker.pid for worker in (*self.crowds, self.pusher)])
        next(self.others)
        self.begin = time.monotonic()

    def run(self) -> None:
        """Minute by minute, with faults in between."""
        end = self.begin + 60 * self.call.minutes
        quiet = end - min(QUIET, 15 * self.call.minutes)
        faults, fault = cycle(self.call.faults), self.begin + self.call.gap
        minute = self.begin + 60
        while (now := time.monotonic()) < end:
            if now >= fault and fault < quiet:
                self.strike(next(faults))
                fault += self.call.gap
            elif now >= minute:
                self.note()
                minute += 60
            else:
                time.sleep(max(0.0, min(minute, end, fault if fault < quiet else end) - now))
        self.note()

    def strike(self, fault: str) -> None:
        """Do one of :data:`FAULTS`, and note what the first node holds before."""
        self.levels.append(Level(round(time.monotonic() - self.begin, 1), fault, self.field.nodes[0].held()))
        if fault == "storm":
            hard = time.monotonic() < self.begin + self.hard
            for crowd in self.crowds:
                crowd.tell("hard storm" if hard else "storm")
        elif fault == "node":
            node = self.field.nodes[-1]
            self.ends.append(node.drain())
            fault = f"node ({self.ends[-1]})"
            node.start()
            node.wait()
        else:
            self.field.restart(getattr(self.field, fault))
        self.events.append(fault)

    # What is seen.

    def look(self) -> tuple[int, int, int, int]:
        """Ask everybody: connections, lost, lost of those stored, pushes that wait for an answer."""
        waiting = 0
        if self.pusher:
            self.pusher.tell("pushed")
        for crowd in self.crowds:
            crowd.tell("seen")
        seen: list[Seen] = [crowd.hear() for crowd in self.crowds]
        if self.pusher:
            pushed: Pushed = self.pusher.hear()
            self.books.pushed(pushed)
            waiting = pushed.waiting
        lost, lost_stored = self.books.seen(seen, time.monotonic())
        return sum(each.live for each in seen), lost, lost_stored, waiting

    def note(self) -> None:
        """One more line."""
        books, counts = self.books, self.books.counts.copy()
        accepted, refused = books.accepted + books.accepted_stored, books.refused.copy()
        live, lost, lost_stored, _ = self.look()
        p50, p99, stored_p99 = books.percentiles()
        seen = books.counts - counts
        odd = ("inbox: gap", "inbox: reordered", "inbox: mixed up")
        minute = Minute(
            at=round(time.monotonic() - self.begin, 1), live=live,
            accepted=books.accepted + books.accepted_stored - accepted, refused=dict(books.refused - refused),
            deliveries=seen["deliveries"], stored_deliveries=seen["stored deliveries"],
            lost=lost, lost_stored=lost_stored,
            reordered=books.counts["reordered"], repeated=books.counts["repeated"],
            stored_odd=sum(books.counts[name] for name in odd), stored_again=books.counts["inbox: repeated"],
            p50_ms=p50, p99_ms=p99, stored_p99_ms=stored_p99, others_cpu=next(self.others),
            events=self.events, nodes=[node.held() for node in self.field.nodes], seen=dict(seen),
        )  # fmt: skip
        self.events = []
        self.minutes.append(minute)
        print(minute.line(), flush=True)

    def settle(self) -> None:
        """Stop pushing, and wait until all that was accepted has come."""
        assert self.pusher is not None
        self.pusher.tell("stop")
        for crowd in self.crowds:
            crowd.tell("settle")
        self.events.append("settled")
        end = time.monotonic() + SETTLES_WITHIN
        quiet = time.monotonic() + GRACE + 5  # longer than the ledger waits for what is late
        while time.monotonic() < end:
            live, _, _, waiting = self.look()
            all_here = live == self.call.conns and not waiting and not self.books.behind
            if all_here and time.monotonic() > quiet:
                break
            time.sleep(1)
        self.note()

    def leave(self) -> list[Held | None]:
        """All clients go; what the nodes hold then."""
        for worker in (*self.crowds, self.pusher):
            assert worker is not None
            worker.tell("end" if worker is self.pusher else "leave")
        end = time.monotonic() + LEAVES_WITHIN
        while time.monotonic() < end:
            held = [node.held() for node in self.field.nodes]
            if all(each and not each.connections for each in held):
                break
            time.sleep(1)
        time.sleep(IDLE)
        held = [node.held() for node in self.field.nodes]
        self.ends += [node.drain() for node in self.field.nodes]
        return held


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Two nodes, thousands of clients, faults all the time.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--conns", type=int, default=9000, help="connections on both nodes (9000)")
    parser.add_argument("--rooms", type=int, default=90)
    parser.add_argument("--room-rate", type=float, default=30, help="room pushes a second (30)")
    parser.add_argument("--user-rate", type=float, default=50, help="stored pushes a second (50)")
    parser.add_argument("--loud-rate", type=float, default=4, help="32 KB pushes a second to slow ones (4)")
    parser.add_argument("--slow", type=int, default=60, help="slow clients, half of them never read (60)")
    parser.add_argument("--churn", type=float, default=30, help="clients that leave a second (30)")
    parser.add_argument("--gap", type=float, default=75, help="seconds between faults (75)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, help="which, in turn (all)")
    parser.add_argument("--processes", type=int, default=2, help="of clients (2)")
    parser.add_argument("--backend", choices=("asyncio", "uvloop"), default="asyncio", help="of the nodes")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="for soak.json, soak.svg")
    return parser.parse_args()


def main() -> int:
    """Soak and print; the exit status says whether all bounds held."""
    call = parse()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("soak: ended by SIGTERM"))
    try:
        with Field(call.backend) as field:
            print(f"logs of the nodes: {field.folder}", flush=True)
            soak = Soak(call, field)
            soak.connect()
            soak.run()
            soak.settle()
            left = soak.leave()
    except NotStarted as error:
        sys.exit(f"soak: {error}")
    names = [node.name for node in field.nodes]
    results = [
        *of_pushes(soak.books, soak.minutes[-1], call.conns),
        *of_memory(soak.levels, names[0]),
        *of_nodes(names, soak.start, left),
        of_ends(soak.ends),
    ]
    for text, held in results:
        print(f"{'ok  ' if held else 'MISS'} {text}")
    print("seen:", json.dumps(dict(soak.books.counts.most_common())))
    print("refused:", json.dumps(dict(soak.books.refused.most_common())))
    call.out.mkdir(exist_ok=True)
    result = {
        "call": {name: str(value) for name, value in vars(call).items()},
        "verdicts": results,
        "seen": soak.books.counts,
        "refused": soak.books.refused,
        "start": [asdict(held) for held in soak.start],
        "end": [held and asdict(held) for held in left],
        "levels": [asdict(level) for level in soak.levels],
        "minutes": [asdict(minute) for minute in soak.minutes],
    }
    (call.out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    (call.out / "soak.svg").write_text(picture(soak.minutes, names))
    return 0 if all(held for _, held in results) else 1


if __name__ == "__main__":
    sys.exit(main())
