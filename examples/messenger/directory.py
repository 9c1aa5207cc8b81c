"""Who there is: people and their passwords, rooms and their members, in one SQLite file."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

TABLES = """
CREATE TABLE IF NOT EXISTS person (mid INTEGER PRIMARY KEY, name TEXT UNIQUE, salt BLOB, password BLOB);
CREATE TABLE IF NOT EXISTS room (room TEXT PRIMARY KEY, name TEXT, owner INTEGER);
CREATE TABLE IF NOT EXISTS member (room TEXT, mid INTEGER, PRIMARY KEY (room, mid)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rooms_of ON member (mid);
"""


class Directory:
    """People and rooms. A disk may be slow and a password shall be: both wait in a worker thread."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.executescript(TABLES)
        self._one = anyio.Lock()

    def close(self) -> None:
        self._db.close()

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        async with self._one:  # a connection is for one thread at a time
            return await anyio.to_thread.run_sync(lambda: self._committed(work))

    def _committed(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._db as db:
            return work(db)

    # People.

    async def log_in(self, name: str, password: str) -> int | None:
        """The person with this name and password, None for a wrong one. A new name is a new person."""
        found = await self._run(
            lambda db: db.execute(
                "SELECT mid, salt, password FROM person WHERE name = ?", (name,)
            ).fetchone()
        )
        if found is None:
            salt = secrets.token_bytes(16)
            hashed = await anyio.to_thread.run_sync(_hashed, password, salt)
            return await self.add(name, salt, hashed)
        mid, salt, expected = found
        hashed = await anyio.to_thread.run_sync(_hashed, password, salt)
        return int(mid) if hmac.compare_digest(hashed, expected) else None

    async def add(self, name: str, salt: bytes = b"", hashed: bytes = b"") -> int | None:
        """A new person; None when somebody else was quicker with the name."""
        add = "INSERT OR IGNORE INTO person (name, salt, password) VALUES (?, ?, ?) RETURNING mid"
        row = await self._run(lambda db: db.execute(add, (name, salt, hashed)).fetchone())
        return None if row is None else int(row[0])

    async def find(self, name: str) -> int | None:
        """The person with this name."""
        row = await self._run(
            lambda db: db.execute("SELECT mid FROM person WHERE name = ?", (name,)).fetchone()
        )
        return None if row is None else int(row[0])

    async def acquainted(self, mid: int, other: int) -> bool:
        """Whether these two have a room in common."""
        query = "SELECT 1 FROM member a JOIN member b USING (room) WHERE a.mid = ? AND b.mid = ?"
        return await self._run(lambda db: db.execute(query, (mid, other)).fetchone()) is not None

    # Rooms.

    async def create(self, name: str, owner: int) -> str:
        """A new room with one member, its owner."""
        room = f"room://{secrets.token_hex(4)}"

        def create(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO room VALUES (?, ?, ?)", (room, name, owner))
            db.execute("INSERT INTO member VALUES (?, ?)", (room, owner))

        await self._run(create)
        return room

    async def rooms(self, mid: int) -> dict[str, str]:
        """The names of a person's rooms."""
        query = "SELECT room, name FROM room JOIN member USING (room) WHERE mid = ? ORDER BY name"
        return dict(await self._run(lambda db: db.execute(query, (mid,)).fetchall()))

    async def members(self, room: str) -> list[int]:
        rows = await self._run(
            lambda db: db.execute("SELECT mid FROM member WHERE room = ? ORDER BY mid", (room,)).fetchall()
        )
        return [mid for (mid,) in rows]

    async def owner(self, room: str) -> int | None:
        row = await self._run(
            lambda db: db.execute("SELECT owner FROM room WHERE room = ?", (room,)).fetchone()
        )
        return None if row is None else int(row[0])

    async def invite(self, room: str, mid: int) -> bool:
        """Make ``mid`` a member; False where there is no such person, or they are one already."""
        invite = "INSERT OR IGNORE INTO member SELECT ?, mid FROM person WHERE mid = ?"
        return await self._run(lambda db: db.execute(invite, (room, mid)).rowcount) == 1

    async def remove(self, room: str, mid: int) -> bool:
        """Whether ``mid`` was a member, and is none any more."""
        remove = "DELETE FROM member WHERE room = ? AND mid = ?"
        return await self._run(lambda db: db.execute(remove, (room, mid)).rowcount) == 1


def _hashed(password: str, salt: bytes) -> bytes:
    # The cost is the first that RFC 7914 section 2 would call interactive: about 50 ms.
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)
