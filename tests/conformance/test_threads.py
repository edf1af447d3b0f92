"""What waits for what: each promise needs two messages that run at the same instant, or one that must not wait."""

from __future__ import annotations

import threading
import time

import pytest

from pulsartasks import PulsarTasks, TaskContext
from pulsartasks.options import Mode
from tests.conformance.conftest import Workers
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(6)

PATIENCE = 90.0


def test_tasks_with_their_own_concurrency_do_not_wait_for_each_other(app: PulsarTasks, start_worker: Workers) -> None:
    both = threading.Barrier(2)

    @app.task(concurrency=1)
    def left() -> int:
        return both.wait(PATIENCE)

    @app.task(concurrency=1)
    def right() -> int:
        return both.wait(PATIENCE)

    start_worker(app)

    results = [left.delay(), right.delay()]

    assert {result.get(timeout=PATIENCE) for result in results} == {0, 1}


@pytest.mark.parametrize("mode", ["failover", "exclusive"])
def test_ordered_topics_do_not_wait_for_each_other(app: PulsarTasks, start_worker: Workers, mode: Mode) -> None:
    both = threading.Barrier(2)

    @app.task(mode=mode)
    def left() -> int:
        return both.wait(PATIENCE)

    @app.task(mode=mode)
    def right() -> int:
        return both.wait(PATIENCE)

    start_worker(app)

    results = [left.delay(), right.delay()]

    assert {result.get(timeout=PATIENCE) for result in results} == {0, 1}


def test_long_run_amid_many_short_ones_does_not_keep_the_next_waiting(app: PulsarTasks, start_worker: Workers) -> None:
    done = threading.Event()

    @app.task(topic="work")
    def note(last: bool) -> None:
        if last:
            done.set()

    @app.task(topic="work")
    def hold() -> bool:
        return done.wait(PATIENCE)

    app.publish_many([note.s(False).publication() for _ in range(2000)])
    held = [hold.delay() for _ in range(3)]
    note.delay(True)
    start_worker(app)

    assert all(result.get(timeout=PATIENCE) for result in held)


def test_concurrency_of_a_task_is_kept_beside_that_of_the_worker(app: PulsarTasks, start_worker: Workers) -> None:
    running: list[int] = []
    most: list[int] = []

    @app.task(concurrency=2)
    def two_at_once(number: int) -> None:
        running.append(number)
        most.append(len(running))
        time.sleep(0.02)  # long enough for a third to show
        running.remove(number)

    start_worker(app)

    results = [two_at_once.delay(number) for number in range(20)]

    for result in results:
        result.get(timeout=PATIENCE)
    assert max(most) <= 2


def test_concurrency_is_kept_by_calls_that_come_due_and_by_retries_too(app: PulsarTasks, start_worker: Workers) -> None:
    running: list[int] = []
    most: list[int] = []

    @app.task(bind=True, concurrency=1, retry_backoff=False, default_retry_delay=0.05, retry_jitter=False)
    def one_at_a_time(self: TaskContext, number: int) -> None:
        running.append(number)
        most.append(len(running))
        time.sleep(0.02)  # long enough for a second to show
        running.remove(number)
        if number % 3 == 0 and self.retries == 0:
            raise self.retry()

    start_worker(app)

    results = [one_at_a_time.using(countdown=0.1 * (number % 2)).delay(number) for number in range(24)]

    for result in results:
        result.get(timeout=PATIENCE)
    assert len(most) == 24 + 8
    assert max(most) == 1


def test_call_that_comes_due_has_its_turn_though_there_is_always_something_to_do(
    app: PulsarTasks, start_worker: Workers
) -> None:
    done = threading.Event()

    @app.task(concurrency=1, ignore_result=True)
    def work(last: bool) -> None:
        if last:
            done.set()
        elif not done.is_set():
            work.delay(False)

    app.publish_many([work.s(False).publication() for _ in range(20)])
    work.using(countdown=0.5).delay(True)
    start_worker(app)

    assert done.wait(PATIENCE)


def test_worker_whose_places_are_taken_by_what_came_due_leaves_the_rest_to_others(
    app: PulsarTasks, start_worker: Workers
) -> None:
    held: list[int] = []
    ran: list[int] = []
    done = threading.Event()

    @app.task(concurrency=4, prefetch=1, ignore_result=True)
    def work(number: int, hold: bool) -> None:
        if hold:
            held.append(number)
            done.wait(PATIENCE)
        else:
            ran.append(number)

    start_worker(app)
    for number in range(4):
        work.using(countdown=0.1).delay(number, True)
    wait_until(lambda: len(held) == 4, "they did not begin")
    for number in range(8):
        work.delay(number, False)
    start_worker(app)

    wait_until(lambda: len(ran) >= 6, "the first worker holds more than one in its queue and one in hand")
    done.set()
    wait_until(lambda: sorted(ran) == list(range(8)), "what it held did not run")
