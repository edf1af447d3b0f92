"""Publishing with a deadline of our own: every message is confirmed, refused or given up in time, never in silence.

The client's own timeout never fires for a message that the broker rejects: it reconnects and sends again without end,
and all that is behind it waits too. Only closing the producer ends that, so a producer that misses a deadline is closed
and replaced; other calls that waited behind it send what they miss again, in order, on the new one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures import TimeoutError as FuturesTimeoutError
from contextlib import suppress
from functools import partial
from typing import Any

import pulsar

from pulsartasks.brokers.base import check_size
from pulsartasks.brokers.pulsar.connection import CLOSE_TIMEOUT, Connection, run_within
from pulsartasks.brokers.pulsar.consumer import message_id_text
from pulsartasks.brokers.pulsar.errors import from_result, translated
from pulsartasks.errors import (
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    InvalidArgumentsError,
    PublishTimeoutError,
    PulsarTasksError,
)
from pulsartasks.message import Publication

MAX_PRODUCERS = 256
"""Producers kept open; beyond it the one unused for longest is closed. Replies need one per calling process."""
_WINDOW = 5_000
"""Messages of one call that are on their way at once, so that a large call is not held in memory twice."""
_PAUSE = 0.1
"""Seconds before trying again to open a producer that the broker could not open."""


class Publisher:
    """The producers of one process, one per topic."""

    def __init__(self, connection: Connection, *, max_producers: int = MAX_PRODUCERS) -> None:
        self._connection = connection
        self._max_producers = max_producers
        self._lock = threading.Lock()
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()

    def publish_many(self, publications: Sequence[Publication], *, timeout: float) -> list[str | PulsarTasksError]:
        """As `Broker.publish_many`."""
        self._connection.check()
        call = _Call(publications, timeout)
        while waiting := call.waiting():
            lanes = [self._enter(topic) for topic in waiting]
            try:
                self._attempt(call, lanes, waiting)
            finally:
                self._leave(lanes)
        return call.outcomes()

    def close(self) -> None:
        """Close all producers; what is unconfirmed is a `ClosedError` to its caller."""
        with self._lock:
            lanes, self._lanes = list(self._lanes.values()), OrderedDict()
        run_within(CLOSE_TIMEOUT, partial(_close_all, lanes, self._connection))

    def _attempt(self, call: _Call, lanes: Sequence[_Lane], waiting: dict[str, list[int]]) -> None:
        """Send what is `waiting`, and wait until it is answered or the call's time is up."""
        opening = {lane.opening: lane for lane in lanes}
        failed = False
        try:
            for opened in as_completed(opening, timeout=call.remaining()):
                lane = opening[opened]
                error = opened.exception()
                failed |= error is not None
                if error is None:
                    call.send(waiting[lane.topic], lane, opened.result())
                elif not isinstance(error, BrokerUnavailableError) or self._connection.closed:
                    call.fail(waiting[lane.topic], error)
        except FuturesTimeoutError:
            pass  # the broker is away: a producer that opens later serves the next call
        call.wait_for_answers()
        for lane in call.broken():
            self._discard(lane)
        if self._connection.closed:
            call.end(ClosedError("the broker was closed before the message was confirmed"))
        elif call.remaining() <= 0:
            call.end(None)
        elif failed:
            time.sleep(min(_PAUSE, call.remaining()))

    def _enter(self, topic: str) -> _Lane:
        """The lane to `topic`, held open until `_leave`."""
        with self._lock:
            lane = self._lanes.get(topic)
            if lane is None:
                lane = self._lanes[topic] = _Lane(topic)
                _in_background(partial(self._open, lane))
            self._lanes.move_to_end(topic)
            lane.users += 1
            surplus = len(self._lanes) - self._max_producers
            unused = [lane for lane in self._lanes.values() if not lane.users][: max(surplus, 0)] if surplus > 0 else []
            for idle in unused:
                del self._lanes[idle.topic]
        for idle in unused:
            _in_background(partial(idle.close, self._connection))
        return lane

    def _leave(self, lanes: Sequence[_Lane]) -> None:
        with self._lock:
            for lane in lanes:
                lane.users -= 1

    def _open(self, lane: _Lane) -> None:
        try:
            producer = lane.open(self._connection)
        except PulsarTasksError as error:
            self._forget(lane)
            lane.opening.set_exception(error)
        else:
            lane.opening.set_result(producer)

    def _discard(self, lane: _Lane) -> None:
        self._forget(lane)
        _in_background(partial(lane.close, self._connection))

    def _forget(self, lane: _Lane) -> None:
        with self._lock:
            if self._lanes.get(lane.topic) is lane:
                del self._lanes[lane.topic]


class _Lane:
    """The way to one topic: a producer, or the promise of one."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.opening: Future[Any] = Future()
        self.users = 0

    def open(self, connection: Connection) -> Any:
        with translated(f"publish to {self.topic}"):
            producer = connection.publishing().create_producer(
                self.topic,
                send_timeout_millis=0,  # our deadline is the only one
                max_pending_messages=0,  # and so is our window: the client would drop what exceeds its own
                max_pending_messages_across_partitions=0,
            )
        return connection.keep(producer)

    def close(self, connection: Connection) -> None:
        """Close the producer, now or as soon as it opened; the client then answers all that waits on it."""

        def close(opening: Future[Any]) -> None:
            if opening.exception() is None:
                with suppress(pulsar.PulsarException):  # it was closed, or the broker is away
                    opening.result().close()
                connection.forget(opening.result())

        self.opening.add_done_callback(close)


def _close_all(lanes: Sequence[_Lane], connection: Connection) -> None:
    for lane in lanes:
        lane.close(connection)


class _Call:
    """One call of `publish_many`: what it sends, what is on its way, and what became of each message."""

    def __init__(self, publications: Sequence[Publication], timeout: float) -> None:
        self._publications = publications
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._changed = threading.Condition()
        self._outcomes: list[str | PulsarTasksError | None] = [_refusal(publication) for publication in publications]
        self._on_the_way: dict[int, _Lane] = {}
        self._sent: set[int] = set()
        self._broken: set[_Lane] = set()

    def remaining(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)

    def waiting(self) -> dict[str, list[int]]:
        """What has no outcome yet, per topic and in order."""
        waiting: dict[str, list[int]] = {}
        for index, outcome in enumerate(self._outcomes):
            if outcome is None:
                waiting.setdefault(self._publications[index].topic, []).append(index)
        return waiting

    def outcomes(self) -> list[str | PulsarTasksError]:
        return [outcome for outcome in self._outcomes if outcome is not None]

    def send(self, indices: Sequence[int], lane: _Lane, producer: Any) -> None:
        """Send these messages in order, unless the time is up before."""
        for index in indices:
            if not self._wait_until_on_the_way(_WINDOW - 1):
                return
            publication = self._publications[index]
            self._sent.add(index)
            self._on_the_way[index] = lane
            try:
                producer.send_async(
                    publication.value,
                    partial(self._answered, index, lane),
                    properties=dict(publication.properties),
                    partition_key=publication.key,
                    deliver_at=_milliseconds(publication.deliver_at),
                )
            except (TypeError, ValueError) as error:  # from the binding
                del self._on_the_way[index]
                self._outcomes[index] = _not_data(error)

    def fail(self, indices: Sequence[int], error: BaseException) -> None:
        for index in indices:
            self._outcomes[index] = error if isinstance(error, PulsarTasksError) else BrokerError(str(error))

    def wait_for_answers(self) -> None:
        """Returns when nothing is on its way any more; what is unanswered at the deadline breaks its lane."""
        if not self._wait_until_on_the_way(0):
            with self._changed:
                self._broken.update(self._on_the_way.values())
                self._on_the_way.clear()

    def broken(self) -> set[_Lane]:
        """The lanes that did not answer in time, or had been closed."""
        with self._changed:
            broken, self._broken = self._broken, set()
        return broken

    def end(self, error: PulsarTasksError | None) -> None:
        """Give all that is still without an outcome `error`, or what the end of the time means for it."""
        with self._changed:
            for index, outcome in enumerate(self._outcomes):
                if outcome is None:
                    self._outcomes[index] = error or self._too_late(index)

    def _too_late(self, index: int) -> PulsarTasksError:
        topic = self._publications[index].topic
        if index in self._sent:
            return PublishTimeoutError(
                f"{topic} did not confirm a message within {self._timeout:g} s; it may or may not have been stored"
            )
        return BrokerUnavailableError(f"could not publish to {topic}: no connection within {self._timeout:g} s")

    def _wait_until_on_the_way(self, at_most: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self._on_the_way) <= at_most, self.remaining())

    def _answered(self, index: int, lane: _Lane, result: Any, message_id: Any) -> None:
        """The broker's word on one message; called on a thread of the client."""
        with self._changed:
            if self._on_the_way.pop(index, None) is None:
                return  # given up before
            if result == pulsar.Result.Ok:
                self._outcomes[index] = message_id_text(message_id)
            elif result == pulsar.Result.AlreadyClosed:
                self._broken.add(lane)  # by a call behind whose message ours waited: send it again
            else:
                self._outcomes[index] = from_result(result, f"publish to {lane.topic}")
            self._changed.notify_all()


def _refusal(publication: Publication) -> PulsarTasksError | None:
    """Why this message is not sent at all, if so."""
    try:
        return check_size(publication)
    except TypeError as error:
        return _not_data(error)


def _not_data(error: Exception) -> InvalidArgumentsError:
    return InvalidArgumentsError(f"a message is bytes, with strings as key and headers: {error}")


def _in_background(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="pulsartasks-producer", daemon=True).start()


def _milliseconds(instant: float | None) -> int | None:
    """For the broker, rounded up since early is worse than late; None for what is due."""
    if instant is None or instant <= time.time():
        return None
    return math.ceil(instant * 1000)
