"""A topic's schema: the broker knows it, and refuses a publisher whose type does not fit what is on the topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import msgspec
import pulsar
import pytest

from pulsartasks import IncompatibleSchemaError, PulsarTasks
from pulsartasks.message import Publication
from pulsartasks.schemas import Schema
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.conformance.records import Record
from tests.services import PulsarServer, wait_until

pytestmark = pytest.mark.guarantee(14)


class Order(msgspec.Struct, frozen=True):
    customer: str
    amount: int = 1


class LaterOrder(msgspec.Struct, frozen=True):
    """The same with a field that may be absent."""

    customer: str
    amount: int = 1
    note: str | None = None


class DriftedOrder(msgspec.Struct, frozen=True):
    """A field that the others need is called otherwise here."""

    buyer: str
    amount: int = 1


class RetypedOrder(msgspec.Struct, frozen=True):
    customer: str
    amount: str = "1"


@pytest.fixture
def other_app(broker: BrokerUnderTest, name: str) -> Iterator[Callable[[], PulsarTasks]]:
    """Makes the app as another service has it: of the same name, with a connection of its own."""
    apps: list[PulsarTasks] = []

    def make() -> PulsarTasks:
        apps.append(PulsarTasks(name, broker.url))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


def test_schema_is_registered_with_the_first_publish(app: PulsarTasks, broker: BrokerUnderTest) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing",))

    ordered.publish(Order("ada"))
    ordered.publish(Order("bob"))

    [definition] = broker.schemas(ordered.full_name)
    assert msgspec.json.decode(definition) == {
        "type": "record",
        "name": "Order",
        "fields": [{"name": "customer", "type": "string"}, {"name": "amount", "type": "long", "default": 1}],
    }


def test_publisher_with_a_further_optional_field_is_accepted_and_so_is_the_old_one_after_it(
    other_app: Callable[[], PulsarTasks], broker: BrokerUnderTest, start_worker: Workers, record: Record
) -> None:
    old, new = other_app(), other_app()
    before = old.topic("ordered", schema=Order, subscriptions=("billing",))
    after = new.topic("ordered", schema=LaterOrder, subscriptions=("billing",))

    @new.task(topic=after, subscription="billing")
    def bill(order: LaterOrder) -> None:
        with record.attempt(f"{order.customer}: {order.note}"):
            pass

    before.publish(Order("ada"))
    after.publish(LaterOrder("bob", note="quick"))
    old.close()  # so that the next publish registers once more
    before.publish(Order("cyd"))

    start_worker(new)
    record.wait_for_labels("ada: None", "bob: quick", "cyd: None")
    assert len(broker.schemas(before.full_name)) == 2


@pytest.mark.parametrize(
    ("drifted", "why"),
    [
        (DriftedOrder("ada"), "DriftedOrder.buyer is new and has no default; Order.customer is gone"),
        (RetypedOrder("ada"), "RetypedOrder.amount was long and is string"),
    ],
    ids=["renamed", "retyped"],
)
def test_drifted_publisher_is_refused_with_the_difference_and_the_others_go_on(
    other_app: Callable[[], PulsarTasks],
    start_worker: Workers,
    record: Record,
    drifted: DriftedOrder | RetypedOrder,
    why: str,
) -> None:
    good, bad = other_app(), other_app()
    ordered = good.topic("ordered", schema=Order, subscriptions=("billing",))
    ordered.publish(Order("first"))

    @good.task(topic=ordered, subscription="billing")
    def bill(order: Order) -> None:
        with record.attempt(order.customer):
            pass

    with pytest.raises(IncompatibleSchemaError, match=why):
        bad.topic("ordered", schema=type(drifted), subscriptions=("billing",)).publish(drifted)

    ordered.publish(Order("last"))
    start_worker(good)
    record.wait_for_labels("first", "last")
    assert sorted(record.labels()) == ["first", "last"]


def test_refused_event_takes_nothing_else_down_that_is_published_with_it(
    app: PulsarTasks, broker: BrokerUnderTest
) -> None:
    app.topic("ordered", schema=Order, subscriptions=("billing",)).publish(Order("ada"))
    topic, other = app.qualify("ordered"), app.qualify("other")
    app.broker.declare(other, ["keep"])
    app.close()
    app.broker.declare(topic, ["billing"], schema=Schema("Order", '{"type":"record","name":"Order","fields":[]}'))
    app.broker.declare(other, ["keep"])

    refused, accepted = app.broker.publish_many([Publication(topic, b"{}"), Publication(other, b"{}")])

    assert isinstance(refused, IncompatibleSchemaError)
    assert isinstance(accepted, str)
    assert (broker.backlog(topic, "billing"), broker.backlog(other, "keep")) == (1, 1)


def test_event_of_a_publisher_without_schema_is_taken(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing",))
    ordered.publish(Order("ada"))
    app.close()

    @app.task(topic=ordered, subscription="billing")
    def bill(order: Order) -> None:
        with record.attempt(order.customer):
            pass

    app.broker.publish(Publication(ordered.full_name, b'{"customer": "bob"}'))

    start_worker(app)
    record.wait_for_labels("ada", "bob")


def test_retries_and_dead_letters_of_a_topic_with_a_schema_travel_as_before(
    app: PulsarTasks, broker: BrokerUnderTest, start_worker: Workers
) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing",))

    @app.task(topic=ordered, subscription="billing", autoretry_for=(OSError,), max_retries=1, default_retry_delay=0.05)
    def bill(order: Order) -> None:
        raise OSError(order.customer)

    ordered.publish(Order("ada"))
    start_worker(app)

    dead_letters = f"{ordered.full_name}-billing-DLQ"
    wait_until(
        lambda: dead_letters in broker.topics() and broker.backlog(dead_letters, "dead-letters") == 1, "no dead letter"
    )


def _record(*fields: str, name: str = "Order") -> str:
    return f'{{"type":"record","name":"{name}","fields":[{",".join(fields)}]}}'


_A = '{"name":"a","type":"long"}'
_PART = '{"name":"p","type":["null",%s]}'
_EVOLUTIONS = {
    "optional added": (_record(_A), _record(_A, '{"name":"b","type":["null","string"],"default":null}'), True),
    "required added": (_record(_A), _record(_A, '{"name":"b","type":"string"}'), False),
    "required gone": (_record(_A, '{"name":"b","type":"string"}'), _record(_A), False),
    "optional gone": (_record(_A, '{"name":"b","type":"string","default":""}'), _record(_A), True),
    "retyped": (_record(_A), _record('{"name":"a","type":"string"}'), False),
    "widened": (_record(_A), _record('{"name":"a","type":"double"}'), False),
    "made nullable": (_record(_A), _record('{"name":"a","type":["null","long"]}'), False),
    "type renamed": (_record(_A), _record(_A, name="Purchase"), True),
    "default changed": (_record('{"name":"a","type":"long","default":1}'), _record(_A), True),
    "part renamed": (_record(_PART % _record(_A, name="P")), _record(_PART % _record(_A, name="Q")), True),
    "part retyped": (
        _record(_PART % _record(_A, name="P")),
        _record(_PART % _record('{"name":"a","type":"string"}', name="P")),
        False,
    ),
    "reordered union": (
        _record('{"name":"a","type":["null","long"]}'),
        _record('{"name":"a","type":["long","null"]}'),
        True,
    ),
    "items retyped": (
        _record('{"name":"a","type":{"type":"array","items":"long"}}'),
        _record('{"name":"a","type":{"type":"array","items":"string"}}'),
        False,
    ),
}


def test_every_change_of_a_schema_is_judged_as_pulsar_does(app: PulsarTasks) -> None:
    judged: dict[str, bool] = {}
    topics = {change: app.qualify(f"topic-{number}") for number, change in enumerate(_EVOLUTIONS)}
    for is_new in (False, True):
        for change, (old, new, _) in _EVOLUTIONS.items():
            app.broker.declare(topics[change], ["keep"], schema=Schema("Order", new if is_new else old))
        outcomes = app.broker.publish_many([Publication(topic, b"{}") for topic in topics.values()])
        judged = {change: isinstance(outcome, str) for change, outcome in zip(topics, outcomes, strict=True)}
        app.close()  # the next one registers once more

    assert judged == {change: accepted for change, (_, _, accepted) in _EVOLUTIONS.items()}


class PlainOrder(pulsar.schema.Record):  # type: ignore[misc]
    """The event as somebody has it who knows Pulsar alone."""

    customer = pulsar.schema.String(required=True)
    amount = pulsar.schema.Long(required=True, default=1)


@pytest.mark.pulsar
def test_plain_pulsar_client_with_its_own_json_schema_publishes_and_reads(
    name: str, pulsar_server: PulsarServer, record: Record
) -> None:
    app = PulsarTasks(name, pulsar_server.service_url)  # without the admin interface
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing", "plain"))

    @app.task(topic=ordered, subscription="billing")
    def bill(order: Order) -> None:
        with record.attempt(order.customer):
            pass

    ordered.publish(Order("ada", 3))
    schema = pulsar.schema.JsonSchema(PlainOrder)
    logger = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
    with closing(pulsar.Client(pulsar_server.service_url, logger=logger)) as client:
        client.create_producer(ordered.full_name, schema=schema).send(PlainOrder(customer="bob", amount=2))
        received = client.subscribe(ordered.full_name, "plain", schema=schema).receive(10_000).value()

    with ExitStack() as stack:
        Workers(stack)(app)
        record.wait_for_labels("ada", "bob")
    assert (received.customer, received.amount) == ("ada", 3)
    app.close()
