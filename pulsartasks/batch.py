"""Tasks that take many messages at once: how many, how long they wait for each other, and what each came to."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pulsartasks.errors import ConfigurationError, InvalidArgumentsError
from pulsartasks.serializers import type_hints

MOST_MESSAGES = 1000


@dataclass(frozen=True, slots=True)
class Batch:
    """How a task's messages are put together: ``@app.task(batch=Batch(max_messages=64, max_wait=0.2))``.

    Raises:
        ConfigurationError: a number is not what it should be.
    """

    max_messages: int = 64
    """A run takes so many at most. Each has a thread of the worker while it waits and runs."""
    max_wait: float = 0.2
    """Seconds after its first message when a batch runs that is not full."""

    def __post_init__(self) -> None:
        count, seconds = self.max_messages, self.max_wait
        if not isinstance(count, int) or not 1 <= count <= MOST_MESSAGES:
            raise ConfigurationError(f"Batch: max_messages must be 1 to {MOST_MESSAGES}, not {count!r}")
        if not isinstance(seconds, (int, float)) or not 0 <= seconds <= 3600:
            raise ConfigurationError(f"Batch: max_wait must be seconds, from 0 to 3600, not {seconds!r}")


def results_of(returned: object, count: int, *, task: str) -> Sequence[object]:
    """What each of `count` messages came to, a failed one to an exception, by what the function returned.

    >>> results_of(None, 2, task="store"), results_of([1, ValueError("two")], 2, task="store")
    ([None, None], [1, ValueError('two')])

    Raises:
        InvalidArgumentsError: it is neither None nor a list with a place for each.
    """
    if returned is None:
        return [None] * count
    if isinstance(returned, (list, tuple)) and len(returned) == count:
        return returned
    found = f"{len(returned)}" if isinstance(returned, (list, tuple)) else type(returned).__name__
    raise InvalidArgumentsError(
        f"{task}() got a batch of {count} and returned {found}; return None, or a list with a result for each"
    )


def hints_of_each(function: Callable[..., Any], injected: Collection[str]) -> Mapping[str, Any]:
    """The annotations of a batch's function as one call has them: ``X`` where it says ``list[X]``.

    Raises:
        ConfigurationError: the function does not take one list besides resources, or does not give one or None.
    """
    hints = dict(type_hints(function))
    name = getattr(function, "__name__", "task")
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in injected]
    first = parameters[0] if len(parameters) == 1 else None
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise ConfigurationError(f"{name}() handles batches, so besides resources it takes one argument: a list")
    if first.default is not first.empty:
        raise ConfigurationError(f"{name}() is never called without a batch; its argument needs no default")
    hints[first.name] = _item(
        hints.get(first.name, Any), f"{name}() handles batches; annotate its argument {first.name!r} as list[...]"
    )
    given = hints.get("return", Any)
    hints["return"] = (
        given
        if given is type(None)
        else _without_exceptions(_item(given, f"{name}() handles batches; have it return None or list[...]"))
    )
    return hints


def _item(kind: Any, complaint: str) -> Any:
    if kind in (Any, list):
        return Any
    if get_origin(kind) is not list:
        raise ConfigurationError(f"{complaint}, not {kind!r}")
    return get_args(kind)[0]


def _without_exceptions(kind: Any) -> Any:
    """What is left of a union when its exceptions are: those say at which places the batch failed."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    results = tuple(k for k in kinds if not (isinstance(k, type) and issubclass(k, BaseException)))
    return Union[results] if results else type(None)  # noqa: UP007 - its members are known only here
