"""Guarantee 14: arguments are data; what cannot work is said at the call or definition, and nothing is sent."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest

from pulsartasks import (
    BrokerUnavailableError,
    CallError,
    ConfigurationError,
    InvalidArgumentsError,
    MessageTooLargeError,
    PublishTimeoutError,
    PulsarTasks,
    TaskContext,
)
from pulsartasks.message import Publication
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.services import free_ports

pytestmark = pytest.mark.guarantee(14)


class Order(msgspec.Struct, frozen=True):
    customer: str
    amount: int = 1


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


WRONG_CALLS: dict[str, Callable[[Any], object]] = {
    "too few": lambda task: task.delay(),
    "too many": lambda task: task.delay("ada", 1, 2),
    "unknown name": lambda task: task.delay("ada", colour="red"),
    "given twice": lambda task: task.delay("ada", customer="grace"),
    "wrong type": lambda task: task.delay(7),
    "not data": lambda task: task.delay(object()),
    "a lock": lambda task: task.delay("ada", extra=threading.Lock()),
    "bottomless": lambda task: task.delay("ada", extra=nested(100_000)),
    "bytes that are no text": lambda task: task.delay("\ud800"),
    "headers that are not text": lambda task: task.using(headers={"number": 7}).delay("ada"),
    "headers of ours": lambda task: task.using(headers={"pt-id": "mine"}).delay("ada"),
    "countdown and eta": lambda task: task.apply_async(["ada"], countdown=1, eta=datetime.now().astimezone()),
    "an eta nowhere": lambda task: task.using(eta=datetime(2030, 1, 1)).delay("ada"),  # noqa: DTZ001 - it is what is refused
    "a countdown without end": lambda task: task.using(countdown=math.inf).delay("ada"),
}


def test_wrong_calls_are_refused_and_nothing_is_sent(broker: BrokerUnderTest, app: PulsarTasks) -> None:
    @app.task
    def greet(customer: str, extra: Any = None) -> None:
        """Takes a name."""

    greet.delay("somebody")

    for call in WRONG_CALLS.values():
        with pytest.raises(InvalidArgumentsError):
            call(greet)

    assert broker.backlog(greet.topics.work, greet.subscription) == 1
    assert greet.topics.delayed not in broker.topics()


def test_too_large_call_is_refused_with_what_to_do_instead(broker: BrokerUnderTest, app: PulsarTasks) -> None:
    @app.task
    def store(text: str) -> None:
        """Takes a text."""

    store.delay("small")

    with pytest.raises(MessageTooLargeError, match="blob store"):
        store.delay("x" * 6_000_000)

    assert broker.backlog(store.topics.work, store.subscription) == 1
    store.delay("the next one goes through")


def test_wrong_payload_of_a_topic_is_refused(broker: BrokerUnderTest, app: PulsarTasks) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing",))
    ordered.publish(Order("ada"))

    for wrong in ("ada", {"customer": 7}, Order("ada", "many")):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentsError):
            ordered.publish(wrong)  # type: ignore[arg-type]

    assert broker.backlog(ordered.full_name, "billing") == 1


def test_arguments_arrive_as_what_they_are_annotated_with(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def describe(order: Order, *more: int, note: str = "none", **rest: float) -> list[str]:
        return [type(order).__name__, str(sum(more)), note, *map(repr, rest.values())]

    start_worker(app)

    result = describe.delay(Order("ada"), 1, 2, note="late", weight=1.5)

    assert result.get(timeout=120) == ["Order", "3", "late", "1.5"]


def test_calling_a_task_runs_it_here_without_any_broker() -> None:
    app = PulsarTasks("nowhere", f"pulsar://127.0.0.1:{free_ports(1)[0]}")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(bind=True)
    def attempt(context: TaskContext) -> int:
        return context.retries

    assert (add(2, 3), attempt()) == (5, 0)


def test_many_publications_are_each_answered(broker: BrokerUnderTest, app: PulsarTasks) -> None:
    @app.task
    def store(text: str) -> None:
        """Takes a text."""

    publications = [store.s(str(number)).publication() for number in range(200)]
    too_large = Publication(store.topics.work, b"x" * 6_000_000)

    outcomes = app.publish_many([*publications[:100], too_large, *publications[100:]])

    assert isinstance(outcomes.pop(100), MessageTooLargeError)
    assert len({str(outcome) for outcome in outcomes}) == 200
    assert broker.backlog(store.topics.work, store.subscription) == 200


@pytest.mark.guarantee(11)
def test_broker_that_is_away_is_a_clear_error(broker: BrokerUnderTest, name: str, tmp_path: Any) -> None:
    urls = {
        "local": "local:///proc/nobody/can/write/here/broker.db",
        "pulsar": f"pulsar://127.0.0.1:{free_ports(1)[0]}?operation_timeout=1",
    }
    app = PulsarTasks(name, urls[broker.name])

    @app.task(ignore_result=True)
    def note() -> None:
        """Does nothing."""

    with pytest.raises((BrokerUnavailableError, PublishTimeoutError)) as caught:
        note.delay()

    assert isinstance(caught.value, OSError)  # so that autoretry_for=(OSError,) covers it
    app.close()


# Definitions


def plain(x: int) -> int:
    return x


def of_order(order: Order) -> None:
    """Handles an order."""


def of_two(order: Order, more: int) -> None:
    """Needs more than a payload."""


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown option": ({"max_retry": 3}, "did you mean 'max_retries'"),
    "mode": ({"mode": "fanout"}, "mode"),
    "ack": ({"ack": "sometimes"}, "ack"),
    "start": ({"start": "tomorrow"}, "start"),
    "key": ({"key": "chat_id"}, "key"),
    "autoretry_for": ({"autoretry_for": (7,)}, "exception"),
    "max_retries": ({"max_retries": -1}, "max_retries"),
    "concurrency": ({"concurrency": 0}, "concurrency"),
    "prefetch": ({"prefetch": 0}, "prefetch"),
    "delay": ({"default_retry_delay": -1.0}, "delay"),
    "one at a time": ({"mode": "exclusive", "concurrency": 2}, "one message at a time"),
    "batching": ({"batching": 100}, "True or False"),
    "batching what was acknowledged": ({"batching": True, "ack": "early"}, "at most once"),
    "fleeting and ordered": ({"durable": False, "mode": "key_shared"}, "durable=False"),
    "fleeting and once": ({"durable": False, "once": True}, "durable=False"),
    "fleeting and crashing": ({"durable": False, "max_crashes": 5}, "durable=False"),
    "fleeting and acknowledged later": ({"durable": False, "ack": "manual", "bind": True}, "durable=False"),
    "compression": ({"compression": "rar"}, "one of lz4"),
    "topic name": ({"topic": "no spaces please"}, "topic"),
    "subscription name": ({"subscription": "a/b"}, "subscription"),
    "dead-letter topic": ({"dead_letter": "not/so"}, "topic"),
}


@pytest.mark.parametrize("wrong", WRONG_OPTIONS)
def test_wrong_option_is_refused_at_definition_with_a_hint(wrong: str) -> None:
    options, hint = WRONG_OPTIONS[wrong]
    app = PulsarTasks("shop", "memory://")

    with pytest.raises(ConfigurationError, match=hint):
        app.task(**options)(plain)

    assert not app.tasks


@pytest.mark.parametrize("name", ["", "two words", "a/b", "ümlaut!", "persistent://only/two"])
def test_wrong_topic_name_is_refused(name: str) -> None:
    app = PulsarTasks("shop", "memory://")

    with pytest.raises(ConfigurationError, match="topic"):
        app.topic(name, schema=Order)


def test_second_task_of_the_same_name_is_refused() -> None:
    app = PulsarTasks("shop", "memory://")
    app.task(plain)

    with pytest.raises(ConfigurationError, match="defined twice"):
        app.task(plain)


def test_second_subscription_on_a_call_topic_is_refused() -> None:
    app = PulsarTasks("shop", "memory://")
    app.task(topic="work", subscription="one")(plain)

    with pytest.raises(ConfigurationError, match=r"already has the subscription 'one'.*app.topic"):
        app.task(topic="work", subscription="two", name="other")(plain)


def test_second_mode_on_a_call_topic_is_refused() -> None:
    app = PulsarTasks("shop", "memory://")
    app.task(topic="work")(plain)

    with pytest.raises(ConfigurationError, match="mode='shared'"):
        app.task(topic="work", mode="exclusive", name="other")(plain)


def test_second_handler_of_a_subscription_is_refused() -> None:
    app = PulsarTasks("shop", "memory://")
    ordered = app.topic("ordered", schema=Order)
    app.task(topic=ordered, subscription="billing")(of_order)

    with pytest.raises(ConfigurationError, match="one handler"):
        app.task(topic=ordered, subscription="billing", name="other")(of_order)


def test_handler_that_takes_more_than_the_payload_is_refused() -> None:
    app = PulsarTasks("shop", "memory://")

    with pytest.raises(ConfigurationError, match="exactly one argument"):
        app.task(topic=app.topic("ordered", schema=Order), subscription="billing")(of_two)


def test_handler_of_events_that_is_not_durable_is_refused() -> None:
    app = PulsarTasks("shop", "memory://")

    with pytest.raises(ConfigurationError, match="durable=False is for calls"):
        app.task(topic=app.topic("ordered", schema=Order), durable=False)(of_order)


def test_topic_defined_twice_is_refused() -> None:
    app = PulsarTasks("shop", "memory://")
    app.topic("ordered", schema=Order)

    with pytest.raises(ConfigurationError, match="defined twice"):
        app.topic("shop.ordered", schema=Order)


@pytest.mark.parametrize(
    "url", ["nonsense", "redis://localhost", "local://host/broker.db", "local:///tmp/b.db?fast=1", "pulsar://"]
)
def test_wrong_broker_url_is_refused_in_words(url: str) -> None:
    app = PulsarTasks("shop", url)
    task = app.task(plain)

    with pytest.raises(ConfigurationError):
        task.delay(1)


def test_errors_of_a_call_are_of_one_family() -> None:
    assert issubclass(InvalidArgumentsError, CallError)
    assert issubclass(InvalidArgumentsError, TypeError)
    assert issubclass(MessageTooLargeError, CallError)
    assert issubclass(PublishTimeoutError, TimeoutError)
