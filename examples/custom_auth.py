"""Users of one's own: a token that is checked, sessions that are followed, messages that are answered.

Two terminals show it:

    python -m examples.custom_auth
    python -m goim_core listen --token ann:violet
"""

import contextlib
import hmac
import sys

import anyio

import goim_core as goim

USERS = {"ann": (1, "violet"), "bob": (2, "orange")}
ROOM, NEWS = "team://all", 1000


class Users(goim.AuthHook):
    """Knows USERS: a token is ``name:password``."""

    def authenticate(self, request: goim.AuthRequest) -> goim.Session:
        name, _, password = request.token.decode(errors="replace").partition(":")
        mid, expected = USERS.get(name, (0, ""))
        if not mid or not hmac.compare_digest(password.encode(), expected.encode()):
            raise goim.Refused("wrong name or password")
        return goim.Session(mid=mid, room_id=ROOM, accepts=frozenset((NEWS, goim.Op.ERROR)), data=name)


class Arrivals(goim.SessionHook):
    """Tells the room who comes and who goes."""

    async def connected(self, session: goim.Session) -> None:
        await self.server.push_room(ROOM, NEWS, f"{session.data} is here".encode())

    async def disconnected(self, session: goim.Session, reason: goim.Disconnect) -> None:
        await self.server.push_room(ROOM, NEWS, f"{session.data} has left".encode())


class Echo(goim.MessageHook):
    def receive(self, session: goim.Session, frame: goim.Frame) -> bytes:
        if not frame.body:
            raise goim.Refused("say something", goim.ErrorCode.BAD_REQUEST)
        return f"{session.data}: ".encode() + frame.body


async def main(*tcp: str) -> None:
    server = goim.Server(auth=Users(), sessions=Arrivals(), messages=Echo(), tcp=tcp or "127.0.0.1:3101")
    async with server:
        print("ready", *server.addresses["tcp"], flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        anyio.run(main, *sys.argv[1:])
