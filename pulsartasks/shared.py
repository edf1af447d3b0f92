"""Library tasks: defined without an app, they belong to those that include their module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Literal, overload

from typing_extensions import ParamSpec, TypeVar, Unpack

from pulsartasks.batch import Batch
from pulsartasks.errors import ConfigurationError
from pulsartasks.options import TaskKeywords, TaskOptions
from pulsartasks.signature import CallOptions
from pulsartasks.task import BatchDecorator, BindingDecorator, Decorator, Task, TaskTopics, options_of

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", default=R)

_OF_THE_APP = frozenset(
    {"subscription", "call_topic", "injected", "codec", "result_codec", "event_topic", "is_async", "_host"}
)


class SharedTask(Task[P, R, C]):
    """A task without an app; called through the one that includes it, it is that one's."""

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        # Not Task's: what that finds out needs an app, and is asked of the app's own task by `__getattr__`.
        functools.update_wrapper(self, function)
        self.function = function
        self.options = options
        self.retry_policy = options.retry_policy
        self.name = options.name or function.__name__
        self.call_options = CallOptions()
        self.members: dict[str, Task[P, R, C]] = {}
        """What it is in each app, by the app's name."""

    @property
    def topics(self) -> TaskTopics:
        return self._member().topics

    def _member(self) -> Task[P, R, C]:
        if not self.members:
            raise ConfigurationError(
                f"task {self.name!r} belongs to no app yet; write app.include({self.function.__module__!r})"
            )
        if len(self.members) > 1:
            raise ConfigurationError(
                f"task {self.name!r} belongs to the apps {', '.join(sorted(self.members))}; say which: "
                f"app.tasks[{self.name!r}]"
            )
        return next(iter(self.members.values()))

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_THE_APP:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._member(), name)

    def __repr__(self) -> str:
        return f"<SharedTask {self.name}>"


@overload
def shared_task(function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...
@overload
def shared_task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(*, bind: Literal[True], **options: Unpack[TaskKeywords]) -> BindingDecorator: ...
@overload
def shared_task(*, bind: Literal[False] = False, **options: Unpack[TaskKeywords]) -> Decorator: ...
@overload
def shared_task(*, batch: Batch, **options: Unpack[TaskKeywords]) -> BatchDecorator: ...
def shared_task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function of a library a task of each app that writes ``app.include(module)``.

    The options are those of ``@app.task``.

    Raises:
        ConfigurationError: an option is unknown or wrong.
    """
    if function is None:
        return lambda function: _shared(function, options)
    return _shared(function, options)


def _shared(function: Callable[..., Any], keywords: dict[str, Any]) -> SharedTask[..., Any, Any]:
    name = keywords.get("name") or function.__name__
    options = TaskOptions.parse(options_of(keywords, None), task=name)
    if not isinstance(options.topic, (str, type(None))):
        raise ConfigurationError(
            f"task {name!r}: {options.topic!r} is an app's; give a library's task a name for topic="
        )
    return SharedTask(function, options)
