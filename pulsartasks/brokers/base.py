"""The port: what a broker must do for everything above it. It moves bytes and knows nothing of tasks.

A topic is given by its full name. A message goes to every subscription of its topic; one published to a topic without
any is gone, as on Pulsar, which is why `Broker.declare` comes before the first publish.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pulsartasks.errors import (
    CallError,
    InvalidArgumentsError,
    MessageTooLargeError,
    PulsarTasksError,
    UnreadableMessageError,
)
from pulsartasks.message import CLAIM, REAL_TOPIC, Publication
from pulsartasks.options import Compression, Mode, Start
from pulsartasks.schemas import Schema

MAX_MESSAGE_SIZE = 5 * 1024 * 1024 - 8 * 1024
"""Bytes of a message's value, key and headers that may be published: what Pulsar takes by default (maxMessageSize)
less what its client adds, and less the headers of a retry or dead letter: what could be published can be kept."""
ROOM_FOR_COPIES = 7 * 1024
"""Bytes by which a retry or dead letter may therefore be larger."""


def refusal(publication: Publication) -> CallError | None:
    """Why a message cannot be sent at all, if so."""
    try:
        return check_size(publication)
    except (TypeError, AttributeError, UnicodeEncodeError) as error:
        return not_data(error)


def not_data(error: Exception) -> InvalidArgumentsError:
    """What a publisher is told about a message that is made of the wrong things."""
    return InvalidArgumentsError(f"a message is bytes, with strings as key and headers: {error}")


def confirmed(outcome: str | PulsarTasksError) -> str:
    """The message id of what was published; what went wrong instead is raised."""
    if isinstance(outcome, PulsarTasksError):
        raise outcome
    return outcome


def check_size(publication: Publication) -> MessageTooLargeError | None:
    """What a publisher is told about a message that no broker takes; None if its size is fine."""
    headers = publication.properties
    text = "".join((publication.key or "", *headers, *headers.values()))  # a TypeError, if one of them is no text
    # A UnicodeEncodeError, if it has half a character.
    size = len(publication.value) + (len(text) if text.isascii() else len(text.encode()))
    if size <= MAX_MESSAGE_SIZE + (ROOM_FOR_COPIES if REAL_TOPIC in headers else 0):
        return None
    return MessageTooLargeError(
        f"a message of {size:,} bytes is above the limit of {MAX_MESSAGE_SIZE:,}; give the app claim_check=, which "
        "sends what is large through a blob store, or put it there (pulsartasks.contrib.blobs) and send its key"
    )


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a consumer asks for: a subscription's name on some topics, and how it shares them."""

    topics: tuple[str, ...]
    name: str
    mode: Mode = "shared"
    prefetch: int = 16
    """Messages held by the consumer beyond those it has given out."""
    start: Start = "earliest"


@dataclass(frozen=True, slots=True)
class Packing:
    """How a topic's messages travel; a broker to which nothing travels takes no notice."""

    batching: bool = False
    """Put messages that are sent within a millisecond into one entry."""
    by_key: bool = False
    """Only those of the same key."""
    compression: Compression | None = None


UNPACKED = Packing()


class Delivery(msgspec.Struct, eq=False):  # a Struct, since one is made for every message
    """One message in a consumer's hands; it carries its own acknowledgement and is settled once."""

    topic: str
    """Full name, without a partition's suffix."""
    message_id: str
    value: bytes
    key: str | None
    properties: Mapping[str, str]
    published_at: float
    """Seconds since the epoch, by the broker's or publisher's clock."""
    consumer: Consumer | None = None
    """None for what a reader read: there is nothing to settle."""
    handle: Any = None
    """What the adapter needs to settle it."""
    session: int = 0
    """How often its consumer had lost the broker when it came."""
    held: bool = False
    """It waits for its run, or for the next one."""

    def hold(self) -> None:
        """Note that the message waits here until `begin`, at first or for another attempt."""
        if self.consumer is not None:
            self.consumer.hold(self)

    def begin(self) -> bool:
        """Whether a message that was held may run: not once the broker may have given it to others."""
        return self.consumer is None or self.consumer.begin(self)

    def acknowledge(self) -> None:
        """Tell the broker that the message is settled. Lost if the process dies within 0.1 s: then it comes again."""
        if self.consumer is not None:
            self.consumer.acknowledge(self)

    def release(self) -> None:
        """Give the message back unsettled: it is delivered again after a while, here or elsewhere.

        The last resort: on Pulsar it breaks a key's order, and done often it starves itself (`PulsarConsumer.release`).
        """
        if self.consumer is not None:
            self.consumer.release(self)


class Consumer(ABC):
    """A live consumer. `receive` and `acknowledge` may be called from several threads; `close` from any, twice too."""

    can_part = False
    """Whether it can lose the broker, which then gives to others what is held here."""

    @abstractmethod
    def receive(self, timeout: float) -> Delivery | None:
        """The next message, or None after `timeout` seconds without one.

        Raises:
            ClosedError: the consumer was closed, here or while waiting.
        """

    def hold(self, delivery: Delivery) -> None:  # noqa: B027 - a consumer that cannot part has nothing to note
        """As `Delivery.hold`."""

    def begin(self, delivery: Delivery) -> bool:
        """As `Delivery.begin`."""
        return True

    def part(self) -> bool:
        """Whether the broker is lost: then nothing that is held begins any more, and `renew` is due once it is back."""
        return False

    def renew(self) -> None:  # noqa: B027 - likewise
        """Give back in order all that is held, and receive anew; what runs goes on and is settled as ever.

        Raises:
            PulsarTasksError: that is not possible now; until it is, nothing is received.
        """

    @abstractmethod
    def acknowledge(self, delivery: Delivery) -> None:
        """Settle `delivery`; never raises for a lost connection, since the message then simply comes again."""

    @abstractmethod
    def release(self, delivery: Delivery) -> None:
        """Give `delivery` back; never raises, like `acknowledge`."""

    def stop(self) -> None:  # noqa: B027 - not abstract: whoever cannot be woken returns at its timeout
        """Give out no more: who waits in `receive` gets None, at once where the broker can; what runs goes on."""

    @abstractmethod
    def close(self) -> None:
        """Send what was acknowledged and give back at once, in order, all that was not."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the broker is there; False also while waiting for it to come back."""


class Reader(ABC):
    """Reads a topic without leaving a subscription behind."""

    @abstractmethod
    def receive(self, timeout: float) -> Delivery | None:
        """The next message, or None after `timeout` seconds without one (0: None at the topic's present end)."""

    @abstractmethod
    def close(self) -> None: ...


class Claims:
    """What becomes of a payload that is too large for a message. This one lets it be refused; `ClaimCheck` does not."""

    def publish(
        self,
        publications: Sequence[Publication],
        call_next: Callable[[Sequence[Publication]], list[str | PulsarTasksError]],
    ) -> list[str | PulsarTasksError]:
        """Send all by `call_next`, as they were stowed; for each its message id, or what went wrong."""
        return call_next(publications)

    def stow(self, publication: Publication) -> Publication:
        """The message to send instead: itself, or one with a claim to its value.

        Raises:
            PulsarTasksError: the value could not be stored.
        """
        return publication

    def fetch(self, value: bytes, headers: Mapping[str, str]) -> bytes:
        """What was published as the value of this message.

        Raises:
            UnreadableMessageError: it is gone, or never was there.
            PulsarTasksError: it cannot be had now; an ``OSError`` too, if it may come back by itself.
        """
        if CLAIM in headers:
            raise UnreadableMessageError(
                "its payload is in a blob store; give this app claim_check=, with the store of the app that sent it"
            )
        return value


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """How a subscription stands."""

    backlog: int
    """Messages that are not acknowledged, delayed ones among them."""
    delayed: int
    """As far as the broker knows, which on Pulsar takes a consumer."""
    consumers: int


@dataclass(frozen=True, slots=True)
class TopicState:
    """What a broker has of a topic."""

    partitions: int
    """0: it is not partitioned."""
    subscriptions: Mapping[str, SubscriptionState]
    """Those that outlive their consumers."""


class Administration(ABC):
    """What only an administrator may do, on a broker that has topics of its own beside ours.

    Every method raises:
        BrokerUnavailableError: there is no such interface, or it is not the broker's.
        AuthorizationError, BrokerError: it is there and says no.
    """

    @abstractmethod
    def topics(self, namespace: str) -> Collection[str]:
        """The full names of all topics that are stored in a namespace, those of partitions left out."""

    @abstractmethod
    def create_partitions(self, topic: str, partitions: int) -> None:
        """Make `topic` with so many partitions; nothing happens if it exists."""

    @abstractmethod
    def grow(self, topic: str, partitions: int) -> None:
        """Have a partitioned topic of fewer partitions have so many."""

    @abstractmethod
    def policy(self, topic: str, name: str) -> int | None:
        """What the topic's own policy of this name (see `PolicyKeywords`) is; None if it has none."""

    @abstractmethod
    def set_policy(self, topic: str, name: str, value: int) -> None:
        """Give the topic a policy; it is in force when this returns."""

    @abstractmethod
    def schemas(self, topic: str) -> Sequence[str]:
        """The definitions of all schemas that the topic has, oldest first."""

    @abstractmethod
    def register(self, topic: str, schema: Schema) -> None:
        """Add a schema; refused if it does not fit those that are there."""

    @abstractmethod
    def permissions(self, topic: str) -> Mapping[str, frozenset[str]]:
        """What each role may do with the topic (``produce``, ``consume``), by the topic's or its namespace's leave."""

    @abstractmethod
    def grant(self, topic: str, role: str, actions: Collection[str]) -> None:
        """Let a role do this with the topic, and nothing else by the topic's own leave."""


class Broker(ABC):
    """One process's connection to the broker, safe to use from all its threads, never across a fork."""

    @property
    @abstractmethod
    def address(self) -> str | None:
        """Where it is, the same for all that share it and without secrets; None if it ends with this process."""

    @abstractmethod
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
        """Make sure that the topic and its subscriptions exist; each that is new begins at `start`.

        Idempotent. `partitions` counts only when the topic is made; 0: not partitioned. `schema` is registered by this
        process's next publish to the topic, which is an `IncompatibleSchemaError` if it does not fit what is
        registered; without one anything may be published. `packing` is that of this process's next publish, too.

        Raises:
            BrokerUnavailableError, AuthenticationError, AuthorizationError, BrokerError
        """

    @abstractmethod
    def publish_many(
        self, publications: Sequence[Publication], *, timeout: float = 30.0
    ) -> list[str | PulsarTasksError]:
        """Send all, pipelined and in order, and wait until the broker confirmed each: its message id, or what went
        wrong.

        `timeout` (seconds) bounds the whole; what is unconfirmed by then is a `PublishTimeoutError`.
        """

    @abstractmethod
    def inspect(self, topic: str) -> TopicState | None:
        """How the topic stands; None if the broker has none of this name."""

    @property
    def administration(self) -> Administration | None:
        """None where there are neither policies nor permissions, and schemas come with their publishers."""
        return None

    def deduplicates(self, topic: str, *, keyed: bool) -> bool:
        """Whether a message with a `producer` and a `sequence` that `topic` has already is not stored again.

        It is confirmed all the same, with an id that is no message's. On a partitioned topic that goes for what is
        `keyed` alone: each partition knows the last number that came to it, and what has no key goes to any of them.
        Sent again under its number, it may come to one that has a higher number and drops it, though nobody has it.

        Raises:
            BrokerUnavailableError, AuthorizationError, BrokerError: the broker does not say.
        """
        return False

    def retire(self, producer: str) -> None:  # noqa: B027 - not abstract: whoever holds no names has none to give up
        """Publish no more under this name, so that another process can; the next publication takes it again."""

    @abstractmethod
    def subscribe(self, subscription: Subscription) -> Consumer:
        """A consumer of existing subscriptions.

        Raises:
            SubscriptionBusyError: another consumer holds it in a mode that does not share it.
            BrokerUnavailableError, AuthenticationError, AuthorizationError, BrokerError
        """

    @abstractmethod
    def read(self, topic: str, *, since: float | None = None) -> Reader:
        """A reader from the instant `since` (seconds since the epoch) on; None: from now on."""

    @abstractmethod
    def trim(self, topic: str, subscription: str, *, before: float) -> None:
        """Acknowledge everything of `subscription` that was published before the instant `before`."""

    @abstractmethod
    def close(self) -> None:
        """Close all that was opened through it. Idempotent."""

    def publish(self, publication: Publication, *, timeout: float = 30.0) -> str:
        """Send one message and wait until the broker confirmed it; gives its message id.

        Raises:
            PublishTimeoutError: not confirmed within `timeout` seconds; it may or may not have been stored.
            IncompatibleSchemaError: the schema that the topic was declared with does not fit; nothing was sent.
            MessageTooLargeError, BrokerUnavailableError, AuthorizationError, BrokerError
        """
        return confirmed(*self.publish_many([publication], timeout=timeout))
