"""Inboxes in an SQL database: what SQLiteStorage and PostgresStorage have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from math import inf

import anyio
import anyio.to_thread

from goim_core.adapters.sql.group_commit import GroupCommit
from goim_core.adapters.sql.inbox_change import Acknowledge, After, Append, Cursor, LastSeen, Read, Saw, Work
from goim_core.errors import StorageError
from goim_core.session import check_mid
from goim_core.storage import Retention, StorageHook, Stored, StorePolicy, check_append

__all__ = ["ConnectionLost", "SQLStorage", "Unavailable"]

GROUP = 1000
"""How many appends, acknowledgements and the like may share a transaction."""
INT64_MAX = 2**63 - 1
SWEEP_SECONDS = 60
READS = 100
"""How many questions one turn of the reading thread answers."""


class Unavailable(StorageError):
    """Nothing can be done with the database at the moment, whatever it is."""


class ConnectionLost(Unavailable):
    """The database broke the connection off; ``committing``: while it was told to commit."""

    def __init__(self, reason: str, *, committing: bool = False) -> None:
        super().__init__(reason)
        self.committing = committing


class SQLStorage(StorageHook):
    """Writes in groups with one connection, reads in groups with another, each in a worker thread.

    A subclass says how: ``_open``, ``_close``, ``_commit`` and ``_answer``, all called in worker
    threads. They raise :class:`~goim_core.errors.StorageError`, or one of the two kinds above.
    """

    closing_seconds = 5.0
    """How long the end waits for a database that is at work; then its connections are broken off."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self.policy: StorePolicy = retention.policy
        self._writes: GroupCommit[Work] = GroupCommit(self._write, GROUP)
        self._reads: GroupCommit[Read] = GroupCommit(self._read, READS)
        self._started = False
        self._swept = inf

    @abstractmethod
    def _open(self) -> None:
        """Open both connections, and make the tables where there are none."""

    @abstractmethod
    def _close(self) -> None:
        """Close both connections."""

    def _break(self) -> None:
        """End what the worker threads wait for, where a database may be silent for good."""

    @abstractmethod
    def _commit(self, works: Sequence[Work]) -> None:
        """Do all of ``works`` in one transaction, or nothing of it."""

    @abstractmethod
    def _answer(self, read: Read) -> None:
        """Fill in ``read.found``."""

    async def start(self) -> None:
        """See :meth:`StorageHook.start`. Starting twice, or again after :meth:`aclose`, is no harm."""
        if not self._started:
            await anyio.to_thread.run_sync(self._open)
            self._started = True

    async def aclose(self) -> None:
        """See :meth:`StorageHook.aclose`. What was begun is finished first, also when cancelled."""
        if self._started:
            self._started = False
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(self.closing_seconds) as scope:
                    await self._idle()
                if scope.cancelled_caught:
                    self._break()
                    await self._idle()
                await anyio.to_thread.run_sync(self._close)

    async def _idle(self) -> None:
        await self._writes.idle()
        await self._reads.idle()

    async def append(
        self, mids: Sequence[int], op: int, body: bytes, *, idempotency_key: str = ""
    ) -> dict[int, int]:
        """See :meth:`StorageHook.append`."""
        users = check_append(mids, op, body, idempotency_key)
        append = Append(users, op, body, _bytes(idempotency_key), self.now())
        await self._do(append)
        return append.numbers

    async def acknowledge(self, mid: int, device: str, seq: int) -> int:
        """See :meth:`StorageHook.acknowledge`."""
        if type(seq) is not int:
            raise ValueError(f"seq: expected a number, got {seq!r:.80}")
        ack = Acknowledge(check_mid(mid), _bytes(device), seq, self.now())
        await self._do(ack)
        return ack.cursor

    async def saw(self, mid: int, at: float) -> None:
        """See :meth:`StorageHook.saw`."""
        await self._do(Saw(check_mid(mid), float(at), self.now()))

    async def after(self, mid: int, seq: int, limit: int, size: int) -> Sequence[Stored]:
        """See :meth:`StorageHook.after`."""
        # More than 64 bits are more than any inbox has.
        seq = max(0, min(seq, INT64_MAX))
        limit = max(0, min(limit, INT64_MAX))
        after = After(check_mid(mid), seq, limit, size, self.now() - self._retention.keep_for)
        await self._ask(after)
        return after.found

    async def cursor(self, mid: int, device: str) -> int:
        """See :meth:`StorageHook.cursor`."""
        cursor = Cursor(check_mid(mid), _bytes(device))
        await self._ask(cursor)
        return cursor.found

    async def last_seen(self, mids: Iterable[int]) -> dict[int, float]:
        """See :meth:`StorageHook.last_seen`."""
        seen = LastSeen(tuple(map(check_mid, mids)))
        await self._ask(seen)
        return seen.found

    async def _do(self, work: Work) -> None:
        self._check_started()
        await self._writes.do(work)
        if work.error is not None:
            # Many may share one error, and a raised one is the raiser's.
            raise StorageError(str(work.error)) from work.error

    async def _ask(self, read: Read) -> None:
        self._check_started()
        await self._reads.do(read)
        if read.error is not None:
            raise StorageError(str(read.error)) from read.error

    def _check_started(self) -> None:
        if not self._started:
            raise StorageError(f"{type(self).__name__} is not open: it has not been started, or was closed")

    def _sweep_due(self, oldest: float) -> bool:
        """Whether it is time to remove some of what is older than ``oldest``, of all users.

        Those who get nothing more have no other way to lose what is too old.
        """
        return abs(oldest - self._swept) >= SWEEP_SECONDS  # not where nothing is ever too old

    def _swept_until(self, oldest: float, *, more: bool) -> None:
        """It has been done; at once again where there is ``more``."""
        if not more:
            self._swept = oldest

    def _write(self, works: Sequence[Work], tries: int = 2) -> None:
        """Commit ``works`` together; what cannot be committed fails alone."""
        try:
            self._commit(works)
        except ConnectionLost as lost:
            self._write_again(works, lost, tries - 1)
        except Unavailable as error:
            _fail(works, error)
        except StorageError as error:
            if len(works) == 1:
                _fail(works, error)
                return
            half = len(works) // 2
            self._write(works[:half])
            self._write(works[half:])

    def _write_again(self, works: Sequence[Work], lost: ConnectionLost, tries: int) -> None:
        """Once more with a new connection, but for what would be stored twice if it has been stored."""
        again: list[Work] = []
        for work in works:
            if lost.committing and not work.repeatable:
                work.error = StorageError(f"{lost}: the message may have been stored, or not")
            elif tries:
                again.append(work)
            else:
                work.error = lost
        if again:
            self._write(again, tries)

    def _read(self, reads: Sequence[Read]) -> None:
        for index, read in enumerate(reads):
            try:
                self._answer(read)
            except Unavailable as error:
                _fail(reads[index:], error)
                return
            except StorageError as error:
                read.error = error


def _fail(works: Iterable[Work | Read], error: StorageError) -> None:
    for work in works:
        work.error = error


def _bytes(text: str) -> bytes:
    # Names come from clients' JSON, which can spell half a surrogate pair.
    return text.encode("utf-8", "surrogatepass")
