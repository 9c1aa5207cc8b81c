"""What threads could do for a delivery: ``python -m benchmarks.threads``, with any interpreter from 3.11 on.

One packet after the other to a room of TCP connections on loopback, the room shared out among 1, 2 and more
threads, each with the library's own loop (``channel.deliver``). Nobody reads meanwhile, so no other process
wants the cores and no receiver is woken: what is measured is the sender. The interpreter may be a
free-threaded one; it needs the five dependencies of the library, and nothing else.
"""

from __future__ import annotations

import argparse
import socket
import sys
import sysconfig
import threading
import time
from statistics import median

from goim_core.channel import Channel, Counters, Gone, deliver
from goim_core.options import Options
from goim_core.protocol import encode
from goim_core.wire import TCP, Packet

BODY = b'{"test":1,"ts":1234567890123456789}'
BUFFER = 1 << 20


class Room:
    """The members' channels, and the other ends of their sockets."""

    def __init__(self, size: int) -> None:
        port = Gone(Options(), Counters())
        self.channels, self._ends = [], []
        with socket.create_server(("127.0.0.1", 0), backlog=size) as server:
            for _ in range(size):
                end = socket.socket()
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                end.connect(server.getsockname())
                sock, _ = server.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.channels.append(Channel(sock, TCP, port))
                self._ends.append(end)

    def read_away(self, size: int) -> None:
        """Take ``size`` bytes from each end."""
        for end in self._ends:
            left = size
            while left:
                left -= len(end.recv(left))


def measure(room: Room, packet: Packet, threads: int, rounds: int) -> tuple[float, float]:
    """Microseconds of a delivery by the clock and of CPU, with so many threads."""
    ready = threading.Barrier(threads + 1)

    def work(part: list[Channel]) -> None:
        ready.wait()
        for _ in range(rounds):
            deliver(part, packet)

    parts = [room.channels[at::threads] for at in range(threads)]
    workers = [threading.Thread(target=work, args=(part,)) for part in parts]
    for worker in workers:
        worker.start()
    wall, used = time.perf_counter(), time.process_time()
    ready.wait()
    for worker in workers:
        worker.join()
    wall, used = time.perf_counter() - wall, time.process_time() - used
    if any(channel.outbox for channel in room.channels):
        sys.exit("threads: a socket's buffer was full, so fewer --rounds are needed")
    room.read_away(rounds * packet.sizes[TCP])
    deliveries = rounds * len(room.channels)
    return wall * 1e6 / deliveries, used * 1e6 / deliveries


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(description="Deliveries of one room by several threads.")
    parser.add_argument("--room", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=100, help="packets to each member in one measurement")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeat", type=int, default=15)
    call = parser.parse_args()
    room, packet = Room(call.room), Packet([encode(1000, BODY)])
    found: dict[int, list[tuple[float, float]]] = {threads: [] for threads in call.threads}
    for _ in range(call.repeat):
        for threads, values in found.items():
            values.append(measure(room, packet, threads, call.rounds))
    lock = "on" if getattr(sys, "_is_gil_enabled", lambda: True)() else "off"
    build = "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else "usual"
    print(f"Python {sys.version.split()[0]}, {build} build, GIL {lock}; {len(room.channels)} members")
    for threads, values in found.items():
        wall, used = (median(each) for each in zip(*values, strict=True))
        print(f"{threads} threads: {wall:.2f} us a delivery by the clock, {used:.2f} us of CPU")


if __name__ == "__main__":
    main()
