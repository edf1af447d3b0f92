"""Rate limit: a task begins only so often, evenly; what waits stays with the broker, and other tasks go on."""

from __future__ import annotations

import time
from itertools import pairwise

from pulsartasks import PulsarTasks
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("rate_limit")
began: list[float] = []


@app.task(rate_limit="2/s")
def ask_the_api() -> float:
    began.append(time.monotonic())
    return began[-1]


@app.task
def think() -> float:
    return time.monotonic()


def main() -> None:
    asked = [ask_the_api.delay() for _ in range(6)]
    thought = [think.delay() for _ in range(6)]

    last_thought = max(call.get(timeout=30) for call in thought)
    last_asked = max(call.get(timeout=30) for call in asked)

    print(f"six questions took {last_asked - began[0]:.1f} s")
    print("one after the other:", all(after - before > 0.1 for before, after in pairwise(began)))
    print("other tasks went on:", last_thought < last_asked)


if __name__ == "__main__":
    configure_logging("warning")
    worker = Worker(app, concurrency=4)  # on threads of this process; otherwise: pulsartasks worker -A rate_limit:app
    worker.start()
    main()
    worker.stop()
