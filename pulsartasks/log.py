"""A topic as a log: whoever reads it to its present end knows what all others knew before, and concludes the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pulsartasks.brokers.base import Broker, Delivery, Reader
from pulsartasks.clock import Clock
from pulsartasks.errors import PulsarTasksError
from pulsartasks.message import Publication
from pulsartasks.topics import KEEPER

CLOCK_SKEW = 10.0
"""Seconds by which this machine's clock may run ahead of the broker's without a record being missed."""


class TopicLog:
    """Records that are held on a topic by a subscription that nobody reads; opened by the first use.

    Args:
        window: gives the seconds for which a record counts; asked when the log is first read.
        learn: is told each record, in the topic's order, by one thread at a time.
        again: `learn` may be told all of them again, so that a reader which failed is replaced.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        *,
        window: Callable[[], float],
        learn: Callable[[Delivery], None],
        clock: Clock,
        again: bool = False,
    ) -> None:
        self.topic = topic
        self._broker = broker
        self._window = window
        self._learn = learn
        self._clock = clock
        self._again = again
        self._declared = False
        self._reading = threading.Lock()
        self._reader: Reader | None = None
        self._looked_at = 0.0

    def append(self, record: Publication) -> None:
        """Add a record; confirmed when this returns."""
        self.declare()
        self._broker.publish(record)

    def catch_up(self) -> None:
        """Learn all that was confirmed before this call.

        Threads that wait for the same look share the next one: it began after they had asked.
        """
        asked = time.monotonic()
        with self._reading:
            if self._looked_at >= asked:
                return
            began = time.monotonic()
            reader = self._reader  # `close` may take it away at any moment
            if reader is None:
                self.declare()
                reader = self._broker.read(self.topic, since=self._clock.now() - self._window() - CLOCK_SKEW)
                self._reader = reader
            try:
                while (record := reader.receive(0.0)) is not None:
                    self._learn(record)
            except PulsarTasksError:
                if self._again:
                    self.close()  # before another thread looks, which would lose its reader by that
                raise
            self._looked_at = began

    def declare(self) -> None:
        """Make sure that it is there."""
        if not self._declared:
            self._broker.declare(self.topic, [KEEPER])
            self._declared = True

    def trim(self, seconds: float) -> None:
        """Let go of what is older."""
        self.declare()
        self._broker.trim(self.topic, KEEPER, before=self._clock.now() - seconds)

    def close(self) -> None:
        reader, self._reader = self._reader, None  # without the lock: whoever holds it may be waiting for the broker
        if reader is not None:
            reader.close()
