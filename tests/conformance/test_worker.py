"""What a worker gives its tasks: resources, an event loop, logs; and that it stops in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from pulsartasks import INJECTED, ConfigurationError, PulsarTasks, PulsarTasksError, TaskContext
from pulsartasks.message import Publication, Request
from pulsartasks.middleware.base import Execute, Middleware, Publish
from pulsartasks.outcome import Outcome
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.conformance.records import Record
from tests.services import wait_until


class Engine:
    """Something costly."""

    def __init__(self, name: str) -> None:
        self.name = name


class Unused:
    """Something that no task asks for."""


def test_resource_is_set_up_once_before_the_first_message_and_torn_down_at_the_end(
    app: PulsarTasks, start_worker: Workers
) -> None:
    story: list[str] = []

    @app.resource
    def engine() -> Iterator[Engine]:
        story.append("up")
        yield Engine("tiny")
        story.append("down")

    @app.resource
    def unused() -> Iterator[Unused]:
        story.append("unused")
        yield Unused()

    @app.task
    def run(number: int, engine: Engine = INJECTED) -> str:
        story.append("run")
        return f"{engine.name} {number}"

    results = [run.delay(number) for number in range(3)]
    worker = start_worker(app)
    assert [result.get(timeout=120) for result in results] == ["tiny 0", "tiny 1", "tiny 2"]
    worker.stop()

    assert story == ["up", "run", "run", "run", "down"]


def test_resource_that_fails_tears_down_those_before_it(app: PulsarTasks, start_worker: Workers) -> None:
    story: list[str] = []

    @app.resource
    def engine() -> Iterator[Engine]:
        story.append("up")
        try:
            yield Engine("tiny")
        finally:
            story.append("down")

    @app.resource
    def broken() -> Iterator[Unused]:
        if story:
            raise OSError("no model here")
        yield Unused()

    @app.task
    def run(engine: Engine, broken: Unused) -> None:
        """Needs both."""

    with pytest.raises(OSError, match="no model here"):
        start_worker(app)
    assert story == ["up", "down"]


def test_async_tasks_run_at_the_same_time_and_beside_others(app: PulsarTasks, start_worker: Workers) -> None:
    meeting: list[asyncio.Future[None]] = []

    @app.task
    async def meet() -> str:
        loop = asyncio.get_running_loop()
        if not meeting:
            meeting.append(loop.create_future())
            await asyncio.wait_for(asyncio.shield(meeting[0]), 30)
        else:
            meeting[0].set_result(None)
        return threading.current_thread().name

    @app.task
    def block() -> str:
        return threading.current_thread().name

    start_worker(app, concurrency=3)
    results: list[Any] = [meet.delay(), meet.delay()]

    loops = {result.get(timeout=120) for result in results}
    assert len(loops) == 1  # one event loop
    assert block.delay().get(timeout=120) not in loops


@pytest.mark.guarantee(3)
def test_async_task_that_fails_is_retried_like_any_other(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0.0)
    async def connect(context: TaskContext) -> int:
        await asyncio.sleep(0)
        if context.retries < 2:
            raise OSError
        return context.retries

    start_worker(app)

    result: Any = connect.delay()

    assert result.get(timeout=120) == 2


def test_every_attempt_is_logged_with_its_task_id_and_attempt(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0.0)
    def try_twice(context: TaskContext) -> None:
        context.log.info("money.counted", coins=3)
        if context.retries == 0:
            raise OSError("away")

    with capture_logs() as logs:
        worker = start_worker(app)
        result = try_twice.delay()
        result.get(timeout=120)
        worker.stop()

    [first, second] = [entry for entry in logs if entry["event"] == "money.counted"]
    assert (first["id"], first["task"], first["attempt"], first["coins"]) == (result.id, "try_twice", 1, 3)
    assert second["attempt"] == 2
    events = [entry["event"] for entry in logs if entry["event"].startswith("message.")]
    assert events == ["message.retried", "message.succeeded"]


def test_failed_attempt_is_logged_with_its_reason(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("no")

    with capture_logs() as logs:
        worker = start_worker(app)
        with pytest.raises(ValueError, match="no"):
            fail.delay().get(timeout=120)
        worker.stop()

    [died] = [entry for entry in logs if entry["event"] == "message.died"]
    assert (died["log_level"], died["reason"], died["error"]) == ("error", "failed", "ValueError('no')")


def test_worker_consumes_only_the_topics_it_was_told(
    broker: BrokerUnderTest, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    start_worker(acting, topics=["shared"])

    acting.tasks["shared"].delay("mine")
    acting.tasks["key_shared"].delay("not mine")

    record.wait_for_labels("mine")
    assert record.labels() == ["mine"]
    assert broker.backlog(acting.tasks["key_shared"].topics.work, acting.name) == 1


def test_unknown_topic_is_refused_with_those_that_are_known(acting: PulsarTasks, start_worker: Workers) -> None:
    with pytest.raises(ConfigurationError, match=r"no task consumes .*sharde.*key_shared"):
        start_worker(acting, topics=["sharde"])


@pytest.mark.guarantee(9)
def test_stop_finishes_what_runs_and_gives_back_the_rest(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    release = threading.Event()

    @app.task(concurrency=2)
    def wait(number: int) -> None:
        with record.attempt(str(number)):
            release.wait(30)

    worker = start_worker(app)
    for number in range(6):
        wait.delay(number)
    record.wait_for(2, ended=False)
    threading.Timer(1.5, release.set).start()

    assert worker.stop(grace=30)
    finished = record.finished()
    assert len(finished) == 2

    start_worker(app)
    record.wait_for(6)
    assert sorted(record.labels()) == [str(number) for number in range(6)]  # none twice


@pytest.mark.guarantee(9)
def test_what_outlasts_the_grace_runs_again_elsewhere(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    release = threading.Event()

    @app.task
    def wait() -> None:
        with record.attempt("wait"):
            release.wait(30)

    worker = start_worker(app)
    wait.delay()
    record.wait_for(1, ended=False)

    assert not worker.stop(grace=0.1)

    start_worker(app)
    record.wait_for(2, ended=False)
    release.set()
    record.wait_for(2)


@pytest.mark.guarantee(9)
def test_stop_is_safe_from_several_threads_and_twice(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def note() -> None:
        """Does nothing."""

    worker = start_worker(app)
    stoppers = [threading.Thread(target=worker.stop) for _ in range(4)]
    for stopper in stoppers:
        stopper.start()
    for stopper in stoppers:
        stopper.join(30)

    assert worker.stop()
    assert not any(stopper.is_alive() for stopper in stoppers)


def test_middleware_goes_around_every_publish_and_every_attempt(
    broker: BrokerUnderTest, name: str, start_worker: Workers
) -> None:
    story: list[str] = []

    class Teller(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
            story.append(f"{self.name} publishes {len(publications)}")
            return call_next(publications)

        def execute(self, request: Request, call_next: Execute) -> Outcome:
            story.append(f"{self.name} before {request.task}")
            outcome = call_next(request)
            story.append(f"{self.name} after {type(outcome).__name__}")
            return outcome

    app = PulsarTasks(name, broker.url, middleware=[Teller("outer"), Teller("inner")])

    @app.task
    def note() -> None:
        """Does nothing."""

    note.delay()
    worker = start_worker(app)
    wait_until(lambda: len(story) == 6, "it did not run")
    worker.stop()

    assert story == [
        "outer publishes 1",
        "inner publishes 1",
        "outer before note",
        "inner before note",
        "inner after Succeeded",
        "outer after Succeeded",
    ]
    app.close()


def test_app_can_be_closed_and_used_again(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    double.delay(1)
    app.close()
    app.close()
    result: Any = double.delay(2)
    start_worker(app)

    assert result.get(timeout=120) == 4
