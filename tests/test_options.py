"""Options: goim's values unless said otherwise, and refusals that name the option."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from goim_core.errors import ConfigurationError, GoimError
from goim_core.options import Options, OutboxPolicy

NAMES = [attribute.name for attribute in attrs.fields(Options)]
NUMBERS = [attribute.name for attribute in attrs.fields(Options) if attribute.type in ("int", "float")]
INTS = [attribute.name for attribute in attrs.fields(Options) if attribute.type == "int"]
SECONDS = [attribute.name for attribute in attrs.fields(Options) if attribute.type == "float"]

MAY_BE_0 = ("linger", "rate", "accept_rate", "read_frames", "read_bytes")


def test_goims_values() -> None:
    options = Options()
    assert options.max_body == 4096
    assert options.ws_path == "/sub"
    assert options.silence == 480.0, "4 minutes, twice"
    assert options.outbox_policy is OutboxPolicy.DROP_NEWEST
    assert options.buckets == 32


def test_the_tests_here_reach_every_option() -> None:
    assert set(NAMES) - set(NUMBERS) == {"ws_path", "outbox_policy", "trusted", "origins"}


@pytest.mark.parametrize(("name", "good"), [("trusted", "10.0.0.0/8"), ("origins", "https://example.com")])
def test_a_list_is_one_of_texts_that_fit(name: str, good: str) -> None:
    assert getattr(Options(**{name: [good]}), name) == (good,)
    assert getattr(Options(**{name: ()}), name) == ()
    for bad in (good, [good, "no/such"], [5], None, 5, [None]):
        with pytest.raises(ConfigurationError, match=f"^{name}: expected a list of "):
            Options(**{name: bad})


def test_options_are_keywords_and_do_not_change() -> None:
    with pytest.raises(TypeError):
        Options(4096)  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Options().max_body = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", None, True, -1, float("nan"), float("inf"), 10**400])
def test_a_number_that_cannot_be_used_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: expected (int|float), at least"):
        Options(**{name: value})


@pytest.mark.parametrize("name", INTS)
def test_a_count_is_whole(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: expected int, "):
        Options(**{name: 2000.0})


@pytest.mark.parametrize("name", SECONDS)
def test_a_time_may_be_whole_or_not(name: str) -> None:
    assert getattr(Options(**{name: 3}), name) == 3
    assert getattr(Options(**{name: 3.5}), name) == 3.5


@pytest.mark.parametrize("name", [name for name in SECONDS if name not in MAY_BE_0])
def test_a_timeout_is_not_0(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        Options(**{name: 0})


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("max_body", 0),
        ("heartbeat_max", 1),
        ("max_hooks", 1),
        ("outbox_bytes", 1024),
        ("outbox_packets", 1),
        ("queue_size", 1),
        ("batch", 1),
        ("linger", 0),
        ("buckets", 1),
        ("backlog", 1),
        ("http_max_body", 0),
    ],
)
def test_the_least_value(name: str, least: int) -> None:
    assert getattr(Options(**{name: least}), name) == least
    with pytest.raises(ConfigurationError, match=f"^{name}: expected (int|float), at least {least}"):
        Options(**{name: least - 1})


def test_the_most_buckets() -> None:
    assert Options(buckets=1 << 16).buckets == 1 << 16
    with pytest.raises(ConfigurationError, match=r"^buckets: .* at most 65536; got 65537"):
        Options(buckets=(1 << 16) + 1)


@pytest.mark.parametrize("path", ["", "sub", "/\N{SNOWMAN}", "/a\nb", None, 5])
def test_a_path_that_cannot_be_used(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="^ws_path: "):
        Options(ws_path=path)


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest", "disconnect", OutboxPolicy.DROP_OLDEST])
def test_a_policy_by_its_name(policy: Any) -> None:
    assert Options(outbox_policy=policy).outbox_policy is OutboxPolicy(policy)


@pytest.mark.parametrize("policy", ["", "DROP", None, 1])
def test_an_unknown_policy_is_told_the_choices(policy: Any) -> None:
    with pytest.raises(ConfigurationError, match="drop_newest, drop_oldest, disconnect") as refused:
        Options(outbox_policy=policy)
    assert str(refused.value).startswith("outbox_policy: ")


def test_a_refusal_is_a_value_error_and_one_of_this_package() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ConfigurationError, GoimError)
