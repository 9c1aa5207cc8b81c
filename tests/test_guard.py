"""The guard alone: keys, certificates, and what a browser may not do for a page of somebody else's."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goim_core import ConfigurationError, Request, Response
from goim_core.guard import TOLD, Guard, is_loopback

OLD, NEW = "an-old-key-of-pushers", "a-new-key-of-pushers"
HERE = "127.0.0.1:3111"


def asked(headers: dict[str, str] | None = None, **fields: Any) -> Request:
    return Request("POST", "/goim/push/all", {}, {"host": HERE, **(headers or {})}, b"", **fields)


def status(refusal: Response | None) -> int:
    """HTTP status of an answer, 200 where there is none; its body is in goim's shape."""
    if refusal is None:
        return 200
    body = json.loads(refusal.body)
    assert body["code"] == -refusal.status
    assert set(body) == {"code", "message"}
    return refusal.status


# Keys


@pytest.mark.parametrize("key", [OLD, NEW])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("authorization", "Bearer {}"),
        ("authorization", "bearer  {} "),
        ("x-api-key", "{}"),
    ],
)
def test_each_key_is_good(name: str, value: str, key: str) -> None:
    assert Guard([OLD, NEW]).refusal(asked({name: value.format(key)}, address="10.0.0.7")) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {NEW}x"},
        {"authorization": f"Bearer {NEW[:-1]}"},
        {"authorization": f"Bearer {NEW.upper()}"},
        {"authorization": f"Bearer {OLD}, Bearer {NEW}"},  # a header given twice
        {"authorization": "Bearer"},
        {"authorization": "Bearer \xe9\xe9"},
        {"x-api-key": ""},
        {"x-api-key": f"Bearer {NEW}"},
    ],
)
def test_a_wrong_key(headers: dict[str, str]) -> None:
    refusal = Guard([OLD, NEW]).refusal(asked(headers))
    assert status(refusal) == 401
    assert refusal is not None
    assert refusal.headers == (("WWW-Authenticate", 'Bearer error="invalid_token"'),)
    assert b"the API key does not fit" in refusal.body


@pytest.mark.parametrize("headers", [{}, {"authorization": f"Basic {NEW}"}, {"authorization": NEW}])
def test_no_key(headers: dict[str, str]) -> None:
    refusal = Guard([NEW]).refusal(asked(headers))
    assert status(refusal) == 401
    assert refusal is not None
    assert refusal.headers == (("WWW-Authenticate", "Bearer"),)


def test_a_key_beside_another_scheme() -> None:
    assert Guard([NEW]).refusal(asked({"authorization": "Basic a proxy's", "x-api-key": NEW})) is None


def test_a_key_is_enough_for_any_host_and_page() -> None:
    headers = {"host": "push.example.org", "origin": "https://evil.example", "x-api-key": NEW}
    assert Guard([NEW]).refusal(asked(headers)) is None


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("goim_core.guard.hmac.compare_digest", compare_digest)
    guard = Guard([OLD, NEW, OLD * 9])
    for shown, expected in ((OLD, 200), (NEW, 200), ("x", 401)):
        compared.clear()
        assert status(guard.refusal(asked({"x-api-key": shown}))) == expected
        assert len(compared) == 3
        assert {len(side) for pair in compared for side in pair} == {32}


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16), st.text())
def test_only_the_key_itself_is_good(key: str, shown: str) -> None:
    guard = Guard([key])
    assert status(guard.refusal(asked({"x-api-key": key}))) == 200
    assert status(guard.refusal(asked({"x-api-key": shown}))) == (200 if shown == key else 401)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("a-key-and-no-list-of-them", "api_keys: expected a list of keys, got str"),
        (b"a-key-and-no-list-of-them", "api_keys: expected a list of keys, got bytes"),
        (7, "api_keys: expected a list of keys, got int"),
        ([NEW, "x" * 15], "got text of 15 characters"),
        ([""], "got text of 0 characters"),
        ([f"{NEW} "], "got text of 21 characters"),
        (["\xe9" * 20], "got text of 20 characters"),
        ([f"{NEW}\n"], "got text of 21 characters"),
        ([NEW.encode()], "got bytes"),
    ],
)
def test_keys_that_are_none(keys: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        Guard(keys)
    assert str(told.value).endswith(message)
    assert str(told.value).startswith("api_keys: expected ")
    assert "key-of" not in str(told.value)


def test_a_guard_does_not_show_its_keys() -> None:
    assert NEW not in repr(vars(Guard([NEW])))
    assert Guard([NEW]).has_keys
    assert not Guard().has_keys


def test_who_is_refused_is_logged_without_the_key(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard([NEW])
    guard.refusal(asked({"x-api-key": "hidden-and-wrong"}, address="10.0.0.7"))
    guard.refusal(asked())
    guard.refusal(asked({"x-api-key": NEW}))
    lines = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert lines == [
        (logging.WARNING, "/goim/push/all: refused to 10.0.0.7: the API key does not fit"),
        (
            logging.WARNING,
            (
                "/goim/push/all: refused to a peer on a Unix socket: "
                "an API key is needed: Authorization: Bearer KEY"
            ),
        ),
    ]


def test_who_tries_many_keys_is_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    guard = Guard([NEW], now=lambda: now[0])

    def tries(times: int, address: str) -> list[str]:
        caplog.clear()
        for _ in range(times):
            guard.refusal(asked({"x-api-key": "hidden-and-wrong"}, address=address))
        return [record.getMessage() for record in caplog.records]

    line = "/goim/push/all: refused to 10.0.0.7: the API key does not fit"
    assert tries(5, "10.0.0.7") == [line]
    assert tries(2, "10.0.0.8") == [line.replace("0.7", "0.8")], "one does not hide the other"
    for number in range(1000):
        tries(1, f"10.1.{number // 250}.{number % 250}")
    assert len(guard._untold) == TOLD + 1, "what is kept is bounded"
    now[0] += 1
    assert tries(1, "10.0.0.7") == [
        "refused to 10.0.0.7: 4 more",
        "refused to 10.0.0.8: 1 more",
        f"refused to others: {1000 - (TOLD - 2)} more",
        line,
    ]


# Certificates


def test_a_certificate_is_as_good_as_a_key() -> None:
    for guard in (Guard(), Guard([NEW])):
        assert guard.refusal(asked({"host": "push.example.org"}, address="10.0.0.7", certified=True)) is None


def test_a_page_may_not_use_the_browsers_certificate() -> None:
    headers = {"host": "push.example.org", "origin": "https://evil.example"}
    assert status(Guard([NEW]).refusal(asked(headers, address="10.0.0.7", certified=True))) == 403
    headers["origin"] = "https://push.example.org"
    assert status(Guard([NEW]).refusal(asked(headers, address="10.0.0.7", certified=True))) == 200


# Web pages


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "LocalHost:3111"}, 200),
        ({"host": "app.localhost:3111"}, 200),
        ({"host": "[::1]:3111"}, 200),
        ({"host": "[::1]"}, 200),
        ({"host": "10.0.0.7:80"}, 200),  # rebinding needs a name
        ({"host": ""}, 200),  # HTTP/1.0, which no browser speaks
        ({"host": "evil.example:3111"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "notlocalhost"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "[evil.example]"}, 403),
        ({"origin": f"http://{HERE}"}, 200),
        ({"origin": f"HTTP://{HERE}"}, 200),
        ({"host": "localhost:3111", "origin": "http://localhost:3111"}, 200),
        ({"host": "localhost:3111", "origin": "http://127.0.0.1:3111"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"host": "", "origin": "null"}, 403),
    ],
)
def test_without_keys_web_pages_are_refused(headers: dict[str, str], expected: int) -> None:
    refusal = Guard().refusal(asked(headers, address="127.0.0.1"))
    assert status(refusal) == expected


def test_a_unix_socket_has_no_name_to_rebind() -> None:
    assert Guard().refusal(asked({"host": "push.example.org"})) is None
    assert status(Guard().refusal(asked({"origin": "https://evil.example"}))) == 403


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("fe80::1%eth0", False),
        ("203.0.113.5", False),
    ],
)
def test_what_is_loopback(address: str, local: bool) -> None:
    assert is_loopback(address) is local
