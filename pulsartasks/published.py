"""What a test sees: `Testing`, which ``app.testing()`` gives, and what was `Published`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar, overload

from typing_extensions import ParamSpec

from pulsartasks.task import Task
from pulsartasks.topic import Topic

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """A call or event as it was sent, read back from its bytes."""

    name: str
    """Of the task, or the topic."""
    args: Sequence[Any]
    """Of an event: its payload."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    """Of the call; an event has none yet."""
    key: str | None = None
    eta: datetime | None = None
    """Before which it does not run."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The caller's own."""

    def __str__(self) -> str:
        arguments = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        options = {"key": self.key, "eta": self.eta and self.eta.isoformat(), "headers": self.headers}
        said = "".join(f" {name}={value}" for name, value in options.items() if value)
        return f"{self.name}({', '.join(arguments)}){said}"


class Testing(Protocol):
    """A running test of an app."""

    def join(self, timeout: float = 10.0) -> None:
        """Wait until all that was published is settled, what tasks publish themselves included.

        With a frozen clock: all that is due.

        Raises:
            TimeoutError: something is still waiting (perhaps for a retry or an eta) or running after `timeout` seconds.
        """
        ...

    def advance(self, by: float | timedelta, timeout: float = 10.0) -> None:
        """Move the frozen clock by so many seconds; what is due by then has run, each at its own instant, in order.

        Raises:
            ConfigurationError: the clock is not frozen.
            TimeoutError: something runs for longer than `timeout` seconds.
        """
        ...

    def published(self, target: Task[..., Any, Any] | Topic[Any] | None = None) -> Sequence[Published]:
        """What was sent since the block began: of a task, a topic, or all. Retries are not sent anew."""
        ...

    @overload
    def assert_published(self, target: Task[..., Any, Any] | Topic[Any], /) -> Published: ...
    @overload
    def assert_published(self, target: Topic[T], payload: T, /) -> Published: ...
    @overload
    def assert_published(self, target: Task[P, Any, Any], /, *args: P.args, **kwargs: P.kwargs) -> Published: ...
    def assert_published(self, target: Any, /, *args: Any, **kwargs: Any) -> Published:
        """A call of the task with these arguments, or an event with this payload; without any: whichever was last.

        Raises:
            AssertionError: it was not sent; the message tells what was.
        """
        ...
