"""The smallest server: a hook that says who comes in, and a push that they all get.

Two terminals show it:

    python -m examples.hello
    python -m goim_core listen --token ann
"""

import contextlib
import sys

import anyio

from goim_core import AuthHook, AuthRequest, Server, Session


class Anyone(AuthHook):
    """Lets everyone into one room."""

    def authenticate(self, request: AuthRequest) -> Session:
        return Session(mid=1, room_id="live://hello")


async def main(*tcp: str) -> None:
    async with Server(auth=Anyone(), tcp=tcp or "127.0.0.1:3101") as server:
        print("ready", *server.addresses["tcp"], flush=True)
        while True:
            await server.push_room("live://hello", 1000, b"hello")
            await anyio.sleep(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        anyio.run(main, *sys.argv[1:])
