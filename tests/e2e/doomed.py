"""Servers that are killed: ``python -m tests.e2e.doomed`` runs one after the other, each in a process of its own.

A line of JSON on standard input says how the next one dies; its addresses and its end are lines on standard
output. It is forked off this program, which has imported everything, so that 200 lives take seconds.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import anyio
from attrs import define

from goim_core import OpenAuth, Server
from goim_core.adapters.postgres import PostgresStorage
from goim_core.adapters.sql.inbox_change import Append, Change, Work
from goim_core.adapters.sql.storage import SQLStorage
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.queue import MemoryQueue, PushMsg

__all__ = ["STEPS"]

STEPS = (
    "before the append",
    "before the transaction",
    "in the transaction, before its writes",
    "in the transaction, after its writes",
    "after the commit",
    "after the append",
    "before the queue",
    "after the queue",
    "before the delivery is acknowledged",
    "before the answer",
    "before a cursor moves",
    "after a cursor has moved",
)
"""Between any two of these a push, or an acknowledgement, may be interrupted."""


@define
class Death:
    """Kill -9 at the ``count``-th time that ``step`` is reached."""

    step: str = ""
    count: int = 0

    def near(self, step: str) -> None:
        if step == self.step:
            self.count -= 1
            if self.count == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def doomed_storage(kind: type[SQLStorage], death: Death) -> type[SQLStorage]:
    class Doomed(kind):  # type: ignore[misc, valid-type]
        async def append(
            self, mids: Sequence[int], op: int, body: bytes, *, idempotency_key: str = ""
        ) -> Any:
            death.near("before the append")
            numbers = await super().append(mids, op, body, idempotency_key=idempotency_key)
            death.near("after the append")
            return numbers

        async def acknowledge(self, mid: int, device: str, seq: int) -> Any:
            death.near("before a cursor moves")
            cursor = await super().acknowledge(mid, device, seq)
            death.near("after a cursor has moved")
            return cursor

        def _commit(self, works: Sequence[Work]) -> None:
            pushes = any(isinstance(work, Append) for work in works)
            if pushes:
                death.near("before the transaction")
            super()._commit(works)
            if pushes:
                death.near("after the commit")

        def _sweep_due(self, oldest: float) -> bool:  # the last that a transaction asks
            death.near("in the transaction, after its writes")
            return bool(super()._sweep_due(oldest))

    decide = Change.decide

    def decide_and_die(change: Change, *args: Any) -> None:
        death.near("in the transaction, before its writes")
        decide(change, *args)

    setattr(Change, "decide", decide_and_die)  # noqa: B010
    return Doomed


class DoomedQueue(MemoryQueue):
    def __init__(self, death: Death) -> None:
        super().__init__()
        self._death = death

    async def publish(self, msg: PushMsg, *, nowait: bool = False) -> None:
        self._death.near("before the queue")
        await super().publish(msg, nowait=nowait)
        self._death.near("after the queue")

    def acknowledge(self, msg: PushMsg) -> None:
        self._death.near("before the delivery is acknowledged")
        super().acknowledge(msg)


async def live(storage: str, keep: int, death: Death) -> None:
    """Serve until death."""

    class DoomedServer(Server):
        async def push_mids(self, *args: Any, **settings: Any) -> None:
            await super().push_mids(*args, **settings)
            death.near("before the answer")

    kind: type[SQLStorage] = PostgresStorage if storage.startswith("host=") else SQLiteStorage
    doors: dict[str, Any] = {"tcp": "127.0.0.1:0", "http": "127.0.0.1:0"}
    inboxes: Any = doomed_storage(kind, death)
    async with DoomedServer(
        auth=OpenAuth(), storage=inboxes(storage, keep=keep), queue=DoomedQueue(death), **doors
    ) as server:
        say({"pid": os.getpid(), **{door: server.addresses[door][0] for door in doors}})
        await anyio.sleep_forever()


def say(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def main() -> None:
    logging.disable(logging.WARNING)  # OpenAuth is meant
    # The children share these pages, and the collector would copy them.
    gc.freeze()
    for line in sys.stdin:
        plan = json.loads(line)
        pid = os.fork()
        if not pid:
            anyio.run(live, plan["storage"], plan["keep"], Death(plan["step"], plan["count"]))
            os._exit(1)
        say({"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})


if __name__ == "__main__":
    main()
