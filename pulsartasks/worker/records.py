"""What workers write down for each other on a topic, and read up to its end whenever one of them must know all of it.

A subscription that nobody reads (the keeper) holds what is written. A worker looks before it acts instead of following
the topic, so it knows every record that was confirmed by then; threads that wait for a look share the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery
from pulsartasks.errors import ClosedError, PulsarTasksError
from pulsartasks.log import TopicLog
from pulsartasks.message import Publication
from pulsartasks.retry import backoff
from pulsartasks.topics import short_name
from pulsartasks.worker.run import Key

TEND_EVERY = 60.0
"""Seconds between two looks of a worker that has nothing to run, after each of which it lets old records go."""
KEPT_AT_LEAST = 600.0
"""Seconds that a record is kept though nobody asks for so many, so that no worker that only looks now and then falls
behind what was let go."""

_log = structlog.get_logger("pulsartasks")


class Records:
    """One such topic, shared by all threads of a worker process; nothing is opened before it is used.

    Args:
        kind: of the topic, among the app's own.
        window: seconds that a record counts.
        note: is told each record, in the topic's order, its own ones too.
    """

    def __init__(self, app: PulsarTasks, kind: str, *, window: float, note: Callable[[Delivery], None]) -> None:
        self._app = app
        self._topic = app.own_topic(kind)
        self._window = window
        self._note = note
        self._opening = threading.Lock()
        self._log: TopicLog | None = None
        self._stopping = threading.Event()

    def write(self, key: Key, **headers: str) -> None:
        """Write down something of `key`; returns when that is confirmed."""
        subscription, task, task_id = key
        properties = {message.REAL_SUBSCRIPTION: subscription, message.TASK: task, message.TASK_ID: task_id, **headers}
        log = self._opened()
        log.append(Publication(log.topic, b"{}", task_id, properties))

    def catch_up(self) -> None:
        """Read all that was written before this call."""
        self.check()
        self._opened().catch_up()

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
        if self._log is not None:
            self._log.close()

    def _opened(self) -> TopicLog:
        with self._opening:
            if self._log is None:
                self._log = TopicLog(
                    self._app.broker, self._topic, window=lambda: self._window, learn=self._note, clock=self._app.clock
                )
                name = f"pulsartasks-{short_name(self._topic)}"
                threading.Thread(target=self._tend, name=name, daemon=True).start()
            return self._log

    def _tend(self) -> None:
        while not self._stopping.wait(TEND_EVERY):
            try:
                self.catch_up()
                self._opened().trim(max(self._window, KEPT_AT_LEAST))
            except PulsarTasksError as error:
                if not self._stopping.is_set():
                    _log.warning("once.unknown", error=str(error))
