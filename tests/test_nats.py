"""The queue in NATS JetStream, on a real server that the tests start."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute

from goim_core import OpenAuth, Options, Server
from goim_core.adapters.nats import NATSQueue
from goim_core.adapters.nats import link as nats_link
from goim_core.adapters.nats import queue as nats_queue
from goim_core.adapters.nats.link import Link
from goim_core.adapters.pushmsg import decode_push, encode_push
from goim_core.client import connect
from goim_core.errors import BackboneError, ConfigurationError
from goim_core.queue import PushMsg, PushType, Queue
from goim_core.testing.queue_contract import DurableQueueContract, Topic, working
from tests.conftest import BACKENDS
from tests.nats import HOW_TO_GET_ONE, NATSServer, NATSTopic, client, program

pytestmark = pytest.mark.anyio

numbers = itertools.count()


@pytest.fixture(params=[each for each in BACKENDS if each.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def nats_program() -> Any:
    found = program()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_ONE)
        pytest.skip(HOW_TO_GET_ONE)
    return found


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NATSServer]:
    server = NATSServer(nats_program())
    yield server
    server.close()


class TestNATSQueue(DurableQueueContract):
    """What every queue does that nodes share."""

    @pytest.fixture(autouse=True)
    def _server(self, nats_server: NATSServer) -> None:
        self.server = nats_server

    @asynccontextmanager
    async def topic(self) -> AsyncIterator[Topic]:
        yield NATSTopic(self.server, f"topic-{next(numbers)}")


# What happens to it.


def push(body: bytes, room: str = "live://1000") -> PushMsg:
    return PushMsg(PushType.ROOM, 1000, body, room=room)


async def bodies(queue: Queue, count: int) -> list[bytes]:
    found = []
    with anyio.fail_after(20):
        for _ in range(count):
            msg = await queue.receive()
            queue.acknowledge(msg)
            found.append(msg.msg)
    return found


async def trouble(queue: Queue) -> str:
    """What it says as soon as something is wrong."""
    return str(await when(lambda: queue.trouble))


async def when(asked: Callable[[], Any]) -> Any:
    """The first answer that is true. What is asked is changed by a process that tells nobody."""
    with anyio.fail_after(20):
        while not (answer := asked()):  # noqa: ASYNC110  # it tells nobody
            await anyio.sleep(0.005)
    return answer


@pytest.fixture
def topic(nats_server: NATSServer) -> NATSTopic:
    return NATSTopic(nats_server, f"topic-{next(numbers)}")


@pytest.fixture
def own_server() -> Iterator[NATSServer]:
    """One that the test may break."""
    server = NATSServer(nats_program())
    yield server
    server.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What has been logged."""
    caplog.set_level(logging.INFO, "goim_core.adapters.nats")
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing is given up in less than a second."""
    monkeypatch.setattr(nats_link, "PING_EVERY", 0.2)
    monkeypatch.setattr(nats_link, "LEAST_OPENING", 0.5)
    monkeypatch.setattr(nats_link, "CLOSING", 0.1)
    monkeypatch.setattr(nats_queue, "LONGEST_DELAY", 0.2)


async def test_a_server_that_is_killed_loses_nothing(
    own_server: NATSServer, said: Callable[[], list[str]]
) -> None:
    topic = NATSTopic(own_server, "topic")
    accepted: list[bytes] = []
    async with working(topic.new_queue(timeout=10), "one") as one, working(topic.new_queue(), "two") as two:

        async def publish() -> None:
            for number in range(300):
                await one.publish(push(b"%d" % number))
                accepted.append(b"%d" % number)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            received = await bodies(two, 100)
            own_server.kill()
            assert "NATS at nats://127.0.0.1" in await trouble(two)
            await trouble(one)
            own_server.start()
        # Those that were under way are sent again; who waited for them never knew.
        received += await bodies(two, 200)
        assert received == accepted == [b"%d" % number for number in range(300)]
        assert await bodies(one, 300) == accepted
        await when(lambda: not one.trouble and not two.trouble)
        with anyio.fail_after(5):
            await one.drain()
        assert one.pending == 0
    # Each of the two, once that it is lost and once that it is back.
    assert sorted(line.split()[0] for line in said()) == ["INFO", "INFO", "WARNING", "WARNING"]


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_stays_away_is_told_to_publishers_at_once(own_server: NATSServer) -> None:
    async with working(NATSTopic(own_server, "topic").new_queue(timeout=0.3)) as queue:
        await queue.publish(push(b"before"))
        assert await bodies(queue, 1) == [b"before"]
        own_server.kill()
        await trouble(queue)
        with pytest.raises(
            BackboneError, match=r"did not confirm a push within 0\.3 s; it does not have it$"
        ):
            await queue.publish(push(b"in vain"))
        own_server.start()
        await when(lambda: not queue.trouble)
        await queue.publish(push(b"after"))
        assert await bodies(queue, 1) == [b"after"]


async def test_unacknowledged_pushes_are_not_given_twice_by_a_server_that_comes_back(
    own_server: NATSServer,
) -> None:
    topic = NATSTopic(own_server, "topic")
    async with working(topic.new_queue()) as queue:
        for number in range(4):
            await queue.publish(push(b"%d" % number))
        held = [await queue.receive() for _ in range(3)]
        queue.acknowledge(held[0])
        own_server.kill()
        await trouble(queue)
        queue.acknowledge(held[1])
        own_server.start()
        await when(lambda: not queue.trouble)
        await queue.publish(push(b"4"))
        assert await bodies(queue, 2) == [b"3", b"4"]
        assert queue.pending == 1
    async with working(topic.new_queue()) as queue:
        assert await bodies(queue, 3) == [b"2", b"3", b"4"]


async def test_a_server_that_lost_everything_is_begun_with_anew(own_server: NATSServer) -> None:
    async with working(NATSTopic(own_server, "topic").new_queue()) as queue:
        for number in range(5):
            await queue.publish(push(b"old %d" % number))
        held = await queue.receive()
        await when(lambda: len(queue._buffer) == 4)  # type: ignore[attr-defined]
        own_server.kill()
        own_server.lose_everything()
        own_server.start()
        await queue.publish(push(b"new"))
        assert await bodies(queue, 5) == [b"old 1", b"old 2", b"old 3", b"old 4", b"new"]
        queue.acknowledge(held)
        await queue.drain()
        assert queue.pending == 0


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_is_frozen_is_left_and_found_again(own_server: NATSServer) -> None:
    topic = NATSTopic(own_server, "topic")
    async with working(topic.new_queue(timeout=0.4)) as queue:
        await queue.publish(push(b"before"))
        with own_server.frozen():
            with pytest.raises(BackboneError, match="it may have it$"):
                await queue.publish(push(b"in vain"))
            # Both its own connection and those it tries say nothing.
            await when(lambda: "no answer in time" in queue.trouble)
            with pytest.raises(BackboneError, match="it does not have it$"):
                await queue.publish(push(b"never"))
        await when(lambda: not queue.trouble)
        await queue.publish(push(b"after"))
        received = await bodies(queue, 2)
        if received[1] == b"in vain":
            received = [received[0], *await bodies(queue, 1)]
        assert received == [b"before", b"after"]


async def test_an_answer_that_comes_late_ends_the_trouble(own_server: NATSServer) -> None:
    """The connection outlives the pause, and nobody publishes again."""
    queue = NATSTopic(own_server, "topic").new_queue(timeout=0.3)
    async with working(queue):
        link = queue._link
        with own_server.frozen():
            with pytest.raises(BackboneError, match="it may have it$"):
                await queue.publish(push(b"late"))
            assert "did not confirm a push within 0.3 s" in queue.trouble
        await when(lambda: not queue.trouble)
        assert queue._link is link
        assert await bodies(queue, 1) == [b"late"]


@pytest.mark.usefixtures("impatient")
async def test_a_large_backlog_does_not_keep_a_queue_from_leaving_a_frozen_server(
    own_server: NATSServer,
) -> None:
    topic = NATSTopic(own_server, "topic")
    async with working(topic.new_queue(timeout=0.4)) as queue:
        refused = 0

        async def publish() -> None:
            nonlocal refused
            with pytest.raises(BackboneError):
                await queue.publish(push(bytes(500_000)))
            refused += 1

        with own_server.frozen(), anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(30):  # more than any buffer of the kernel takes
                    tasks.start_soon(publish)
            await when(lambda: "no answer in time" in queue.trouble)
        assert refused == 30
        await when(lambda: not queue.trouble)
        await queue.publish(push(b"after"))
        while await bodies(queue, 1) != [b"after"]:
            pass


@pytest.mark.usefixtures("impatient")
async def test_leaving_a_frozen_server_is_quick(own_server: NATSServer) -> None:
    async with working(NATSTopic(own_server, "topic").new_queue()) as queue:
        await queue.publish(push(b"one"))
        await bodies(queue, 1)
        with own_server.frozen(), anyio.fail_after(5):
            await queue.aclose()


async def test_what_an_operator_deletes_is_made_again(topic: NATSTopic) -> None:
    async with working(topic.new_queue()) as queue, client(topic.server.url) as operator:
        await queue.publish(push(b"0"))
        assert await bodies(queue, 1) == [b"0"]
        js = operator.jetstream()
        (consumer,) = await js.consumers_info(topic.name)
        await js.delete_consumer(topic.name, consumer.name)
        assert "has another process the name 'node'?" in await trouble(queue)
        await queue.publish(push(b"1"))
        assert await bodies(queue, 1) == [b"1"]
        await js.delete_stream(topic.name)
        await queue.publish(push(b"2"))
        assert await bodies(queue, 1) == [b"2"]


async def test_two_processes_of_one_name_lose_nothing(topic: NATSTopic) -> None:
    async with working(topic.new_queue()) as first:
        async with working(topic.new_queue()) as second:
            await trouble(first)
            for number in range(5):
                await second.publish(push(b"%d" % number))
            assert await bodies(second, 5) == await bodies(first, 5)
        await first.publish(push(b"5"))
        assert await bodies(first, 1) == [b"5"]


async def test_a_process_that_ended_while_it_took_its_place_leaves_the_place(topic: NATSTopic) -> None:
    async with working(topic.new_queue()) as queue:
        for number in range(3):
            await queue.publish(push(b"%d" % number))
        assert await bodies(queue, 2) == [b"0", b"1"]
        await queue.receive()
    async with client(topic.server.url) as operator:
        js = operator.jetstream()
        (old,) = await js.consumers_info(topic.name)
        assert old.name == "node=1"
        for start in (3, 1):  # the one that is behind is the older of the two, whatever its name
            with anyio.fail_after(5):
                config = evolve_consumer(old.config, "node=2", start)
                await js.add_consumer(topic.name, config)
            async with working(topic.new_queue()) as queue:
                assert (await queue.receive()).msg == b"2"
                (old,) = await js.consumers_info(topic.name)


def evolve_consumer(config: Any, name: str, start: int) -> Any:
    if config.durable_name == name:
        name = "node=1"
    return dataclasses.replace(config, durable_name=name, name=None, opt_start_seq=start)


# What it is told, and what it finds.


async def refused(**options: Any) -> str:
    """Why it does not start."""
    queue = NATSQueue(**{"timeout": 1, **options})
    with pytest.raises(BackboneError) as caught:
        try:
            await queue.start("node")
        finally:
            await queue.aclose()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("impatient")
async def test_a_wrong_url_is_told(own_server: NATSServer) -> None:
    assert "servers: cannot use NATS at nats://127.0.0.1:1: " in await refused(servers="nats://127.0.0.1:1")
    assert ": [Errno" in await refused(servers=["nats://127.0.0.1:1", "nats://127.0.0.1:2"])
    assert "secret" not in await refused(servers="nats://me:secret@127.0.0.1:1")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n", b"x" * 100_000])
async def test_a_server_of_another_kind_is_told(greeting: bytes) -> None:
    async def greet(stream: ByteStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError):
                if greeting:
                    await stream.send(greeting)
                else:
                    await anyio.sleep_forever()  # as one that waits for its client to begin

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, greet)
            port = listener.extra(SocketAttribute.local_port)
            assert "servers: cannot use NATS at " in await refused(servers=f"nats://127.0.0.1:{port}")
            tasks.cancel_scope.cancel()


async def test_credentials_are_needed_and_told() -> None:
    server = NATSServer(nats_program(), "--user", "goim", "--pass", "secret")
    try:
        for wrong in ({}, {"user": "goim", "password": "guess"}, {"token": "secret"}):
            assert "(user, password, token)" in await refused(servers=server.url, **wrong)
        with_password = server.url.replace("//", "//goim:secret@")
        for right in ({"user": "goim", "password": "secret"}, {"servers": with_password}):
            async with working(NATSQueue(**{"servers": server.url, **right})) as queue:
                await queue.publish(push(b"one"))
                assert "secret" not in repr(vars(queue)["_settings"].address)
    finally:
        server.close()


async def test_what_is_not_allowed_is_told(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    allowed = '{publish: ["$JS.API.STREAM.>", "$JS.API.CONSUMER.>", "$JS.ACK.>"]}'
    config.write_text(f"authorization {{users: [{{user: a, password: b, permissions: {allowed}}}]}}")
    server = NATSServer(nats_program(), "-c", str(config))
    try:
        async with working(NATSQueue(server.url, user="a", password="b", timeout=0.3)) as queue:
            with pytest.raises(BackboneError, match="(?i)permissions violation for publish"):
                await queue.publish(push(b"one"))
    finally:
        server.close()


async def test_a_server_without_jetstream_is_told() -> None:
    server = NATSServer(nats_program(), jetstream=False)
    try:
        assert "JetStream is not enabled" in await refused(servers=server.url)
    finally:
        server.close()


async def test_tls_is_not_left_out_where_it_was_wanted(nats_server: NATSServer) -> None:
    assert "tls: the server does not" in await refused(
        servers=nats_server.url, tls=ssl.create_default_context()
    )


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    server = NATSServer(nats_program(), *f"--tls --tlscert {tmp_path}/pem --tlskey {tmp_path}/pem".split())
    try:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        async with working(NATSQueue(server.url, tls=trusting)) as queue:
            await queue.publish(push(b"one"))
            assert await bodies(queue, 1) == [b"one"]
        assert "(tls)" in await refused(servers=server.url)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"subjects": ["other"]}, "has the subjects other, not {0} and {0}.*"),
        ({"subjects": ["{0}"]}, "has the subjects {0}, not {0} and {0}.*"),
        ({"retention": "workqueue"}, "has the retention 'workqueue', not 'limits'"),
        ({"no_ack": True}, "has no_ack set: it confirms nothing"),
        ({"name": "other-{0}"}, "subjects overlap with an existing stream"),
    ],
)
async def test_a_stream_of_another_shape_is_told(topic: NATSTopic, shape: Any, reason: str) -> None:
    config = {"name": "{0}", "subjects": ["{0}", "{0}.*"], **shape}
    if "other" in config["subjects"]:
        config["subjects"] = ["other", "other.{0}"]
    filled = json.loads(json.dumps(config).replace("{0}", topic.name))
    async with client(topic.server.url) as operator:
        await operator.jetstream().add_stream(**filled)
        told = await refused(servers=topic.server.url, topic=topic.name)
        assert "cannot use NATS at" in told
        assert reason.format(topic.name).replace("other,", f"other, other.{topic.name},") in told
        await operator.jetstream().delete_stream(filled["name"])


async def test_a_stream_that_is_there_with_the_right_shape_is_used(topic: NATSTopic) -> None:
    async with client(topic.server.url) as operator:
        js = operator.jetstream()
        subjects = [topic.name, f"{topic.name}.>"]
        await js.add_stream(name=topic.name, subjects=subjects, max_age=3600, storage="memory")
        async with working(topic.new_queue(retention=7)) as queue:
            await queue.publish(push(b"one"))
            assert await bodies(queue, 1) == [b"one"]
        assert (await js.stream_info(topic.name)).config.max_age == 3600


async def test_the_stream_is_made_as_asked(topic: NATSTopic) -> None:
    async with working(topic.new_queue(retention=7)), client(topic.server.url) as operator:
        config = (await operator.jetstream().stream_info(topic.name)).config
        assert (config.max_age, config.duplicate_window, config.discard, config.storage) == (
            7,
            7,
            "new",
            "file",
        )
        (consumer,) = await operator.jetstream().consumers_info(topic.name)
        assert consumer.config.inactive_threshold == 3600


async def test_a_full_stream_refuses_and_says_so(topic: NATSTopic, said: Callable[[], list[str]]) -> None:
    async with client(topic.server.url) as operator:
        js = operator.jetstream()
        subjects = [topic.name, f"{topic.name}.*"]
        await js.add_stream(name=topic.name, subjects=subjects, max_bytes=10_000, discard="new")
        async with working(topic.new_queue()) as queue:
            accepted = 0
            with pytest.raises(BackboneError, match="refused the push: maximum bytes exceeded$"):
                while True:
                    await queue.publish(push(bytes(1000)))
                    accepted += 1
            assert 5 < accepted < 10
            assert "refuses pushes: maximum bytes exceeded" in queue.trouble
            with pytest.raises(BackboneError):
                await queue.publish(push(bytes(1000)))
            assert len(await bodies(queue, accepted)) == accepted
            await js.purge_stream(topic.name)
            await queue.publish(push(b"after"))
            assert await bodies(queue, 1) == [b"after"]
            assert not queue.trouble
    assert [line.split()[0] for line in said()] == ["WARNING", "INFO"]


async def test_a_push_that_is_too_large_is_refused_alone(topic: NATSTopic) -> None:
    async with working(topic.new_queue()) as queue:
        await queue.publish(push(b"before"))
        for size in (2**20, 2**20 - 50):  # with its headers it counts more than its bytes
            with pytest.raises(BackboneError, match=r"refused the push: \d+ bytes, max_payload is 1048576$"):
                await queue.publish(push(bytes(size)))
        largest = push(bytes(2**20 - 200))
        await queue.publish(largest)
        assert await bodies(queue, 2) == [b"before", largest.msg]
        assert not queue.trouble


async def test_a_flood_of_poison_is_one_line_a_second(
    topic: NATSTopic, said: Callable[[], list[str]]
) -> None:
    async with working(topic.new_queue()) as queue:
        for _ in range(50):
            await topic.put(b"\xff")
        await queue.publish(push(b"after"))
        assert await bodies(queue, 1) == [b"after"]
    assert isinstance(queue, NATSQueue)
    assert queue.skipped == 50
    assert said()[0].endswith("is no push (1 so far): tag: a number without an end")
    assert len(said()) < 5


async def test_what_waits_to_be_received_is_bounded(topic: NATSTopic) -> None:
    async with working(topic.new_queue(prefetch=10)) as queue:
        assert isinstance(queue, NATSQueue)
        for number in range(100):
            await queue.publish(push(b"%d" % number))
            assert len(queue._buffer) <= 10
        assert await bodies(queue, 100) == [b"%d" % number for number in range(100)]


async def test_large_pushes_wait_at_the_server(topic: NATSTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_queue, "BUFFER_BYTES", 1_000_000)
    monkeypatch.setattr(nats_link, "REQUEST_BYTES", 2_200_000)
    async with working(topic.new_queue()) as queue:
        assert isinstance(queue, NATSQueue)
        for number in range(60):
            await queue.publish(push(b"%02d" % number + bytes(200_000)))
            assert queue._buffered < 3_500_000
        assert [body[:2] for body in await bodies(queue, 60)] == [b"%02d" % number for number in range(60)]


async def test_a_push_that_is_sent_twice_is_in_the_stream_once(
    topic: NATSTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Link.publish
    sent = []
    async with working(topic.new_queue()) as queue, client(topic.server.url) as operator:
        js = operator.jetstream()

        async def lose_the_first_answer(link: Link, *message: Any) -> None:
            sent.append(message)
            if len(sent) == 1:
                monkeypatch.setattr(link, "_confirmed", lambda *_: None)
            await publish(link, *message)
            if len(sent) == 1:
                while not (await js.stream_info(topic.name)).state.messages:
                    pass
                link._break("the connection was lost")

        monkeypatch.setattr(Link, "publish", lose_the_first_answer)
        await queue.publish(push(b"one"))
        assert len(sent) == 2
        assert sent[0] == sent[1]
        await queue.publish(push(b"two"))
        assert (await js.stream_info(topic.name)).state.messages == 2
        assert await bodies(queue, 2) == [b"one", b"two"]


async def test_go_processes_read_and_write_the_topic(topic: NATSTopic) -> None:
    to_one = PushMsg(PushType.PUSH, 1000, b"to one", server="one", keys=("a",))
    async with (
        working(topic.new_queue(), "one") as one,
        working(topic.new_queue(direct=False), "two") as two,
        client(topic.server.url) as go,
    ):
        heard = await go.subscribe(topic.name)
        await go.flush()
        await go.publish(topic.name, encode_push(push(b"from Go")))  # without waiting for any answer
        assert await bodies(one, 1) == await bodies(two, 1) == [b"from Go"]
        await two.publish(to_one)  # by way of the topic
        await one.publish(to_one)  # directly
        await one.publish(push(b"room"))
        assert await bodies(one, 3) == [b"to one", b"to one", b"room"]
        assert await bodies(two, 1) == [b"room"]
        found = [decode_push((await heard.next_msg()).data) for _ in range(3)]
        assert found == [push(b"from Go"), to_one, push(b"room")]


# Its servers.


async def test_two_servers_that_share_it_push_to_each_others_clients(topic: NATSTopic) -> None:
    options = Options(farewell_timeout=0.01)
    async with AsyncExitStack() as opened:
        nodes, clients = [], []
        for name in ("one", "two"):
            settings: dict[str, Any] = {"queue": topic.new_queue(), "name": name, "options": options}
            node = await opened.enter_async_context(Server(auth=OpenAuth(), tcp="127.0.0.1:0", **settings))
            host, port = map(str, node.addresses["tcp"][0])
            nodes.append(node)
            token = {"mid": 1, "room_id": "live://1", "accepts": [1000]}
            where = connect(f"tcp://{host}:{port}", token=token)
            clients.append(await opened.enter_async_context(where))
        with anyio.fail_after(10):
            for sender in nodes:
                await sender.push_room("live://1", 1000, b"room")
                await sender.push_all(1000, b"all")
                for receiver in clients:
                    assert [(await receiver.receive()).body for _ in range(2)] == [b"room", b"all"]
        assert not any(node.stats().troubles for node in nodes)


async def test_a_server_does_not_start_without_it() -> None:
    queue = NATSQueue("nats://127.0.0.1:1", timeout=1)
    with pytest.raises(BackboneError, match="servers: cannot use NATS at nats://127.0.0.1:1"):
        async with Server(auth=OpenAuth(), queue=queue):
            pytest.fail("it did")


def test_on_trio_it_says_what_it_needs() -> None:
    async def start() -> None:
        queue = NATSQueue()
        with pytest.raises(ConfigurationError, match="^NATSQueue needs asyncio: run on asyncio or uvloop$"):
            await queue.start("node")
        await queue.aclose()

    anyio.run(start, backend="trio")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"servers": ""}, "servers: expected nats://"),
        ({"servers": []}, "servers: expected nats://"),
        ({"servers": [4222]}, "servers: expected nats://"),
        (
            {"servers": ["nats://host", "http://me:secret@host"]},
            "servers: expected nats://[^e]*, or several$",
        ),
        ({"servers": "nats://host:port"}, "servers: expected nats://"),
        ({"topic": "a.b"}, "topic: expected letters"),
        ({"topic": ""}, "topic: expected letters"),
        ({"retention": 0}, "retention: expected seconds, 1 or more, got 0"),
        ({"retention": True}, "retention: expected seconds"),
        ({"timeout": 0}, "timeout: expected seconds, 0.1 or more, got 0"),
        ({"timeout": "5"}, "timeout: expected seconds"),
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"prefetch": 1.5}, "prefetch: expected at least 1, got 1.5"),
    ],
)
def test_options_are_checked(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{reason}"):
        NATSQueue(**options)


@pytest.mark.parametrize("name", ["", "x" * 201])
async def test_a_name_is_checked(name: str) -> None:
    with pytest.raises(ConfigurationError, match="^name: expected"):
        await NATSQueue().start(name)
