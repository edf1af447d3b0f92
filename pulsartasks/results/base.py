"""The port for results, and the form in which a result is kept."""

from __future__ import annotations

import asyncio
import math
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from pulsartasks.brokers.base import Broker, Claims
from pulsartasks.clock import Clock, SystemClock
from pulsartasks.errors import PulsarTasksError, RemoteTraceback, TaskError
from pulsartasks.serializers import UNREADABLE, encode

State = Literal["PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]
ENDED: frozenset[str] = frozenset({"SUCCESS", "FAILURE", "REVOKED"})

LONGEST_TEXT = 16_384
"""Characters of a message or traceback that travel with an error, and bytes of its arguments."""
LOOK_AGAIN = 30.0
"""Seconds after which what is kept is looked at again, in case a push was lost."""
LONGEST_NOTE = 1000
"""Characters of a message that travel with a task's progress."""


class RemoteError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as data."""

    type: str
    """``module:qualified name`` of its class."""
    message: str
    arguments: list[Any]
    """What its class is called with to make it, if that is data, else its text."""
    traceback: str
    """Also of the exceptions that led to it."""
    part: str = ""
    """The call that raised it, as ``task[id]``, if that is not the one whose result this is."""

    @classmethod
    def capture(cls, error: BaseException) -> RemoteError:
        message = text_of(error)[:LONGEST_TEXT]
        try:
            arguments = encode(_arguments_of(error))
            values = msgspec.json.decode(arguments) if len(arguments) <= LONGEST_TEXT else [message]
        except (TypeError, *UNREADABLE):  # what can just be written may be too deep to be read
            values = [message]
        return cls(
            type=f"{type(error).__module__}:{type(error).__qualname__}",
            message=message,
            arguments=values,
            traceback=traceback_of(error)[-LONGEST_TEXT:],
        )

    def restore(self) -> BaseException:
        """The exception itself where its class is already imported here, else a `TaskError` that tells the same; its
        cause is the worker's traceback.

        Nothing is imported for it: a result is data, and data must not choose what code runs. Nor is anything but an
        `Exception` made: what ends a task (``SystemExit``, ``KeyboardInterrupt``) is not to end its caller.
        """
        error = self._rebuilt()
        error.__cause__ = RemoteTraceback(self.traceback)
        if self.part and hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(f"raised by {self.part}, which came before")
        return error

    def _rebuilt(self) -> Exception:
        kind = _imported(self.type)
        with suppress(Exception):  # any constructor may run here; the stand-in tells the same story
            if kind is not None:
                error = kind(*self.arguments)
                if text_of(error) != self.message:  # it made its text of other arguments than those it kept
                    error.args = tuple(self.arguments)
                return error
        name = self.type.rpartition(":")[2]
        return TaskError(f"{name}: {self.message}", self.type.replace(":", "."), self.message, self.traceback)


class Failure(RemoteError, frozen=True, kw_only=True):  # noqa: N818 - it is what is told of one
    """How a call failed: what an errback gets as its first argument, before those of its own."""

    id: str
    """Of the task."""
    task: str

    @classmethod
    def of(cls, task: str, task_id: str, error: BaseException) -> Failure:
        return cls(id=task_id, task=task, **msgspec.structs.asdict(RemoteError.capture(error)))

    @property
    def name(self) -> str:
        """The call as its handle is printed."""
        return f"{self.task}[{self.id}]"

    @property
    def summary(self) -> str:
        """One line."""
        return f"{self.name} raised {self.type.rpartition(':')[2]}: {self.message}"


def _imported(name: str) -> type[Exception] | None:
    """The exception class called ``module:qualified name`` if it is imported here; runs no module's own code."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _arguments_of(error: BaseException) -> tuple[Any, ...]:
    """What pickle would make it of: that knows e.g. the file name of an ``OSError``, which is not in its ``args``."""
    with suppress(Exception):  # the code of whoever defined it
        made = error.__reduce__()
        if isinstance(made, tuple) and made[0] is type(error) and isinstance(made[1], tuple):
            return made[1]
    return error.args


def text_of(error: BaseException, form: Callable[[BaseException], str] = str) -> str:
    """What `error` says, as text that can be sent, even where its ``str`` fails or has a file name that is no text.

    Of an enormous text the beginning: it may repeat what somebody else wrote.
    """
    try:
        return _sendable(form(error)[:LONGEST_TEXT])
    except Exception:  # noqa: BLE001 - the code of whoever defined it
        return f"{type(error).__name__} (its text cannot be made)"


def traceback_of(error: BaseException) -> str:
    """The traceback of `error` as text that can be sent."""
    return _sendable("".join(traceback.format_exception(error)))


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class Progress(NamedTuple):
    """How far a task says that it is."""

    done: int | float
    total: int | float | None = None
    """None: not known."""
    message: str = ""

    @classmethod
    def of(cls, done: float, total: float | None, message: str) -> Progress:
        """The same as data.

        Raises:
            ValueError: `done` or `total` is no number, or without end.
        """
        for number in (done, total):
            if number is not None and not (isinstance(number, (int, float)) and math.isfinite(number)):
                raise ValueError(f"progress(done={done!r}, total={total!r}): give numbers; leave out an unknown total")
        return cls(done, total, _sendable(message[:LONGEST_NOTE]))


class CustomState(NamedTuple):
    """A state that a task gives itself."""

    name: str
    meta: msgspec.Raw

    @classmethod
    def of(cls, name: str, meta: object) -> CustomState:
        """The same as data.

        Raises:
            ValueError: `name` is no text, too long, or one of `ENDED`; or `meta` is too large.
            TypeError: `meta` is no data.
        """
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NOTE or name in ENDED:
            raise ValueError(f"update_state(state={name!r}): give a name; how a task ends, its worker says")
        encoded = encode(meta, what="meta")
        if len(encoded) > LONGEST_TEXT:
            raise ValueError(f"update_state(meta=...) has {len(encoded):,} bytes, at most {LONGEST_TEXT:,}")
        return cls(name, msgspec.Raw(encoded))


class Extended(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of the call itself with ``result_extended=True``."""

    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    worker: str | None = None
    """Host and process id."""
    queue: str | None = None
    """Full name of the topic of its task's calls."""
    stamps: dict[str, Any] | None = None


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one task ended; or, if its state is not one of `ENDED`, how far it is."""

    id: str
    task: str
    state: str
    """One of `State`, or its own (`CustomState`)."""
    value: msgspec.Raw = msgspec.Raw(b"null")
    error: RemoteError | None = None
    retries: int = 0
    finished_at: float = 0.0
    """Seconds since the epoch."""
    progress: Progress | None = None
    """What the task reported last."""
    at: float = 0.0
    """When this was so, if the task has not ended; seconds since the epoch."""
    due: float = 0.0
    """When the next attempt begins at the earliest, if the state is ``RETRY``; seconds since the epoch."""
    meta: Any = None
    """What goes with the state, if it has not ended."""
    extended: Extended | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Heard(NamedTuple):
    """What was pushed to this process of one call."""

    newest: Result | None
    complete: bool
    """Whether it listened before the call was made, so that nothing was missed but by accident."""


def newer(one: Result | None, other: Result | None) -> Result | None:
    """Which of two is to be believed, whichever arrived first: an end, a later attempt, a later instant."""
    if one is None or other is None:
        return one or other
    return max(other, one, key=lambda result: (result.ended, result.retries, result.at))


@dataclass(frozen=True, slots=True)
class PackedResult:
    """A `Result` as it is stored, and who is told."""

    id: str
    value: bytes
    """The result as JSON; or in its place what `headers` have a claim to."""
    headers: Mapping[str, str]
    reply_to: str | None
    state: str


class Reported(NamedTuple):
    """How far a task is, and who is told."""

    state: Result
    reply_to: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """What a store is told of its app."""

    broker: Broker
    topic: str
    """Full name of the topic of results, after which those of the callers are named too."""
    expires: float = 86_400.0
    """Seconds that a result is kept."""
    claims: Claims = field(default_factory=Claims)
    clock: Clock = field(default_factory=SystemClock)
    reply: str | None = None
    """Ends the name of the topic on which this process hears of results; None: it has one of its own."""


class ResultBackend(Protocol):
    """Where an app keeps its results, as `PulsarTasks` takes it: each process opens its own store there."""

    def open(self, place: Place) -> ResultStore: ...


class ResultStore(ABC):
    """Keeps results, and wakes who waits for one."""

    @property
    @abstractmethod
    def reply_to(self) -> str:
        """The topic on which this process hears of results; travels with each call."""

    @abstractmethod
    def pack(self, result: Result, *, reply_to: str | None) -> PackedResult:
        """What `store` takes to keep `result` and tell the caller that listens at `reply_to`.

        Raises:
            MessageTooLargeError: it can never be kept.
            PulsarTasksError: what is too large for a message was not taken by the blob store.
        """

    @abstractmethod
    def store(self, results: Sequence[PackedResult]) -> Sequence[PulsarTasksError | None]:
        """Keep all, confirmed when this returns, and tell their callers; for each None, or what went wrong."""

    def keep(self, result: Result, *, reply_to: str | None) -> None:
        """Keep one, confirmed when this returns; raises what went wrong."""
        [error] = self.store([self.pack(result, reply_to=reply_to)])
        if error is not None:
            raise error

    @abstractmethod
    def report(self, states: Sequence[Reported]) -> None:
        """Keep how far tasks are that have not ended, and tell their callers, as well as it goes at once.

        Raises:
            PulsarTasksError: they are not kept.
        """

    @abstractmethod
    def find(self, task_id: str) -> Result | None:
        """The result as it is kept now; None if there is none (yet, or any more)."""

    @abstractmethod
    def find_state(self, task_id: str) -> Result | None:
        """How far a task is that has no result, as it is kept now; None if it told nothing."""

    @abstractmethod
    def heard(self, task_id: str) -> Heard:
        """What was pushed here of a call that this process made; costs no look at what is kept."""

    @abstractmethod
    def wait(self, task_id: str, timeout: float | None, *, pushed: bool) -> Result | None:
        """The result as soon as it is there; None after `timeout` seconds (None: wait without end).

        `pushed` says that this process made the call, so that the worker tells it; otherwise what is kept is followed.
        """

    @abstractmethod
    def watch(self, task_id: str, timeout: float | None, tell: Callable[[Result], object]) -> Result | None:
        """`wait` for a call that this process made; `tell` is told how far it is, as soon as that is pushed."""

    def each(self, task_ids: Collection[str], timeout: float | None, *, pushed: bool) -> Iterator[Result]:
        """The results of several calls as they arrive, each once; ends with the last of them, or after `timeout`
        seconds (None: without end). Here in the order of the ids, for stores that have nothing better.

        `pushed` as in `wait`.
        """
        until = float("inf") if timeout is None else time.monotonic() + timeout
        for task_id in task_ids:
            left = None if timeout is None else max(0.0, until - time.monotonic())
            result = self.wait(task_id, left, pushed=pushed)
            if result is None:
                return
            yield result

    async def wait_async(self, task_id: str, timeout: float | None, *, pushed: bool) -> Result | None:
        """`wait` from asyncio, whose loop goes on; here on a thread, for stores that have nothing better."""
        return await asyncio.to_thread(self.wait, task_id, timeout, pushed=pushed)

    @abstractmethod
    def forget(self, task_id: str) -> None:
        """Have no look-up find this result any more, nor what is stored of the task from now on; confirmed when this
        returns.
        """

    @abstractmethod
    def expire(self) -> None:
        """Let go of what is older than ``result_expires``; workers call it now and then."""

    @abstractmethod
    def close(self) -> None: ...
