"""Classes of tasks, as Celery's user guide describes them: options, handlers and what tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from pulsartasks import Batch, ConfigurationError, PulsarTasks, Task, TaskContext, shared_task
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.services import wait_until

PATIENCE = 90.0
Told = list[tuple[Any, ...]]


class Telling(Task[..., Any]):
    """Notes which of its handlers are called, and with what."""

    told: Told

    def __init__(self) -> None:
        self.told = []

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.told.append(("before_start", task_id, list(args), dict(kwargs)))

    def on_success(self, retval: Any, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.told.append(("on_success", retval, task_id, list(args), dict(kwargs)))

    def on_retry(
        self, exc: BaseException, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: Any
    ) -> None:
        self.told.append(("on_retry", str(exc), task_id, list(args), dict(kwargs), einfo.type))

    def on_failure(
        self, exc: BaseException, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: Any
    ) -> None:
        self.told.append(("on_failure", str(exc), task_id, list(args), dict(kwargs), einfo.type))

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: Any
    ) -> None:
        self.told.append(("after_return", status, str(retval), task_id))
        super().after_return(status, retval, task_id, args, kwargs, einfo)


class BaseTaskWithRetry(Task[..., Any]):
    """The guide's."""

    autoretry_for = (TypeError,)
    max_retries = 5
    retry_backoff = True
    retry_backoff_max = 700
    retry_jitter = False


class Database:
    """A connection that is expensive to make."""

    made = 0

    @classmethod
    def connect(cls) -> Database:
        cls.made += 1
        return cls()


class DatabaseTask(Task[..., Any]):
    """The guide's: it makes its connection once in a process."""

    _db: Database | None = None

    @property
    def db(self) -> Database:
        if self._db is None:
            self._db = Database.connect()
        return self._db


def told_by(task: object) -> Told:
    assert isinstance(task, Telling)
    return task.told


def test_handlers_are_called_before_and_after_a_task_that_succeeds(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(base=Telling)
    def add(x: int, y: int) -> int:
        return x + y

    start_worker(app)
    call = add.delay(2, y=3)
    assert call.get(PATIENCE) == 5

    assert told_by(add) == [
        ("before_start", call.id, [2], {"y": 3}),
        ("on_success", 5, call.id, [2], {"y": 3}),
        ("after_return", "SUCCESS", "5", call.id),
    ]


@pytest.mark.guarantee(3)
@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_handlers_are_told_of_each_retry_and_of_the_end(app: PulsarTasks, start_worker: Workers, mode: Any) -> None:
    def run(x: int) -> None:
        raise KeyError(x)

    options: dict[str, Any] = {"mode": mode, "autoretry_for": (KeyError,), "max_retries": 1, "default_retry_delay": 0}
    fail = app.task(base=Telling, name="fail", **options)(run)
    start_worker(app)
    call = fail.delay(7)
    with pytest.raises(KeyError):
        call.get(PATIENCE)

    before: tuple[Any, ...] = ("before_start", call.id, [7], {})
    assert told_by(fail) == [
        before,
        ("on_retry", "7", call.id, [7], {}, KeyError),
        before,
        ("on_failure", "7", call.id, [7], {}, KeyError),
        ("after_return", "FAILURE", "7", call.id),
    ]


def test_what_a_handler_raises_before_the_start_is_the_tasks_and_later_is_logged(
    app: PulsarTasks, start_worker: Workers
) -> None:
    class Broken(Task[..., Any]):
        autoretry_for = (LookupError,)
        default_retry_delay = 0
        starts = 0

        def before_start(self, *_: Any) -> None:
            self.starts += 1
            if self.starts == 1:
                raise LookupError("not yet")

        def on_success(self, *_: Any) -> None:
            raise ZeroDivisionError

    @app.task(base=Broken, bind=True)
    def count(self: TaskContext) -> int:
        return self.retries

    with capture_logs() as logs:
        worker = start_worker(app)
        assert count.delay().get(PATIENCE) == 1
        worker.stop()

    assert [entry["signal"] for entry in logs if entry["event"] == "signal.failed"] == ["task_success"]


def test_class_has_options_for_its_tasks_which_may_have_others(app: PulsarTasks) -> None:
    @app.task(base=BaseTaskWithRetry, max_retries=2)
    def patient() -> None: ...

    policy = patient.retry_policy
    assert (policy.autoretry_for, policy.max_retries, policy.retry_backoff) == ((TypeError,), 2, True)
    assert (policy.retry_backoff_max, policy.retry_jitter) == (700, False)


def test_bound_function_finds_what_its_class_has_made_once(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(base=DatabaseTask, bind=True)
    def process_rows(self: Any) -> str:
        assert isinstance(self.db, Database)
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = self.no_such_thing
        return str(self.name)

    made = Database.made
    start_worker(app)
    assert [process_rows.delay().get(PATIENCE) for _ in range(3)] == ["process_rows"] * 3
    assert process_rows() == "process_rows"  # called directly, too
    assert Database.made == made + 1


def test_app_has_a_class_for_all_of_its_tasks(broker: BrokerUnderTest, name: str, start_worker: Workers) -> None:
    app = PulsarTasks(name, broker.url, task_cls=DatabaseTask)

    @app.task(bind=True)
    def has_db(self: Any) -> bool:
        return self.db is self.task.db

    @app.task(base=Telling)
    def other() -> None: ...

    @app.task(batch=Batch(max_messages=2))
    def many(numbers: list[int]) -> None: ...

    start_worker(app)
    assert has_db.delay().get(PATIENCE)
    other.delay().get(PATIENCE)
    wait_until(lambda: len(told_by(other)) == 3, "its handlers were not called")
    app.close()


def test_shared_task_brings_its_class_along(app: PulsarTasks) -> None:
    @shared_task(base=Telling, max_retries=7)
    def shared() -> None: ...

    assert (shared.options.base, shared.options.max_retries) == (Telling, 7)


def test_class_that_is_none_of_a_task_is_refused(app: PulsarTasks) -> None:
    with pytest.raises(ConfigurationError, match="inherits from Task"):
        app.task(name="one", base=dict)(len)
    with pytest.raises(ConfigurationError, match="and no batch"):
        app.task(name="many", base=Telling, batch=Batch(max_messages=2))(print)
