"""A million malformed inputs: ``python -m fuzz.storm``. Linux.

Sessions that were valid, with something done to their bytes (mutations.py; the same for the same ``--seed``):
over loopback sockets at one running server, each a connection of its own, while a well-behaved client beats;
and the rest through the wires in this process, each checked as the fuzzer's targets check it.

Exit code 1 where the server ended, logged an error or kept a connection, or a check failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from fuzz import frames, handshake, messages, requests
from fuzz.mutations import DOORS, as_input, malformed

__all__ = ["KEPT", "Process", "at_server", "in_process", "main", "measured", "settled"]

AT_ONCE = 64
PATIENCE = 30.0
"""Seconds within which the server has to let go of a client that has sent all it has."""
SOURCES = 250
"""Loopback addresses that clients come from: one has too few ports for so many connections."""
WARM = 5000
"""Inputs before memory and descriptors are looked at for the first time."""
ABRUPT = struct.pack("ii", 1, 0)


class Process:
    """One of this package's programs; it answers with lines of JSON."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        self.pid = self.process.pid

    def line(self) -> str:
        """Its next line. Raises TimeoutError where none comes, ConnectionError where it has ended."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise TimeoutError(f"process {self.pid} says nothing")
        line = self.process.stdout.readline().decode()
        if not line:
            raise ConnectionError(f"process {self.pid} has ended with {self.process.wait()}")
        return line

    def asked(self) -> dict[str, Any]:
        """What it answers to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.line())
        return found

    @property
    def memory(self) -> float:
        """Resident, in MB."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    @property
    def descriptors(self) -> int:
        """How many are open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def end(self) -> int:
        """Have it end; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


async def at_server(ports: dict[str, int], inputs: int, random: Random, tally: Counter[str]) -> None:
    """Send so many over sockets, and count in ``tally`` how each connection ended."""
    left = iter(range(inputs))

    async def client() -> None:
        for number in left:
            door = DOORS[number % len(DOORS)]
            source = f"127.0.{1 + number % SOURCES}.1"
            data = malformed(random, door)
            cut = random.randrange(1, len(data) + 1) if data and random.random() < 0.3 else len(data)
            abrupt = random.random() < 0.2
            try:
                async with asyncio.timeout(PATIENCE):
                    tally[door] += 1
                    tally[await _session(source, ports[door], data, cut, abrupt=abrupt)] += 1
            except TimeoutError:
                tally["stuck"] += 1

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


async def _session(source: str, port: int, data: bytes, cut: int, *, abrupt: bool) -> str:
    """One connection: send, end the sending side, read to the end. An abrupt one resets instead."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
        await loop.sock_connect(sock, ("127.0.0.1", port))
        try:
            await loop.sock_sendall(sock, data[:cut])
            if cut < len(data):
                await asyncio.sleep(0)
                await loop.sock_sendall(sock, data[cut:])
            if abrupt:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPT)
                return "reset by the client"
            sock.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(sock, 1 << 16):
                pass
        except ConnectionError:
            return "reset by the server"
        except OSError:  # it has ended before the client was done
            return "ended"
        return "ended"


IP_BIND_ADDRESS_NO_PORT = 24


def in_process(inputs: int, random: Random) -> None:
    """Try so many against the wires; what breaks a check is raised, with the input that did."""
    checks = {"tcp": (frames.check,), "ws": (handshake.check, messages.check), "http": (requests.check,)}
    for number in range(inputs):
        # One in ten is a request: those go through a socket pair and an event loop each time.
        door = "http" if number % 10 == 9 else DOORS[number % 2]
        data = malformed(random, door)
        if door == "ws" and number % 4 == 1:
            data = data.removeprefix(messages.REQUEST)
        check = checks[door][number // 2 % len(checks[door])]
        given = as_input(random, data)
        try:
            check(given)
        except BaseException:
            print(f"{check.__module__}: this broke it: {given.hex()}", file=sys.stderr)
            raise


def run(arguments: argparse.Namespace) -> int:
    """All of it; prints what came of it."""
    random = Random(arguments.seed)
    over_sockets = min(arguments.sockets, arguments.inputs)
    faults = at_sockets(over_sockets, random) if over_sockets else []
    others = arguments.inputs - over_sockets
    begun = time.monotonic()
    in_process(others, random)
    print(f"through the wires: {others} inputs in {time.monotonic() - begun:.0f} s, each checked")
    print(f"faults: {', '.join(faults) or 'none'}")
    return int(bool(faults))


def at_sockets(inputs: int, random: Random) -> list[str]:
    """The server, the storm and the well-behaved client; what was wrong."""
    victim = Process("fuzz.victim")
    ports = json.loads(victim.line())
    asyncio.run(at_server(ports, min(WARM, inputs), random, Counter()))
    bystander = Process("fuzz.bystander", str(ports["tcp"]), str(ports["ws"]))
    assert bystander.line() == "ready\n"
    time.sleep(CALM)
    calm, before = bystander.asked(), measured(victim)
    tally: Counter[str] = Counter()
    begun = time.monotonic()
    asyncio.run(at_server(ports, inputs // 2, random, tally))
    halfway = settled(victim, before)
    asyncio.run(at_server(ports, inputs - inputs // 2, random, tally))
    seconds = time.monotonic() - begun
    storm, after = bystander.asked(), settled(victim, before)
    codes = {"the well-behaved client": bystander.end(), "the server": victim.end()}
    reasons = Counter(after.pop("closes")) - Counter(before.pop("closes"))
    print(f"over sockets: {inputs} inputs in {seconds:.0f} s, {inputs / seconds:.0f} a second")
    for title, counts in (("inputs", tally), ("why the server closed", reasons)):
        print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    for name, value in after.items():
        print(f"  {name}: {before[name]} before, {halfway[name]} halfway, {value} after")
    for title, beats in (("alone", calm), ("in the storm", storm)):
        print(
            f"  the well-behaved client {title}: " + ", ".join(f"{name} {n:.4g}" for name, n in beats.items())
        )
    faults = [f"{who} ended with {code}" for who, code in codes.items() if code]
    faults += [f"{name} kept" for name in KEPT if after[name] > before[name]]
    return faults + [f"{name}: {count}" for name, count in (("stuck", tally["stuck"]),) if count]


CALM = 3.0
"""Seconds in which the well-behaved client is alone."""
KEPT = ("connections", "rooms", "tasks", "descriptors", "errors logged")
"""Figures of the server that have to be afterwards what they were before."""


def measured(victim: Process) -> dict[str, Any]:
    """The server's own figures, and what the kernel says of it."""
    found = victim.asked()
    return {**found, "memory, MB": round(victim.memory, 1), "descriptors": victim.descriptors}


def settled(victim: Process, before: dict[str, Any]) -> dict[str, Any]:
    """The same when the last clients have gone, or a while later."""
    until = time.monotonic() + PATIENCE
    while True:
        found = measured(victim)
        if all(found[name] <= before[name] for name in KEPT) or time.monotonic() > until:
            return found
        time.sleep(0.2)


def main() -> int:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Send malformed inputs.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all (1,000,000)")
    parser.add_argument("--sockets", type=int, default=300_000, help="of them over sockets (300,000)")
    parser.add_argument("--seed", type=int, default=1)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
