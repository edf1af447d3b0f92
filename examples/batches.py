"""Batches: one run for many calls, here one statement for many rows; each call has its own result, or its own error."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from pulsartasks import Batch, PulsarTasks, Reject
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("station")


@dataclass(frozen=True)
class Reading:
    sensor: str
    degrees: float


@app.resource
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("CREATE TABLE readings (sensor TEXT, degrees REAL)")
    yield connection
    connection.close()


@app.task(batch=Batch(max_messages=50, max_wait=0.5))
def store(readings: list[Reading], database: sqlite3.Connection) -> list[Exception | None]:
    good = [reading for reading in readings if reading.degrees > -273.15]
    with database:
        database.executemany("INSERT INTO readings VALUES (?, ?)", [(each.sensor, each.degrees) for each in good])
    print(f"{len(readings)} calls in one run", flush=True)
    return [None if reading in good else Reject(f"{reading.sensor} is broken") for reading in readings]


def main() -> None:
    with app.publishing():
        calls = [store.delay(Reading(f"sensor-{number}", number - 300.0)) for number in range(120)]
    rejected = 0
    for call in calls:
        try:
            call.get(timeout=30)
        except Reject:
            rejected += 1
    print(f"{len(calls) - rejected} were stored, {rejected} rejected: each is settled by itself")


if __name__ == "__main__":
    configure_logging("critical")
    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A batches:app
    worker.start()
    main()
    worker.stop()
