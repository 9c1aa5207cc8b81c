"""The storage in PostgreSQL, on a real one that the tests start."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import psycopg
import pytest

from goim_core.adapters import postgres
from goim_core.adapters.postgres import PostgresStorage
from goim_core.adapters.sql.inbox_change import After
from goim_core.errors import ConfigurationError, StorageError
from goim_core.storage import StorageHook
from goim_core.testing.clock import ManualClock
from goim_core.testing.storage_contract import StorageContract
from tests.postgres import HOW_TO_GET_ONE, PostgresServer, programs
from tests.test_storage import ModelContract

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    found = programs()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_ONE)
        pytest.skip(HOW_TO_GET_ONE)
    server = PostgresServer(found)
    yield server
    server.close()


@pytest.fixture
def dsn(postgres_server: PostgresServer) -> str:
    return postgres_server.empty()


@asynccontextmanager
async def started(dsn: str, **limits: Any) -> AsyncIterator[PostgresStorage]:
    storage = PostgresStorage(dsn, **limits)
    await storage.start()
    try:
        yield storage
    finally:
        await storage.aclose()


class TestPostgresStorage(StorageContract, ModelContract):
    """What every storage does."""

    @pytest.fixture(autouse=True)
    def _server(self, postgres_server: PostgresServer) -> None:
        self.server = postgres_server

    def opened(self, **limits: Any) -> AbstractAsyncContextManager[StorageHook]:
        return started(self.server.empty(), **limits)

    def reopened(self, storage: StorageHook) -> AbstractAsyncContextManager[StorageHook]:
        assert isinstance(storage, PostgresStorage)
        return started(psycopg.conninfo.make_conninfo(**storage._parameters))

    async def again(self, storage: StorageHook) -> None:
        await storage.aclose()
        await storage.start()


def rows(dsn: str, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement, parameters).fetchall()


def execute(dsn: str, statement: Any) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("dsn", ["", None, 7, "no such thing = = secret"])
def test_a_dsn_that_is_none_is_refused_and_not_shown(dsn: Any) -> None:
    with pytest.raises(ConfigurationError, match="dsn: expected") as caught:
        PostgresStorage(dsn)
    assert "secret" not in str(caught.value)


async def test_a_server_that_is_not_there_is_an_error(dsn: str) -> None:
    nowhere = PostgresStorage("host=/nowhere user=goim")
    with pytest.raises(StorageError, match="cannot connect to PostgreSQL"):
        await nowhere.start()


async def test_a_commit_waits_for_the_disk_whatever_the_servers_default(dsn: str) -> None:
    async with started(dsn.replace("options='", "options='-c synchronous_commit=off ")) as storage:
        assert storage._writer is not None
        assert storage._writer.execute("SHOW synchronous_commit").fetchone() == ("on",)
    async with started(dsn.replace("options='", "options='-c synchronous_commit=remote_apply ")) as storage:
        assert storage._writer is not None
        assert storage._writer.execute("SHOW synchronous_commit").fetchone() == ("remote_apply",)


async def test_servers_that_start_at_once_make_the_tables_once(dsn: str) -> None:
    storages = [PostgresStorage(dsn) for _ in range(5)]
    async with anyio.create_task_group() as tasks:
        for storage in storages:
            tasks.start_soon(storage.start)
    for number, storage in enumerate(storages, 1):
        assert await storage.append([7], 1000, b"") == {7: number}
        await storage.aclose()


async def test_tables_of_another_version_are_refused(dsn: str) -> None:
    async with started(dsn):
        pass
    execute(dsn, "UPDATE goim_version SET version = 99")
    with pytest.raises(StorageError, match="are version 99, expected 1"):
        await PostgresStorage(dsn).start()


async def test_several_servers_share_the_inboxes(dsn: str) -> None:
    """Numbers without a gap, no deadlock, and nobody sees a number before the one below it."""
    mids = list(range(20))
    async with started(dsn) as one, started(dsn) as two, started(dsn) as three:
        stored = anyio.Event()

        async def push(storage: PostgresStorage, step: int) -> None:
            for round_ in range(15):
                # Each in another order, new users among them, keys and cursors too.
                chosen = [mids[(step * number + round_) % 20] for number in range(8)]
                await storage.append(
                    [*chosen, 1000 + round_], 1000, b"body", idempotency_key=f"{step}-{round_}"
                )
                await storage.acknowledge(chosen[0], f"device-{round_ % 3}", round_)
                await storage.saw(chosen[-1], float(round_))

        async def watch() -> None:
            while not stored.is_set():
                for mid in (0, 7):
                    found = [each.seq for each in await three.after(mid, 0, 1000, 10_000)]
                    assert found == list(range(1, len(found) + 1))

        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            async with anyio.create_task_group() as tasks:
                for step in (1, 3, 7, 9, 11, 13):
                    tasks.start_soon(push, (one, two)[step % 4 == 1], step)
            stored.set()
        gaps = "SELECT mid FROM goim_message JOIN goim_user USING (mid) GROUP BY mid, last HAVING count(*) <> last"
        assert rows(dsn, gaps) == []
        assert rows(dsn, "SELECT count(*) FROM goim_message WHERE mid >= 1000") == [(90,)]


async def test_servers_that_meet_new_users_in_another_order_do_not_block_each_other(dsn: str) -> None:
    """PostgreSQL ends a deadlock by failing one of the two, which would be tried again and go unseen."""
    failures: list[str] = []
    together = threading.Barrier(2, timeout=20)

    def watched(storage: Any) -> Any:
        commit = storage._commit

        def watch(works: Any) -> None:
            together.wait()
            try:
                commit(works)
            except StorageError as error:
                failures.append(str(error))
                together.abort()
                raise

        storage._commit = watch
        return storage

    async with started(dsn) as one, started(dsn) as two:

        async def push(storage: PostgresStorage, step: int) -> None:
            for round_ in range(20):
                await storage.append(range(round_ * 1000, round_ * 1000 + 1000)[::step], 1000, b"")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, watched(one), 1)
            tasks.start_soon(push, watched(two), -1)
        assert failures == []
        assert rows(dsn, "SELECT DISTINCT last FROM goim_user") == [(2,)]


async def test_large_bodies_beyond_the_size_do_not_travel(dsn: str) -> None:
    async with started(dsn) as storage:
        for _ in range(5):
            await storage.append([7], 1000, b"x" * 1000)
        page = storage._page(After(7, 1, 100, 2500, 0.0))
        assert [row[0] for row in rows(dsn, postgres.AFTER, page)] == [2, 3]


async def test_a_key_is_known_to_every_server(dsn: str) -> None:
    async with started(dsn) as one, started(dsn) as two:
        numbers: list[dict[int, int]] = []

        async def push(storage: PostgresStorage) -> None:
            numbers.append(await storage.append([7, 8], 1000, b"", idempotency_key="k"))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(push, one)
                tasks.start_soon(push, two)
        assert numbers == [{7: 1, 8: 1}] * 20
        assert rows(dsn, "SELECT count(*) FROM goim_message") == [(2,)]


async def test_an_inbox_that_another_server_holds_is_waited_for(dsn: str) -> None:
    async with started(dsn) as storage:
        await storage.append([7], 1000, b"")
        holder = psycopg.connect(dsn)
        holder.execute("SELECT * FROM goim_user WHERE mid = 7 FOR UPDATE")
        numbers: list[dict[int, int]] = []

        async def push() -> None:
            numbers.append(await storage.append([7], 1000, b""))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push)
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while rows(dsn, waits) == [(0,)]:
                await anyio.lowlevel.checkpoint()
            assert numbers == []
            assert len(await storage.after(7, 0, 10, 10)) == 1
            holder.rollback()
        holder.close()
        assert numbers == [{7: 2}]


async def test_an_inbox_that_is_held_for_too_long_is_an_error(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        postgres, "SETTINGS", postgres.SETTINGS.replace("lock_timeout = '10s'", "lock_timeout = '50ms'")
    )
    async with started(dsn) as storage:
        await storage.append([7], 1000, b"")
        holder = psycopg.connect(dsn)
        holder.execute("SELECT * FROM goim_user WHERE mid = 7 FOR UPDATE")
        refused = 0

        async def push() -> None:
            nonlocal refused
            with pytest.raises(StorageError, match="lock timeout"):
                await storage.append([7], 1000, b"")
            refused += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(push)
        holder.close()
        assert refused == 50
        assert await storage.append([7], 1000, b"") == {7: 2}


async def test_it_comes_back_by_itself_after_the_server_does(
    dsn: str, postgres_server: PostgresServer
) -> None:
    async with started(dsn) as storage:
        assert await storage.append([7], 1000, b"one") == {7: 1}
        await anyio.to_thread.run_sync(postgres_server.kill)
        try:
            for _ in range(2):
                with pytest.raises(StorageError, match="cannot connect to PostgreSQL"):
                    await storage.append([7], 1000, b"lost")
                with pytest.raises(StorageError, match="cannot connect to PostgreSQL"):
                    await storage.after(7, 0, 10, 10)
        finally:
            await anyio.to_thread.run_sync(postgres_server.start)
        assert [each.body for each in await storage.after(7, 0, 10, 10)] == [b"one"]
        assert await storage.append([7], 1000, b"two") == {7: 2}


async def test_a_server_that_was_started_again_is_not_noticed(
    dsn: str, postgres_server: PostgresServer
) -> None:
    async with started(dsn) as storage:
        await storage.append([7], 1000, b"one")
        await anyio.to_thread.run_sync(postgres_server.kill)
        await anyio.to_thread.run_sync(postgres_server.start)
        assert await storage.append([7], 1000, b"two") == {7: 2}
        assert len(await storage.after(7, 0, 10, 10)) == 2


def end_connections(dsn: str) -> None:
    others = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'goim_core'"
    )
    rows(dsn, others)


class Commit:
    """The writer's connection, with something that happens around COMMIT."""

    def __init__(self, storage: Any, before: Any = None, after: Any = None) -> None:
        self._connection = storage._writer
        self._before, self._after = before, after
        storage._writer = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *arguments: Any, **options: Any) -> Any:
        if statement != "COMMIT":
            return self._connection.execute(statement, *arguments, **options)
        if self._before is not None:
            self._before()
        done = self._connection.execute(statement)
        if self._after is not None:
            self._after()
            # The answer got lost: what comes now is the end of the connection.
            return self._connection.execute("SELECT 1")
        return done


@pytest.mark.parametrize("stored", [False, True])
async def test_a_commit_of_unknown_outcome_says_so(dsn: str, stored: bool) -> None:
    async with started(dsn) as storage:
        await storage.append([7], 1000, b"one")
        Commit(storage, **{"after" if stored else "before": lambda: end_connections(dsn)})
        with pytest.raises(StorageError, match="may have been stored, or not"):
            await storage.append([7], 1000, b"two")
        expected = [b"one", b"two"] if stored else [b"one"]
        assert [each.body for each in await storage.after(7, 0, 10, 10)] == expected
        assert await storage.append([7], 1000, b"three") == {7: len(expected) + 1}


@pytest.mark.parametrize("stored", [False, True])
async def test_a_commit_of_unknown_outcome_is_tried_again_where_that_is_no_harm(
    dsn: str, stored: bool
) -> None:
    async with started(dsn) as storage:
        await storage.append([7], 1000, b"one")
        go = threading.Event()
        commit = storage._commit
        held: Any = storage

        def hold(works: Any) -> None:
            assert go.wait(20)
            commit(works)

        held._commit = hold
        Commit(storage, **{"after" if stored else "before": lambda: end_connections(dsn)})
        results: dict[str, Any] = {}

        async def push(key: str) -> None:
            try:
                results[key] = await storage.append([7], 1000, key.encode(), idempotency_key=key)
            except StorageError as error:
                results[key] = "may have been stored, or not" in str(error)

        async def acknowledge() -> None:
            results["cursor"] = await storage.acknowledge(7, "phone", 1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, "k")
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            # Together in the second group, which is the one that breaks.
            go.set()
        assert results == {"k": {7: 2}}
        Commit(storage, **{"after" if stored else "before": lambda: end_connections(dsn)})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, "")
            tasks.start_soon(push, "other")
            tasks.start_soon(acknowledge)
        assert results[""] is True
        assert results["cursor"] == 1
        bodies = [each.body for each in await storage.after(7, 0, 10, 100)]
        assert bodies.count(b"other") == 1
        assert results["other"] == {7: bodies.index(b"other") + 1}
        assert bodies.count(b"") == int(stored)


async def test_a_connection_that_breaks_before_the_commit_is_tried_again(dsn: str) -> None:
    async with started(dsn) as storage:
        await storage.append([7], 1000, b"one")
        await anyio.to_thread.run_sync(end_connections, dsn)
        assert await storage.append([7], 1000, b"two") == {7: 2}
        assert await storage.cursor(7, "phone") == 0


async def test_one_that_fails_fails_alone(dsn: str) -> None:
    async with started(dsn) as storage:
        execute(dsn, "ALTER TABLE goim_message ADD CHECK (body <> 'bad'::bytea)")
        results: dict[bytes, Any] = {}

        async def push(body: bytes) -> None:
            try:
                results[body] = (await storage.append([7, 8], 1000, body))[7]
            except StorageError as error:
                results[body] = "check constraint" in str(error)

        async with anyio.create_task_group() as tasks:
            for body in (b"a", b"b", b"bad", b"c", b"d"):
                tasks.start_soon(push, body)
        assert results.pop(b"bad") is True
        assert sorted(results.values()) == [1, 2, 3, 4]


async def test_the_end_does_not_wait_for_a_server_that_is_frozen(
    postgres_server: PostgresServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresStorage, "closing_seconds", 0.2)
    monkeypatch.setitem(postgres.PARAMETERS, "connect_timeout", "2")
    storage = PostgresStorage(dsn)
    await storage.start()
    told: list[str] = []

    async def append() -> None:
        with pytest.raises(StorageError) as lost:
            await storage.append([7], 1000, b"lost")
        told.append(str(lost.value))

    await storage.append([7], 1000, b"kept")
    before = storage._writes._newest
    with anyio.fail_after(10):
        with postgres_server.frozen():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append)
                while (newest := storage._writes._newest) is before or newest is None or not newest.started:
                    await anyio.lowlevel.checkpoint()
                await storage.aclose()
    assert "PostgreSQL" in told[0]
    async with started(dsn) as again:
        assert [each.body for each in await again.after(7, 0, 10, 1000)] == [b"kept"]


async def test_missing_tables_are_an_error_that_is_forgiven(dsn: str) -> None:
    async with started(dsn) as storage:
        execute(dsn, "ALTER TABLE goim_message RENAME TO elsewhere")
        with pytest.raises(StorageError, match="goim_message"):
            await storage.append([7], 1000, b"")
        with pytest.raises(StorageError, match="goim_message"):
            await storage.after(7, 0, 10, 10)
        execute(dsn, "ALTER TABLE elsewhere RENAME TO goim_message")
        assert await storage.append([7], 1000, b"") == {7: 1}


async def test_what_is_too_old_of_idle_users_leaves_the_table(dsn: str) -> None:
    async with started(dsn, keep_for=100) as storage:
        clock = ManualClock()
        storage.server = SimpleNamespace(clock=clock)
        await storage.append(range(2500), 1000, b"body", idempotency_key="k")
        clock.advance(200)
        left = []
        for _ in range(4):
            await storage.append([9999], 1000, b"")
            left.append(rows(dsn, "SELECT count(*) FROM goim_message WHERE mid < 2500"))
        assert left == [[(1500,)], [(500,)], [(0,)], [(0,)]]
        assert rows(dsn, "SELECT count(*), min(last) FROM goim_user") == [(2501, 1)]


async def test_what_is_too_much_leaves_the_table(dsn: str) -> None:
    async with started(dsn, keep=3) as storage:
        for _ in range(10):
            await storage.append([7], 1000, b"")
        assert rows(dsn, "SELECT seq FROM goim_message ORDER BY seq") == [(8,), (9,), (10,)]


async def test_a_large_push_to_many_users_is_one_transaction(dsn: str) -> None:
    async with started(dsn) as storage:
        numbers = await storage.append(range(3000), 1000, b"x" * 10_000)
        assert numbers == dict.fromkeys(range(3000), 1)
        assert rows(dsn, "SELECT count(*), count(DISTINCT xmin::text) FROM goim_message") == [(3000, 1)]


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "goim_core.adapters.postgres")
    with pytest.raises(ImportError, match=r"pip install 'goim_core\[postgres\]'"):
        __import__("goim_core.adapters.postgres")
