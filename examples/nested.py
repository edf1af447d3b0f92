"""Nested: a chain of chords, a chord of chains, and a task that is replaced by as many calls as it finds work."""

from __future__ import annotations

from pulsartasks import PulsarTasks, TaskContext, chain, chord, group
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("nested")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(bind=True)
def sum_up_to(self: TaskContext, last: int) -> int:
    raise self.replace(group(add.s(number, 0) for number in range(last + 1)) | total.s())


def main() -> None:
    chords = group(add.s(1, 1), add.s(2, 2)) | total.s() | group(add.s(10), add.s(20)) | total.s()
    print("a chain of chords: (1+1) + (2+2) = 6, (6+10) + (6+20) =", chords.delay().get(timeout=30))

    chains = chord([chain(add.s(n, n), add.s(1)) for n in range(3)], total.s())
    print("a chord of chains: (0+0+1) + (1+1+1) + (2+2+1) =", chains.delay().get(timeout=30))

    print(
        "a task replaced by a chord, in a chain: 1 + (0+1+2+3+4) =", (sum_up_to.s(4) | add.s(1)).delay().get(timeout=30)
    )


if __name__ == "__main__":
    configure_logging("warning")
    worker = Worker(app, concurrency=3)  # otherwise: pulsartasks worker -A nested:app
    worker.start()
    main()
    worker.stop()
