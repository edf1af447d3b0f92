"""What the Pulsar adapter promises beyond the conformance suite, on a real broker."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import uuid4

import pulsar
import pytest

from pulsartasks.brokers.base import MAX_MESSAGE_SIZE, Broker, Consumer, Delivery, Packing, Reader, Subscription
from pulsartasks.brokers.pulsar import PulsarSettings, open_broker
from pulsartasks.brokers.pulsar import connection as module
from pulsartasks.brokers.pulsar.connection import Connection
from pulsartasks.brokers.pulsar.publisher import Publisher
from pulsartasks.errors import (
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    InvalidArgumentsError,
    MessageTooLargeError,
    PublishTimeoutError,
    SubscriptionBusyError,
)
from pulsartasks.message import Publication
from pulsartasks.options import Mode
from tests.services import PulsarServer, free_ports, wait_until

LONG = 60.0
"""Seconds after which a message that has not come is taken for lost."""
SHORT = 0.3
"""Seconds in which a message that must not come would have come."""
QUIET = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")


@pytest.fixture
def url(pulsar_server: PulsarServer) -> str:
    return f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}"


@pytest.fixture
def url_without_admin(pulsar_server: PulsarServer) -> str:
    return f"{pulsar_server.service_url}?admin_url=http://127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def opened() -> Iterator[Callable[[str], Broker]]:
    """Opens brokers that the end of the test closes."""
    brokers: list[Broker] = []

    def open_one(url: str) -> Broker:
        brokers.append(open_broker(url))
        return brokers[-1]

    yield open_one
    for broker in brokers:
        broker.close()


@pytest.fixture
def broker(url: str, opened: Callable[[str], Broker]) -> Broker:
    return opened(url)


@pytest.fixture
def topic() -> str:
    return f"persistent://public/default/adapter-{uuid4().hex}"


def text(topic: str, *values: object, **options: object) -> list[Publication]:
    return [Publication(topic, str(value).encode(), **options) for value in values]  # type: ignore[arg-type]


def take(source: Consumer | Reader, count: int) -> list[Delivery]:
    """The next `count` messages, which must come."""
    deliveries = [source.receive(LONG) for _ in range(count)]
    assert None not in deliveries
    return [delivery for delivery in deliveries if delivery is not None]


def values(deliveries: list[Delivery]) -> list[str]:
    return [delivery.value.decode() for delivery in deliveries]


def backlog(server: PulsarServer, topic: str, subscription: str = "s") -> int:
    subscriptions = server.stats(topic)["subscriptions"]
    assert isinstance(subscriptions, dict)
    return int(subscriptions[subscription]["msgBacklog"])


def python(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A Python of its own that runs `script` with ``broker`` opened from its first argument."""
    prelude = """
        import os, sys, time
        from pulsartasks.brokers.base import Subscription
        from pulsartasks.brokers.pulsar import open_broker
        from pulsartasks.message import Publication
        broker, topic = open_broker(sys.argv[1]), sys.argv[2]
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# Publishing


def test_publish_returns_the_id_under_which_the_message_is_received(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["s"])

    message_id = broker.publish(Publication(topic, b"hello", key="k", properties={"colour": "grün"}))

    [delivery] = take(broker.subscribe(Subscription((topic,), "s")), 1)
    assert (delivery.message_id, delivery.topic) == (message_id, topic)
    assert (delivery.value, delivery.key, dict(delivery.properties)) == (b"hello", "k", {"colour": "grün"})
    assert abs(delivery.published_at - time.time()) < LONG


def test_five_thousand_messages_are_confirmed_and_received_in_order(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["s"])

    ids = broker.publish_many(text(topic, *range(5_000)))

    assert len(set(map(str, ids))) == 5_000
    deliveries = take(broker.subscribe(Subscription((topic,), "s", prefetch=100)), 5_000)
    assert values(deliveries) == [str(number) for number in range(5_000)]
    assert [delivery.message_id for delivery in deliveries] == ids


@pytest.mark.parametrize(("packing", "entries"), [(Packing(), 6), (Packing(True), 1), (Packing(True, by_key=True), 2)])
def test_batching_puts_what_is_sent_together_into_one_entry(
    broker: Broker, topic: str, packing: Packing, entries: int
) -> None:
    broker.declare(topic, ["all"], packing=packing)
    publications = [Publication(topic, b"x", key=key) for key in "ababab"]

    ids = broker.publish_many(publications)

    assert len({str(id_).split(":")[1] for id_ in ids}) == entries
    assert len(set(ids)) == 6


def test_what_has_a_sequence_is_never_batched(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["all"], packing=Packing(batching=True, compression="zstd"))

    ids = broker.publish_many([Publication(topic, b"x", producer="outbox-1", sequence=n) for n in (1, 2, 3)])

    assert len({str(id_).split(":")[1] for id_ in ids}) == 3


def test_more_messages_than_the_window_are_all_confirmed(broker: Broker, topic: str) -> None:
    ids = broker.publish_many(text(topic, *range(7_777)))

    assert sum(isinstance(message_id, str) for message_id in ids) == 7_777


def test_too_large_message_is_refused_and_its_neighbours_are_sent(broker: Broker, topic: str) -> None:
    larger = Publication(topic, bytes(MAX_MESSAGE_SIZE - 9), properties={"size": "123456"})
    largest = Publication(topic, bytes(MAX_MESSAGE_SIZE - 4_096), properties={"size": "123456"})

    first, second, third = broker.publish_many([*text(topic, "small"), larger, largest])

    assert isinstance(first, str)
    assert isinstance(third, str)
    assert isinstance(second, MessageTooLargeError)
    with pytest.raises(MessageTooLargeError, match="blob store"):
        broker.publish(larger)


def test_message_just_around_the_limit_is_either_stored_or_refused_at_once(broker: Broker, topic: str) -> None:
    """The envelope counts too, and only the client knows its size; past the broker's limit a message would hang."""
    sizes = [MAX_MESSAGE_SIZE - less for less in (0, 50, 100, 200, 400)]

    outcomes = broker.publish_many([Publication(topic, bytes(size), key="k") for size in sizes], timeout=LONG)

    assert {type(outcome) for outcome in outcomes} == {str, MessageTooLargeError}


def test_headers_that_are_not_text_are_refused(broker: Broker, topic: str) -> None:
    bad = Publication(topic, b"", properties={"n": 1})  # type: ignore[dict-item]
    worse = Publication(topic, b"", key=1)  # type: ignore[arg-type]

    first, second, third = broker.publish_many([bad, worse, *text(topic, "good")])

    assert isinstance(first, InvalidArgumentsError)
    assert isinstance(second, InvalidArgumentsError)
    assert isinstance(third, str)


@pytest.fixture
def short_delays_only(pulsar_server: PulsarServer) -> str:
    """A topic whose broker rejects delays beyond a second."""
    namespace = f"public/strict-{uuid4().hex}"
    pulsar_server.admin("PUT", f"namespaces/{namespace}")
    policy = {"active": True, "tickTime": 100, "maxDeliveryDelayInMillis": 1_000}
    pulsar_server.admin("POST", f"namespaces/{namespace}/delayedDelivery", policy)
    return f"persistent://{namespace}/t"


def test_publish_that_the_broker_rejects_ends_at_its_timeout_and_the_next_one_works(
    broker: Broker, short_delays_only: str
) -> None:
    rejected = Publication(short_delays_only, b"rejected", deliver_at=time.time() + 3600)
    broker.publish(*text(short_delays_only, "first"))

    started = time.monotonic()
    with pytest.raises(PublishTimeoutError, match="may or may not"):
        broker.publish(rejected, timeout=3.0)
    assert time.monotonic() - started < 5.0  # and is not tried for another three

    assert broker.publish(*text(short_delays_only, "next"), timeout=LONG)


def test_calls_behind_a_rejected_message_are_confirmed_in_order_all_the_same(
    broker: Broker, short_delays_only: str
) -> None:
    broker.declare(short_delays_only, ["s"])
    rejected = Publication(short_delays_only, b"rejected", deliver_at=time.time() + 3600)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(broker.publish_many, [rejected], timeout=2.0)
        behind = pool.submit(broker.publish_many, text(short_delays_only, *range(100)), timeout=LONG)

    assert isinstance(first.result()[0], PublishTimeoutError)
    assert all(isinstance(outcome, str) for outcome in behind.result())
    received: dict[str, None] = {}
    consumer = broker.subscribe(Subscription((short_delays_only,), "s"))
    while len(received) < 100:
        received.update(dict.fromkeys(values(take(consumer, 1))))
    assert list(received) == [str(number) for number in range(100)]


def test_publish_to_nobody_says_so_within_its_timeout(opened: Callable[[str], Broker], topic: str) -> None:
    broker = opened(f"pulsar://127.0.0.1:{free_ports(1)[0]}")

    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match=r"could not publish to .* for 1 s"):
        broker.publish(*text(topic, "lost"), timeout=1.0)

    assert 0.9 < time.monotonic() - started < 3.0


def test_process_ends_although_a_publish_found_nobody(topic: str) -> None:
    script = """
        try:
            broker.publish(Publication(topic, b""), timeout=0.5)
        except ConnectionError:
            print("unavailable")
    """
    process = python(script, f"pulsar://127.0.0.1:{free_ports(1)[0]}", topic)

    output, errors = process.communicate(timeout=60)

    assert (output, errors, process.returncode) == (b"unavailable\n", b"", 0)


def test_unknown_namespace_is_an_error_at_once(broker: Broker) -> None:
    nowhere = "persistent://public/nowhere/t"
    with pytest.raises(BrokerError, match="namespace does not exist"):
        broker.publish(*text(nowhere, "lost"))
    with pytest.raises(BrokerError, match="namespace does not exist"):
        broker.declare(nowhere, ["s"])


def test_topic_that_found_no_thread_to_be_opened_by_is_opened_by_the_next_publish(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "pulsartasks-producer":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            broker.publish(*text(topic, "a"))

    broker.publish(*text(topic, "b"), timeout=30)


def test_idle_producers_beyond_the_bound_are_closed(pulsar_server: PulsarServer, url: str, topic: str) -> None:
    connection = Connection(PulsarSettings.parse(url))
    publisher = Publisher(connection, max_producers=2)
    topics = [f"{topic}-{number}" for number in range(5)]
    try:
        for one in topics:
            [confirmed] = publisher.publish_many(text(one, "x"), timeout=LONG)
            assert isinstance(confirmed, str)

        def connected() -> list[str]:
            return [one for one in topics if pulsar_server.stats(one)["publishers"]]

        wait_until(lambda: connected() == topics[-2:], "the idle producers were still open")
    finally:
        publisher.close()
        connection.close()


# Consuming


def test_shared_spreads_messages_over_its_consumers(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["s"])
    consumers = [broker.subscribe(Subscription((topic,), "s", prefetch=1)) for _ in range(2)]

    broker.publish_many(text(topic, *range(2)))  # each asked for one

    assert sorted(values([*take(consumers[0], 1), *take(consumers[1], 1)])) == ["0", "1"]


@pytest.mark.parametrize("mode", ["exclusive", "failover"])
@pytest.mark.parametrize("second", ["exclusive", "failover", "shared"])
def test_subscription_that_one_consumer_holds_refuses_a_second(
    broker: Broker, topic: str, mode: Mode, second: Mode
) -> None:
    broker.subscribe(Subscription((topic,), "s", mode=mode))

    with pytest.raises(SubscriptionBusyError, match="another consumer"):
        broker.subscribe(Subscription((topic,), "s", mode=second))


@pytest.mark.parametrize("partitions", [0, 3])
def test_failover_is_taken_over_with_all_messages_when_its_consumer_leaves(
    broker: Broker, topic: str, partitions: int
) -> None:
    broker.declare(topic, ["s"], partitions=partitions)
    broker.publish_many([Publication(topic, b"", key=str(number)) for number in range(10)])
    first = broker.subscribe(Subscription((topic,), "s", mode="failover"))
    settled, _running = take(first, 2)
    settled.acknowledge()
    with pytest.raises(SubscriptionBusyError):
        broker.subscribe(Subscription((topic,), "s", mode="failover"))

    first.close()

    second = broker.subscribe(Subscription((topic,), "s", mode="failover"))
    assert settled.message_id not in {delivery.message_id for delivery in take(second, 9)}


def test_key_shared_keeps_a_key_with_one_consumer(broker: Broker, topic: str) -> None:
    consumers = [broker.subscribe(Subscription((topic,), "s", mode="key_shared", prefetch=1_000)) for _ in range(2)]
    broker.publish_many([Publication(topic, b"", key=f"k{number % 10}") for number in range(100)])
    keys: list[set[str | None]] = [set(), set()]
    seen = 0
    deadline = time.monotonic() + LONG
    while seen < 100 and time.monotonic() < deadline:
        for consumer, mine in zip(consumers, keys, strict=True):
            if delivery := consumer.receive(0.01):
                mine.add(delivery.key)
                seen += 1

    assert seen == 100
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 10


@pytest.mark.parametrize(("partitions", "prefetch", "held"), [(0, 4, 4), (0, 1, 1), (4, 8, 8), (4, 1, 4)])
def test_consumer_holds_about_as_many_as_its_prefetch(
    broker: Broker, pulsar_server: PulsarServer, topic: str, partitions: int, prefetch: int, held: int
) -> None:
    broker.declare(topic, ["s"], partitions=partitions)
    broker.publish_many([Publication(topic, b"", key=str(number)) for number in range(200)])
    parts = [f"{topic}-partition-{number}" for number in range(partitions)] or [topic]

    broker.subscribe(Subscription((topic,), "s", prefetch=prefetch))

    def unacknowledged() -> list[int]:
        subscriptions = [pulsar_server.stats(part)["subscriptions"] for part in parts]
        return [int(each["s"]["unackedMessages"]) for each in subscriptions if isinstance(each, dict)]

    with suppress(TimeoutError):
        wait_until(lambda: sum(unacknowledged()) == held, "it never held so many", timeout=LONG)
    assert sum(unacknowledged()) == held, unacknowledged()


def test_several_topics_and_partitions_come_through_one_consumer(broker: Broker, topic: str) -> None:
    other = f"{topic}-other"
    broker.declare(topic, ["s"], partitions=3)
    broker.declare(other, ["s"])
    consumer = broker.subscribe(Subscription((topic, other), "s"))

    broker.publish_many([*[Publication(topic, b"", key=str(number)) for number in range(20)], *text(other, "x")])

    deliveries = take(consumer, 21)
    assert {delivery.topic for delivery in deliveries} == {topic, other}
    assert len({delivery.message_id for delivery in deliveries}) == 21


def test_delayed_message_waits_and_one_due_does_not(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["s"])
    consumer = broker.subscribe(Subscription((topic,), "s"))
    due = time.time() + 1.5

    broker.publish_many(text(topic, "later", deliver_at=due) + text(topic, "past", deliver_at=time.time() - 10))

    [first, second] = take(consumer, 2)
    assert values([first, second]) == ["past", "later"]
    assert time.time() > due - 0.2  # the broker may be a tick early


def test_eight_threads_on_one_consumer_get_each_message_once(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["s"])
    broker.publish_many(text(topic, *range(2_000)))
    consumer = broker.subscribe(Subscription((topic,), "s", prefetch=50))
    received: list[str] = []

    def work() -> None:
        while delivery := consumer.receive(1.0):
            received.append(delivery.value.decode())
            delivery.acknowledge()

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(work)

    assert sorted(received, key=int) == [str(number) for number in range(2_000)]


def test_killed_process_gives_its_messages_back(broker: Broker, url: str, topic: str) -> None:
    broker.declare(topic, ["s"])
    broker.publish_many(text(topic, "running", "prefetched"))
    script = """
        consumer = broker.subscribe(Subscription((topic,), "s"))
        print(consumer.receive(20).value.decode(), flush=True)
        time.sleep(60)
    """
    process = python(script, url, topic)
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"

    process.kill()
    process.communicate()

    consumer = broker.subscribe(Subscription((topic,), "s"))
    assert sorted(values(take(consumer, 2))) == ["prefetched", "running"]


def test_closed_consumer_gives_back_what_it_did_not_acknowledge(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["s"])
    broker.publish_many(text(topic, "done", "running", "prefetched"))
    first = broker.subscribe(Subscription((topic,), "s"))
    done, _running = take(first, 2)
    done.acknowledge()

    first.close()
    first.close()

    second = broker.subscribe(Subscription((topic,), "s"))
    assert values(take(second, 2)) == ["running", "prefetched"]
    assert second.receive(SHORT) is None
    done.acknowledge()  # too late, and harmless
    with pytest.raises(ClosedError):
        first.receive(1.0)


def test_message_that_runs_while_its_topic_moves_is_not_given_out_again(
    broker: Broker, pulsar_server: PulsarServer, topic: str
) -> None:
    broker.declare(topic, ["s"])
    consumer = broker.subscribe(Subscription((topic,), "s"))
    broker.publish(*text(topic, "running"))
    [running] = take(consumer, 1)

    for round_ in range(3):
        pulsar_server.unload(topic)
        broker.publish(*text(topic, round_), timeout=LONG)
        [after] = take(consumer, 1)
        assert values([after]) == [str(round_)]
        after.acknowledge()
    running.acknowledge()

    wait_until(lambda: backlog(pulsar_server, topic) == 0, "the backlog was not empty")


def test_acknowledgement_lost_with_the_connection_is_made_again(
    broker: Broker, pulsar_server: PulsarServer, topic: str
) -> None:
    broker.declare(topic, ["s"])
    consumer = broker.subscribe(Subscription((topic,), "s"))
    for round_ in range(5):
        broker.publish(*text(topic, f"running {round_}"), timeout=LONG)
        [running] = take(consumer, 1)
        assert values([running]) == [f"running {round_}"]
        pulsar_server.unload(topic)
        running.acknowledge()  # most likely while nobody listens

    def settled() -> bool:
        assert consumer.receive(0.05) is None
        return backlog(pulsar_server, topic) == 0

    wait_until(settled, "the backlog was not empty")


def test_batch_of_another_client_is_settled_one_by_one(broker: Broker, pulsar_server: PulsarServer, topic: str) -> None:
    broker.declare(topic, ["s"])
    client = pulsar.Client(pulsar_server.service_url, logger=QUIET)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_publish_delay_ms=1_000)
    for number in range(10):
        producer.send_async(str(number).encode(), lambda *_: None)
    producer.flush()
    client.close()
    consumer = broker.subscribe(Subscription((topic,), "s"))
    deliveries = take(consumer, 10)
    for delivery in deliveries[:5]:
        delivery.acknowledge()

    pulsar_server.unload(topic)  # the whole batch comes again
    broker.publish(*text(topic, "next"), timeout=LONG)

    assert values(take(consumer, 1)) == ["next"]
    assert len({delivery.message_id for delivery in deliveries}) == 10
    for delivery in deliveries[5:]:
        delivery.acknowledge()
    wait_until(lambda: backlog(pulsar_server, topic) == 1, "the batch was not settled")


def test_each_message_of_a_burst_wakes_a_thread_that_waits(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pulsartasks.brokers.pulsar.consumer.WAIT", 2 * LONG * 1000)  # so that none wakes by itself
    broker.declare(topic, ["s"])
    consumer = broker.subscribe(Subscription((topic,), "s"))

    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            waiting = [pool.submit(consumer.receive, 2 * LONG) for _ in range(6)]
            broker.publish_many(text(topic, *range(6)), timeout=LONG)
            assert None not in [one.result(LONG) for one in waiting]


def test_released_message_comes_again(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["s"])
    broker.publish_many(text(topic, "first", "second"))
    consumer = broker.subscribe(Subscription((topic,), "s"))
    first, second = take(consumer, 2)

    first.release()
    second.acknowledge()

    assert values(take(consumer, 1)) == ["first"]
    consumer.close()
    first.release()  # too late, and harmless


def test_headers_that_are_no_text_do_not_stop_the_consumer(
    broker: Broker, pulsar_server: PulsarServer, topic: str
) -> None:
    broker.declare(topic, ["s"])
    client = pulsar.Client(pulsar_server.service_url, logger=QUIET)
    client.create_producer(topic).send(b"x", properties={"bytes": b"\xff"})
    client.close()

    [delivery] = take(broker.subscribe(Subscription((topic,), "s")), 1)

    assert (delivery.value, dict(delivery.properties)) == (b"x", {})


def test_close_ends_a_waiting_receive_at_once(broker: Broker, topic: str) -> None:
    consumer = broker.subscribe(Subscription((topic,), "s"))
    waiting = threading.Event()

    def receive() -> float:
        waiting.set()
        with pytest.raises(ClosedError):
            consumer.receive(LONG)
        return time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(receive)
        waiting.wait()
        closed = time.monotonic()
        broker.close()
        assert ended.result() - closed < 2.0


def test_closed_broker_says_so(broker: Broker, topic: str) -> None:
    broker.publish(*text(topic, "x"))
    consumer = broker.subscribe(Subscription((topic,), "s"))
    wait_until(lambda: consumer.connected, "the consumer was not connected")

    broker.close()
    broker.close()

    assert not consumer.connected
    for use in (
        lambda: broker.publish(*text(topic, "x")),
        lambda: broker.subscribe(Subscription((topic,), "s")),
        lambda: broker.declare(topic, ["s"]),
        lambda: broker.read(topic),
        lambda: consumer.receive(0.0),
    ):
        with pytest.raises(ClosedError):
            use()


def test_process_that_ends_without_closing_loses_no_acknowledgement_and_prints_nothing(
    broker: Broker, pulsar_server: PulsarServer, url: str, topic: str
) -> None:
    broker.declare(topic, ["s"])
    script = """
        broker.publish(Publication(topic, b"x"))
        broker.subscribe(Subscription((topic,), "s")).receive(20).acknowledge()
    """
    process = python(script, url, topic)

    output, errors = process.communicate(timeout=60)

    assert (output, errors, process.returncode) == (b"", b"", 0)
    assert backlog(pulsar_server, topic) == 0


def test_forked_child_gets_a_clear_error_and_ends(url: str, topic: str) -> None:
    script = """
        broker.declare(topic, ["s"])
        broker.publish(Publication(topic, b"x"))
        consumer = broker.subscribe(Subscription((topic,), "s"))
        child = os.fork()
        if child == 0:
            for use in (
                lambda: broker.publish(Publication(topic, b"x")),
                lambda: broker.declare(topic, ["s"]),
                lambda: broker.read(topic),
                lambda: consumer.receive(1),
            ):
                try:
                    use()
                except Exception as error:
                    print(error, flush=True)
            consumer.close()
            broker.close()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        consumer.receive(5).acknowledge()
    """
    process = python(script, url, topic)

    output, errors = process.communicate(timeout=60)

    assert (errors, process.returncode) == (b"", 0)
    assert len(output.splitlines()) == output.count(b"cannot be used after a fork") == 4


def test_broker_that_was_not_used_yet_works_in_a_forked_child(url: str, topic: str) -> None:
    script = """
        child = os.fork()
        if child == 0:
            broker.publish(Publication(topic, b"x"))
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        broker.publish(Publication(topic, b"x"))
    """
    process = python(script, url, topic)

    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0


# Topics and subscriptions


@pytest.fixture(params=["with admin interface", "without"])
def either(request: pytest.FixtureRequest, opened: Callable[[str], Broker], url: str, url_without_admin: str) -> Broker:
    return opened(url if request.param == "with admin interface" else url_without_admin)


def test_declared_subscription_keeps_what_is_published_before_anybody_consumes(either: Broker, topic: str) -> None:
    either.declare(topic, ["s", "t"])
    either.publish_many(text(topic, *range(3)))
    either.declare(topic, ["s", "t"])

    for name in ("s", "t"):
        assert values(take(either.subscribe(Subscription((topic,), name)), 3)) == ["0", "1", "2"]


def test_subscription_declared_later_begins_where_it_is_told(either: Broker, topic: str) -> None:
    either.declare(topic, ["s"])
    either.publish(*text(topic, "before"))

    either.declare(topic, ["first"], start="earliest")
    either.declare(topic, ["new"], start="latest")

    either.publish(*text(topic, "after"))
    assert values(take(either.subscribe(Subscription((topic,), "first")), 2)) == ["before", "after"]
    assert values(take(either.subscribe(Subscription((topic,), "new")), 1)) == ["after"]


@pytest.mark.parametrize("mode", ["shared", "key_shared", "failover", "exclusive"])
def test_declaring_does_not_disturb_a_consumer(either: Broker, topic: str, mode: Mode) -> None:
    either.declare(topic, ["s"])
    consumer = either.subscribe(Subscription((topic,), "s", mode=mode))

    either.declare(topic, ["s"])

    either.publish(*text(topic, "x"))
    assert values(take(consumer, 1)) == ["x"]


def test_workers_that_declare_and_subscribe_at_once_do_not_refuse_each_other(
    opened: Callable[[str], Broker], url_without_admin: str, topic: str
) -> None:
    broker = opened(url_without_admin)

    def start(_: int) -> Consumer:
        broker.declare(topic, ["s"])
        return broker.subscribe(Subscription((topic,), "s", mode="key_shared"))

    with ThreadPoolExecutor(8) as pool:
        consumers = list(pool.map(start, range(8)))

    assert all(consumer.connected for consumer in consumers)


def test_partitions_are_made_once_and_only_by_the_admin_interface(
    opened: Callable[[str], Broker], url: str, url_without_admin: str, pulsar_server: PulsarServer, topic: str
) -> None:
    with pytest.raises(BrokerUnavailableError, match="admin interface"):
        opened(url_without_admin).declare(topic, ["s"], partitions=3)

    opened(url).declare(topic, ["s"], partitions=3)
    opened(url).declare(topic, ["s"], partitions=5)

    opened(url_without_admin).declare(topic, ["s"], partitions=3)
    found = pulsar_server.admin("GET", f"{topic.replace('://', '/')}/partitions")
    assert isinstance(found, dict)
    assert found["partitions"] == 3


def test_what_answers_in_place_of_an_admin_interface_is_not_believed(
    opened: Callable[[str], Broker], pulsar_server: PulsarServer, topic: str, http_yes: str
) -> None:
    broker = opened(f"{pulsar_server.service_url}?admin_url={http_yes}")

    broker.declare(topic, ["s"])

    assert backlog(pulsar_server, topic) == 0


@pytest.fixture
def http_yes() -> Iterator[str]:
    """A server that says yes to everything."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Yes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Yes) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_non_persistent_topic_carries_what_is_published_while_somebody_listens(either: Broker, topic: str) -> None:
    fleeting = topic.replace("persistent", "non-persistent", 1)
    either.declare(fleeting, ["s"])
    consumer, reader = either.subscribe(Subscription((fleeting,), "s")), either.read(fleeting)

    assert reader.receive(0.0) is None
    for number in range(20):  # one by one, for the broker drops what a connection cannot take at once
        either.publish(*text(fleeting, number))

        for source in (consumer, reader):
            [delivery] = take(source, 1)
            assert values([delivery]) == [str(number)]
            delivery.acknowledge()


# Reading


@pytest.mark.parametrize("partitions", [0, 3])
def test_reader_misses_nothing_that_is_published_after_it_was_opened(
    broker: Broker, topic: str, partitions: int
) -> None:
    broker.declare(topic, ["s"], partitions=partitions)
    broker.publish_many([Publication(topic, b"before", key=str(number)) for number in range(10)])

    reader = broker.read(topic)

    assert reader.receive(0.0) is None
    broker.publish_many([Publication(topic, str(number).encode(), key=str(number)) for number in range(10)])
    deliveries = take(reader, 10)
    assert sorted(values(deliveries)) == [str(number) for number in range(10)]
    assert {delivery.topic for delivery in deliveries} == {topic}
    assert reader.receive(0.0) is None
    assert reader.receive(0.05) is None


def test_reader_at_the_end_gives_nothing_old_though_its_client_hands_it_over_late(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.declare(topic, ["s"], partitions=3)
    broker.publish_many([Publication(topic, b"before", key=str(number)) for number in range(10)])
    has_message, asked = pulsar.Reader.has_message_available, itertools.count(1)

    def as_while_a_message_is_between_two_queues(reader: pulsar.Reader) -> bool:
        return next(asked) != 2 and has_message(reader)

    monkeypatch.setattr(pulsar.Reader, "has_message_available", as_while_a_message_is_between_two_queues)
    reader = broker.read(topic)
    broker.publish_many([Publication(topic, str(number).encode(), key=str(number)) for number in range(10)])

    assert sorted(values(take(reader, 10))) == [str(number) for number in range(10)]
    assert reader.receive(0.0) is None


@pytest.mark.parametrize("partitions", [0, 3])
def test_reader_begins_at_an_instant(broker: Broker, topic: str, partitions: int) -> None:
    broker.declare(topic, ["s"], partitions=partitions)
    messages = [Publication(topic, b"before", key=str(number)) for number in range(500)]
    broker.publish_many(messages)
    instant = next_millisecond()
    broker.publish_many([Publication(topic, b"after", key=str(number)) for number in range(10)])

    reader = broker.read(topic, since=instant)
    found = [delivery.value for delivery in iter(lambda: reader.receive(0.0), None)]

    assert found == [b"after"] * 10
    assert broker.read(topic, since=next_millisecond()).receive(0.0) is None


@pytest.mark.parametrize("kind", ["empty", "with messages", "partitioned", "trimmed"])
@pytest.mark.parametrize("since", [False, True], ids=["from the end", "since"])
def test_reader_that_has_read_nothing_yet_misses_nothing_when_the_topic_moves(
    broker: Broker, pulsar_server: PulsarServer, topic: str, kind: str, since: bool
) -> None:
    broker.declare(topic, ["s"], partitions=2 if kind == "partitioned" else 0)
    if kind != "empty":
        broker.publish_many([Publication(topic, b"before", key=str(number)) for number in range(10)])
    if kind == "trimmed":
        broker.trim(topic, "s", before=next_millisecond())
        pulsar_server.unload(topic)
    for round_ in range(5):
        reader = broker.read(topic, since=next_millisecond() if since else None)

        pulsar_server.unload(topic)
        broker.publish(Publication(topic, str(round_).encode(), key=str(round_)), timeout=LONG)

        assert values(take(reader, 1)) == [str(round_)]
        reader.close()


def test_reader_of_an_empty_topic_is_at_its_end(broker: Broker, topic: str) -> None:
    broker.declare(topic, ["s"])

    assert broker.read(topic, since=0.0).receive(0.0) is None
    assert broker.read(topic).receive(0.0) is None


def test_closing_a_reader_ends_its_waiting(broker: Broker, topic: str) -> None:
    reader = broker.read(topic)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.receive, LONG)
        reader.close()
        reader.close()
        with pytest.raises(ClosedError):
            waiting.result(5)


@pytest.mark.parametrize("partitions", [0, 2])
def test_trim_acknowledges_what_is_older_and_never_goes_back(
    opened: Callable[[str], Broker], url: str, topic: str, partitions: int
) -> None:
    broker = opened(url)
    broker.declare(topic, ["s"], partitions=partitions)
    start = next_millisecond()
    broker.publish_many([Publication(topic, b"before", key=str(number)) for number in range(20)])
    instant = next_millisecond()
    broker.publish_many([Publication(topic, b"after", key=str(number)) for number in range(10)])

    broker.trim(topic, "s", before=instant)
    broker.trim(topic, "s", before=start)

    consumer = broker.subscribe(Subscription((topic,), "s"))
    assert values(take(consumer, 10)) == ["after"] * 10
    assert consumer.receive(SHORT) is None


def test_trim_works_without_admin_interface_and_keeps_single_acknowledgements(
    opened: Callable[[str], Broker], url_without_admin: str, topic: str
) -> None:
    broker = opened(url_without_admin)
    broker.declare(topic, ["s"])
    broker.publish_many(text(topic, *range(5)))
    instant = next_millisecond()
    broker.publish_many(text(topic, *range(5, 10)))
    consumer = broker.subscribe(Subscription((topic,), "s"))
    take(consumer, 8)[-1].acknowledge()
    consumer.close()

    broker.trim(topic, "s", before=instant)

    assert values(take(broker.subscribe(Subscription((topic,), "s")), 4)) == ["5", "6", "8", "9"]


def test_trim_of_a_topic_that_moved_and_is_all_too_old_empties_it(
    broker: Broker, pulsar_server: PulsarServer, topic: str
) -> None:
    broker.declare(topic, ["s"])
    broker.trim(topic, "s", before=next_millisecond())  # nothing there yet
    broker.publish_many(text(topic, *range(5)))
    broker.close()
    for _ in range(2):
        pulsar_server.unload(topic)

    again = open_broker(f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}")
    again.trim(topic, "s", before=next_millisecond())
    again.close()

    wait_until(lambda: backlog(pulsar_server, topic) == 0, "the backlog was not empty")


def next_millisecond() -> float:
    """An instant between what was published before the call and what is published after it."""
    instant = (int(time.time() * 1000) + 1) / 1000
    while time.time() < instant + 0.001:
        pass
    return instant


# The broker goes and comes back


def test_broker_that_was_silent_once_is_waited_for_again_after_a_while(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(PulsarSettings.parse(url))
    monkeypatch.setattr(module, "_SILENT_FOR", 0.2)
    monkeypatch.setattr(module, "_CLOSE_TIMEOUT_AGAIN", 0.001)
    with monkeypatch.context() as patched:
        patched.setattr(module, "CLOSE_TIMEOUT", 0.01)
        silence = threading.Event()
        connection.end(silence.wait)
        believed = time.monotonic() + 0.2
    while time.monotonic() < believed:
        connection.end(silence.wait)  # what is cut short says nothing of the broker
    answers, closed = threading.Event(), threading.Event()
    threading.Timer(0.5, answers.set).start()

    def close() -> None:
        answers.wait()
        closed.set()

    connection.end(close)

    assert closed.is_set()
    silence.set()


@pytest.mark.slow
@pytest.mark.parametrize("closing", [[], ["close"]], ids=["left", "closed"])
def test_process_ends_well_though_the_broker_does_not_answer(
    pulsar_server: PulsarServer, url: str, topic: str, closing: list[str]
) -> None:
    script = """
        broker.declare(topic, ["s"])
        consumers = [broker.subscribe(Subscription((topic,), "s")) for _ in range(16)]
        print("opened", flush=True)
        sys.stdin.readline()
        for consumer in consumers:
            consumer.close()
        if "close" in sys.argv:
            broker.close()
    """
    process = python(script, url, topic, *closing)
    assert process.stdout is not None
    assert process.stdout.readline() == b"opened\n"

    with pulsar_server.suspended():
        _, errors = process.communicate(b"\n", timeout=LONG)

    assert (process.returncode, errors) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_consumer_and_publisher_go_on_after_the_broker_came_back(
    broker: Broker, pulsar_server: PulsarServer, topic: str, kill: bool
) -> None:
    broker.declare(topic, ["s"])
    consumer = broker.subscribe(Subscription((topic,), "s"))
    stop = threading.Event()
    confirmed: list[str] = []

    def publish() -> None:
        number = 0
        while not stop.is_set():
            broker.publish(*text(topic, number), timeout=120.0)
            confirmed.append(str(number))
            number += 1

    received: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish)
        for delivery in take(consumer, 10):
            received.extend(values([delivery]))
            delivery.acknowledge()
        [running] = take(consumer, 1)
        wait_until(lambda: len(confirmed) > 10, "the running one was not confirmed")  # else it is published again

        pulsar_server.restart(kill=kill)

        count = len(confirmed)
        wait_until(lambda: len(confirmed) > count + 10 or publishing.done(), "nothing was published any more")
        stop.set()
        publishing.result()
    received += values([running])
    running.acknowledge()
    while set(received) < set(confirmed):
        [delivery] = take(consumer, 1)
        delivery.acknowledge()
        received += values([delivery])

    assert list(dict.fromkeys(received)) == confirmed
    assert values([running]) == ["10"]
    assert received.count("10") == 1
    assert consumer.connected
    wait_until(lambda: backlog(pulsar_server, topic) == 0, "the backlog was not empty")
