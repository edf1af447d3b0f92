"""Deadlines of blocking calls into the client, which has no deadline of its own that it keeps."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")

TELL_AGAIN = 1.0
"""Seconds after which somebody is told again of what is overdue, if that failed."""

_log = structlog.get_logger("pulsartasks")


class Deadlines(Generic[T]):
    """Tells of what is still under way at its deadline; by a thread that is there only while something is."""

    def __init__(self, overdue: Callable[[T], object]) -> None:
        self._overdue = overdue
        self._changed = threading.Condition()
        self._under_way: dict[object, tuple[float, T]] = {}
        self._looks_at = math.inf
        """When the thread looks next; infinite: there is none."""

    @contextmanager
    def watch(self, subject: T, deadline: float) -> Iterator[None]:
        """Tell of `subject` if the block still runs at `deadline`, by the monotonic clock."""
        key = object()
        with self._changed:
            if deadline < self._looks_at:
                self._look_at(deadline)  # may fail, if no thread is to be had
            self._under_way[key] = (deadline, subject)
        try:
            yield
        finally:
            self._under_way.pop(key, None)

    def _look_at(self, deadline: float) -> None:
        if self._looks_at == math.inf:
            threading.Thread(target=self._run, name="pulsartasks-deadlines", daemon=True).start()
        self._looks_at = deadline
        self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            try:
                while self._under_way or time.monotonic() < self._looks_at:
                    self._changed.wait(self._looks_at - time.monotonic())
                    # Whoever comes with the same patience need not wake it: it looks once a patience, not once a call.
                    self._looks_at = self._look(time.monotonic())
            finally:
                self._looks_at = math.inf

    def _look(self, now: float) -> float:
        """Tell of what is overdue; gives when to look next."""
        later = []
        for key, (deadline, subject) in list(self._under_way.items()):
            if deadline > now:
                later.append(deadline)
            elif self._told(subject):
                self._under_way.pop(key, None)
            else:
                later.append(now + TELL_AGAIN)
        return min(later, default=now)

    def _told(self, subject: T) -> bool:
        try:
            self._overdue(subject)
        except Exception:  # noqa: BLE001 - e.g. no thread is to be had; without this one nothing would ever be told of
            _log.exception("deadline.untold")
            return False
        return True
