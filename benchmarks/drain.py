"""A stop under many clients: how evenly they go, and how long it takes.

    python -m benchmarks.drain [--clients 9000] [--drain 5] [--backend uvloop]

A third of the clients obey MOVE (op 42), a third have never heard of it, as goim's, and a third never read.
The server is a process of its own, which gets SIGTERM when all are connected.
"""

from __future__ import annotations

import argparse
import json
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from goim_core.protocol import Decoder, Op, encode

WAIT = 60.0
SHOWN = 0.25
"""Seconds of the stop that are counted together."""


class Client:
    """A connection. ``ended`` is when it was over, in seconds since the stop began."""

    def __init__(self, port: int, number: int) -> None:
        self.reads = number % 3 > 0
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
        accepts = [Op.MOVE] if number % 3 == 1 else []
        self.sock.sendall(encode(Op.AUTH, json.dumps({"mid": number, "accepts": accepts}).encode(), 1))
        assert self.sock.recv(16)[8:12] == bytes((0, 0, 0, Op.AUTH_REPLY))
        self.sock.setblocking(False)
        self.code = 0
        self.leaves = self.ended = float("inf")
        self._decoder = Decoder()

    def read(self, now: float) -> None:
        """Take what has come; over at the reason of the end, or where the other side has closed."""
        data = self.sock.recv(4096)
        self._decoder.receive(data)
        while (frame := self._decoder.next_frame()) is not None:
            if frame.op == Op.MOVE:
                self.leaves = now + json.loads(frame.body)["seconds"]
            elif frame.op == Op.DISCONNECT_REPLY:
                self.code = json.loads(frame.body)["code"]
        if self.code or not data:
            self.ended = now


def stop(server: subprocess.Popen[str], clients: list[Client]) -> float:
    """Send SIGTERM and see all go that read; how many seconds the server took to end."""
    selector = selectors.DefaultSelector()
    left = {client for client in clients if client.reads}
    for client in left:
        selector.register(client.sock, selectors.EVENT_READ, client)
    begun = time.monotonic()
    server.send_signal(signal.SIGTERM)
    while left and (now := time.monotonic() - begun) < WAIT:
        for key, _ in selector.select(0.01):
            key.data.read(now)
        for client in [client for client in left if min(client.ended, client.leaves) <= now]:
            client.ended = min(client.ended, now)
            selector.unregister(client.sock)
            client.sock.close()
            left.remove(client)
    server.wait(WAIT)
    return time.monotonic() - begun


def report(clients: list[Client], seconds: float, status: int) -> None:
    readers = [client for client in clients if client.reads]
    moved = sum(client.leaves < float("inf") for client in readers)
    told = sum(client.code == 1001 for client in readers)
    print(
        f"status {status} after {seconds:.2f} s; {moved} moved, {told} told 1001, of {len(readers)} that read"
    )
    ends = Counter(int(client.ended / SHOWN) for client in readers)
    print(f"gone in each {SHOWN:g} s:", *(ends[each] for each in range(max(ends) + 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=9000)
    parser.add_argument("--drain", type=float, default=5.0)
    parser.add_argument("--backend", default="uvloop")
    call = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "goim.toml"
        config.write_text(f'auth = "open"\ntcp = "127.0.0.1:0"\n[options]\ndrain = {call.drain}\n')
        command = [sys.executable, "-m", "goim_core", "serve", "--config", config, "--backend", call.backend]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline().rpartition(":")[2])
            clients = [Client(port, number) for number in range(call.clients)]
            seconds = stop(server, clients)
        report(clients, seconds, server.returncode)


if __name__ == "__main__":
    main()
