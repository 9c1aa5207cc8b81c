"""The form of the storage in memory; and a suite against a model, which every form keeps."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from goim_core.adapters.sql.inbox_change import Append, Change
from goim_core.errors import ConfigurationError
from goim_core.memory_storage import MemoryStorage
from goim_core.storage import Retention, StorageHook, StorePolicy
from goim_core.testing.clock import ManualClock
from goim_core.testing.storage_contract import StorageContract

pytestmark = pytest.mark.anyio


async def settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


MIDS = [1, 2, -(2**63)]
KEEP, KEEP_FOR = 5, 100
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"),
            st.lists(st.sampled_from(MIDS), max_size=4),
            st.sampled_from(["", "", "a", "b"]),
            st.integers(0, 3),
        ),
        st.tuples(
            st.just("acknowledge"),
            st.sampled_from(MIDS),
            st.sampled_from(["phone", ""]),
            st.integers(-1, 12),
        ),
        st.tuples(st.just("read"), st.sampled_from(MIDS), st.integers(-1, 12), st.integers(1, 4), st.just(8)),
        st.tuples(st.just("pass"), st.sampled_from([1, 30, 60, 90])),
        st.tuples(st.just("saw"), st.sampled_from(MIDS), st.floats(0, 2e9)),
        st.tuples(st.just("reopen")),
    ),
    max_size=40,
)


@define
class Model:
    """The contract in as few words as possible."""

    now: float
    inboxes: dict[int, list[tuple[float, str, bytes]]] = field(factory=dict)
    cursors: dict[tuple[int, str], int] = field(factory=dict)
    seen: dict[int, float] = field(factory=dict)

    def kept(self, mid: int) -> list[tuple[int, str, bytes]]:
        inbox = list(enumerate(self.inboxes.get(mid, []), 1))[-KEEP:]
        return [(seq, key, body) for seq, (at, key, body) in inbox if at >= self.now - KEEP_FOR]

    def append(self, mids: list[int], key: str, body: bytes) -> dict[int, int]:
        numbers = {}
        for mid in mids:
            known = [seq for seq, other, _ in self.kept(mid) if key and other == key]
            if not known and mid not in numbers:
                self.inboxes.setdefault(mid, []).append((self.now, key, body))
            numbers.setdefault(mid, known[0] if known else len(self.inboxes[mid]))
        return numbers

    def acknowledge(self, mid: int, device: str, seq: int) -> int:
        last = len(self.inboxes.get(mid, []))
        cursor = max(self.cursors.get((mid, device), 0), seq if seq <= last else 0)
        self.cursors[mid, device] = cursor
        return cursor

    def after(self, mid: int, seq: int, limit: int, size: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for number, _, body in self.kept(mid):
            if number > seq:
                size -= len(body)
                if len(found) == limit or (found and size < 0):
                    break
                found.append((number, body))
        return found


class ModelContract:
    """Whatever is done to a storage, it and the model answer alike."""

    def opened(self, **limits: Any) -> AbstractAsyncContextManager[StorageHook]:
        raise NotImplementedError

    async def again(self, storage: StorageHook) -> None:
        """Close and open it, where what it holds survives that."""

    @settings(max_examples=25, deadline=None)
    @given(steps=STEPS)
    async def test_against_a_model(self, steps: list[Any]) -> None:
        async with self.opened(keep=KEEP, keep_for=KEEP_FOR) as storage:
            clock = ManualClock()
            storage.server = SimpleNamespace(clock=clock)
            model = Model(clock.time())
            for number, (what, *given_) in enumerate(steps):
                if what == "append":
                    mids, key, length = given_
                    body = b"%d" % number * length
                    stored = await settled(storage.append(mids, 1000, body, idempotency_key=key))
                    assert stored == model.append(mids, key, body)
                elif what == "acknowledge":
                    assert await settled(storage.acknowledge(*given_)) == model.acknowledge(*given_)
                elif what == "read":
                    found = await settled(storage.after(*given_))
                    assert [(each.seq, each.body) for each in found] == model.after(*given_)
                elif what == "pass":
                    clock.advance(*given_)
                    model.now += given_[0]
                elif what == "saw":
                    await settled(storage.saw(*given_))
                    model.seen[given_[0]] = given_[1]
                else:
                    await self.again(storage)
            for mid in MIDS:
                found = await settled(storage.after(mid, 0, 100, 1000))
                assert [(each.seq, each.body) for each in found] == model.after(mid, 0, 100, 1000)
                for device in ("phone", ""):
                    assert await settled(storage.cursor(mid, device)) == model.cursors.get((mid, device), 0)
            assert await settled(storage.last_seen(MIDS)) == model.seen


@asynccontextmanager
async def in_memory(**limits: Any) -> AsyncIterator[StorageHook]:
    storage = MemoryStorage(**limits)
    await storage.start()
    yield storage
    await storage.aclose()


class TestMemoryStorage(StorageContract, ModelContract):
    """The form in memory."""

    def opened(self, **limits: Any) -> AbstractAsyncContextManager[StorageHook]:
        return in_memory(**limits)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"keep": 0}, "keep: expected 1 or more, got 0"),
        ({"devices": 0}, "devices: expected 1 or more, got 0"),
        ({"keep": True}, "keep: expected"),
        ({"keep": 2.0}, "keep: expected"),
        ({"keep_for": 0}, "keep_for: expected seconds, more than 0, got 0"),
        ({"keep_for": float("nan")}, "keep_for: expected"),
        ({"keep_for": "1"}, "keep_for: expected"),
        ({"policy": "some"}, "policy: expected one of all, offline; got 'some'"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        MemoryStorage(**arguments)


def test_the_policy_is_the_storages() -> None:
    assert MemoryStorage().policy is StorePolicy.ALL
    assert MemoryStorage(policy=StorePolicy.OFFLINE).policy is StorePolicy.OFFLINE


@pytest.mark.parametrize(
    ("mids", "op", "body", "key", "complaint"),
    [
        ([2**63], 1000, b"", "", "mid: expected an int64"),
        (["7"], 1000, b"", "", "mid: expected an int64, got '7'"),
        ([True], 1000, b"", "", "mid: expected an int64"),
        ([7], -1, b"", "", "op: expected an int32"),
        ([7], 2**31, b"", "", "op: expected an int32"),
        ([7], 1000, "text", "", "body: expected bytes, got str"),
        ([7], 1000, b"", "x" * 257, "idempotency_key: expected text of at most 256 characters"),
    ],
)
def test_what_cannot_be_stored_is_refused(mids: Any, op: int, body: Any, key: str, complaint: str) -> None:
    storage = MemoryStorage()
    with pytest.raises(ValueError, match=complaint):
        storage.append(mids, op, body, idempotency_key=key)


def test_what_is_too_old_of_idle_users_leaves_memory() -> None:
    storage = MemoryStorage(keep_for=100)
    clock = ManualClock()
    storage.server = SimpleNamespace(clock=clock)
    storage.append(range(100), 1000, b"body", idempotency_key="k")
    clock.advance(200)
    for _ in range(60):
        storage.append([1000], 1000, b"body")
    inboxes = list(storage._inboxes.values())
    assert sum(len(inbox.messages) for inbox in inboxes) == 60
    assert not any(inbox.keys for inbox in inboxes)
    assert [inbox.last for inbox in inboxes] == [1] * 100 + [60]


def test_a_wall_clock_that_was_set_back_hides_nothing_that_is_kept() -> None:
    storage = MemoryStorage(keep_for=100)
    clock = SimpleNamespace()
    storage.server = SimpleNamespace(clock=clock)
    for now, body in ((1000.0, b"first"), (950.0, b"second"), (1060.0, b"third")):
        clock.time = lambda now=now: now
        storage.append([7], 1000, body)
    assert [each.seq for each in storage.after(7, 0, 10, 100)] == [1, 3]
    clock.time = lambda: 1110.0
    assert [each.seq for each in storage.after(7, 0, 10, 100)] == [3]


def test_memory_is_bounded_by_what_is_kept() -> None:
    storage = MemoryStorage(keep=1000)
    for number in range(5000):
        storage.append([7], 1000, b"%d" % number, idempotency_key=str(number))
    (inbox,) = storage._inboxes.values()
    assert len(inbox.messages) <= 1010
    assert len(inbox.keys) <= 1010


def test_too_many_messages_are_removed_from_a_database_in_one_go() -> None:
    """Each append would otherwise cost a deletion."""
    retention = Retention(1000, 100, StorePolicy.ALL)
    removed: list[tuple[int, int]] = []
    for last in range(1200):
        change = Change([Append((7,), 1000, b"", b"", 0.0)], retention)
        change.decide({7: last}, {}, {})
        removed += change.surplus
    assert removed == [(7, seq) for seq in range(1001 - 1000, 201) if (seq + 1000) % 11 == 0]
