"""Guarantee 1: what a dead worker had begun is delivered again; with ``ack="early"`` it is not."""

from __future__ import annotations

import pytest

from pulsartasks import PulsarTasks
from pulsartasks.dead_letters import DeadLetters
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(1)


def test_message_runs_again_when_its_worker_was_killed(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    acting.tasks["shared"].delay("message", seconds=3.0)
    worker = start_process("shared")
    record.wait_for_labels("message", ended=False)

    worker.kill()
    start_worker(acting, topics=["shared"])

    killed, again = record.wait_for_labels("message")
    assert killed.ended is None
    assert again.attempt == 1  # a crash uses up no retry


def test_no_message_is_lost_when_a_worker_is_killed_among_many(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    labels = [f"message-{number}" for number in range(40)]
    worker = start_process("shared", "-c", "4")
    for label in labels:
        acting.tasks["shared"].delay(label, seconds=0.05)
    record.wait_for(10)

    worker.kill()
    start_worker(acting, topics=["shared"])

    runs = record.wait_for_labels(*labels)
    assert sum(run.ended is None for run in runs) <= 4  # no more than ran


def test_early_acknowledged_message_does_not_run_again_after_a_kill(
    broker: BrokerUnderTest,
    acting: PulsarTasks,
    start_process: StartProcess,
    start_worker: Workers,
    record: Record,
) -> None:
    early = acting.tasks["early"]
    early.delay("killed", "hang")
    worker = start_process("early")
    record.wait_for_labels("killed", ended=False)
    wait_until(lambda: broker.backlog(early.topics.work, early.subscription) == 0, "it was not acknowledged")

    worker.kill()
    start_worker(acting, topics=["early"])
    early.delay("next")

    record.wait_for_labels("next")
    assert record.labels() == ["killed", "next"]


@pytest.mark.guarantee(2)
def test_failed_message_with_early_ack_is_still_kept_as_a_dead_letter(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(ack="early")
    def fail() -> None:
        raise ValueError("no")

    start_worker(app)
    result = fail.delay()

    with pytest.raises(ValueError, match="no"):
        result.get(timeout=120)
    assert [letter.story.reason for letter in DeadLetters(app, fail).list() if letter.story] == ["failed"]
