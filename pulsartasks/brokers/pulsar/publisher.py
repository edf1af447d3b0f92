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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures import TimeoutError as FuturesTimeoutError
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import pulsar

from pulsartasks.brokers.base import UNPACKED, Packing, not_data, refusal
from pulsartasks.brokers.pulsar.connection import Connection
from pulsartasks.brokers.pulsar.consumer import message_id_text
from pulsartasks.brokers.pulsar.deadlines import Deadlines
from pulsartasks.brokers.pulsar.diagnosis import WrongSettingError
from pulsartasks.brokers.pulsar.errors import PublishersHeldError, from_result, to_error
from pulsartasks.brokers.pulsar.schema import JsonBytes, explained
from pulsartasks.errors import (
    BacklogFullError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    PublishTimeoutError,
    PulsarTasksError,
)
from pulsartasks.message import Publication
from pulsartasks.options import Compression
from pulsartasks.schemas import Schema

MAX_PRODUCERS = 256
"""Producers kept open; beyond it the one unused for longest is closed. Replies need one per calling process."""
_WINDOW = 1_000
"""Messages of one call that are on their way at once, so that a large call is not held in memory twice."""
_OK, _CLOSED = int(pulsar.Result.Ok), int(pulsar.Result.AlreadyClosed)
_COMPRESSIONS: dict[Compression | None, Any] = {
    None: pulsar.CompressionType.NONE,
    "lz4": pulsar.CompressionType.LZ4,
    "zlib": pulsar.CompressionType.ZLib,
    "zstd": pulsar.CompressionType.ZSTD,
    "snappy": pulsar.CompressionType.SNAPPY,
}
_BATCHES = {False: pulsar.BatchingType.Default, True: pulsar.BatchingType.KeyBased}
_PAUSE = 0.1
"""Seconds before trying again to open a producer that the broker could not open."""

_Route: TypeAlias = tuple[str, str | None]
"""A topic, and the producer's name where the publication gives one."""


class Publisher:
    """The producers of one process, one per topic, and one for each name that publications to it give."""

    def __init__(self, connection: Connection, *, max_producers: int = MAX_PRODUCERS) -> None:
        self._connection = connection
        self._max_producers = max_producers
        self._lock = threading.Lock()
        self._outlets: OrderedDict[_Route, _Outlet] = OrderedDict()
        self._deadlines = Deadlines(self._discard)
        self.schemas: dict[str, Schema] = {}
        """What the producers of some topics register."""
        self.packings: dict[str, Packing] = {}

    def publish_many(self, publications: Sequence[Publication], *, timeout: float) -> list[str | PulsarTasksError]:
        """As `Broker.publish_many`."""
        self._connection.check()
        deadline, sent = time.monotonic() + timeout, False
        if len(publications) == 1:
            outcome, sent = self._send_alone(publications[0], deadline)
            if outcome is not None:
                return [outcome]
        call = _Call(publications, timeout, deadline, sent=sent)
        while waiting := call.waiting():
            outlets: list[_Outlet] = []
            try:
                for route in waiting:
                    outlets.append(self._enter(route))  # noqa: PERF401 - if one raises, those before it are left
                self._attempt(call, outlets, waiting)
            finally:
                self._leave(outlets)
        return call.outcomes()

    def retire(self, producer: str) -> None:
        """Close the producers of this name, and wait for that."""
        with self._lock:
            outlets = [outlet for outlet in self._outlets.values() if outlet.producer == producer]
            for outlet in outlets:
                del self._outlets[outlet.route]
        if outlets:
            self._connection.end(partial(_close_all, outlets, self._connection))

    def close(self) -> None:
        """Close all producers; what is unconfirmed is a `ClosedError` to its caller."""
        with self._lock:
            outlets, self._outlets = list(self._outlets.values()), OrderedDict()
        self._connection.end(partial(_close_all, outlets, self._connection))

    def _send_alone(self, publication: Publication, deadline: float) -> tuple[str | PulsarTasksError | None, bool]:
        """What becomes of a single message, and whether it was sent; None if that needs more than an open producer.

        By the client's blocking call: a callback would take the GIL on a thread of the client, which costs as much as
        all the rest.
        """
        if (refused := refusal(publication)) is not None:
            return refused, False
        outlet = self._enter((publication.topic, publication.producer))
        try:
            if outlet.client_producer is None:
                return None, False
            with self._deadlines.watch(outlet, deadline):
                outcome = outlet.send(publication)
            if outcome is None:  # closed before there was an answer
                self._discard(outlet)
            return outcome, True
        finally:
            self._leave([outlet])

    def _attempt(self, call: _Call, outlets: Sequence[_Outlet], waiting: dict[_Route, list[int]]) -> None:
        """Send what is `waiting`, and wait until it is answered or the call's time is up."""
        for outlet in _as_they_open(outlets, call):
            if outlet.failure is None:
                call.send(waiting[outlet.route], outlet)
            else:
                call.fail(waiting[outlet.route], outlet.topic, outlet.failure)
        call.wait_for_answers()
        for outlet in call.broken():
            self._discard(outlet)
        if self._connection.closed:
            call.end(ClosedError("the broker was closed before the message was confirmed"))
        elif call.remaining() <= 0:
            call.end()
        elif any(outlet.failure for outlet in outlets):
            time.sleep(min(_PAUSE, call.remaining()))

    def _enter(self, route: _Route) -> _Outlet:
        """The outlet of `route`, not closed for want of use until `_leave`."""
        with self._lock:
            outlet = self._outlets.get(route)
            if outlet is None:
                outlet = _Outlet(*route, self.schemas.get(route[0]), self.packings.get(route[0], UNPACKED))
                # First: where no thread is to be had, nobody may wait for what will never be open.
                _in_background(partial(self._open, outlet))
                self._outlets[route] = outlet
            self._outlets.move_to_end(route)
            outlet.users += 1
            surplus = len(self._outlets) - self._max_producers
            unused = [each for each in self._outlets.values() if not each.users][:surplus] if surplus > 0 else []
        with suppress(RuntimeError):  # no thread is to be had: it stays open until the client is closed
            for idle in unused:
                self._discard(idle)
        return outlet

    def _leave(self, outlets: Sequence[_Outlet]) -> None:
        with self._lock:
            for outlet in outlets:
                outlet.users -= 1

    def _open(self, outlet: _Outlet) -> None:
        try:
            producer = outlet.open(self._connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
            self._forget(outlet)
            outlet.opening.set_exception(error)
        else:
            outlet.client_producer = producer
            outlet.opening.set_result(producer)

    def _discard(self, outlet: _Outlet) -> None:
        self._forget(outlet)
        _in_background(partial(outlet.close, self._connection))

    def _forget(self, outlet: _Outlet) -> None:
        with self._lock:
            if self._outlets.get(outlet.route) is outlet:
                del self._outlets[outlet.route]


class _Outlet:
    """What one topic is published through: a producer, or the promise of one."""

    def __init__(self, topic: str, producer: str | None, schema: Schema | None, packing: Packing) -> None:
        self.topic = topic
        self.producer = producer
        self.route: _Route = (topic, producer)
        self._schema = schema
        self._packing = packing
        self.opening: Future[Any] = Future()
        self.client_producer: Any = None
        """The client's own, once it is open."""
        self.users = 0

    @property
    def failure(self) -> BaseException | None:
        """Why it could not be opened, if so; None also while it opens."""
        return self.opening.exception() if self.opening.done() else None

    def open(self, connection: Connection) -> Any:
        with explained(connection, self.topic, self._schema), connection.explaining(f"publish to {self.topic}"):
            producer = connection.publishing().create_producer(
                self.topic,
                self.producer,
                schema=JsonBytes(self._schema) if self._schema is not None else pulsar.schema.BytesSchema(),
                send_timeout_millis=0,  # our deadline is the only one
                max_pending_messages=0,  # and so is our window: the client would drop what exceeds its own
                max_pending_messages_across_partitions=0,
                compression_type=_COMPRESSIONS[self._packing.compression],
                # What has a sequence is told apart by it, and a batch has one for all.
                batching_enabled=self._packing.batching and self.producer is None,
                batching_type=_BATCHES[self._packing.by_key],
                batching_max_publish_delay_ms=1,
                **connection.encryption,
            )
        return connection.keep(producer)

    def send(self, publication: Publication) -> str | PulsarTasksError | None:
        """Send a message through the open producer; None if that was closed before there was an answer."""
        try:
            message_id = self.client_producer.send(publication.value, **_send_options(publication))
        except pulsar.AlreadyClosed:
            return None
        except (TypeError, ValueError, OverflowError) as error:  # from the binding
            return not_data(error)
        except pulsar.Interrupted:  # see errors.translated
            raise KeyboardInterrupt from None
        except pulsar.PulsarException as error:
            return to_error(type(error).__name__, f"publish to {self.topic}")
        return message_id_text(message_id)

    def close(self, connection: Connection) -> None:
        """Close the producer, now or as soon as it opened; the client then answers all that waits on it."""

        def close(opening: Future[Any]) -> None:
            if opening.exception() is None:
                with suppress(pulsar.PulsarException):  # it was closed, or the broker is away
                    opening.result().close()
                connection.forget(opening.result())

        self.opening.add_done_callback(close)


def _as_they_open(outlets: Sequence[_Outlet], call: _Call) -> Iterator[_Outlet]:
    """Each outlet once it is open or failed to; those that still wait when the call's time is up serve the next one."""
    waiting = {}
    for outlet in outlets:
        if outlet.opening.done():
            yield outlet
        else:
            waiting[outlet.opening] = outlet
    with suppress(FuturesTimeoutError):
        for opened in as_completed(waiting, timeout=call.remaining()) if waiting else ():
            yield waiting[opened]


def _close_all(outlets: Sequence[_Outlet], connection: Connection) -> None:
    for outlet in outlets:
        outlet.close(connection)


class _Call:
    """One call of `publish_many`: what it sends, what is on its way, and what became of each message."""

    def __init__(self, publications: Sequence[Publication], timeout: float, deadline: float, *, sent: bool) -> None:
        self._publications = publications
        self._timeout = timeout
        self.deadline = deadline
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._outcomes: list[str | PulsarTasksError | None] = [refusal(publication) for publication in publications]
        self._on_the_way: dict[int, _Outlet] = {}
        self._sent: set[int] = {0} if sent else set()
        self._failures: dict[str, BaseException] = {}
        self._broken: set[_Outlet] = set()

    def remaining(self) -> float:
        return max(self.deadline - time.monotonic(), 0.0)

    def waiting(self) -> dict[_Route, list[int]]:
        """What has no outcome yet, per topic and producer's name, and in order."""
        waiting: dict[_Route, list[int]] = {}
        for index, outcome in enumerate(self._outcomes):
            if outcome is None:
                publication = self._publications[index]
                waiting.setdefault((publication.topic, publication.producer), []).append(index)
        return waiting

    def outcomes(self) -> list[str | PulsarTasksError]:
        return [outcome for outcome in self._outcomes if outcome is not None]

    def send(self, indices: Sequence[int], outlet: _Outlet) -> None:
        """Send these messages in order, unless the time is up before."""
        send_async, answered = outlet.client_producer.send_async, self._answered
        for index in indices:
            if len(self._on_the_way) >= _WINDOW and not self._wait_until_on_the_way(_WINDOW // 2):
                return
            publication = self._publications[index]
            self._sent.add(index)
            self._on_the_way[index] = outlet
            try:
                send_async(publication.value, partial(answered, index, outlet), **_send_options(publication))
            except (TypeError, ValueError, OverflowError) as error:  # from the binding
                del self._on_the_way[index]
                self._outcomes[index] = not_data(error)

    def fail(self, indices: Sequence[int], topic: str, error: BaseException) -> None:
        """These messages found no producer, which ends it for them unless the broker may come back in time."""
        self._failures[topic] = error
        if isinstance(error, PublishersHeldError) or (
            isinstance(error, BrokerUnavailableError) and not isinstance(error, WrongSettingError)
        ):
            return
        for index in indices:
            self._outcomes[index] = error if isinstance(error, PulsarTasksError) else BrokerError(str(error))

    def wait_for_answers(self) -> None:
        """Returns when nothing is on its way any more; what is unanswered at the deadline breaks its outlet."""
        if not self._wait_until_on_the_way(0):
            with self._changed:
                self._broken.update(self._on_the_way.values())
                self._on_the_way.clear()

    def broken(self) -> set[_Outlet]:
        """The outlets that did not answer in time, or had been closed."""
        with self._changed:
            broken, self._broken = self._broken, set()
        return broken

    def end(self, error: PulsarTasksError | None = None) -> None:
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
        why = self._failures.get(topic, f"could not publish to {topic}: there is no connection")
        kind = BacklogFullError if isinstance(why, PublishersHeldError) else BrokerUnavailableError
        return kind(f"{why}, for {self._timeout:g} s")

    def _wait_until_on_the_way(self, at_most: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self._on_the_way) <= at_most, self.remaining())

    def _answered(self, index: int, outlet: _Outlet, result: Any, message_id: Any) -> None:
        """The broker's word on one message; called on a thread of the client."""
        with self._lock:  # the condition's own, which is taken without a step of Python
            if self._on_the_way.pop(index, None) is None:
                return  # given up before
            code = int(result)  # comparing the codes themselves takes longer than all the rest
            if code == _OK:
                self._outcomes[index] = message_id_text(message_id)
            elif code == _CLOSED:
                self._broken.add(outlet)  # by a call behind whose message ours waited: send it again
            else:
                self._outcomes[index] = from_result(result, f"publish to {outlet.topic}")
            if len(self._on_the_way) in (0, _WINDOW // 2):
                self._changed.notify_all()


def _in_background(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="pulsartasks-producer", daemon=True).start()


def _send_options(publication: Publication) -> dict[str, Any]:
    """What the client is told of a message beside its value."""
    return {
        "properties": dict(publication.properties),
        "partition_key": publication.key,
        "sequence_id": publication.sequence,
        "deliver_at": _milliseconds(publication.deliver_at),
    }


def _milliseconds(instant: float | None) -> int | None:
    """For the broker, rounded up since early is worse than late; None for what is due."""
    if instant is None or instant <= time.time():
        return None
    return math.ceil(instant * 1000)
