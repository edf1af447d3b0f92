"""Putting messages together: each comes with its own thread, waits here for the others, and leaves with its outcome.

So all that is done for one message, before and after its run, is done for each of a batch by the same code. Only the
function is called once: by the thread of the first message, which leads the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pulsartasks.batch import Batch
from pulsartasks.message import Request
from pulsartasks.outcome import Outcome

Run = Callable[[Sequence[Request], Sequence[int]], Sequence[Outcome]]


@dataclass(slots=True, eq=False)
class _Group:
    """Messages that run together."""

    requests: list[Request] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    outcomes: Sequence[Outcome] = ()
    """In the order of the requests, once it is done; none if the run broke off."""
    done: threading.Event = field(default_factory=threading.Event)


class Gathering:
    """Where the messages of one task meet; shared by all threads of a worker process.

    Args:
        run: calls the function, with requests and their slots in the journal; gives the outcome of each.
        concurrency: batches that run at once. What comes meanwhile joins the next, whose time may be over by then.
        hurried: whether nobody else will come, so that there is nothing to wait for.
    """

    def __init__(self, batch: Batch, run: Run, *, concurrency: int, hurried: Callable[[], bool]) -> None:
        self._batch = batch
        self._run = run
        self._concurrency = concurrency
        self._hurried = hurried
        self._changed = threading.Condition()  # waited for by those that lead
        self._open: _Group | None = None
        """Takes more."""
        self._running = 0

    def join(self, request: Request, slot: int) -> Outcome:
        """Run together with what others bring; gives what became of this one."""
        with self._changed:
            leads = self._open is None
            group = self._open or _Group()
            place = len(group.requests)
            group.requests.append(request)
            group.slots.append(slot)
            full = len(group.requests) >= self._batch.max_messages
            self._open = None if full else group
            if full:
                self._changed.notify_all()
        if leads:
            self._lead(group)
        else:
            group.done.wait()
        return group.outcomes[place]

    def hurry(self) -> None:
        """Have those that wait look again whether there is something to wait for."""
        with self._changed:
            self._changed.notify_all()

    def _lead(self, group: _Group) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open is not group or self._hurried(), self._batch.max_wait)
            self._changed.wait_for(lambda: self._running < self._concurrency)
            if self._open is group:
                self._open = None
            self._running += 1
        try:
            group.outcomes = self._run(group.requests, group.slots)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
            group.done.set()
