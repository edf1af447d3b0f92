"""The outbox on a Pulsar that deduplicates, by a policy of the topic, and on one that does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from structlog.testing import capture_logs

from pulsartasks.brokers.base import Subscription
from pulsartasks.contrib.sqlalchemy import BATCH
from pulsartasks.errors import BrokerUnavailableError
from pulsartasks.message import Publication
from tests.integration.shop import READER, Order, Shop, killed_before_deletion, orders, running
from tests.services import LOOPBACK, PulsarServer, free_ports, wait_until


@pytest.fixture
def shop(tmp_path: Path, pulsar_server: PulsarServer) -> Iterator[Shop]:
    """On a topic that has no policy yet."""
    url = f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}"
    shop = Shop(f"sqlite:///{tmp_path}/shop.db", url, topic=f"shop.ordered-{uuid4().hex}")
    shop.metadata.create_all(shop.engine)
    shop.app.declare(shop.ordered.full_name)
    yield shop
    shop.close()


@pytest.fixture
def deduplicating(shop: Shop, pulsar_server: PulsarServer) -> Shop:
    return _deduplicated(shop, pulsar_server)


def _deduplicated(shop: Shop, pulsar_server: PulsarServer) -> Shop:
    topic = shop.ordered.full_name
    pulsar_server.admin("POST", f"{topic.replace('://', '/')}/deduplicationEnabled", True)
    wait_until(lambda: shop.app.broker.deduplicates(topic, keyed=True), "the policy is not in force")
    return shop


def test_relay_killed_before_it_deleted_sends_nothing_again(deduplicating: Shop) -> None:
    with capture_logs() as logs:
        sent, arrived = killed_before_deletion(deduplicating)

    assert Counter(arrived) == Counter(sent)
    assert [entry["delivery"] for entry in logs if entry["event"] == "outbox.reached"] == ["effectively once"]


def test_relay_says_that_it_is_at_least_once_without_the_policy(shop: Shop) -> None:
    with capture_logs() as logs:
        sent, arrived = killed_before_deletion(shop)

    assert Counter(arrived) == Counter(sent + sent[:BATCH])
    assert [entry["delivery"] for entry in logs if entry["event"] == "outbox.reached"] == ["at least once"]


def test_nothing_is_sent_again_though_nobody_says_that_the_broker_deduplicates(deduplicating: Shop) -> None:
    """As while it starts: the admin interface does not answer, and the topic can be sent to."""
    (port,) = free_ports(1)
    url = deduplicating.broker_url.partition("?")[0] + f"?admin_url=http://{LOOPBACK}:{port}"
    shop = Shop(deduplicating.database_url, url, topic=deduplicating.ordered.name)
    with capture_logs() as logs:
        sent, arrived = killed_before_deletion(shop)
    shop.close()

    assert Counter(arrived) == Counter(sent)
    assert [entry["delivery"] for entry in logs if entry["event"] == "outbox.reached"] == ["at least once"]


def test_row_without_a_key_is_not_dropped_by_a_partition_that_has_a_higher_number(
    shop: Shop, pulsar_server: PulsarServer
) -> None:
    """A killed relay left it with its number, and the partitions have rows that were sent behind it."""
    divided = Shop(shop.database_url, shop.broker_url, topic=f"{shop.ordered.name}-divided", partitions=2)
    divided.outbox.shards = 1
    divided.app.declare(divided.ordered.full_name)
    _deduplicated(divided, pulsar_server)
    divided.send(*(Order(None, number) for number in range(4)), *orders(4, start=4))
    table = divided.outbox.table
    with divided.engine.begin() as connection:
        connection.execute(table.update().where(table.c.key.is_(None)).values(sequence_id=table.c.id))
    producer = f"{divided.app.name}.{divided.outbox.name}-0"
    behind = [
        Publication(divided.ordered.full_name, msgspec.json.encode(Order(None, n)), producer=producer, sequence=n)
        for n in (8, 9)
    ]
    stored = divided.app.broker.publish_many(behind)
    assert {str(message_id).split(":")[2] for message_id in stored} == {"0", "1"}, "a partition has none"

    with running(divided.relay()):
        arrived = divided.receive(10)
        divided.wait_until_empty()
    divided.close()

    assert {order.number for order in arrived} == set(range(10))


def test_stand_by_in_another_process_takes_over_the_names(deduplicating: Shop) -> None:
    """Another app is as good as another process: it has producers of its own."""
    first, other = deduplicating, Shop(deduplicating.database_url, deduplicating.broker_url)
    other.app.close()
    other.app, other.ordered = first.app.__class__("shop", first.broker_url), first.ordered
    with running(first.relay()) as stop:
        first.send(*orders(20))
        arrived = first.receive(20)
        with running(other.relay()):
            stop.set()
            first.send(*orders(20, start=20))
            arrived += first.receive(20)
    other.close()

    assert Counter(arrived) == Counter(orders(40))


def test_name_is_one_processs_at_a_time_and_its_numbers_go_on_in_the_next(deduplicating: Shop) -> None:
    topic = deduplicating.ordered.full_name
    broker = deduplicating.app.broker
    other_app = deduplicating.app.__class__("shop", deduplicating.broker_url)
    consumer = broker.subscribe(Subscription((topic,), READER))

    def publication(number: int) -> Publication:
        return Publication(topic, str(number).encode(), producer="counter", sequence=number)

    broker.publish_many([publication(5), publication(5), publication(7)])
    with pytest.raises(BrokerUnavailableError, match="under the same name"):
        other_app.broker.publish(publication(8), timeout=5.0)
    broker.retire("counter")
    for number in (7, 6, 8):
        other_app.broker.publish(publication(number))
    other_app.close()

    received = [delivery.value for _ in range(3) if (delivery := consumer.receive(30.0))]
    assert received == [b"5", b"7", b"8"]
    assert consumer.receive(0.2) is None
