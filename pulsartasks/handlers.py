"""Handlers, under Celery's names: methods of a task's class that are told what becomes of its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pulsartasks.signals import Signals


class Handlers:
    """What a class that is given as ``base=`` may override. All run in the thread that runs the task.

    But for `before_start` they are receivers of signals: what they raise is logged and changes nothing, and they are
    called before the attempt is settled, so again if its message comes again after a crash.
    """

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        """Before each attempt; what it raises is as if the task had."""

    def on_success(self, retval: Any, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        """It returned `retval`."""

    def on_retry(
        self, exc: BaseException, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: Any
    ) -> object:
        """An attempt failed because of `exc`, and another one follows."""

    def on_failure(
        self, exc: BaseException, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: Any
    ) -> object:
        """It was given up because of `exc`: it raised, was rejected, crashed its worker or took too long."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: Any
    ) -> object:
        """The last of all, behind `on_success` and `on_failure`; `retval` is what it returned, or `exc`."""


def overridden(task: Handlers, name: str) -> Callable[..., object] | None:
    """The handler of this name, if the task's class has one of its own."""
    return None if getattr(type(task), name) is getattr(Handlers, name) else getattr(task, name)


def connect_handlers(task: Handlers, signals: Signals) -> None:
    """Have the signals of `task` told to the handlers of its class."""

    def succeeded(*, result: Any, request: Any, **_: Any) -> None:
        task.on_success(result, request.id, request.args, request.kwargs)
        task.after_return("SUCCESS", result, request.id, request.args, request.kwargs, None)

    def retried(*, reason: BaseException, request: Any, einfo: Any, **_: Any) -> None:
        task.on_retry(reason, request.id, request.args, request.kwargs, einfo)

    def failed(*, exception: BaseException, request: Any, einfo: Any, **_: Any) -> None:
        task.on_failure(exception, request.id, request.args, request.kwargs, einfo)
        task.after_return("FAILURE", exception, request.id, request.args, request.kwargs, einfo)

    for signal, receiver, names in (
        (signals.task_success, succeeded, ("on_success", "after_return")),
        (signals.task_retry, retried, ("on_retry",)),
        (signals.task_failure, failed, ("on_failure", "after_return")),
    ):
        if any(overridden(task, name) for name in names):  # else nothing is spent on it
            signal.connect(receiver, sender=task)
