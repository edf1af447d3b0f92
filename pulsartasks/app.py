"""`PulsarTasks`: the tasks, topics and resources of one application, and its way to the broker."""

from __future__ import annotations

import atexit
import importlib
import inspect
import os
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any, Literal, TypeVar, get_args, get_origin, overload
from urllib.parse import urlsplit

from typing_extensions import ParamSpec, Unpack

from pulsartasks import plugins
from pulsartasks.batch import Batch
from pulsartasks.brokers.base import Broker, Claims, Reader, confirmed
from pulsartasks.canvas import CallKeywords
from pulsartasks.catalog import CHORD_PARTS, RESULTS, REVOCATIONS, UNIQUE_CLAIMS, AppTopic, catalog
from pulsartasks.clock import Clock, FrozenClock, SystemClock
from pulsartasks.errors import ConfigurationError, PulsarTasksError
from pulsartasks.handlers import connect_handlers
from pulsartasks.message import Publication
from pulsartasks.middleware.base import Middleware, wrap_publish
from pulsartasks.options import PolicyKeywords, Start, TaskKeywords, TaskOptions, parse_policies
from pulsartasks.published import Testing
from pulsartasks.publishing import Publishing
from pulsartasks.result import AsyncResult
from pulsartasks.results.base import Place, ResultBackend, ResultStore
from pulsartasks.revocation import Notice
from pulsartasks.schedule import Entry, Missed, Publishable, Schedule, define
from pulsartasks.serializers import type_hints
from pulsartasks.shared import SharedTask
from pulsartasks.signals import Signals
from pulsartasks.signature import Signature
from pulsartasks.task import BatchDecorator, BatchTask, BindingDecorator, Decorator, Task, options_of
from pulsartasks.topic import Topic
from pulsartasks.topics import DEFAULT_NAMESPACE, check_namespace, qualify, short_name
from pulsartasks.unique import UniqueKeys

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

DEFAULT_BROKER = "local://"
ASYNC_THREADS = 64
"""On which calls from asyncio wait for the broker; started as they are needed."""
_OF_THE_CONSUMER = (
    "mode",
    "concurrency",
    "prefetch",
    "rate_limit",
    "start",
    "batching",
    "batch",
    "compression",
    "durable",
)
_MODULES = {"pulsar+ssl": "pulsar", "memory": "local"}


class PulsarTasks:
    """An application.

    Nothing is read or opened before it is needed: importing a module with tasks in it touches no broker and no
        environment.

    Args:
        name: prefix of its topics, and the default subscription.
        broker: ``local:///path/broker.db``, ``memory://``, ``pulsar://host:6650`` or ``pulsar+ssl://host:6651``;
            default: the environment variable ``PULSARTASKS_BROKER``, else ``local://`` (``.pulsartasks/broker.db``
                here).
        namespace: TENANT/NAMESPACE of topics given by a short name; default: ``PULSARTASKS_NAMESPACE``, else
            ``public/default``.
        results: where results are kept; default: on a topic of the broker. A database:
            ``sqlalchemy+postgresql+psycopg://user@host/database``, ``sqlalchemy+sqlite:///path/results.db``, or
            `pulsartasks.results.sqlalchemy.SQLAlchemyResults`.
        result_expires: seconds that results are kept; default: a day.
        result_extended: keep the call's arguments, worker and topic with its result.
        middleware: instances of `Middleware`, which go around every publish and every attempt, the first one outermost.
        task_cls: the class of its tasks that have no ``base=`` of their own.
        claim_check: a `ClaimCheck`: what is large travels through its blob store; without one it is refused.

    Raises:
        ConfigurationError: one of these is not what it should be.
    """

    def __init__(  # noqa: PLR0913 - a setting of the app each, all with a default
        self,
        name: str,
        broker: str | None = None,
        *,
        namespace: str | None = None,
        results: str | ResultBackend = "topic",
        result_expires: float = 86_400.0,
        result_extended: bool = False,
        middleware: Sequence[Middleware] = (),
        claim_check: Claims | None = None,
        task_cls: type[Task[..., Any, Any]] | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise ConfigurationError(f"{name!r} is not an app's name; write e.g. PulsarTasks('shop')")
        qualify(name, app=name)  # refuses what could not begin a topic's name
        self.name = name
        self.result_expires = result_expires
        self.result_extended = result_extended
        self.middleware = _layers(middleware, app=name)
        if not isinstance(claim_check, (Claims, type(None))):
            raise ConfigurationError(f"app {name!r}: write claim_check=ClaimCheck({claim_check!r})")
        self.claims = claim_check or Claims()
        self.clock: Clock = SystemClock()
        """Where it takes the time from; a test may hold it."""
        if not isinstance(results, str) and not hasattr(results, "open"):
            raise ConfigurationError(f"app {name!r}: results= is a URL or what has open(place), not {results!r}")
        self.result_backend = results
        self._task_class = task_cls
        self._broker_url = broker
        self._namespace = namespace
        self._tasks: dict[str, Task[..., Any]] = {}
        self._elsewhere: dict[tuple[str, str | None, str | None], Task[..., Any]] = {}
        """Tasks that are called by their names only, by name, topic and subscription."""
        self._topics: dict[str, Topic[Any]] = {}
        self._resources: dict[type, Callable[[], Iterator[Any]]] = {}
        self._scheduled: dict[str, Entry] = {}
        self._catalog: tuple[object, Mapping[str, AppTopic]] = (None, {})
        self._lock = threading.RLock()
        self._connection: _Connection | None = None
        self.signals = Signals()
        self.publishing = Publishing(self._send, lambda: self._connect().threads, alone=bool(middleware))

    # Definition

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, *, bind: Literal[True], **options: Unpack[TaskKeywords]) -> BindingDecorator: ...
    @overload
    def task(self, *, bind: Literal[False] = False, **options: Unpack[TaskKeywords]) -> Decorator: ...
    @overload
    def task(self, *, batch: Batch, **options: Unpack[TaskKeywords]) -> BatchDecorator: ...
    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:  # type: ignore[misc]
        """Make a function a task: ``@app.task`` or ``@app.task(option=...)``; `TaskOptions` documents the options.

        Raises:
            ConfigurationError: an option is unknown or wrong, the name is taken, or the topic cannot be used that way.
        """
        if function is not None:
            if not callable(function):
                raise ConfigurationError(f"@app.task({function!r}): its options have names; write name={function!r}")
            return self._add_task(function, options)
        return lambda function: self._add_task(function, options)

    def topic(
        self,
        name: str,
        *,
        schema: type[T],
        key: Callable[[T], str | None] | None = None,
        partitions: int = 0,
        subscriptions: Collection[str] = (),
        register: bool | None = None,
        **policies: Unpack[PolicyKeywords],
    ) -> Topic[T]:
        """An event topic: what is published to it reaches every subscription.

        Args:
            name: with a dot or as ``persistent://...`` taken as it is; else ``<app>.`` is put before it.
            schema: the payload's type: a msgspec Struct, dataclass, pydantic model, or plain data.
            key: gives what order is kept by, from the payload.
            partitions: how many the topic is made with; 0: it is not partitioned.
            subscriptions: exist before the first message does, from whichever process comes first.
            register: make the schema known to the broker with the first publish, so that a publisher whose type does
                not fit is refused. None: if the broker has words for it (`Topic.unregistered` says why not); True: or
                refuse the definition; False: never.
            policies: what ``pulsartasks topics apply`` sets on it; see `PolicyKeywords`.

        Raises:
            ConfigurationError: the name is malformed, or another topic of this app has it, or the schema cannot be
                registered and must, or a policy is unknown or wrong.
        """
        topic = Topic(self, name, schema=schema, key=key, partitions=partitions, subscriptions=subscriptions)
        topic.policies = parse_policies(policies, topic=name)
        if register is not False:
            topic.register(required=bool(register))
        self.add_topic(topic)
        return topic

    def include(self, *modules: str | ModuleType) -> None:
        """Import these modules, and take in the tasks that they have by `shared_task`; again does nothing.

        Define the resources that the tasks need above it.

        Raises:
            ConfigurationError: a module has no tasks for this app, or one whose name is taken.
        """
        for named in modules:
            module = importlib.import_module(named) if isinstance(named, str) else named
            shared = [value for value in vars(module).values() if isinstance(value, SharedTask)]
            for task in shared:
                if task.name not in self._tasks or self._tasks[task.name] is not task.members.get(self.name):
                    task.members[self.name] = self._join(task.name, task.function, task.options)
            if not shared and all(task.function.__module__ != module.__name__ for task in self._tasks.values()):
                raise ConfigurationError(
                    f"module {module.__name__!r} defines no task: neither @shared_task nor one of {self.name!r}"
                )

    def resource(self, factory: Callable[[], Iterator[T]]) -> Callable[[], Iterator[T]]:
        """Have a worker process set up something once, before its first message, and tear it down at its end.

        `factory` is a generator function that yields it; it is handed to every task parameter annotated with that
        type::

            @app.resource
            def engine() -> Iterator[Engine]:
                yield load_model()

        Raises:
            ConfigurationError: the return annotation does not say what is yielded, or another resource yields that
                type.
        """
        annotation = type_hints(factory).get("return")
        kind = (get_args(annotation) or (None,))[0] if get_origin(annotation) is not None else None
        if not inspect.isgeneratorfunction(inspect.unwrap(factory)):
            raise ConfigurationError(
                f"resource {factory.__name__!r}: have it yield its value, once, where it now returns it"
            )
        if not isinstance(kind, type):
            raise ConfigurationError(f"resource {factory.__name__!r}: annotate it with '-> Iterator[TheType]'")
        if kind in self._resources:
            raise ConfigurationError(
                f"resource {factory.__name__!r}: {kind.__name__} is already given by another resource"
            )
        self._resources[kind] = factory
        return factory

    def schedule(
        self, name: str, when: Schedule | float | timedelta, call: Publishable, *, missed: Missed = "skip"
    ) -> None:
        """Have ``pulsartasks beat`` send `call` again and again: ``app.schedule("nightly", crontab("0 3 * * *"),
        purge.s())``.

        Args:
            name: of this entry; under it is remembered, with the broker, when it last ran.
            when: a `crontab`, or an interval in seconds (see `every`).
            call: ``task.s(...)``, or ``topic.s(payload)`` for an event.
            missed: what becomes of ticks while no beat ran for more than two minutes: ``skip`` forgets them,
                ``run_once`` sends one for all of them as soon as one runs again.

        Raises:
            ConfigurationError: one of these is not what it should be, or the name is taken.
        """
        if name in self._scheduled:
            raise ConfigurationError(f"schedule {name!r} is defined twice; give one of them another name")
        self._scheduled[name] = define(name, when, call, missed)

    @property
    def scheduled(self) -> Mapping[str, Entry]:
        """All entries of the schedule by name."""
        return MappingProxyType(self._scheduled)

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """All tasks by name."""
        return MappingProxyType(self._tasks)

    @property
    def resources(self) -> Mapping[type, Callable[[], Iterator[Any]]]:
        """All resources by the type they yield."""
        return MappingProxyType(self._resources)

    @property
    def topics(self) -> Mapping[str, Topic[Any]]:
        """All event topics by their full names."""
        return {topic.full_name: topic for topic in self._topics.values()}

    def add_topic(self, topic: Topic[Any]) -> None:
        """Register `topic`; called by `topic` and `Topic.dead_letters`."""
        known = self._topics.setdefault(qualify(topic.name, app=self.name), topic)
        if known is not topic:
            raise ConfigurationError(f"topic {topic.name!r} is defined twice; define it once and import it")

    # Use

    @property
    def broker_url(self) -> str:
        """Where the broker is."""
        return self._broker_url or os.environ.get("PULSARTASKS_BROKER") or DEFAULT_BROKER

    @property
    def broker(self) -> Broker:
        """This process's connection, opened at first use."""
        return self._connect().broker

    @property
    def results(self) -> ResultStore:
        return self._connect().results

    @property
    def unique(self) -> UniqueKeys:
        """Which calls of tasks with ``unique_key`` wait or run."""
        return self._connect().unique

    def qualify(self, name: str) -> str:
        """The full name of the topic called `name` in this app."""
        namespace = self._namespace or os.environ.get("PULSARTASKS_NAMESPACE") or DEFAULT_NAMESPACE
        return qualify(name, app=self.name, namespace=check_namespace(namespace))

    @property
    def catalog(self) -> Mapping[str, AppTopic]:
        """All topics that this app knows of, by their full names."""
        # Made anew when something was defined since: each topic's first use asks, and definitions only become more.
        key = (self.own_topic(""), len(self._topics), len(self._tasks), len(self._elsewhere))
        if self._catalog[0] != key:
            tasks = [*self._tasks.values(), *self._elsewhere.values()]
            stored = self.result_backend == "topic"
            self._catalog = key, catalog(self.name, self.qualify, self._topics.values(), tasks, results=stored)
        return self._catalog[1]

    def own_topic(self, kind: str) -> str:
        """The topic by which the processes of this app tell each other things of one kind (see `catalog`)."""
        return self.qualify(f"{self.name}.{kind}")

    @property
    def revocations(self) -> str:
        """The topic of the notices by which workers know what was revoked."""
        return self.own_topic(REVOCATIONS)

    @property
    def chords(self) -> str:
        """The topic on which the parts of its chords say how they ended."""
        return self.own_topic(CHORD_PARTS)

    def signature(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        topic: str | None = None,
        subscription: str | None = None,
        immutable: bool = False,
        **options: Unpack[CallKeywords],
    ) -> Signature[Any]:
        """A call of the task of this name, whose code need not be here: its worker then checks the arguments.

        Of such a task say what its `topic` and `subscription` are where it has its own.
        """
        task = self._tasks.get(name) or self._elsewhere.get((name, topic, subscription))
        if task is None:
            known = TaskOptions.parse({"name": name, "topic": topic, "subscription": subscription}, task=name)
            task = self._elsewhere[name, topic, subscription] = Task.define(self, _anything, known, {})
        return task.signature(args, kwargs, immutable=immutable, **options)

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        topic: str | None = None,
        subscription: str | None = None,
        **options: Unpack[CallKeywords],
    ) -> AsyncResult[Any]:
        """Call the task of this name; see `signature`."""
        return self.signature(name, args, kwargs, topic=topic, subscription=subscription, **options).apply_async()

    def revoke(self, task_id: str, *, terminate: bool = False, eta: datetime | None = None) -> None:
        """Have the task of this id not run: neither a call that waits or is delayed, nor any further attempt.

        Returns once the notice is confirmed; all workers hear of it within a moment, those that start later too. When
        one of them receives the message it ends as ``REVOKED``, without a dead letter; an attempt that had begun by
        then goes on.

        Args:
            task_id: `AsyncResult.id` of the call; it need not have been made here.
            terminate: interrupt an attempt that runs, too: `Terminate` is raised in it between two steps of Python
                code; an ``async def`` task is cancelled. What it had half done stays so.
            eta: when the call is due, if that is more than a week away; a handle of a call made here knows it.
                Without it a notice is kept for a week.
        """
        instant = None if eta is None else eta.timestamp()
        notice = Notice.of(task_id, terminate=terminate, eta=instant, now=self.clock.now())
        self.publish(notice.publication(self.revocations))

    def publish(self, publication: Publication) -> str:
        """Send one message to its topic, whose subscriptions exist by then; gives its id once it is confirmed."""
        return confirmed(*self.publish_many([publication]))

    def publish_many(
        self, publications: Sequence[Publication], *, timeout: float = 30.0
    ) -> list[str | PulsarTasksError]:
        """Send all, pipelined, within `timeout` seconds; for each its message id once confirmed, or what went wrong."""
        return wrap_publish(self.middleware, partial(self._publish_many, timeout=timeout))(publications)

    def read(self, topic: str) -> Reader:
        """A reader of `topic` from now on."""
        return self.broker.read(topic)

    def declare(self, topic: str) -> None:
        """Make sure that `topic` exists with the subscriptions that this app knows of; asked of the broker once."""
        connection = self._connect()
        if topic in connection.declared:
            return
        known = self.catalog.get(topic) or AppTopic(topic, frozenset())
        for start in get_args(Start):
            names = [name for name, begins in known.subscriptions.items() if begins == start]
            if names or start == "earliest":
                connection.broker.declare(
                    topic,
                    names,
                    partitions=known.partitions,
                    start=start,
                    schema=known.schema,
                    packing=known.packing,
                )
        connection.declared.add(topic)

    def testing(
        self,
        *,
        topics: Collection[str] | None = None,
        concurrency: int = 2,
        clock: FrozenClock | None = None,
        eager: bool = False,
        beat: bool = False,
    ) -> AbstractContextManager[Testing]:
        """Run this app on a broker in memory and threads of this process until the block ends.

        Args:
            topics: only its tasks that consume these, or none, ``()``; what is sent to others stays there.
            concurrency: messages of a subscription that run at once.
            clock: stands still until `Testing.advance` moves it, and with it what is due: countdowns, retries, expiry.
            eager: no threads: a call has run when `delay` returns, retries included. Without a `clock` of yours,
                countdowns and delays take no time.
            beat: send what the schedule says when `clock` comes to it.
        """
        session: AbstractContextManager[Testing] = plugins.load("testing", "session").testing(
            self, topics=topics, concurrency=concurrency, clock=clock, eager=eager, beat=beat
        )
        return session

    @contextmanager
    def on_broker(self, url: str, *, clock: Clock | None = None) -> Iterator[Broker]:
        """Use another broker, and clock, until the block ends. What was open before is closed (see `close`), and so is
        what the block opens.
        """
        before = self._broker_url, self.clock
        self._broker_url, self.clock = url, clock or self.clock
        self.close()  # after that: a thread of a worker that ends may ask for the broker at any moment
        try:
            yield self.broker
        finally:
            self.close()
            self._broker_url, self.clock = before

    def close(self) -> None:
        """Close this process's connection, if any; the next use asks the environment anew and opens another."""
        with self._lock:
            connection, self._connection = self._connection, None
        for topic in self._topics.values():
            topic.forget_names()
        for task in (*self._tasks.values(), *self._elsewhere.values()):
            task.forget_names()
        if connection is not None and connection.pid == os.getpid():
            connection.close()

    # Internals

    def _add_task(self, function: Callable[..., Any], keywords: dict[str, Any]) -> Task[..., Any]:
        name = keywords.get("name") or function.__name__
        options = TaskOptions.parse(options_of(keywords, self._task_class), task=name)
        return self._join(name, function, options)

    def _join(self, name: str, function: Callable[..., Any], options: TaskOptions) -> Task[..., Any]:
        if name in self._tasks:
            raise ConfigurationError(f"task {name!r} is defined twice; give one of them another name=")
        kind: type[Task[..., Any, Any]] = options.base or (Task if options.batch is None else BatchTask)
        task = kind.define(self, function, options, self._resources)
        for other in self._tasks.values():
            _check_neighbours(task, other)
        self._tasks[name] = task
        connect_handlers(task, self.signals)
        return task

    def _send(self, publications: Sequence[Publication]) -> list[str | PulsarTasksError]:
        """What callers send: calls and events, but not what a worker sends on."""
        return self.signals.publish(publications, self.publish_many)

    def _publish_many(self, publications: Sequence[Publication], *, timeout: float) -> list[str | PulsarTasksError]:
        for topic in {publication.topic for publication in publications}:
            self.declare(topic)
        return self.claims.publish(publications, partial(self.broker.publish_many, timeout=timeout))

    def _connect(self) -> _Connection:
        connection = self._connection
        if connection is not None and connection.pid == os.getpid():
            return connection
        with self._lock:
            if self._connection is None or self._connection.pid != os.getpid():
                # A connection inherited through a fork is never touched, not even to free it: its threads are not here.
                self._connection = _Connection(self, inherited=self._connection)
            return self._connection


class _Connection:
    """What one process has open."""

    def __init__(self, app: PulsarTasks, *, inherited: _Connection | None) -> None:
        self.pid = os.getpid()
        self.declared: set[str] = set()
        self.broker = open_broker(app.broker_url)
        reply = os.environ.get("PULSARTASKS_REPLY_TO")
        self.results = open_results(
            app.result_backend,
            Place(self.broker, app.own_topic(RESULTS), app.result_expires, app.claims, app.clock, reply),
        )
        self.unique = UniqueKeys(
            self.broker,
            app.own_topic(UNIQUE_CLAIMS),
            longest=lambda: max(task.options.unique_for for task in app.tasks.values()),
            clock=app.clock,
        )
        self.threads = ThreadPoolExecutor(ASYNC_THREADS, "pulsartasks-async")
        self._inherited = inherited
        atexit.register(self.close)

    def close(self) -> None:
        atexit.unregister(self.close)
        if self.pid != os.getpid():
            return  # at the end of a forked child: what it inherited is its parent's
        self.threads.shutdown(wait=False)
        self.results.close()
        self.unique.close()
        self.broker.close()


def open_results(backend: str | ResultBackend, place: Place) -> ResultStore:
    """This process's store at `backend`, an URL whose scheme begins with the store's name and a plus, or an object.

    Raises:
        ConfigurationError: there is no such store, or its URL is wrong.
    """
    if not isinstance(backend, str):
        return backend.open(place)
    name, _, url = backend.partition("+")
    if "://" in name:
        raise ConfigurationError(f"{backend!r} is no place for results; did you mean 'sqlalchemy+{backend}'?")
    store: ResultStore = plugins.load("results", name).open_results(url, place)
    return store


def open_broker(url: str) -> Broker:
    """The broker at `url`.

    Raises:
        ConfigurationError: the URL's scheme is unknown, or its options are wrong.
    """
    scheme = urlsplit(url).scheme
    if "://" not in url or not scheme:
        raise ConfigurationError(f"{url!r} is not a broker URL; write local://, memory:// or pulsar://HOST:6650")
    broker: Broker = plugins.load("brokers", _MODULES.get(scheme, scheme)).open_broker(url)
    return broker


def _layers(middleware: Sequence[Middleware], *, app: str) -> tuple[Middleware, ...]:
    if not isinstance(middleware, Sequence):
        raise ConfigurationError(f"app {app!r}: middleware is a list, not {middleware!r}")
    for layer in middleware:
        if not isinstance(layer, Middleware):
            raise ConfigurationError(
                f"app {app!r}: middleware has {layer!r}; give instances of classes derived from "
                "pulsartasks.Middleware, e.g. middleware=[Times()]"
            )
    return tuple(middleware)


def _anything(*args: Any, **kwargs: Any) -> Any:
    """What a task takes whose code is not here."""
    raise PulsarTasksError(f"the code of this task is not here, so only a worker can run it with {args} and {kwargs}")


def _check_neighbours(task: Task[..., Any], other: Task[..., Any]) -> None:
    """Refuse two tasks that would eat each other's messages."""
    if (
        task.event_topic is not None
        and task.event_topic is other.event_topic
        and task.subscription == other.subscription
    ):
        raise ConfigurationError(
            f"task {task.name!r}: subscription {task.subscription!r} of {task.event_topic.name} is already handled by "
            f"{other.name!r}; each subscription has one handler, so give one of them another subscription="
        )
    if task.call_topic is not None and task.call_topic == other.call_topic:
        name = short_name(task.call_topic)
        if task.subscription != other.subscription:
            raise ConfigurationError(
                f"task {task.name!r}: the call topic {name!r} already has the subscription {other.subscription!r}; "
                "for several subscriptions define the topic with app.topic()"
            )
        # Whoever consumes the topic gets the messages of both, so what a consumer is made of must be the same.
        for option in _OF_THE_CONSUMER:
            mine, theirs = getattr(task.options, option), getattr(other.options, option)
            if mine != theirs:
                raise ConfigurationError(
                    f"task {task.name!r}: {other.name!r} uses topic {name!r} with {option}={theirs!r}, so must this one"
                )
