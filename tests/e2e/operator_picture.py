"""The picture of the operator page in the documentation: ``python -m tests.e2e.operator_picture FILE``.

It takes five minutes, which is what the page shows: clients come and go, some never read, and there is a
flood of pushes in the middle.
"""

from __future__ import annotations

import json
import math
import random
import socket
import struct
import sys
from pathlib import Path

import anyio
from anyio.from_thread import start_blocking_portal

from goim_core import Frame, MessageHook, OpenAuth, Options, Server, Session, SessionHook
from tests.e2e.browser import HOW_TO_GET_ONE, browser, chromium

SECONDS = 310
FLOOD = (150, 185)
TEXT = 1000
ROOMS = {"match://final": 1.5} | {f"live://{1000 + number}": 1 / (number + 1) for number in range(24)}


class Sessions(SessionHook):
    """Takes a moment over each."""

    async def connected(self, session: Session) -> None:
        await anyio.sleep(random.random() * 0.003)


class Echo(MessageHook):
    """Gives what a client says to its room."""

    async def receive(self, session: Session, frame: Frame) -> None:
        await self.server.push_room(session.room_id, TEXT, frame.body)


def frame(op: int, body: bytes) -> bytes:
    return struct.pack(">ihhii", 16 + len(body), 16, 1, op, 1) + body


def any_room() -> str:
    return random.choices(list(ROOMS), list(ROOMS.values()))[0]


async def client(port: int, mid: int) -> None:
    reads = random.random() > 0.06
    token = {"mid": mid, "room_id": any_room() if reads else "match://final", "accepts": [TEXT]}
    with socket.socket() as sock, anyio.move_on_after(random.expovariate(1 / 70) + 5):
        if not reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        sock.send(frame(7, json.dumps(token).encode()))
        if not reads:
            await anyio.sleep_forever()
        await anyio.wait_readable(sock)
        while sock.recv(65536):
            if random.random() < 0.01:
                sock.send(frame(TEXT, b"hello"))
            await anyio.wait_readable(sock)


async def load(server: Server) -> None:
    begun = anyio.current_time()

    async def come() -> None:
        for mid in range(1, 100_000):
            group.start_soon(client, server.port("tcp"), mid)
            wave = 0.2 + 0.12 * math.sin((anyio.current_time() - begun) / 30)
            await anyio.sleep(random.expovariate(1) * wave)

    async with anyio.create_task_group() as group:
        group.start_soon(come)
        while (since := anyio.current_time() - begun) < SECONDS + 30:
            flood = FLOOD[0] < since < FLOOD[1]
            room = "match://final" if flood and random.random() < 0.3 else any_room()
            await server.push_room(room, TEXT, b"x" * (3000 if flood else random.randint(50, 900)))
            await anyio.sleep(0.012 if flood else 0.025 + 0.015 * math.sin(since / 17))
        group.cancel_scope.cancel()


def main() -> None:
    program = chromium()
    if program is None:
        sys.exit(HOW_TO_GET_ONE)
    server = Server(
        auth=OpenAuth(),
        sessions=Sessions(),
        messages=Echo(),
        tcp="127.0.0.1:0",
        http="127.0.0.1:0",
        name="comet-7",
        options=Options(drain=1, outbox_bytes=40_000, write_timeout=25),
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server):
        loading = portal.start_task_soon(load, server)
        with browser(program) as window:
            context = window.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{server.port('http')}/goim/operator/")
            page.wait_for_timeout(SECONDS * 1000)
            Path(sys.argv[1]).write_bytes(page.screenshot())
        loading.cancel()


if __name__ == "__main__":
    main()
