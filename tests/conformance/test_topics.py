"""Event topics: every subscription has everything; guarantee 8: nothing is lost before any worker started."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from pulsartasks import PulsarTasks, Tail, TaskContext
from pulsartasks.errors import UnreadableMessageError
from pulsartasks.message import Publication
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.conformance.records import Record


class Order(msgspec.Struct, frozen=True):
    customer: str
    amount: int = 1


@dataclass(frozen=True)
class Parcel:
    weight: float


@pytest.mark.wire
def test_each_of_two_subscriptions_gets_everything(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing", "packing"))

    @app.task(topic=ordered, subscription="billing")
    def bill(order: Order) -> None:
        with record.attempt(f"bill/{order.customer}"):
            pass

    @app.task(topic=ordered, subscription="packing", mode="key_shared")
    def pack(order: Order) -> None:
        with record.attempt(f"pack/{order.customer}"):
            pass

    start_worker(app)
    for number in range(5):
        ordered.publish(Order(str(number)))

    record.wait_for(10)
    assert sorted(record.labels()) == [f"{deed}/{number}" for deed in ("bill", "pack") for number in range(5)]


@pytest.mark.guarantee(8)
def test_call_published_before_any_worker_ever_started_is_run(
    acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    for number in range(3):
        acting.tasks["shared"].delay(f"early bird/{number}")
    acting.close()

    start_worker(acting, topics=["shared"])

    record.wait_for(3)


@pytest.mark.guarantee(8)
def test_event_published_before_any_worker_ever_started_waits_for_every_subscription(
    broker: BrokerUnderTest, name: str, start_worker: Workers, record: Record
) -> None:
    publisher = PulsarTasks(name, broker.url)  # knows the topic alone, no handler
    publisher.topic("ordered", schema=Order, subscriptions=("billing", "packing")).publish(Order("early bird"))
    publisher.close()

    app = PulsarTasks(name, broker.url)
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing", "packing"))
    for subscription in ("billing", "packing"):

        @app.task(topic=ordered, subscription=subscription, name=subscription, bind=True)
        def handle(context: TaskContext, order: Order) -> None:
            with record.attempt(f"{context.request.subscription}: {order.customer}"):
                pass

    start_worker(app)

    record.wait_for_labels("billing: early bird", "packing: early bird")
    app.close()


@pytest.mark.guarantee(8)
def test_subscription_that_starts_latest_does_not_see_what_came_before_it(
    broker: BrokerUnderTest, name: str, start_worker: Workers, record: Record
) -> None:
    app = PulsarTasks(name, broker.url)
    ordered = app.topic("ordered", schema=Order, subscriptions=("first",))
    ordered.publish(Order("before"))  # kept, since the first subscription has not had it

    @app.task(topic=ordered, subscription="latecomer", start="latest")
    def note(order: Order) -> None:
        with record.attempt(order.customer):
            pass

    app.close()
    start_worker(app)
    ordered.publish(Order("after"))

    record.wait_for_labels("after")
    assert record.labels() == ["after"]
    app.close()


@pytest.mark.guarantee(14)
def test_event_topic_carries_the_bare_payload_with_its_key(app: PulsarTasks) -> None:
    ordered = app.topic("ordered", schema=Order, key=lambda order: order.customer, subscriptions=("other",))
    reader = app.read(ordered.full_name)

    message_id = ordered.publish(Order("ada", 3), headers={"colour": "red"})

    delivery = reader.receive(30)
    assert delivery is not None
    assert delivery.message_id == message_id
    assert msgspec.json.decode(delivery.value) == {"customer": "ada", "amount": 3}
    assert delivery.key == "ada"
    assert dict(delivery.properties) == {"colour": "red"}
    reader.close()


@pytest.mark.guarantee(14)
def test_foreign_message_on_an_event_topic_is_the_payload(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    sent = app.topic("sent", schema=Parcel, subscriptions=("packing",))

    @app.task(topic=sent, subscription="packing")
    def pack(parcel: Parcel) -> None:
        with record.attempt(f"{parcel.weight:g} kg"):
            pass

    start_worker(app)
    app.publish(Publication(sent.full_name, b'{"weight": 1.5, "colour": "red"}', properties={"producer": "java"}))

    record.wait_for_labels("1.5 kg")


@pytest.mark.guarantee(14)
def test_foreign_message_on_a_call_topic_is_keyword_arguments(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    @app.task(topic="parcels")
    def pack(parcel: Parcel, wrap: bool = False) -> None:
        with record.attempt(f"{parcel.weight:g} kg {wrap}"):
            pass

    start_worker(app)
    app.publish(Publication(app.qualify("parcels"), b'{"parcel": {"weight": 2}, "wrap": true}'))

    record.wait_for_labels("2 kg True")


@pytest.mark.guarantee(13)
def test_direct_call_of_a_handler_reaches_it_alone_and_has_a_result(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing", "packing"))

    @app.task(topic=ordered, subscription="billing")
    def bill(order: Order) -> str:
        return f"bill for {order.customer}"

    @app.task(topic=ordered, subscription="packing")
    def pack(order: Order) -> None:
        with record.attempt("packed"):
            pass

    start_worker(app)

    assert bill.delay(Order("ada")).get(timeout=120) == "bill for ada"
    ordered.publish(Order("ada"))
    record.wait_for(1)
    assert record.labels() == ["packed"]


def test_tasks_of_one_call_topic_are_told_apart(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(topic="sums")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(topic="sums")
    def multiply(x: int, y: int) -> int:
        return x * y

    start_worker(app)

    assert [add.delay(3, 4).get(timeout=120), multiply.delay(3, 4).get(timeout=120)] == [7, 12]


@pytest.mark.wire
@pytest.mark.guarantee(6)
def test_partitioned_topic_keeps_the_order_of_each_key(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    ordered = app.topic(
        "ordered", schema=Order, key=lambda order: order.customer, partitions=3, subscriptions=("billing",)
    )

    @app.task(topic=ordered, subscription="billing", mode="key_shared", concurrency=4)
    def bill(order: Order) -> None:
        with record.attempt(f"{order.customer}/{order.amount}"):
            pass

    start_worker(app)
    for amount in range(6):
        for customer in "abcd":
            ordered.publish(Order(customer, amount))

    labels = [run.label for run in record.wait_for(24)]
    for customer in "abcd":
        assert [label for label in labels if label.startswith(customer)] == [f"{customer}/{n}" for n in range(6)]


# tail


@pytest.fixture
def tails() -> Iterator[list[Tail[Order]]]:
    tails: list[Tail[Order]] = []
    yield tails
    for tail in tails:
        tail.close()


@pytest.mark.wire
def test_tail_sees_what_is_published_after_it_began(app: PulsarTasks, tails: list[Tail[Order]]) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing",))
    ordered.publish(Order("before"))
    tails.append(ordered.tail())

    ordered.publish(Order("after"))

    assert tails[0].receive(30) == Order("after")
    assert tails[0].receive(0.2) is None


def test_everybody_who_tails_sees_everything(app: PulsarTasks, tails: list[Tail[Order]]) -> None:
    ordered = app.topic("ordered", schema=Order)
    tails += [ordered.tail() for _ in range(3)]
    orders = [Order(str(number)) for number in range(10)]

    for order in orders:
        ordered.publish(order)

    assert [[tail.receive(30) for _ in orders] for tail in tails] == [orders] * 3


def test_tail_sees_what_other_processes_publish(
    broker: BrokerUnderTest, name: str, app: PulsarTasks, tails: list[Tail[Order]]
) -> None:
    tails.append(app.topic("ordered", schema=Order).tail())
    other = PulsarTasks(name, broker.url)

    other.topic("ordered", schema=Order).publish(Order("from elsewhere"))

    assert tails[0].receive(30) == Order("from elsewhere")
    other.close()


def test_close_from_another_thread_ends_the_iteration(app: PulsarTasks) -> None:
    ordered = app.topic("ordered", schema=Order)
    tail = ordered.tail()
    seen: list[Order] = []
    first = threading.Event()

    def follow() -> None:
        for order in tail:
            seen.append(order)
            first.set()

    follower = threading.Thread(target=follow)
    follower.start()
    ordered.publish(Order("ada"))
    assert first.wait(30)

    tail.close()

    follower.join(10)
    assert not follower.is_alive()
    assert seen == [Order("ada")]
    tail.close()
    assert tail.receive(0) is None


def test_tail_goes_on_behind_an_unreadable_message(app: PulsarTasks, tails: list[Tail[Order]]) -> None:
    ordered = app.topic("ordered", schema=Order)
    tails.append(ordered.tail())
    app.publish(Publication(ordered.full_name, b"no order"))
    ordered.publish(Order("ada"))

    with pytest.raises(UnreadableMessageError):
        tails[0].receive(30)

    assert tails[0].receive(30) == Order("ada")


def test_tail_leaves_nothing_behind(broker: BrokerUnderTest, app: PulsarTasks) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing",))
    with ordered.tail() as tail:
        ordered.publish(Order("ada"))
        assert tail.receive(30) == Order("ada")

    assert broker.backlog(ordered.full_name, "billing") == 1
    assert broker.subscriptions(ordered.full_name) == {"billing"}
