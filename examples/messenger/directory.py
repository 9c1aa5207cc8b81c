"""Who there is: people and their passwords, rooms and their members, in one SQLite file."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

TABLES = """
CREATE TABLE IF NOT EXISTS person (mid INTEGER PRIMARY KEY, name TEXT UNIQUE, salt BLOB, password BLOB);
CREATE TABLE IF NOT EXISTS room (room TEXT PRIMARY KEY, name TEXT, owner INTEGER);
CREATE TABLE IF NOT EXISTS member (room TEXT, mid INTEGER, PRIMARY KEY (room, mid)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rooms_of ON member (mid);
"""


class Directory:
    """People and rooms. A disk may be slow, and a password shall be: both have a worker thread wait."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.executescript(TABLES)
        self._one = anyio.Lock()

    def close(self) -> None:
        self._db.close()

    async def _run(self, statement: str, *values: object) -> tuple[list[Any], int]:
        """The rows that a statement finds, and how many it changes."""

        def run() -> tuple[list[Any], int]:
            with self._db as db:
                done = db.execute(statement, values)
                return done.fetchall(), done.rowcount

        async with self._one:  # a connection is for one thread at a time
            return await anyio.to_thread.run_sync(run)

    async def _rows(self, query: str, *values: object) -> list[Any]:
        return (await self._run(query, *values))[0]

    async def _value(self, query: str, *values: object) -> Any:
        rows = await self._rows(query, *values)
        return rows[0][0] if rows else None

    # People.

    async def log_in(self, name: str, password: str) -> int | None:
        """The person with this name and password, None for a wrong one. A new name is a new person."""
        found = await self._rows("SELECT mid, salt, password FROM person WHERE name = ?", name)
        mid, salt, expected = found[0] if found else (None, secrets.token_bytes(16), b"")
        hashed = await anyio.to_thread.run_sync(_hashed, password, salt)
        if mid is None:
            return await self.add(name, salt, hashed)
        return int(mid) if hmac.compare_digest(hashed, expected) else None

    async def add(self, name: str, salt: bytes = b"", hashed: bytes = b"") -> int | None:
        """A new person; None when somebody else was quicker with the name."""
        add = "INSERT OR IGNORE INTO person (name, salt, password) VALUES (?, ?, ?)"
        _, changed = await self._run(add, name, salt, hashed)
        return await self.find(name) if changed else None

    async def find(self, name: str) -> int | None:
        """The person with this name."""
        found: int | None = await self._value("SELECT mid FROM person WHERE name = ?", name)
        return found

    async def knows(self, mid: int) -> bool:
        """Whether there is a person ``mid``."""
        return await self._value("SELECT 1 FROM person WHERE mid = ?", mid) is not None

    async def acquainted(self, mid: int, other: int) -> bool:
        """Whether these two have a room in common."""
        query = "SELECT 1 FROM member a JOIN member b USING (room) WHERE a.mid = ? AND b.mid = ?"
        return await self._value(query, mid, other) is not None

    # Rooms.

    async def create(self, name: str, owner: int) -> str:
        """A new room with one member, its owner."""
        room = f"room://{secrets.token_hex(4)}"
        await self._run("INSERT INTO room VALUES (?, ?, ?)", room, name, owner)
        await self.invite(room, owner)
        return room

    async def rooms(self, mid: int) -> dict[str, str]:
        """A person's rooms, and their names."""
        query = "SELECT room, name FROM room JOIN member USING (room) WHERE mid = ? ORDER BY name"
        return dict(await self._rows(query, mid))

    async def members(self, room: str) -> list[int]:
        """The members of a room; nobody is one of a room that there is not."""
        return [mid for (mid,) in await self._rows("SELECT mid FROM member WHERE room = ?", room)]

    async def owner(self, room: str) -> int | None:
        """Who made the room."""
        found: int | None = await self._value("SELECT owner FROM room WHERE room = ?", room)
        return found

    async def invite(self, room: str, mid: int) -> bool:
        """Make ``mid`` a member; False where there is no such person, or they are one already."""
        invite = "INSERT OR IGNORE INTO member SELECT ?, mid FROM person WHERE mid = ?"
        return (await self._run(invite, room, mid))[1] == 1

    async def remove(self, room: str, mid: int) -> bool:
        """Whether ``mid`` was a member, and is none any more."""
        return (await self._run("DELETE FROM member WHERE room = ? AND mid = ?", room, mid))[1] == 1


def _hashed(password: str, salt: bytes) -> bytes:
    # 16 MB and some 50 ms: nobody notices who logs in, everybody who tries many passwords.
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)
