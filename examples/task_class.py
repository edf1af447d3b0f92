"""A task class: options, handlers and a connection that several tasks have in common, as in Celery."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from pulsartasks import PulsarTasks, Task, TaskContext
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("classes")


class DatabaseTask(Task[..., Any]):
    """Makes its connection once for each of its tasks, and tells what becomes of them."""

    autoretry_for = (ConnectionError,)
    default_retry_delay = 0.1
    _db: sqlite3.Connection | None = None

    @property
    def db(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = sqlite3.connect(":memory:", check_same_thread=False)
        return self._db

    def on_retry(
        self, exc: BaseException, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: Any
    ) -> None:
        print(f"{self.name} is tried again: {exc}", flush=True)

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: Any
    ) -> None:
        print(f"{self.name}{tuple(args)}: {status}, {retval}", flush=True)


@app.task(base=DatabaseTask, bind=True)
def product(self: TaskContext, x: int, y: int) -> int:
    if self.retries == 0:
        raise ConnectionError("the database is away")
    task = self.task
    assert isinstance(task, DatabaseTask)  # for type checkers: self.db is the same
    [row] = task.db.execute("SELECT ? * ?", (x, y))
    return int(row[0])


def main() -> None:
    print("result:", product.delay(6, 7).get(timeout=20))


if __name__ == "__main__":
    configure_logging("critical")
    worker = Worker(app)
    worker.start()
    main()
    worker.stop()
