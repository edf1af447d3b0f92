"""The options of ``@app.task``: their names, defaults and what is refused at definition."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Literal, TypedDict, get_args

from pulsartasks.batch import Batch
from pulsartasks.errors import ConfigurationError
from pulsartasks.rate import interval
from pulsartasks.retry import RetryPolicy
from pulsartasks.topics import is_name, is_topic

Mode = Literal["shared", "exclusive", "failover", "key_shared"]
Ack = Literal["late", "early", "manual"]
Start = Literal["earliest", "latest"]
Compression = Literal["lz4", "zlib", "zstd", "snappy"]

ORDERED: frozenset[str] = frozenset({"exclusive", "failover", "key_shared"})
"""Modes that keep an order: their retries happen in place, while the key (or the topic) waits."""

_FROM_CELERY = {"acks_late": "ack", "queue": "topic", "routing_key": "key"}
"""What comes nearest to an option that Celery has and pulsartasks calls otherwise."""


class TaskKeywords(TypedDict, total=False):
    """The keywords of ``@app.task`` for type checkers; `TaskOptions` documents them."""

    name: str | None
    base: type[Any] | None
    topic: Any
    subscription: str | None
    mode: Mode
    key: Callable[..., str | None] | None
    ack: Ack
    start: Start
    max_retries: int | None
    retry_kwargs: Mapping[str, Any] | None
    autoretry_for: tuple[type[BaseException], ...]
    dont_autoretry_for: tuple[type[BaseException], ...]
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    default_retry_delay: float
    dead_letter: bool | str
    max_crashes: int
    time_limit: float | None
    concurrency: int | None
    prefetch: int | None
    rate_limit: float | str | None
    ignore_result: bool
    store_errors_even_if_ignored: bool
    track_started: bool
    throws: tuple[type[BaseException], ...]
    once: bool
    once_for: float
    unique_key: Callable[..., str | None] | None
    unique_for: float
    expires: float | None
    soft_time_limit: float | None
    batching: bool
    compression: Compression | None
    durable: bool


class PolicyKeywords(TypedDict, total=False):
    """What Pulsar is to do with an event topic; what is left out stays as the namespace has it."""

    retention: float | timedelta
    """Seconds (in whole minutes, rounded up) that messages are kept though all subscriptions have acknowledged them, so
    that a new subscription, or one that is set back, sees them."""
    ttl: float | timedelta
    """Seconds after which a message counts as acknowledged by subscriptions that have not, seen or not; delayed ones
    too."""
    dispatch_rate: int
    """Messages a second that the topic (each of its partitions) gives out at most."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How a task's messages are delivered; every default is safe, none loses a message."""

    name: str | None = None
    """What the task is called on the wire; default: the function's name."""
    base: type[Any] | None = None
    """The class of the task, which inherits from `Task`; default: that of the app."""
    bind: bool = False
    """Give the function its `TaskContext` as the first argument."""
    topic: Any = None
    """A name, or a `Topic`; default: ``<app>.<task>``."""
    subscription: str | None = None
    """Who consumes together; default: the app's name."""
    mode: Mode = "shared"
    """``shared`` spreads; ``key_shared`` keeps each key in order; ``failover`` and ``exclusive`` the whole topic."""
    key: Callable[..., str | None] | None = None
    """Called with the task's arguments; gives what order is kept by."""
    ack: Ack = "late"
    """``late``: after the task ran, so at least once; ``early``: before it, so at most once; ``manual``: by
    ``self.ack()``."""
    start: Start = "earliest"
    """Where a subscription begins that did not exist before."""
    max_retries: int | None = 3
    autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: Mapping[str, Any] | None = None
    """``max_retries`` and ``countdown``, instead of `max_retries` and `default_retry_delay`, as Celery has them."""
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    default_retry_delay: float = 1.0
    dead_letter: bool | str = True
    """True: ``<topic>-<subscription>-DLQ``; a name: that topic; False: what is given up is dropped (and logged)."""
    max_crashes: int = 3
    """Worker processes that a message may take with it before it is given up."""
    time_limit: float | None = None
    """Seconds after which the process of a run is killed, whatever it does; the message is then an error like any
    other. None: no limit."""
    concurrency: int | None = None
    """Messages of this task run at once in a process, on its own threads; default: it shares the worker's ``-c``."""
    prefetch: int | None = None
    """Messages that wait in the process beyond those running; default: max(2 x concurrency, 16), with a
    `rate_limit` 1."""
    rate_limit: float | str | None = None
    """Runs begun at most so often by one worker, evenly spread: ``"10/s"``, ``"100/m"``, ``"5/h"``, or a number for
    each second. What must wait stays with the broker, and holds up no other task."""
    ignore_result: bool = False
    """Store no result; the call returns a handle whose ``get()`` says so."""
    store_errors_even_if_ignored: bool = False
    """Store a failure all the same."""
    track_started: bool = False
    """Tell the handle when a message is received and begun, which costs a message each time."""
    throws: tuple[type[BaseException], ...] = ()
    """Exceptions that are expected of it: failures like others, but logged as information and without a traceback."""
    once: bool = False
    """Effectively once: what has succeeded under an id does not run again under it, delivered or published anew."""
    once_for: float = 3600.0
    """Seconds for which that is remembered, by all workers of the app."""
    unique_key: Callable[..., str | None] | None = None
    """Called with the task's arguments; of the calls for which it gives the same, one waits or runs at a time."""
    unique_for: float = 3600.0
    """Seconds from a call after which the next one is sent though it has not ended."""
    expires: float | None = None
    """Seconds from the call (or publication) after which no attempt is begun any more: it is revoked instead."""
    soft_time_limit: float | None = None
    """Seconds after which `SoftTimeLimitExceeded` is raised inside the task."""
    batching: bool = False
    """Pulsar packs calls that are sent together: many times the rate, for short tasks. A package goes to one process as
    a whole, and until all of it is acknowledged a crash or a release brings all of it again."""
    compression: Compression | None = None
    """How Pulsar's client packs the task's messages; None: not at all."""
    batch: Batch | None = None
    """Call the function with a list of what many calls give; each is settled by itself."""
    durable: bool = True
    """False: calls are not stored but handed to a worker that is there, acknowledged before they run: at most once, in
    a fraction of the time. Retries and dead letters are stored."""

    @property
    def ordered(self) -> bool:
        return self.mode in ORDERED

    @property
    def retry_policy(self) -> RetryPolicy:
        retry = self.retry_kwargs or {}
        return RetryPolicy(
            max_retries=retry.get("max_retries", self.max_retries),
            autoretry_for=self.autoretry_for,
            dont_autoretry_for=self.dont_autoretry_for,
            retry_backoff=self.retry_backoff,
            retry_backoff_max=self.retry_backoff_max,
            retry_jitter=self.retry_jitter,
            default_retry_delay=retry.get("countdown", self.default_retry_delay),
        )

    @classmethod
    def parse(cls, keywords: dict[str, Any], *, task: str) -> TaskOptions:
        """The options a user wrote for `task`.

        Raises:
            ConfigurationError: an option is unknown (with the nearest one as a hint), or has a value it cannot have.
        """
        check_names(keywords, {field.name for field in fields(cls)}, what=f"task {task!r}")
        check_names(
            keywords.get("retry_kwargs") or (), ("max_retries", "countdown"), what=f"task {task!r}: retry_kwargs"
        )
        options = cls(**keywords)
        for complaint in options._complaints():
            raise ConfigurationError(f"task {task!r}: {complaint}")
        return options if options.durable else replace(options, ack="early")

    def _complaints(self) -> Iterator[str]:
        """What is wrong, first things first: a check may rely on those before it."""
        checks: Mapping[str, tuple[Callable[[Any], bool], str]] = {
            "name": (lambda name: isinstance(name, (str, type(None))), "text"),
            "mode": (get_args(Mode).__contains__, f"one of {', '.join(get_args(Mode))}"),
            "ack": (get_args(Ack).__contains__, "'late', 'early' or 'manual'"),
            "start": (get_args(Start).__contains__, "'earliest' or 'latest'"),
            "key": (lambda key: key is None or callable(key), "a function of the task's arguments"),
            "subscription": (lambda name: name is None or is_name(name), "a name of letters, digits and . _ - only"),
            "topic": (lambda topic: not isinstance(topic, str) or is_topic(topic), "the name of a topic"),
            "dead_letter": (
                lambda topic: isinstance(topic, bool) or is_topic(topic),
                "True, False or the name of a topic",
            ),
            "rate_limit": (_is_rate, "a number for each second, more than 0, or like '10/s', '100/m', '5/h'"),
            "throws": (_are_exceptions, "a tuple of exception classes, e.g. (KeyError,)"),
            "autoretry_for": (_are_exceptions, "a tuple of exception classes, e.g. (OSError,)"),
            "dont_autoretry_for": (_are_exceptions, "a tuple of exception classes, e.g. (OSError,)"),
            "max_retries": (lambda n: n is None or _is_whole(n, 0), "0 or more, or None for no end"),
            "retry_kwargs": (
                lambda given: all(n is None or _is_seconds(n) for n in (given or {}).values()),
                "a dict with max_retries and countdown",
            ),
            "max_crashes": (lambda n: _is_whole(n, 1), "a whole number of at least 1"),
            "time_limit": (lambda n: n is None or (_is_seconds(n) and n > 0), "seconds, more than 0, or None"),
            "concurrency": (lambda n: n is None or _is_whole(n, 1), "a whole number of at least 1"),
            "prefetch": (lambda n: n is None or _is_whole(n, 1), "a whole number of at least 1"),
            "retry_backoff": (_is_seconds, "True, False, or the seconds to begin with"),
            "retry_backoff_max": (_is_seconds, "seconds, 0 or more"),
            "default_retry_delay": (_is_seconds, "seconds, 0 or more"),
            "once_for": (lambda seconds: _is_seconds(seconds) and 0 < seconds < math.inf, "seconds, more than 0"),
            "unique_key": (lambda key: key is None or callable(key), "a function of the task's arguments"),
            "unique_for": (lambda seconds: _is_seconds(seconds) and 0 < seconds < math.inf, "seconds, more than 0"),
            "expires": (_is_limit, "seconds, more than 0"),
            "soft_time_limit": (_is_limit, "seconds, more than 0"),
            "track_started": (lambda track: isinstance(track, bool), "True or False"),
            "batching": (lambda batching: isinstance(batching, bool), "True or False"),
            "batch": (lambda batch: isinstance(batch, (Batch, type(None))), "Batch(max_messages=..., max_wait=...)"),
            "durable": (lambda durable: isinstance(durable, bool), "True or False"),
            "compression": ((None, *get_args(Compression)).__contains__, f"one of {', '.join(get_args(Compression))}"),
        }
        for option, (accepts, wanted) in checks.items():
            if not accepts(getattr(self, option)):
                yield f"{option} must be {wanted}, not {getattr(self, option)!r}"
        yield from self._contradictions()

    def _contradictions(self) -> Iterator[str]:
        """What does not go together."""
        if self.soft_time_limit and self.time_limit and self.soft_time_limit >= self.time_limit:
            yield f"soft_time_limit must be less than time_limit={self.time_limit!r}, not {self.soft_time_limit!r}"
        if self.mode in ("exclusive", "failover") and self.concurrency not in (None, 1):
            yield f"{self.mode} runs one message at a time; leave concurrency out, or use key_shared"
        if self.ack == "manual" and not self.bind:
            yield "ack='manual' is done by self.ack(); write bind=True, and self as the first parameter"
        if self.track_started and self.ignore_result:
            yield "track_started=True is told to the call's handle, of which ignore_result=True leaves nothing"
        if self.batching and self.ack == "early":
            yield "batching=True may bring again what was acknowledged, so ack='early' would not be at most once"
        if self.batch is not None:
            yield from self._batch_complaints()
        if not self.durable:
            yield from self._fleeting_complaints()
        if self.once and self.ack != "late":
            yield f"once=True records a success before the acknowledgement, so ack={self.ack!r} must be left out"

    def _batch_complaints(self) -> Iterator[str]:
        """What is there for one message only."""
        if self.mode in ("exclusive", "failover"):
            yield (
                f"{self.mode} tries a message again before the next one begins, so they never meet in a batch; "
                "use key_shared, where those of different keys do, or leave batch out"
            )
        if self.bind:
            yield "a batch has no message of its own, so bind must be left out"
        if self.track_started:
            yield "a batch begins for all its messages at once, so track_started must be left out"
        if self.rate_limit is not None:
            yield "rate_limit lets messages in one by one, so few would meet in a batch; use max_messages and max_wait"

    def _fleeting_complaints(self) -> Iterator[str]:
        """What cannot be had of calls that are not stored."""
        usual = TaskOptions(ack=self.ack if self.ack == "early" else "late")
        for option in ("mode", "ack", "start", "max_crashes", "once", "rate_limit", "unique_key"):
            if getattr(self, option) != getattr(usual, option):
                yield f"durable=False stores no call that could come again or wait, so {option} must be left out"
        if not isinstance(self.topic, (str, type(None))):
            yield "durable=False is for calls of one task, and this one handles the events of app.topic()"


def parse_policies(keywords: PolicyKeywords, *, topic: str) -> Mapping[str, int]:
    """The policies of a topic, in seconds and messages a second.

    >>> parse_policies({"retention": 90, "dispatch_rate": 100}, topic="mail")
    {'retention': 120, 'dispatch_rate': 100}

    Raises:
        ConfigurationError: one is unknown, or has a value it cannot have.
    """
    check_names(keywords.keys(), PolicyKeywords.__annotations__, what=f"topic {topic!r}")
    policies = {}
    for name, value in keywords.items():
        amount = value.total_seconds() if isinstance(value, timedelta) else value
        if not _is_limit(amount) or amount is None or (name == "dispatch_rate" and not _is_whole(value, 1)):
            wanted = "a whole number of messages a second" if name == "dispatch_rate" else "seconds, more than 0"
            raise ConfigurationError(f"topic {topic!r}: {name} must be {wanted}, not {value!r}")
        unit = 60 if name == "retention" else 1
        policies[name] = math.ceil(amount / unit) * unit  # type: ignore[operator]  # a number, by now
    return policies


def check_names(given: Collection[str], known: Collection[str], *, what: str) -> None:
    """Refuse the first name in `given` that is not in `known`, with a hint.

    >>> check_names(["max_retry"], ["max_retries", "mode"], what="task 'add'")
    Traceback (most recent call last):
    ...
    pulsartasks.errors.ConfigurationError: task 'add' has no option 'max_retry'; did you mean 'max_retries'?
    """
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(_FROM_CELERY.get(name, name), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(sorted(known))}"
            raise ConfigurationError(f"{what} has no option {name!r}; {hint}")


def _are_exceptions(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(e, type) and issubclass(e, BaseException) for e in value)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_limit(value: object) -> bool:
    return value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    )


def _is_rate(value: object) -> bool:
    if value is None:
        return True
    try:
        return isinstance(value, (int, float, str)) and not isinstance(value, bool) and interval(value) > 0
    except ValueError:
        return False


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and value >= 0
