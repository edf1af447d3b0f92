"""Signals: functions that are told what happens to tasks, under Celery's names."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pulsartasks import PulsarTasks, TaskContext
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("signals")
ends: Counter[str] = Counter()


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=1, default_retry_delay=0.1)
def fetch(self: TaskContext, page: int) -> int:
    if page == 3 or (page == 2 and self.retries == 0):
        raise ConnectionError(f"page {page} does not answer")
    return page


@app.signals.task_postrun.connect
def count(state: str, **_: Any) -> None:
    ends[state] += 1


@app.signals.task_failure.connect(sender=fetch)
def alert(sender: Any, exception: BaseException, args: Any, **_: Any) -> None:
    print(f"{sender.name}{tuple(args)} is given up: {exception}", flush=True)


def main() -> None:
    calls = [fetch.delay(page) for page in (1, 2, 3)]
    for call in calls[:2]:
        call.get(timeout=30)
    try:
        calls[2].get(timeout=30)
    except ConnectionError:
        print("attempts:", ", ".join(f"{count} {state}" for state, count in sorted(ends.items())))


if __name__ == "__main__":
    configure_logging("critical")
    worker = Worker(app)  # made after the functions have connected, as in `pulsartasks worker -A signals:app`
    worker.start()
    main()
    worker.stop()
