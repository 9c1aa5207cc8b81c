"""The server inside an asyncio program that has work of its own: a queue, a task, a shutdown.

Two terminals show it:

    python -m examples.inside_asyncio
    python -m goim_core listen --token any
"""

import asyncio
import contextlib
import sys

from goim_core import AuthHook, AuthRequest, Server, Session

ROOM, PRICE = "market://gold", 1000


class Anyone(AuthHook):
    """Lets everyone into the room of the prices."""

    def authenticate(self, request: AuthRequest) -> Session:
        return Session(mid=1, room_id=ROOM)


async def watch(prices: asyncio.Queue[int]) -> None:
    """Stands for the part of the program that was there before."""
    price = 2000
    while True:
        await prices.put(price)
        await asyncio.sleep(0.5)
        price += 1


async def publish(prices: asyncio.Queue[int], server: Server) -> None:
    """What is new: each price goes to all who are connected."""
    while True:
        await server.push_room(ROOM, PRICE, str(await prices.get()).encode())


async def main(*tcp: str) -> None:
    prices: asyncio.Queue[int] = asyncio.Queue(maxsize=10)
    async with Server(auth=Anyone(), tcp=tcp or "127.0.0.1:3101") as server, asyncio.TaskGroup() as tasks:
        print("ready", *server.addresses["tcp"], flush=True)
        tasks.create_task(watch(prices))
        tasks.create_task(publish(prices, server))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
