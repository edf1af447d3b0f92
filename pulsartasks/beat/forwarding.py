"""What is due goes where it runs, so that workers may all be gone meanwhile: see `Forwarding`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Subscription
from pulsartasks.worker.consumer import Forwarder

THREADS = 4
"""Of the tasks of one subscription that keep no order."""
PREFETCH = 32
GRACE = 10.0
"""Seconds that a message on its way has when this stops."""


class Forwarding:
    """Moves retries and calls with an eta or countdown to their task's call topic, once they are due.

    Any number of copies share the work, and so do workers, which run what they get of it. What waits for tasks with
    ``durable=False`` is left to workers: their call topic stores nothing.
    """

    def __init__(self, app: PulsarTasks) -> None:
        destinations: dict[tuple[str, bool], dict[str, str]] = defaultdict(dict)
        for task in app.tasks.values():
            if task.options.durable:
                waiting = destinations[task.subscription, task.options.ordered]
                waiting.update(dict.fromkeys((task.topics.delayed, task.topics.retry), task.topics.calls))
        self._forwarders = [
            Forwarder(
                app,
                Subscription(tuple(waiting), subscription, prefetch=PREFETCH),
                waiting,
                threads=1 if ordered else THREADS,  # what is due together keeps its order as well as may be
            )
            for (subscription, ordered), waiting in destinations.items()
        ]

    @property
    def ready(self) -> bool:
        """Whether all that waits is consumed here."""
        return all(forwarder.ready for forwarder in self._forwarders)

    def start(self, failed: Callable[[BaseException], None]) -> None:
        """Begin; `failed` is told, from another thread, what makes it impossible."""
        for forwarder in self._forwarders:
            forwarder.start(failed, first=lambda: None)

    def stop(self) -> None:
        """Finish what is on its way, and give back the rest."""
        for forwarder in self._forwarders:
            forwarder.stop()
        deadline = time.monotonic() + GRACE
        for forwarder in self._forwarders:
            forwarder.join(deadline)
            forwarder.close()
