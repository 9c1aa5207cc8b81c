"""Instruments, and what Prometheus reads of them: its own parser has to find what was counted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import inf
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from goim_core import Server, SignedTokenAuth, process
from goim_core.errors import Disconnect, QueueFull, Refused, ServerStopped
from goim_core.hooks import MessageHook, SessionHook
from goim_core.http_door import Request
from goim_core.metrics import Histogram, LoopLag
from goim_core.options import Options
from goim_core.prometheus import Page
from goim_core.protocol import Frame, Op
from goim_core.queue import MemoryQueue, PushMsg, PushType
from goim_core.scrape import _STATS, FAMILIES, _write_stats
from goim_core.session import Session
from goim_core.stats import Stats
from goim_core.testing import App, FaultyQueue, ManualClock, running
from tests.pages import TEXTS

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(body: bytes) -> tuple[dict[str, str], Samples]:
    """The kinds by name, and the samples, as Prometheus' own client reads them."""
    kinds: dict[str, str] = {}
    samples: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in kinds
        assert family.documentation
        kinds[name] = family.type
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples
            samples[key] = sample.value
    return kinds, samples


class Scraped:
    def __init__(self, body: bytes) -> None:
        self.kinds, self.samples = read(body)

    def __call__(self, name: str, /, **labels: str) -> float:
        return self.samples[f"goim_core_{name}", frozenset(labels.items())]


# Instruments.


@given(st.lists(st.floats(-1, 40) | st.sampled_from([0.5, 1.0, 20.0]), max_size=50))
def test_a_histogram_is_what_counting_one_by_one_gives(values: list[float]) -> None:
    histogram = Histogram((0.5, 1.0, 20.0))
    for value in values:
        histogram.observe(value)
    page = Page()
    page.family("h", "histogram", "meaning")
    page.histogram("h", histogram)
    _, samples = read(page.encode())
    for le, bound in (("0.5", 0.5), ("1.0", 1.0), ("20.0", 20.0), ("+Inf", inf)):
        assert samples["h_bucket", frozenset({("le", le)})] == sum(value <= bound for value in values)
    assert samples["h_count", frozenset()] == histogram.count == len(values)
    assert samples["h_sum", frozenset()] == pytest.approx(sum(values))


def test_the_worst_is_kept_for_a_while() -> None:
    now = 100.0
    lag = LoopLag(lambda: now)
    assert (lag.recent, lag.worst) == (0, 0)
    lag.observe(0.5)
    lag.observe(0.2)
    lag.observe(-0.1)  # a clock of coarse steps
    assert (lag.recent, lag.worst, lag.seconds.count) == (0.5, 0.5, 3)
    assert lag.seconds.sum == pytest.approx(0.7)
    now += 1.0
    assert lag.recent == 0.5  # whoever asks, and however often
    lag.observe(0.1)
    now += 1.0
    assert (lag.recent, lag.worst) == (0.1, 0.5)
    now += 30.0
    assert (lag.recent, lag.worst) == (0, 0.5)
    now += 30.0
    assert lag.worst == 0
    lag.observe(0.3)
    now += 60.0
    assert lag.worst == 0  # also where nobody has asked in between


@pytest.mark.anyio
async def test_the_wheel_tells_how_late_its_ticks_are() -> None:
    clock = ManualClock()
    async with Server(auth=SignedTokenAuth([b"a secret that is long enough"]), clock=clock) as server:
        await clock.asleep(0.25)
        clock.advance(0.4)
        with anyio.move_on_after(10):
            while not server.instruments.loop.seconds.count:
                await anyio.lowlevel.checkpoint()
        assert server.instruments.loop.seconds.sum == pytest.approx(0.15)
        clock.release()


@pytest.mark.anyio
async def test_the_queue_says_how_long_a_push_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr("goim_core.queue.monotonic", lambda: now)
    queue = MemoryQueue(4)
    assert queue.lag == 0
    for _ in range(2):
        await queue.publish(PushMsg(PushType.ROOM, 1000, b"", room="live://1"))
    now += 1.5
    await queue.receive()
    assert queue.lag == 1.5
    now += 1.0
    await queue.receive()
    assert queue.lag == 2.5


# The text.


@given(
    st.text(), st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False) | st.integers()
)
def test_any_text_and_any_number_arrive(meaning: str, label: str, value: float) -> None:
    page = Page()
    page.family("a_b", "gauge", meaning)
    page.sample("a_b", value, (("x", label), ("y", "1")))
    assert page.encode().count(b"\n") == 3
    [family] = list(text_string_to_metric_families(page.encode().decode()))
    [sample] = family.samples
    assert sample.labels == {"x": label, "y": "1"}
    assert sample.value == value


def test_half_a_surrogate_pair_is_no_error() -> None:
    page = Page()
    page.sample("a", 1, (("room", "live://\ud800"),))
    assert page.encode() == b'a{room="live://?"} 1\n'


def test_a_figure_without_a_name_is_told_all_the_same() -> None:
    @attrs.frozen
    class More(Stats):
        balloons: int
        colours: Mapping[int, int]

    known = {field.name: 0 for field in attrs.fields(Stats)}
    empty = {"drops": {}, "closes": {}, "troubles": {"queue": "a sentence"}}
    page = Page()
    _write_stats(page, More(**{**known, **empty, "balloons": 99, "colours": {3: 7}}))  # type: ignore[arg-type]
    scraped = Scraped(page.encode())
    assert scraped("balloons") == 99
    assert scraped("colours", name="3") == 7
    assert scraped.kinds["goim_core_balloons"] == "unknown"
    assert (scraped("trouble", part="queue"), scraped("trouble", part="registry")) == (1, 0)
    assert scraped("drops_total", reason="lost") == 0


# A server's.


async def metrics(app: App) -> Scraped:
    head, _, body = await app.server._pipeline.http.answer(Request("GET", "/metrics", {}, {}, b""))
    assert (b"content-type", b"text/plain; version=0.0.4; charset=utf-8") in head.headers
    return Scraped(body)


@pytest.mark.anyio
async def test_everything_has_its_name_kind_and_row() -> None:
    async with running() as app:
        found = (await metrics(app)).kinds
    rows = {name: kind for name, (kind, _) in FAMILIES.items()}
    absent = {figure.name for name, figure in _STATS.items() if name not in attrs.fields_dict(Stats)}
    expected = {name: kind for name, kind in rows.items() if name not in absent}
    if sys.platform == "linux":
        assert found == expected
    else:
        assert found.items() <= expected.items()
    table = TEXTS["observability.md"].partition("\n## Metrics\n")[2].partition("\n## ")[0]
    found = dict(row.split("` | ")[:2] for row in table.splitlines() if row.startswith("| `"))
    assert {name[3:]: kind.partition(" | ")[0] for name, kind in found.items()} == rows


@pytest.mark.anyio
async def test_what_was_done_is_counted() -> None:
    options = Options(outbox_packets=1)
    async with running(options=options, name='node "1"\\') as app:
        here = await app.connect({"mid": 1, "room_id": "live://1", "key": "a"})
        slow = await app.connect({"mid": 2, "room_id": "live://1"}, capacity=64)
        slow.pause_reading()
        for _ in range(3):
            await app.push_room("live://1", 1000, "x" * 100)
            await app.idle()
        await app.push_keys(["a"], 1000, "y")
        await app.push_mids([1], 1000, "y")
        await app.push_all(1000, "z")
        await app.server.disconnect_keys(["nobody"], Disconnect("off"))
        await app.server.disconnect_mids([5], Disconnect("off"))
        with pytest.raises(ValueError, match="op"):
            await app.push_room("live://1", 7)
        await app.idle()
        here.break_link()
        await app.idle()
        app.server.trace(2)
        await app.advance(5)
        scraped, stats = await metrics(app), app.server.stats()
    assert scraped("connections") == stats.connections == 1
    assert scraped("connections_opened_total") == 2
    assert scraped("connections_closed_total", code="4007") == 1
    assert scraped("deliveries_total") == stats.deliveries
    assert scraped("drops_total", reason="drop_newest") == stats.drops["drop_newest"] == 2
    assert scraped("pushes_total", kind="room", outcome="ok") == 3
    assert scraped("pushes_total", kind="room", outcome="refused") == 1
    assert scraped("pushes_total", kind="disconnect", outcome="ok") == 2
    for kind in ("keys", "users", "all"):
        assert scraped("pushes_total", kind=kind, outcome="ok") == 1
    assert scraped("batch_messages_count") == 6
    assert scraped("batch_messages_sum") == 6
    assert scraped("hook_outcomes_total", hook="connect", outcome="ok") == 2
    assert scraped("hook_seconds_count", hook="connect") == 2
    assert scraped("info", node='node "1"\\') == 1
    assert scraped("uptime_seconds") == 5
    assert (scraped("ready"), scraped("traced_users"), scraped("queue_pending")) == (1, 1, 0)


@pytest.mark.anyio
async def test_merged_messages_are_one_packet() -> None:
    async with running(options=Options(linger=1)) as app:
        client = await app.connect({"mid": 1, "room_id": "live://1"})
        for number in range(5):
            await app.push_room("live://1", 1000, str(number))
        await app.advance(1)
        for number in range(5):
            await client.assert_push(1000, str(number))
        scraped = await metrics(app)
    assert (scraped("batch_messages_count"), scraped("batch_messages_sum")) == (1, 5)
    assert [scraped("batch_messages_bucket", le=le) for le in ("2", "5", "+Inf")] == [0, 1, 1]


class Full(FaultyQueue):
    fault: Exception = QueueFull("full")

    async def publish(self, msg: PushMsg, *, nowait: bool = False) -> None:
        await anyio.lowlevel.checkpoint()
        raise self.fault


@pytest.mark.anyio
async def test_pushes_that_were_refused_and_that_failed() -> None:
    queue = Full()
    async with running(queue=queue) as app:
        with pytest.raises(QueueFull):
            await app.push_all(1000)
        queue.fault = ServerStopped("closed")
        with pytest.raises(ServerStopped):
            await app.push_all(1000)
        scraped = await metrics(app)
    assert [scraped("pushes_total", kind="all", outcome=of) for of in ("ok", "refused", "failed")] == [
        0,
        1,
        1,
    ]


class Moody(MessageHook):
    """Does what the message says, after as many seconds as its sequence."""

    def __init__(self) -> None:
        self.app: Any = None

    async def receive(self, session: Session, frame: Frame) -> None:
        if frame.op == 1009:
            await anyio.sleep_forever()
        await self.app.clock.sleep(0.2)
        error = {1001: Refused("no"), 1002: Disconnect("off"), 1003: RuntimeError("a fault")}.get(frame.op)
        if error is not None:
            raise error


@pytest.mark.anyio
async def test_hooks_are_timed_by_what_they_are_about_and_what_comes_of_it() -> None:
    messages = Moody()
    async with running(messages=messages, options=Options(hook_timeout=3), patience=0) as app:
        messages.app = app
        client = await app.connect({"mid": 1})
        for op in (1000, 1001, 1003, 1009, 1002):
            await client.send(op)
            await app.advance(3)
        scraped = await metrics(app)
    for outcome in ("ok", "refused", "error", "timeout", "disconnect"):
        assert scraped("hook_outcomes_total", hook="receive", outcome=outcome) == 1, outcome
    assert scraped("hook_seconds_sum", hook="receive") == pytest.approx(4 * 0.2 + 3)
    assert scraped("hook_seconds_bucket", hook="receive", le="0.25") == 4
    assert scraped("hook_seconds_bucket", hook="receive", le="0.1") == 0


@pytest.mark.anyio
async def test_a_heartbeat_that_concerns_nobody_is_no_exchange() -> None:
    class Beats(SessionHook):
        def heartbeat(self, session: Session) -> None: ...

    for sessions, expected in ((None, None), (Beats(), 1)):
        async with running(sessions=sessions) as app:
            client = await app.connect({"mid": 1, "room_id": "live://1", "accepts": [24]})
            await client.heartbeat()
            await client.request(Op.JOIN, "live://2")
            client.break_link()
            await app.idle()
            scraped = await metrics(app)
        for hook in ("connected", "withdraw", "disconnected"):
            assert scraped("hook_seconds_count", hook=hook) == 1
        assert scraped("hook_seconds_count", hook="left") == 2
        count = scraped.samples.get(("goim_core_hook_seconds_count", frozenset({("hook", "heartbeat")})))
        assert count == expected
        assert scraped("hook_seconds_count", hook="operation") == 1


# The process.


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_the_process(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Samples:
        page = Page()
        process.write_process(page)
        return read(page.encode())[1]

    def of(name: str) -> float:
        return found()[f"process_{name}", frozenset()]

    before = of("open_fds")
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"):
        assert of("open_fds") == before + 2
        # Where the kernel does not tell, the names are counted.
        other = tmp_path / "proc"
        (other / "fd").mkdir(parents=True)
        for name in ("statm", "stat", "status"):
            (other / name).write_bytes((process.PROC / name).read_bytes())
    assert 0 < of("resident_memory_bytes") < of("virtual_memory_bytes")
    assert of("cpu_seconds_total") > 0
    assert of("max_fds") >= of("open_fds")
    assert 1_700_000_000 < of("start_time_seconds") < 5_000_000_000
    assert found()["python_gc_collections_total", frozenset({("generation", "2")})] >= 0
    monkeypatch.setattr(process, "PROC", tmp_path / "nowhere")
    assert ("process_open_fds", frozenset()) not in found()
    assert ("process_cpu_seconds_total", frozenset()) in found()


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_descriptors_of_an_older_kernel(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = process._descriptors()

    class Old(type(process.PROC)):  # type: ignore[misc]
        def stat(self, **settings: Any) -> Any:
            return attrs.make_class("Size", ["st_size"])(0)

    monkeypatch.setattr(process, "PROC", Old("/proc/self"))
    assert process._descriptors() == exact
    monkeypatch.setattr(process, "FEW", 1)
    assert process._descriptors() is None
