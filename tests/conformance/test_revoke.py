"""Guarantee 12, and `expires`: what is revoked or has expired is not run, and its caller is told so."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pulsartasks import AsyncResult, PulsarTasks, TaskRevokedError
from pulsartasks.message import Publication
from pulsartasks.options import Mode
from pulsartasks.revocation import Notice
from pulsartasks.topics import KEEPER
from pulsartasks.worker.revocations import Known, Revocations
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(12)

PATIENCE = 90.0
MODES = ["shared", "exclusive", "failover", "key_shared"]


class Order(msgspec.Struct, frozen=True):
    customer: str


def assert_revoked(call: AsyncResult[Any], reason: str) -> None:
    with pytest.raises(TaskRevokedError, match=f"^{reason}$"):
        call.get(timeout=PATIENCE)
    assert (call.state, call.ready(), call.successful(), call.failed()) == ("REVOKED", True, False, False)
    assert call.traceback is None


def assert_settled_without_dead_letter(broker: BrokerUnderTest, task: Any) -> None:
    topics = (task.topics.calls, task.topics.retry, task.topics.delayed)
    wait_until(lambda: not any(broker.backlog(topic, task.subscription) for topic in topics), "it is not acknowledged")
    dead_letters = task.topics.dead_letter
    assert dead_letters not in broker.topics() or broker.backlog(dead_letters, "dead-letters") == 0


# Expiry


@pytest.mark.parametrize("mode", MODES)
def test_call_that_has_expired_when_a_worker_gets_it_is_revoked_without_running(
    mode: str, broker: BrokerUnderTest, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks[mode]
    expired = [
        task.using(expires=0.0).delay("a/seconds"),
        task.using(expires=timedelta(seconds=-1)).delay("a/timedelta"),
        task.using(expires=datetime.now(timezone.utc)).delay("a/instant"),
        task.using(expires=0.1, countdown=0.3).delay("a/delayed"),
    ]
    in_time = task.using(expires=3600).delay("a/in time")

    start_worker(acting, topics=[mode])

    for call in expired:
        assert_revoked(call, "expired")
    assert in_time.get(timeout=PATIENCE).startswith("a/in time")
    assert record.labels() == ["a/in time"]
    assert_settled_without_dead_letter(broker, task)


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_retry_that_is_due_after_the_expiry_is_not_begun(mode: Mode, app: PulsarTasks, start_worker: Workers) -> None:
    attempts: list[str] = []

    @app.task(mode=mode, autoretry_for=(OSError,), default_retry_delay=3.0)
    def fail(name: str) -> None:
        attempts.append(name)
        if name == "late":
            raise OSError

    start_worker(app)
    fail.delay("in time").get(timeout=PATIENCE)

    call = fail.using(expires=2.9).delay("late")

    assert_revoked(call, "expired")
    assert attempts == ["in time", "late"]


def test_expiry_of_a_task_counts_from_the_call_or_publication(app: PulsarTasks, start_worker: Workers) -> None:
    placed = app.topic("placed", schema=Order, subscriptions=("mail",))
    seen: list[str] = []

    @app.task(expires=3.0)
    def call(name: str) -> None:
        seen.append(name)

    @app.task(topic=placed, subscription="mail", expires=3.0)
    def event(order: Order) -> None:
        seen.append(order.customer)

    stale = call.delay("stale call")
    longer = call.using(expires=3600).delay("call with an expiry of its own")
    placed.publish(Order("stale event"))
    published = time.time()
    wait_until(lambda: time.time() > published + 3.0, "time stood still")
    start_worker(app)
    placed.publish(Order("fresh event"))
    placed.publish(Order("event with an expiry of its own"), expires=-1)

    longer.get(timeout=PATIENCE)
    assert_revoked(stale, "expired")
    wait_until(lambda: "fresh event" in seen, "the event did not arrive")
    assert sorted(seen) == ["call with an expiry of its own", "fresh event"]


# Revoking what waits


@pytest.mark.parametrize("mode", MODES)
def test_waiting_and_delayed_calls_that_were_revoked_before_a_worker_started_do_not_run(
    mode: str, broker: BrokerUnderTest, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    task = acting.tasks[mode]
    waiting, delayed = task.delay("a/waiting"), task.using(countdown=0.5).delay("a/delayed")
    other = task.delay("a/other")
    waiting.revoke()
    acting.revoke(delayed.id)

    start_worker(acting, topics=[mode])

    assert other.get(timeout=PATIENCE).startswith("a/other")
    assert_revoked(waiting, "revoked")
    assert_revoked(delayed, "revoked")
    assert record.labels() == ["a/other"]
    assert_settled_without_dead_letter(broker, task)


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_running_workers_hear_of_it_and_make_no_further_attempt(
    mode: Mode, broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    attempts = threading.Semaphore(0)

    @app.task(mode=mode, autoretry_for=(OSError,), max_retries=None, default_retry_delay=0.1)
    def fail() -> None:
        attempts.release()
        raise OSError

    start_worker(app)
    start_worker(app)
    call = fail.delay()
    assert all(attempts.acquire(timeout=PATIENCE) for _ in range(2))

    call.revoke()

    assert_revoked(call, "revoked")
    assert_settled_without_dead_letter(broker, fail)


def test_revoking_from_another_process_needs_the_id_only(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    start_process("shared").wait_until_ready()
    call = acting.tasks["shared"].using(countdown=2.0).delay("delayed")

    acting.tasks["shared"].result(call.id).revoke()

    assert_revoked(call, "revoked")
    assert record.labels() == []


def test_revoking_what_has_ended_changes_nothing(acting: PulsarTasks, start_worker: Workers) -> None:
    start_worker(acting, topics=["shared"])
    call = acting.tasks["shared"].delay("message")
    call.get(timeout=PATIENCE)

    call.revoke(terminate=True)

    assert acting.tasks["shared"].result(call.id).state == "SUCCESS"


# Interrupting what runs


def test_terminated_function_is_interrupted_and_revoked_and_its_thread_goes_on(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    runs = threading.Semaphore(0)
    tidied = threading.Event()

    @app.task(autoretry_for=(Exception,))
    def endless() -> None:
        runs.release()
        try:
            while True:
                try:
                    time.sleep(0.005)
                except Exception:  # noqa: BLE001 - what a careless task does
                    continue
        finally:
            tidied.set()

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    start_worker(app, concurrency=1)
    call = endless.delay()
    assert runs.acquire(timeout=PATIENCE)

    call.revoke(terminate=True)

    assert_revoked(call, "terminated")
    assert tidied.is_set()
    assert add.delay(2, 3).get(timeout=PATIENCE) == 5
    assert_settled_without_dead_letter(broker, endless)


def test_terminated_coroutine_is_cancelled_and_others_on_the_loop_go_on(
    app: PulsarTasks, start_worker: Workers
) -> None:
    runs = threading.Semaphore(0)
    seen: list[str] = []
    go_on = threading.Event()

    @app.task
    async def endless() -> None:
        runs.release()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @app.task
    async def patient() -> str:
        runs.release()
        return "ended well" if await asyncio.to_thread(go_on.wait, PATIENCE) else "nobody came"

    start_worker(app)
    call, other = endless.delay(), patient.delay()
    assert all(runs.acquire(timeout=PATIENCE) for _ in range(2))

    call.revoke(terminate=True)

    assert_revoked(call, "terminated")
    assert seen == ["cancelled"]
    go_on.set()
    result: object = other.get(timeout=PATIENCE)
    assert result == "ended well"


def test_without_terminate_what_runs_goes_on(app: PulsarTasks, start_worker: Workers) -> None:
    began, heard = threading.Event(), threading.Event()

    @app.task
    def patient() -> str:
        began.set()
        return "ended well" if heard.wait(PATIENCE) else "nobody came"

    @app.task
    def other() -> None: ...

    start_worker(app)
    call = patient.delay()
    assert began.wait(PATIENCE)
    call.revoke()
    revoked = other.using(countdown=3.0).delay()
    revoked.revoke()
    assert_revoked(revoked, "revoked")  # so this worker has heard of both

    heard.set()

    assert call.get(timeout=PATIENCE) == "ended well"


def test_terminating_tasks_while_they_end_harms_nothing_else(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def short(seconds: float) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
        return "ended"

    start_worker(app, concurrency=2)
    with capture_logs() as logs:
        calls = [short.delay(0.002 * (number % 5)) for number in range(20)]
        for call in calls[::2]:
            call.revoke(terminate=True)

        assert {call.get(timeout=PATIENCE) for call in calls[1::2]} == {"ended"}
        ends = {_end(call) for call in calls[::2]}
    assert ends <= {"ended", "revoked", "terminated"}
    assert not [entry for entry in logs if entry["event"] in ("consumer.failed", "message.died")]


def _end(call: AsyncResult[str]) -> str:
    try:
        return call.get(timeout=PATIENCE)
    except TaskRevokedError as error:
        return str(error)


# The notices


def test_worker_that_cannot_read_a_notice_goes_on(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    app.publish(Publication(app.revocations, b"nonsense"))
    revoked = add.delay(1, 1)
    revoked.revoke()

    start_worker(app)

    assert_revoked(revoked, "revoked")
    assert add.delay(2, 3).get(timeout=PATIENCE) == 5


def test_notices_are_let_go_in_time_but_for_those_of_calls_that_are_not_due_yet(
    broker: BrokerUnderTest, app: PulsarTasks
) -> None:
    known: dict[str, Known] = {}
    revocations = Revocations(app, known, lambda _: None, kept=0.5)
    now = time.time()
    for task_id, until in {"old": now + 0.5, "far": now + 3600, "gone": now - 1}.items():
        app.publish(Notice(task_id, until).publication(app.revocations))
    assert broker.backlog(app.revocations, KEEPER) == 3

    revocations.start()
    revocations.wait_until_known()
    assert set(known) - {"old"} == {"far"}
    published = time.time()
    wait_until(lambda: time.time() > published + 0.6, "time stood still")
    revocations.expire()

    assert set(known) == {"far"}
    wait_until(lambda: broker.backlog(app.revocations, KEEPER) == 1, "the old notices were not let go")
    wait_until(lambda: known["far"][1] >= published, "the copy was not heard of")
    revocations.close()


def test_notice_of_a_call_lives_past_its_eta(app: PulsarTasks) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    eta = datetime.now(timezone.utc) + timedelta(days=30)
    known: dict[str, Known] = {}
    call = add.using(eta=eta).delay(2, 3)

    call.revoke()

    revocations = Revocations(app, known, lambda _: None)
    revocations.start()
    revocations.wait_until_known()
    revocations.close()
    until, _ = known[call.id]
    assert until > eta.timestamp()
