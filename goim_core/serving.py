"""A server as a process of its own: it runs until a signal, and reads its settings again at another."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
from attrs import define, evolve

from goim_core.errors import GoimError
from goim_core.options import FIXED
from goim_core.server import Server
from goim_core.settings import RELOADED, log_level, options_of, security_of
from goim_core.taskgroup import leave

__all__ = ["Reload", "serve_until_signal"]

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""Windows has none."""

_log = logging.getLogger("goim_core.server")


async def serve_until_signal(
    server: Server, *, ready: Callable[[], object], reload: Callable[[], object] | None = None
) -> None:
    """Run ``server`` until SIGTERM or SIGINT; a second one while it stops has it wait for nobody any more.

    ``ready`` is called once it listens, and ``reload`` at each SIGHUP. On asyncio on Windows Ctrl+C is a
    KeyboardInterrupt, and there is nothing else.
    """
    asked = anyio.Event()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if reload is not None and HANGUP is not None:
        numbers.append(HANGUP)

    async def watch(signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            if number == HANGUP and reload is not None:
                if not asked.is_set():
                    reload()
            elif asked.is_set():
                server.hurry()
            else:
                asked.set()

    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(NotImplementedError):  # asyncio on Windows
            signals = stack.enter_context(anyio.open_signal_receiver(*numbers))
            await stack.enter_async_context(_beside(lambda: watch(signals)))
        async with server:
            ready()
            await asked.wait()


@contextlib.asynccontextmanager
async def _beside(task: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run ``task`` beside the block, whose exceptions come out as they are."""
    tasks = await anyio.create_task_group().__aenter__()
    tasks.start_soon(task)
    try:
        yield
    except BaseException as error:
        tasks.cancel_scope.cancel()
        await leave(tasks, type(error), error, error.__traceback__)
        raise
    tasks.cancel_scope.cancel()
    await leave(tasks, None, None, None)


@define(eq=False)
class Reload:
    """Reads the settings of a running server again, and changes what can be changed: all of it, or nothing.

    ``settings`` are those it was made of, and ``read`` gives those of now. Nothing is raised: the log says
    what is wrong, or what takes a new start.
    """

    server: Server
    settings: dict[str, Any]
    read: Callable[[], dict[str, Any]]

    def __call__(self) -> None:
        """Read them."""
        try:
            wanted = self.read()
            level = log_level(wanted)
            options, now = options_of(wanted.get("options", {})), self.server.options
            fixed = {name: getattr(now, name) for name in FIXED}
            kept = [f"options.{name}" for name in FIXED if getattr(options, name) != fixed[name]]
            names = sorted({*wanted, *self.settings} - RELOADED)
            kept += [name for name in names if wanted.get(name) != self.settings.get(name)]
            # The doors stay as they are, and need what they need.
            effective = {name: value for name, value in self.settings.items() if name not in RELOADED}
            effective |= {name: value for name, value in wanted.items() if name in RELOADED}
            self.server.reload(options=evolve(options, **fixed), **security_of(effective))
        except GoimError as error:
            _log.error("nothing was loaded again: %s", error)
            return
        logging.getLogger().setLevel(level)
        _log.info("the settings were loaded again")
        if kept:
            _log.warning("%s: only a new start changes that", ", ".join(kept))
