"""The local adapter of the broker port: consumers and readers over `Store`, woken by `Presence`."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from pulsartasks.brokers.base import (
    UNPACKED,
    Broker,
    Consumer,
    Delivery,
    Packing,
    Reader,
    Subscription,
    TopicState,
    refusal,
)
from pulsartasks.brokers.local.presence import Presence
from pulsartasks.brokers.local.store import Row, Store
from pulsartasks.clock import Clock, SystemClock
from pulsartasks.errors import (
    BacklogFullError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    IncompatibleSchemaError,
    PulsarTasksError,
)
from pulsartasks.message import REAL_TOPIC, Publication
from pulsartasks.options import Mode, Start
from pulsartasks.schemas import Schema

T = TypeVar("T")

SAFETY_CHECK = 1.0
"""Seconds after which a consumer looks although nobody woke it, and dead processes are looked for."""
TOGETHER = 64
"""Messages at most that are settled in one transaction, while more of them are at hand."""
QUICK = 0.02
"""Seconds within which a batch must be used up for the next one to be twice as large."""
ROOM_CHECK = 0.02
"""Seconds between two looks of a publisher at whether there is room again."""
_SCAN = 100
"""Messages that a reader takes from the log at once."""


class LocalBroker(Broker):
    """One process's connection to an embedded broker; `path` None keeps everything in this process's memory."""

    def __init__(
        self,
        path: Path | None,
        *,
        full_sync: bool = False,
        clock: Clock | None = None,
        max_backlog: int | None = None,
    ) -> None:
        if path is not None:
            _make_folder(path.parent)
            # Messages are nobody else's business. Never a file that is there: closing it would drop SQLite's locks.
            with suppress(OSError):  # it is there, or SQLite says what is wrong
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self.store = Store(path, full_sync=full_sync)
        self.clock = clock or SystemClock()
        self._path = path
        self._max_backlog = max_backlog
        self._lock = threading.Lock()
        self._consumers: set[LocalConsumer] = set()
        self._schemas: dict[str, Schema] = {}
        """Of topics that nothing was published to since they were declared."""
        self._presence: Presence | None = None
        self._closed = False

    @property
    def address(self) -> str | None:
        return None if self._path is None else str(self._path)

    def declare(
        self,
        topic: str,
        subscriptions: Collection[str],
        *,
        partitions: int = 0,
        start: Start = "earliest",
        schema: Schema | None = None,
        packing: Packing = UNPACKED,
    ) -> None:
        # A new subscription begins behind what is there: a message without a subscription was never kept. So both
        # starts mean the same here, and one file has no partitions.
        self.store.declare(topic, subscriptions)
        if schema is not None:
            self._schemas[topic] = schema

    def publish_many(
        self, publications: Sequence[Publication], *, timeout: float = 30.0
    ) -> list[str | PulsarTasksError]:
        try:
            refused = self._refused(publications, self._full(publications, timeout))
            accepted = [p for index, p in enumerate(publications) if index not in refused]
            ids, news = self.store.publish(accepted, now=self.clock.now())
        except BrokerError as error:
            return [error for _ in publications]
        self.notify(news)
        confirmed = iter(ids)
        return [refused[index] if index in refused else str(next(confirmed)) for index in range(len(publications))]

    def inspect(self, topic: str) -> TopicState | None:
        presence = self._enter()
        if presence is not None:
            self.notify(self.store.bury(presence.alive))
        found = self.store.inspect(topic, now=self.clock.now())
        return None if found is None else TopicState(0, found)

    def deduplicates(self, topic: str, *, keyed: bool) -> bool:
        return True

    def subscribe(self, subscription: Subscription) -> LocalConsumer:
        presence = self._enter()
        if presence is not None:
            self.notify(self.store.bury(presence.alive))
        topics = self.store.subscription_ids(subscription.topics, subscription.name)
        return self._open(topics, mode=subscription.mode, prefetch=subscription.prefetch)

    def read(self, topic: str, *, since: float | None = None) -> LocalReader:
        self._enter()
        return LocalReader(self, topic, since=since)

    def trim(self, topic: str, subscription: str, *, before: float) -> None:
        self.store.trim(topic, subscription, before=before)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for consumer in list(self._consumers):
            consumer.close()
        if self._presence is not None:
            presence = self._presence
            with suppress(BrokerError, OSError):  # then who is still there does it, once this process is gone
                self.notify(self.store.bury(lambda: presence.alive() - {presence.process}))
            presence.leave()
        self.store.close()

    # For consumers and readers

    @property
    def process(self) -> str:
        return self._presence.process if self._presence is not None else "memory"

    def follow(self, topic: str) -> tuple[LocalConsumer, int]:
        """A consumer of a subscription that goes with this process, and the id of the newest message before it."""
        subscription_id, newest = self.store.add_reader(topic, f"reader-{uuid4().hex}", self.process)
        return self._open({subscription_id: topic}, mode="exclusive", prefetch=_SCAN), newest

    def forget(self, consumer: LocalConsumer) -> None:
        self._consumers.discard(consumer)

    def look(self) -> None:
        """Have every consumer look again for what is due, since the clock was moved."""
        for consumer in list(self._consumers):
            consumer.look()

    def notify(self, news: dict[str, set[int]]) -> None:
        """Wake whoever waits for these subscriptions, here and in other processes."""
        for process, subscription_ids in news.items():
            if process == self.process:
                self._wake_consumers(subscription_ids)
            elif (presence := self._presence or self._enter()) is not None:  # closing gives news too
                presence.wake(process, subscription_ids)

    def _full(self, publications: Sequence[Publication], timeout: float) -> dict[str, PulsarTasksError]:
        """The topics that hold as much as they may, also after `timeout` seconds."""
        if self._max_backlog is None:
            return {}
        # Never for what settles a message: nothing would be worked off any more.
        topics = {p.topic for p in publications if REAL_TOPIC not in p.properties}
        deadline = time.monotonic() + timeout
        while full := {t for t in topics if self.store.backlog(t, limit=self._max_backlog) >= self._max_backlog}:
            if time.monotonic() >= deadline or self._closed:
                why = f"{self._max_backlog:,} messages wait (max_backlog in the broker's URL), for {timeout:g} s"
                return {topic: BacklogFullError(f"could not publish to {topic}: {why}") for topic in full}
            time.sleep(ROOM_CHECK)
        return {}

    def _refused(
        self, publications: Sequence[Publication], full: Mapping[str, PulsarTasksError]
    ) -> dict[int, PulsarTasksError]:
        """What is not stored, by its place, and why."""
        drifted = {}
        for topic in ({p.topic for p in publications} & self._schemas.keys()) - full.keys():
            try:
                self.store.register(topic, self._schemas[topic])
            except IncompatibleSchemaError as error:
                drifted[topic] = error
            else:
                self._schemas.pop(topic, None)
        errors = {
            index: refusal(p) or (None if REAL_TOPIC in p.properties else full.get(p.topic)) or drifted.get(p.topic)
            for index, p in enumerate(publications)
        }
        return {index: error for index, error in errors.items() if error is not None}

    def _open(self, topics: dict[int, str], *, mode: Mode, prefetch: int) -> LocalConsumer:
        consumer_id = self.store.attach(topics, process=self.process, mode=mode)
        consumer = LocalConsumer(self, consumer_id, topics, mode=mode, prefetch=prefetch)
        self._consumers.add(consumer)
        return consumer

    def _enter(self) -> Presence | None:
        """Be known to the other processes, from the first time on that one of them has to be found or woken."""
        if self._path is None:
            return None
        with self._lock:
            if self._closed:
                raise ClosedError("the local broker was closed")
            if self._presence is None:
                try:
                    self._presence = Presence(self._path)
                except OSError as error:
                    raise BrokerUnavailableError(
                        f"the local broker's folder {self._path.parent} cannot be used: {error}"
                    ) from error
                threading.Thread(
                    target=self._listen, args=[self._presence], name="pulsartasks-local", daemon=True
                ).start()
            return self._presence

    def _listen(self, presence: Presence) -> None:
        checked = time.monotonic()
        while not self._closed:
            self._wake_consumers(presence.wait(SAFETY_CHECK))
            if time.monotonic() - checked >= SAFETY_CHECK and not self._closed:
                checked = time.monotonic()
                self._check(presence)

    def _check(self, presence: Presence) -> None:
        try:
            self.notify(self.store.bury(presence.alive))
        except (BrokerError, OSError):
            return  # closed meanwhile, or the database is not to be had just now: the next check tries again
        for consumer in list(self._consumers):
            consumer.make_up()
            consumer.wake(consumer.subscription_ids)

    def _wake_consumers(self, subscription_ids: Collection[int]) -> None:
        if subscription_ids:
            for consumer in list(self._consumers):
                consumer.wake(subscription_ids)


class LocalConsumer(Consumer):
    """Takes messages in batches and gives them out one by one."""

    def __init__(
        self, broker: LocalBroker, consumer_id: int, topics: dict[int, str], *, mode: Mode, prefetch: int
    ) -> None:
        self._broker = broker
        self._store = broker.store
        self._id = consumer_id
        self._topics = topics
        self._mode: Mode = mode
        self._prefetch = prefetch
        self._condition = threading.Condition()
        self._buffer: deque[Delivery] = deque()
        self._news: dict[int, None] = dict.fromkeys(topics)
        """Subscriptions that may have something, in the order in which they are looked at."""
        self._due: dict[int, float] = {}
        """When each subscription's next delayed message is due."""
        self._batch = 1
        self._filled = 0.0
        """When the last batch was taken, by the monotonic clock."""
        self._unacknowledged: deque[tuple[int, int]] = deque()
        """What is to be settled with the next that is, or was not as the disk was full, for one."""
        self._unreleased: deque[tuple[int, int]] = deque()
        """What the database did not take: tried again, or it would be held for ever."""
        self._look = False
        self._stopped = False
        self._closed = False

    @property
    def subscription_ids(self) -> Collection[int]:
        return self._topics.keys()

    @property
    def connected(self) -> bool:
        return not self._closed

    def receive(self, timeout: float) -> Delivery | None:
        """News wake one thread, which wakes the next when there may be more: all at once would only queue up."""
        with suppress(IndexError):  # without the lock, for which threads would queue up message by message
            return self._buffer.popleft()
        deadline = time.monotonic() + timeout
        with self._condition:
            while True:
                if self._closed:
                    raise ClosedError("the consumer was closed")
                if self._stopped:
                    return None
                if not self._buffer:
                    self._fill()
                with suppress(IndexError):
                    delivery = self._buffer.popleft()
                    if self._buffer or self._news:
                        self._condition.notify()
                    return delivery
                if self._look:
                    self._look = False
                    return None
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._condition.wait(min(remaining, self._until_due()))

    def acknowledge(self, delivery: Delivery) -> None:
        self._unacknowledged.append(delivery.handle)
        if self._buffer and self._mode == "shared" and len(self._unacknowledged) < TOGETHER:
            return  # there is work at hand; nobody waits for it, as they do for the next of a key
        self._acknowledge(_emptied(self._unacknowledged))

    def release(self, delivery: Delivery) -> None:
        self._give_back([delivery.handle])

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            unused = _emptied(self._buffer)
            self._condition.notify_all()
        self._give_back([delivery.handle for delivery in unused])

    def close(self) -> None:
        with self._condition:
            if self._closed:
                return
            self._closed = True
            _emptied(self._buffer)
            self._condition.notify_all()
        self._broker.forget(self)
        self.make_up()
        try:
            news = self._store.detach(self._id)
        except BrokerError:
            return  # closed, or not to be had: it is given back when this process is gone
        self._broker.notify(news)

    def wake(self, subscription_ids: Iterable[int]) -> None:
        """Look at these subscriptions again."""
        with self._condition:
            mine = [s for s in subscription_ids if s in self._topics]
            if mine:
                self._news.update(dict.fromkeys(mine))
                self._condition.notify()

    def look(self) -> None:
        """Look again for what is due, and have whoever waits in `receive` do so too: it returns without a message."""
        with self._condition:
            self._look = True
            self._condition.notify_all()

    def make_up(self) -> None:
        """Settle what could not be settled before."""
        self._acknowledge(_emptied(self._unacknowledged))
        self._give_back(_emptied(self._unreleased))

    def _acknowledge(self, handles: Collection[tuple[int, int]]) -> None:
        try:
            self._store.acknowledge(handles)
        except BrokerError:
            self._unacknowledged.extend(handles)

    def _give_back(self, handles: Collection[tuple[int, int]]) -> None:
        try:
            news = self._store.release(handles)
        except BrokerError:
            self._unreleased.extend(handles)
        else:
            self._broker.notify(news)

    def _fill(self) -> None:
        """Take what is there, from one subscription after the other so that none starves."""
        now = self._broker.clock.now()
        self._news.update(dict.fromkeys(s for s, due in self._due.items() if due <= now))
        for subscription_id in list(self._news):
            del self._news[subscription_id]
            due = self._store.next_due(subscription_id)
            if due is None or due > now:
                self._note_due(subscription_id, due)
                continue
            rows = self._store.take(subscription_id, self._id, mode=self._mode, now=now, limit=self._batch_size())
            if rows:
                self._news[subscription_id] = None  # to the end of the line: there may be more
                self._buffer.extend(self._delivery(subscription_id, row) for row in rows)
                return
            self._due.pop(subscription_id, None)

    def _batch_size(self) -> int:
        """One message while tasks are long, so that other processes have work too; ever more while they are short."""
        now = time.monotonic()
        self._batch = min(self._prefetch, 2 * self._batch) if now - self._filled < QUICK else 1
        self._filled = now
        return self._batch

    def _note_due(self, subscription_id: int, due: float | None) -> None:
        if due is None:
            self._due.pop(subscription_id, None)
        else:
            self._due[subscription_id] = due

    def _until_due(self) -> float:
        if not self._due:
            return math.inf
        return max(0.0, min(self._due.values()) - self._broker.clock.now())

    def _delivery(self, subscription_id: int, row: Row) -> Delivery:
        return Delivery(
            topic=self._topics[subscription_id],
            message_id=str(row.message_id),
            value=row.value,
            key=row.key,
            properties=row.properties,
            published_at=row.published_at,
            consumer=self,
            handle=(subscription_id, row.message_id),
        )


def _emptied(queue: deque[T]) -> list[T]:
    """What was in `queue`, each taken out once though others take too."""
    taken = []
    with suppress(IndexError):
        while True:
            taken.append(queue.popleft())
    return taken


class LocalReader(Reader):
    """Reads what some subscription still keeps, and then what arrives."""

    def __init__(self, broker: LocalBroker, topic: str, *, since: float | None) -> None:
        self._broker = broker
        self._topic = topic
        self._closed = False
        self._live: LocalConsumer | None = None
        self._kept: deque[Row] = deque()
        self._position = int((since or 0.0) * 1_000_000)
        self._horizon: int | None = None
        """The newest message before the live part; None while there is none."""
        if since is None:
            self._go_live()
            self._position = self._horizon or 0

    def receive(self, timeout: float) -> Delivery | None:
        if self._closed:
            raise ClosedError("the reader was closed")
        if (row := self._next_kept()) is not None:
            return Delivery(self._topic, str(row.message_id), row.value, row.key, row.properties, row.published_at)
        if timeout <= 0 and self._live is None:
            return None
        if self._live is None:
            self._go_live()
            return self.receive(timeout)  # what came between the last look and now is still kept
        delivery = self._live.receive(timeout)
        if delivery is not None:
            delivery.acknowledge()
        return delivery

    def close(self) -> None:
        self._closed = True
        if self._live is not None:
            self._live.close()
            try:
                self._broker.store.remove_reader(next(iter(self._live.subscription_ids)))
            except BrokerError:
                return  # as above

    def _go_live(self) -> None:
        self._live, self._horizon = self._broker.follow(self._topic)

    def _next_kept(self) -> Row | None:
        if self._horizon is not None and self._position >= self._horizon:
            return None
        if not self._kept:
            self._kept.extend(self._broker.store.scan(self._topic, after=self._position, limit=_SCAN))
        if not self._kept:
            if self._horizon is not None:
                self._position = self._horizon
            return None
        row = self._kept.popleft()
        self._position = row.message_id
        if self._horizon is not None and row.message_id > self._horizon:
            self._kept.clear()
            return None
        return row


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BrokerUnavailableError(f"the local broker's folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise BrokerUnavailableError(f"the local broker's folder {folder} cannot be written to")
