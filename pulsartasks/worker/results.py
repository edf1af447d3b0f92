"""Results of many attempts, stored together: their threads go on meanwhile.

Each result has to be confirmed before its message is acknowledged, which takes a round trip. Here all that came up
during one leave with the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from pulsartasks.errors import BrokerError, CallError, PulsarTasksError
from pulsartasks.results.base import PackedResult
from pulsartasks.retry import backoff

WINDOW = 256
"""Results on their way at once; so many tasks at most run again, because of theirs, when a process is killed."""

Stored: TypeAlias = "PulsarTasksError | None"
"""None, or why it was given up."""

_log = structlog.get_logger("pulsartasks")


@dataclass(slots=True)
class _Waiting:
    """A result that is not stored yet."""

    packed: PackedResult
    done: Callable[[Stored], None]
    since: float = field(default_factory=time.monotonic)


class ResultThread:
    """Stores what it is given, in order, and says so; it begins with the first one.

    Args:
        store: as `ResultStore.store`.
        stopping: when it is set, what is refused is given up at once.
        patience: seconds after which it is given up otherwise.
    """

    def __init__(
        self,
        store: Callable[[Sequence[PackedResult]], Sequence[Stored]],
        stopping: threading.Event,
        patience: float,
    ) -> None:
        self._store = store
        self._stopping = stopping
        self._patience = patience
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._on_the_way = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, packed: PackedResult, done: Callable[[Stored], None]) -> None:
        """Have it stored, and `done` called on the thread that does so; waits while too many are on their way."""
        with self._changed:
            self._changed.wait_for(lambda: self._count < WINDOW)
            self._waiting.append(_Waiting(packed, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="pulsartasks-settling", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def join(self, deadline: float) -> bool:
        """Wait until nothing is on its way, at most until `deadline` (monotonic seconds); whether nothing is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End the thread once nothing is on its way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def _count(self) -> int:
        return len(self._waiting) + self._on_the_way

    def _main(self) -> None:
        tries = 0
        while going := self._take():
            refused = self._send(going)
            with self._changed:
                self._waiting[:0] = refused
                self._on_the_way = 0
                self._changed.notify_all()
            if refused:
                self._stopping.wait(backoff(tries, factor=0.2, maximum=5.0))
            tries = tries + 1 if refused else 0

    def _take(self) -> list[_Waiting]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            going, self._waiting = self._waiting, []
            self._on_the_way = len(going)
            return going

    def _send(self, going: Sequence[_Waiting]) -> list[_Waiting]:
        """Store all at once; gives what is to be tried again."""
        refused: list[_Waiting] = []
        why = None
        for waiting, error in zip(going, self._stored(going), strict=True):
            over = self._stopping.is_set() or time.monotonic() - waiting.since > self._patience
            if error is None or isinstance(error, CallError) or over:
                self._tell(waiting, error)
            else:
                refused.append(waiting)
                why = error
        if refused:
            _log.warning("results.unsettled", results=len(refused), error=str(why))
        return refused

    def _stored(self, going: Sequence[_Waiting]) -> Sequence[Stored]:
        try:
            return self._store([waiting.packed for waiting in going])
        except PulsarTasksError as error:
            return [error] * len(going)
        except Exception as error:  # noqa: BLE001 - a bug; nothing would ever be acknowledged again
            _log.exception("results.failed")
            return [BrokerError(str(error))] * len(going)

    def _tell(self, waiting: _Waiting, error: Stored) -> None:
        try:
            waiting.done(error)
        except Exception:  # noqa: BLE001 - its message is delivered again when this process ends
            _log.exception("results.failed")
