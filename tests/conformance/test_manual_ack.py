"""``ack="manual"``: the task itself says when its message is done; until then it is as late, from then on as early."""

from __future__ import annotations

import threading

import pytest

from pulsartasks import PulsarTasks, TaskContext, UnacknowledgedError
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.options import Mode
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(2)


def test_message_is_acknowledged_when_the_task_says_so_and_not_before(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    acknowledge, finish = threading.Event(), threading.Event()

    @app.task(bind=True, ack="manual")
    def pay(self: TaskContext) -> str:
        assert acknowledge.wait(30)
        self.ack()
        self.ack()  # once more does no harm
        assert finish.wait(30)
        return "paid"

    start_worker(app)
    call = pay.delay()
    backlog = pay.topics.work, pay.subscription
    assert broker.backlog(*backlog) == 1

    acknowledge.set()
    wait_until(lambda: broker.backlog(*backlog) == 0, "it was not acknowledged")
    assert not call.ready()

    finish.set()
    assert call.get(timeout=120) == "paid"


def test_task_that_returns_without_acknowledging_is_tried_again_and_then_a_dead_letter(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    @app.task(bind=True, ack="manual", max_retries=1, default_retry_delay=0.1)
    def forget(self: TaskContext) -> None:
        with record.attempt("forget", self.retries + 1):
            pass

    start_worker(app)

    with pytest.raises(UnacknowledgedError, match="returned without self"):
        forget.delay().get(timeout=120)
    assert [run.attempt for run in record.runs()] == [1, 2]
    [letter] = DeadLetters(app, forget).list()
    assert letter.story is not None
    assert letter.story.exception_type == "UnacknowledgedError"


def test_exception_before_the_acknowledgement_is_retried_as_usual(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True, ack="manual", autoretry_for=(OSError,), default_retry_delay=0.0)
    def connect(self: TaskContext) -> int:
        if self.retries < 1:
            raise OSError
        self.ack()
        return self.retries

    start_worker(app)

    assert connect.delay().get(timeout=120) == 1


@pytest.mark.parametrize("mode", ["shared", "key_shared", "failover"])
def test_other_thread_may_acknowledge_while_the_task_runs_and_no_longer(
    mode: Mode, broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    contexts: list[TaskContext] = []

    @app.task(bind=True, ack="manual", mode=mode, max_retries=0)
    def hand_over(self: TaskContext, acknowledge: bool) -> None:
        contexts.append(self)
        if acknowledge:
            other = threading.Thread(target=self.ack)
            other.start()
            other.join()

    start_worker(app)
    hand_over.using(key="a").delay(acknowledge=True).get(timeout=120)
    with pytest.raises(UnacknowledgedError):
        hand_over.using(key="a").delay(acknowledge=False).get(timeout=120)

    acknowledged, forgotten = contexts
    acknowledged.ack()
    with pytest.raises(UnacknowledgedError, match="has ended"):
        forgotten.ack()
    wait_until(lambda: broker.backlog(hand_over.topics.work, hand_over.subscription) == 0, "messages are left")


def test_next_message_of_a_key_waits_for_the_end_and_not_for_the_acknowledgement(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    acknowledged, finish = threading.Event(), threading.Event()

    @app.task(bind=True, ack="manual", mode="key_shared", key=lambda label: label.partition("/")[0])
    def book(self: TaskContext, label: str) -> None:
        with record.attempt(label):
            self.ack()
            if label == "a/1":
                acknowledged.set()
                assert finish.wait(30)

    start_worker(app)
    for label in ("a/1", "a/2", "b/1"):
        book.delay(label)
    assert acknowledged.wait(30)
    record.wait_for_labels("b/1")
    assert "a/2" not in record.labels()

    finish.set()
    record.wait_for_labels("a/2")


def test_async_task_acknowledges_too(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True, ack="manual")
    async def pay(self: TaskContext) -> str:
        self.ack()
        return "paid"

    start_worker(app)

    assert pay.delay().get(timeout=120) == "paid"


@pytest.mark.guarantee(1)
def test_killed_message_comes_again_only_if_it_was_not_acknowledged(
    broker: BrokerUnderTest, acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    manual = acting.tasks["manual"]
    worker = start_process("manual", "-c", "2")
    manual.delay("held", "hang")
    manual.delay("acknowledged", "acknowledge", seconds=3600)
    record.wait_for_labels("held", "acknowledged", ended=False)
    wait_until(lambda: broker.backlog(manual.topics.work, manual.subscription) == 1, "both are left, or none")

    worker.kill()
    start_process("manual", "-c", "2")

    record.wait_for(3, ended=False)
    assert sorted(record.labels()) == ["acknowledged", "held", "held"]
    assert broker.backlog(manual.topics.work, manual.subscription) == 1  # so the other one can never come again
