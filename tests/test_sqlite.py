"""The storage in a SQLite file."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core.adapters.sql import storage as sql_storage
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.errors import ConfigurationError, StorageError
from goim_core.storage import StorageHook
from goim_core.testing.clock import ManualClock
from goim_core.testing.storage_contract import StorageContract
from tests.test_storage import ModelContract

pytestmark = pytest.mark.anyio

LETTER = b"Dear reader, " * 1000


@pytest.fixture
def path() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="goim-sqlite-")
    yield Path(folder) / "inbox.db"
    shutil.rmtree(folder)


@pytest.fixture
def letter(path: Path) -> Path:
    """A file that is something else."""
    path.write_bytes(LETTER)
    return path


@asynccontextmanager
async def started(path: Path, **limits: Any) -> AsyncIterator[SQLiteStorage]:
    storage = SQLiteStorage(path, **limits)
    await storage.start()
    try:
        yield storage
    finally:
        await storage.aclose()


class TestSQLiteStorage(StorageContract, ModelContract):
    """What every storage does."""

    @asynccontextmanager
    async def _opened(self, **limits: Any) -> AsyncIterator[StorageHook]:
        with tempfile.TemporaryDirectory(prefix="goim-sqlite-") as folder:
            async with started(Path(folder) / "inbox.db", **limits) as storage:
                yield storage

    def opened(self, **limits: Any) -> AbstractAsyncContextManager[StorageHook]:
        return self._opened(**limits)

    def reopened(self, storage: StorageHook) -> AbstractAsyncContextManager[StorageHook]:
        assert isinstance(storage, SQLiteStorage)
        return started(Path(storage._path))

    async def again(self, storage: StorageHook) -> None:
        await storage.aclose()
        await storage.start()


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize("path", ["", ":memory:", 7, None])
def test_a_path_that_is_none_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="path: expected the name of a file"):
        SQLiteStorage(path)


@pytest.mark.parametrize("limits", [{"keep": 0}, {"keep_for": -1}, {"policy": "some"}])
def test_an_argument_that_cannot_be_used_is_named(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(limits))):
        SQLiteStorage("inbox.db", **limits)


async def test_commits_are_durable(path: Path) -> None:
    async with started(path) as storage:
        assert storage._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert storage._writer.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_a_storage_that_is_not_started_says_so(path: Path) -> None:
    storage = SQLiteStorage(path)
    for _ in range(2):
        with pytest.raises(StorageError, match="not open"):
            await storage.append([7], 1000, b"")
        with pytest.raises(StorageError, match="not open"):
            await storage.after(7, 0, 1, 1)
        await storage.start()
        await storage.start()
        await storage.aclose()
        await storage.aclose()


async def test_closing_waits_for_what_was_begun(path: Path) -> None:
    storage = SQLiteStorage(path)
    await storage.start()
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(storage.append, [7], 1000, b"")
        await anyio.wait_all_tasks_blocked()
        await storage.aclose()
    assert rows(path, "SELECT last FROM user") == [(10,)]


class Stopped:
    """Holds a storage's worker thread up at the start of a transaction, and counts transactions."""

    def __init__(self, storage: Any) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self._commit = storage._commit
        storage._commit = self

    def __call__(self, works: Any) -> None:
        self.sizes.append(len(works))
        assert self.go.wait(20)
        self._commit(works)


async def busy(stopped: Stopped, groups: int = 1) -> None:
    """Return when the thread is in that transaction and the others have come to wait for it."""
    while len(stopped.sizes) < groups:
        await anyio.lowlevel.checkpoint()
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def test_what_waits_while_a_commit_runs_is_one_transaction(path: Path) -> None:
    async with started(path) as storage:
        stopped = Stopped(storage)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(storage.append, [7], 1000, b"")
            await busy(stopped)
            for _ in range(99):
                tasks.start_soon(storage.append, [7], 1000, b"")
            await busy(stopped)
            assert stopped.sizes == [1]
            stopped.go.set()
        assert stopped.sizes == [1, 99]
        assert len(await storage.after(7, 0, 1000, 1000)) == 100


async def test_a_group_is_bounded(path: Path) -> None:
    async with started(path) as storage:
        stopped = Stopped(storage)
        stopped.go.set()
        async with anyio.create_task_group() as tasks:
            for _ in range(2 * sql_storage.GROUP + 1):
                tasks.start_soon(storage.append, [7], 1000, b"")
        assert sorted(stopped.sizes) == [1, sql_storage.GROUP, sql_storage.GROUP]


async def test_one_that_fails_fails_alone(path: Path) -> None:
    async with started(path) as storage:
        # A body that is too large for SQLite, without the gigabyte.
        storage._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
        failed: list[int] = []

        async def push(number: int) -> None:
            try:
                await storage.append([7], 1000, b"x" * (20_000 if number == 5 else 1))
            except StorageError as error:
                assert "too big" in str(error)
                failed.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(push, number)
        assert failed == [5]
        assert [each.seq for each in await storage.after(7, 0, 100, 1000)] == list(range(1, 10))


async def test_followers_that_are_cancelled_while_they_wait_are_not_stored(path: Path) -> None:
    async with started(path) as storage:
        stopped = Stopped(storage)
        async with anyio.create_task_group() as others:
            others.start_soon(storage.append, [1], 1000, b"")
            await busy(stopped)
            others.start_soon(storage.append, [2], 1000, b"")
            await busy(stopped)
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(storage.append, [3], 1000, b"")
                await busy(stopped)
                tasks.cancel_scope.cancel()
            stopped.go.set()
        assert stopped.sizes == [1, 1]
        assert rows(path, "SELECT mid FROM message ORDER BY mid") == [(1,), (2,)]


async def test_followers_that_are_cancelled_too_late_are_stored(path: Path) -> None:
    async with started(path) as storage:
        stopped = Stopped(storage)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(storage.append, [1], 1000, b"")
            tasks.start_soon(storage.append, [1], 1000, b"")
            await busy(stopped)
            tasks.cancel_scope.cancel()
            stopped.go.set()
        assert rows(path, "SELECT count(*) FROM message") == [(2,)]


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_leader_that_is_cancelled_does_its_duty_first(path: Path, waiting: bool) -> None:
    async with started(path) as storage:
        stopped = Stopped(storage)
        async with anyio.create_task_group() as others, anyio.create_task_group() as leaders:
            if waiting:
                others.start_soon(storage.append, [1], 1000, b"")
                await busy(stopped)
            leaders.start_soon(storage.append, [2], 1000, b"")
            if not waiting:
                await busy(stopped)
            else:
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
            for _ in range(3):
                others.start_soon(storage.append, [3], 1000, b"")
            await busy(stopped)
            leaders.cancel_scope.cancel()
            stopped.go.set()
        assert rows(path, "SELECT count(*) FROM message WHERE mid = 3") == [(3,)]
        assert await storage.append([4], 1000, b"") == {4: 1}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("waiting", [False, True])
async def test_a_leader_that_asyncio_cancels_does_its_duty_too(path: Path, waiting: bool, times: int) -> None:
    """Task.cancel goes through anyio's shield: asyncio.wait_for around a push does that."""
    import asyncio

    async with started(path) as storage:
        stopped = Stopped(storage)
        first = asyncio.ensure_future(storage.append([1], 1000, b""))
        await busy(stopped)
        second = asyncio.ensure_future(storage.append([2], 1000, b""))
        await busy(stopped)
        followers = [asyncio.ensure_future(storage.append([3], 1000, b"")) for _ in range(3)]
        await busy(stopped)
        for _ in range(times):
            (second if waiting else first).cancel()
            await busy(stopped)
        assert not any(each.done() for each in (first, second, *followers))
        stopped.go.set()
        results = await asyncio.gather(first, second, *followers, return_exceptions=True)
        assert isinstance(results.pop(int(waiting)), asyncio.CancelledError)
        assert results == [{2 - int(waiting): 1}, {3: 1}, {3: 2}, {3: 3}]
        assert stopped.sizes == [1, 4]
        assert rows(path, "SELECT mid, last FROM user ORDER BY mid") == [(1, 1), (2, 1), (3, 3)]


async def test_a_defect_in_the_thread_leaves_nobody_waiting(path: Path) -> None:
    async with started(path) as opened:
        storage: Any = opened
        commit = storage._commit

        def broken(works: Any) -> None:
            raise ZeroDivisionError

        storage._commit = broken
        failures: list[type[Exception]] = []

        async def push() -> None:
            try:
                await storage.append([7], 1000, b"")
            except (ZeroDivisionError, StorageError) as error:
                failures.append(type(error))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(push)
        assert failures.count(StorageError) == 4 - failures.count(ZeroDivisionError) + 1
        storage._commit = commit
        assert await storage.append([7], 1000, b"") == {7: 1}


async def test_reading_does_not_wait_for_writing(path: Path) -> None:
    async with started(path) as storage:
        await storage.append([7], 1000, b"")
        stopped = Stopped(storage)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(storage.append, [7], 1000, b"")
            await busy(stopped)
            assert len(await storage.after(7, 0, 10, 10)) == 1
            assert await storage.cursor(7, "phone") == 0
            stopped.go.set()
        assert len(await storage.after(7, 0, 10, 10)) == 2


async def test_two_storages_share_a_file(path: Path) -> None:
    async with started(path) as one, started(path) as two:
        numbers: list[int] = []

        async def push(storage: SQLiteStorage) -> None:
            numbers.extend([(await storage.append([7, 8], 1000, b""))[7] for _ in range(25)])

        async with anyio.create_task_group() as tasks:
            for storage in (one, two, one, two):
                tasks.start_soon(push, storage)
        assert sorted(numbers) == list(range(1, 101))
        assert len(await one.after(8, 0, 1000, 1000)) == 100
        await one.append([9], 1000, b"first", idempotency_key="k")
        assert await two.append([9], 1000, b"again", idempotency_key="k") == {9: 1}
        assert await one.acknowledge(9, "phone", 1) == 1
        assert await two.cursor(9, "phone") == 1


async def test_a_full_disk_refuses_and_is_forgiven(path: Path) -> None:
    async with started(path) as storage:
        await storage.append([7], 1000, b"before")
        (pages,) = storage._writer.execute("PRAGMA page_count").fetchone()
        storage._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
        for _ in range(2):
            with pytest.raises(StorageError, match=r"cannot write to .*inbox\.db.*full"):
                await storage.append([7, 8], 1000, b"x" * 50_000)
        assert await storage.append([7], 1000, b"small") == {7: 2}
        storage._writer.execute(f"PRAGMA max_page_count = {2**30}")
        assert await storage.append([7, 8], 1000, b"x" * 50_000) == {7: 3, 8: 1}
        assert [each.seq for each in await storage.after(7, 0, 10, 100_000)] == [1, 2, 3]


LIMITED = """
import resource, signal, sys
import anyio
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.errors import StorageError

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    storage = SQLiteStorage(sys.argv[1])
    await storage.start()
    accepted = (await storage.append([7], 1000, b"before"))[7]
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    refused = 0
    async def push():
        nonlocal accepted, refused
        try:
            accepted = max(accepted, (await storage.append([7], 1000, b"x" * 50_000))[7])
        except StorageError as error:
            refused += 1
            assert "cannot write to" in str(error), error
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(push)
    found = await storage.after(7, 0, 1000, 1 << 30)
    assert [each.seq for each in found] == list(range(1, accepted + 1)), found
    assert refused == 21 - accepted > 0, (refused, accepted)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert await storage.append([7], 1000, b"x" * 50_000) == {7: accepted + 1}
    await storage.aclose()

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of file sizes")
async def test_files_that_may_not_grow_refuse_and_are_forgiven(path: Path) -> None:
    done = await anyio.run_process(
        [sys.executable, "-c", LIMITED, str(path)], check=False, stderr=subprocess.PIPE
    )
    assert done.returncode == 0, done.stderr.decode()


async def test_a_file_that_turns_read_only_refuses_and_is_forgiven(path: Path) -> None:
    async with started(path) as storage:
        storage._writer.execute("PRAGMA query_only = ON")
        with pytest.raises(StorageError, match="cannot write to .*: read-only"):
            await storage.append([7], 1000, b"")
        storage._writer.execute("PRAGMA query_only = OFF")
        assert await storage.append([7], 1000, b"") == {7: 1}


async def test_a_file_that_another_program_locks_refuses_all_that_wait_at_once(path: Path) -> None:
    class Impatient(SQLiteStorage):
        lock_seconds = 0.05

    storage = Impatient(path)
    await storage.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused = 0

    async def push() -> None:
        nonlocal refused
        with pytest.raises(StorageError, match="locked by another program"):
            await storage.append([7], 1000, b"")
        refused += 1

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(300):
                tasks.start_soon(push)
    assert refused == 300
    assert await storage.after(7, 0, 10, 10) == []
    other.execute("COMMIT")
    other.close()
    assert await storage.append([7], 1000, b"") == {7: 1}
    await storage.aclose()


async def test_a_folder_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open .*missing.*: cannot be opened"):
        await SQLiteStorage(path.parent / "missing" / "inbox.db").start()


async def test_a_file_that_is_no_database_is_refused_and_left_alone(letter: Path) -> None:
    with pytest.raises(StorageError, match="no SQLite database"):
        await SQLiteStorage(letter).start()
    assert await anyio.Path(letter).read_bytes() == LETTER


async def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    before = await anyio.Path(path).read_bytes()
    with pytest.raises(StorageError, match="the database of another program"):
        await SQLiteStorage(path).start()
    assert await anyio.Path(path).read_bytes() == before


async def test_tables_of_another_version_are_refused(path: Path) -> None:
    async with started(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="its tables are version 99, expected 1"):
        await SQLiteStorage(path).start()


async def test_a_storage_that_could_not_start_can_be_started_later(letter: Path) -> None:
    storage = SQLiteStorage(letter)
    with pytest.raises(StorageError):
        await storage.start()
    await anyio.Path(letter).unlink()
    await storage.start()
    assert await storage.append([7], 1000, b"") == {7: 1}
    await storage.aclose()


async def test_what_is_too_old_of_idle_users_leaves_the_file(path: Path) -> None:
    async with started(path, keep_for=100) as storage:
        clock = ManualClock()
        storage.server = SimpleNamespace(clock=clock)
        await storage.append(range(2500), 1000, b"body", idempotency_key="k")
        clock.advance(200)
        left = []
        for _ in range(4):
            await storage.append([9999], 1000, b"")
            left.append(rows(path, "SELECT count(*) FROM message WHERE mid < 2500"))
        assert left == [[(1500,)], [(500,)], [(0,)], [(0,)]]
        assert rows(path, "SELECT count(*), min(last) FROM user") == [(2501, 1)]


async def test_messages_kept_for_ever_are_not_looked_through(path: Path) -> None:
    async with started(path, keep_for=float("inf")) as storage:
        statements: list[str] = []
        await storage.append([7], 1000, b"")
        storage._writer.set_trace_callback(statements.append)
        await storage.append([7], 1000, b"")
        storage._writer.set_trace_callback(None)
        assert not [statement for statement in statements if statement.startswith("DELETE")]
        assert len(await storage.after(7, 0, 10, 10)) == 2


async def test_what_is_too_much_leaves_the_file(path: Path) -> None:
    async with started(path, keep=3) as storage:
        for _ in range(10):
            await storage.append([7], 1000, b"")
        assert rows(path, "SELECT seq FROM message") == [(8,), (9,), (10,)]


async def test_a_push_to_many_users_is_one_transaction(path: Path) -> None:
    async with started(path) as storage:
        numbers = await storage.append(range(3000), 1000, b"x" * 1000)
        assert numbers == dict.fromkeys(range(3000), 1)
        assert rows(path, "SELECT count(*), count(DISTINCT mid) FROM message") == [(3000, 3000)]


KILLED = """
import os, sys
import anyio
from goim_core.adapters.sqlite import SQLiteStorage

async def main():
    storage = SQLiteStorage(sys.argv[1])
    await storage.start()
    async def push(mid):
        while True:
            numbers = await storage.append([mid], 1000, b"body")
            os.write(1, b"%d %d\\n" % (mid, numbers[mid]))
    async with anyio.create_task_group() as tasks:
        for mid in range(10):
            tasks.start_soon(push, mid)

anyio.run(main)
"""


async def test_what_was_answered_survives_a_kill(path: Path) -> None:
    answered: dict[int, int] = {}
    async with await anyio.open_process([sys.executable, "-c", KILLED, str(path)], stderr=None) as process:
        assert process.stdout is not None
        text = b""
        while text.count(b"\n") < 300:
            text += await process.stdout.receive()
        process.kill()
        async for more in process.stdout:
            text += more
    for line in text.splitlines():
        mid, number = map(int, line.split())
        answered[mid] = number
    async with started(path) as storage:
        for mid, number in answered.items():
            found = [each.seq for each in await storage.after(mid, 0, 100_000, 1 << 30)]
            assert found == list(range(1, len(found) + 1))
            assert len(found) >= number


async def test_another_node_that_opens_the_same_new_file_is_waited_for(path: Path) -> None:
    """For the switch to the write-ahead log SQLite does not wait by itself."""

    class Crowded(SQLiteStorage):
        def _prepare(self) -> None:
            super()._prepare()
            other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            other.execute("BEGIN")
            other.execute("SELECT * FROM user").fetchall()
            threading.Timer(0.05, other.close).start()

    storage = Crowded(path)
    await storage.start()
    assert await storage.append([7], 1000, b"hi") == {7: 1}
    await storage.aclose()


async def test_a_switch_to_the_log_that_is_refused_at_once_is_tried_again(path: Path) -> None:
    """Two that switch at the same time would wait for each other, so SQLite refuses one without waiting."""
    refusals = iter(range(2))

    class Busy:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self.connection = connection

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if "journal_mode" in statement and next(refusals, None) is not None:
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error
            return self.connection.execute(statement, *values)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.connection, name)

    class Crowded(SQLiteStorage):
        def _prepare(self) -> None:
            super()._prepare()
            self._writer = Busy(self._writer)  # type: ignore[assignment]

    storage = Crowded(path)
    await storage.start()
    assert next(refusals, None) is None
    assert await storage.append([7], 1000, b"hi") == {7: 1}
    await storage.aclose()
