"""Settling one attempt: retry, dead letter or result is confirmed by the broker before the message is acknowledged."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from functools import cached_property, partial
from typing import Any

import msgspec
import structlog
from typing_extensions import assert_never

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.errors import CallError, InvalidArgumentsError, PulsarTasksError, TaskRevokedError
from pulsartasks.outcome import Died, Outcome, Replaced, Retried, Revoked, Skipped, Succeeded, Unsuccessful
from pulsartasks.results.base import LONGEST_TEXT, Extended, RemoteError, Result, State, text_of
from pulsartasks.retry import backoff
from pulsartasks.serializers import UNREADABLE, encode
from pulsartasks.worker.follow_up import FollowUp
from pulsartasks.worker.guard import Guard
from pulsartasks.worker.letters import dead_letter, retry_copy, worker_name
from pulsartasks.worker.once import Once
from pulsartasks.worker.results import ResultThread
from pulsartasks.worker.run import Run

SETTLE_PATIENCE = 60.0
"""Seconds to go on trying when the broker takes no retry, dead letter or result; then the message is given back.
Where order is kept there is no end to it: what comes behind must wait anyway."""

_log = structlog.get_logger("pulsartasks")


class Settler:
    """Settles attempts; shared by all threads of a worker process."""

    def __init__(self, app: PulsarTasks, guard: Guard, once: Once, follow_up: FollowUp) -> None:
        self._app = app
        self._guard = guard
        self._once = once
        self._follow_up = follow_up
        self._stopping = threading.Event()
        self._results = ResultThread(
            lambda packed: app.results.store(packed),  # noqa: PLW0108 - the store is opened by its first use
            self._stopping,
            SETTLE_PATIENCE,
        )

    @cached_property
    def _log(self) -> Any:
        """A logger whose configuration is looked up at its first line, and not for each."""
        return structlog.get_logger("pulsartasks").bind()

    def stop(self) -> None:
        """From now on give up at the first refusal: the broker delivers the message again elsewhere."""
        self._stopping.set()

    def join(self, deadline: float) -> bool:
        """Wait for what is on its way, at most until `deadline` (monotonic seconds); whether all is settled."""
        return self._results.join(deadline)

    def close(self) -> None:
        self._results.close()

    def settle(self, run: Run, outcome: Outcome, *, in_order: bool) -> None:
        """Settle and log what it was settled as: a task whose result cannot be sent has failed.

        Returns when that is done, or the message given back; but the result of a success, where no order is to be
        kept, is stored together with others while this thread goes on.
        """
        more = run.once or message.UNIQUE in run.headers or message.CANVAS in run.headers
        if isinstance(outcome, Succeeded) and not more and not run.wants_result:
            self._finish(run, outcome)  # what all that follows would come to: for most messages there is nothing to say
            return
        if isinstance(outcome, Succeeded) and not more and not in_order:
            try:
                packed = self._app.results.pack(self._result(run, "SUCCESS", outcome.value), reply_to=run.reply_to)
            except PulsarTasksError:
                pass  # it is met again below, where there is an answer to it
            else:
                self._results.add(packed, partial(copy_context().run, partial(self._end_success, run, outcome)))
                return
        self._settle(run, outcome, patience=math.inf if in_order else SETTLE_PATIENCE)

    def _end_success(self, run: Run, outcome: Succeeded, error: PulsarTasksError | None) -> None:
        """What follows when the result of a success was stored, or given up."""
        if error is None:
            self._finish(run, outcome)
        elif isinstance(error, CallError):
            self._settle(run, Died(error, "failed"), patience=SETTLE_PATIENCE)
        else:
            _log.warning("message.unsettled", error=str(error))
            run.delivery.release()

    def _settle(self, run: Run, outcome: Outcome, *, patience: float) -> None:
        """Settle, trying for `patience` seconds; then the message is given back."""
        began, tries = time.monotonic(), 0
        while True:
            try:
                self._publish(run, outcome)
                break
            except CallError as error:
                if isinstance(outcome, Died):
                    _log.error("message.unsettled", error=str(error), try_number=tries + 1)
                    run.delivery.release()
                    return
                outcome = Died(error, "failed")  # its result: the next round says so to the caller
            except PulsarTasksError as error:
                _log.warning("message.unsettled", error=str(error), try_number=tries + 1)
                if time.monotonic() - began > patience or self._stopping.wait(backoff(tries, factor=0.2, maximum=5.0)):
                    run.delivery.release()
                    return
                tries += 1
        self._finish(run, outcome)

    def _publish(self, run: Run, outcome: Outcome) -> None:
        """All that must be confirmed before the message is acknowledged."""
        match outcome:
            case Succeeded(value):
                self._keep_result(run, "SUCCESS", value)
                self._follow(run, outcome)  # before the record, behind which it would never be sent
                if run.once:
                    self._once.record(run)
            case Retried(_, delay):
                self._app.publish(retry_copy(run, delay, now=self._app.clock.now()))
            case Died(error):
                if (topic := run.route.task.topics.dead_letter) is not None:
                    self._app.publish(dead_letter(run, topic, outcome, now=self._app.clock.now()))
                self._keep_result(run, "FAILURE", error=error)
                self._follow(run, outcome)
            case Revoked(reason):
                self._keep_result(run, "REVOKED", error=TaskRevokedError(reason))
                self._follow(run, outcome)
            case Replaced(canvas):
                self._follow_up.replace(run, canvas)
            case Skipped():
                self._follow(run, outcome)
            case _:
                assert_never(outcome)
        if run.unique_key is not None and _has_ended(outcome):
            self._app.unique.release(run.request.task, run.unique_key, run.request.id)

    def _follow(self, run: Run, outcome: Outcome) -> None:
        if message.CANVAS in run.headers:
            self._follow_up.follow(run, outcome)

    def _keep_result(self, run: Run, state: State, value: object = None, *, error: BaseException | None = None) -> None:
        if run.wants_error if state == "FAILURE" else run.wants_result:
            self._app.results.keep(self._result(run, state, value, error=error), reply_to=run.reply_to)

    def _result(self, run: Run, state: State, value: object = None, *, error: BaseException | None = None) -> Result:
        return Result(
            id=run.request.id,
            task=run.request.task,
            state=state,
            value=msgspec.Raw(encode(value, what=f"the result of {run.request.task}()")),
            error=None if error is None else RemoteError.capture(error),
            retries=run.request.retries,
            finished_at=time.time(),
            progress=run.progress,
            extended=_extended(run) if self._app.result_extended else None,
        )

    def _finish(self, run: Run, outcome: Outcome) -> None:
        self._guard.settled(run.name, run.request.subscription, run.delivery)
        if run.route.task.options.ack != "early":
            run.delivery.acknowledge()
        if isinstance(outcome, Succeeded):
            self._log.info("message.succeeded", seconds=round(time.perf_counter() - run.began, 4))
        else:
            report(run, outcome)


def _has_ended(outcome: Outcome) -> bool:
    """Whether nothing more comes of the call: neither another attempt, nor the end of one whose copy this was."""
    return not isinstance(outcome, Retried) and outcome != Skipped("copy")


def _extended(run: Run) -> Extended:
    """What is kept of the call itself; of its arguments nothing if they are large, since a result has to fit too."""
    extended = Extended(worker=worker_name(), queue=run.route.task.topics.calls, stamps=run.request.stamps or None)
    with suppress(InvalidArgumentsError, *UNREADABLE):  # the task may have put anything into them
        arguments = encode([run.request.args, run.request.kwargs])
        if run.unreadable is None and len(arguments) <= LONGEST_TEXT:
            args, kwargs = msgspec.json.decode(arguments)
            return msgspec.structs.replace(extended, args=args, kwargs=kwargs)
    return extended


def report(run: Run, outcome: Unsuccessful) -> None:
    """Log what became of an attempt that did not succeed."""
    match outcome:
        case Retried(error, delay):
            _log.warning("message.retried", error=text_of(error, repr), delay=round(delay, 3))
        case Died(error, "failed") if run.task is not None and isinstance(error, run.task.options.throws):
            _log.info("message.died", reason="failed", error=text_of(error, repr))
        case Died(error, reason):
            _log.error(
                "message.died",
                reason=reason,
                error=text_of(error, repr),
                exc_info=error if reason == "failed" else None,
            )
        case Replaced(canvas):
            _log.info("message.replaced", by=repr(canvas)[:LONGEST_TEXT])
        case Skipped(reason):
            _log.info("message.skipped", reason=reason)
        case Revoked(reason):
            _log.info("message.revoked", reason=reason)
        case _:
            assert_never(outcome)
