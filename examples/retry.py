"""Retry: what fails is tried again by the broker's clock, later each time, and not for ever."""

from __future__ import annotations

import time

from pulsartasks import PulsarTasks, TaskContext
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("retry")
BEGAN = time.monotonic()


def note(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:4.1f} s  {text}", flush=True)


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=4, retry_backoff=0.5, retry_jitter=False)
def fetch(self: TaskContext, url: str) -> str:
    note(f"fetch: attempt {self.retries + 1}")
    if self.retries < 2:
        raise ConnectionError(f"{url} does not answer")
    return "42 bytes"


@app.task(bind=True, max_retries=1)
def poll(self: TaskContext, job: str) -> None:
    note(f"poll: attempt {self.retries + 1}, {job} is not done")
    raise self.retry(exc=TimeoutError(f"{job} was never done"), countdown=1)


def main() -> None:
    note(f"fetch returned {fetch.delay('https://example.org').get(timeout=30)!r}, after waits of 0.5 s and 1 s")
    try:
        poll.delay("the report").get(timeout=30)
    except TimeoutError as error:
        note(f"poll raised TimeoutError({error}): no retry was left")


if __name__ == "__main__":
    configure_logging("critical")  # its dead letter is meant to be
    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A retry:app
    worker.start()
    main()
    worker.stop()
