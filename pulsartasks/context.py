"""What a bound task is told about the message it runs."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import structlog

from pulsartasks.canvas import Canvas
from pulsartasks.errors import (
    ConfigurationError,
    InvalidArgumentsError,
    MaxRetriesExceededError,
    Replace,
    Retry,
    UnacknowledgedError,
)
from pulsartasks.message import Request
from pulsartasks.results.base import CustomState, Progress
from pulsartasks.retry import RetryPolicy


class TaskContext:
    """The first argument of a task with ``bind=True``."""

    __slots__ = ("_acknowledgement", "_policy", "_report", "request", "retrying", "task")

    def __init__(
        self,
        request: Request,
        policy: RetryPolicy,
        acknowledgement: Acknowledgement | None = None,
        report: Callable[[Request, Progress | CustomState], None] | None = None,
        task: object = None,
    ) -> None:
        self.request = request
        self._policy = policy
        self._acknowledgement = acknowledgement
        self._report = report
        self.task = task
        """The `Task`, whose attributes are found here too; those of a ``base=`` class are kept there."""
        self.retrying: Retry | None = None
        """What the attempt ends as, whatever it returns: ``retry(throw=False)`` was called."""

    if not TYPE_CHECKING:  # for which each attribute would be there

        def __getattr__(self, name: str) -> Any:
            if name in TaskContext.__slots__ or not hasattr(self.task, name):
                raise AttributeError(f"neither TaskContext nor {self.task!r} has an attribute {name!r}")
            return getattr(self.task, name)

    @property
    def id(self) -> str:
        """The task's id; the same in every attempt."""
        return self.request.id

    @property
    def retries(self) -> int:
        """How many attempts came before this one."""
        return self.request.retries

    @property
    def log(self) -> Any:
        """A structlog logger that already knows the task, its id and the attempt."""
        return structlog.get_logger("pulsartasks.task").bind(
            task=self.request.task, id=self.request.id, attempt=self.request.retries + 1
        )

    def ack(self) -> None:
        """Acknowledge the message of a task with ``ack="manual"``, from any thread while the task runs.

        From then on a crash does not have it delivered again. A second call does nothing, nor does any where the
        function is called directly.

        Raises:
            ConfigurationError: the task is not one with ``ack="manual"``.
            UnacknowledgedError: the task has ended without it, and its message is to run again.
        """
        if self._acknowledgement is not None:
            self._acknowledgement.give(self.request)
        elif not self.request.called_directly:
            raise ConfigurationError(f"task {self.request.task!r}: self.ack() needs ack='manual'")

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Tell the caller how far the task is, as `AsyncResult.progress`; from any thread, and without waiting.

        Call it as often as you like: what is told within half a second of the last is sent together, the newest alone,
        and the last one of all with the result. It does nothing where nobody can ask for it: when the function is
        called directly, of an event, with ``ignore_result=True``, and after the end.

        Args:
            done: how much, in whatever unit.
            total: of how much; None if that is not known.
            message: what is being done; at most 1,000 characters are sent.

        Raises:
            ValueError: `done` or `total` is no number, or without end.
        """
        progress = Progress.of(done, total, message)
        if self._report is not None:
            self._report(self.request, progress)

    def update_state(self, *, state: str, meta: object = None) -> None:
        """Give the task a state of its own, as `AsyncResult.state` with `meta` (data) as `AsyncResult.info`; from any
        thread, and without waiting. Each is sent, at once, but one that the end of the task overtakes.

        It does nothing where `progress` does nothing.

        Raises:
            ValueError: `state` says how the task ended, which its worker does; or `meta` has more than 16,384 bytes.
            TypeError: `meta` is no data.
        """
        custom = CustomState.of(state, meta)
        if self._report is not None:
            self._report(self.request, custom)

    @overload
    def retry(
        self,
        exc: BaseException | None = None,
        *,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
        throw: Literal[True] = True,
    ) -> NoReturn: ...
    @overload
    def retry(
        self,
        exc: BaseException | None = None,
        *,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
        throw: bool,
    ) -> Retry: ...
    def retry(
        self,
        exc: BaseException | None = None,
        *,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
        throw: bool = True,
    ) -> Retry:
        """Give up this attempt and have the message run again later, held by the broker.

        Args:
            exc: why; raised instead when no retry is left, and logged.
            countdown: seconds until the next attempt; default: the task's backoff.
            max_retries: instead of the task's own, for this once.
            throw: False: the function goes on, and what it returns is nobody's; the next attempt begins after its end.

        Raises:
            Retry: always, while one is left and without ``throw=False``. Write ``raise self.retry(...)`` so that
                readers and type checkers see the end.
            ValueError: `countdown` is no number of seconds.
            MaxRetriesExceededError: none is left and `exc` was not given.
        """
        policy = self._policy
        limit = policy.max_retries if max_retries is None else max_retries
        if limit is not None and self.retries >= limit:
            raise exc or MaxRetriesExceededError(f"{self.request.task}[{self.id}] failed {self.retries + 1} times")
        if isinstance(countdown, timedelta):
            countdown = countdown.total_seconds()
        if countdown is not None and not math.isfinite(countdown):
            raise ValueError(f"retry(countdown={countdown}) has no end; give seconds")
        retry = Retry(policy.delay(self.retries, random.random) if countdown is None else countdown, exc)
        retry.counted = True
        if throw:
            raise retry
        self.retrying = retry
        return retry

    def replace(self, canvas: Canvas[Any]) -> NoReturn:
        """End here and have `canvas` run in place of this task: its last call has this task's id and gives its result,
        and what was to follow the task follows that.

        Where the message is delivered again after a crash, the task runs again and replaces itself anew.

        Raises:
            Replace: always. Write ``raise self.replace(...)`` so that readers and type checkers see the end.
            InvalidArgumentsError: it is no canvas.
        """
        if not isinstance(canvas, Canvas):
            raise InvalidArgumentsError(f"replace() takes a call like task.s(2, 3), or any canvas, not {canvas!r}")
        raise Replace(canvas)


class Acknowledgement:
    """The one acknowledgement that a task with ``ack="manual"`` may give, until it ends."""

    def __init__(self, acknowledge: Callable[[], None]) -> None:
        self._acknowledge = acknowledge
        self._lock = threading.Lock()
        self._given = False
        self._ended = False

    def give(self, request: Request) -> None:
        with self._lock:
            if self._given:
                return
            if self._ended:
                raise UnacknowledgedError(f"{request.task}[{request.id}] has ended; call self.ack() before it returns")
            self._acknowledge()
            self._given = True

    def end(self) -> bool:
        """The task has ended, and it is too late from now on; whether it was given."""
        with self._lock:
            self._ended = True
            return self._given
