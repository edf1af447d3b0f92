"""Event topics: publish a payload once, and every subscription has it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Generic, Protocol, TypedDict, TypeVar

from typing_extensions import Unpack

from pulsartasks.brokers.base import Claims, Reader
from pulsartasks.canvas import Draft, Host
from pulsartasks.clock import Clock
from pulsartasks.errors import ClosedError, ConfigurationError, InvalidArgumentsError
from pulsartasks.message import ETA, EXPIRES, Publication, milliseconds
from pulsartasks.publishing import Publishing
from pulsartasks.result import AsyncResult
from pulsartasks.schemas import Schema, describe
from pulsartasks.serializers import PayloadCodec, is_data
from pulsartasks.signature import CallOptions, Signature, key_by
from pulsartasks.steps import Step
from pulsartasks.topics import DEAD_LETTERS, check_several, dead_letter_topic

T = TypeVar("T")


class EventKeywords(TypedDict, total=False):
    """The options of one event for type checkers; `CallOptions` documents them."""

    countdown: float | timedelta | None
    eta: datetime | None
    expires: float | timedelta | datetime | None
    key: str | None
    headers: Mapping[str, str]


class TopicHost(Protocol):
    """What a topic needs of its app."""

    name: str
    claims: Claims
    clock: Clock

    def qualify(self, name: str) -> str: ...
    @property
    def publishing(self) -> Publishing: ...
    def read(self, topic: str) -> Reader: ...
    def add_topic(self, topic: Topic[Any]) -> None: ...


class Topic(Generic[T]):
    """A topic whose messages are payloads of one type; made by `PulsarTasks.topic`."""

    def __init__(
        self,
        host: TopicHost,
        name: str,
        *,
        schema: type[T],
        key: Callable[[T], str | None] | None = None,
        partitions: int = 0,
        subscriptions: Collection[str] = (),
    ) -> None:
        if not is_data(schema):
            raise ConfigurationError(
                f"topic {name!r}: {schema!r} is not data; use a msgspec.Struct, a dataclass or a pydantic model"
            )
        check_several(subscriptions, option="subscriptions")
        self.name = name
        self.schema = schema
        self.key = key
        self.partitions = partitions
        self.subscriptions = frozenset(subscriptions)
        self._host = host
        self.codec: PayloadCodec[T] = PayloadCodec(schema)
        self.registered: Schema | None = None
        """What the broker is told about the payloads."""
        self.unregistered = ""
        """Why it is told nothing, if so."""
        self.policies: Mapping[str, int] = {}
        """What the broker is to do with the topic, by the names of `PolicyKeywords`."""

    @cached_property
    def full_name(self) -> str:
        """What the broker calls it."""
        return self._host.qualify(self.name)

    def forget_names(self) -> None:
        """Ask anew in which namespace it is, which may be another by now."""
        vars(self).pop("full_name", None)

    def publish(self, payload: T, **options: Unpack[EventKeywords]) -> str:
        """Send `payload` to every subscription; gives the message id once the broker has confirmed it.

        The subscriptions named in the definition exist before the first message does, so nobody has to be there yet.
        The options are those of `CallOptions`, but for ``task_id``.

        Raises:
            InvalidArgumentsError: it is not what the topic's schema says.
            BrokerError: the broker did not take it; `PublishTimeoutError` if that is not known.
        """
        return self._host.publishing.send(self._event(payload, options))

    async def apublish(self, payload: T, **options: Unpack[EventKeywords]) -> str:
        """`publish` from asyncio, whose loop goes on. Whoever is cancelled does not know whether it was sent."""
        return await self._host.publishing.asend(self._event(payload, options))

    def s(self, payload: T) -> Signature[None]:
        """The publication as a value, to be sent later by an outbox."""
        return Signature(self, (payload,))

    def tail(self) -> Tail[T]:
        """Follow the topic from now on, leaving no subscription behind; what came before is not seen.

        Everybody who tails sees every message. While the connection is away, messages are missed.
        """
        return Tail(self._host.read(self.full_name), self.codec, self._host.claims)

    def dead_letters(self, subscription: str, *, subscriptions: Collection[str] = ()) -> Topic[T]:
        """The topic of what `subscription` gave up, as one that tasks can subscribe to under the names in
        `subscriptions`.

        A handler with ``bind=True`` reads the reason from ``self.request.dead_letter``.
        """
        check_several(subscriptions, option="subscriptions")
        # A dot in the subscription's name must not pass for that which makes a short name a whole one.
        name = self.name if "." in self.name or "://" in self.name else f"{self._host.name}.{self.name}"
        topic = Topic(
            self._host,
            dead_letter_topic(name, subscription),
            schema=self.schema,
            key=self.key,
            subscriptions={DEAD_LETTERS, *subscriptions},
        )
        self._host.add_topic(topic)
        return topic

    def register(self, *, required: bool) -> None:
        """Tell the broker of the schema with the first publish. Not for dead letters: calls are given up too, and what
        was never a payload.

        Raises:
            ConfigurationError: it is `required`, and the schema cannot be told.
        """
        try:
            self.registered = describe(self.schema)
        except ConfigurationError as error:
            if required:
                raise ConfigurationError(f"topic {self.name!r}: {error}; leave register=True out") from error
            self.unregistered = str(error)

    def _event(self, payload: T, options: EventKeywords) -> Publication:
        return self.compose((payload,), {}, CallOptions().changed(options))  # type: ignore[arg-type]  # a part of them

    def compose(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions) -> Publication:
        """The message of one payload; see `publish`."""
        options.check()
        if options.link or options.link_error:
            raise InvalidArgumentsError(f"an event of {self.name} has no result, so nothing can be linked to it")
        if len(args) != 1 or kwargs:
            raise InvalidArgumentsError(f"an event of {self.name} has exactly one payload")
        if options.task_id is not None:
            raise InvalidArgumentsError(f"an event of {self.name} has no task_id: it is no call of one task")
        [payload] = args
        schema = getattr(self.schema, "__name__", self.schema)
        now = self._host.clock.now()
        # The instants travel too, since not every subscription is held back by the broker.
        instants = {ETA: options.due(now), EXPIRES: options.expiry(now)}
        try:
            value = self.codec.encode(payload)
        except InvalidArgumentsError as error:
            raise InvalidArgumentsError(f"an event of {self.name}: {error}; its schema is {schema}") from error
        key = options.key
        if key is None and self.key is not None:
            key = key_by(self.key, args, {}, of=f"an event of {self.name}, whose schema is {schema}")
        return Publication(
            topic=self.full_name,
            value=value,
            key=key,
            properties={
                **options.headers,
                **{name: milliseconds(instant) for name, instant in instants.items() if instant is not None},
            },
            deliver_at=instants[ETA],
        )

    def hosts(self) -> Iterator[Host]:
        """None: it takes no part in a canvas."""
        return iter(())

    def step(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions, draft: Draft, *, preceded: bool
    ) -> tuple[Step, AsyncResult[Any]]:
        raise InvalidArgumentsError(f"an event of {self.name} has no result and is no step of a canvas; publish it")

    def __repr__(self) -> str:
        return f"<Topic {self.name}>"


class Tail(Generic[T]):
    """Follows a topic; an iterator, also for ``async for``, that ends when it is closed, which any thread may do."""

    def __init__(self, reader: Reader, codec: PayloadCodec[T], claims: Claims) -> None:
        self._reader = reader
        self._codec = codec
        self._claims = claims
        self._closed = threading.Event()

    def receive(self, timeout: float) -> T | None:
        """The next payload, or None after `timeout` seconds without one, or when closed.

        Raises:
            UnreadableMessageError: a message is not of the topic's schema; the next call goes on behind it.
            PulsarTasksError: its payload is in a blob store that is not to be had; the same.
        """
        if self._closed.is_set():
            return None
        try:
            delivery = self._reader.receive(timeout)
        except ClosedError:
            self._closed.set()
            return None
        if delivery is None:
            return None
        return self._codec.decode(self._claims.fetch(delivery.value, delivery.properties))

    def close(self) -> None:
        self._closed.set()
        self._reader.close()

    def __iter__(self) -> Iterator[T]:
        while not self._closed.is_set():
            payload = self.receive(1.0)
            if payload is not None:
                yield payload

    async def __aiter__(self) -> AsyncIterator[T]:
        while not self._closed.is_set():
            payload = await asyncio.to_thread(self.receive, 1.0)
            if payload is not None:
                yield payload

    def __enter__(self) -> Tail[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
