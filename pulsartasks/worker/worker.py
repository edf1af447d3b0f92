"""A worker within one process: its consumers, threads and resources."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Subscription
from pulsartasks.errors import ConfigurationError, PulsarTasksError
from pulsartasks.middleware.base import Middleware
from pulsartasks.options import ORDERED, Mode, Start
from pulsartasks.rate import interval
from pulsartasks.task import Task
from pulsartasks.topics import durable_topic, is_persistent, short_name
from pulsartasks.worker.chords import Chords
from pulsartasks.worker.concurrency import Concurrency
from pulsartasks.worker.consumer import CompanionConsumer, ConsumerThreads, Forwarder, OrderedConsumer, SharedConsumer
from pulsartasks.worker.executor import Executor
from pulsartasks.worker.once import Once
from pulsartasks.worker.rate_limit import RateLimit
from pulsartasks.worker.resources import Resources
from pulsartasks.worker.revocations import Gate, Known, Revocations
from pulsartasks.worker.run import Route

LEAST_PREFETCH = 16
EXPIRE_EVERY = 300.0
"""Seconds between two looks for results and notices that have expired."""

READY_CHECK = 0.05
"""Seconds between two looks at whether all is consumed, where somebody wants to be told."""

_log = structlog.get_logger("pulsartasks")


@dataclass(frozen=True, slots=True)
class _Settings:
    """What tasks must have in common to share a consumer."""

    subscription: str
    mode: Mode
    start: Start
    concurrency: int
    prefetch: int
    own: str | None
    """The task that has a consumer of its own, since it asked for its own concurrency or rate, or for batches."""
    rate_limit: float | str | None


class Worker:
    """Runs an app's tasks on threads of this process, from `start` to `stop`.

    Args:
        concurrency: messages of one subscription that run at once; tasks with their own ``concurrency=`` come on top.
        topics: names of topics; only tasks that consume one of them run. None: all tasks.
        middleware: goes around every attempt, outside the app's own.
        processes: how many such workers, each in a process of its own, keep a ``rate_limit`` together.
    """

    def __init__(
        self,
        app: PulsarTasks,
        *,
        concurrency: int = 1,
        topics: Collection[str] | None = None,
        middleware: Sequence[Middleware] = (),
        processes: int = 1,
    ) -> None:
        self.app = app
        self._processes = processes
        self._tasks = _select(app, topics)
        self._resources = Resources(app.resources)
        self._once = Once(app, self._tasks)
        self.revoked: dict[str, Known] = {}
        """What it knows to be revoked, by the task's id."""
        expires = {task.name: s for task in self._tasks if (s := task.options.expires) is not None}
        layers = [*middleware, Gate(self.revoked, expires, app.clock), *app.middleware]
        self._executor = Executor(
            app, _routes(self._tasks), self._resources, layers, once=self._once, revoked=self.revoked
        )
        self._chords = Chords(app, self._executor.follow_up)
        self._revocations = Revocations(app, self.revoked, self._executor.terminate)
        self._consumers = self._make_consumers(concurrency)
        self._stopped = threading.Event()

    @property
    def tasks(self) -> Sequence[Task[..., Any]]:
        """What it runs."""
        return self._tasks

    @property
    def ready(self) -> bool:
        """Whether every subscription is being consumed, or stood by for."""
        return all(consumer.ready for consumer in (*self._consumers, self._chords))

    def asleep(self) -> tuple[int, float | None]:
        """How many messages in its hands wait for an instant to come, e.g. for a retry, and the first such instant."""
        asleep = [consumer.asleep() for consumer in (*self._consumers, self._chords)]
        return sum(count for count, _ in asleep), min((due for _, due in asleep if due is not None), default=None)

    def start(
        self,
        failed: Callable[[BaseException], None] | None = None,
        *,
        journal_begun: Callable[[Path], object] = lambda _: None,
    ) -> None:
        """Set up resources and begin to consume; returns before the broker is reached.

        `failed` is told, from another thread, of what makes consuming impossible, e.g. a missing permission;
        `journal_begun` before anything runs where that is written down, so that somebody may enforce time limits.
        """
        self.app.signals.worker_init.send(self)
        self._resources.open({kind for task in self._tasks for kind in task.injected.values()})
        self._executor.guard.start(sum(consumer.concurrency for consumer in self._consumers), journal_begun)
        self._revocations.start()
        self._consume(failed or _log_failure)
        threading.Thread(target=self._expire, name="pulsartasks-expiry", daemon=True).start()
        if self.app.signals.worker_ready.connected:
            threading.Thread(target=self._tell_when_ready, name="pulsartasks-ready", daemon=True).start()

    def stop(self, grace: float = 30.0, *, signal: str | None = None) -> bool:
        """Receive no more, finish what runs, give back the rest; safe to call twice and from any thread.

        Returns whether all that ran was finished within `grace` seconds; what was not is delivered again elsewhere as
        soon as this process ends. `signal` is the one that the worker got, for those who are told of its end.
        """
        if self._stopped.is_set():
            return True
        self._stopped.set()
        self.app.signals.worker_shutting_down.send(self, sig=signal, how="warm", exitcode=0)
        consumers = (*self._consumers, self._chords)
        for consumer in consumers:
            consumer.stop()
        self._executor.hurry()
        self._executor.guard.stop()
        self._revocations.close()
        deadline = time.monotonic() + grace
        finished = all(consumer.join(deadline) for consumer in consumers) and self._executor.join(deadline)
        self._executor.stop()
        self._once.close()
        for consumer in consumers:
            consumer.close()
        self._executor.guard.close(finished=finished)
        if finished:
            self._executor.close()
            self._resources.close()
        self.app.signals.worker_shutdown.send(self)
        return finished

    def _consume(self, failed: Callable[[BaseException], None]) -> None:
        for consumer in self._consumers:
            consumer.start(failed, first=self._learn)
        self._chords.start(_log_failure, first=lambda: None)

    def _learn(self) -> None:
        """Before anything is consumed: what other workers have done that concerns it."""
        self._executor.guard.wait_until_known()
        self._revocations.wait_until_known()
        if self._once.wanted:
            self._once.catch_up()

    def _tell_when_ready(self) -> None:
        while not self._stopped.wait(READY_CHECK):
            if self.ready:
                self.app.signals.worker_ready.send(self)
                return

    def _expire(self) -> None:
        unique = any(task.options.unique_key for task in self._tasks)
        while not self._stopped.wait(EXPIRE_EVERY):
            try:
                self._executor.guard.trim()
                self.app.results.expire()
                if unique:
                    self.app.unique.trim()
            except PulsarTasksError as error:
                _log.warning("results.kept", error=str(error))
            try:
                self._revocations.expire()
            except PulsarTasksError as error:
                _log.warning("revocations.kept", error=str(error))

    def _make_consumers(self, concurrency: int) -> list[ConsumerThreads]:
        groups: dict[_Settings, list[Task[..., Any]]] = defaultdict(list)
        for task in self._tasks:
            groups[_settings(task, concurrency)].append(task)
        consumers: list[ConsumerThreads] = []
        for settings, tasks in groups.items():
            consume = self._consume_ordered if settings.mode in ORDERED else self._consume_shared
            alike = consume(settings, tasks)
            if settings.rate_limit is not None:
                limit = RateLimit(interval(settings.rate_limit) * self._processes)
                for consumer in alike:
                    consumer.limit = limit
            consumers += alike
        return consumers

    def _consume_shared(self, settings: _Settings, tasks: Sequence[Task[..., Any]]) -> list[ConsumerThreads]:
        """Apart: what is not stored, for it needs a long queue where what is needs a short one; and a topic that is the
        only one, as a consumer of several is slower (docs/decisions/0042-companions.md).
        """
        topics = [name for t in tasks for name in (t.topics.work, t.topics.calls, t.topics.retry, t.topics.delayed)]
        work = {task.topics.work for task in tasks}
        # A rate limit has one thread wait at a time, and a batch has many threads as it is.
        lone = len(work) == 1 and settings.rate_limit is None and tasks[0].options.batch is None
        parts: dict[tuple[bool, bool], list[str]] = defaultdict(list)
        for topic in topics:
            parts[is_persistent(topic), lone and topic not in work].append(topic)
        together = Concurrency(settings.concurrency)
        return [
            (CompanionConsumer if companion else SharedConsumer)(
                self.app,
                _subscription(settings, alike),
                self._executor,
                threads=settings.concurrency,
                aside=_aside(tasks),
                concurrency=together if lone else Concurrency(settings.concurrency),
            )
            for (_, companion), alike in parts.items()
        ]

    def _consume_ordered(self, settings: _Settings, tasks: Sequence[Task[..., Any]]) -> list[ConsumerThreads]:
        ordered = _subscription(settings, [name for t in tasks for name in (t.topics.work, t.topics.calls)])
        waiting = {name: t.topics.calls for t in tasks for name in (t.topics.delayed, t.topics.retry)}
        held = Subscription(tuple(waiting), settings.subscription, prefetch=LEAST_PREFETCH)
        # Where topics are ordered as a whole, each has its thread, so that none waits for another.
        threads = settings.concurrency if settings.mode == "key_shared" else len(tasks)
        return [
            OrderedConsumer(self.app, ordered, self._executor, threads=threads, aside=_aside(tasks)),
            Forwarder(self.app, held, waiting),
        ]


def _select(app: PulsarTasks, topics: Collection[str] | None) -> list[Task[..., Any]]:
    tasks = list(app.tasks.values())
    if topics is not None:
        wanted = {durable_topic(app.qualify(name)) for name in topics}
        known = {durable_topic(task.topics.work) for task in tasks}
        if missing := wanted - known:
            raise ConfigurationError(
                f"no task consumes {short_name(min(missing))!r}; known are: {', '.join(sorted(map(short_name, known)))}"
            )
        tasks = [task for task in tasks if durable_topic(task.topics.work) in wanted]
    if not tasks:
        raise ConfigurationError(f"app {app.name!r} has no tasks; is the module imported that defines them?")
    return tasks


def _routes(tasks: Sequence[Task[..., Any]]) -> dict[tuple[str, str], Route]:
    """What is done for each topic and subscription; tasks that share both are told apart by the name in the message."""
    by_source: dict[tuple[str, str], dict[str, Task[..., Any]]] = defaultdict(dict)
    for task in tasks:
        for topic in (task.topics.work, task.topics.calls, task.topics.retry, task.topics.delayed):
            by_source[topic, task.subscription][task.name] = task
    return {source: Route(next(iter(by_name.values())), by_name) for source, by_name in by_source.items()}


def _settings(task: Task[..., Any], concurrency: int) -> _Settings:
    options = task.options
    threads = options.concurrency or (1 if options.mode in ("exclusive", "failover") else concurrency)
    if options.batch is not None:
        threads = (options.concurrency or 1) * options.batch.max_messages
    return _Settings(
        subscription=task.subscription,
        mode=options.mode,
        start=options.start,
        concurrency=threads,
        prefetch=options.prefetch or (1 if options.rate_limit is not None else max(2 * threads, LEAST_PREFETCH)),
        own=None if options.concurrency is None and options.rate_limit is None and options.batch is None else task.name,
        rate_limit=options.rate_limit,
    )


def _aside(tasks: Sequence[Task[..., Any]]) -> dict[str, str]:
    """Where what comes too early on a topic is to wait: no other subscription gets it there, and no work behind it."""
    return {topic: t.topics.delayed for t in tasks for topic in (t.topics.work, t.topics.calls)}


def _subscription(settings: _Settings, topics: Sequence[str]) -> Subscription:
    unique = tuple(dict.fromkeys(topics))
    return Subscription(
        unique, settings.subscription, mode=settings.mode, prefetch=settings.prefetch, start=settings.start
    )


def _log_failure(error: BaseException) -> None:
    _log.error("worker.failed", error=str(error))
