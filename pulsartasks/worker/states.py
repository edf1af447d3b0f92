"""How far tasks are that run here: told to their callers, and kept, by a thread of its own.

A task never waits for it. Of each task the newest is sent, at most every half second; what was not sent when the task
ends goes with its result, and so does nothing that would come after it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.errors import PulsarTasksError
from pulsartasks.message import Request
from pulsartasks.outcome import Outcome, Retried
from pulsartasks.results.base import CustomState, Progress, RemoteError, Reported, Result, State
from pulsartasks.retry import backoff
from pulsartasks.worker.run import Run

PROGRESS_EVERY = 0.5
"""Seconds between two reports of a task's progress."""
CLOSE_TIMEOUT = 5.0
"""Seconds that a worker's end waits for a report which is under way."""
PATIENCE = 0.05
"""Seconds to wait for something better to tell than that a message was received: mostly it is begun at once."""

_log = structlog.get_logger("pulsartasks")


def _here() -> msgspec.Raw:
    """Which process it is, under Celery's names."""
    return msgspec.Raw(msgspec.json.encode({"pid": os.getpid(), "hostname": socket.gethostname()}))


@dataclass(slots=True)
class _Told:
    """What was told of one task, and is to be."""

    state: Result
    reply_to: str | None
    unsent: list[Result] = field(default_factory=list)
    """States that it gave itself, each of which is to be sent."""
    due: float | None = None
    """When it is to be sent, in monotonic seconds; None: nothing is."""
    sent: float = 0.0
    """When something was, the last time."""
    ended: bool = False
    """The attempt has; it is forgotten when this was sent."""

    def take(self) -> Sequence[Result]:
        """What is to be sent: the newest, behind those that it gave itself."""
        states, self.unsent = self.unsent, []
        return states if states and states[-1] is self.state else [*states, self.state]


class States:
    """Tells of tasks that have not ended; shared by all threads of a worker process."""

    def __init__(self, app: PulsarTasks) -> None:
        self._app = app
        self._changed = threading.Condition()
        self._told: dict[str, _Told] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self, request: Request) -> None:
        """Let the task tell its `progress` until `end`."""
        with self._changed:
            self._find(request)

    def tell(self, request: Request, state: State, *, within: float = 0.0) -> None:
        """Tell that the task is in this state, within so many seconds."""
        with self._changed:
            told = self._find(request)
            meta = _here() if state == "STARTED" else None
            told.state = msgspec.structs.replace(told.state, state=state, at=self._app.clock.now(), meta=meta)
            self._have_sent(told, within)

    def said(self, request: Request, said: Progress | CustomState) -> None:
        """Tell what the task says of itself, unless it has ended."""
        with self._changed:
            told = self._told.get(request.id)
            if told is None or told.ended:
                return
            at = self._app.clock.now()
            if isinstance(said, Progress):
                told.state = msgspec.structs.replace(told.state, state="PROGRESS", progress=said, at=at, meta=None)
                self._have_sent(told, max(0.0, told.sent + PROGRESS_EVERY - time.monotonic()))
            else:
                told.state = msgspec.structs.replace(told.state, state=said.name, at=at, meta=said.meta)
                told.unsent.append(told.state)
                self._have_sent(told, 0.0)

    def end(self, run: Run, outcome: Outcome) -> Run:
        """The attempt has ended; gives `run` with what it told of its progress, which goes with its result."""
        told = self._told.get(run.request.id)
        retried = isinstance(outcome, Retried) and run.wants_result
        if told is None and not retried:
            return run
        with self._changed:
            told = self._find(run.request)
            if isinstance(outcome, Retried) and retried:
                error = RemoteError.capture(outcome.error)
                due = self._app.clock.now() + outcome.delay
                told.state = msgspec.structs.replace(
                    told.state, state="RETRY", error=error, at=self._app.clock.now(), due=due, meta=None
                )
                told.ended = True
                self._have_sent(told, 0.0)
            else:
                self._told.pop(run.request.id, None)
        progress = told.state.progress
        return run if progress is None else msgspec.structs.replace(run, progress=progress)

    def close(self) -> None:
        """Send no more, and let what is being sent be sent: a store must not be closed under it. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_TIMEOUT)

    def _find(self, request: Request) -> _Told:
        told = self._told.get(request.id)
        if told is None or told.ended:
            state = Result(request.id, request.task, "PENDING", retries=request.retries)
            told = self._told[request.id] = _Told(state, request.headers.get(message.REPLY_TO))
        return told

    def _have_sent(self, told: _Told, within: float) -> None:
        due = time.monotonic() + within
        if told.due is not None and told.due <= due:
            return
        told.due = due
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="pulsartasks-states", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _main(self) -> None:
        tries = 0
        while going := self._take():
            try:
                self._app.results.report([Reported(state, told.reply_to) for told, states in going for state in states])
            except PulsarTasksError as error:
                _log.warning("states.untold", error=str(error), states=len(going))
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, backoff(tries, factor=0.5, maximum=10.0))
                    for told, states in going:
                        told.unsent[:0] = states
                        told.due = 0.0
                tries += 1
            else:
                self._forget([told for told, _ in going])
                tries = 0

    def _take(self) -> Sequence[tuple[_Told, Sequence[Result]]]:
        """What is due, once anything is; nothing when no more is to be sent."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                waiting = {id_: told.due for id_, told in self._told.items() if told.due is not None}
                if going := [self._told[id_] for id_, due in waiting.items() if due <= now]:
                    for told in going:
                        told.due, told.sent = None, now
                    return [(told, told.take()) for told in going]
                self._changed.wait(min(waiting.values()) - now if waiting else None)
            return ()

    def _forget(self, sent: Sequence[_Told]) -> None:
        """Of an attempt that has ended nothing more is told, unless its end came while something else was sent."""
        with self._changed:
            for told in sent:
                if told.ended and told.due is None and self._told.get(told.state.id) is told:
                    del self._told[told.state.id]
