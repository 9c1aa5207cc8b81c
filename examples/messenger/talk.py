"""The messenger in a terminal.

    python -m examples.messenger.talk Violet

``/to NAME`` and ``/room ROOM`` choose who is meant, ``/new NAME`` makes a room; then each line is a message.
``/invite NAME``, ``/kick NAME``, ``/rooms``, ``/unread`` and ``/quit`` are what they say.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import anyio
import anyio.to_thread

from examples.messenger.hooks import Message
from goim_core import CloseCode, Disconnect, Refused
from goim_core.client import Client, connect


class Login:
    """Gets a token for each connection, and for each that is about to run out."""

    def __init__(self, http: str, name: str, password: str, device: str) -> None:
        self._url = f"http://{http}/login"
        self._body = json.dumps({"name": name, "password": password, "device": device}).encode()

    async def __call__(self) -> str:
        return await anyio.to_thread.run_sync(self._ask)

    def _ask(self) -> str:
        try:
            with urllib.request.urlopen(self._url, self._body) as response:
                return str(json.load(response)["token"])
        except urllib.error.HTTPError as refused:
            with refused:
                raise Disconnect(json.load(refused)["error"], CloseCode.AUTH_REFUSED) from None


class Talk:
    """One person at a terminal."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._to: dict[str, Any] = {}

    async def show(self) -> None:
        """Print what comes. A message that was printed is acknowledged, and does not come again."""
        async for message in self._client:
            body = json.loads(message.body)
            if message.op in (Message.DIRECT, Message.ROOM):
                at = time.strftime("%H:%M", time.localtime(body["at"]))
                print(f"{at} {body.get('room', '')} {body['name']}: {body['text']}", flush=True)
            elif message.op == Message.NOTICE:
                print(f"* user {body['mid']} was {body['what']}: {body['room']}", flush=True)

    async def type(self, line: str) -> None:
        """Do what a line says."""
        command, _, rest = line.partition(" ")
        try:
            if command in _COMMANDS:
                await _COMMANDS[command](self, rest.strip())
            elif line:
                await self._say(line)
        except Refused as why:
            print(f"! {why.reason}", flush=True)

    async def _say(self, text: str) -> None:
        if not self._to:
            raise Refused("choose first: /to NAME or /room ROOM")
        op = Message.ROOM if "room" in self._to else Message.DIRECT
        await self._ask(op, **self._to, text=text, id=secrets.token_hex(8))

    async def _ask(self, op: Message, **body: Any) -> Any:
        while True:
            try:
                return json.loads((await self._client.request(op, json.dumps(body).encode())).body)
            except Disconnect as lost:
                # The same again, with the same id: it is there once.
                if lost.code != CloseCode.LOST:
                    raise

    async def _find(self, name: str) -> int:
        return int((await self._ask(Message.FIND, name=name))["mid"])

    async def talk_to(self, name: str) -> None:
        self._to = {"to": await self._find(name)}

    async def enter(self, room: str) -> None:
        self._to = {"room": room}

    async def create(self, name: str) -> None:
        self._to = await self._ask(Message.CREATE, name=name)
        print(f"* you made {self._to['room']}", flush=True)

    async def invite(self, name: str) -> None:
        await self._ask(Message.INVITE, room=self._to.get("room"), mid=await self._find(name))

    async def kick(self, name: str) -> None:
        await self._ask(Message.KICK, room=self._to.get("room"), mid=await self._find(name))

    async def rooms(self, _: str) -> None:
        for room, name in (await self._ask(Message.ROOMS)).items():
            print(f"* {room} {name}", flush=True)

    async def unread(self, _: str) -> None:
        print("*", await self._ask(Message.UNREAD), flush=True)


_COMMANDS = {
    "/to": Talk.talk_to,
    "/room": Talk.enter,
    "/new": Talk.create,
    "/invite": Talk.invite,
    "/kick": Talk.kick,
    "/rooms": Talk.rooms,
    "/unread": Talk.unread,
}


async def typed() -> list[str]:
    """The next lines from the keyboard; none at its end (Ctrl+D), nor after /quit."""
    await anyio.wait_readable(sys.stdin)  # a thread that reads could not be stopped by Ctrl+C
    lines = os.read(sys.stdin.fileno(), 4096).decode(errors="replace").splitlines()
    return [] if "/quit" in lines else lines


async def main() -> None:
    parser = argparse.ArgumentParser(description="The example messenger in a terminal.")
    parser.add_argument("name")
    parser.add_argument("--password", help="asked for unless given")
    parser.add_argument("--device", default="terminal")
    parser.add_argument("--tcp", default="127.0.0.1:3101")
    parser.add_argument("--http", default="127.0.0.1:3111")
    call = parser.parse_args()
    password = call.password or getpass.getpass()
    login = Login(call.http, call.name, password, call.device)
    try:
        async with connect(f"tcp://{call.tcp}", token=login) as client, anyio.create_task_group() as tasks:
            talk = Talk(client)
            tasks.start_soon(talk.show)
            print("ready", flush=True)
            while lines := await typed():
                for line in lines:
                    await talk.type(line)
            tasks.cancel_scope.cancel()
    except* Disconnect as ended:
        print(*(f"! {why}" for why in ended.exceptions))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        anyio.run(main)
