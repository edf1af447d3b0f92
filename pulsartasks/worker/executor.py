"""Running one message: read it, run its task, have what became of it settled."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Container, Coroutine, Mapping, Sequence
from typing import Any

import structlog
from structlog.contextvars import bind_contextvars, reset_contextvars
from typing_extensions import assert_never

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery
from pulsartasks.context import TaskContext
from pulsartasks.errors import Reject, Retry, TaskError, Terminate, UnknownTaskError, UnreadableMessageError
from pulsartasks.message import Request, read_int
from pulsartasks.middleware.base import Middleware, wrap_execute
from pulsartasks.outcome import Died, Outcome, Retried, Revoked, Succeeded
from pulsartasks.results.base import text_of
from pulsartasks.retry import unknown_task_delay
from pulsartasks.task import Task
from pulsartasks.worker.interrupt import Interrupts, RunningCoroutine, RunningFunction
from pulsartasks.worker.resources import Resources
from pulsartasks.worker.run import Route, Run
from pulsartasks.worker.settlement import Settler

SETTLE_PATIENCE = 60.0
"""Seconds to go on trying when the broker takes no retry, dead letter or result; then the message is given back.
Where order is kept there is no end to it: what comes behind must wait anyway."""

_log = structlog.get_logger("pulsartasks")


class Executor:
    """Runs deliveries to their end; shared by all threads of a worker process."""

    def __init__(
        self,
        app: PulsarTasks,
        routes: Mapping[tuple[str, str], Route],
        resources: Resources,
        middleware: Sequence[Middleware] = (),
        *,
        revoked: Container[str] = frozenset(),
    ) -> None:
        self._routes = routes
        self._resources = resources
        self._attempt = wrap_execute(middleware, self._call)
        self._settler = Settler(app)
        self._loop = _LoopThread()
        self._interrupts = Interrupts(revoked)

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
            patience = math.inf if in_place else SETTLE_PATIENCE
            settled = outcome if postponed is not None else self._settler.settle(run, outcome, patience=patience)
            if settled is not None:
                _report(settled, time.perf_counter() - began)
            else:
                delivery.release()
            return postponed
        finally:
            reset_contextvars(**context)

    def terminate(self, task_id: str) -> None:
        """Interrupt the task of this id, if it runs here; it ends as revoked."""
        self._interrupts.interrupt(task_id, Terminate)

    def stop(self) -> None:
        """Give up at once what the broker does not let be settled."""
        self._settler.stop()

    def close(self) -> None:
        self._interrupts.close()
        self._loop.close()

    def _read(self, delivery: Delivery, subscription: str, retries: int) -> Run:
        route = self._routes[delivery.topic, subscription]
        headers = route.headers(delivery)
        name = headers.get(message.TASK) or route.task.name
        task = route.by_name.get(name)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        unreadable = None
        if task is not None:
            try:
                args, kwargs = _arguments(delivery.value, headers, task)
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
            headers=delivery.properties,
            published_at=delivery.published_at,
            called_directly=False,
        )
        return Run(delivery, headers, route, task, request, unreadable)

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
            return Succeeded(self._interruptibly(task, request, args, kwargs))
        except Terminate:
            return Revoked("terminated")
        except Retry as verb:
            return Retried(verb.cause or verb, max(0.0, verb.delay))
        except Reject as verb:
            return Died(verb, "rejected")
        except BaseException as error:  # noqa: BLE001 - also SystemExit: a task does not end its worker
            if policy.covers(error) and policy.has_left(request.retries):
                return Retried(error, policy.delay(request.retries, random.random))
            return Died(error, "failed")

    def _interruptibly(
        self, task: Task[..., Any], request: Request, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        limit = task.options.soft_time_limit
        if not task.is_async:
            return self._interrupts.run(RunningFunction(task.name, request.id), limit, task.function, args, kwargs)
        running = RunningCoroutine(task.name, request.id, self._loop.get())

        def wait(*args: Any, **kwargs: Any) -> Any:
            return self._loop.run(_contained(running.drive(task.function(*args, **kwargs))))

        return self._interrupts.run(running, limit, wait, args, kwargs)


def _arguments(value: bytes, headers: Mapping[str, str], task: Task[..., Any]) -> tuple[list[Any], dict[str, Any]]:
    if message.TASK in headers:
        return task.codec.decode(value)
    if task.event_topic is not None:
        return [task.codec.payload.decode(value)], {}
    return task.codec.decode_keywords(value)


def _unknown(run: Run) -> Outcome:
    known = ", ".join(sorted(run.route.by_name)) or "none"
    error = UnknownTaskError(f"no task {run.request.task!r} on this topic; known here: {known}")
    delay = unknown_task_delay(time.time() - run.first_published, run.request.retries)
    return Died(error, "unknown task") if delay is None else Retried(error, delay)


def _report(outcome: Outcome, seconds: float) -> None:
    match outcome:
        case Succeeded():
            _log.info("message.succeeded", seconds=round(seconds, 4))
        case Retried(error, delay):
            _log.warning("message.retried", error=text_of(error, repr), delay=round(delay, 3))
        case Died(error, reason):
            _log.error(
                "message.died",
                reason=reason,
                error=text_of(error, repr),
                exc_info=error if reason == "failed" else None,
            )
        case Revoked(reason):
            _log.info("message.revoked", reason=reason)
        case _:
            assert_never(outcome)


async def _contained(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The same, without the two exceptions that would end the loop, and with it every task that awaits on it."""
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise TaskError(repr(error)) from error


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
