"""A Pulsar whose delayed delivery is off: the worker waits itself, and nobody gets a message twice."""

from __future__ import annotations

import time
from uuid import uuid4

import msgspec

from pulsartasks import PulsarTasks
from pulsartasks.worker.consumer import EARLY_TICK
from pulsartasks.worker.worker import Worker
from tests.conformance.records import Record
from tests.services import PulsarServer, wait_until


class Order(msgspec.Struct, frozen=True):
    customer: str


def test_delayed_event_is_not_early_and_reaches_each_subscription_once(
    pulsar_server: PulsarServer, record: Record
) -> None:
    name = f"t{uuid4().hex[:10]}"
    namespace = f"public/{name}"
    pulsar_server.admin("PUT", f"namespaces/{namespace}")
    pulsar_server.admin("POST", f"namespaces/{namespace}/delayedDelivery", {"active": False, "tickTime": 100})
    url = f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}"
    app = PulsarTasks(name, url, namespace=namespace)
    ordered = app.topic("ordered", schema=Order, subscriptions=("one", "two", "three"))

    @app.task(topic=ordered, subscription="one")
    def one(order: Order) -> None:
        with record.attempt("one"):
            pass

    @app.task(topic=ordered, subscription="two")
    def two(order: Order) -> None:
        with record.attempt("two"):
            pass

    @app.task(topic=ordered, subscription="three", mode="key_shared")
    def three(order: Order) -> None:
        with record.attempt("three"):
            pass

    worker = Worker(app)
    worker.start()
    wait_until(lambda: worker.ready, "the worker did not get ready")
    published = time.time()
    ordered.publish(Order("ada"), countdown=2 * EARLY_TICK + 0.5)
    ordered.publish(Order("ada"))

    runs = record.wait_for(6)
    worker.stop()
    app.close()
    assert sorted(run.label for run in runs) == ["one", "one", "three", "three", "two", "two"]
    assert sum(run.began >= published + 2 * EARLY_TICK + 0.5 for run in runs) == 3
