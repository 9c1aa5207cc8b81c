"""What every storage does: a suite to run on one of your own.

::

    class TestMyStorage(StorageContract):
        @asynccontextmanager
        async def opened(self, **limits):
            storage = MyStorage(..., **limits)
            await storage.start()
            yield storage
            await storage.aclose()
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from goim_core.flow import settled
from goim_core.storage import StorageHook, Stored
from goim_core.testing.clock import ManualClock

__all__ = ["StorageContract"]

MANY = 1 << 30


async def _append(
    storage: StorageHook, mids: Sequence[int], body: bytes = b"body", *, op: int = 1000, key: str = ""
) -> dict[int, int]:
    return await settled(storage.append(mids, op, body, idempotency_key=key))


async def _after(
    storage: StorageHook, mid: int, seq: int = 0, limit: int = 1000, size: int = MANY
) -> list[Stored]:
    return list(await settled(storage.after(mid, seq, limit, size)))


async def _numbers(
    storage: StorageHook, mid: int, seq: int = 0, limit: int = 1000, size: int = MANY
) -> list[int]:
    return [stored.seq for stored in await _after(storage, mid, seq, limit, size)]


async def _acknowledge(storage: StorageHook, mid: int, device: str, seq: int) -> int:
    return await settled(storage.acknowledge(mid, device, seq))


async def _cursor(storage: StorageHook, mid: int, device: str) -> int:
    return await settled(storage.cursor(mid, device))


def _own_time(storage: StorageHook) -> ManualClock:
    clock = ManualClock()
    cast("Any", storage).server = SimpleNamespace(clock=clock)
    return clock


class StorageContract:
    """What every storage does. Subclass it as ``Test...`` and say how a storage is opened.

    Runs on what anyio's pytest plugin runs on: the fixture ``anyio_backend``.
    """

    pytestmark = pytest.mark.anyio

    def opened(self, **limits: Any) -> AbstractAsyncContextManager[StorageHook]:
        """An empty storage, started, and closed at the end.

        ``limits`` may be ``keep``, messages a user, ``keep_for``, seconds, and ``devices``, cursors a user;
        without them, the storage keeps at least 200 messages a user for at least a day, and 10 cursors.
        """
        raise NotImplementedError

    def reopened(self, storage: StorageHook) -> AbstractAsyncContextManager[StorageHook]:
        """What ``storage``, which was closed, holds: opened anew. By default its tests are skipped."""
        pytest.skip("this storage keeps nothing when it is closed")

    async def test_what_was_stored_comes_back_as_it_was(self) -> None:
        async with self.opened() as storage:
            clock = _own_time(storage)
            assert await _append(storage, [7], b"\0\xff", op=2**31 - 1) == {7: 1}
            found = await _after(storage, 7)
            assert [(each.seq, each.op, each.body) for each in found] == [(1, 2**31 - 1, b"\0\xff")]
            assert found[0].at == clock.time()

    async def test_each_inbox_is_numbered_from_one_without_a_gap(self) -> None:
        async with self.opened() as storage:
            assert [await _append(storage, [7]) for _ in range(3)] == [{7: 1}, {7: 2}, {7: 3}]
            assert await _append(storage, [8]) == {8: 1}
            assert await _append(storage, [7, 8, 9]) == {7: 4, 8: 2, 9: 1}
            assert await _numbers(storage, 7) == [1, 2, 3, 4]
            assert await _numbers(storage, 8) == [1, 2]

    async def test_messages_come_in_the_order_of_their_numbers(self) -> None:
        async with self.opened() as storage:
            for number in range(1, 51):
                await _append(storage, [7], b"%d" % number)
            found = await _after(storage, 7)
            assert [(each.seq, each.body) for each in found] == [(n, b"%d" % n) for n in range(1, 51)]

    async def test_a_user_named_twice_gets_it_once(self) -> None:
        async with self.opened() as storage:
            assert await _append(storage, [7, 8, 7]) == {7: 1, 8: 1}
            assert await _numbers(storage, 7) == [1]

    async def test_nobody_to_store_for_is_no_error(self) -> None:
        async with self.opened() as storage:
            assert await _append(storage, []) == {}

    async def test_an_append_for_several_users_is_all_or_nothing(self) -> None:
        async with self.opened() as storage:
            with pytest.raises(Exception, match=r".+"):
                await _append(storage, [7, 2**63, 8])
            assert await _numbers(storage, 7) == []
            assert await _append(storage, [7, 8]) == {7: 1, 8: 1}

    async def test_users_are_any_int64(self) -> None:
        mids = [-(2**63), -1, 0, 1, 2**63 - 1]
        async with self.opened() as storage:
            assert await _append(storage, mids) == dict.fromkeys(mids, 1)
            for mid in mids:
                assert await _numbers(storage, mid) == [1]
                assert await _acknowledge(storage, mid, "phone", 1) == 1
                assert await _cursor(storage, mid, "phone") == 1
                await settled(storage.saw(mid, 5.0))
            assert await settled(storage.last_seen(mids)) == dict.fromkeys(mids, 5.0)

    @pytest.mark.parametrize("size", [0, 1, 1 << 20])
    async def test_a_body_may_be_empty_and_large(self, size: int) -> None:
        body = bytes(range(256)) * (size // 256) or b"x" * size
        async with self.opened() as storage:
            await _append(storage, [7], body)
            (found,) = await _after(storage, 7)
            assert found.body == body

    async def test_an_inbox_is_read_in_pages(self) -> None:
        async with self.opened() as storage:
            for _ in range(10):
                await _append(storage, [7])
            assert await _numbers(storage, 7, 0, limit=4) == [1, 2, 3, 4]
            assert await _numbers(storage, 7, 4, limit=4) == [5, 6, 7, 8]
            assert await _numbers(storage, 7, 8, limit=4) == [9, 10]
            assert await _numbers(storage, 7, 10, limit=4) == []

    @pytest.mark.parametrize("seq", [10, 11, 2**63 - 1, 2**80])
    async def test_there_is_nothing_behind_the_end(self, seq: int) -> None:
        async with self.opened() as storage:
            for _ in range(10):
                await _append(storage, [7])
            assert await _numbers(storage, 7, seq) == []
            assert await _numbers(storage, 8, seq) == []

    @pytest.mark.parametrize("seq", [0, -1, -(2**80)])
    async def test_before_the_start_is_the_start(self, seq: int) -> None:
        async with self.opened() as storage:
            await _append(storage, [7])
            assert await _numbers(storage, 7, seq) == [1]

    async def test_a_page_has_no_more_bytes_than_fit(self) -> None:
        async with self.opened() as storage:
            for length in (0, 0, 100, 50, 50, 0, 1):
                await _append(storage, [7], b"x" * length)
            assert await _numbers(storage, 7, 0, size=150) == [1, 2, 3, 4]
            assert await _numbers(storage, 7, 0, size=149) == [1, 2, 3]
            assert await _numbers(storage, 7, 0, size=200) == [1, 2, 3, 4, 5, 6]
            assert await _numbers(storage, 7, 0, size=99) == [1, 2]

    @pytest.mark.parametrize("size", [0, 1, 99])
    async def test_the_first_comes_however_large_it_is(self, size: int) -> None:
        async with self.opened() as storage:
            for _ in range(3):
                await _append(storage, [7], b"x" * 100)
            assert await _numbers(storage, 7, 1, size=size) == [2]

    async def test_a_message_with_a_key_is_stored_once(self) -> None:
        async with self.opened() as storage:
            assert await _append(storage, [7], b"first", key="k") == {7: 1}
            assert await _append(storage, [7], b"other") == {7: 2}
            assert await _append(storage, [7], b"again", key="k") == {7: 1}
            assert [each.body for each in await _after(storage, 7)] == [b"first", b"other"]
            assert await _append(storage, [7], key="other") == {7: 3}

    async def test_keys_are_each_users_own(self) -> None:
        async with self.opened() as storage:
            assert await _append(storage, [7], key="k") == {7: 1}
            assert await _append(storage, [8]) == {8: 1}
            assert await _append(storage, [7, 8, 9], key="k") == {7: 1, 8: 2, 9: 1}
            assert await _append(storage, [7, 8, 9], key="k") == {7: 1, 8: 2, 9: 1}
            assert await _numbers(storage, 8) == [1, 2]

    @pytest.mark.parametrize("key", ["\N{SNOWMAN}", "\0", "\ud800", "'; --", "x" * 256])
    async def test_a_key_is_any_text(self, key: str) -> None:
        async with self.opened() as storage:
            assert await _append(storage, [7], key=key) == {7: 1}
            assert await _append(storage, [7], key=key[1:] + "y") == {7: 2}
            assert await _append(storage, [7], key=key) == {7: 1}

    async def test_the_same_push_tried_many_times_at_once_is_stored_once(self) -> None:
        async with self.opened() as storage:
            numbers: list[dict[int, int]] = []

            async def push() -> None:
                numbers.append(await _append(storage, [7, 8], key="k"))

            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(push)
            assert numbers == [{7: 1, 8: 1}] * 20
            assert await _numbers(storage, 7) == [1]

    async def test_each_device_has_a_cursor(self) -> None:
        async with self.opened() as storage:
            for _ in range(5):
                await _append(storage, [7])
            assert await _cursor(storage, 7, "phone") == 0
            assert await _acknowledge(storage, 7, "phone", 3) == 3
            assert await _acknowledge(storage, 7, "", 1) == 1
            assert await _cursor(storage, 7, "phone") == 3
            assert await _cursor(storage, 7, "") == 1
            assert await _cursor(storage, 7, "desk") == 0
            assert await _cursor(storage, 8, "phone") == 0
            assert await _numbers(storage, 7) == [1, 2, 3, 4, 5]

    async def test_only_so_many_devices_have_a_cursor(self) -> None:
        async with self.opened(devices=3) as storage:
            for mid in (7, 8):
                for _ in range(5):
                    await _append(storage, [mid])
                for device, seq in (("a", 2), ("b", 1), ("c", 3)):
                    assert await _acknowledge(storage, mid, device, seq) == seq
            assert [await _cursor(storage, 7, device) for device in "abc"] == [2, 1, 3]
            assert await _acknowledge(storage, 7, "b", 4) == 4
            assert await _acknowledge(storage, 7, "d", 5) == 5
            assert [await _cursor(storage, 7, device) for device in "abcd"] == [0, 4, 3, 5]
            for number in range(20):
                await _acknowledge(storage, 7, f"new {number}", 5)
            kept = [device for device in "abcd" if await _cursor(storage, 7, device)]
            kept += [str(n) for n in range(20) if await _cursor(storage, 7, f"new {n}")]
            assert len(kept) == 3
            assert [await _cursor(storage, 8, device) for device in "abc"] == [2, 1, 3], "another user's"

    @pytest.mark.parametrize("device", ["\N{SNOWMAN}", "\0", "a\0b", "\ud800", "x" * 256, "Phone "])
    async def test_a_device_has_any_name(self, device: str) -> None:
        async with self.opened() as storage:
            await _append(storage, [7])
            assert await _acknowledge(storage, 7, device, 1) == 1
            assert await _cursor(storage, 7, device) == 1
            assert await _cursor(storage, 7, device.strip().lower() + ".") == 0

    async def test_a_cursor_never_moves_back(self) -> None:
        async with self.opened() as storage:
            for _ in range(5):
                await _append(storage, [7])
            assert await _acknowledge(storage, 7, "phone", 4) == 4
            for seq in (3, 0, -1, -(2**80)):
                assert await _acknowledge(storage, 7, "phone", seq) == 4
            assert await _cursor(storage, 7, "phone") == 4

    async def test_a_number_beyond_the_last_message_moves_nothing(self) -> None:
        async with self.opened() as storage:
            assert await _acknowledge(storage, 7, "phone", 9) == 0
            await _append(storage, [7])
            await _append(storage, [7])
            assert await _cursor(storage, 7, "phone") == 0
            for seq in (3, 2**31, 2**80):
                assert await _acknowledge(storage, 7, "phone", seq) == 0
            assert await _acknowledge(storage, 7, "phone", 1) == 1
            assert await _acknowledge(storage, 7, "phone", 3) == 1
            await _append(storage, [7])
            assert await _cursor(storage, 7, "phone") == 1

    async def test_only_so_many_messages_are_kept(self) -> None:
        async with self.opened(keep=3) as storage:
            for number in range(1, 11):
                assert await _append(storage, [7]) == {7: number}
                first = max(1, number - 2)
                assert await _numbers(storage, 7) == list(range(first, number + 1))
            await _append(storage, [8])
            assert await _numbers(storage, 7, 9) == [10]
            assert await _numbers(storage, 8) == [1]

    async def test_a_large_inbox_has_exactly_so_many_messages(self) -> None:
        """Also where a storage removes what is too much by and by."""
        async with self.opened(keep=200) as storage:
            keys = ["a", "b", "c", "d"]
            for number, key in enumerate(keys, 1):
                assert await _append(storage, [7], key=key) == {7: number}
            async with anyio.create_task_group() as tasks:
                for _ in range(196):
                    tasks.start_soon(_append, storage, [7])
            for number, key in enumerate(keys, 1):
                assert await _append(storage, [7], key=key) == {7: number}
            assert await _append(storage, [7]) == {7: 201}
            # Now each has just gone when it is its turn.
            for number, key in enumerate(keys, 202):
                assert await _append(storage, [7], key=key) == {7: number}
                assert await _append(storage, [7], key=key) == {7: number}
            for number in range(206, 210):
                assert await _append(storage, [7]) == {7: number}
                assert await _numbers(storage, 7) == list(range(number - 199, number + 1))

    async def test_messages_are_kept_for_so_long(self) -> None:
        async with self.opened(keep_for=100) as storage:
            clock = _own_time(storage)
            await _append(storage, [7, 8])
            clock.advance(60)
            await _append(storage, [7])
            assert await _numbers(storage, 7) == [1, 2]
            clock.advance(60)
            assert await _numbers(storage, 7) == [2]
            assert await _numbers(storage, 8) == []
            clock.advance(60)
            assert await _numbers(storage, 7) == []

    async def test_numbers_go_on_when_the_messages_are_gone(self) -> None:
        async with self.opened(keep_for=100) as storage:
            clock = _own_time(storage)
            for _ in range(3):
                await _append(storage, [7])
            assert await _acknowledge(storage, 7, "phone", 2) == 2
            for number in (4, 5, 6):
                clock.advance(1000)
                assert await _numbers(storage, 7) == []
                assert await _append(storage, [7]) == {7: number}
                assert await _numbers(storage, 7) == [number]
            assert await _cursor(storage, 7, "phone") == 2
            assert await _acknowledge(storage, 7, "desk", 6) == 6

    async def test_a_key_lives_as_long_as_its_message(self) -> None:
        async with self.opened(keep=3, keep_for=100) as storage:
            clock = _own_time(storage)
            assert await _append(storage, [7], key="k") == {7: 1}
            await _append(storage, [7])
            await _append(storage, [7])
            assert await _append(storage, [7], key="k") == {7: 1}
            await _append(storage, [7])
            assert await _append(storage, [7], key="k") == {7: 5}
            clock.advance(99)
            assert await _append(storage, [7], key="k") == {7: 5}
            clock.advance(2)
            assert await _append(storage, [7], key="k") == {7: 6}
            assert await _append(storage, [7], key="k") == {7: 6}
            assert await _numbers(storage, 7) == [6]

    async def test_a_user_is_last_seen_when_it_was_said(self) -> None:
        async with self.opened() as storage:
            assert await settled(storage.last_seen([7, 8])) == {}
            await settled(storage.saw(7, 1_700_000_000.123456))
            await settled(storage.saw(8, 5.0))
            await settled(storage.saw(8, 4.0))
            assert await settled(storage.last_seen([9, 8, 7])) == {7: 1_700_000_000.123456, 8: 4.0}
            assert await settled(storage.last_seen([8])) == {8: 4.0}
            assert await settled(storage.last_seen([])) == {}
            assert await _append(storage, [7]) == {7: 1}
            assert await settled(storage.last_seen([7])) == {7: 1_700_000_000.123456}

    async def test_a_hundred_at_once_each_get_a_number_of_their_own(self) -> None:
        async with self.opened() as storage:
            bodies: dict[int, bytes] = {}

            async def push(number: int) -> None:
                body = b"%d" % number
                numbers = await _append(storage, [7, 100 + number], body)
                assert numbers[100 + number] == 1
                bodies[numbers[7]] = body

            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(push, number)
            assert sorted(bodies) == list(range(1, 101))
            assert {each.seq: each.body for each in await _after(storage, 7)} == bodies

    async def test_reading_and_writing_at_once_never_shows_a_gap(self) -> None:
        async with self.opened() as storage:
            stored = anyio.Event()

            async def push() -> None:
                for _ in range(50):
                    await _append(storage, [7])

            async def read() -> None:
                while not stored.is_set():
                    numbers = await _numbers(storage, 7)
                    assert numbers == list(range(1, len(numbers) + 1))
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as readers:
                readers.start_soon(read)
                async with anyio.create_task_group() as writers:
                    for _ in range(2):
                        writers.start_soon(push)
                stored.set()
            assert await _numbers(storage, 7) == list(range(1, 101))

    async def test_what_was_stored_is_there_when_it_is_opened_again(self) -> None:
        async with self.opened() as first:
            await _append(first, [7, 8], b"one", key="k")
            await _append(first, [7], b"two")
            await _acknowledge(first, 7, "phone", 1)
            await settled(first.saw(7, 5.5))
            await first.aclose()
            async with self.reopened(first) as storage:
                found = await _after(storage, 7)
                assert [(each.seq, each.body) for each in found] == [(1, b"one"), (2, b"two")]
                assert await _cursor(storage, 7, "phone") == 1
                assert await settled(storage.last_seen([7, 8])) == {7: 5.5}
                assert await _append(storage, [7, 8], key="k") == {7: 1, 8: 1}
                assert await _append(storage, [7, 8]) == {7: 3, 8: 2}
