"""Running one message: read it, run its task, settle what became of it."""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec
import structlog
from structlog.contextvars import bind_contextvars, reset_contextvars
from typing_extensions import assert_never

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery, check_size
from pulsartasks.context import TaskContext
from pulsartasks.errors import (
    InvalidArgumentsError,
    MessageTooLargeError,
    PulsarTasksError,
    Reject,
    Retry,
    UnknownTaskError,
    UnreadableMessageError,
)
from pulsartasks.message import Publication, Request, read_int
from pulsartasks.middleware.base import Middleware, wrap_execute
from pulsartasks.outcome import Died, Outcome, Retried, Succeeded
from pulsartasks.results.base import RemoteError, Result
from pulsartasks.retry import backoff, unknown_task_delay
from pulsartasks.serializers import encode
from pulsartasks.task import Task
from pulsartasks.worker.resources import Resources

SETTLE_PATIENCE = 60.0
"""Seconds to go on trying when the broker takes no retry, dead letter or result; then the message is given back.
Where order is kept there is no end to it: what comes behind must wait anyway."""
LONGEST_TRACEBACK = 16_384
"""Characters of a traceback that travel with a dead letter; its end says most."""
SHORT_STORY = 500
"""Characters of it, and of the error's text, that travel with a message that hardly leaves room for them."""

_log = structlog.get_logger("pulsartasks")


@dataclass(frozen=True, slots=True)
class Route:
    """What a worker does with the messages that one subscription gets from one topic."""

    task: Task[..., Any]
    """The task of a message that does not name one; also says where retries and dead letters go."""
    by_name: Mapping[str, Task[..., Any]]
    """The tasks a message on this topic may name."""


class Run(msgspec.Struct, frozen=True):
    """One attempt about to be made."""

    delivery: Delivery
    route: Route
    task: Task[..., Any] | None
    """None if the message names a task that is not known here."""
    request: Request
    unreadable: UnreadableMessageError | None = None


class Executor:
    """Runs deliveries to their end; shared by all threads of a worker process."""

    def __init__(
        self,
        app: PulsarTasks,
        routes: Mapping[tuple[str, str], Route],
        resources: Resources,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self._app = app
        self._routes = routes
        self._resources = resources
        self._attempt = wrap_execute(middleware, self._call)
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._loop = _LoopThread()
        self.stopping = threading.Event()
        """Once set, a delivery whose settlement fails is given up at once: the broker delivers it again elsewhere."""

    def execute(
        self, delivery: Delivery, subscription: str, *, retries: int = 0, in_place: bool = False
    ) -> float | None:
        """Run a delivery of `subscription` and settle it.

        With `in_place`, a retry is not settled but left to the caller, who runs the delivery again after the seconds
        given back, with `retries` (attempts made so) raised by one; otherwise the result is None.
        """
        run = self._read(delivery, subscription, retries)
        request = run.request
        context = bind_contextvars(task=request.task, id=request.id, attempt=request.retries + 1)
        began = time.perf_counter()
        try:
            if run.route.task.options.ack == "early":
                delivery.acknowledge()
            outcome = self._run(run)
            postponed = outcome.delay if in_place and isinstance(outcome, Retried) else None
            if postponed is not None or self._settle(run, outcome, patience=math.inf if in_place else SETTLE_PATIENCE):
                _report(outcome, time.perf_counter() - began)
            else:
                delivery.release()
            return postponed
        finally:
            reset_contextvars(**context)

    def close(self) -> None:
        self._loop.close()

    # Reading

    def _read(self, delivery: Delivery, subscription: str, retries: int) -> Run:
        route = self._routes[delivery.topic, subscription]
        headers = delivery.properties
        name = headers.get(message.TASK) or route.task.name
        task = route.by_name.get(name)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        unreadable = None
        if task is not None:
            try:
                args, kwargs = _arguments(delivery, task)
            except UnreadableMessageError as error:
                unreadable = error
        request = Request(
            id=headers.get(message.TASK_ID) or delivery.message_id,
            task=name,
            topic=delivery.topic,
            subscription=subscription,
            key=delivery.key,
            args=args,
            kwargs=kwargs,
            retries=read_int(headers, message.ATTEMPT) + retries,
            headers=headers,
            published_at=delivery.published_at,
            called_directly=False,
        )
        return Run(delivery, route, task, request, unreadable)

    # Running

    def _run(self, run: Run) -> Outcome:
        if run.task is None:
            return _unknown(run)
        if run.unreadable is not None:
            return Died(run.unreadable, "unreadable")
        try:
            return self._attempt(run.request)
        except Exception as error:  # noqa: BLE001 - a middleware's: what the task raises is an outcome already
            return Died(error, "failed")

    def _call(self, request: Request) -> Outcome:
        """The innermost of the onion: call the function."""
        task = self._routes[request.topic, request.subscription].by_name[request.task]
        policy = task.retry_policy
        args, kwargs = request.args, dict(request.kwargs)
        for name, kind in task.injected.items():
            kwargs[name] = self._resources[kind]
        if task.options.bind:
            args = [TaskContext(request, policy), *args]
        try:
            value = task.function(*args, **kwargs)
            return Succeeded(self._loop.run(value) if task.is_async else value)
        except Retry as verb:
            return Retried(verb.cause or verb, max(0.0, verb.delay))
        except Reject as verb:
            return Died(verb, "rejected")
        except BaseException as error:  # noqa: BLE001 - also SystemExit: a task does not end its worker
            if policy.covers(error) and policy.has_left(request.retries):
                return Retried(error, policy.delay(request.retries, random.random))
            return Died(error, "failed")

    # Settling

    def _settle(self, run: Run, outcome: Outcome, *, patience: float) -> bool:
        """Settle; False if the broker did not take what must come before the ack: the message stays the broker's."""
        began, tries = time.monotonic(), 0
        while True:
            try:
                self._settle_once(run, outcome)
            except MessageTooLargeError as error:
                if isinstance(outcome, Died):
                    _log.error("message.unsettled", error=str(error), try_number=tries + 1)
                    return False
                outcome = Died(error, "failed")  # its result: the next round says so to the caller
            except PulsarTasksError as error:
                _log.warning("message.unsettled", error=str(error), try_number=tries + 1)
                if time.monotonic() - began > patience or self.stopping.wait(backoff(tries, factor=0.2, maximum=5.0)):
                    return False
                tries += 1
            else:
                return True

    def _settle_once(self, run: Run, outcome: Outcome) -> None:
        match outcome:
            case Succeeded(value):
                try:
                    self._store_result(run, value=self._encoded(run, value))
                except InvalidArgumentsError as error:
                    self._settle_once(run, Died(error, "failed"))
                    return
            case Retried(_, delay):
                self._app.publish(_retry_copy(run, delay))
            case Died(error, reason):
                if (topic := run.route.task.topics.dead_letter) is not None:
                    self._app.publish(self._dead_letter(run, topic, error, reason))
                self._store_result(run, error=error)
            case _:
                assert_never(outcome)
        if run.route.task.options.ack != "early":
            run.delivery.acknowledge()

    def _encoded(self, run: Run, value: Any) -> bytes:
        return encode(value) if self._wants_result(run) else b"null"

    def _wants_result(self, run: Run) -> bool:
        return run.task is not None and not run.task.options.ignore_result and message.TASK in run.delivery.properties

    def _store_result(self, run: Run, *, value: bytes = b"null", error: BaseException | None = None) -> None:
        if not self._wants_result(run):
            return
        result = Result(
            id=run.request.id,
            task=run.request.task,
            state="SUCCESS" if error is None else "FAILURE",
            value=msgspec.Raw(value),
            error=None if error is None else RemoteError.capture(error),
            retries=run.request.retries,
            finished_at=time.time(),
        )
        self._app.results.store(result, reply_to=run.delivery.properties.get(message.REPLY_TO))

    def _dead_letter(self, run: Run, topic: str, error: BaseException, reason: str) -> Publication:
        properties = {
            **message.without_retries(run.delivery.properties),
            **_origin(run),
            message.REASON: reason,
            message.EXCEPTION_TYPE: type(error).__qualname__,
            message.EXCEPTION_MESSAGE: str(error)[:LONGEST_TRACEBACK],
            message.TRACEBACK: "".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:],
            message.ATTEMPTS: str(run.request.retries + 1),
            message.WORKER: self._worker,
            message.FAILED_AT: _iso(time.time()),
            message.PUBLISHED_AT: _iso(_first_published(run)),
        }
        letter = Publication(topic, run.delivery.value, run.delivery.key, properties)
        if check_size(letter) is not None:  # the message itself matters more than the whole story
            properties[message.EXCEPTION_MESSAGE] = properties[message.EXCEPTION_MESSAGE][:SHORT_STORY]
            properties[message.TRACEBACK] = properties[message.TRACEBACK][-SHORT_STORY:]
        return letter


def _arguments(delivery: Delivery, task: Task[..., Any]) -> tuple[list[Any], dict[str, Any]]:
    if message.TASK in delivery.properties:
        return task.codec.decode(delivery.value)
    if task.event_topic is not None:
        return [task.codec.payload.decode(delivery.value)], {}
    return task.codec.decode_keywords(delivery.value)


def _unknown(run: Run) -> Outcome:
    known = ", ".join(sorted(run.route.by_name)) or "none"
    error = UnknownTaskError(f"no task {run.request.task!r} on this topic; known here: {known}")
    delay = unknown_task_delay(time.time() - _first_published(run), run.request.retries)
    return Died(error, "unknown task") if delay is None else Retried(error, delay)


def _retry_copy(run: Run, delay: float) -> Publication:
    due = time.time() + delay
    return Publication(
        topic=run.route.task.topics.retry,
        value=run.delivery.value,
        key=run.delivery.key,
        properties={
            **run.delivery.properties,
            **_origin(run),
            message.ATTEMPT: str(run.request.retries + 1),
            message.DELAY: str(round(delay * 1000)),
            message.ETA: message.milliseconds(due),
            message.PUBLISHED_AT: _iso(_first_published(run)),
        },
        deliver_at=due,
    )


def _origin(run: Run) -> dict[str, str]:
    """Where the message first was, as the Java client says it; a copy of a copy keeps what the first copy said."""
    headers = run.delivery.properties
    if headers.get(message.REAL_SUBSCRIPTION) != run.request.subscription:
        headers = {}  # what another subscription says of its own: this one takes the message from where it is now
    return {
        message.REAL_TOPIC: headers.get(message.REAL_TOPIC) or run.delivery.topic,
        message.REAL_SUBSCRIPTION: run.request.subscription,
        message.ORIGIN_MESSAGE_ID: headers.get(message.ORIGIN_MESSAGE_ID) or run.delivery.message_id,
    }


def _first_published(run: Run) -> float:
    """When the message was published before any retry, in seconds since the epoch."""
    try:
        first = datetime.fromisoformat(run.delivery.properties[message.PUBLISHED_AT])
    except (KeyError, ValueError):  # it is no copy, or somebody else wrote that header
        return run.delivery.published_at
    return first.timestamp()


def _iso(instant: float) -> str:
    return datetime.fromtimestamp(instant, timezone.utc).isoformat(timespec="milliseconds")


def _report(outcome: Outcome, seconds: float) -> None:
    match outcome:
        case Succeeded():
            _log.info("message.succeeded", seconds=round(seconds, 4))
        case Retried(error, delay):
            _log.warning("message.retried", error=repr(error), delay=round(delay, 3))
        case Died(error, reason):
            _log.error("message.died", reason=reason, error=repr(error), exc_info=error if reason == "failed" else None)
        case _:
            assert_never(outcome)


class _LoopThread:
    """An event loop on a thread of its own, started by the first ``async def`` task."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run `coroutine` on the loop and wait for it."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="pulsartasks-loop", daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        with self._lock:
            if self._loop is not None and self._thread is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
                self._loop = self._thread = None
