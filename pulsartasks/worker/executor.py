"""Running one message: read it, run its task, have what became of it settled."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Container, Coroutine, Mapping, Sequence
from contextvars import ContextVar, copy_context
from typing import Any, NoReturn

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.batch import Batch, results_of
from pulsartasks.brokers.base import Delivery
from pulsartasks.clock import Clock
from pulsartasks.context import Acknowledgement, TaskContext
from pulsartasks.crashes import CrashStory, message_name
from pulsartasks.errors import (
    Ignore,
    MaxRetriesExceededError,
    PulsarTasksError,
    Reject,
    Replace,
    Retry,
    Terminate,
    TimeLimitExceeded,
    UnacknowledgedError,
    UnknownTaskError,
    UnreadableMessageError,
    WorkerCrashedError,
)
from pulsartasks.message import Request, read_int
from pulsartasks.middleware.base import Execute, Middleware, wrap_execute
from pulsartasks.outcome import Died, Outcome, Replaced, Retried, Revoked, Skipped, Succeeded
from pulsartasks.results.base import RemoteError
from pulsartasks.retry import RetryPolicy, backoff, unknown_task_delay
from pulsartasks.task import Task
from pulsartasks.worker.batches import Gathering
from pulsartasks.worker.copies import Copies
from pulsartasks.worker.follow_up import FollowUp
from pulsartasks.worker.guard import Guard
from pulsartasks.worker.interrupt import Interrupts, RunningCoroutine, RunningFunction
from pulsartasks.worker.logs import end_log_of_run, log_of_run
from pulsartasks.worker.once import Once
from pulsartasks.worker.resources import Resources
from pulsartasks.worker.run import Route, Run
from pulsartasks.worker.settlement import Settler, report
from pulsartasks.worker.signals import TaskSignals
from pulsartasks.worker.singles import Singles
from pulsartasks.worker.states import PATIENCE, States

_log = structlog.get_logger("pulsartasks")
_delivery: ContextVar[Delivery] = ContextVar("delivery")
"""What runs in this thread, where its task acknowledges it itself; the middleware in between does not hand it on."""


class Executor:
    """Runs deliveries to their end; shared by all threads of a worker process."""

    def __init__(
        self,
        app: PulsarTasks,
        routes: Mapping[tuple[str, str], Route],
        resources: Resources,
        middleware: Sequence[Middleware],
        *,
        once: Once,
        revoked: Container[str],
    ) -> None:
        self.guard = Guard(app)
        self._claims = app.claims
        self._clock = app.clock
        self._routes = routes
        self._resources = resources
        self._signals = TaskSignals(app) if app.signals.of_tasks else None
        self._attempt = wrap_execute(middleware, self._signals.around(self._call) if self._signals else self._call)
        self._skip_done = wrap_execute(middleware, lambda _: Skipped("done"))
        self._skip_copy = wrap_execute(middleware, lambda _: Skipped("copy"))
        self._once = once
        self._copies = Copies()
        self._singles = Singles(app)
        self.follow_up = FollowUp(app)
        self._settler = Settler(app, self.guard, once, self.follow_up)
        self._loop = _LoopThread()
        self._interrupts = Interrupts(revoked)
        self._states = States(app)
        self._tracks = any(task.options.track_started for route in routes.values() for task in route.by_name.values())
        self._hurried = False
        self._gatherings = {
            task.name: self._gather(task, task.options.batch)
            for route in routes.values()
            for task in route.by_name.values()
            if task.options.batch is not None
        }

    def receive(self, delivery: Delivery, subscription: str) -> None:
        """Tell the caller that the message is here, if it wants to know."""
        if not self._tracks:
            return
        route = self._routes[delivery.topic, subscription]
        headers = route.headers(delivery)
        task = route.by_name.get(headers.get(message.TASK) or route.task.name)
        task_id = headers.get(message.TASK_ID, "")
        if task is not None and task.options.track_started and 0 < len(task_id) <= message.LONGEST_ID:
            request = Request(task_id, task.name, retries=read_int(headers, message.ATTEMPT), headers=headers)
            self._states.tell(request, "RECEIVED", within=PATIENCE)

    def execute(
        self, delivery: Delivery, subscription: str, *, retries: int = 0, in_place: bool = False
    ) -> float | None:
        """Run a delivery of `subscription` and settle it.

        With `in_place`, a retry is not settled but left to the caller, who runs the delivery again after the seconds
        given back, with `retries` (attempts made so) raised by one; otherwise the result is None.
        """
        if self.guard.finished_elsewhere(subscription, delivery):
            delivery.acknowledge()
            return None
        if not in_place:
            self.receive(delivery, subscription)
        run = self._read(delivery, subscription, retries)
        said = log_of_run(run.request)
        try:
            if self._signals is not None:
                self._signals.received(run)
            outcome = self._run(run)
            if outcome is None:
                return None  # it goes back to the broker with what was prefetched
            if self._signals is not None:
                self._signals.tell(run, outcome)
            run = self._states.end(run, outcome)
            if in_place and isinstance(outcome, Retried):
                self.guard.postpone(run.name, run.in_place + 1)
                report(run, outcome)
                return outcome.delay
            self._settler.settle(run, outcome, in_order=in_place)
            return None
        finally:
            if self._once.wanted:
                self._once.release(run)
            end_log_of_run(said)

    def terminate(self, task_id: str) -> None:
        """Interrupt the task of this id, if it runs here; it ends as revoked."""
        self._interrupts.interrupt(task_id, Terminate)

    def hurry(self) -> None:
        """Nobody else comes: from now on batches run as they are."""
        self._hurried = True
        for gathering in self._gatherings.values():
            gathering.hurry()

    def stop(self) -> None:
        """Give up at once what the broker does not let be settled."""
        self._settler.stop()
        self._singles.close()

    def join(self, deadline: float) -> bool:
        """Wait for what ran and is not settled yet, at most until `deadline` (monotonic seconds); whether all is."""
        return self._settler.join(deadline)

    def close(self) -> None:
        self._settler.close()
        self._states.close()
        self._interrupts.close()
        self._loop.close()

    def _read(self, delivery: Delivery, subscription: str, retries: int) -> Run:
        route = self._routes[delivery.topic, subscription]
        headers = route.headers(delivery)
        name = headers.get(message.TASK) or route.task.name
        task = route.by_name.get(name) or route.starmap(name)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        unreadable = None
        if task is not None:
            try:
                args, kwargs = _arguments(self._claims.fetch(delivery.value, headers), headers, task)
            except PulsarTasksError as error:
                unreadable = error
        else:
            name = name[: message.LONGEST_ID]  # for logs, where it is of no more use
        id_ = headers.get(message.TASK_ID) or _message_id(delivery, headers, subscription)
        if len(id_) > message.LONGEST_ID:
            id_ = delivery.message_id
        crash_name = message_name(subscription, id_)
        story = self.guard.story(crash_name)
        if story is not None:
            retries += story.retries
        request = Request(
            id=id_,
            task=name,
            topic=delivery.topic,
            subscription=subscription,
            key=delivery.key,
            args=args,
            kwargs=kwargs,
            retries=read_int(headers, message.ATTEMPT) + retries,
            headers=delivery.properties,
            published_at=delivery.published_at,
            called_directly=False,
        )
        known = headers.get(message.TASK_ID) == id_  # by its caller, who may ask for its result
        return Run(
            delivery,
            headers,
            route,
            task,
            request,
            retries,
            crash_name,
            wants_result=task is not None and known and not task.ignores_result(headers),
            story=story,
            unreadable=unreadable,
        )

    def _run(self, run: Run) -> Outcome | None:
        """What became of it; None if the worker stops and it was not begun."""
        early = run.route.task.options.ack == "early"
        outcome = _foregone(run, self._clock)
        if run.task is None or outcome is not None:
            if early:
                run.delivery.acknowledge()
            return outcome
        attempt = self._choose(run, run.task)
        if run.task.options.ack == "manual":
            _delivery.set(run.delivery)
        alone = run.story is not None and run.story.crashes > 0
        if alone:
            _log.warning("message.suspected")
        if not self.guard.begin(run.name, retries=run.in_place, time_limit=run.task.time_limit, alone=alone):
            return None
        try:
            if early:
                run.delivery.acknowledge()
            return attempt(run.request)
        except Exception as error:  # noqa: BLE001 - a middleware's: what the task raises is an outcome already
            if self._signals is not None:
                self._signals.internal_error(run, error)
            return Died(error, "failed")
        finally:
            self.guard.end(alone=alone)

    def _choose(self, run: Run, task: Task[..., Any]) -> Execute:
        """To attempt it, or to skip what ran or runs elsewhere."""
        if (message.ATTEMPT in run.headers and self._copies.is_second(run)) or (
            message.SINGLE in run.headers and not self._singles.claim(run)
        ):
            return self._skip_copy
        if task.options.once and not self._once.claim(run, lasting=task.options.once_for):
            return self._skip_done
        return self._attempt

    def _call(self, request: Request) -> Outcome:
        """The innermost of the onion: call the function."""
        task = self._routes[request.topic, request.subscription].by_name[request.task]
        if task.options.batch is not None:
            return self._gatherings[task.name].join(request, self.guard.slot)
        policy = task.retry_policy
        args, kwargs = request.args, dict(request.kwargs)
        for name, kind in task.injected.items():
            kwargs[name] = self._resources[kind]
        acknowledgement = context = None
        if task.options.bind:
            acknowledgement = Acknowledgement(_delivery.get().acknowledge) if task.options.ack == "manual" else None
            context = TaskContext(request, policy, acknowledgement, self._states.said, task)
            args = [context, *args]
        try:
            self._begin(task, request)
            value = self._interruptibly(task, request.id, args, kwargs)
            if context is not None and context.retrying is not None:
                raise context.retrying
            if acknowledgement is not None and not acknowledgement.end():
                raise UnacknowledgedError(f"{request.task}[{request.id}] returned without self.ack()")
            return Succeeded(value)
        except Terminate:
            return Revoked("terminated")
        except (Retry, Replace, Reject, Ignore) as verb:
            return _said(verb, request, policy)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: a task does not end its worker
            return _failure(error, policy, request.retries)
        finally:
            if acknowledgement is not None:
                acknowledgement.end()

    def _begin(self, task: Task[..., Any], request: Request) -> None:
        """Tell the caller that the task begins, or have it told what the task will tell; and the task's class."""
        if task.starting is not None:
            task.starting(request.id, request.args, request.kwargs)
        if not (task.options.track_started or task.options.bind):
            return
        if task.ignores_result(request.headers) or request.headers.get(message.TASK_ID) != request.id:
            return
        if task.options.track_started:
            self._states.tell(request, "STARTED")
        else:
            self._states.begin(request)

    def _gather(self, task: Task[..., Any], batch: Batch) -> Gathering:
        return Gathering(
            batch,
            lambda requests, slots: copy_context().run(self._call_batch, task, requests, slots),
            concurrency=task.options.concurrency or 1,
            hurried=lambda: self._hurried or self.guard.alone,
        )

    def _call_batch(self, task: Task[..., Any], requests: Sequence[Request], slots: Sequence[int]) -> Sequence[Outcome]:
        """Call the function once for all these messages."""
        values = [value for request in requests for value in (*request.args, *request.kwargs.values())]
        kwargs = {name: self._resources[kind] for name, kind in task.injected.items()}
        clear_contextvars()  # what is logged is no one message's
        bind_contextvars(task=task.name, messages=len(values))
        self.guard.limit(slots, task.options.time_limit)
        try:
            # Without an id: whoever terminates one of them does not mean the others.
            returned = self._interruptibly(task, "", [values], kwargs)
            results = results_of(returned, len(values), task=task.name)
        except BaseException as error:  # noqa: BLE001 - as in a run of one
            results = [error] * len(values)
        return [_outcome(result, request, task.retry_policy) for result, request in zip(results, requests, strict=True)]

    def _interruptibly(self, task: Task[..., Any], task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        limit = task.options.soft_time_limit
        if not task.is_async:
            process = os.getpid()
            try:
                return self._interrupts.run(RunningFunction(task.name, task_id), limit, task.function, args, kwargs)
            finally:
                if os.getpid() != process:
                    _end_copy()
        running = RunningCoroutine(task.name, task_id, loop=self._loop.get())

        def wait(*args: Any, **kwargs: Any) -> Any:
            return self._loop.run(_contained(running.drive(task.function(*args, **kwargs))))

        return self._interrupts.run(running, limit, wait, args, kwargs)


def _end_copy() -> NoReturn:
    """End a process that a task forked and that came back from it: it would go on as another one of this worker."""
    _log.error("task.forked", exc_info=True)
    os._exit(1)


def _outcome(result: object, request: Request, policy: RetryPolicy) -> Outcome:
    """What became of one message of a batch, by what the function left in its place."""
    if not isinstance(result, BaseException):
        return Succeeded(result)
    if isinstance(result, Retry):
        return _said(result, request, policy)
    return _failure(result, policy, request.retries)


def _said(verb: Retry | Replace | Reject | Ignore, request: Request, policy: RetryPolicy) -> Outcome:
    """What the task itself says is to become of it."""
    match verb:
        case Retry() if not verb.counted and not policy.has_left(request.retries):
            none_left = MaxRetriesExceededError(f"{request.task}[{request.id}] failed {request.retries + 1} times")
            return Died(verb.cause or none_left, "failed")
        case Retry():
            return Retried(verb.cause or verb, max(0.0, verb.delay))
        case Replace():
            return Replaced(verb.canvas)
        case Reject():
            return Retried(verb, 0.0) if verb.requeue else Died(verb, "rejected")
        case _:
            return Skipped("ignored")


def _failure(error: BaseException, policy: RetryPolicy, retries: int) -> Outcome:
    if isinstance(error, Reject):
        return Died(error, "rejected")
    if (isinstance(error, UnacknowledgedError) or policy.covers(error)) and policy.has_left(retries):
        return Retried(error, policy.delay(retries, random.random))
    return Died(error, "failed")


def _foregone(run: Run, clock: Clock) -> Outcome | None:
    """What becomes of a message that is not to run; None for all others."""
    if run.task is None:
        return _unknown(run, clock.now())
    if run.unreadable is not None:
        return _unreadable(run, run.unreadable, clock.now())
    return None if run.story is None else _verdict(run, run.story, run.task)


def _verdict(run: Run, story: CrashStory, task: Task[..., Any]) -> Outcome | None:
    """What becomes of a message because of what it did to other processes; None if it may run."""
    if story.crashes >= task.options.max_crashes:
        return Died(WorkerCrashedError(f"{story.crashes} worker processes died while they ran it"), "crashed")
    if story.time_limit_hit == run.in_place:
        error = TimeLimitExceeded(
            f"{task.name} was still running after its time limit of {task.options.time_limit:g} s"
        )
        return _failure(error, task.retry_policy, run.request.retries)
    return None


def _message_id(delivery: Delivery, headers: Mapping[str, str], subscription: str) -> str:
    """The id of a message whose caller gave it none: that of its first copy, so the same in every attempt."""
    own = headers.get(message.REAL_SUBSCRIPTION) == subscription
    return (headers.get(message.ORIGIN_MESSAGE_ID) if own else None) or delivery.message_id


def _arguments(value: bytes, headers: Mapping[str, str], task: Task[..., Any]) -> tuple[list[Any], dict[str, Any]]:
    if (lie := message.untrue(headers)) is not None:
        raise UnreadableMessageError(lie)
    if message.TASK in headers:
        return task.codec.decode(value)
    if task.event_topic is not None:
        return [task.codec.payload.decode(value)], {}
    return task.codec.decode_keywords(value)


def _unreadable(run: Run, error: PulsarTasksError, now: float) -> Outcome:
    """What becomes of a message that cannot be read: none of it is its own fault while the blob store is away."""
    if isinstance(error, UnreadableMessageError):
        return Died(error, "unreadable")
    if isinstance(error, OSError):
        return Retried(error, backoff(run.request.retries, maximum=60.0))
    # The store says no, e.g. to the credentials: somebody may mend that, like a task that is not known yet.
    delay = unknown_task_delay(now - run.first_published, run.request.retries)
    return Died(error, "unreadable") if delay is None else Retried(error, delay)


def _unknown(run: Run, now: float) -> Outcome:
    known = ", ".join(sorted(run.route.by_name)) or "none"
    error = UnknownTaskError(f"no task {run.request.task!r} on this topic; known here: {known}")
    delay = unknown_task_delay(now - run.first_published, run.request.retries)
    return Died(error, "unknown task") if delay is None else Retried(error, delay)


async def _contained(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The same, without the two exceptions that would end the loop, and with it every task that awaits on it."""
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise RemoteError.capture(error).restore() from error


class _LoopThread:
    """An event loop on a thread of its own, started by the first ``async def`` task."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run `coroutine` on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.get()).result()

    def get(self) -> asyncio.AbstractEventLoop:
        """The loop, which runs."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="pulsartasks-loop", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        with self._lock:
            if self._loop is not None and self._thread is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
                self._loop = self._thread = None
