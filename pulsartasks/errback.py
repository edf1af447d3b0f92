"""Errbacks as Celery writes them: ``def log_error(request, exc, traceback)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pulsartasks.message import Request
from pulsartasks.results.base import Failure

CELERYS = ["request", "exc", "traceback"]


def one_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` itself, or, if its parameters are `CELERYS`, the same that takes one `Failure` instead.

    It gets a request that has the `id` and `task` of the call that failed, its exception and the text of its traceback.
    """
    if list(inspect.signature(function).parameters) != CELERYS:
        return function

    def errback(failure: Failure, *others: Any) -> Any:
        if others:  # called as the plain function
            return function(failure, *others)
        request = Request(id=failure.id, task=failure.task, called_directly=False)
        return function(request, failure.restore(), failure.traceback)

    failure = inspect.Parameter("failure", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Failure)
    errback.__signature__ = inspect.Signature([failure])  # type: ignore[attr-defined]
    errback.__name__, errback.__annotations__ = function.__name__, {"failure": Failure}
    return errback
