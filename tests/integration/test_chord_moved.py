"""Chords on a Pulsar whose topics move: the counter loses its connection, and somebody begins to count anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from pulsartasks import PulsarTasks, chord
from pulsartasks.topics import COUNTER
from pulsartasks.worker.worker import Worker
from tests.services import PulsarServer, wait_until


@pytest.fixture
def app(pulsar_server: PulsarServer) -> Iterator[PulsarTasks]:
    app = PulsarTasks(f"t{uuid4().hex[:10]}", f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}")
    yield app
    app.close()


def test_chord_is_counted_once_though_its_topic_moves_in_the_middle(
    app: PulsarTasks, pulsar_server: PulsarServer
) -> None:
    gates = [threading.Event() for _ in range(4)]
    ended: list[int] = []
    bodies: list[list[int]] = []

    @app.task(concurrency=20)
    def wait(number: int) -> int:
        gates[number % 4].wait(60)
        ended.append(number)
        return number

    @app.task
    def total(numbers: list[int]) -> int:
        bodies.append(numbers)
        return sum(numbers)

    def reached(count: int) -> bool:
        return len(ended) >= count

    def backlog() -> int:
        stats: Any = pulsar_server.stats(app.chords)
        return int(stats["subscriptions"][COUNTER]["msgBacklog"])

    workers = [Worker(app), Worker(app)]
    for worker in workers:
        worker.start()
    wait_until(lambda: all(worker.ready for worker in workers), "the workers did not get ready")
    result = chord([wait.s(number) for number in range(20)], total.s()).delay()

    for moves, gate in enumerate(gates):
        gate.set()
        wait_until(partial(reached, 5 * moves + 1), "no part ended")
        pulsar_server.unload(app.chords)  # some of it is reported, some is not

    assert result.get(timeout=120) == sum(range(20))
    wait_until(lambda: backlog() == 0, "not all was settled")
    assert bodies == [list(range(20))]
    for worker in workers:
        worker.stop()
