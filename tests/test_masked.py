"""What logs, errors and statistics show holds no password."""

from __future__ import annotations

import base64
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goim_core import choices
from goim_core.adapters.discovery import BilibiliDiscovery
from goim_core.adapters.kafka import KafkaQueue
from goim_core.adapters.nats import NATSQueue
from goim_core.adapters.postgres import PostgresStorage
from goim_core.adapters.redis import RedisQueue
from goim_core.adapters.trouble import Trouble
from goim_core.discovery import Node
from goim_core.errors import BackboneError, ConfigurationError, StorageError
from goim_core.masked import masked
from tests.fake_discovery import fake_discovery

pytestmark = pytest.mark.anyio
NOBODY = "127.0.0.1:1"
"""Nothing listens there."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://goim:geheim@host:4222", "nats://***@host:4222"),
        ("nats://geheim@host:4222", "nats://***@host:4222"),
        ("nats://goim:ge@heim@host", "nats://***@host"),
        ("nats://goim:ge/heim@host", "nats://***@host"),
        ("a://x:geheim@h, b://y:geheim@k", "a://***@h, b://***@k"),
        ("redis://host:6379/0?password=geheim&db=1", "redis://host:6379/0?password=***&db=1"),
        ("host=db password=geheim user=goim", "host=db password=*** user=goim"),
        ("host=db password = 'ge \\' heim' user=goim", "host=db password = *** user=goim"),
        ("postgresql://db/goim?sslpassword=geheim", "postgresql://db/goim?sslpassword=***"),
        ("cannot load 'x:token=geheim'", "cannot load 'x:token=***'"),
        ("no answer from http://host:7171/discovery", "no answer from http://host:7171/discovery"),
        (
            "Authorization Violation (user, password, token)",
            "Authorization Violation (user, password, token)",
        ),
        ("token: expected text, mail to a@b", "token: expected text, mail to a@b"),
    ],
)
def test_passwords_are_left_out_and_the_rest_is_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


@given(
    st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters="'\"@"), min_size=1), st.text()
)
def test_whatever_is_before_the_host_is_left_out(password: str, after: str) -> None:
    assert masked(f"x://u:{password}@host/").startswith("x://***@host/")
    assert masked(masked(after)) == masked(after)


def test_trouble_is_masked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trouble = Trouble(logging.getLogger("goim_core.adapters.x"), "X at x://a:geheim@h")
    trouble.begin("cannot reach x://a:geheim@h")
    assert trouble.text == "X at x://***@h: cannot reach x://***@h"
    trouble.end()
    assert "geheim" not in caplog.text
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("setting", "choice"),
    [
        ("storage", "postgress:host=db password=geheim"),
        ("storage", "postgress://goim:geheim@db"),
        ("queue", "nat://goim:geheim@host"),
        ("queue", "goim:geheim@host"),
        ("queue", "kafka://goim:geheim@host:9092"),
        ("queue", "kafka://goim:geheim@host"),
        ("queue", "nats://goim:gehe/im@host"),
        ("registry", "redis://goim:geheim@host:port"),
        ("discovery", "http://goim:geheim@:7171"),
        ("discovery", "http://goim:geheim@host:port"),
        ("storage", "postgres://goim:ge@heim@db"),
    ],
)
def test_a_setting_that_is_refused_shows_no_password(
    setting: str, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_ENV", "dev")
    with pytest.raises(ConfigurationError) as refused:
        choices.made(setting, choice)
    assert "heim" not in str(refused.value)
    assert "gehe" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


async def test_a_system_that_is_not_there_is_named_without_a_password(
    anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    discovery = BilibiliDiscovery("http://goim:ge%40heim@" + NOBODY, env="dev")
    nodes = choices.made(
        "storage", "postgres:host=127.0.0.1 port=1 user=goim password=ge@heim connect_timeout=1"
    )
    assert isinstance(nodes, PostgresStorage)
    with pytest.raises(StorageError) as no_database:
        await nodes.start()
    with pytest.raises(BackboneError) as no_discovery:
        await discovery._fetch()
    await discovery.aclose()
    told = [str(no_database.value), str(no_discovery.value), discovery.trouble]
    if anyio_backend_name == "asyncio":
        for queue in (
            NATSQueue(f"nats://goim:ge@heim@{NOBODY}", timeout=0.2),
            RedisQueue(f"redis://goim:ge%40heim@{NOBODY}"),
            KafkaQueue(
                NOBODY,
                security_protocol="SASL_PLAINTEXT",
                sasl_mechanism="PLAIN",
                sasl_plain_username="goim",
                sasl_plain_password="geheim",
            ),
        ):
            with pytest.raises(BackboneError, match="127.0.0.1:1") as nobody:
                await queue.start("one")
            told += [str(nobody.value), queue.trouble]
            await queue.aclose()
    assert "heim" not in "".join(told) + caplog.text


async def test_a_discovery_s_credentials_are_sent_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with fake_discovery() as ([fake], _):
        discovery = BilibiliDiscovery(fake.url.replace("//", "//goim:ge%40heim@"), env="dev")
        await discovery.start(lambda: Node("n1", host="n1", zone="sh001"))
        await discovery.aclose()
        assert set(fake.authorizations) == {"Basic " + base64.b64encode(b"goim:ge@heim").decode()}
        assert len(fake.authorizations) == len(fake.calls) == 2
    assert f"HTTP Request: GET {fake.url}/discovery/fetch" in caplog.text
    assert "heim" not in caplog.text
