"""Effectively once: which messages of tasks with ``once=True`` have succeeded lately, as all workers know it.

Each success is a record on ``<app>.once-done``, confirmed before the message is acknowledged, and held there by a
subscription that nobody reads (the keeper). Before a worker runs such a message it reads what was recorded since it
last looked, so it knows every success that was confirmed by then, whoever had it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery
from pulsartasks.catalog import ONCE_DONE
from pulsartasks.task import Task
from pulsartasks.worker.records import Records
from pulsartasks.worker.run import Key, Run, run_key

V = TypeVar("V")


class Once:
    """Lets a message run unless it has succeeded; shared by all threads of a worker process.

    Nothing is opened or read before `catch_up`, and so nothing at all for an app without ``once=True``.
    """

    def __init__(self, app: PulsarTasks, tasks: Iterable[Task[..., Any]]) -> None:
        self._app = app
        self._window = max((task.options.once_for for task in tasks if task.options.once), default=0.0)
        self.wanted = self._window > 0
        """Whether any task asked for it."""
        self._succeeded = Recent[float](self._window)
        self._records = Records(app, ONCE_DONE, window=self._window, note=self._note)
        self._running: dict[Key, Delivery] = {}
        self._changed = threading.Condition()

    def claim(self, run: Run, *, lasting: float) -> bool:
        """Whether the message is to run: it did not succeed within `lasting` seconds.

        Waits while a copy of it runs in this process, and while the broker cannot say what was recorded. True has to
        be followed by `release`.

        Raises:
            ClosedError: the worker stops and it is not known; the message has to be given back.
        """
        key = run_key(run)
        with self._changed:
            while key in self._running:
                self._changed.wait(1.0)
                self._records.check()
            self._running[key] = run.delivery
        claimed = False
        try:
            self._records.until_done(self._records.catch_up)
            at = self._succeeded.find(key)
            claimed = at is None or self._app.clock.now() - at > lasting
            return claimed
        finally:
            if not claimed:
                self.release(run)

    def record(self, run: Run) -> None:
        """Write down that the message succeeded; returns when that is confirmed."""
        key = run_key(run)
        self._records.write(key)
        self._succeeded.add(key, self._app.clock.now())

    def release(self, run: Run) -> None:
        """The attempt is settled or given back; harmless if it was not claimed."""
        key = run_key(run)
        with self._changed:
            if self._running.get(key) is run.delivery:
                del self._running[key]
                self._changed.notify_all()

    def catch_up(self) -> None:
        """Read all that was recorded before this call."""
        self._records.catch_up()

    def close(self) -> None:
        """Stop waiting for anything. Idempotent."""
        self._records.close()

    def _note(self, record: Delivery) -> None:
        self._succeeded.add(recorded_key(record), record.published_at)


def recorded_key(record: Delivery) -> Key:
    """What a record is about."""
    headers = record.properties
    # The same few names in a great many keys.
    subscription, task = (sys.intern(headers.get(name, "")) for name in (message.REAL_SUBSCRIPTION, message.TASK))
    return subscription, task, headers.get(message.TASK_ID, "")


class Recent(Generic[V]):
    """What was added under a key, remembered for `seconds`, and twice that at most.

    Two generations, the older dropped as a whole: as cheap as a dictionary, and bounded by what happens in that time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._young: dict[Key, V] = {}
        self._old: dict[Key, V] = {}
        self._turned = time.monotonic()

    def add(self, key: Key, value: V) -> None:
        with self._lock:
            if time.monotonic() - self._turned >= self._seconds:
                self._young, self._old = {}, self._young
                self._turned = time.monotonic()
            self._young[key] = value

    def find(self, key: Key) -> V | None:
        with self._lock:
            return self._young.get(key, self._old.get(key))
