"""Serving until a signal, in this process: what tests/e2e/test_drain.py cannot show with a real one."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
import pytest

from goim_core import OpenAuth, Server
from goim_core.serving import HANGUP, serve_until_signal

pytestmark = pytest.mark.anyio


class Signals:
    """In place of :func:`anyio.open_signal_receiver`: what it was asked for, and signals that the test sends."""

    def __init__(self) -> None:
        self.asked: tuple[int, ...] = ()
        self.send, self._stream = anyio.create_memory_object_stream[int](10)

    def __call__(self, *numbers: int) -> AbstractContextManager[Any]:
        self.asked = numbers
        return self._stream


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Signals:
    found = Signals()
    monkeypatch.setattr(anyio, "open_signal_receiver", found)
    return found


async def test_where_there_are_no_signals_it_runs_until_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio on Windows."""

    @contextmanager
    def none(*_: int) -> Any:
        raise NotImplementedError
        yield

    monkeypatch.setattr(anyio, "open_signal_receiver", none)
    server = Server(auth=OpenAuth(), tcp="127.0.0.1:0")
    with anyio.CancelScope() as scope:
        await serve_until_signal(server, ready=scope.cancel)
    assert scope.cancelled_caught
    assert server.draining


async def test_a_system_without_sighup_is_not_asked_for_it(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goim_core.serving.HANGUP", None)
    with signals.send:
        server = Server(auth=OpenAuth(), tcp="127.0.0.1:0")
        await serve_until_signal(
            server, ready=lambda: signals.send.send_nowait(15), reload=lambda: pytest.fail("reloaded")
        )
    assert len(signals.asked) == 2


@pytest.mark.skipif(HANGUP is None, reason="this system has none")
async def test_while_it_stops_nothing_is_loaded_again(signals: Signals) -> None:
    assert HANGUP is not None
    heard: list[str] = []

    class Watched(Server):
        def hurry(self) -> None:
            heard.append("hurry")
            super().hurry()

        async def _stop(self) -> None:
            for number in (HANGUP, 15):
                await signals.send.send(number or 0)
            await anyio.wait_all_tasks_blocked()
            await super()._stop()

    def ready() -> None:
        for number in (HANGUP, 2):
            signals.send.send_nowait(number or 0)

    with signals.send:
        server = Watched(auth=OpenAuth(), tcp="127.0.0.1:0")
        await serve_until_signal(server, ready=ready, reload=lambda: heard.append("reload"))
    assert heard == ["reload", "hurry"]


async def test_what_the_server_raises_comes_out_as_it_is(signals: Signals) -> None:
    with signals.send:
        with pytest.raises(OSError, match="tcp: cannot listen on"):
            await serve_until_signal(Server(auth=OpenAuth(), tcp="unix:/no/such/folder/x"), ready=pytest.fail)
