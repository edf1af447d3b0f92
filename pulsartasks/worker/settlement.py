"""Settling one attempt: retry, dead letter or result is confirmed by the broker before the message is acknowledged."""

from __future__ import annotations

import os
import socket
import threading
import time
from datetime import datetime, timezone

import msgspec
import structlog
from typing_extensions import assert_never

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import check_size
from pulsartasks.errors import CallError, PulsarTasksError, TaskRevokedError
from pulsartasks.message import Publication
from pulsartasks.outcome import Died, Outcome, Retried, Revoked, Skipped, Succeeded
from pulsartasks.results.base import RemoteError, Result, State, text_of, traceback_of
from pulsartasks.retry import backoff
from pulsartasks.serializers import encode
from pulsartasks.worker.guard import Guard
from pulsartasks.worker.once import Once
from pulsartasks.worker.run import Run

LONGEST_TRACEBACK = 16_384
"""Characters of a traceback that travel with a dead letter; its end says most."""
SHORT_STORY = 500
"""Characters of it, and of the error's text, that travel with a message that hardly leaves room for them."""

CUT_VALUE = 1024 * 1024
"""Bytes of the value that are kept of a message which is too large to be kept."""

_log = structlog.get_logger("pulsartasks")


class Settler:
    """Settles attempts; shared by all threads of a worker process."""

    def __init__(self, app: PulsarTasks, guard: Guard, once: Once) -> None:
        self._app = app
        self._guard = guard
        self._once = once
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._stopping = threading.Event()

    def stop(self) -> None:
        """From now on give up at the first refusal: the broker delivers the message again elsewhere."""
        self._stopping.set()

    def settle(self, run: Run, outcome: Outcome, *, patience: float) -> Outcome | None:
        """Settle, trying for `patience` seconds; None if the broker did not take what must come before the ack.

        Gives what it was settled as: a task whose result cannot be sent has failed.
        """
        began, tries = time.monotonic(), 0
        while True:
            try:
                self._settle_once(run, outcome)
            except CallError as error:
                if isinstance(outcome, Died):
                    _log.error("message.unsettled", error=str(error), try_number=tries + 1)
                    return None
                outcome = Died(error, "failed")  # its result: the next round says so to the caller
            except PulsarTasksError as error:
                _log.warning("message.unsettled", error=str(error), try_number=tries + 1)
                if time.monotonic() - began > patience or self._stopping.wait(backoff(tries, factor=0.2, maximum=5.0)):
                    return None
                tries += 1
            else:
                return outcome

    def _settle_once(self, run: Run, outcome: Outcome) -> None:
        match outcome:
            case Succeeded(value):
                if run.wants_result:
                    self._store_result(run, "SUCCESS", value=encode(value, what=f"the result of {run.request.task}()"))
                if run.task is not None and run.task.options.once:
                    self._once.record(run)
            case Retried(_, delay):
                self._app.publish(_retry_copy(run, delay))
            case Died(error, reason):
                if (topic := run.route.task.topics.dead_letter) is not None:
                    self._app.publish(self._dead_letter(run, topic, error, reason))
                self._store_result(run, "FAILURE", error=error)
            case Revoked(reason):
                self._store_result(run, "REVOKED", error=TaskRevokedError(reason))
            case Skipped():
                pass
            case _:
                assert_never(outcome)
        self._guard.settled(run.name, run.request.subscription, run.delivery)
        if run.route.task.options.ack != "early":
            run.delivery.acknowledge()

    def _store_result(
        self, run: Run, state: State, *, value: bytes = b"null", error: BaseException | None = None
    ) -> None:
        if not run.wants_result:
            return
        result = Result(
            id=run.request.id,
            task=run.request.task,
            state=state,
            value=msgspec.Raw(value),
            error=None if error is None else RemoteError.capture(error),
            retries=run.request.retries,
            finished_at=time.time(),
        )
        self._app.results.store(result, reply_to=run.headers.get(message.REPLY_TO))

    def _dead_letter(self, run: Run, topic: str, error: BaseException, reason: str) -> Publication:
        properties = {
            **message.without_retries(run.headers),
            **_origin(run),
            message.REASON: reason,
            message.EXCEPTION_TYPE: type(error).__qualname__,
            message.EXCEPTION_MESSAGE: text_of(error)[:LONGEST_TRACEBACK],
            message.TRACEBACK: traceback_of(error)[-LONGEST_TRACEBACK:],
            message.ATTEMPTS: str(run.request.retries + 1),
            message.WORKER: self._worker,
            message.FAILED_AT: _iso(time.time()),
            message.PUBLISHED_AT: _iso(run.first_published),
        }
        letter = Publication(topic, run.delivery.value, run.delivery.key, properties)
        if check_size(letter) is not None:  # the message itself matters more than the whole story
            properties[message.EXCEPTION_MESSAGE] = properties[message.EXCEPTION_MESSAGE][:SHORT_STORY]
            properties[message.TRACEBACK] = properties[message.TRACEBACK][-SHORT_STORY:]
        return letter if check_size(letter) is None else _cut(letter)


def _retry_copy(run: Run, delay: float) -> Publication:
    due = min(time.time() + delay, message.LATEST_ETA)
    return Publication(
        topic=run.route.task.topics.retry,
        value=run.delivery.value,
        key=run.delivery.key,
        properties={
            **run.headers,
            **_origin(run),
            message.ATTEMPT: str(run.request.retries + 1),
            message.DELAY: str(round(delay * 1000)),
            message.ETA: message.milliseconds(due),
            message.PUBLISHED_AT: _iso(run.first_published),
        },
        deliver_at=due,
    )


def _cut(letter: Publication) -> Publication:
    """As much of a dead letter as can be kept: its sender had more room than a dead letter has.

    Other clients may send up to the broker's own limit, or above it in chunks. Delivered again without end it would
    serve nobody, so its story is kept, its own headers, and of its value the beginning.
    """
    properties = {
        name[:SHORT_STORY]: text[:SHORT_STORY] for name, text in letter.properties.items() if name in message.OURS
    }
    properties[message.CUT] = str(len(letter.value))
    key = letter.key if letter.key is None else letter.key[:SHORT_STORY]
    return Publication(letter.topic, letter.value[:CUT_VALUE], key, properties)


def _origin(run: Run) -> dict[str, str]:
    """Where the message first was, as the Java client says it; a copy of a copy keeps what the first copy said."""
    headers, subscription = run.headers, run.request.subscription
    # Go's client does not say whose copy it is; on a topic of the subscription's own it is this one's.
    unsaid = "" if run.delivery.topic == run.route.task.topics.work else subscription
    if headers.get(message.REAL_SUBSCRIPTION, unsaid) != subscription:
        headers = {}  # what another subscription says of its own: this one takes the message from where it is now
    origin = headers.get(message.ORIGIN_MESSAGE_ID) or headers.get(message.OLD_ORIGIN_MESSAGE_ID)
    return {
        message.REAL_TOPIC: headers.get(message.REAL_TOPIC) or run.delivery.topic,
        message.REAL_SUBSCRIPTION: subscription,
        message.ORIGIN_MESSAGE_ID: origin or run.delivery.message_id,
    }


def _iso(instant: float) -> str:
    return datetime.fromtimestamp(instant, timezone.utc).isoformat(timespec="milliseconds")
