"""Guarantee 15, and of 3 the copy that arrives twice: what is done is not done again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks, Task, TaskContext
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.message import Publication
from pulsartasks.options import Mode
from pulsartasks.topics import KEEPER
from pulsartasks.worker import records
from pulsartasks.worker.worker import Worker
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.services import PulsarServer, wait_until

pytestmark = pytest.mark.guarantee(15)


@pytest.fixture
def other_app(broker: BrokerUnderTest, name: str) -> Iterator[PulsarTasks]:
    """The same app as another process would have it."""
    app = PulsarTasks(name, broker.url)
    yield app
    app.close()


def _define_pay(app: PulsarTasks, record: Record, *, once_for: float = 3600.0) -> Task[[str], str]:
    @app.task(once=True, once_for=once_for)
    def pay(order: str) -> str:
        with record.attempt(order):
            return f"{order} is paid"

    return pay


def test_call_that_has_succeeded_does_not_run_again_under_its_id(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    pay = _define_pay(app, record)
    start_worker(app)
    pay.apply_async(("tea",), task_id="order-1").get(timeout=120)

    with capture_logs() as logs:
        again = pay.apply_async(("tea",), task_id="order-1")
        wait_until(lambda: any(entry["event"] == "message.skipped" for entry in logs), "it was not skipped")

    pay.apply_async(("cups",), task_id="order-2").get(timeout=120)
    assert record.labels() == ["tea", "cups"]
    assert again.get(timeout=120) == "tea is paid"
    assert [entry["reason"] for entry in logs if entry["event"] == "message.skipped"] == ["done"]
    wait_until(lambda: broker.backlog(pay.topics.work, pay.subscription) == 0, "it was not acknowledged")


def test_worker_that_starts_later_knows_what_has_succeeded(
    app: PulsarTasks, other_app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    pay = _define_pay(app, record)
    _define_pay(other_app, record)
    first = start_worker(app)
    pay.apply_async(("tea",), task_id="order-1").get(timeout=120)
    first.stop()

    start_worker(other_app)
    pay.apply_async(("tea",), task_id="order-1")
    pay.apply_async(("cups",), task_id="order-2").get(timeout=120)

    assert record.labels() == ["tea", "cups"]


def test_worker_knows_at_once_what_has_succeeded_in_another(
    app: PulsarTasks, other_app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    pay = _define_pay(app, record)
    _define_pay(other_app, record)
    start_worker(app, concurrency=1)
    start_worker(other_app, concurrency=1)

    for _ in range(4):
        for number in range(4):
            pay.apply_async((f"order-{number}",), task_id=f"order-{number}").get(timeout=120)

    pay.delay("last").get(timeout=120)
    wait_until(lambda: "last" in record.labels(), "the last one did not run")
    assert sorted(record.labels()) == ["last", *(f"order-{number}" for number in range(4))]


def test_copies_that_arrive_together_in_one_process_run_once(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    begun, finish = threading.Event(), threading.Event()

    @app.task(once=True)
    def pay(order: str) -> None:
        with record.attempt(order):
            begun.set()
            assert finish.wait(30)

    start_worker(app)
    with capture_logs() as logs:
        for _ in range(3):
            pay.apply_async(("tea",), task_id="order-1")
        assert begun.wait(30)
        finish.set()
        wait_until(lambda: sum(entry["event"] == "message.skipped" for entry in logs) == 2, "two were not skipped")

    assert record.labels() == ["tea"]


def test_tasks_do_not_take_each_others_successes_for_their_own(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    pay = _define_pay(app, record)

    @app.task(once=True)
    def ship(order: str) -> None:
        with record.attempt(f"{order}/shipped"):
            pass

    start_worker(app)
    pay.apply_async(("tea",), task_id="order-1").get(timeout=120)
    ship.apply_async(("tea",), task_id="order-1")

    record.wait_for_labels("tea/shipped")


def test_call_runs_again_when_its_success_is_longer_ago(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    pay = _define_pay(app, record, once_for=0.5)
    start_worker(app)
    pay.apply_async(("tea",), task_id="order-1").get(timeout=120)
    over = time.time() + 1.0

    wait_until(lambda: time.time() > over, "time stands still")
    pay.apply_async(("tea",), task_id="order-1")

    record.wait_for(2)


def test_call_that_failed_runs_when_its_dead_letter_is_replayed(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    broken = [True]

    @app.task(once=True)
    def pay(order: str) -> str:
        with record.attempt(order):
            if broken:
                raise ValueError(order)
            return "paid"

    start_worker(app)
    call = pay.delay("tea")
    with pytest.raises(ValueError, match="tea"):
        call.get(timeout=120)

    broken.clear()
    list(DeadLetters(app, pay).replay())

    record.wait_for(2)
    wait_until(lambda: pay.result(call.id).state == "SUCCESS", "it has no result")


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_call_that_is_retried_succeeds_once(
    mode: Mode, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    @app.task(mode=mode, once=True, bind=True, autoretry_for=(OSError,), default_retry_delay=0.1)
    def pay(self: TaskContext, order: str) -> int:
        with record.attempt(order, self.retries + 1):
            if self.retries < 1:
                raise OSError
            return self.retries

    start_worker(app)

    assert pay.apply_async(("tea",), task_id="order-1", key="a").get(timeout=120) == 1
    pay.apply_async(("tea",), task_id="order-1", key="a")
    pay.apply_async(("cups",), key="a").get(timeout=120)
    assert [(run.label, run.attempt) for run in record.runs()] == [("tea", 1), ("tea", 2), ("cups", 1), ("cups", 2)]


def test_call_whose_worker_was_killed_runs_again(
    acting: PulsarTasks, start_process: StartProcess, start_worker: Workers, record: Record
) -> None:
    pay = acting.tasks["once"]
    worker = start_process("once")
    pay.apply_async(("killed",), {"seconds": 3.0}, task_id="order-1")
    record.wait_for_labels("killed", ended=False)

    worker.kill()
    start_worker(acting, topics=["once"])

    record.wait_for_labels("killed")
    pay.apply_async(("killed",), task_id="order-1")
    pay.apply_async(("next",)).get(timeout=120)
    assert record.labels() == ["killed", "killed", "next"]


@pytest.mark.guarantee(3)
def test_second_copy_of_a_retry_is_dropped(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    """As when a worker dies after it published the copy, and the original fails once more in the next one."""

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0.0)
    def connect(self: TaskContext, label: str) -> int:
        with record.attempt(label, self.retries + 1):
            if self.retries < 1:
                raise OSError
            return self.retries

    app.declare(connect.topics.retry)
    tap = app.broker.read(connect.topics.retry)
    start_worker(app)
    connect.delay("first").get(timeout=120)
    copy = tap.receive(30.0)
    tap.close()
    assert copy is not None

    with capture_logs() as logs:
        app.publish(Publication(copy.topic, copy.value, copy.key, copy.properties))
        wait_until(lambda: any(entry["event"] == "message.skipped" for entry in logs), "it was not skipped")

    assert [entry["reason"] for entry in logs if entry["event"] == "message.skipped"] == ["copy"]
    assert record.labels() == ["first", "first"]
    wait_until(lambda: broker.backlog(copy.topic, connect.subscription) == 0, "it was not acknowledged")


@pytest.mark.guarantee(3)
def test_retries_of_a_replayed_dead_letter_are_no_second_copies(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    @app.task(bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0.0)
    def connect(self: TaskContext) -> None:
        with record.attempt("connect", self.retries + 1):
            raise OSError

    start_worker(app)
    with pytest.raises(OSError):  # noqa: PT011 - it has no text
        connect.delay().get(timeout=120)
    list(DeadLetters(app, connect).replay())

    assert [run.attempt for run in record.wait_for(4)] == [1, 2, 1, 2]


def test_records_are_let_go_when_no_task_asks_for_them_any_more(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "TEND_EVERY", 0.1)
    monkeypatch.setattr(records, "KEPT_AT_LEAST", 0.0)
    pay = _define_pay(app, record, once_for=0.5)
    start_worker(app)

    for order in ("tea", "cups"):
        pay.delay(order).get(timeout=120)

    wait_until(lambda: broker.backlog(app.qualify(f"{app.name}.once-done"), KEEPER) == 0, "they are still kept")


@pytest.mark.pulsar
def test_successes_are_known_after_the_broker_moved_their_topic(
    pulsar_server: PulsarServer, name: str, record: Record
) -> None:
    app = PulsarTasks(name, pulsar_server.service_url)
    pay = _define_pay(app, record)
    worker = Worker(app)
    worker.start()
    pay.apply_async(("before",), task_id="order-0").get(timeout=120)

    for number in range(1, 3):
        pulsar_server.unload(app.qualify(f"{name}.once-done"))
        pay.apply_async(("tea",), task_id=f"order-{number}").get(timeout=120)
        for known in range(number + 1):
            pay.apply_async(("again",), task_id=f"order-{known}")
    pay.delay("last").get(timeout=120)
    worker.stop()
    app.close()

    assert record.labels() == ["before", "tea", "tea", "last"]


def test_app_without_once_tasks_makes_no_topic_for_them(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task
    def pay() -> None: ...

    start_worker(app)
    pay.delay().get(timeout=120)

    assert f"persistent://public/default/{app.name}.once-done" not in broker.topics()
