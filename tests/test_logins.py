"""How many connections a user may have: allowed, replaced, refused, at most N, for each platform."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goim_core.errors import CloseCode, ConfigurationError, Disconnect, Refused
from goim_core.hooks import AuthHook, LoginPolicy, SessionHook
from goim_core.logic import Logic
from goim_core.protocol import Op
from goim_core.queue import MemoryQueue
from goim_core.registry import MemoryRegistry
from goim_core.session import AuthRequest, Session
from goim_core.testing import running
from goim_core.wire import read_disconnect
from tests.logics import LaterRegistry, new_logic, run

pytestmark = pytest.mark.anyio

ONE = LoginPolicy(at_most=1)
REFUSE = LoginPolicy(at_most=1, replace=False)


class Auth(AuthHook):
    def authenticate(self, request: AuthRequest) -> Session:
        return Session(**json.loads(request.token))


class Sessions(SessionHook):
    def __init__(self, logins: LoginPolicy, refuse: str = "") -> None:
        self.logins = logins
        self.refuse = refuse
        self.heard: list[str] = []

    def connected(self, session: Session) -> None:
        self.heard.append(f"{session.key} connected")
        if session.key == self.refuse:
            raise Refused("not today")

    def disconnected(self, session: Session, reason: Disconnect) -> None:
        self.heard.append(f"{session.key} disconnected")


class Door:
    """Logic with a policy; who comes in, and who is told to go."""

    def __init__(self, logins: LoginPolicy, later: bool = False) -> None:
        self.registry: Any = LaterRegistry() if later else MemoryRegistry()
        self.queue = MemoryQueue(1000)
        self.logic: Logic = new_logic(
            auth=Auth(), sessions=Sessions(logins), registry=self.registry, queue=self.queue
        )
        self.inside: dict[str, Session] = {}

    async def connect(self, key: str, platform: str = "", mid: int = 1) -> Session:
        token = json.dumps({"mid": mid, "key": key, "platform": platform}).encode()
        session = await run(self.logic.connect(AuthRequest(token=token)))
        assert isinstance(session, Session)
        return session

    async def come(self, key: str, platform: str = "", mid: int = 1) -> bool:
        """Whether it was let in; those who have to go for it are gone then."""
        try:
            session = await self.connect(key, platform, mid)
        except Disconnect as refused:
            assert refused.code == CloseCode.TOO_MANY_LOGINS
            return False
        await run(self.logic.connected(session))
        self.inside[key] = session
        for gone in await self.told():
            await self.go(gone)
        return True

    async def told(self) -> list[str]:
        keys = []
        while self.queue.pending:
            msg = await self.queue.receive()
            self.queue.acknowledge(msg)
            assert msg.operation == Op.DISCONNECT_REPLY
            assert read_disconnect(msg.msg).code == CloseCode.TOO_MANY_LOGINS
            keys += msg.keys
        return keys

    async def go(self, key: str) -> None:
        session = self.inside.pop(key)
        for flow in (
            *self.logic.withdrawn(session, 0),
            *self.logic.disconnected(session, Disconnect("gone")),
        ):
            await run(flow)

    def keys(self) -> list[str]:
        return list(self.inside)


@pytest.mark.parametrize("at_most", [0, -1, True, "1", 1.0])
def test_a_policy_that_makes_no_sense(at_most: Any) -> None:
    with pytest.raises(ConfigurationError, match="^at_most: "):
        LoginPolicy(at_most=at_most)


@pytest.mark.parametrize("later", [False, True])
async def test_any_number_is_the_default(later: bool) -> None:
    door = Door(LoginPolicy(), later)
    for key in "abcde":
        assert await door.come(key)
    assert door.keys() == list("abcde")


@pytest.mark.parametrize("later", [False, True])
async def test_the_new_replaces_the_old(later: bool) -> None:
    door = Door(ONE, later)
    assert await door.come("a")
    assert await door.come("other", mid=2)
    assert await door.come("b")
    assert door.keys() == ["other", "b"]


@pytest.mark.parametrize("later", [False, True])
async def test_the_new_is_refused(later: bool) -> None:
    door = Door(REFUSE, later)
    assert await door.come("a")
    assert not await door.come("b")
    assert await door.come("other", mid=2)
    assert door.keys() == ["a", "other"]
    await door.go("a")
    assert await door.come("b")
    registry = door.registry.inner if later else door.registry
    assert [session.key for session in registry.mids([1])] == ["b"]


@pytest.mark.parametrize("later", [False, True])
async def test_the_newest_three_stay(later: bool) -> None:
    door = Door(LoginPolicy(at_most=3), later)
    for key in "abcde":
        assert await door.come(key)
    assert door.keys() == list("cde")


@pytest.mark.parametrize("later", [False, True])
async def test_each_platform_counts_for_itself(later: bool) -> None:
    door = Door(LoginPolicy(at_most=1, each_platform=True), later)
    for key, platform in (("w1", "web"), ("p1", "phone"), ("w2", "web"), ("none", ""), ("p2", "phone")):
        assert await door.come(key, platform)
    assert door.keys() == ["w2", "none", "p2"]
    door = Door(LoginPolicy(at_most=1, replace=False, each_platform=True), later)
    come = [
        await door.come(key, platform) for key, platform in (("w1", "web"), ("p1", "phone"), ("w2", "web"))
    ]
    assert come == [True, True, False]


@pytest.mark.parametrize("policy", [ONE, REFUSE, LoginPolicy(at_most=2, replace=False)])
@pytest.mark.parametrize("later", [False, True])
async def test_who_takes_over_its_own_key_is_not_one_more(policy: LoginPolicy, later: bool) -> None:
    door = Door(policy, later)
    assert await door.come("a")
    assert await door.come("a")
    assert door.keys() == ["a"]
    assert await door.told() == []


async def test_who_was_there_before_with_more_than_are_allowed_now_gives_way() -> None:
    door = Door(LoginPolicy(at_most=2))
    for key in "abcd":
        door.inside[key] = session = Session(mid=1, key=key)
        door.registry.add(session)
    assert await door.come("e")
    assert door.keys() == ["d", "e"]


# At the same time, which takes a registry that takes its time.


@pytest.mark.parametrize("at_most", [1, 2])
async def test_of_those_that_come_at_once_only_so_many_are_let_in(at_most: int) -> None:
    door = Door(LoginPolicy(at_most=at_most, replace=False), later=True)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for key in "abcd":
                tasks.start_soon(door.come, key)
    assert len(door.keys()) == at_most
    assert {session.key for session in door.registry.inner.mids([1])} == set(door.keys())


@pytest.mark.parametrize("at_most", [1, 2])
async def test_of_those_that_come_at_once_the_last_stay(at_most: int) -> None:
    """They must not send each other away."""
    door = Door(LoginPolicy(at_most=at_most), later=True)
    sessions = [await door.connect(key) for key in "abcd"]
    async with anyio.create_task_group() as tasks:
        for session in sessions:
            tasks.start_soon(run, door.logic.connected(session))
    assert set(await door.told()) == set("abcd"[:-at_most])


async def test_a_registry_that_fails_after_the_add_leaves_no_route() -> None:
    class Failing(MemoryRegistry):
        def mids(self, mids: Any) -> list[Session]:
            if len(self):
                raise ConnectionError("the registry is gone")
            return []

    registry = Failing()
    logic = new_logic(auth=Auth(), sessions=Sessions(REFUSE), registry=registry)
    with pytest.raises(ConnectionError):
        await run(logic.connect(AuthRequest(token=b'{"mid":1,"key":"a"}')))
    assert len(registry) == 0


# On a server.


@pytest.mark.parametrize("wire", ["tcp", "ws"])
async def test_the_one_that_gives_way_is_told(wire: str) -> None:
    sessions = Sessions(ONE)
    async with running(auth=Auth(), sessions=sessions) as app:
        old = await app.connect({"mid": 1, "key": "a"}, wire)
        new = await app.connect({"mid": 1, "key": "b"}, wire)
        why = await old.assert_closed(CloseCode.TOO_MANY_LOGINS)
        assert why.reason == "this user has connected elsewhere"
        await new.assert_open()
    assert sessions.heard == ["a connected", "b connected", "a disconnected", "b disconnected"]


async def test_the_one_that_is_refused_is_told() -> None:
    sessions = Sessions(REFUSE)
    async with running(auth=Auth(), sessions=sessions) as app:
        old = await app.connect({"mid": 1, "key": "a"})
        with pytest.raises(Disconnect, match="connected elsewhere") as refused:
            await app.connect({"mid": 1, "key": "b"})
        assert refused.value.code == CloseCode.TOO_MANY_LOGINS
        await old.assert_open()
    assert sessions.heard == ["a connected", "a disconnected"]


async def test_nobody_gives_way_to_one_that_the_hook_turns_away() -> None:
    sessions = Sessions(ONE, refuse="b")
    async with running(auth=Auth(), sessions=sessions) as app:
        old = await app.connect({"mid": 1, "key": "a"})
        await (await app.open()).send(Op.AUTH, {"mid": 1, "key": "b"})
        await old.assert_open()
    assert sessions.heard == ["a connected", "b connected", "b disconnected", "a disconnected"]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["web", "phone"])), max_size=12),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
async def test_a_policy_against_a_simple_model(
    logins: list[tuple[str, str]], at_most: int, replace: bool, each_platform: bool
) -> None:
    policy = LoginPolicy(at_most, replace, each_platform)
    door, model = Door(policy), dict[str, str]()
    for key, platform in logins:
        if key in model:
            await door.go(key)
            del model[key]
            continue
        rivals = [k for k, other in model.items() if not each_platform or other == platform]
        allowed = replace or len(rivals) < at_most
        assert await door.come(key, platform) == allowed
        if allowed:
            for rival in rivals[: max(0, len(rivals) + 1 - at_most)]:
                del model[rival]
            model[key] = platform
        assert door.keys() == list(model)


@pytest.mark.parametrize("again", [False, True])
async def test_a_key_that_is_taken_over_by_one_that_breaks_off(again: bool) -> None:
    """Who had it has no route any more, and so is replaced all the same; one that has it by now stays."""

    class Slow(MemoryRegistry):
        gate: anyio.Event | None = None

        async def add(self, session: Session) -> None:  # type: ignore[override]
            gate, self.gate = self.gate, None
            super().add(session)
            if gate is not None:
                await gate.wait()

    registry = Slow()
    async with running(auth=Auth(), registry=registry) as app:
        token = {"mid": 1, "key": "k", "accepts": [1000]}
        first = await app.connect(token)
        gate = registry.gate = anyio.Event()
        second = await app.open()
        await second.send(Op.AUTH, token)
        await app.idle()
        second.break_link()
        await app.idle()
        third = await app.connect(token) if again else None
        gate.set()
        await first.assert_closed(CloseCode.REPLACED)
        await app.push_keys(["k"], 1000)
        if third is not None:
            await third.assert_push(1000)
