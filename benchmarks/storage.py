"""Stored pushes a second: SQLiteStorage with group commit, against one commit for each message.

    python -m benchmarks.storage [--rounds 7] [--backend uvloop] [--folder .]

Both are durable (a write-ahead log, synced at each commit), on the same disk, in the same run, by turns: one
round of the one, one of the other. Each push is one message for one of 1000 users, 500 pushes are waiting
at any time. "one commit each" is the same storage with groups of one; "bare sqlite3" is a loop of
transactions without an event loop, a thread or anything else of this library.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import anyio

from goim_core.adapters import sqlite
from goim_core.adapters.sql.group_commit import GroupCommit
from goim_core.adapters.sqlite import SQLiteStorage

USERS = 1000
WAITING = 500
GROUPED, SINGLE = 50_000, 2_500
"""Pushes of a round: about a second each."""
BODY = b"x" * 100
TARGET = 20


async def push_many(storage: SQLiteStorage, count: int) -> float:
    """Pushes a second."""

    async def push(first: int) -> None:
        for number in range(first, count, WAITING):
            await storage.append([number % USERS], 1000, BODY)

    begin = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for first in range(WAITING):
            tasks.start_soon(push, first)
    return count / (time.perf_counter() - begin)


async def grouped(path: Path) -> float:
    storage = SQLiteStorage(path)
    await storage.start()
    rate = await push_many(storage, GROUPED)
    await storage.aclose()
    return rate


async def one_commit_each(path: Path) -> float:
    storage = SQLiteStorage(path)
    await storage.start()
    storage._writes = GroupCommit(storage._write, 1)  # noqa: SLF001
    rate = await push_many(storage, SINGLE)
    await storage.aclose()
    return rate


async def bare_sqlite3(path: Path) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", *sqlite.SCHEMA.split(";")):
        connection.execute(statement)
    count = "INSERT INTO user (mid, last) VALUES (?, 1) ON CONFLICT (mid) DO UPDATE SET last = last + 1"
    insert = (
        "INSERT INTO message (mid, seq, at, op, body) "
        "VALUES (?1, (SELECT last FROM user WHERE mid = ?1), ?2, ?3, ?4)"
    )
    begin = time.perf_counter()
    for number in range(SINGLE):
        mid = number % USERS
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(count, (mid,))
        connection.execute(insert, (mid, time.time(), 1000, BODY))
        connection.execute("COMMIT")
    rate = SINGLE / (time.perf_counter() - begin)
    connection.close()
    return rate


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk to measure (default: temporary)"
    )
    arguments = parser.parse_args()
    options: dict[str, Any] = (
        {"backend": "trio"}
        if arguments.backend == "trio"
        else {
            "backend": "asyncio",
            "backend_options": {"use_uvloop": arguments.backend == "uvloop"},
        }
    )
    kinds: list[Callable[[Path], Any]] = [grouped, one_commit_each, bare_sqlite3]
    rates: dict[str, list[float]] = {kind.__name__: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for kind in kinds:
            folder = Path(tempfile.mkdtemp(prefix="goim-bench-", dir=arguments.folder))
            try:
                rates[kind.__name__].append(anyio.run(kind, folder / "inbox.db", **options))
            finally:
                shutil.rmtree(folder)
    print(
        f"{arguments.backend}, Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, "
        f"{WAITING} waiting, median of {arguments.rounds} rounds (least to most), pushes a second"
    )
    for name, values in rates.items():
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"  {name.replace('_', ' '):16} {median(values):8,.0f}  {spread}")
    ratio = median(rates["grouped"]) / median(rates["one_commit_each"])
    bare = median(rates["grouped"]) / median(rates["bare_sqlite3"])
    print(f"  grouped is {ratio:.1f} times one commit each (target: {TARGET}), {bare:.1f} times bare sqlite3")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
