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
from typing import Any, TypeAlias

import structlog

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery, Reader
from pulsartasks.errors import ClosedError, PulsarTasksError
from pulsartasks.message import Publication, Request
from pulsartasks.retry import backoff
from pulsartasks.task import Task
from pulsartasks.worker.run import Run

KEEPER = "keeper"
CLOCK_SKEW = 10.0
"""Seconds by which this machine's clock may run ahead of the broker's without a record being missed."""
TEND_EVERY = 60.0
"""Seconds between two looks of a worker that has nothing to run, after each of which it lets old records go."""
KEPT_AT_LEAST = 600.0
"""Seconds that a record is kept though no task asks for so many, so that no worker that only looks now and then falls
behind what was let go."""

Key: TypeAlias = tuple[str, str, str]
"""Subscription, task, and the id that all copies of a message have in common."""

_log = structlog.get_logger("pulsartasks")


class Once:
    """Lets a message run unless it has succeeded; shared by all threads of a worker process.

    Nothing is opened or read before `catch_up`, and so nothing at all for an app without ``once=True``.
    """

    def __init__(self, app: PulsarTasks, tasks: Iterable[Task[..., Any]]) -> None:
        self._app = app
        self._window = max((task.options.once_for for task in tasks if task.options.once), default=0.0)
        self._succeeded = _Recent(self._window)
        self._running: dict[Key, Delivery] = {}
        self._changed = threading.Condition()
        self._reading = threading.Lock()
        self._reader: Reader | None = None
        self._looked_at = 0.0
        self._stopping = threading.Event()

    @property
    def wanted(self) -> bool:
        """Whether any task asked for it."""
        return self._window > 0

    def claim(self, run: Run, *, lasting: float) -> bool:
        """Whether the message is to run: it did not succeed within `lasting` seconds.

        Waits while a copy of it runs in this process, and while the broker cannot say what was recorded. True has to
        be followed by `release`.

        Raises:
            ClosedError: the worker stops and it is not known; the message has to be given back.
        """
        key = once_key(run.request)
        with self._changed:
            while key in self._running:
                self._changed.wait(1.0)
                self._check()
            self._running[key] = run.delivery
        claimed = False
        try:
            self._look_until_known()
            at = self._succeeded.find(key)
            claimed = at is None or self._app.clock.now() - at > lasting
            return claimed
        finally:
            if not claimed:
                self.release(run)

    def record(self, run: Run) -> None:
        """Write down that the message succeeded; returns when that is confirmed."""
        subscription, task, task_id = once_key(run.request)
        properties = {message.REAL_SUBSCRIPTION: subscription, message.TASK: task, message.TASK_ID: task_id}
        self._app.broker.publish(Publication(self._topic, b"{}", task_id, properties))
        self._succeeded.add((subscription, task, task_id), self._app.clock.now())

    def release(self, run: Run) -> None:
        """The attempt is settled or given back; harmless if it was not claimed."""
        key = once_key(run.request)
        with self._changed:
            if self._running.get(key) is run.delivery:
                del self._running[key]
                self._changed.notify_all()

    def catch_up(self) -> None:
        """Read all that was recorded before this call.

        Threads that wait for the same look share the next one: it began after they had asked.
        """
        asked = time.monotonic()
        with self._reading:
            if self._looked_at >= asked:
                return
            began = time.monotonic()
            self._check()
            if self._reader is None:
                self._reader = self._open()
            while (delivery := self._reader.receive(0.0)) is not None:
                self._note(delivery)
            self._looked_at = began

    def close(self) -> None:
        """Stop waiting for anything. Idempotent."""
        self._stopping.set()
        reader, self._reader = self._reader, None  # without the lock: whoever holds it may be waiting for the broker
        if reader is not None:
            reader.close()

    @property
    def _topic(self) -> str:
        # A hyphen, since no task's own topic has one by default.
        return self._app.qualify(f"{self._app.name}.once-done")

    def _check(self) -> None:
        if self._stopping.is_set():
            raise ClosedError("the worker stops")

    def _open(self) -> Reader:
        self._app.broker.declare(self._topic, [KEEPER])
        reader = self._app.broker.read(self._topic, since=self._app.clock.now() - self._window - CLOCK_SKEW)
        threading.Thread(target=self._tend, name="pulsartasks-once", daemon=True).start()
        return reader

    def _look_until_known(self) -> None:
        tries = 0
        while True:
            try:
                self.catch_up()
            except ClosedError:
                raise
            except PulsarTasksError as error:
                _log.warning("once.unknown", error=str(error))
                self._stopping.wait(backoff(tries, factor=0.2, maximum=5.0))
                tries += 1
            else:
                return

    def _note(self, record: Delivery) -> None:
        headers = record.properties
        # The same few names in a great many keys.
        subscription, task = (sys.intern(headers.get(name, "")) for name in (message.REAL_SUBSCRIPTION, message.TASK))
        self._succeeded.add((subscription, task, headers.get(message.TASK_ID, "")), record.published_at)

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


def once_key(request: Request) -> Key:
    """What all copies of a message have in common: the executor gives them one id, the call's or the first one's."""
    return request.subscription, request.task, request.id


class _Recent:
    """Keys and when they were added (seconds since the epoch), remembered for `seconds`, and twice that at most.

    Two generations, the older dropped as a whole: as cheap as a dictionary, and bounded by what happens in that time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._young: dict[Key, float] = {}
        self._old: dict[Key, float] = {}
        self._turned = time.monotonic()

    def add(self, key: Key, at: float) -> None:
        with self._lock:
            if time.monotonic() - self._turned >= self._seconds:
                self._young, self._old = {}, self._young
                self._turned = time.monotonic()
            self._young[key] = at

    def find(self, key: Key) -> float | None:
        with self._lock:
            return self._young.get(key, self._old.get(key))
