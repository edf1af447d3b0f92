"""What workers write down for each other on a topic, and read up to its end whenever one of them must know all of it.

A subscription that nobody reads (the keeper) holds what is written. A worker looks before it acts instead of following
the topic, so it knows every record that was confirmed by then; threads that wait for a look share the next one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery, Reader
from pulsartasks.errors import ClosedError, PulsarTasksError
from pulsartasks.message import Publication
from pulsartasks.retry import backoff
from pulsartasks.topics import KEEPER
from pulsartasks.worker.run import Key

CLOCK_SKEW = 10.0
"""Seconds by which this machine's clock may run ahead of the broker's without a record being missed."""
TEND_EVERY = 60.0
"""Seconds between two looks of a worker that has nothing to run, after each of which it lets old records go."""
KEPT_AT_LEAST = 600.0
"""Seconds that a record is kept though nobody asks for so many, so that no worker that only looks now and then falls
behind what was let go."""

_log = structlog.get_logger("pulsartasks")


class Records:
    """One such topic, shared by all threads of a worker process; nothing is opened before it is used.

    Args:
        name: of the topic, behind the app's name and a dot.
        window: seconds that a record counts.
        note: is told each record, in the topic's order, its own ones too.
    """

    def __init__(self, app: PulsarTasks, name: str, *, window: float, note: Callable[[Delivery], None]) -> None:
        self._app = app
        self._name = name
        self._window = window
        self._note = note
        self._reading = threading.Lock()
        self._reader: Reader | None = None
        self._looked_at = 0.0
        self._declared = False
        self._stopping = threading.Event()

    def write(self, key: Key, **headers: str) -> None:
        """Write down something of `key`; returns when that is confirmed."""
        subscription, task, task_id = key
        properties = {message.REAL_SUBSCRIPTION: subscription, message.TASK: task, message.TASK_ID: task_id, **headers}
        self._declare()
        self._app.broker.publish(Publication(self._topic, b"{}", task_id, properties))

    def catch_up(self) -> None:
        """Read all that was written before this call."""
        asked = time.monotonic()
        with self._reading:
            if self._looked_at >= asked:
                return
            began = time.monotonic()
            self.check()
            if self._reader is None:
                self._reader = self._open()
            while (delivery := self._reader.receive(0.0)) is not None:
                self._note(delivery)
            self._looked_at = began

    def until_done(self, act: Callable[[], None]) -> None:
        """Do `act`, again and again while the broker does not let it be done.

        Raises:
            ClosedError: the worker stops meanwhile.
        """
        tries = 0
        while True:
            self.check()
            try:
                act()
            except ClosedError:
                raise
            except PulsarTasksError as error:
                _log.warning("once.unknown", error=str(error))
                self._stopping.wait(backoff(tries, factor=0.2, maximum=5.0))
                tries += 1
            else:
                return

    def check(self) -> None:
        """Raises `ClosedError` if the worker stops."""
        if self._stopping.is_set():
            raise ClosedError("the worker stops")

    def close(self) -> None:
        """Stop waiting for anything. Idempotent."""
        self._stopping.set()
        reader, self._reader = self._reader, None  # without the lock: whoever holds it may be waiting for the broker
        if reader is not None:
            reader.close()

    @property
    def _topic(self) -> str:
        return self._app.qualify(f"{self._app.name}.{self._name}")

    def _declare(self) -> None:
        if not self._declared:
            self._app.broker.declare(self._topic, [KEEPER])
            self._declared = True

    def _open(self) -> Reader:
        self._declare()
        reader = self._app.broker.read(self._topic, since=self._app.clock.now() - self._window - CLOCK_SKEW)
        threading.Thread(target=self._tend, name=f"pulsartasks-{self._name}", daemon=True).start()
        return reader

    def _tend(self) -> None:
        while not self._stopping.wait(TEND_EVERY):
            try:
                self.catch_up()
                self._app.broker.trim(
                    self._topic, KEEPER, before=self._app.clock.now() - max(self._window, KEPT_AT_LEAST)
                )
            except PulsarTasksError as error:
                if not self._stopping.is_set():
                    _log.warning("once.unknown", error=str(error))
