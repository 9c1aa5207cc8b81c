"""PostgresStorage: inboxes in PostgreSQL, which several servers may share. Needs psycopg 3.

    goim_user      the number of the last message, and when the user was last seen: one small row for good
    goim_message   the messages
    goim_cursor    what each device acknowledged

Who writes to inboxes first locks the rows of these users in goim_user, in the order of their ids, and holds
them until the commit. So servers cannot wait for each other in a circle, numbers have no gap, and nobody
can read a number before the one below it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from goim_core.adapters.sql.inbox_change import After, Change, Cursor, Read, Work, fitting
from goim_core.adapters.sql.storage import ConnectionLost, SQLStorage, Unavailable
from goim_core.errors import ConfigurationError, StorageError
from goim_core.masked import masked
from goim_core.storage import DEVICES, Retention, StorePolicy

try:
    import psycopg
    from psycopg import errors
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise ImportError("PostgresStorage needs psycopg: pip install 'goim_core[postgres]'") from error

__all__ = ["PostgresStorage"]

VERSION = 1
LOCK = 0x676F696D
"""``goim``: the advisory lock of those who look for the tables and make them."""
SCHEMA = """
CREATE TABLE goim_user (mid bigint PRIMARY KEY, last bigint NOT NULL DEFAULT 0, seen float8);
CREATE TABLE goim_message (
    mid bigint NOT NULL, seq bigint NOT NULL, at float8 NOT NULL,
    op int NOT NULL, key bytea, body bytea NOT NULL, PRIMARY KEY (mid, seq)
);
CREATE INDEX goim_message_key ON goim_message (mid, key) WHERE key IS NOT NULL;
CREATE INDEX goim_message_at ON goim_message (at);
CREATE TABLE goim_cursor (
    mid bigint NOT NULL, device bytea NOT NULL, seq bigint NOT NULL, PRIMARY KEY (mid, device)
);
CREATE TABLE goim_version (version int NOT NULL);
"""
# The rows are made before they are locked, both in order, so that the locks of new rows keep the order too.
MAKE = "INSERT INTO goim_user (mid) SELECT unnest(%b::bigint[]) ON CONFLICT DO NOTHING"
LASTS = "SELECT mid, last FROM goim_user WHERE mid = ANY(%b::bigint[]) ORDER BY mid FOR UPDATE"
FIRSTS = (
    "SELECT m.mid, m.key, max(m.seq) FROM unnest(%b::bigint[], %b::bytea[]) AS wanted (mid, key) "
    "JOIN goim_message m USING (mid, key) WHERE m.at >= %b GROUP BY m.mid, m.key"
)
CURSORS = (
    "SELECT DISTINCT mid, device, seq FROM unnest(%b::bigint[], %b::bytea[]) AS wanted (mid, device) "
    "JOIN goim_cursor USING (mid, device)"
)
INSERT = (
    "INSERT INTO goim_message (mid, seq, at, op, key, body) SELECT * FROM "
    "unnest(%b::bigint[], %b::bigint[], %b::float8[], %b::int[], %b::bytea[], %b::bytea[])"
)
COUNT = (
    "UPDATE goim_user u SET last = n.last FROM unnest(%b::bigint[], %b::bigint[]) AS n (mid, last) "
    "WHERE u.mid = n.mid"
)
SEE = (
    "UPDATE goim_user u SET seen = n.seen FROM unnest(%b::bigint[], %b::float8[]) AS n (mid, seen) "
    "WHERE u.mid = n.mid"
)
MOVE = (
    "INSERT INTO goim_cursor (mid, device, seq) "
    "SELECT * FROM unnest(%b::bigint[], %b::bytea[], %b::bigint[]) "
    "ON CONFLICT (mid, device) DO UPDATE SET seq = excluded.seq"
)
FORGET = (
    "DELETE FROM goim_cursor WHERE mid = %(mid)b AND device NOT IN "
    "(SELECT device FROM goim_cursor WHERE mid = %(mid)b ORDER BY seq DESC LIMIT %(devices)b)"
)
TRIM = (
    "DELETE FROM goim_message m USING unnest(%b::bigint[], %b::bigint[]) AS n (mid, seq) "
    "WHERE m.mid = n.mid AND m.seq <= n.seq"
)
# Another server that sweeps at the same time takes other rows.
SWEEP = (
    "DELETE FROM goim_message WHERE (mid, seq) IN "
    "(SELECT mid, seq FROM goim_message WHERE at < %b ORDER BY at LIMIT %b FOR UPDATE SKIP LOCKED)"
)
# The sizes are summed up on the server, so that large bodies beyond the limit do not travel.
AFTER = (
    "SELECT seq, op, body, at FROM (SELECT seq, op, body, at, size, "
    "sum(size) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) AS total FROM ("
    "SELECT seq, op, body, at, octet_length(body) AS size FROM goim_message "
    "WHERE mid = %(mid)b AND at >= %(oldest)b AND seq > greatest("
    "%(seq)b, (SELECT last FROM goim_user WHERE mid = %(mid)b) - %(keep)b) ORDER BY seq LIMIT %(limit)b"
    ") page) counted WHERE total <= %(size)b OR total = size ORDER BY seq"
)
CURSOR = "SELECT seq FROM goim_cursor WHERE mid = %b AND device = %b"
SEEN = "SELECT mid, seen FROM goim_user WHERE mid = ANY(%b::bigint[]) AND seen IS NOT NULL"

PARAMETERS = {
    "application_name": "goim_core",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""Of a connection, where the dsn does not say otherwise: a server that is silent is given up in seconds."""
SETTINGS = """
SET lock_timeout = '10s';
SET idle_in_transaction_session_timeout = '10s';
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
"""
"""A server process that is frozen while it holds locks loses them; a commit waits for the disk."""
SWEEP_ROWS = 1000
INSERT_ROWS = 1000
INSERT_BYTES = 1 << 23
"""A statement is in memory several times over, so a large push is inserted in parts."""

BROKEN = (
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.IdleInTransactionSessionTimeout,
)
UNAVAILABLE = (
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.ReadOnlySqlTransaction,
    errors.InsufficientPrivilege,
    errors.UndefinedTable,
)

Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresStorage(SQLStorage):
    """Inboxes in the database that ``dsn`` names (https://www.postgresql.org/docs/current/libpq-connect.html).

    ``keep`` messages a user are kept, each for ``keep_for`` seconds, and cursors of ``devices`` devices. Two
    connections; a broken one is made anew when it is needed. The tables are made at the start, in the
    first schema of the search path.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        dsn: str,
        keep: int = 10_000,
        keep_for: float = 30 * 86_400,
        policy: StorePolicy = StorePolicy.ALL,
        devices: int = DEVICES,
    ) -> None:
        if not isinstance(dsn, str) or not dsn:
            raise ConfigurationError(f"dsn: expected text, got {dsn!r:.80}")
        try:
            self._parameters: dict[str, Any] = {**PARAMETERS, **conninfo_to_dict(dsn)}
        except psycopg.ProgrammingError:
            # Neither shown nor chained: there may be a password in it.
            raise ConfigurationError("dsn: expected a connection string or URI of PostgreSQL") from None
        if "@" in str(self._parameters.get("host", "")):  # it would be shown where it cannot be found
            raise ConfigurationError("dsn: expected %40 for an @ in a name or password")
        super().__init__(Retention(keep, keep_for, policy, devices))
        self._writer: Connection | None = None
        self._reader: Connection | None = None

    def _open(self) -> None:
        self._writer = self._connect()
        try:
            self._prepare(self._writer)
            self._reader = self._connect()
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()

    def _break(self) -> None:
        # A server that is frozen keeps its connections: its machine answers for it.
        for connection in (self._reader, self._writer):
            if connection is not None and not connection.closed:
                sock = socket.socket(fileno=connection.fileno())
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.detach()  # it is libpq's to close

    def _connect(self) -> Connection:
        try:
            connection = psycopg.connect("", autocommit=True, **self._parameters)
        except psycopg.Error as error:
            raise Unavailable(f"cannot connect to PostgreSQL: {_first_line(error)}") from error
        with self._faults(connection):
            connection.execute(SETTINGS)
        return connection

    def _prepare(self, connection: Connection) -> None:
        """Make the tables where there are none, one server at a time; refuse those of another version."""
        with self._faults(connection), connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            if connection.execute("SELECT to_regclass('goim_version')").fetchone() == (None,):
                connection.execute(SCHEMA)
                connection.execute("INSERT INTO goim_version VALUES (%s)", (VERSION,))
            version = connection.execute("SELECT version FROM goim_version").fetchone()
        if version != (VERSION,):
            found = version[0] if version else "unknown"
            raise StorageError(f"the tables in PostgreSQL are version {found}, expected {VERSION}")

    def _commit(self, works: Sequence[Work]) -> None:
        if self._writer is None or self._writer.closed:
            self._writer = self._connect()
        connection = self._writer
        change = Change(works, self._retention)
        with self._faults(connection):
            connection.execute("BEGIN")
            try:
                self._carry_out(connection, change)
            except BaseException:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
        with self._faults(connection, committing=True):
            connection.execute("COMMIT")

    def _carry_out(self, connection: Connection, change: Change) -> None:
        made = sorted({*change.receivers, *change.seen})
        if made:
            connection.execute(MAKE, (made,))
        lasts: dict[int, int] = dict(connection.execute(LASTS, (change.mids,)).fetchall())
        change.decide(lasts, *self._current(connection, change))
        for part in _parts(change.messages):
            connection.execute(INSERT, _columns(part))
        for statement, rows in (
            (COUNT, list(change.lasts.items())),
            (SEE, list(change.seen.items())),
            (MOVE, [(mid, device, seq) for (mid, device), seq in change.cursors.items()]),
            (TRIM, change.surplus),
        ):
            if rows:
                connection.execute(statement, _columns(rows))
        for mid in change.crowded:
            connection.execute(FORGET, {"mid": mid, "devices": self._retention.devices})
        if self._sweep_due(change.oldest):
            swept = connection.execute(SWEEP, (change.oldest, SWEEP_ROWS)).rowcount
            self._swept_until(change.oldest, more=swept == SWEEP_ROWS)

    def _current(
        self, connection: Connection, change: Change
    ) -> tuple[dict[tuple[int, bytes], int], dict[tuple[int, bytes], int]]:
        """The keys and cursors that :meth:`Change.decide` wants to know."""
        firsts, cursors = [], []
        if change.keys:
            firsts = connection.execute(
                FIRSTS, (*_columns(change.keys), change.oldest), binary=True
            ).fetchall()
        if change.devices:
            cursors = connection.execute(CURSORS, _columns(change.devices), binary=True).fetchall()
        return (
            {(mid, key): seq for mid, key, seq in firsts},
            {(mid, device): seq for mid, device, seq in cursors},
        )

    def _answer(self, read: Read) -> None:
        try:
            self._fill_in(read)
        except ConnectionLost:
            self._fill_in(read)

    def _fill_in(self, read: Read) -> None:
        if self._reader is None or self._reader.closed:
            self._reader = self._connect()
        connection = self._reader
        with self._faults(connection):
            if isinstance(read, After):
                rows = connection.execute(AFTER, self._page(read), binary=True).fetchall()
                read.found = list(fitting(rows, read.size))
            elif isinstance(read, Cursor):
                row = connection.execute(CURSOR, (read.mid, read.device)).fetchone()
                read.found = row[0] if row else 0
            elif read.mids:
                read.found = dict(connection.execute(SEEN, (list(read.mids),)).fetchall())

    def _page(self, after: After) -> dict[str, Any]:
        return {
            "mid": after.mid,
            "seq": after.seq,
            "oldest": after.oldest,
            "keep": self._retention.keep,
            "limit": after.limit,
            "size": after.size,
        }

    @contextmanager
    def _faults(self, connection: Connection, *, committing: bool = False) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            if connection.closed or isinstance(error, BROKEN):
                connection.close()
                reason = f"the connection to PostgreSQL broke: {_first_line(error)}"
                raise ConnectionLost(reason, committing=committing) from error
            kind = Unavailable if isinstance(error, UNAVAILABLE) else StorageError
            raise kind(f"PostgreSQL: {_first_line(error)}") from error


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _parts(messages: Sequence[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    part: list[tuple[Any, ...]] = []
    size = 0
    for message in messages:
        if part and (len(part) == INSERT_ROWS or size + len(message[-1]) > INSERT_BYTES):
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message[-1])
    if part:
        yield part


def _first_line(error: Exception) -> str:
    return masked(error).partition("\n")[0]
