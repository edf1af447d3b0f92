"""`app.testing(eager=True)`: a call has run when `delay` returns, in the caller's thread, as on the wire."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pytest

from pulsartasks import (
    INJECTED,
    Batch,
    FrozenClock,
    InvalidArgumentsError,
    PulsarTasks,
    SoftTimeLimitExceeded,
    TaskContext,
    UnreadableMessageError,
    group,
)
from pulsartasks.dead_letters import DeadLetters


@dataclass
class Order:
    number: int
    placed: datetime


class Engine:
    """Something costly."""


@pytest.fixture
def app() -> PulsarTasks:
    return PulsarTasks("shop", "memory://")


def test_call_has_run_when_delay_returns_in_the_same_thread(app: PulsarTasks) -> None:
    seen: list[Any] = []

    @app.task
    def note(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number

    with app.testing(eager=True):
        call = note.delay(7)

        assert seen == [(7, threading.get_ident())]
        assert (call.state, call.get(timeout=0)) == ("SUCCESS", 7)


def test_arguments_and_results_travel_as_on_the_wire(app: PulsarTasks) -> None:
    order = Order(7, datetime(2026, 1, 1, tzinfo=timezone.utc))
    got: list[Any] = []

    @app.task
    def take(order: Order, extra: Any) -> Order:
        got.append((order, extra))
        return order

    @app.task
    def lie() -> int:
        return "seven"  # type: ignore[return-value]

    with app.testing(eager=True):
        assert take.delay(order, (1, 2)).get(timeout=10) == order
        assert got == [(order, [1, 2])]  # a tuple without an annotation is a list in JSON
        assert got[0][0] is not order
        with pytest.raises(InvalidArgumentsError):
            take.delay("order", None)  # type: ignore[arg-type]
        with pytest.raises(UnreadableMessageError, match="not what its return annotation says"):
            lie.delay().get(timeout=10)


@pytest.mark.parametrize("mode", ["shared", "key_shared", "failover"])
def test_retries_and_delays_take_no_time(app: PulsarTasks, mode: Any) -> None:
    began = time.monotonic()

    @app.task(bind=True, mode=mode, autoretry_for=(OSError,), default_retry_delay=3600.0)
    def fetch(self: TaskContext) -> int:
        if self.retries < 3:
            raise OSError("no answer")
        return self.retries

    with app.testing(eager=True):
        assert fetch.using(countdown=86_400).delay().get(timeout=10) == 3
    assert time.monotonic() - began < 60


def test_however_often_it_is_retried_each_attempt_begins_where_the_first_did(app: PulsarTasks) -> None:
    depths: set[int] = set()

    @app.task(bind=True, autoretry_for=(OSError,), max_retries=200)
    def fetch(self: TaskContext) -> int:
        depths.add(len(inspect.stack(0)))
        if self.retries < 200:
            raise OSError("no answer")
        return self.retries

    with app.testing(eager=True):
        assert fetch.delay().get(timeout=10) == 200
    assert len(depths) == 1


def test_error_is_the_callers_when_it_asks_and_a_dead_letter(app: PulsarTasks) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("no")

    with app.testing(eager=True):
        call = fail.delay()
        with pytest.raises(ValueError, match="no"):
            call.get(timeout=10)
        assert [letter.task for letter in DeadLetters(app, fail).list()] == ["fail"]


def test_task_may_wait_for_one_that_it_calls(app: PulsarTasks) -> None:
    @app.task
    def inner(number: int) -> int:
        return number + 1

    @app.task
    def outer(number: int) -> int:
        return inner.delay(number).get(timeout=10) * 2

    @app.task
    async def outer_async(number: int) -> int:
        call = await inner.adelay(number)
        return await call.aget(timeout=10) * 2

    ends: list[str] = []
    app.signals.task_postrun.connect(lambda sender, **_: ends.append(sender.name))
    with app.testing(eager=True) as running:
        assert outer.delay(1).get(timeout=10) == 4
        assert outer_async.delay(5).get(timeout=10) == 12
        running.assert_published(inner, 5)
    assert ends == ["inner", "outer", "inner", "outer_async"]


def test_event_reaches_every_subscription_and_resources_are_there(app: PulsarTasks) -> None:
    happened = app.topic("happened", schema=int)
    seen: list[str] = []

    @app.resource
    def engine() -> Iterator[Engine]:
        seen.append("up")
        yield Engine()
        seen.append("down")

    for subscription in ("a", "b"):

        @app.task(topic=happened, subscription=subscription, name=subscription, bind=True)
        def handle(self: TaskContext, number: int, engine: Engine = INJECTED) -> None:
            assert isinstance(engine, Engine)
            seen.append(self.request.subscription)

    with app.testing(eager=True):
        happened.publish(7)
        assert sorted(seen[1:]) == ["a", "b"]

    assert (seen[0], seen[-1]) == ("up", "down")


def test_block_of_calls_runs_when_it_ends(app: PulsarTasks) -> None:
    seen: list[int] = []

    @app.task
    def note(number: int) -> None:
        seen.append(number)

    with app.testing(eager=True):
        with app.publishing():
            note.delay(1)
            note.delay(2)
            assert seen == []
        assert seen == [1, 2]


def test_batch_is_of_one_message_and_waits_for_no_other(app: PulsarTasks) -> None:
    sizes: list[int] = []

    @app.task(batch=Batch(max_messages=9, max_wait=60.0))
    def double(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        return [2 * number for number in numbers]

    with app.testing(eager=True):
        assert [double.delay(number).get(timeout=0) for number in range(3)] == [0, 2, 4]
    assert sizes == [1, 1, 1]


def test_soft_time_limit_interrupts(app: PulsarTasks) -> None:
    @app.task(soft_time_limit=0.05)
    def count() -> str:
        try:
            while True:
                time.sleep(0.001)
        except SoftTimeLimitExceeded:
            return "counted"

    with app.testing(eager=True):
        assert count.delay().get(timeout=10) == "counted"


def test_with_a_clock_of_ones_own_delays_wait_for_it(app: PulsarTasks) -> None:
    seen: list[int] = []

    @app.task
    def note(number: int) -> None:
        seen.append(number)

    with app.testing(eager=True, clock=FrozenClock()) as running:
        note.using(countdown=60).delay(1)
        revoked = note.using(countdown=60).delay(2)
        revoked.revoke()
        running.join()
        assert seen == []

        running.advance(60)

        assert seen == [1]
        assert revoked.state == "REVOKED"


def test_canvas_has_run_to_its_end_when_delay_returns_in_the_same_thread(app: PulsarTasks) -> None:
    threads: set[int] = set()

    @app.task
    def add(x: int, y: int) -> int:
        threads.add(threading.get_ident())
        return x + y

    @app.task
    def total(numbers: list[int]) -> int:
        threads.add(threading.get_ident())
        return sum(numbers)

    with app.testing(eager=True):
        parts = group(add.s(1), add.s(2).set(countdown=3600))
        result = (add.s(1, 1) | parts | total.s() | add.s(100)).delay()

        assert result.get(timeout=0) == 107
        assert threads == {threading.get_ident()}
