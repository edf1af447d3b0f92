"""`app.testing()`: inside it the app's calls go through a broker in memory and run on threads of this process."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.local import LocalBroker
from pulsartasks.worker.worker import Worker

_LOOK_AGAIN = 0.002


class TestingSession:
    """A running test of an app."""

    __test__ = False  # pytest must not take it for a test

    def __init__(self, app: PulsarTasks, broker: LocalBroker, worker: Worker) -> None:
        self.app = app
        self._broker = broker
        self._worker = worker

    def join(self, timeout: float = 10.0) -> None:
        """Wait until all that was published is settled, what tasks publish themselves included.

        Raises:
            TimeoutError: something is still waiting (perhaps for a retry or an eta) or running after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        # Subscriptions count from when they are consumed: looking earlier would find nothing to wait for.
        while not self._worker.ready or self._broker.store.unsettled():
            if time.monotonic() > deadline:
                unsettled = self._broker.store.unsettled()
                raise TimeoutError(f"messages that are not settled after {timeout:g} s: {unsettled}")
            time.sleep(_LOOK_AGAIN)


@contextmanager
def testing(
    app: PulsarTasks, *, topics: Collection[str] | None = None, concurrency: int = 2
) -> Iterator[TestingSession]:
    """Replace the app's broker by one in memory, and run a worker on it until the block ends.

    Resources are set up and torn down as in a real worker. `topics` and `concurrency` are the worker's; what is sent to
    other topics stays there, and `TestingSession.join` does not wait for it.
    """
    with app.on_broker("memory://") as broker:
        assert isinstance(broker, LocalBroker)
        worker = Worker(app, concurrency=concurrency, topics=topics)
        worker.start()
        try:
            yield TestingSession(app, broker, worker)
        finally:
            worker.stop(grace=5.0)
