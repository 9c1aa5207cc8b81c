"""The rate limit of a connection: so many at once, then so many a second, and an answer to the rest."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goim_core.conversation import Conversation
from goim_core.hooks import MessageHook
from goim_core.options import Options
from goim_core.protocol import Frame, Op
from goim_core.session import Session
from goim_core.testing import ManualClock, running

pytestmark = pytest.mark.anyio


class Echo(MessageHook):
    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def receive(self, session: Session, frame: Frame) -> bytes:
        self.heard.append(frame.body)
        return frame.body


def limited(rate: float, burst: int, clock: ManualClock) -> Callable[[], bool]:
    """A connection's limit alone."""
    edge = SimpleNamespace(
        options=Options(rate=rate, rate_burst=burst), deadlines=SimpleNamespace(clock=clock)
    )
    connection = SimpleNamespace(edge=edge, paced=0.0)
    return lambda: Conversation._within_rate(connection)


RATES = st.sampled_from([0.1, 0.3, 0.7, 1.0, 3.0, 7.0, 10.0, 49.0, 1000.0]) | st.floats(0.01, 1e4)
STARTS = st.sampled_from([0.0, 100.0, 12_345.678, 1e6])


@given(RATES, st.integers(1, 500), STARTS)
@example(3.0, 100, 100.0)
@example(0.1, 3, 100.0)
def test_exactly_the_burst_at_once(rate: float, burst: int, start: float) -> None:
    allows = limited(rate, burst, ManualClock(start))
    assert [allows() for _ in range(burst + 3)] == [True] * burst + [False] * 3


@given(
    st.sampled_from([0.5, 1.0, 3.0, 7.0, 10.0]),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 30)), max_size=20),
)
def test_the_limit_against_a_simple_model(rate: float, burst: int, steps: list[tuple[int, int]]) -> None:
    """Tokens come at the rate, up to the burst. Where one is just complete, rounding may decide."""
    clock = ManualClock()
    allows = limited(rate, burst, clock)
    tokens = Fraction(burst)
    for milliseconds, count in steps:
        clock.advance(milliseconds / 1000)
        tokens = min(Fraction(burst), tokens + Fraction(rate) * Fraction(milliseconds, 1000))
        for _ in range(count):
            allowed = allows()
            if abs(tokens - 1) > Fraction(1, 100):
                assert allowed == (tokens >= 1)
            if allowed:
                tokens = max(Fraction(0), tokens - 1)


@pytest.mark.parametrize("accepts", [[], [Op.ERROR]])
async def test_what_is_too_much_is_answered_and_goes_no_further(accepts: list[int]) -> None:
    messages = Echo()
    async with running(messages=messages, options=Options(rate=2, rate_burst=3)) as app:
        client = await app.connect({"mid": 1, "accepts": accepts})
        seqs = [await client.send(1000, str(number)) for number in range(5)]
        for number in range(3):
            await client.assert_reply(1000, str(number), seq=seqs[number])
        for seq in seqs[3:]:
            if accepts:
                assert await client.assert_refused(429, seq=seq) == "at most 2 frames a second"
            else:
                await client.assert_reply(1000, b"", seq=seq)
        await app.advance(0.5)
        await client.send(1000, "later")
        await client.assert_reply(1000, "later")
        await client.send(1000, "too soon")
        await app.advance(10)
        for number in range(4):
            await client.send(1000, f"again {number}")
        await app.idle()
        await client.assert_open()
    assert messages.heard == [b"0", b"1", b"2", b"later", b"again 0", b"again 1", b"again 2"]


async def test_heartbeats_are_free() -> None:
    async with running(options=Options(rate=1, rate_burst=1)) as app:
        client = await app.connect({"mid": 1})
        for _ in range(10):
            await client.heartbeat()
        assert (await client.request(Op.CHANGE_ROOM, "live://1")).body == b"live://1"
        assert (await client.request(Op.CHANGE_ROOM, "live://2")).body == b"live://1", "refused: it stays"
        for _ in range(10):
            await client.heartbeat()


@pytest.mark.parametrize(("op", "body"), [(Op.SUB, "1000"), (Op.JOIN, "live://1"), (Op.AUTH, "{}"), (9, "x")])
async def test_every_other_frame_counts(op: int, body: str) -> None:
    async with running(options=Options(rate=1, rate_burst=1)) as app:
        client = await app.connect({"mid": 1, "accepts": [Op.ERROR, Op.JOIN]})
        await client.send(op, body)
        seq = await client.send(1000)
        await client.assert_refused(429, seq=seq)


async def test_each_connection_has_its_own() -> None:
    async with running(messages=Echo(), options=Options(rate=1, rate_burst=1)) as app:
        for mid in (1, 1, 2):
            client = await app.connect({"mid": mid})
            assert (await client.request(1000, "x")).body == b"x"
            assert (await client.request(1000, "y")).body == b""


async def test_without_a_rate_there_is_no_limit() -> None:
    async with running(messages=Echo(), options=Options(rate_burst=1)) as app:
        client = await app.connect({"mid": 1})
        for _ in range(200):
            await client.send(1000, "x")
        for _ in range(200):
            await client.assert_reply(1000, "x")
