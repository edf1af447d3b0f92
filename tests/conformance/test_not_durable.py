"""`durable=False`: not stored and at most once, with retries and dead letters that are stored (guarantees 3 and 4)."""

from __future__ import annotations

import pytest

from pulsartasks import InvalidArgumentsError, PulsarTasks, TaskContext
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.topics import durable_topic, is_persistent
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.services import wait_until


@pytest.mark.guarantee(14)
def test_call_runs_and_is_answered_without_being_stored(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(durable=False)
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)

    calls = [double.delay(number) for number in range(20)]

    assert [call.get(timeout=120) for call in calls] == [2 * number for number in range(20)]
    assert not is_persistent(double.topics.work)
    assert durable_topic(double.topics.work) not in broker.topics()


@pytest.mark.guarantee(14)
def test_result_without_a_timeout_and_a_call_for_later_are_refused(app: PulsarTasks) -> None:
    @app.task(durable=False)
    def double(number: int) -> int:
        return 2 * number

    with pytest.raises(InvalidArgumentsError, match="timeout"):
        double.delay(1).get()
    with pytest.raises(InvalidArgumentsError, match="until it is due"):
        double.using(countdown=1).delay(1)


@pytest.mark.guarantee(3, 4)
def test_failed_call_is_tried_again_and_kept_as_a_dead_letter_that_can_be_replayed(
    app: PulsarTasks, start_worker: Workers
) -> None:
    attempts: list[int] = []

    @app.task(durable=False, bind=True, max_retries=1, autoretry_for=(ValueError,), default_retry_delay=0.1)
    def fail(self: TaskContext) -> None:
        attempts.append(self.retries)
        raise ValueError("never")

    start_worker(app)

    with pytest.raises(ValueError, match="never"):
        fail.delay().get(timeout=120)

    assert attempts == [0, 1]
    assert [kept.task for kept in DeadLetters(app, fail).replay()] == ["fail"]
    wait_until(lambda: attempts == [0, 1, 0, 1], "it was not sent to its task again")


@pytest.mark.guarantee(1)
def test_stored_and_fleeting_tasks_are_run_by_the_same_worker(app: PulsarTasks, start_worker: Workers) -> None:
    ran: list[str] = []

    @app.task(ignore_result=True)
    def stored(text: str) -> None:
        ran.append(text)

    @app.task(ignore_result=True, durable=False)
    def fleeting(text: str) -> None:
        ran.append(text)

    stored.delay("before the worker")
    start_worker(app, topics=["fleeting", "stored"])
    fleeting.delay("with the worker")

    wait_until(lambda: len(ran) == 2, "they did not run")
