"""Options that change while a server runs: who is connected has the new ones from its next frame on."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest

from goim_core.errors import CloseCode, ConfigurationError, ErrorCode, ServerStopped
from goim_core.hooks import MessageHook
from goim_core.options import FIXED, Options
from goim_core.protocol import Frame, Op
from goim_core.session import Session
from goim_core.testing import App, running

pytestmark = pytest.mark.anyio

TOKEN = {"mid": 1, "accepts": [int(Op.ERROR), int(Op.JOIN), 1000]}
OTHER = {"backlog": 7, "buckets": 7, "queue_size": 7, "send_threads": 7, "ws_path": "/other"}


def reload(app: App, **changes: Any) -> None:
    app.server.reload(options=attrs.evolve(app.server.options, **changes))


@pytest.mark.parametrize("name", FIXED)
async def test_what_cannot_change_is_refused_by_name_and_then_nothing_has(name: str) -> None:
    async with running() as app:
        before = app.server.options
        with pytest.raises(
            ConfigurationError, match=f"^{name}: .* while the server runs, got {OTHER[name]!r}"
        ):
            reload(app, **{name: OTHER[name], "max_rooms": 0})
        assert app.server.options is before
        client = await app.connect(TOKEN)
        await client.request(Op.JOIN, "live://1")
        await client.assert_open()
        assert client.session.joined == {"live://1"}


async def test_only_while_it_runs() -> None:
    async with running() as app:
        pass
    with pytest.raises(ServerStopped):
        reload(app)


async def test_the_next_frame_is_under_the_new_limits() -> None:
    async with running() as app:
        client = await app.connect(TOKEN)
        await client.request(Op.JOIN, "live://1")
        reload(app, max_rooms=1)
        seq = await client.send(Op.JOIN, "live://2")
        await client.assert_refused(ErrorCode.TOO_MANY, seq=seq)
        reload(app, max_rooms=2, rate=1, rate_burst=1)
        await client.assert_reply(seq=await client.send(Op.JOIN, "live://2"))
        await client.assert_refused(ErrorCode.TOO_MANY, seq=await client.send(1000))


@pytest.mark.parametrize("wire", ["tcp", "ws"])
async def test_so_is_its_size(wire: str) -> None:
    async with running() as app:
        old = await app.connect(TOKEN, wire)
        large = bytes(5000)
        reload(app, max_body=5000)
        await old.assert_reply(seq=await old.send(1000, large))
        new = await app.connect(TOKEN, wire)
        await new.assert_reply(seq=await new.send(1000, large))
        reload(app, max_body=4999)
        await old.send(1000, large)
        await old.assert_closed(CloseCode.TOO_BIG)


async def test_a_heartbeat_is_due_by_the_new_time_after_the_next_one() -> None:
    async with running() as app:
        client = await app.connect(TOKEN)
        reload(app, heartbeat=10, heartbeat_max=1)
        await app.advance(100)
        await client.heartbeat()
        await app.advance(9)
        await client.assert_open()
        await app.advance(2)
        await client.assert_closed(CloseCode.HEARTBEAT_TIMEOUT)
        late = await app.open()
        reload(app, auth_timeout=1)
        hasty = await app.open()
        await app.advance(2)
        await hasty.assert_closed(CloseCode.AUTH_TIMEOUT)
        await late.assert_open()


class Slow(MessageHook):
    """Counts who is with it, and lets nobody go."""

    inside = 0

    async def receive(self, session: Session, frame: Frame) -> None:
        self.inside += 1
        try:
            await anyio.sleep_forever()
        finally:
            self.inside -= 1


async def test_more_hooks_at_a_time_and_less_time_for_each() -> None:
    hook = Slow()
    async with running(messages=hook, options=Options(max_hooks=1), patience=0) as app:
        clients = [await app.connect(TOKEN) for _ in range(3)]
        for client in clients[:2]:
            await client.send(1000)
            await app.idle()
        assert hook.inside == 1
        reload(app, max_hooks=3, hook_timeout=5)
        await clients[2].send(1000)
        await app.idle()
        assert hook.inside == 3, "the one that waited, and the new one"
        await app.advance(6)
        for client in clients[1:]:
            await client.assert_refused(ErrorCode.TIMEOUT)
        assert hook.inside == 1, "which began with 30 s"


async def test_pushes_are_merged_by_the_new_rule() -> None:
    async with running(options=Options(linger=1)) as app:
        client = await app.connect({**TOKEN, "room_id": "live://1"})
        await app.push_room("live://1", 1000, "late")
        await client.refute_push()
        await app.advance(2)
        await client.assert_push(1000, "late")
        reload(app, linger=0)
        await app.push_room("live://1", 1000, "at once")
        await client.assert_push(1000, "at once")
