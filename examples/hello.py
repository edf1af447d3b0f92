"""Hello: a function becomes a task, and a worker runs it."""

from __future__ import annotations

from pulsartasks import InvalidArgumentsError, PulsarTasks
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("hello")


@app.task
def add(x: int, y: int) -> int:
    return x + y


def main() -> None:
    print("called here, as ever:      add(2, 3)               ->", add(2, 3))
    print("called through the broker: add.delay(2, 3).get()   ->", add.delay(2, 3).get(timeout=30))
    try:
        add.delay(2, "three")  # type: ignore[arg-type]  # a type checker sees it too
    except InvalidArgumentsError as error:
        print("refused before it is sent: add.delay(2, 'three')   ->", error)


if __name__ == "__main__":
    configure_logging("warning")
    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A hello:app
    worker.start()
    main()
    worker.stop()
