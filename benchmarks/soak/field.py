"""What is soaked: two nodes, NATS and Valkey, each a process that may be killed; and what they hold."""

from __future__ import annotations

import http.client
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from benchmarks.soak.client import AUTH, AUTH_REPLY, HEAD, USER_OP, frame
from benchmarks.soak.report import Held
from examples.cluster.processes import Process, free_ports
from examples.cluster.servers import nats, redis

__all__ = ["DOWN", "FAULTS", "IDLE", "Field", "Node", "others_cpu"]

DOWN = 3.0
"""Seconds for which a broker is away."""
FAULTS = ("node", "storm", "queue", "registry")
"""In this order, so that soon after the begin the node that stays has had all clients, and then a storm."""
FIRST, FEW = 1_000_000_001, 20
"""Who has come and gone when a node is first looked at."""
IDLE = 12.0
"""Seconds after which threads without work have ended."""
TICKS = os.sysconf("SC_CLK_TCK")
DRAINS_WITHIN = 30.0


class Node(Process):
    """One node."""

    def __init__(self, name: str, backend: str, shared: list[str], folder: Path) -> None:
        self.tcp, self.ws, port = free_ports(3)
        doors = [f"--tcp={self.tcp}", f"--ws={self.ws}", f"--http={port}"]
        command = [sys.executable, "-m", "benchmarks.soak.node", backend, f"--name={name}", *doors, *shared]
        super().__init__(name, command, port=port, folder=folder, ready="^ready")

    def ask(self, path: str) -> Any:
        """What the HTTP door answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return json.load(connection.getresponse())
        finally:
            connection.close()

    def held(self) -> Held | None:
        """What it holds now; None while it is away."""
        try:
            counted, stats = self.ask("/soak"), self.ask("/goim/operator/stats")["data"]["stats"]
            rss = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            descriptors = len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208
        except (OSError, http.client.HTTPException):
            return None
        names = ("connections", "users", "deliveries", "drops", "closes", "refusals", "outbox_bytes")
        return Held(
            pid=self.pid, rss_mb=round(rss / 2**20, 2), descriptors=descriptors, **counted,
            **{name: stats[name] for name in names if name in stats},
        )  # fmt: skip

    def warm(self) -> Held:
        """What it holds after a few clients have come, got a message and gone, and threads have ended."""
        socks = [socket.create_connection(("127.0.0.1", self.tcp), timeout=30) for _ in range(FEW)]
        for mid, sock in enumerate(socks, FIRST):
            sock.sendall(frame(AUTH, b'{"mid":%d,"accepts":[%d]}' % (mid, USER_OP)))
        for sock in socks:
            assert sock.recv(HEAD, socket.MSG_WAITALL)[8:12] == AUTH_REPLY.to_bytes(4)
        with ThreadPoolExecutor(FEW) as threads:
            list(threads.map(self._push, range(FIRST, FIRST + FEW)))
        for sock in socks:
            assert sock.recv(HEAD)
            sock.close()
        time.sleep(IDLE)
        held = self.held()
        assert held is not None
        return held

    def _push(self, mid: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", f"/goim/push/mids?operation={USER_OP}&mids={mid}", b"warm")
        assert connection.getresponse().status == 200
        connection.close()

    def drain(self) -> str:
        """SIGTERM, and how it ended: "status, seconds", and how much CPU it had for that."""
        begun, used = time.monotonic(), _cpu(self.pid) + _cpu_of_ended()
        assert self._process is not None
        self._process.terminate()
        status = self._process.wait(DRAINS_WITHIN)
        took, used = time.monotonic() - begun, _cpu_of_ended() - used
        return f"{status}, {took:.1f} s with {used:.1f} s of CPU"


class Field:
    """``with Field(...) as field:`` everything runs; after the block nothing is left but the logs."""

    def __init__(self, backend: str, size: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="goim-soak-"))
        self.registry, registry_url = redis(self.folder)
        self.queue, queue_url = nats(self.folder)
        shared = [f"--queue={queue_url}", f"--registry={registry_url}", f"--discovery={registry_url}"]
        shared.append(f"--storage=sqlite:{self.folder / 'inbox.db'}")
        self.nodes = [Node(f"node-{at}", backend, shared, self.folder) for at in range(1, size + 1)]

    def __enter__(self) -> Self:
        try:
            for group in ([self.registry, self.queue], self.nodes):
                for process in group:
                    process.start()
                for process in group:
                    process.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the nodes and the brokers."""
        for node in self.nodes:
            node.stop()
        self.queue.kill()
        self.registry.kill()
        for heavy in ("nats", "redis"):
            shutil.rmtree(self.folder / heavy, ignore_errors=True)
        for file in self.folder.glob("inbox.db*"):
            file.unlink()

    def restart(self, broker: Process) -> None:
        """Kill a broker in the middle of what it does, and start it again."""
        broker.kill()
        time.sleep(DOWN)
        broker.start()
        broker.wait()

    def own_cpu(self) -> float:
        """Seconds of CPU that nodes and brokers have used."""
        return sum(_cpu(process.pid) for process in (*self.nodes, self.queue, self.registry))


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def _cpu_of_ended() -> float:
    """Seconds of CPU that processes have used which were started here, and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def others_cpu(field: Field, pids: list[int]) -> Iterator[float]:
    """Each time it is asked: cores that everybody else on this machine has used since the last time."""
    before: dict[int, float] = {}
    last_all = last_at = 0.0
    while True:
        own = [node.pid for node in field.nodes] + [field.queue.pid, field.registry.pid, os.getpid(), *pids]
        now = {pid: _cpu(pid) for pid in own}
        ticks = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        everybody, at = (sum(ticks) - ticks[3] - ticks[4]) / TICKS, time.monotonic()
        used = sum(value - before.get(pid, 0.0) for pid, value in now.items())
        yield round(max(0.0, (everybody - last_all - used) / (at - last_at)), 2) if last_at else 0.0
        before, last_all, last_at = now, everybody, at
