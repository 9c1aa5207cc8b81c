"""Three nodes with a real queue between them: ``python -m benchmarks.cluster``.

Connections in 30 rooms, each room spread over all nodes; 100 pushes a second to the rooms in turn, by way of
the push API of all nodes. Measured is from the moment at which a push is due to the moment at which a client
has read it. README.md beside this file says more. Linux only: CPU times are read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import resource
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.cluster.cluster import Cluster
from examples.cluster.processes import NotStarted
from examples.cluster.servers import QUEUES

OP = 1000
HEAD = 16
AUTH = bytes((0, HEAD, 0, 1, 0, 0, 0, 7, 0, 0, 0, 1))
"""The head of an auth frame behind its length."""
OUT = Path(__file__).parent / "out" / "cluster.json"
AT_ONCE = 50
"""How many connections are being made at a time."""
SETTLE = 2.0
"""Seconds between the last connection and the first push."""
PATIENCE = 10.0
"""Seconds without any delivery after the last push, after which what did not come is lost."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Result:
    """What one queue did."""

    queue: str
    backend: str
    seconds: float
    connections: int
    rooms: int
    pushed: int
    refused: int
    deliveries: int
    expected: int
    lost: int
    out_of_order: int
    twice: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    node_cpu: list[float]
    """Cores that each node used."""
    queue_cpu: float
    client_cpu: float
    others_cpu: float
    """Cores that everybody else on the machine used: figures above 0.3 are not worth quoting."""


@dataclass
class Seen:
    """What all connections got."""

    latencies: list[int] = field(default_factory=list)
    deliveries: int = 0
    twice: int = 0
    out_of_order: int = 0
    last: float = 0.0


class Receiver(asyncio.Protocol):
    """One connection. It looks at each push, and keeps which of its room's numbers it has."""

    def __init__(self, mid: int, room: str, seen: Seen) -> None:
        self.live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._token = json.dumps({"mid": mid, "room_id": room, "accepts": [OP]}).encode()
        self._seen = seen
        self._last = 0
        self._missing: set[int] = set()
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        size = (HEAD + len(self._token)).to_bytes(4)
        transport.write(size + AUTH + self._token)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.live.done():
            self.live.set_exception(ConnectionError("not let in"))

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        rest = self._take(self._rest + data if self._rest else data, now)
        self._rest = rest

    def _take(self, data: bytes, now: int) -> bytes:
        at = 0
        while len(data) - at >= HEAD:
            end = at + int.from_bytes(data[at : at + 4])
            if len(data) < end:
                break
            op = int.from_bytes(data[at + 8 : at + 12])
            if op == OP:
                self._push(data[at + HEAD : end], now)
            elif op == 9:
                self._take(data[at + HEAD : end], now)
            elif op == 8:
                self.live.set_result(None)
            at = end
        return data[at:]

    def _push(self, body: bytes, now: int) -> None:
        number, due = map(int, body.split())
        seen = self._seen
        if number > self._last:
            self._missing.update(range(self._last + 1, number))
            self._last = number
        elif number in self._missing:
            self._missing.remove(number)
            seen.out_of_order += 1
        else:
            seen.twice += 1
            return
        seen.deliveries += 1
        seen.latencies.append(now - due)
        seen.last = now / 1e9


# Pushing, in a process of its own, so that reading does not delay it.


def push_all(ports: list[int], rooms: int, rate: float, seconds: float, results: Any) -> None:
    """Push to each room in turn, each room by way of one node."""
    start = time.monotonic_ns() + 200_000_000
    total = int(rate * seconds)
    done: Counter[str] = Counter()
    lock = threading.Lock()

    def pusher(which: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", ports[which], timeout=30)
        for at in range(which, total, len(ports)):
            due = start + int(at * 1e9 / rate)
            delay = (due - time.monotonic_ns()) / 1e9
            if delay > 0:
                time.sleep(delay)
            path = f"/goim/push/room?operation={OP}&type=bench&room={at % rooms}"
            connection.request("POST", path, f"{at // rooms + 1} {due}")
            answer = json.loads(connection.getresponse().read())
            with lock:
                done["refused" if answer["code"] else "pushed"] += 1
        connection.close()

    with ThreadPoolExecutor(len(ports)) as threads:
        list(threads.map(pusher, range(len(ports))))
    results.put((dict(done), time.process_time()))


# CPU.


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def cpu_of_all() -> float:
    """Seconds of CPU that the whole machine has used."""
    fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


# One run.


async def connect_all(cluster: Cluster, conns: int, rooms: int, seen: Seen) -> list[Receiver]:
    """Connections on each node in turn, ``conns / rooms`` in each room."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(AT_ONCE)
    nodes = cluster.nodes

    async def connect(at: int) -> Receiver:
        receiver = Receiver(at + 1, f"bench://{at % rooms}", seen)
        node = nodes[(at + at // rooms) % len(nodes)]  # a third of each room, and of all
        async with gate:
            port = int(node.tcp.rpartition(":")[2])
            await loop.create_connection(lambda: receiver, "127.0.0.1", port)
            await receiver.live
        return receiver

    return await asyncio.gather(*map(connect, range(conns)))


async def measure(cluster: Cluster, call: argparse.Namespace, queue: str) -> Result:
    """One run on a cluster that has started."""
    seen = Seen()
    say(f"{queue}: {call.conns:,} connections")
    receivers = await connect_all(cluster, call.conns, call.rooms, seen)
    await asyncio.sleep(SETTLE)
    say(f"{queue}: {call.rate:g} pushes a second for {call.seconds:g} s")
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    ports = [node.port for node in cluster.nodes]
    pusher = spawn.Process(target=push_all, args=(ports, call.rooms, call.rate, call.seconds, results))
    pids = [node.pid for node in cluster.nodes]
    before = [*map(cpu_of, pids), cpu_of(cluster.queue.pid), cpu_of(os.getpid()), cpu_of_all()]
    began = time.monotonic()
    pusher.start()
    while pusher.is_alive():  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    done, pusher_cpu = results.get()
    expected = done.get("pushed", 0) * call.conns // call.rooms
    ended = time.monotonic()
    while seen.deliveries < expected and time.monotonic() - max(seen.last, ended) < PATIENCE:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    wall = time.monotonic() - began
    after = [*map(cpu_of, pids), cpu_of(cluster.queue.pid), cpu_of(os.getpid()), cpu_of_all()]
    used = [(new - old) / wall for old, new in zip(before, after, strict=True)]
    pusher.join()
    assert len(receivers) == call.conns
    latencies = sorted(seen.latencies) or [0]

    def percentile(part: float) -> float:
        return round(latencies[int((len(latencies) - 1) * part)] / 1e6, 2)

    client_cpu = used[-2] + pusher_cpu / wall
    return Result(
        queue=queue, backend=call.backend, seconds=call.seconds, connections=call.conns, rooms=call.rooms,
        pushed=done.get("pushed", 0), refused=done.get("refused", 0),
        deliveries=seen.deliveries, expected=expected, lost=expected - seen.deliveries,
        out_of_order=seen.out_of_order, twice=seen.twice,
        p50_ms=percentile(0.5), p99_ms=percentile(0.99), max_ms=percentile(1),
        node_cpu=[round(each, 3) for each in used[: len(pids)]],
        queue_cpu=round(used[-3], 3), client_cpu=round(client_cpu, 3),
        others_cpu=round(max(0.0, used[-1] - sum(used[:-2]) - client_cpu), 3),
    )  # fmt: skip


def table(results: list[Result]) -> str:
    """The results, for people and for the documentation."""
    rows = [
        "| queue | pushes | deliveries | lost | disorder | twice | p50 | p99 | max | node | queue | others |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {each.queue} | {each.pushed:,} | {each.deliveries:,} | {each.lost:,} | {each.out_of_order:,} "
        f"| {each.twice:,} | {each.p50_ms:g} ms | {each.p99_ms:g} ms | {each.max_ms:g} ms "
        f"| {fmean(each.node_cpu):.0%} | {each.queue_cpu:.0%} | {each.others_cpu:.0%} |"
        for each in results
    ]
    return "\n".join(rows)


def say(what: str) -> None:
    """Progress, beside the result on standard output."""
    print(f"  {what}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure three nodes with each queue between them.")
    parser.add_argument("--queue", choices=sorted(QUEUES), action="append", help="only this one (all)")
    parser.add_argument("--seconds", type=float, default=60, help="how long to push (60)")
    parser.add_argument("--rate", type=float, default=100, help="pushes a second (100)")
    parser.add_argument("--conns", type=int, default=3000, help="connections on all nodes (3000)")
    parser.add_argument("--rooms", type=int, default=30)
    parser.add_argument("--backend", choices=("asyncio", "uvloop"), default="asyncio", help="of the nodes")
    parser.add_argument("--json", type=Path, default=OUT, metavar="FILE")
    call = parser.parse_args()
    if call.conns % call.rooms:
        parser.error("--conns: expected as many for each of the --rooms")
    return call


def main() -> None:
    """Measure and print."""
    call = parse()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = []
    try:
        for queue in call.queue or ("nats", "kafka", "redis"):
            with Cluster(queue, ("benchmarks.node", call.backend)) as cluster:
                results.append(asyncio.run(measure(cluster, call, queue)))
    except NotStarted as error:
        sys.exit(f"cluster: {error}")
    print(table(results))
    call.json.parent.mkdir(exist_ok=True)
    call.json.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
