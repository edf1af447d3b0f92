"""A batch runs many messages at once, and settles each as if it had run by itself."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import pytest
from structlog.testing import capture_logs
from typing_extensions import assert_type

from pulsartasks import (
    AsyncResult,
    Batch,
    InvalidArgumentsError,
    MaxRetriesExceededError,
    PulsarTasks,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    Task,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerCrashedError,
    group,
)
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.message import Publication
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.services import wait_until

LONG = 30.0
"""Seconds that no batch of these tests waits for, if it is as it should be."""


@dataclass(frozen=True)
class Reading:
    sensor: str
    number: int


def call_all(task: Task[[int], int], numbers: Iterable[int]) -> list[AsyncResult[int]]:
    return [task.delay(number) for number in numbers]


def reasons(app: PulsarTasks, task: Task[[int], int]) -> dict[object, tuple[str, int]]:
    """Why, and after how many attempts, the calls were given up that had these arguments."""
    letters = [(kept, kept.story) for kept in DeadLetters(app, task).list()]
    return {
        task.codec.decode(kept.delivery.value)[0][0]: (story.reason, story.attempts)
        for kept, story in letters
        if story is not None
    }


def test_what_waits_runs_in_batches_of_the_size_asked_for_and_each_call_gets_its_own_result(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    batches: list[list[int]] = []

    @app.task(batch=Batch(max_messages=4, max_wait=LONG))
    def double(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        return [2 * number for number in numbers]

    calls = call_all(double, range(12))
    start_worker(app)

    assert_type(calls[0], AsyncResult[int])
    assert [call.get(timeout=120) for call in calls] == [2 * number for number in range(12)]
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert sorted(number for batch in batches for number in batch) == list(range(12))
    wait_until(lambda: broker.backlog(double.topics.work, double.subscription) == 0, "not all were acknowledged")


def test_batch_that_does_not_fill_up_runs_after_its_time(app: PulsarTasks, start_worker: Workers) -> None:
    batches: list[int] = []

    @app.task(batch=Batch(max_messages=50, max_wait=0.5))
    def store(numbers: list[int]) -> None:
        batches.append(len(numbers))

    start_worker(app)
    began = time.monotonic()
    with app.publishing():
        calls = [store.delay(number) for number in range(3)]

    assert [call.get(timeout=120) for call in calls] == [None, None, None]
    assert time.monotonic() - began >= 0.5
    assert sum(batches) == 3


def test_each_place_of_the_list_is_settled_by_what_stands_there(app: PulsarTasks, start_worker: Workers) -> None:
    attempts: Counter[int] = Counter()

    @app.task(
        batch=Batch(max_messages=8, max_wait=0.2), autoretry_for=(OSError,), max_retries=2, default_retry_delay=0.1
    )
    def judge(numbers: list[int]) -> list[int | Exception]:
        attempts.update(numbers)
        verdicts: dict[int, Exception] = {
            1: Reject("no such thing"),
            2: ValueError("two"),
            3: ConnectionError("three"),
            4: Retry(0.1),
            5: Retry(0.1, KeyError("five")),
        }
        return [
            number if number == 6 and attempts[number] == 3 else verdicts.get(number, OSError("six"))
            for number in numbers
        ]

    calls = call_all(judge, range(1, 7))
    start_worker(app)

    for call, error in zip(
        calls, (Reject, ValueError, ConnectionError, MaxRetriesExceededError, KeyError), strict=False
    ):
        with pytest.raises(error):
            call.get(timeout=120)
    assert calls[5].get(timeout=120) == 6
    assert attempts == {1: 1, 2: 1, 3: 3, 4: 3, 5: 3, 6: 3}
    assert reasons(app, judge) == {
        1: ("rejected", 1),
        2: ("failed", 1),
        3: ("failed", 3),
        4: ("failed", 3),
        5: ("failed", 3),
    }


def test_exception_concerns_every_message_each_with_its_own_attempts(app: PulsarTasks, start_worker: Workers) -> None:
    attempts: Counter[int] = Counter()

    @app.task(
        batch=Batch(max_messages=2, max_wait=0.3), autoretry_for=(OSError,), max_retries=2, default_retry_delay=0.1
    )
    def store(numbers: list[int]) -> list[int]:
        attempts.update(numbers)
        raise ConnectionError("the database is away")

    first = store.delay(1)
    start_worker(app)
    wait_until(lambda: attempts[1] > 0, "the first did not run")
    second = store.delay(2)

    for call in (first, second):
        with pytest.raises(ConnectionError, match="away"):
            call.get(timeout=120)
    assert attempts == {1: 3, 2: 3}
    assert reasons(app, store) == {1: ("failed", 3), 2: ("failed", 3)}


@pytest.mark.parametrize("returned", [[1], "12", 2])
def test_batch_that_gives_no_result_for_each_has_failed(
    returned: object, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(batch=Batch(max_messages=2, max_wait=LONG))
    def store(numbers: list[int]) -> list[int]:
        return returned  # type: ignore[return-value]

    calls = call_all(store, [1, 2])
    start_worker(app)

    for call in calls:
        with pytest.raises(InvalidArgumentsError, match="got a batch of 2 and returned"):
            call.get(timeout=120)
    assert reasons(app, store) == {1: ("failed", 1), 2: ("failed", 1)}


@pytest.mark.guarantee(4, 12)
def test_what_is_revoked_expired_or_unreadable_never_reaches_the_function(
    app: PulsarTasks, start_worker: Workers
) -> None:
    seen: list[int] = []

    @app.task(batch=Batch(max_messages=2, max_wait=LONG))
    def store(numbers: list[int]) -> None:
        seen.extend(numbers)

    revoked, expired = store.delay(1), store.using(expires=0.001).delay(2)
    app.publish(Publication(store.topics.work, b'{"numbers": "three"}'))
    revoked.revoke()
    fine = [store.delay(number) for number in (4, 5)]
    start_worker(app)

    assert [call.get(timeout=120) for call in fine] == [None, None]
    for call in (revoked, expired):
        with pytest.raises(TaskRevokedError):
            call.get(timeout=120)
    assert sorted(seen) == [4, 5]
    wait_until(lambda: [k.story and k.story.reason for k in DeadLetters(app, store).list()] == ["unreadable"], "gone")


@pytest.mark.guarantee(5)
def test_message_that_kills_its_batch_is_found_and_the_others_are_not_given_up(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    batch = acting.tasks["batch"]
    with acting.publishing():
        neighbours = [batch.delay(f"beside {number}") for number in range(7)]
        poison = batch.delay("exit")

    start_process("batch")

    with pytest.raises(WorkerCrashedError, match="3 worker processes died"):
        poison.get(timeout=120)
    assert [call.get(timeout=120) for call in neighbours] == [None] * 7
    assert [kept.story and kept.story.reason for kept in DeadLetters(acting, batch).list()] == ["crashed"]


@pytest.mark.guarantee(10)
def test_hard_time_limit_is_that_of_the_whole_batch(acting: PulsarTasks, start_process: StartProcess) -> None:
    batch = acting.tasks["batch"]
    with acting.publishing():
        calls = [batch.delay(label) for label in ("1", "2", "3", "spin")]

    start_process("batch")

    for call in calls:
        with pytest.raises(TimeLimitExceeded):
            call.get(timeout=120)


def test_events_come_as_a_list_of_payloads(broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers) -> None:
    seen: list[Reading] = []
    readings = app.topic(f"{app.name}.readings", schema=Reading, subscriptions=("store",))

    @app.task(topic=readings, subscription="store", batch=Batch(max_messages=3, max_wait=LONG))
    def store(rows: list[Reading]) -> None:
        seen.extend(rows)

    with app.publishing():
        for number in range(3):
            readings.publish(Reading("door", number))
    start_worker(app)

    wait_until(lambda: broker.backlog(readings.full_name, "store") == 0, "they were not acknowledged")
    assert sorted(seen, key=lambda reading: reading.number) == [Reading("door", number) for number in range(3)]


@pytest.mark.guarantee(6)
def test_batch_holds_one_message_of_each_key_and_keeps_their_order_through_retries(
    app: PulsarTasks, start_worker: Workers
) -> None:
    batches: list[list[str]] = []
    done: dict[str, list[int]] = defaultdict(list)

    @app.task(
        mode="key_shared",
        key=lambda reading: reading.sensor,
        batch=Batch(max_messages=4, max_wait=0.2),
        autoretry_for=(OSError,),
        default_retry_delay=0.1,
    )
    def store(rows: list[Reading]) -> list[Exception | None]:
        batches.append([row.sensor for row in rows])
        results: list[Exception | None] = []
        for row in rows:
            again = row == Reading("a", 0) and sum("a" in batch for batch in batches) == 1
            if not again:
                done[row.sensor].append(row.number)
            results.append(OSError("not yet") if again else None)
        return results

    with app.publishing():
        calls = [store.delay(Reading(sensor, number)) for number in range(3) for sensor in "abc"]
    start_worker(app)

    assert [call.get(timeout=120) for call in calls] == [None] * 9
    assert done == {sensor: [0, 1, 2] for sensor in "abc"}
    assert all(len(batch) == len(set(batch)) for batch in batches)


@pytest.mark.guarantee(9)
def test_batch_that_is_half_full_runs_at_once_when_the_worker_stops(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(batch=Batch(max_messages=9, max_wait=LONG))
    def store(numbers: list[int]) -> list[int]:
        return numbers

    worker = start_worker(app)
    calls = call_all(store, [1, 2])
    gathering = worker._executor._gatherings["store"]
    wait_until(lambda: gathering._open is not None and len(gathering._open.requests) == 2, "they did not meet")

    began = time.monotonic()
    assert worker.stop(grace=20)

    assert time.monotonic() - began < LONG / 2
    assert [call.get(timeout=120) for call in calls] == [1, 2]


def test_batches_of_a_task_run_one_after_the_other_unless_more_are_asked_for(
    app: PulsarTasks, start_worker: Workers
) -> None:
    two, together = threading.Barrier(2), threading.Barrier(2)

    @app.task(batch=Batch(max_messages=2, max_wait=0.05))
    def alone(numbers: list[int]) -> list[int]:
        with suppress(threading.BrokenBarrierError):
            two.wait(timeout=0.5)
        return numbers

    @app.task(batch=Batch(max_messages=2, max_wait=LONG), concurrency=2)
    def beside(numbers: list[int]) -> list[int]:
        together.wait(timeout=20)
        return numbers

    calls = [*call_all(alone, range(8)), *call_all(beside, range(4))]
    start_worker(app)

    assert [call.get(timeout=120) for call in calls] == [*range(8), *range(4)]
    assert two.broken  # nobody came while the first one waited


@pytest.mark.guarantee(15)
def test_message_of_a_batch_that_has_succeeded_does_not_run_again(app: PulsarTasks, start_worker: Workers) -> None:
    seen: list[int] = []

    @app.task(once=True, batch=Batch(max_messages=3, max_wait=0.1))
    def pay(orders: list[int]) -> list[int]:
        seen.extend(orders)
        return orders

    start_worker(app)
    pay.apply_async((1,), task_id="order-1").get(timeout=120)
    with capture_logs() as logs:
        pay.apply_async((1,), task_id="order-1")
        assert pay.apply_async((2,), task_id="order-2").get(timeout=120) == 2
        wait_until(lambda: any(entry["event"] == "message.skipped" for entry in logs), "it was not skipped")

    assert seen == [1, 2]


@pytest.mark.guarantee(10)
def test_soft_time_limit_is_that_of_the_whole_batch(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(batch=Batch(max_messages=2, max_wait=LONG), soft_time_limit=0.2)
    def count(numbers: list[int]) -> list[int]:
        while True:
            time.sleep(0.01)

    calls = call_all(count, [1, 2])
    start_worker(app)

    for call in calls:
        with pytest.raises(SoftTimeLimitExceeded):
            call.get(timeout=120)


def test_each_message_of_a_batch_has_its_own_place_in_a_canvas(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(batch=Batch(max_messages=3, max_wait=0.3))
    def double(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    @app.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    start_worker(app)

    assert (group(double.s(number) | double.s() for number in range(3)) | total.s()).delay().get(timeout=120) == 12


def test_coroutine_takes_batches_as_well(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(batch=Batch(max_messages=3, max_wait=LONG))
    async def double(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    calls = call_all(double, range(3))
    start_worker(app)

    assert [call.get(timeout=120) for call in calls] == [0, 2, 4]
