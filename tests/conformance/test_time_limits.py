"""Guarantee 10: a task that runs longer than its soft limit is told so inside itself, and nobody else is."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pulsartasks import PulsarTasks, SoftTimeLimitExceeded, TaskContext
from tests.conformance.conftest import BrokerUnderTest, Workers

pytestmark = pytest.mark.guarantee(10)

PATIENCE = 90.0


def busy(seconds: float) -> None:
    """Python code that takes its time and can be interrupted between its steps."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.005)


def test_soft_limit_is_raised_inside_a_function_which_may_catch_it_and_return(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(soft_time_limit=0.1)
    def careful() -> str:
        try:
            busy(PATIENCE)
        except SoftTimeLimitExceeded:
            return "tidied up"
        return "not interrupted"

    start_worker(app)

    assert careful.delay().get(timeout=PATIENCE) == "tidied up"


def test_soft_limit_is_raised_inside_a_coroutine_which_may_catch_it_and_go_on(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(soft_time_limit=0.1)
    async def careful() -> str:
        try:
            await asyncio.wait_for(asyncio.gather(asyncio.sleep(PATIENCE), asyncio.sleep(PATIENCE)), PATIENCE)
        except SoftTimeLimitExceeded:
            await asyncio.wait_for(asyncio.sleep(0), PATIENCE)  # not cancelled: it can wait again
            return "tidied up"
        return "not interrupted"

    start_worker(app)

    result: object = careful.delay().get(timeout=PATIENCE)
    assert result == "tidied up"


def test_soft_limit_that_a_task_does_not_catch_is_a_failure_and_a_dead_letter(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(soft_time_limit=0.1)
    def function() -> None:
        busy(PATIENCE)

    @app.task(soft_time_limit=0.1)
    async def coroutine() -> None:
        await asyncio.sleep(PATIENCE)

    start_worker(app)

    for call in (function.delay(), coroutine.delay()):
        with pytest.raises(SoftTimeLimitExceeded, match="longer than its soft_time_limit"):
            call.get(timeout=PATIENCE)
        assert call.state == "FAILURE"
    for task in (function, coroutine):
        assert task.topics.dead_letter is not None
        assert broker.backlog(task.topics.dead_letter, "dead-letters") == 1


def test_soft_limit_is_retried_where_the_task_says_so_and_counts_anew_for_each_attempt(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(bind=True, soft_time_limit=0.5, autoretry_for=(SoftTimeLimitExceeded,), default_retry_delay=0.1)
    def slow_at_first(self: TaskContext) -> int:
        busy(PATIENCE if self.retries == 0 else 0)
        return self.retries

    start_worker(app)

    assert slow_at_first.delay().get(timeout=PATIENCE) == 1


def test_soft_limit_hits_only_the_task_that_has_it_and_only_while_it_runs(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(soft_time_limit=0.5)
    def limited() -> int:
        return threading.get_ident()

    @app.task
    def unlimited() -> int:
        busy(0.7)  # in the threads in which `limited` ran, when its time is over
        return threading.get_ident()

    start_worker(app, concurrency=2)

    threads = {call.get(timeout=PATIENCE) for call in [limited.delay() for _ in range(10)]}
    later = {call.get(timeout=PATIENCE) for call in [unlimited.delay() for _ in range(4)]}

    assert threads & later


def test_soft_limit_that_comes_when_tasks_end_harms_nothing(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(soft_time_limit=0.02, max_retries=None, autoretry_for=(SoftTimeLimitExceeded,), default_retry_delay=0)
    def close() -> str:
        until = time.monotonic() + 0.0195
        while time.monotonic() < until:
            pass
        return "ended"

    start_worker(app, concurrency=2)

    calls = [close.delay() for _ in range(20)]

    assert {call.get(timeout=PATIENCE) for call in calls} == {"ended"}
