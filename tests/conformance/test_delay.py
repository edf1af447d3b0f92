"""Guarantee 7: countdown and eta are held by the broker and never early, in every mode; what is due runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from pulsartasks import PulsarTasks, PulsarTasksError
from pulsartasks.errors import BrokerUnavailableError
from pulsartasks.message import Publication
from pulsartasks.middleware.base import Middleware, Publish
from pulsartasks.worker.consumer import EARLY_TICK
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record, overlapping
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(7)

MODES = ["shared", "exclusive", "failover", "key_shared"]


class Order(msgspec.Struct, frozen=True):
    customer: str


@pytest.mark.parametrize("mode", MODES)
def test_countdown_is_never_early_and_does_not_hold_up_others(
    mode: str, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks[mode]
    start_worker(acting, topics=[mode])

    called = time.time()
    task.using(countdown=2.5).delay("a/late")
    task.using(countdown=timedelta(milliseconds=1250)).delay("a/soon")
    task.delay("a/now")

    runs = record.wait_for(3)
    assert [run.label for run in runs] == ["a/now", "a/soon", "a/late"]
    assert runs[1].began >= called + 1.25
    assert runs[2].began >= called + 2.5


@pytest.mark.parametrize("mode", MODES)
def test_eta_is_never_early_not_by_a_fraction_of_a_millisecond(
    mode: str, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    start_worker(acting, topics=[mode])
    due = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    etas = {f"a/{number}": due + timedelta(microseconds=number * 10_137) for number in range(12)}

    for label, eta in etas.items():
        acting.tasks[mode].using(eta=eta).delay(label)

    for run in record.wait_for(len(etas)):
        assert run.began >= etas[run.label].timestamp()


@pytest.mark.parametrize("mode", MODES)
def test_call_that_came_due_while_no_worker_was_there_runs_when_one_comes(
    mode: str, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks[mode]
    task.using(countdown=0.2).delay("a/due")
    task.using(countdown=3600).delay("a/not due")
    past = datetime.now(timezone.utc) - timedelta(days=1)
    task.using(eta=past).delay("a/overdue")
    due = time.time() + 0.2
    wait_until(lambda: time.time() > due, "time stood still")

    start_worker(acting, topics=[mode])

    record.wait_for_labels("a/due", "a/overdue")
    assert set(record.labels()) == {"a/due", "a/overdue"}


def test_delayed_call_survives_the_death_of_the_worker_that_waited_for_it(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    worker = start_process("shared").wait_until_ready()
    called = time.time()
    acting.tasks["shared"].using(countdown=1.0).delay("later")

    worker.kill()
    start_worker(acting, topics=["shared"])

    [run] = record.wait_for(1)
    assert run.began >= called + 1.0


@pytest.mark.wire
def test_delayed_call_waits_on_a_topic_of_its_own(
    broker: BrokerUnderTest, acting: PulsarTasks, start_worker: Workers
) -> None:
    task = acting.tasks["shared"]
    start_worker(acting, topics=["shared"])

    task.using(countdown=3600).delay("later")

    assert broker.backlog(task.topics.delayed, task.subscription) == 1
    assert broker.backlog(task.topics.work, task.subscription) == 0  # its backlog means work that is due


def test_due_calls_of_an_ordered_mode_still_run_one_at_a_time(
    acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks["key_shared"]
    start_worker(acting, concurrency=4, topics=["key_shared"])

    for number in range(8):
        task.using(countdown=0.3).delay(f"a/{number}", seconds=0.02)

    assert not overlapping(record.wait_for(8))


class FaltersOnce(Middleware):
    """Fails when a message is first sent on to `topic`: by a bug of its own, or as a broker that is away."""

    def __init__(self, topic: str, error: Exception) -> None:
        self._topic = topic
        self._error = error
        self.failed = False

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        if publications[0].topic == self._topic and not self.failed:
            self.failed = True
            raise self._error
        return call_next(publications)


class HoldsNothingBack(Middleware):
    """Has the first message delivered at once, as a broker whose delayed delivery is off."""

    def __init__(self) -> None:
        self._seen = False

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        if not self._seen:
            self._seen = True
            publications = [msgspec.structs.replace(publication, deliver_at=None) for publication in publications]
        return call_next(publications)


def test_due_call_that_could_not_be_forwarded_runs_later(
    acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks["key_shared"]
    falters = FaltersOnce(task.topics.calls, ValueError("a bug of a middleware"))
    acting.middleware = (falters,)
    start_worker(acting, topics=["key_shared"])

    task.using(countdown=0.2).delay("a/late")

    record.wait_for(1)
    assert falters.failed


def test_early_call_that_could_not_be_put_back_runs_when_it_is_due(
    acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks["key_shared"]
    called = time.time()
    acting.middleware = (HoldsNothingBack(),)
    task.using(countdown=2 * EARLY_TICK).delay("a/late")
    falters = FaltersOnce(task.topics.delayed, BrokerUnavailableError("away for a moment"))
    acting.middleware = (falters,)

    start_worker(acting, topics=["key_shared"])

    [run] = record.wait_for(1)
    assert run.began >= called + 2 * EARLY_TICK
    assert falters.failed


def test_retries_come_after_the_eta_with_their_own_delay(
    acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    start_worker(acting, topics=["shared"])
    called = time.time()
    acting.tasks["shared"].using(countdown=0.5).delay("message", "retry", times=1)

    first, second = record.wait_for(2)

    assert first.began >= called + 0.5
    assert first.ended is not None
    assert second.began >= first.ended + 0.3


@pytest.mark.parametrize("mode", MODES)
def test_delayed_event_is_never_early_for_any_subscription(
    mode: Any, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    ordered = app.topic("ordered", schema=Order, key=lambda order: order.customer, subscriptions=("one", "two"))

    @app.task(topic=ordered, subscription="one", mode=mode)
    def one(order: Order) -> None:
        with record.attempt(f"one/{order.customer}"):
            pass

    @app.task(topic=ordered, subscription="two")
    def two(order: Order) -> None:
        with record.attempt(f"two/{order.customer}"):
            pass

    start_worker(app)
    published = time.time()
    ordered.publish(Order("ada"), countdown=0.5)

    runs = record.wait_for(2)
    assert sorted(run.label for run in runs) == ["one/ada", "two/ada"]
    assert min(run.began for run in runs) >= published + 0.5
