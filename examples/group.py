"""Group: calls beside each other, seen as they end or taken together; and chunks, for very many of them."""

from __future__ import annotations

import time

from pulsartasks import PulsarTasks, group
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("group")


@app.task
def boil(minutes: float) -> str:
    time.sleep(minutes / 4)
    return f"an egg of {minutes:g} minutes"


@app.task
def square(number: int) -> int:
    return number * number


def main() -> None:
    breakfast = group(boil.s(minutes) for minutes in (5, 1, 3)).delay()
    for egg in breakfast.as_completed(timeout=30):
        print("ready:      ", egg.get())
    print("as ordered: ", breakfast.get())

    chunks = square.chunks(zip(range(1000)), 100).delay()
    squares = [number for chunk in chunks.get(timeout=20) for number in chunk]
    print(f"{len(squares)} squares from {len(chunks)} messages, the last one is {squares[-1]}")


if __name__ == "__main__":
    configure_logging("warning")
    worker = Worker(app, concurrency=3)  # otherwise: pulsartasks worker -A group:app
    worker.start()
    main()
    worker.stop()
