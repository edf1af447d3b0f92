"""What becomes of messages, told to whoever has connected to the app's signals."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import msgspec
from typing_extensions import assert_never

from pulsartasks.app import PulsarTasks
from pulsartasks.message import Request
from pulsartasks.middleware.base import Execute
from pulsartasks.outcome import Died, Outcome, Replaced, Retried, Revoked, Skipped, Succeeded
from pulsartasks.results.base import traceback_of
from pulsartasks.worker.run import Run

_STATES: dict[type, str] = {
    Succeeded: "SUCCESS",
    Retried: "RETRY",
    Died: "FAILURE",
    Revoked: "REVOKED",
    Skipped: "IGNORED",
    Replaced: "IGNORED",
}
"""Celery's names."""


class ExceptionInfo(NamedTuple):
    """What Celery calls ``einfo``."""

    type: type[BaseException]
    exception: BaseException
    traceback: str
    """As Python prints it."""


class _Thread(threading.local):
    """What each thread knows of its own."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        """Ids of what it runs: between a run and its outcome stands the middleware, which does not tell."""


class TaskSignals:
    """Tells of each attempt; made only where somebody wants to know, so that nobody else pays for it."""

    def __init__(self, app: PulsarTasks) -> None:
        self._signals = app.signals
        self._tasks = app.tasks
        self._thread = _Thread()

    def around(self, call: Execute) -> Execute:
        """`call`, which calls the task's function, told of before it."""

        def run(request: Request) -> Outcome:
            task = self._tasks[request.task]
            self._thread.begun.add(request.id)
            self._signals.task_prerun.send(
                task, task_id=request.id, task=task, args=request.args, kwargs=request.kwargs
            )
            return call(request)

        return run

    def received(self, run: Run) -> None:
        """Of a message that a thread has taken to run."""
        if run.task is not None:
            self._signals.task_received.send(run.task, request=run.request)

    def tell(self, run: Run, outcome: Outcome) -> None:
        """What became of an attempt, before it is settled."""
        if run.task is None:
            error = outcome.error if isinstance(outcome, (Died, Retried)) else None
            self._signals.task_unknown.send(
                run.request.task, name=run.request.task, id=run.request.id, message=run.delivery, exc=error
            )
            return
        self._tell(run, outcome)
        if run.request.id in self._thread.begun:
            self._thread.begun.remove(run.request.id)
            self._signals.task_postrun.send(
                run.task,
                task_id=run.request.id,
                task=run.task,
                args=run.request.args,
                kwargs=run.request.kwargs,
                retval=outcome.value if isinstance(outcome, Succeeded) else getattr(outcome, "error", None),
                state=_STATES[type(outcome)],
            )

    def internal_error(self, run: Run, error: Exception) -> None:
        """What went wrong around a task."""
        request = msgspec.structs.asdict(run.request)
        self._signals.task_internal_error.send(run.task, **{**_failure(run.request, error), "request": request})

    def _tell(self, run: Run, outcome: Outcome) -> None:
        request, signals = run.request, self._signals
        match outcome:
            case Succeeded(value):
                signals.task_success.send(run.task, result=value, request=request)
            case Retried(error):
                signals.task_retry.send(run.task, request=request, reason=error, einfo=_info(error))
            case Died(error, "unreadable"):
                signals.task_rejected.send(run.task, message=run.delivery, exc=error)
            case Died(error):
                signals.task_failure.send(run.task, **_failure(request, error))
            case Revoked(reason):
                ends = {"terminated": reason == "terminated", "expired": reason == "expired"}
                signals.task_revoked.send(run.task, request=request, signum=None, **ends)
            case Skipped() | Replaced():
                pass
            case _:
                assert_never(outcome)


def _failure(request: Request, error: BaseException) -> dict[str, Any]:
    return {
        "task_id": request.id,
        "exception": error,
        "args": request.args,
        "kwargs": request.kwargs,
        "traceback": error.__traceback__,
        "einfo": _info(error),
        "request": request,
    }


def _info(error: BaseException) -> ExceptionInfo:
    return ExceptionInfo(type(error), error, traceback_of(error))
