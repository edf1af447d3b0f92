"""One consumer of Pulsar: a message becomes a delivery, and is given out once though the broker may send it again."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pulsar
import structlog

from pulsartasks.brokers.base import Consumer, Delivery
from pulsartasks.brokers.pulsar.connection import Connection
from pulsartasks.errors import ClosedError
from pulsartasks.topics import is_persistent

WAIT = 500
"""Milliseconds of the longest single wait: signal handlers run only between two."""
_log = structlog.get_logger("pulsartasks")

_PARTITION = re.compile(r"-partition-\d+$")
_REMEMBERED = 10_000
_REMEMBERED_FOR = 60.0
"""A finished message is remembered for so many others, or so many seconds, and for twice that at most.

What comes again because its acknowledgement was lost comes sooner; what comes later was wanted once more: somebody set
the cursor back."""


class PulsarConsumer(Consumer):
    """A consumer whose `receive` and `acknowledge` cost little more than the client's own."""

    can_part = True

    def __init__(
        self,
        connection: Connection,
        subscribe: Callable[[], Any],
        on_close: Callable[[PulsarConsumer], None],
    ) -> None:
        self._connection = connection
        self._subscribe = subscribe
        self._consumer = connection.keep(subscribe())
        self._session = 0
        """How often it has parted."""
        self._source = _beneath(self._consumer), 0
        """What to receive from and settle by, and the session of what comes: both are changed at once."""
        self._on_close = on_close
        self._names = TopicNames()
        self._progress = Progress()
        self._waits = threading.Lock()
        self._lock = threading.Lock()
        self._stopped = False
        self._closed = False

    def receive(self, timeout: float) -> Delivery | None:
        """One thread waits in the client at a time; the next one when that has a message.

        Of several that wait there, a message wakes one only if it comes into an empty queue
        (lib/UnboundedBlockingQueue.h, `push`). Of a burst all but the first would lie there, though others have
        nothing to do, until that one's thread comes back or the time of another one is over.
        """
        deadline = time.monotonic() + timeout
        if not self._waits.acquire(blocking=False):
            if (delivery := self._next(0)) is not None:  # under load there is no need to line up
                return delivery
            if not self._waits.acquire(timeout=max(timeout, 0.0)):
                return None
        try:
            while not self._stopped:
                delivery = self._next(next_wait(deadline))
                if delivery is not None or time.monotonic() >= deadline:
                    return delivery
            return None
        finally:
            self._waits.release()

    def stop(self) -> None:
        self._stopped = True

    def acknowledge(self, delivery: Delivery) -> None:
        self._progress.finish(delivery.message_id)
        self._settle(delivery.handle)

    def release(self, delivery: Delivery) -> None:
        # The client's clock begins anew with every further one, so that releasing all the time gives nothing back.
        self._progress.forget(delivery.message_id)
        with suppress(pulsar.PulsarException):  # not connected or closed: the message comes again anyway
            self._source[0].negative_acknowledge(delivery.handle)

    def hold(self, delivery: Delivery) -> None:
        self._progress.hold(delivery)

    def begin(self, delivery: Delivery) -> bool:
        return not is_persistent(delivery.topic) or self._progress.begin(delivery, self._session)

    def part(self) -> bool:
        if self._closed or not self._connection.usable or self._consumer.is_connected():
            return False
        self._session += 1
        return True

    def renew(self) -> None:
        # `redeliver_unacknowledged_messages` would bring it behind what is in the client's queue already.
        self._give_up()
        fresh = self._connection.keep(self._subscribe())
        self._consumer, self._source = fresh, (_beneath(fresh), self._session)
        if self._closed:  # while it was opened
            self._give_up()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._on_close(self)
        if not self._connection.inherited:
            self._give_up()

    def _give_up(self) -> None:
        self._connection.end(self._consumer.close)
        self._connection.forget(self._consumer)

    @property
    def connected(self) -> bool:
        return not self._closed and self._connection.usable and bool(self._consumer.is_connected())

    def _next(self, wait: int) -> Delivery | None:
        """What comes within so many milliseconds; None also if that was a copy."""
        self._connection.check()
        consumer, session = self._source
        try:
            message = consumer.receive(wait)
        except pulsar.Timeout:
            if wait > 0 and not self._consumer.is_connected():
                self._connection.lost()
            return None
        except pulsar.AlreadyClosed:
            if not self._closed and session != self._session:  # another one takes its place, or has
                time.sleep(wait / 1000)
                return None
            raise ClosedError("the consumer was closed") from None
        except pulsar.Interrupted:  # see errors.translated
            raise KeyboardInterrupt from None
        return self._take(message, session)

    def _take(self, message: Any, session: int) -> Delivery | None:
        """The delivery of `message`; None if it is a copy of one that runs or ran here.

        The broker sends all that is not acknowledged again when the connection or the topic moved, also to us who still
        run it. The copy of a running one is let go: the acknowledgement of the first settles both.
        """
        delivery = to_delivery(message, self._names, self)
        if (encryption := message.encryption_context()) is not None and encryption.is_decryption_failed():
            _log.warning("message.undecrypted", topic=delivery.topic, message_id=delivery.message_id)
            self.release(delivery)  # for whoever has the key
            return None
        if not is_persistent(delivery.topic):  # sent once or never, and all under the same id
            delivery.message_id = uuid4().hex  # what is told of one of them must not be believed of the others
            return delivery
        if session != self._session:  # the client has it still, the broker may have given it to others
            return None
        state = self._progress.start(delivery, session)
        if state == "finished":  # its acknowledgement was lost with the connection
            self._settle(delivery.handle)
        return delivery if state == "new" else None

    def _settle(self, message: Any) -> None:
        try:
            self._source[0].acknowledge(message)
        except pulsar.PulsarException:
            pass  # not connected or closed: the message comes again


def _beneath(consumer: Any) -> Any:
    """The client's own consumer without its wrapper in Python, which has the same methods and so have its messages.

    What each of them costs more is a quarter of what receiving and acknowledging takes here.
    """
    return getattr(consumer, "_consumer", consumer)


def next_wait(deadline: float) -> int:
    """Milliseconds of the next single wait until `deadline` (monotonic seconds), at least one."""
    return min(max(int((deadline - time.monotonic()) * 1000) + 1, 1), WAIT)


class Progress:
    """Which messages run here, and which ran lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, Delivery] = {}
        # Two generations, the older dropped as a whole: as cheap as a set, bounded, and nothing young is forgotten.
        self._finished: set[str] = set()
        self._finished_earlier: set[str] = set()
        self._turned = time.monotonic()

    def start(self, delivery: Delivery, session: int) -> str:
        """Note that the message is here, if it is ``new``; else it is ``running`` (or held), or ``finished``."""
        message_id = delivery.message_id
        with self._lock:
            known = self._running.get(message_id)
            if known is not None and not (known.held and known.session != session):
                # It is with us (again), and what the broker waits for is this copy: in a batch, beside those of others.
                known.session, known.handle = session, delivery.handle
                return "running"
            if message_id in self._finished or message_id in self._finished_earlier:
                return "finished"
            delivery.session = session
            self._running[message_id] = delivery
            return "new"

    def hold(self, delivery: Delivery) -> None:
        with self._lock:
            delivery.held = True

    def begin(self, delivery: Delivery, session: int) -> bool:
        """Whether a message that was held may run: it is of this session, and no copy has taken its place."""
        with self._lock:
            if self._running.get(delivery.message_id) is not delivery:
                return False
            if delivery.session != session:
                del self._running[delivery.message_id]
                return False
            delivery.held = False
            return True

    def forget(self, message_id: str) -> None:
        """The message neither runs nor ran."""
        with self._lock:
            self._running.pop(message_id, None)

    def finish(self, message_id: str) -> None:
        with self._lock:
            self._running.pop(message_id, None)
            self._finished.add(message_id)
            if len(self._finished) >= _REMEMBERED or time.monotonic() - self._turned > _REMEMBERED_FOR:
                self._finished, self._finished_earlier = set(), self._finished
                self._turned = time.monotonic()


class TopicNames(dict[str, str]):
    """The topic of each name that a message bears, which on a partitioned topic is its partition's."""

    def __missing__(self, name: str) -> str:
        topic = self[name] = _PARTITION.sub("", name)
        return topic


def to_delivery(message: Any, names: TopicNames, consumer: Consumer | None = None) -> Delivery:
    message_id = message.message_id()
    try:
        key, headers = message.partition_key() or None, message.properties()
    except UnicodeDecodeError:  # some client wrote bytes that are no text; they must not stop whoever receives them
        key, headers = None, {}
    return Delivery(
        names[message.topic_name()],
        message_id_text(message_id),
        message.data(),
        key,
        headers,
        message.publish_timestamp() / 1000,
        consumer,
        message,  # not its id, by which acknowledging takes twice as long
    )


def message_id_text(message_id: Any) -> str:
    """Ledger, entry, partition and, in a batch, the place there: ``17:4:-1``, as the Java client writes it."""
    text = f"{message_id.ledger_id()}:{message_id.entry_id()}:{message_id.partition()}"
    return text if (place := message_id.batch_index()) < 0 else f"{text}:{place}"
