"""The port for what goes around publishing and running: an onion, the first middleware outermost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pulsartasks.errors import PulsarTasksError
from pulsartasks.message import Publication, Request
from pulsartasks.outcome import Outcome

Publish = Callable[[Sequence[Publication]], list[str | PulsarTasksError]]
Execute = Callable[[Request], Outcome]


class Middleware:
    """A feature that wraps every publish and every run; override what you need. Called from many threads at once."""

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        """Around what is sent together, often one message; for each its message id, or what went wrong.

        What it raises reaches the caller, and nothing was sent.
        """
        return call_next(publications)

    def execute(self, request: Request, call_next: Execute) -> Outcome:
        """Around one attempt; gives its outcome. The task's own exceptions are already part of that."""
        return call_next(request)


def wrap_execute(middleware: Sequence[Middleware], innermost: Execute) -> Execute:
    """`innermost` with all of `middleware` around it."""
    for layer in reversed(middleware):
        innermost = partial(layer.execute, call_next=innermost)
    return innermost


def wrap_publish(middleware: Sequence[Middleware], innermost: Publish) -> Publish:
    """`innermost` with all of `middleware` around it."""
    for layer in reversed(middleware):
        innermost = partial(layer.publish, call_next=innermost)
    return innermost
