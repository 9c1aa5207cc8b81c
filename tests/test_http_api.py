"""goim's HTTP API through the door: what each call asks of the server, and the exact bytes of its answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goim_core.errors import ConfigurationError, QueueFull, ServerStopped
from goim_core.http_api import PushAPI
from goim_core.http_door import HTTPDoor
from goim_core.protocol import pushable
from goim_core.steps import Steps
from tests.test_http_door import Peer, connected, tcp_pair

pytestmark = pytest.mark.anyio

DONE = b'{"code":0,"message":""}'


class Recorder:
    """A service that keeps what it is asked, and answers from what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fault: Exception | None = None
        self.rooms = {"live://1000": 100, "live://2000": 7, "live://caf\u00e9 <1>": 3, "chat://1000": 1}

    async def _take(self, *call: Any) -> None:
        await anyio.lowlevel.checkpoint()
        if self.fault is not None:
            raise self.fault
        self.calls.append(call)

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes) -> None:
        await self._take("keys", list(keys), op, body)

    async def push_mids(
        self, mids: Iterable[int], op: int, body: bytes, *, idempotency_key: str = ""
    ) -> None:
        await self._take("mids", list(mids), op, body, *([idempotency_key] if idempotency_key else []))

    async def push_room(self, room_id: str, op: int, body: bytes) -> None:
        await self._take("room", room_id, op, body)

    async def push_all(self, op: int, body: bytes, *, speed: int = 0) -> None:
        await self._take("all", op, body, speed)

    def ranking(self, kind: str, limit: int) -> Steps[list[tuple[str, int]]]:
        yield
        self.calls.append(("top", kind, limit))
        found = [(room.partition("://")[2], n) for room, n in self.rooms.items() if room.startswith(kind)]
        return sorted(found, key=lambda item: -item[1])[:limit]

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        return {room_id: self.rooms[room_id] for room_id in room_ids if room_id in self.rooms}

    def online_total(self) -> tuple[int, int]:
        return 3, 108

    def nodes_weighted(self, platform: str, address: str) -> dict[str, Any]:
        return {"domain": platform, "nodes": [address], "backoff": {"factor": 1.8}}

    def nodes_instances(self) -> list[dict[str, Any]]:
        return []


async def ask(peer: Peer, path: str, body: bytes | None = None) -> bytes:
    answer = await (peer.get(path) if body is None else peer.post(path, body))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json; charset=utf-8")
    return answer.body


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("keys?operation=1000&keys=a", ("keys", ["a"], 1000, b"hi")),
        ("keys?keys=b&operation=4&keys=a&keys=&keys=a%26,c", ("keys", ["b", "a", "a&,c"], 4, b"hi")),
        ("mids?operation=1000&mids=7&mids=-1", ("mids", [7, -1], 1000, b"hi")),
        (
            "mids?operation=64&mids=9223372036854775807&mids=-9223372036854775808&mids=%2B07",
            ("mids", [2**63 - 1, -(2**63), 7], 64, b"hi"),
        ),
        ("room?operation=2147483647&type=live&room=1000", ("room", "live://1000", 2**31 - 1, b"hi")),
        ("room?operation=5&type=live&room=caf%C3%A9+1&room=2", ("room", "live://caf\u00e9 1", 5, b"hi")),
        ("all?operation=1000", ("all", 1000, b"hi", 0)),
        ("all?operation=1000&speed=", ("all", 1000, b"hi", 0)),
        ("all?operation=1000&speed=32", ("all", 1000, b"hi", 32)),
    ],
)
async def test_a_push(path: str, call: tuple[Any, ...]) -> None:
    server = Recorder()
    async with connected(HTTPDoor(PushAPI(server).routes)) as peer:
        assert await ask(peer, f"/goim/push/{path}", b"hi") == DONE
        assert server.calls == [call]
        assert await ask(peer, f"/goim/push/{path}", b"") == DONE
        assert server.calls[1] == tuple(b"" if part == b"hi" else part for part in call)


async def test_a_push_that_may_be_tried_again() -> None:
    server = Recorder()
    path = "/goim/push/mids?operation=1000&mids=7"
    async with connected(HTTPDoor(PushAPI(server).routes)) as peer:
        assert (await peer.post(path, b"hi", "Idempotency-Key: order-7\r\n")).body == DONE
        assert server.calls == [("mids", [7], 1000, b"hi", "order-7")]
        answer = await peer.post(path, b"hi", f"Idempotency-Key: {'k' * 257}\r\n")
        assert answer.body == b'{"code":-400,"message":"Idempotency-Key: expected at most 256 characters"}'
        server.fault = ConfigurationError("idempotency_key: it needs a storage, and the server has none")
        answer = await peer.post(path, b"hi", "Idempotency-Key: order-7\r\n")
        assert answer.body.startswith(b'{"code":-400,"message":"idempotency_key: it needs a storage')
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("online/top?type=live&limit=2", '[{"room_id":"1000","count":100},{"room_id":"2000","count":7}]'),
        ("online/top?type=none&limit=10", "[]"),
        ("online/room?type=live&rooms=2000&rooms=1000&rooms=x&rooms=1000", '{"1000":100,"2000":7,"x":0}'),
        ("online/room?type=live&rooms=caf%C3%A9%20%3C1%3E", '{"caf\u00e9 <1>":3}'),
        ("online/total", '{"conn_count":108,"ip_count":3}'),
        ("nodes/weighted", '{"domain":"","nodes":["127.0.0.1"],"backoff":{"factor":1.8}}'),
        ("nodes/weighted?platform=web", '{"domain":"web","nodes":["127.0.0.1"],"backoff":{"factor":1.8}}'),
        ("nodes/instances", "[]"),
    ],
)
async def test_a_question(path: str, data: str) -> None:
    api = PushAPI(Recorder())
    async with connected(HTTPDoor({**api.routes, **api.public}), tcp_pair) as peer:
        expected = f'{{"code":0,"message":"","data":{data}}}'.encode()
        assert await ask(peer, f"/goim/{path}") == expected


async def test_a_name_with_half_a_surrogate_pair_can_be_answered() -> None:
    server = Recorder()
    server.rooms = {"live://\ud800": 1}
    async with connected(HTTPDoor(PushAPI(server).routes)) as peer:
        answer = await ask(peer, "/goim/online/top?type=live&limit=1")
        assert answer == b'{"code":0,"message":"","data":[{"room_id":"?","count":1}]}'


OP = "an int32 that may be pushed (64 or more, or 4, 5)"
LONG = "x" * 300
NO_ROOM = f"room_id: expected 'type://id' of at most 256 printable characters, got 'live://{LONG[:73]}'"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("push/keys?keys=a", f"operation: missing, expected {OP}"),
        ("push/keys?operation=&keys=a", f"operation: missing, expected {OP}"),
        ("push/keys?operation=abc&keys=a", f"operation: expected {OP}, got 'abc'"),
        ("push/mids?operation=9&mids=1", f"operation: expected {OP}, got '9'"),
        ("push/room?operation=63&type=a&room=b", f"operation: expected {OP}, got '63'"),
        ("push/all?operation=2147483648", f"operation: expected {OP}, got '2147483648'"),
        ("push/all?operation=-1", f"operation: expected {OP}, got '-1'"),
        ("push/all?operation=1_000", f"operation: expected {OP}, got '1_000'"),
        ("push/all?operation=%D9%A1000", f"operation: expected {OP}, got '\u0661000'"),
        ("push/all?operation=" + "9" * 5000, f"operation: expected {OP}, got '{'9' * 80}'"),
        ("push/keys?operation=1000", "keys: missing, expected connection keys"),
        ("push/keys?operation=1000&keys=", "keys: missing, expected connection keys"),
        ("push/mids?operation=1000", "mids: missing, expected user ids (int64)"),
        ("push/mids?operation=1000&mids=1&mids=x", "mids: expected user ids (int64), got 'x'"),
        ("push/mids?operation=1000&mids=1,2", "mids: expected user ids (int64), got '1,2'"),
        (
            "push/mids?operation=1000&mids=9223372036854775808",
            "mids: expected user ids (int64), got '9223372036854775808'",
        ),
        ("push/room?operation=1000&room=1", "type: missing, expected a room type"),
        ("push/room?operation=1000&type=live&room=", "room: missing, expected a room name"),
        (
            f"push/room?operation=1000&type=live&room={LONG}",
            f"type and room: {NO_ROOM}",
        ),
        (
            "push/all?operation=1000&speed=-1",
            "speed: expected connections a second (0: at once), got '-1'",
        ),
        ("online/top?limit=1", "type: missing, expected a room type"),
        ("online/top?type=live", "limit: missing, expected how many rooms, 1 or more"),
        ("online/top?type=live&limit=0", "limit: expected how many rooms, 1 or more, got '0'"),
        ("online/room?type=live", "rooms: missing, expected room names"),
        ("online/room?rooms=1", "type: missing, expected a room type"),
        (
            f"online/room?type=live&rooms={LONG}",
            f"type and rooms: {NO_ROOM}",
        ),
    ],
)
async def test_a_bad_request_names_the_parameter(path: str, message: str) -> None:
    server = Recorder()
    async with connected(HTTPDoor(PushAPI(server).routes)) as peer:
        answer = await ask(peer, f"/goim/{path}", b"hi" if path.startswith("push") else None)
        assert answer == f'{{"code":-400,"message":"{message}"}}'.encode()
        assert not server.calls
        assert await ask(peer, "/goim/push/all?operation=64", b"") == DONE


@pytest.mark.parametrize("fault", [QueueFull("the push queue is full"), ServerStopped("it has stopped")])
async def test_a_push_that_is_not_taken(fault: Exception) -> None:
    server = Recorder()
    server.fault = fault
    async with connected(HTTPDoor(PushAPI(server).routes)) as peer:
        for path in ("keys?keys=a&", "mids?mids=1&", "room?type=a&room=b&", "all?"):
            answer = await ask(peer, f"/goim/push/{path}operation=1000", b"hi")
            assert answer == f'{{"code":-500,"message":"{fault}"}}'.encode()


async def test_a_fault_of_the_server_is_no_answer_of_the_api(caplog: pytest.LogCaptureFixture) -> None:
    server = Recorder()
    server.fault = ValueError("a bug")
    async with connected(HTTPDoor(PushAPI(server).routes)) as peer:
        answer = await peer.post("/goim/push/all?operation=1000", b"hi")
    assert (answer.status, answer.body) == (500, b'{"code":-500,"message":"internal error"}')
    assert "a bug" in caplog.text


async def test_each_path_has_one_method() -> None:
    api = PushAPI(Recorder())
    assert set(api.public) == {"/goim/nodes/weighted"}
    routes = {**api.routes, **api.public}
    assert len(routes) == 9
    async with connected(HTTPDoor(routes)) as peer:
        for path in routes:
            push = "/push/" in path
            answer = await (peer.get(path) if push else peer.post(path, b""))
            assert (answer.status, answer.headers["allow"]) == (405, "POST" if push else "GET, HEAD")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4),
    st.integers(-(2**33), 2**33) | st.integers(0, 130),
)
async def test_keys_and_operations_of_any_kind(keys: list[str], op: int) -> None:
    server = Recorder()
    path = "/goim/push/keys?" + urlencode({"operation": op, "keys": keys}, doseq=True)
    async with connected(HTTPDoor(PushAPI(server).routes)) as peer:
        answer = await ask(peer, path, b"")
    if pushable(op) and any(keys):
        assert answer == DONE
        assert server.calls == [("keys", [key for key in keys if key], op, b"")]
    else:
        assert answer.startswith(b'{"code":-400,"message":')
        assert not server.calls
