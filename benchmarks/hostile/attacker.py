"""One attack, as a process: ``python -m benchmarks.hostile.attacker NAME COUNT PORTS``.

It prints a line of JSON, and is as nice as can be: what it takes of the machine is not to be the server's.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import Counter
from threading import Thread

from benchmarks.hostile.attacks import Attack, named
from benchmarks.hostile.storm import Storm

__all__ = ["at_door"]


def at_door(attack: Attack, door: str, port: int, count: int) -> Storm:
    """Its share of ``count`` at one of its doors."""
    share = len(attack.doors)
    offset = attack.doors.index(door)
    return Storm(
        port,
        lambda number: attack.script(door, number * share + offset),
        (count - offset + share - 1) // share,
        max(1, attack.at_once // share),
        attack.sources,
    )


def main() -> None:
    attack, count, ports = named(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    os.nice(19)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    begun, tally = time.monotonic(), Counter[str]()
    storms = [at_door(attack, door, ports[door], count) for door in attack.doors]
    threads = [Thread(target=storm.run, args=(attack.seconds,)) for storm in storms]
    for thread in threads:
        thread.start()
    for storm, thread in zip(storms, threads, strict=True):
        thread.join()
        tally += storm.tally
    print(
        json.dumps(
            {
                "tried": sum(tally.values()),
                "ends": tally,
                "seconds": time.monotonic() - begun,
                "cpu": time.process_time(),
            }
        )
    )


if __name__ == "__main__":
    main()
