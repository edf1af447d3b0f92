"""The Pulsar adapter of the broker port: topics and subscriptions, and the things that are opened on them."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import pulsar

from pulsartasks.brokers.base import (
    UNPACKED,
    Administration,
    Broker,
    Consumer,
    Packing,
    Reader,
    Subscription,
    TopicState,
)
from pulsartasks.brokers.pulsar.admin import Admin, AdminForbiddenError, AdminRefusedError
from pulsartasks.brokers.pulsar.connection import Connection
from pulsartasks.brokers.pulsar.consumer import PulsarConsumer
from pulsartasks.brokers.pulsar.errors import translated
from pulsartasks.brokers.pulsar.publisher import Publisher
from pulsartasks.brokers.pulsar.reader import NON_PERSISTENT_QUEUE, PulsarReader, milliseconds
from pulsartasks.brokers.pulsar.settings import PulsarSettings
from pulsartasks.errors import AuthorizationError, BrokerUnavailableError, PulsarTasksError, SubscriptionBusyError
from pulsartasks.message import Publication
from pulsartasks.options import Mode, Start
from pulsartasks.schemas import Schema
from pulsartasks.topics import is_persistent

_TYPES: dict[Mode, Any] = {
    "shared": pulsar.ConsumerType.Shared,
    "exclusive": pulsar.ConsumerType.Exclusive,
    # Not Failover: there the broker chooses by a hash of the consumers' names, so that one that joins takes over from
    # one in the middle of a message, as likely as not (docs/decisions/0007-failover.md).
    "failover": pulsar.ConsumerType.Exclusive,
    "key_shared": pulsar.ConsumerType.KeyShared,
}
_POSITIONS: dict[Start, Any] = {
    "earliest": pulsar.InitialPosition.Earliest,
    "latest": pulsar.InitialPosition.Latest,
}
_RELEASED_FOR = 5_000
"""Milliseconds after which a message that was released is delivered again."""
_BUSY_FOR: dict[Mode, float] = {"shared": 2.0, "key_shared": 2.0, "failover": 0.3, "exclusive": 0.3}
"""Seconds for which a busy subscription is tried again: somebody who declares it holds it for a moment."""
_BUSY_PAUSE = 0.1
_ARRIVAL = 1_000
"""Milliseconds after which nothing more is there that could be trimmed."""

_Opened = TypeVar("_Opened", bound="Consumer | Reader")


class PulsarBroker(Broker):
    """One process's connection to a Pulsar cluster."""

    def __init__(self, settings: PulsarSettings) -> None:
        self._connection = Connection(settings)
        self._admin = Admin(settings)
        self._publisher = Publisher(self._connection)
        self._lock = threading.Lock()
        self._opened: set[Consumer | Reader] = set()
        # A process that ends without `close` would lose the acknowledgements of its last 0.1 s.
        weakref.finalize(self, self._connection.close)

    def __repr__(self) -> str:
        return f"PulsarBroker({self._connection.settings.service_url!r})"

    @property
    def address(self) -> str:
        return self._connection.settings.service_url

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
        self._connection.check()
        if schema is not None:
            self._publisher.schemas[topic] = schema
        self._publisher.packings[topic] = packing
        if not is_persistent(topic):
            return  # it stores nothing: neither topic nor subscription outlives its clients
        if partitions:
            self._divide(topic, partitions)
        for subscription in subscriptions:
            self._create_subscription(topic, subscription, start)

    def publish_many(
        self, publications: Sequence[Publication], *, timeout: float = 30.0
    ) -> list[str | PulsarTasksError]:
        return self._publisher.publish_many(publications, timeout=timeout)

    def inspect(self, topic: str) -> TopicState | None:
        return self._admin.inspect(topic)

    @property
    def administration(self) -> Administration:
        return self._admin

    def deduplicates(self, topic: str, *, keyed: bool) -> bool:
        if not is_persistent(topic) or not self._admin.deduplicates(topic):
            return False
        state = None if keyed else self.inspect(topic)
        return keyed or (state is not None and not state.partitions)

    def retire(self, producer: str) -> None:
        self._publisher.retire(producer)

    def subscribe(self, subscription: Subscription) -> Consumer:
        return self._remember(PulsarConsumer(self._connection, partial(self._open, subscription), self._forget))

    def _open(self, subscription: Subscription) -> Any:
        """The client's consumer."""
        options = {
            "consumer_type": _TYPES[subscription.mode],
            "receiver_queue_size": self._queue_size(subscription),
            "initial_position": _POSITIONS[subscription.start],
            "negative_ack_redelivery_delay_ms": _RELEASED_FOR,
        }
        deadline = time.monotonic() + _BUSY_FOR[subscription.mode]
        while True:
            try:
                return self._subscribe(subscription.topics, subscription.name, **options)
            except SubscriptionBusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_BUSY_PAUSE)

    def read(self, topic: str, *, since: float | None = None) -> Reader:
        return self._remember(PulsarReader(self._connection, self._forget, topic=topic, since=since))

    def trim(self, topic: str, subscription: str, *, before: float) -> None:
        for partition in self._partitions(topic) if is_persistent(topic) else ():
            self._trim_partition(partition, subscription, before)

    def close(self) -> None:
        self._connection.refuse()
        with self._lock:
            opened, self._opened = self._opened, set()
        self._connection.end(partial(_close_all, opened))
        if not self._connection.inherited:
            self._publisher.close()
        self._connection.close()

    def _divide(self, topic: str, partitions: int) -> None:
        """Make the topic with so many partitions, which only the admin interface can."""
        try:
            self._admin.create_partitions(topic, partitions)
        except (BrokerUnavailableError, AdminRefusedError) as error:
            if self._partitions(topic) != [topic]:
                return  # somebody who may has made them
            if not isinstance(error, AuthorizationError):
                raise
            raise AuthorizationError(
                f"could not make the partitions of {topic}, which an administrator of its tenant may; have it made "
                f"beforehand (pulsar-admin topics create-partitioned-topic -p {partitions} ...): {error}"
            ) from error

    def _create_subscription(self, topic: str, subscription: str, start: Start) -> None:
        try:
            self._admin.create_subscription(topic, subscription, start)
        except (BrokerUnavailableError, AdminRefusedError) as error:
            if isinstance(error, AdminForbiddenError) and self._exists(topic, subscription):
                return  # whoever may only publish needs no more
            # No such interface, or no right to use it: the protocol itself says what may be done, and why not.
            self._subscribe_for_a_moment(topic, subscription, start)

    def _exists(self, topic: str, subscription: str) -> bool:
        """Whether the subscription is known to be there."""
        try:
            state = self._admin.inspect(topic)
        except (BrokerUnavailableError, AdminRefusedError):
            return False
        return state is not None and subscription in state.subscriptions

    def _subscribe_for_a_moment(self, topic: str, subscription: str, start: Start) -> None:
        """Make a subscription by using it; whoever holds it meanwhile in another mode tries again."""
        try:
            consumer = self._subscribe(
                (topic,),
                subscription,
                consumer_type=pulsar.ConsumerType.Exclusive,
                receiver_queue_size=1,
                initial_position=_POSITIONS[start],
            )
        except SubscriptionBusyError:
            return  # it exists and is in use
        self._connection.end(consumer.close)

    def _trim_partition(self, topic: str, subscription: str, before: float) -> None:
        try:
            self._admin.expire(topic, subscription, before)
        except (BrokerUnavailableError, AdminRefusedError):
            self._acknowledge_up_to(topic, subscription, before)

    def _acknowledge_up_to(self, topic: str, subscription: str, before: float) -> None:
        """Trim as any consumer may: by reading what is too old."""
        consumer = self._subscribe(
            (topic,),
            subscription,
            consumer_type=pulsar.ConsumerType.Exclusive,
            initial_position=pulsar.InitialPosition.Earliest,
        )
        try:
            with translated(f"trim {topic}"):
                while (message := consumer.receive(_ARRIVAL)).publish_timestamp() < milliseconds(before):
                    consumer.acknowledge(message)
        except BrokerUnavailableError as error:
            if not isinstance(error.__cause__, pulsar.Timeout):  # which here means the end of the topic
                raise
        finally:
            self._connection.end(consumer.close)

    def _subscribe(self, topics: Sequence[str], subscription: str, **options: Any) -> Any:
        distinct = list(dict.fromkeys(topics))
        which = distinct[0] if len(distinct) == 1 else distinct
        return self._connection.ask(
            f"subscribe {subscription} to {', '.join(distinct)}",
            lambda client: client.subscribe(which, subscription, **options, **self._connection.decryption),
        )

    def _queue_size(self, subscription: Subscription) -> int:
        """Each topic and partition has a queue of its own; a topic's partitions together hold what was asked for.

        Topics do not share it out: one is busy while most are idle, and a queue of one is ten times slower.
        """
        if not all(is_persistent(topic) for topic in subscription.topics):
            return max(subscription.prefetch, NON_PERSISTENT_QUEUE)
        queues = max(1, *(len(self._partitions(topic)) for topic in subscription.topics))  # a closed client says 0
        return max(1, math.ceil(subscription.prefetch / queues))  # 0 loses messages of other clients' batches

    def _partitions(self, topic: str) -> list[str]:
        """The names of the topic's partitions; its own alone if it has none."""
        return list(self._connection.ask(f"look up {topic}", lambda client: client.get_topic_partitions(topic)))

    def _remember(self, opened: _Opened) -> _Opened:
        with self._lock:
            self._opened.add(opened)
        return opened

    def _forget(self, closed: Consumer | Reader) -> None:
        with self._lock:
            self._opened.discard(closed)


def _close_all(opened: Collection[Consumer | Reader]) -> None:
    for each in opened:
        each.close()
