"""A reader of Pulsar: a topic from some instant on, without a subscription left behind."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pulsar

from pulsartasks.brokers.base import Delivery, Reader
from pulsartasks.brokers.pulsar.connection import Connection
from pulsartasks.brokers.pulsar.consumer import TopicNames, next_wait, to_delivery
from pulsartasks.brokers.pulsar.errors import translated
from pulsartasks.errors import ClosedError
from pulsartasks.topics import is_persistent

_ARRIVAL = 10.0
"""Seconds within which a message arrives that the broker says is there."""
_MOMENT = 0.001
"""Seconds in which the client gives what it has received already."""


NON_PERSISTENT_QUEUE = 1_000
"""What a non-persistent topic buffers at least: its consumers' queues are all it has, and what does not fit is lost."""
_QUEUE = 100
_TRIES = 3


class _Opened(NamedTuple):
    """The client's reader, what it has read already and is wanted, and the last message that is not, by partition."""

    reader: Any
    wanted: list[Any]
    passed: dict[str, Any]


def _open_reader(client: Any, topic: str, since: float | None, **options: Any) -> _Opened:
    """A reader of `topic`, from its end or from an instant on.

    Until the client has read a first message it does not know where it is: after a reconnect it goes to what is then
    the end, though it was told where to begin, and passes over what came meanwhile. So every reader begins with one.
    """
    if not is_persistent(topic):
        options["receiver_queue_size"] = NON_PERSISTENT_QUEUE
        return _Opened(_create(client, topic, pulsar.MessageId.latest, **options), [], {})
    options["receiver_queue_size"] = _QUEUE
    if since is None:
        return _open_at_end(client, topic, options)
    while True:
        reader = _create(client, topic, pulsar.MessageId.earliest, **options)
        with _closing_on_error(reader):
            if since > 0:
                reader.seek(milliseconds(since))
            first = _read_present(reader)
        if first is not None:
            return _Opened(reader, [first], {})
        reader.close()
        opened = _open_at_end(client, topic, options)
        if all(message.publish_timestamp() < milliseconds(since) for message in opened.passed.values()):
            return opened
        opened.reader.close()  # something came between the two: look again


def _open_at_end(client: Any, topic: str, options: Mapping[str, Any]) -> _Opened:
    """A reader behind the last message of each partition.

    Of several partitions the client's reader may give such a message late, or again: it says that none is there while
    its thread carries one from a partition's queue to the common one (lib/MultiTopicsConsumerImpl.cc,
    `hasMessageAvailableAsync`). So a partition that seems empty is asked alone, and what is passed is known by its id.
    """
    reader = _create(client, topic, pulsar.MessageId.latest, start_message_id_inclusive=True, **options)
    passed: dict[str, Any] = {}
    with _closing_on_error(reader):
        partitions = client.get_topic_partitions(topic)
        while len(passed) < len(partitions) and (message := _read_present(reader)) is not None:
            passed[message.topic_name()] = message
        if len(partitions) > 1:
            for partition in set(partitions) - set(passed):
                if (message := _last(client, partition, options)) is not None:
                    passed[partition] = message
    if passed:
        return _Opened(reader, [], passed)
    reader.close()  # there is no message, so the earliest is the first that comes
    return _Opened(_create(client, topic, pulsar.MessageId.earliest, **options), [], {})


def _last(client: Any, partition: str, options: Mapping[str, Any]) -> Any:
    """The last message of a partition, or None."""
    reader = _create(client, partition, pulsar.MessageId.latest, start_message_id_inclusive=True, **options)
    try:
        return _read_present(reader)
    finally:
        reader.close()


def _create(client: Any, topic: str, start: Any, **options: Any) -> Any:
    """The client's own; another one if its name is taken.

    The client draws the names of readers from one generator that its threads share without a lock (lib/ClientImpl.cc,
    `generateRandomName`), so that two readers opened at once may have the same: 1 of 7,200 in 40 threads.
    """
    for _ in range(_TRIES - 1):
        with suppress(pulsar.ConsumerBusy):
            return client.create_reader(topic, start, **options)
    return client.create_reader(topic, start, **options)


def _read_present(reader: Any) -> Any:
    """The next message if it is there already, else None."""
    if not reader.has_message_available():
        return None
    with suppress(pulsar.Timeout):  # what is there may have been removed by retention
        return reader.read_next(int(_ARRIVAL * 1000))
    return None


@contextmanager
def _closing_on_error(reader: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        reader.close()
        raise


class PulsarReader(Reader):
    """Reads a topic from its end or, with `since`, from an instant on."""

    def __init__(
        self,
        connection: Connection,
        on_close: Callable[[PulsarReader], None],
        *,
        topic: str,
        since: float | None,
    ) -> None:
        reader, self._already_read, self._passed = connection.ask(
            f"read {topic}", lambda client: _open_reader(client, topic, since, **connection.decryption)
        )
        self._connection = connection
        self._reader = connection.keep(reader)
        self._on_close = on_close
        self._names = TopicNames()
        self._since = milliseconds(since)
        self._stored = is_persistent(topic)
        self._lock = threading.Lock()
        self._closed = False

    def receive(self, timeout: float) -> Delivery | None:
        to_the_end = timeout <= 0 and self._stored  # what is not stored has no end to look for
        deadline = time.monotonic() + (_ARRIVAL if to_the_end else max(timeout, _MOMENT))
        while True:
            self._connection.check()
            if self._closed:
                raise ClosedError("the reader was closed")
            remaining = deadline - time.monotonic()
            if self._already_read:
                message = self._already_read.pop()
            elif remaining <= 0 or (to_the_end and not self._more()):
                return None
            else:
                message = self._next(next_wait(deadline))
            if message is not None and self._wants(message):
                return to_delivery(message, self._names)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._on_close(self)
        if not self._connection.inherited:
            self._connection.end(self._reader.close)
            self._connection.forget(self._reader)

    def _wants(self, message: Any) -> bool:
        if message.publish_timestamp() < self._since:
            return False  # it was on its way before the seek took effect, or stands out of order
        passed = self._passed.get(message.topic_name()) if self._passed else None
        if passed is None:
            return True
        if message.message_id() <= passed.message_id():
            return False
        self._passed.pop(message.topic_name(), None)  # a partition's messages come in order
        return True

    def _more(self) -> bool:
        with translated("look for the end of the topic"):
            return bool(self._reader.has_message_available())

    def _next(self, wait: int) -> Any:
        """A message of the client, or None."""
        with translated("read"):
            try:
                return self._reader.read_next(wait)
            except pulsar.Timeout:
                return None


def milliseconds(instant: float | None) -> int:
    """The first millisecond that is not before `instant`, as Pulsar counts them; 0 without one."""
    return math.ceil((instant or 0) * 1000)
