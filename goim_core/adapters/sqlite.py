"""SQLiteStorage: inboxes in one file, with the standard library's sqlite3.

    user      the number of the last message, and when the user was last seen: one small row for good
    message   in the order of storing, so that what is too old is at one end
    cursor    what each device acknowledged

Commits are durable: a write-ahead log, synced at each commit (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import lru_cache
from typing import Any

from goim_core.adapters.sql.inbox_change import After, Change, Cursor, Read, Work, fitting
from goim_core.adapters.sql.storage import SQLStorage, Unavailable
from goim_core.errors import ConfigurationError, StorageError
from goim_core.storage import DEVICES, Retention, Stored, StorePolicy

__all__ = ["SQLiteStorage"]

APPLICATION = 0x676F696D
"""``goim``, in the file's header."""
VERSION = 1
SCHEMA = f"""
CREATE TABLE user (mid INTEGER PRIMARY KEY, last INTEGER NOT NULL DEFAULT 0, seen REAL);
CREATE TABLE message (
    id INTEGER PRIMARY KEY, mid INTEGER NOT NULL, seq INTEGER NOT NULL,
    at REAL NOT NULL, op INTEGER NOT NULL, key BLOB, body BLOB NOT NULL
);
CREATE UNIQUE INDEX message_number ON message (mid, seq);
CREATE INDEX message_key ON message (mid, key) WHERE key IS NOT NULL;
CREATE TABLE cursor (
    mid INTEGER NOT NULL, device BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (mid, device)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""
LASTS = (
    "SELECT json_group_array(json_array(mid, last)) FROM json_each(?) "
    "CROSS JOIN user ON mid = json_each.value"
)
FIRSTS = (
    "SELECT json_group_array(json_array(column3, seq)) FROM (VALUES {rows}) "
    "CROSS JOIN message ON mid = column1 AND key = column2 AND at >= column4"
)
CURSORS = (
    "SELECT json_group_array(json_array(column3, seq)) FROM (VALUES {rows}) "
    "CROSS JOIN cursor ON mid = column1 AND device = column2"
)
INSERT = "INSERT INTO message (mid, seq, at, op, key, body) VALUES {rows}"
COUNT = "INSERT INTO user (mid, last) VALUES {rows} ON CONFLICT (mid) DO UPDATE SET last = excluded.last"
SEE = "INSERT INTO user (mid, seen) VALUES {rows} ON CONFLICT (mid) DO UPDATE SET seen = excluded.seen"
MOVE = (
    "INSERT INTO cursor (mid, device, seq) VALUES {rows} "
    "ON CONFLICT (mid, device) DO UPDATE SET seq = excluded.seq"
)
FORGET = (
    "DELETE FROM cursor WHERE mid = ?1 AND device NOT IN "
    "(SELECT device FROM cursor WHERE mid = ?1 ORDER BY seq DESC LIMIT ?2)"
)
TRIM = "DELETE FROM message WHERE mid = ? AND seq <= ?"
SWEEP = "DELETE FROM message WHERE id IN (SELECT id FROM message ORDER BY id LIMIT ?) AND at < ?"
AFTER = (
    "SELECT seq, op, body, at FROM message WHERE mid = :mid AND at >= :oldest AND seq > max(:seq, "
    "coalesce((SELECT last FROM user WHERE mid = :mid), 0) - :keep) ORDER BY seq LIMIT :limit"
)
CURSOR = "SELECT seq FROM cursor WHERE mid = ? AND device = ?"
SEEN = "SELECT mid, seen FROM json_each(?) CROSS JOIN user ON mid = json_each.value WHERE seen IS NOT NULL"

ROWS = 128
"""Rows of one statement. Each step of a statement lets go of Python's lock and has to get it back from a
busy event loop, so one for each row would be slow; and older SQLites bind no more than 999 values."""
SWEEP_ROWS = 1000
WAL_BYTES = 1 << 26
"""What the write-ahead log is cut back to after it had to grow."""

UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "locked by another program",
    sqlite3.SQLITE_LOCKED: "locked by another program",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "no SQLite database",
}


class SQLiteStorage(SQLStorage):
    """Inboxes in the file ``path``: what was stored survives the process and the machine's power.

    ``keep`` messages a user are kept, each for ``keep_for`` seconds, and cursors of ``devices`` devices. The
    folder has to exist; SQLite puts two more files beside it. Several processes on one machine may share
    it; not on a network drive.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    lock_seconds = 5.0
    """How long another program may hold the database before it counts as locked."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        keep: int = 10_000,
        keep_for: float = 30 * 86_400,
        policy: StorePolicy = StorePolicy.ALL,
        devices: int = DEVICES,
    ) -> None:
        if not isinstance(path, str | os.PathLike) or os.fspath(path) in ("", ":memory:"):
            raise ConfigurationError(f"path: expected the name of a file, got {path!r:.80}")
        super().__init__(Retention(keep, keep_for, policy, devices))
        self._path = os.fspath(path)
        self._writer: sqlite3.Connection
        self._reader: sqlite3.Connection

    def _open(self) -> None:
        with self._faults("cannot open"), ExitStack() as undo:
            self._writer = self._connect(undo)
            self._prepare()
            if self._journal_mode() != "wal":
                raise StorageError(f"cannot open {self._path!r}: its file system has no write-ahead log")
            self._writer.execute("PRAGMA synchronous = FULL")
            # On macOS a plain sync leaves data in the drive's own memory.
            self._writer.execute("PRAGMA fullfsync = ON")
            self._writer.execute("PRAGMA checkpoint_fullfsync = ON")
            self._writer.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            self._reader = self._connect(undo)
            self._reader.execute("PRAGMA query_only = ON")
            undo.pop_all()

    def _connect(self, undo: ExitStack) -> sqlite3.Connection:
        # Worker threads take turns with a connection, so SQLite's own check of threads is in the way.
        connection = sqlite3.connect(
            self._path, timeout=self.lock_seconds, isolation_level=None, check_same_thread=False
        )
        undo.callback(connection.close)
        return connection

    def _journal_mode(self) -> str:
        """Switch to the write-ahead log; the mode it is in now."""
        until = time.monotonic() + self.lock_seconds
        while True:
            try:
                (mode,) = self._writer.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                # For this one SQLite does not wait by itself: several nodes may open a new file at once.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                    raise
                time.sleep(0.01)
            else:
                return str(mode)

    def _prepare(self) -> None:
        """Make the tables in a new file; refuse a file that is something else."""
        with self._transaction():
            (application,) = self._writer.execute("PRAGMA application_id").fetchone()
            (version,) = self._writer.execute("PRAGMA user_version").fetchone()
            (tables,) = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if (application, version, tables) == (0, 0, 0):
                for statement in SCHEMA.split(";"):
                    self._writer.execute(statement)
            elif application != APPLICATION:
                raise StorageError(f"cannot open {self._path!r}: it is the database of another program")
            elif version != VERSION:
                raise StorageError(
                    f"cannot open {self._path!r}: its tables are version {version}, expected {VERSION}"
                )

    def _close(self) -> None:
        with self._faults("cannot close"):
            self._reader.close()
            self._writer.close()

    def _commit(self, works: Sequence[Work]) -> None:
        change = Change(works, self._retention)
        with self._faults("cannot write to"), self._transaction():
            change.decide(*self._current(change))
            self._insert(INSERT, change.messages)
            self._insert(COUNT, list(change.lasts.items()))
            self._insert(SEE, list(change.seen.items()))
            self._insert(MOVE, [(mid, device, seq) for (mid, device), seq in change.cursors.items()])
            self._writer.executemany(FORGET, [(mid, self._retention.devices) for mid in change.crowded])
            self._writer.executemany(TRIM, change.surplus)
            if self._sweep_due(change.oldest):
                swept = self._writer.execute(SWEEP, (SWEEP_ROWS, change.oldest)).rowcount
                self._swept_until(change.oldest, more=swept == SWEEP_ROWS)

    def _current(
        self, change: Change
    ) -> tuple[dict[int, int], dict[tuple[int, bytes], int], dict[tuple[int, bytes], int]]:
        """What :meth:`Change.decide` wants to know."""
        lasts = dict(json.loads(self._writer.execute(LASTS, (json.dumps(change.mids),)).fetchone()[0]))
        keys = [(*key, index, change.oldest) for index, key in enumerate(change.keys)]
        devices = [(*device, index) for index, device in enumerate(change.devices)]
        return (
            lasts,
            {change.keys[index]: seq for index, seq in self._select(FIRSTS, keys)},
            {change.devices[index]: seq for index, seq in self._select(CURSORS, devices)},
        )

    def _select(self, template: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[list[int]]:
        for statement, values in _statements(template, rows):
            yield from json.loads(self._writer.execute(statement, values).fetchone()[0])

    def _insert(self, template: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for statement, values in _statements(template, rows):
            self._writer.execute(statement, values)

    def _answer(self, read: Read) -> None:
        with self._faults("cannot read from"):
            if isinstance(read, After):
                read.found = self._after(read)
            elif isinstance(read, Cursor):
                row = self._reader.execute(CURSOR, (read.mid, read.device)).fetchone()
                read.found = row[0] if row else 0
            else:
                read.found = dict(self._reader.execute(SEEN, (json.dumps(read.mids),)).fetchall())

    def _after(self, after: After) -> list[Stored]:
        rows = self._reader.execute(
            AFTER,
            {
                "mid": after.mid,
                "seq": after.seq,
                "limit": after.limit,
                "oldest": after.oldest,
                "keep": self._retention.keep,
            },
        )
        with closing(rows):
            return list(fitting(rows, after.size))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            # A full disk, for one, has SQLite roll back by itself.
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            raise

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # The low byte is the kind; what is above it says more (https://sqlite.org/rescode.html).
            what = UNAVAILABLE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            kind = StorageError if what is None else Unavailable
            raise kind(f"{doing} {self._path!r}: {what or error}") from error


def _statements(template: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, list[Any]]]:
    """``template`` for at most ROWS rows at a time, in few different sizes: each is prepared once."""
    begin = 0
    while begin < len(rows):
        count = min(ROWS, 1 << ((len(rows) - begin).bit_length() - 1))
        part = rows[begin : begin + count]
        begin += count
        yield _statement(template, count, len(part[0])), [value for row in part for value in row]


@lru_cache
def _statement(template: str, rows: int, width: int) -> str:
    row = f"({', '.join('?' * width)})"
    return template.format(rows=", ".join([row] * rows))
