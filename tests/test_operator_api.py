"""The operator's routes: the exact shape of what they answer, and who is ready when."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import attrs
import pytest

from goim_core import overview
from goim_core.http_door import Request
from goim_core.overview import Overview
from goim_core.stats import Stats
from goim_core.testing import running

pytestmark = pytest.mark.anyio


async def ask(server: Overview, target: str, method: str = "GET") -> tuple[int, Any]:
    """The status, and what is in the JSON of the answer."""
    path, _, query = target.partition("?")
    values = {name: tuple(found) for name, found in parse_qs(query, keep_blank_values=True).items()}
    head, _, body = await server._pipeline.http.answer(Request(method, path, values, {}, b""))  # type: ignore[attr-defined]
    assert (b"content-type", b"application/json; charset=utf-8") in head.headers
    return head.status_code, json.loads(body)


async def test_the_figures() -> None:
    async with running(name="node-1") as app:
        await app.connect({"mid": 1, "room_id": "live://1"})
        await app.connect({"mid": 2, "room_id": "live://1"})
        await app.connect({"mid": 3, "room_id": "chat://\u00e9"})
        await app.advance(12.5)
        status, answer = await ask(app.server, "/goim/operator/stats")
    assert (status, answer["code"], answer["message"]) == (200, 0, "")
    data = answer["data"]
    assert set(data) == {
        "node", "version", "uptime", "ready", "draining", "stats", "lag", "hooks", "pushes", "batch", "top",
    }  # fmt: skip
    assert (data["node"], data["uptime"], data["ready"], data["draining"]) == ("node-1", 12.5, True, False)
    assert data["version"]
    assert set(data["stats"]) == {field.name for field in attrs.fields(Stats)}
    assert (data["stats"]["users"], data["stats"]["drops"], data["stats"]["rooms"]) == (3, {}, 2)
    assert set(data["lag"]) == {"loop", "queue"}
    assert set(data["batch"]) == {"count", "sum"}
    assert data["top"] == [{"room_id": "live://1", "online": 2}, {"room_id": "chat://\u00e9", "online": 1}]


async def test_codes_are_text_in_json() -> None:
    async with running() as app:
        client = await app.connect({"mid": 1})
        client.break_link()
        await app.idle()
        _, answer = await ask(app.server, "/goim/operator/stats")
    assert answer["data"]["stats"]["closes"] == {"4007": 1}


async def test_at_most_twenty_rooms_and_none_of_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as app:
        for number in range(22):
            await app.connect({"mid": 1, "room_id": f"live://{number:02}"})
        await app.connect({"mid": 1, "room_id": "live://21"})
        _, answer = await ask(app.server, "/goim/operator/stats")
        names = [room["room_id"] for room in answer["data"]["top"]]
        assert names == ["live://21", *(f"live://{number:02}" for number in range(19))]
        monkeypatch.setattr(overview, "MANY_ROOMS", 21)
        assert app.server.top(20) == []
        monkeypatch.setattr(overview, "MANY_ROOMS", 22)
        assert len(app.server.top(20)) == 20


async def test_health() -> None:
    fine = (200, {"code": 0, "message": ""})
    async with running() as app:
        assert await ask(app.server, "/healthz") == fine
        assert await ask(app.server, "/readyz") == fine
        await app.server.drain()
        assert await ask(app.server, "/healthz") == fine
        assert await ask(app.server, "/readyz") == (503, {"code": -503, "message": "the server is draining"})
        _, answer = await ask(app.server, "/goim/operator/stats")
        assert (answer["data"]["ready"], answer["data"]["draining"]) == (False, True)
        await app.server.drain(False)
        assert await ask(app.server, "/readyz") == fine
    stopped = (503, {"code": -503, "message": "the server is not running"})
    assert await ask(app.server, "/readyz") == stopped
    assert app.server.uptime == 0


async def test_who_is_traced() -> None:
    trace = "/goim/operator/trace"
    async with running() as app:
        assert await ask(app.server, trace) == (
            200,
            {"code": 0, "message": "", "data": {"traced": [], "next": 0, "lines": []}},
        )
        for mid, on, traced in ((7, 1, [7]), (-3, 1, [-3, 7]), (7, 1, [-3, 7]), (7, 0, [-3]), (8, 0, [-3])):
            _, answer = await ask(app.server, f"{trace}?mid={mid}&on={on}", "POST")
            assert answer == {"code": 0, "message": "", "data": {"traced": traced}}
        for query in ("", "mid=1", "on=1", "mid=x&on=1", "mid=1&on=2", "mid=0&on=1", f"mid={2**63}&on=1"):
            _, answer = await ask(app.server, f"{trace}?{query}", "POST")
            assert answer["code"] == -400, query
            assert answer["message"].startswith(("mid: ", "on: ")), query
        assert app.server.traced == [-3]
        for after in ("x", "-1", str(2**63)):
            _, answer = await ask(app.server, f"{trace}?after={after}")
            assert answer["code"] == -400
            assert answer["message"].startswith("after: ")


async def test_at_most_a_hundred_are_traced() -> None:
    async with running() as app:
        for mid in range(1, 101):
            app.server.trace(mid)
        with pytest.raises(ValueError, match="at most 100 users"):
            app.server.trace(101)
        app.server.trace(100)  # it is one of them
        app.server.trace(1, False)
        app.server.trace(101)
        assert app.server.traced == list(range(2, 102))
