"""A process of clients: they come and go, storm, are slow, and tell what they saw when they are asked."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.soak.client import LOUD, Client, Tally
from benchmarks.soak.ledger import Visit

__all__ = ["Plan", "Seen", "live_clients"]

AT_ONCE = 200
"""How many connections one process makes at a time, but in a storm."""
BEAT = 60.0
"""Seconds between the heartbeats of a client."""
MOST = 1000
"""How often one tries to connect."""
AWAY = 20.0
"""Who leaves comes back after so many seconds at most."""
NEVER_STAYS = 45.0
"""A client that never reads is gone after about so many seconds, if the server did not close it before."""
SMALL = 4096
"""The receive buffer of slow clients, in bytes."""


@dataclass(frozen=True)
class Plan:
    """What one process of clients is to be."""

    ports: list[tuple[int, int]]
    """Of each node, TCP and WebSocket."""
    mids: range
    rooms: int
    slow: int
    """How many are slow, half of them never read."""
    churn: float
    """How many leave a second."""


@dataclass
class Seen:
    """What a process of clients saw since it was last asked."""

    live: int
    tally: Tally
    visits: list[Visit]
    """Of those that are connected now."""
    inboxes: list[tuple[int, int, int, float]]
    """Of each user: who, up to which message, how many were passed over, connected since (0: is not)."""


class Crowd:
    """The clients of one process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.gate = asyncio.Semaphore(AT_ONCE)
        self.leaving = self.calm = False
        self.tasks: set[asyncio.Task[None]] = set()
        self.clients = [self._client(at, mid) for at, mid in enumerate(plan.mids)]

    def _client(self, at: int, mid: int) -> Client:
        slow = at < self.plan.slow
        room = LOUD if at < 2 * self.plan.slow else 1 + mid % self.plan.rooms
        pace = ("slow", "never")[at % 2] if slow else ""
        client = Client(self.tally, mid, room, ws=mid // 2 % 2 == 1, pace=pace)
        client.ended = self._ended
        return client

    def start(self, client: Client, delay: float = 0, storm: bool = False) -> None:
        """Connect this client in the background."""
        task = asyncio.create_task(self._connect(client, delay, storm))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _ended(self, client: Client) -> None:
        if self.leaving:
            return
        delay = random.uniform(0.1, 3) if client.next_delay is None else client.next_delay
        self.start(client, max(0.0, delay), storm=delay < 0)

    async def _connect(self, client: Client, delay: float, storm: bool) -> None:
        await asyncio.sleep(delay)
        at, client.avoid = (client.mid + client.avoid) % len(self.plan.ports), False
        for attempt in range(MOST):
            if self.leaving:
                return
            if storm and not attempt:
                done = await self._try(client, at)
            else:
                async with self.gate:
                    done = await self._try(client, at)
            if done:
                return
            self.tally.counts["attempts that failed"] += 1
            at = (at + 1) % len(self.plan.ports)
            await asyncio.sleep(random.uniform(0.1, min(5.0, 0.5 * 2**attempt)))

    async def _try(self, client: Client, at: int) -> bool:
        loop = asyncio.get_running_loop()
        came = client.came = loop.create_future()
        sock = socket.socket()
        sock.setblocking(False)
        if client.pace:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        try:
            async with asyncio.timeout(20):
                await loop.sock_connect(sock, ("127.0.0.1", self.plan.ports[at][client.ws]))
                await loop.create_connection(lambda: client, sock=sock)
                await came
        except OSError as error:  # TimeoutError is one
            self.tally.counts["not let in within 20 s"] += isinstance(error, TimeoutError)
            if client.connected:
                client.close(0, reset=True)
            else:
                sock.close()
            return False
        finally:
            if not came.cancel() and not came.cancelled():
                came.exception()  # it was seen
        if client.pace == "never":
            loop.call_later(random.uniform(0.5, 1.5) * NEVER_STAYS, client.end, client.connection, 1.0)
        return True

    # What happens to them.

    async def churn(self) -> None:
        """Some leave all the time, every other one by a reset."""
        clients = [client for client in self.clients if not client.pace]
        while not self.leaving:
            await asyncio.sleep(1 / self.plan.churn)
            client = random.choice(clients)
            if client.since and not self.calm:
                client.close(random.uniform(0, AWAY), reset=random.random() < 0.5)

    async def beats(self) -> None:
        """Heartbeats, evenly spread."""
        turn = deque(self.clients)
        step = max(1, len(turn) // 600)
        while not self.leaving:
            await asyncio.sleep(BEAT * step / len(turn))
            for _ in range(step):
                turn[0].beat()
                turn.rotate(-1)

    def storm(self, share: int) -> None:
        """One of so many is cut off, and comes back at once."""
        for client in random.sample(self.clients, len(self.clients) // share):
            if client.since:
                client.close(-1, reset=True)

    def settle(self) -> None:
        """Nobody leaves any more, and the slow ones read."""
        self.calm = True
        for client in self.clients:
            if client.pace:
                client.pace, client.room = "", -1
                client.close(0, reset=True)

    def leave(self) -> None:
        """All go."""
        self.leaving = True
        for client in self.clients:
            client.close(0)

    def seen(self) -> Seen:
        """What to tell; the tally begins anew."""
        now = time.monotonic()
        told = Tally(self.tally.counts.copy(), self.tally.room_latency.copy(), self.tally.user_latency.copy())
        told.visits, self.tally.visits = self.tally.visits, []
        for counter in (self.tally.counts, self.tally.room_latency, self.tally.user_latency):
            counter.clear()
        live = [client for client in self.clients if client.since]
        inboxes = [(c.mid, c.inbox.high, c.inbox.lost, c.since if not c.pace else 0.0) for c in self.clients]
        return Seen(len(live), told, [client.visit(now) for client in live], inboxes)


async def _live(plan: Plan, pipe: Connection) -> None:
    crowd = Crowd(plan)
    for client in crowd.clients:
        crowd.start(client)
    background = [asyncio.create_task(each()) for each in (crowd.churn, crowd.beats)]
    said: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hear() -> None:
        try:
            said.put_nowait(pipe.recv())
        except EOFError:  # whoever started this is gone
            loop.remove_reader(pipe.fileno())
            said.put_nowait("end")

    loop.add_reader(pipe.fileno(), hear)
    while True:
        match await said.get():
            case "seen":
                pipe.send(crowd.seen())
            case "storm":
                crowd.storm(3)
            case "hard storm":
                crowd.storm(2)
            case "settle":
                crowd.settle()
            case "leave":
                crowd.leave()
            case "end":
                break
    for task in [*background, *crowd.tasks]:
        task.cancel()


def live_clients(plan: Plan, pipe: Connection) -> None:
    """The process: it obeys the words that come through ``pipe``."""
    asyncio.run(_live(plan, pipe))
