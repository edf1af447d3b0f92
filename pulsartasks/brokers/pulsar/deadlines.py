"""Deadlines of blocking calls into the client, which has no deadline of its own that it keeps."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


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
            self._under_way[key] = (deadline, subject)
            if deadline < self._looks_at:
                self._look_at(deadline)
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
            while self._under_way or time.monotonic() < self._looks_at:
                self._changed.wait(self._looks_at - time.monotonic())
                now = time.monotonic()
                under_way = list(self._under_way.items())
                for key, (deadline, subject) in under_way:
                    if deadline <= now:
                        self._under_way.pop(key, None)
                        self._overdue(subject)
                # Whoever comes with the same patience need not wake it, so it looks once a patience, not once a call.
                self._looks_at = min((deadline for _, (deadline, _) in under_way if deadline > now), default=now)
            self._looks_at = math.inf
