"""A task: a function, and how it is called through a topic."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import islice
from typing import Any, Concatenate, Final, Generic, Protocol, overload

import msgspec
from typing_extensions import ParamSpec, Self, TypeVar, Unpack

from pulsartasks.batch import hints_of_each
from pulsartasks.brokers.base import confirmed
from pulsartasks.canvas import CallKeywords, Draft, Host, as_args, as_arguments, as_links, chunks, plan_links
from pulsartasks.clock import Clock
from pulsartasks.context import TaskContext
from pulsartasks.errback import one_argument
from pulsartasks.errors import (
    BrokerError,
    CallError,
    ConfigurationError,
    InvalidArgumentsError,
    PulsarTasksError,
)
from pulsartasks.handlers import Handlers, overridden
from pulsartasks.message import (
    ETA,
    EXPIRES,
    IGNORE_RESULT,
    REPLY_TO,
    TASK,
    TASK_ID,
    UNIQUE,
    Publication,
    Request,
    milliseconds,
    new_task_id,
)
from pulsartasks.options import TaskOptions
from pulsartasks.publishing import Block, raise_unconfirmed
from pulsartasks.result import AsyncResult, GroupResult
from pulsartasks.results.base import ResultStore
from pulsartasks.schemas import are_apart
from pulsartasks.serializers import CallCodec, EachCodec, PayloadCodec, is_data, type_hints
from pulsartasks.signature import DEFAULTS, CallOptions, Signature, key_by
from pulsartasks.steps import STARMAP, Step, messages
from pulsartasks.topic import Topic
from pulsartasks.topics import (
    call_topic,
    dead_letter_topic,
    delayed_topic,
    durable_topic,
    qualify,
    retry_topic,
    volatile_topic,
)
from pulsartasks.unique import Record, UniqueKeys

PORTION = 5_000
"""Calls that `Task.map` makes ready before it sends them."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
C = TypeVar("C", default=R)
"""What the plain function gives: for an ``async def`` a coroutine, whose result is R."""


class Decorator(Protocol):
    """What ``@app.task(...)`` does to a function, for type checkers."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class BindingDecorator(Protocol):
    """The same with ``bind=True``: callers do not give the context."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskContext, P], Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], R], /) -> Task[P, R]: ...


class TaskHost(Host, Protocol):
    """What a task needs of its app."""

    name: str
    clock: Clock

    def qualify(self, name: str) -> str: ...
    def revoke(self, task_id: str, *, terminate: bool = False, eta: datetime | None = None) -> None: ...
    @property
    def results(self) -> ResultStore: ...
    @property
    def unique(self) -> UniqueKeys: ...
    def publish_many(self, publications: Sequence[Publication]) -> list[str | PulsarTasksError]: ...


@dataclass(frozen=True, slots=True)
class TaskTopics:
    """The full names of a task's topics."""

    work: str
    """The event topic it handles, or its call topic."""
    calls: str
    """Where `.delay()` sends."""
    retry: str
    delayed: str
    dead_letter: str | None
    """None: what is given up is dropped."""


class Injected:
    """Stands where a worker puts a resource, in a function that was called directly."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no {name!r}: this is a resource, which only a worker fills in; give one yourself here")

    def __repr__(self) -> str:
        return "INJECTED"


INJECTED: Final[Any] = Injected()
"""The default of a parameter that is a resource, so that type checkers know that callers leave it out."""


class Task(Handlers, Generic[P, R, C]):
    """A function that can be called here, or through its topic; made by ``@app.task``.

    A class of one's own (``base=``) has the options of its tasks as attributes, handlers, and whatever else they share:
    there is one instance for each task in a process, made without arguments, and its functions with ``bind=True`` find
    it behind their `TaskContext`.
    """

    OperationalError = BrokerError
    """What a call raises when the broker does not take it, under Celery's name."""

    @classmethod
    def define(
        cls, host: TaskHost, function: Callable[..., Any], options: TaskOptions, resources: Mapping[type, object]
    ) -> Self:
        """The task that `function` is; called by ``@app.task``."""
        task = cls()
        task._define(host, function, options, resources)
        return task

    def _define(
        self, host: TaskHost, function: Callable[..., Any], options: TaskOptions, resources: Mapping[type, object]
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function = one_argument(function)
        self.options = options
        self.retry_policy = options.retry_policy
        self.name = options.name or function.__name__
        self.subscription = options.subscription or host.name
        self.call_topic = _call_topic(self.name, options, app=host.name)
        self.injected = _injected(function, resources)
        self._hints = type_hints(function) if options.batch is None else hints_of_each(function, self.injected)
        self.codec = CallCodec(function, skip_first=options.bind, injected=self.injected, hints=self._hints)
        self.result_codec: PayloadCodec[R] = PayloadCodec(self._hints.get("return", Any))
        self.event_topic: Topic[Any] | None = options.topic if isinstance(options.topic, Topic) else None
        self.time_limit = options.time_limit if options.batch is None else None
        """Of each message's run; those of a batch have one in common, once it is complete."""
        self.is_async = inspect.iscoroutinefunction(function)
        self._host = host
        self.call_options = DEFAULTS
        self.starting = overridden(self, "before_start")
        self._check_function()
        self._check_annotations()

    @cached_property
    def topics(self) -> TaskTopics:
        event = self.event_topic
        work = event.full_name if event is not None else self._host.qualify(self.options.topic or self.name)
        stored = work
        if not self.options.durable:
            work, stored = volatile_topic(work), durable_topic(work)
        dead_letter = self.options.dead_letter
        return TaskTopics(
            work=work,
            calls=work if event is None else call_topic(work, self.subscription),
            retry=retry_topic(stored, self.subscription),
            delayed=delayed_topic(stored, self.subscription),
            dead_letter=self._host.qualify(dead_letter)
            if isinstance(dead_letter, str)
            else (dead_letter_topic(stored, self.subscription) if dead_letter else None),
        )

    def forget_names(self) -> None:
        """As those of topics."""
        vars(self).pop("topics", None)
        vars(self).pop("each", None)  # it has the same

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Run the function here and now, without any broker."""
        context = [TaskContext(Request(task=self.name), self.retry_policy, task=self)] if self.options.bind else []
        return self.function(*context, *args, **kwargs)  # type: ignore[no-any-return]

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call; returns once the broker has confirmed it, so that it cannot be lost silently.

        Raises:
            InvalidArgumentsError: the arguments do not fit the function, or are not data. Nothing was sent.
            MessageTooLargeError: they are larger than the broker takes. Nothing was sent.
            PublishTimeoutError: not confirmed in time; the call may or may not have been stored.
            BrokerError: the broker did not take it.
        """
        return self._send(args, kwargs, self.call_options)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> AsyncResult[R]:
        """Like `delay`, with options for this call as in Celery: countdown, eta, expires, key, task_id, headers, link,
        link_error (see `CallOptions`).

        ``countdown`` (seconds) and ``eta`` are held by the broker and never early.
        """
        return self._send(*as_arguments(args, kwargs), self.call_options.changed(options))

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """`delay` from asyncio, whose loop goes on. Whoever is cancelled does not know whether it was sent."""
        if self.call_options.link or self.call_options.link_error:
            return await Signature(self, args, kwargs, self.call_options).adelay()
        publication = self._compose(args, kwargs, self.call_options)
        if UNIQUE in publication.properties:
            return await self._host.publishing.aside(self._send_unique, publication)
        return self._sent(publication, await self._host.publishing.asend(publication))

    def map(
        self, items: Iterable[Sequence[Any]], *, progress: Callable[[int], object] = lambda _: None
    ) -> GroupResult[R]:
        """Send a call for each of `items`; many are on their way at once.

        With ``batching=True`` Pulsar packs them; else each goes to whoever is free. In a block of ``app.publishing()``
        they leave with it.

        Args:
            items: the positional arguments of each.
            progress: called with the number that were confirmed so far, after each 5,000 and at the end.

        Raises:
            UnconfirmedError: some were not confirmed; the others stay sent. Its `calls` are those of all `items`.
            InvalidArgumentsError: an item does not fit. It says how many before it were sent.
        """
        calls: list[AsyncResult[R]] = []
        failures: dict[str, PulsarTasksError] = {}
        left = iter(items)
        while portion := list(islice(left, PORTION)):
            publications = self._compose_all(portion, sent=len(calls))
            failures |= self._host.publishing.send_many(publications)
            calls += [self._sent(publication, "") for publication in publications]
            progress(len(calls) - len(failures))
        together = GroupResult(calls)
        raise_unconfirmed(failures, len(calls), calls=together)
        return together

    def _compose_all(self, items: Sequence[Sequence[Any]], *, sent: int) -> list[Publication]:
        publications = []
        for args in items:
            try:
                publications.append(self.compose(as_args(args), {}, self.call_options))
            except (InvalidArgumentsError, TypeError) as error:
                raise InvalidArgumentsError(
                    f"item {sent + len(publications)}, {args!r:.100}: {error}; the {sent} before it were sent"
                ) from error
        return publications

    def using(self, **options: Unpack[CallKeywords]) -> Task[P, R, C]:
        """The same task whose calls have these options (see `CallOptions`); still typed.

        ``add.using(countdown=10).delay(2, 3)``
        """
        other = copy.copy(self)
        other.call_options = self.call_options.changed(options)
        return other

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """The call as a value: to be sent later, or as a step of a canvas, which gives it its first argument."""
        return Signature(self, args, kwargs, self.call_options)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """The same with arguments that stay as they are, whatever comes before it in a canvas."""
        return Signature(self, args, kwargs, self.call_options, immutable=True)

    def signature(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Unpack[CallKeywords],
    ) -> Signature[R]:
        """`s` or `si` with options for the call, as in Celery."""
        return Signature(self, *as_arguments(args, kwargs), self.call_options.changed(options), immutable=immutable)

    def starmap(self, items: Iterable[Sequence[Any]]) -> Signature[list[R]]:
        """One call that calls the task for each of `items` (its positional arguments), in one message and one after
        the other; its result is the list of theirs.

        It succeeds, fails, is retried and runs again as a whole. Nothing is put before its arguments in a canvas.
        """
        return Signature(self.each, (list(items),), {}, self.call_options, immutable=True)

    def chunks(self, items: Iterable[Sequence[Any]], size: int) -> chunks[list[R]]:
        """A group of `starmap` of at most `size` of `items` each.

        Raises:
            InvalidArgumentsError: `size` is less than 1.
        """
        if size < 1:
            raise InvalidArgumentsError(f"chunks of {self.name} have a size of at least 1, not {size}")
        left = iter(items)
        return chunks(self.starmap(chunk) for chunk in iter(lambda: list(islice(left, size)), []))

    @cached_property
    def each(self) -> Task[[list[Sequence[Any]]], list[R]]:
        """The task that calls this one for each of a list of arguments; see `starmap`."""
        if self.options.unique_key is not None:
            raise self._unique_elsewhere()
        if self.options.batch is not None:
            raise InvalidArgumentsError(f"{self.name} takes batches of its calls already; call it with map")
        _ = self.topics  # which are the same
        other: Task[Any, Any] = copy.copy(self)
        other.name = f"{self.name}{STARMAP}"
        other.function = _for_each(self.function, is_async=self.is_async)
        other.codec = EachCodec(self.codec)
        other.result_codec = PayloadCodec(list[type_hints(self.function).get("return", Any)])  # type: ignore[misc]
        other.options = replace(self.options, key=None, unique_key=None)
        other.event_topic = other.starting = None
        return other

    def compose(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> Publication:
        """The message of one call; see `delay`.

        Raises:
            InvalidArgumentsError: the arguments do not fit; or it is a unique call, which only `delay` can send.
        """
        publication = self._compose(args, kwargs, options)
        if UNIQUE in publication.properties:
            raise self._unique_elsewhere()
        return publication

    def _compose(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> Publication:
        if options is not DEFAULTS:
            options.check()
        now = self._host.clock.now()
        if options.link or options.link_error:
            step, _ = self.step(args, kwargs, options, Draft(self._host), preceded=False)
            [publication] = messages([step], None, now=now)
            return publication
        due, expiry = options.due(now), options.expiry(now)
        if due is not None:
            self._check_storable()
        value = self.codec.encode(args, kwargs)  # before a key is taken from what does not fit
        if expiry is None and self.options.expires is not None:
            expiry = now + self.options.expires
        properties = self._headers(options, now)
        if due is not None:
            properties[ETA] = milliseconds(due)
        if expiry is not None:
            properties[EXPIRES] = str(int(expiry * 1000))
        if self.options.unique_key is not None:
            unique = key_by(self.options.unique_key, args, kwargs, of=self.name, option="unique_key")
            properties.update({} if unique is None else {UNIQUE: unique})
        return Publication(
            topic=self.topics.calls if due is None else self.topics.delayed,
            value=value,
            key=self.key_of(args, kwargs) if options.key is None else options.key,
            properties=properties,
            deliver_at=due,
        )

    def hosts(self) -> Iterator[Host]:
        """Its app, for a canvas."""
        yield self._host

    def step(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions, draft: Draft, *, preceded: bool
    ) -> tuple[Step, AsyncResult[R]]:
        """A call of a canvas with an id of its own, and its handle; if it is `preceded`, its first argument is missing.

        Raises:
            InvalidArgumentsError: as `delay`.
        """
        if self.options.unique_key is not None:
            raise self._unique_elsewhere()
        options.check()
        now = self._host.clock.now()
        due = options.due(now)
        if due is not None:
            self._check_storable()
        value = self.codec.encode_partial(args, kwargs) if preceded else self.codec.encode(args, kwargs)
        call = msgspec.json.decode(value, type=_RawCall)
        keyed = preceded and options.key is None and self._has_key
        links, children = plan_links(as_links(options.link), draft)
        errbacks, _ = plan_links(as_links(options.link_error), draft)
        expires = self.options.expires if options.expires is None else options.expires
        headers = self._headers(options, now)
        if isinstance(expires, datetime):
            headers[EXPIRES] = str(int(expires.timestamp() * 1000))
        step = Step(
            topic=self.topics.calls if due is None else self.topics.delayed,
            headers=headers,
            app=self._host.name,
            args=call.args,
            kwargs=call.kwargs,
            key=options.key if options.key is not None or keyed else self.key_of(args, kwargs),
            keyed=keyed,
            countdown=_seconds(options.countdown),
            eta=None if options.eta is None else options.eta.timestamp(),
            expires=None if isinstance(expires, datetime) else _seconds(expires),
            links=links,
            errbacks=errbacks,
        )
        draft.add(self._host, step.topic, preceded=preceded)
        handle = self._handle(headers, sent_here=True, eta=due, block=self._host.publishing.block)
        handle.children += children
        return step, handle

    def result(self, task_id: str) -> AsyncResult[R]:
        """The handle of a call that was sent elsewhere, or earlier.

        Raises:
            InvalidArgumentsError: `task_id` is no text.
        """
        if not isinstance(task_id, str):
            raise InvalidArgumentsError(f"task_id must be text, not {task_id!r}")
        ignored = self.call_options.ignore_result
        said = {} if ignored is None else {IGNORE_RESULT: "1" if ignored else "0"}
        return self._handle({TASK_ID: task_id, **said}, sent_here=False)

    def _send(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> AsyncResult[R]:
        if options.link or options.link_error:
            return Signature(self, args, kwargs, options).apply_async()
        publication = self._compose(args, kwargs, options)
        if UNIQUE in publication.properties:
            return self._send_unique(publication)
        return self._sent(publication, self._host.publishing.send(publication))

    def _send_unique(self, publication: Publication) -> AsyncResult[R]:
        """Send it unless another call has its key, whose handle is given then."""
        host, key, task_id = self._host, publication.properties[UNIQUE], publication.properties[TASK_ID]
        if host.publishing.block is not None:
            raise self._unique_elsewhere()
        claim = Record("claim", self.name, key, task_id, self.options.unique_for)
        holder = host.unique.claim(claim)
        if holder != claim:
            return self._handle({TASK_ID: holder.id}, sent_here=False)
        outcome, _ = host.publish_many([publication, host.unique.sent(claim)])
        if isinstance(outcome, CallError):
            with suppress(PulsarTasksError):  # else the claim is over in a minute, since its call was not sent
                host.unique.release(self.name, key, task_id)
        return self._sent(publication, confirmed(outcome))

    def _unique_elsewhere(self) -> InvalidArgumentsError:
        return InvalidArgumentsError(
            f"{self.name} has unique_key, so whether a call is sent is decided at once: use delay(), adelay() or "
            "apply_async(), outside app.publishing(), a canvas, a schedule or an outbox"
        )

    def _sent(self, publication: Publication, message_id: str) -> AsyncResult[R]:
        block = None if message_id else self._host.publishing.block
        return self._handle(publication.properties, sent_here=True, eta=publication.deliver_at, block=block)

    def _handle(
        self, headers: Mapping[str, str], *, sent_here: bool, eta: float | None = None, block: Block | None = None
    ) -> AsyncResult[R]:
        task_id = headers[TASK_ID]
        ignored = self.ignores_result(headers)
        errors_alone = ignored and self.options.store_errors_even_if_ignored
        call: AsyncResult[R] = AsyncResult(
            task_id,
            self._host,
            self.result_codec,
            task=self.name,
            kept=not ignored or errors_alone,
            sent_here=sent_here,
        )
        call.block, call.due = block, eta
        if not self.options.durable:
            call.doubt = "durable=False"
        elif errors_alone:
            call.doubt = "ignore_result=True"
        return call

    def key_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """What order is kept by in a call with these arguments.

        Raises:
            InvalidArgumentsError: ``key=`` does not take them, or gave neither text nor None.
        """
        if self.options.key is not None:
            return key_by(self.options.key, args, kwargs, of=self.name)
        if self.event_topic is not None and self.event_topic.key is not None and args:
            return key_by(self.event_topic.key, args[:1], {}, of=self.name)
        return None

    @property
    def _has_key(self) -> bool:
        return self.options.key is not None or (self.event_topic is not None and self.event_topic.key is not None)

    def _headers(self, options: CallOptions, now: float) -> dict[str, str]:
        properties = {**options.headers, TASK: self.name, TASK_ID: options.task_id or new_task_id(now)}
        if options.ignore_result is not None:
            properties[IGNORE_RESULT] = "1" if options.ignore_result else "0"
        if not self.ignores_result(properties) or self.options.store_errors_even_if_ignored:
            properties[REPLY_TO] = self._host.results.reply_to
        return properties

    def ignores_result(self, headers: Mapping[str, str]) -> bool:
        """Whether no result is kept of a call with these headers, or that of a failure alone."""
        said = headers.get(IGNORE_RESULT)
        return self.options.ignore_result if said is None else said == "1"

    def _check_storable(self) -> None:
        if not self.options.durable:
            raise InvalidArgumentsError(f"{self.name} has durable=False: nothing holds a call of it until it is due")

    def _check_function(self) -> None:
        parameters = inspect.signature(self.function).parameters
        first = next(iter(parameters.values()), None)
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ConfigurationError(f"task {self.name!r}: a call of what yields runs nothing; have it return a list")
        if self.options.bind and (first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD)):
            raise ConfigurationError(
                f"task {self.name!r}: bind=True gives it the TaskContext as its first argument, and it takes none; "
                "write self as the first parameter"
            )
        if not self.options.bind and first is not None and first.name == "self":
            raise ConfigurationError(f"task {self.name!r}: its first parameter is self; write @app.task(bind=True)")
        if self.event_topic is not None:
            _ = self.codec.payload
            payload = next(name for name in [*parameters][self.options.bind :] if name not in self.injected)
            self._check_payload(self.event_topic, payload)

    def _check_payload(self, topic: Topic[Any], parameter: str) -> None:
        kind = self._hints.get(parameter, Any)
        if are_apart(topic.schema, kind):
            raise ConfigurationError(
                f"task {self.name!r}: parameter {parameter!r} has the type {kind!r}, but the events of {topic.name} "
                f"are {topic.schema!r}"
            )

    def _check_annotations(self) -> None:
        for name, parameter in inspect.signature(self.function).parameters.items():
            kind = self._hints.get(name, Any)
            if kind is TaskContext or name in self.injected:
                continue
            if parameter.default is INJECTED:
                raise ConfigurationError(
                    f"task {self.name!r}: parameter {name!r} is INJECTED, but nothing yields {kind!r}; define an "
                    "@app.resource for it above the task"
                )
            if not is_data(kind):
                raise ConfigurationError(
                    f"task {self.name!r}: parameter {name!r} has the type {kind!r}, which is neither data nor a "
                    "resource; use a dataclass or msgspec.Struct, or define an @app.resource for it above the task"
                )

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


def options_of(keywords: Mapping[str, Any], default: type[Task[..., Any, Any]] | None) -> dict[str, Any]:
    """The options in `keywords`, and those that the class which is their ``base``, else `default`, has as attributes.

    Raises:
        ConfigurationError: that is no class of tasks.
    """
    batch = keywords.get("batch") is not None
    base = keywords.get("base") or (None if batch else default)
    if base is None:
        return dict(keywords)
    if batch or not (isinstance(base, type) and issubclass(base, Task)):
        raise ConfigurationError(f"base={base!r}: give a class that inherits from Task, and no batch")
    inherited = {
        name: value
        for kind in reversed(base.__mro__[: base.__mro__.index(Task)])
        for name, value in vars(kind).items()
        if name in TaskOptions.__dataclass_fields__
    }
    return {**inherited, **keywords, "base": base}


def _for_each(function: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    """Calls `function` for each of a list; a context before it and resources behind it are handed on."""

    def starmap(*args: Any, **injected: Any) -> list[Any]:
        *context, items = args
        return [function(*context, *each, **injected) for each in items]

    async def starmap_async(*args: Any, **injected: Any) -> list[Any]:
        *context, items = args
        return [await function(*context, *each, **injected) for each in items]

    return starmap_async if is_async else starmap


class _RawCall(msgspec.Struct):
    args: list[msgspec.Raw]
    kwargs: dict[str, msgspec.Raw]


def _seconds(duration: float | timedelta | None) -> float | None:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


class BatchTask(Task[[T], R, Any]):
    """A task with ``batch=``: each of its calls gives one value, and a run of its function takes many of them."""

    def __call__(self, values: list[T], /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Run the function here and now, with a batch and whatever resources it takes."""
        return self.function(values, *args, **kwargs)


class BatchDecorator(Protocol):
    """What ``@app.task(batch=...)`` gives: it knows a call by the list that the function takes, its result likewise."""

    @overload
    def __call__(self, function: Callable[Concatenate[list[T], ...], None], /) -> BatchTask[T, None]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[list[T], ...], Coroutine[Any, Any, None]], /
    ) -> BatchTask[T, None]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[list[T], ...], Sequence[R | Exception]], /
    ) -> BatchTask[T, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[list[T], ...], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> BatchTask[T, R]: ...


def _call_topic(name: str, options: TaskOptions, *, app: str) -> str | None:
    """The call topic as it is called in the default namespace, to compare; None for the handler of an event topic.

    Raises:
        ConfigurationError: neither a name nor a topic was given, or the task's name cannot be a topic's.
    """
    if isinstance(options.topic, Topic):
        return None
    if options.topic is not None and not isinstance(options.topic, str):
        raise ConfigurationError(f"task {name!r}: topic must be a name or what app.topic() gave, not {options.topic!r}")
    return qualify(options.topic or name, app=app)


def _injected(function: Callable[..., Any], resources: Mapping[type, object]) -> dict[str, type]:
    """The parameters that the worker fills with resources, and their types."""
    return {
        name: kind
        for name, kind in type_hints(function).items()
        if name != "return" and isinstance(kind, type) and kind in resources
    }
