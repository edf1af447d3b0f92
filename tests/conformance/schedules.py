"""The app of beat processes: an entry each second, and a way to see what was sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from pulsartasks import PulsarTasks, every
from pulsartasks.brokers.base import Consumer, Subscription
from pulsartasks.message import TICK
from tests.conformance.processes import WorkerProcess
from tests.services import wait_until

APP = "SCHEDULES_APP"
BEAT = "tests.conformance.schedules:app"
EVERY = 1.0


def make_app(name: str, broker: str | None) -> PulsarTasks:
    app = PulsarTasks(name, broker)

    @app.task(ignore_result=True)
    def often(what: str) -> None: ...

    app.schedule("often", every(EVERY), often.s("something"))
    return app


def start_beat(app: PulsarTasks, *arguments: str, url: str | None = None) -> WorkerProcess:
    """A copy of ``pulsartasks beat`` for `app`, which `make_app` made."""
    return WorkerProcess(*arguments, env=environment(app, url), app=BEAT, command="beat")


def environment(app: PulsarTasks, url: str | None = None) -> dict[str, str]:
    """In which `BEAT` is that app."""
    return {"PULSARTASKS_BROKER": url or app.broker_url, APP: app.name}


class Ticks:
    """What was sent to a task, or to a subscription of a topic."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.seen: list[str] = []
        """The headers of all ticks so far, in the order in which they came."""
        self.ids: list[str] = []
        self.sent_at: list[float] = []

    @property
    def gaps(self) -> list[int]:
        """Milliseconds between one tick and the next, in the order of their instants; 0: one came twice."""
        return [after - before for before, after in pairwise(sorted(self.instants))]

    @property
    def instants(self) -> list[int]:
        """Milliseconds since the epoch."""
        return [int(tick.partition("@")[2]) for tick in self.seen]

    def look(self, at_least: int = 0, *, timeout: float = 0.1) -> list[str]:
        """Take what there is, until nothing comes for `timeout` seconds; gives all so far, which `at_least` are."""
        wait_until(lambda: self._take(timeout) >= at_least, f"there are no {at_least} ticks")
        return self.seen

    def _take(self, timeout: float) -> int:
        while (delivery := self._consumer.receive(timeout)) is not None:
            self.seen.append(delivery.properties[TICK])
            self.ids.append(delivery.properties.get("pt-id", ""))
            self.sent_at.append(delivery.published_at)
            delivery.acknowledge()
        return len(self.seen)


@contextmanager
def watching(app: PulsarTasks, topic: str, subscription: str) -> Iterator[Ticks]:
    """Instead of a worker: takes the messages, without running them."""
    app.declare(topic)
    consumer = app.broker.subscribe(Subscription((topic,), subscription))
    try:
        yield Ticks(consumer)
    finally:
        consumer.close()


def __getattr__(name: str) -> PulsarTasks:
    if name != "app":
        raise AttributeError(name)
    return make_app(os.environ[APP], None)
