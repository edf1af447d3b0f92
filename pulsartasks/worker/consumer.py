"""From the broker to the executor: threads that receive, run and acknowledge.

`SharedConsumer` does it all in one thread, with nothing in between. `OrderedConsumer` puts lanes between, so that
each key's messages run one after the other. `Forwarder` moves what was delayed to the call topic of an ordered task,
once it is due.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from functools import partial

import structlog

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Consumer, Delivery, Subscription
from pulsartasks.errors import (
    AuthenticationError,
    AuthorizationError,
    ClosedError,
    ConfigurationError,
    PulsarTasksError,
    SubscriptionBusyError,
)
from pulsartasks.message import Publication, read_eta
from pulsartasks.retry import backoff
from pulsartasks.worker.concurrency import Concurrency
from pulsartasks.worker.crew import Crew, Member
from pulsartasks.worker.executor import Executor
from pulsartasks.worker.lanes import Held, Lanes
from pulsartasks.worker.rate_limit import RateLimit

RECEIVE_TIMEOUT = 0.5
"""Seconds for which a thread waits for a message while something may be waited for that its broker knows nothing of."""
IDLE_TIMEOUT = 5.0
"""Seconds for which it waits otherwise; when the worker stops, its broker wakes it."""
WATCH_EVERY = 0.05
"""Seconds between two looks whether the broker was lost; Pulsar's client is back after 0.1 s at the earliest."""
STAND_BY = 1.0
"""Seconds between two tries to get a subscription that another worker holds."""
FORGIVEN_AFTER = 60.0
"""Seconds without an error after which the next one is met like a first one."""
ORDERED_BUFFER = 1000
"""Messages of waiting keys that one consumer holds; beyond that it receives no more until some are settled."""
EARLY_TICK = 2.0
"""Seconds by which a broker may deliver a delayed message early and have it waited for here (Pulsar: a tick, 1 s)."""

_log = structlog.get_logger("pulsartasks")


class ConsumerThreads(ABC):
    """Some threads on one subscription; start it once, stop it from anywhere."""

    companion = False
    """Whether it serves what comes in beside a topic."""

    def __init__(self, app: PulsarTasks, subscription: Subscription, *, threads: int) -> None:
        self.subscription = subscription
        self._app = app
        self._consumer: Consumer | None = None
        self._threads = [
            threading.Thread(target=self._main, name=f"{subscription.name}-{number}", daemon=True)
            for number in range(threads)
        ]
        self._stopping = threading.Event()
        self._standing_by = threading.Event()
        self._failed: Callable[[BaseException], None] = _log_failure
        self._first: Callable[[], None] = _nothing
        self.limit: RateLimit | None = None
        """How often its threads may begin a run."""
        self._aside: Mapping[str, str] = {}
        """Where messages of a topic are put back, if not to that topic, which others would get them from again."""

    @property
    def concurrency(self) -> int:
        """How many threads it has."""
        return len(self._threads)

    @property
    def ready(self) -> bool:
        """Connected, or standing by for the worker that holds the subscription."""
        consumer = self._consumer
        begun = self._threads[-1].ident is not None
        return self._standing_by.is_set() or (begun and consumer is not None and consumer.connected)

    def start(self, failed: Callable[[BaseException], None], *, first: Callable[[], None]) -> None:
        """Begin; `failed` is told when the subscription cannot be had for good.

        `first` is called before the broker is asked for messages, and again after an error of the broker's.
        """
        self._failed, self._first = failed, first
        threading.Thread(target=self._open, name=f"{self.subscription.name}-open", daemon=True).start()

    def asleep(self) -> tuple[int, float | None]:
        """How many received messages wait here for an instant to come, and the first such instant."""
        return 0, None

    def stop(self) -> None:
        """Receive no more; what runs goes on. Returns at once."""
        self._stopping.set()
        if self._consumer is not None:
            self._consumer.stop()

    def join(self, deadline: float) -> bool:
        """Wait for what runs, at most until `deadline` (monotonic seconds); whether all is done."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Give back what was not settled."""
        self._stopping.set()
        if self._consumer is not None:
            self._consumer.close()

    @abstractmethod
    def _work(self, consumer: Consumer) -> None:
        """Receive and handle until `_stopping` is set."""

    def _open(self) -> None:
        tries = 0
        while not self._stopping.is_set():
            try:
                for topic in self.subscription.topics:
                    self._app.declare(topic)
                self._first()
                self._consumer = self._app.broker.subscribe(self.subscription)
            except SubscriptionBusyError as error:
                if not self._standing_by.is_set():
                    _log.info("consumer.stood_by", subscription=self.subscription.name, reason=str(error))
                self._standing_by.set()
                self._stopping.wait(STAND_BY)
            except (ConfigurationError, AuthenticationError, AuthorizationError) as error:
                self._failed(error)
                return
            except Exception as error:  # noqa: BLE001 - a thread that ended in silence would consume nothing for ever
                _log.warning("consumer.refused", subscription=self.subscription.name, error=str(error))
                self._stopping.wait(backoff(tries, factor=0.2, maximum=10.0))
                tries += 1
            else:
                if self._stopping.is_set():  # `close` came before there was anything to close
                    self._consumer.close()
                else:
                    self._begin()
                return

    def _begin(self) -> None:
        self._standing_by.clear()
        name, mode, threads = self.subscription.name, self.subscription.mode, len(self._threads)
        if self.companion:
            _log.debug("companion.started", subscription=name, mode=mode, threads=threads)
        else:
            _log.info("consumer.started", subscription=name, mode=mode, threads=threads)
        for thread in self._threads:
            thread.start()

    def _main(self) -> None:
        consumer = self._consumer
        assert consumer is not None  # threads start after it was opened
        tries = -1
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._work(consumer)
            except ClosedError:
                return
            except PulsarTasksError as error:
                _log.warning("consumer.failed", subscription=self.subscription.name, error=str(error))
            except Exception:  # noqa: BLE001 - a middleware's or our own bug must not end a thread in silence
                _log.exception("consumer.failed", subscription=self.subscription.name)
            tries = 0 if time.monotonic() - began > FORGIVEN_AFTER else tries + 1
            self._stopping.wait(backoff(tries, factor=0.1, maximum=5.0))

    def _wait_until_due(self, delivery: Delivery) -> bool:
        """Hold a message that came early; False if it must not run here: the worker stops, or it is far too early."""
        eta = read_eta(delivery.properties)
        early = eta - self._app.clock.now()
        while early > 0:
            # Only where it came back too early is there a broker to be patient with, whose delayed delivery may be off.
            if (early < EARLY_TICK or self._waits_on(delivery.topic) == delivery.topic) and self._stopping.wait(
                min(early, EARLY_TICK)
            ):
                return False
            if early > EARLY_TICK:
                self._put_back(delivery, eta)
                return False
            early = eta - self._app.clock.now()
        return True

    def _source(self, consumer: Consumer) -> Callable[[], Delivery | None]:
        """What gives a message, when a run may begin."""
        limit = self.limit
        receive = partial(consumer.receive, IDLE_TIMEOUT if limit is None else RECEIVE_TIMEOUT)
        return receive if limit is None else lambda: limit.take(receive, self._stopping)

    def _waits_on(self, topic: str) -> str:
        """Where a message that was received on `topic` waits until it is due."""
        return self._aside.get(topic, topic)

    def _put_back(self, delivery: Delivery, eta: float) -> None:
        """Have the broker hold a message that it gave out far too early, since nothing told it not to, or in vain."""
        _log.warning("message.early", message_id=delivery.message_id, seconds=round(eta - self._app.clock.now(), 1))
        topic = self._waits_on(delivery.topic)
        self._app.publish(Publication(topic, delivery.value, delivery.key, delivery.properties, deliver_at=eta))
        delivery.acknowledge()


class SharedConsumer(ConsumerThreads):
    """Receive, run, acknowledge: in the same thread.

    Args:
        concurrency: its own, or kept together with that of a companion; each has as many threads.
    """

    def __init__(
        self,
        app: PulsarTasks,
        subscription: Subscription,
        executor: Executor,
        *,
        threads: int,
        aside: Mapping[str, str],
        concurrency: Concurrency,
    ) -> None:
        super().__init__(app, subscription, threads=threads)
        self._executor = executor
        self._aside = aside
        self._concurrency = concurrency
        self._turn = threading.Lock()
        self._crew = Crew()

    def stop(self) -> None:
        super().stop()
        self._concurrency.stop()
        self._crew.wake()

    def _work(self, consumer: Consumer) -> None:
        member, receive = Member(), self._source(consumer)
        try:
            while not self._stopping.is_set():
                delivery = self._take(consumer, receive)
                if delivery is not None:
                    self._handle(delivery, member)
                self._crew.wait_turn(member)
        finally:
            self._crew.leave(member)

    def _take(self, consumer: Consumer, receive: Callable[[], Delivery | None]) -> Delivery | None:
        """A message whose run may begin now.

        One thread at a time waits for one, and for its turn to run it, so that no more messages than that lie in hand
        while others could run them. Under load, where there is room, nobody needs to line up.
        """
        if not self._turn.acquire(blocking=False):
            if self.limit is None and not self._concurrency.full and (delivery := consumer.receive(0)) is not None:
                return delivery if self._concurrency.enter() else self._refuse(delivery)
            self._turn.acquire()
        try:
            delivery = None if self._stopping.is_set() else receive()
            return delivery if delivery is None or self._concurrency.enter() else self._refuse(delivery)
        finally:
            self._turn.release()

    def _refuse(self, delivery: Delivery) -> Delivery | None:
        self._stopping.set()  # the worker stops, and this consumer is only the next to be told
        delivery.release()
        return None

    def _handle(self, delivery: Delivery, member: Member) -> None:
        self._crew.begin(member)
        try:
            if message.ETA not in delivery.properties or self._wait_until_due(delivery):
                self._executor.execute(delivery, self.subscription.name)
        except BaseException:  # a bug, of a middleware or our own; nobody would get the message again
            delivery.release()
            raise
        finally:
            self._crew.end(member)
            self._concurrency.leave()


class CompanionConsumer(SharedConsumer):
    """The same for what comes due, and for calls of a topic's handler, beside the consumer of the topic."""

    companion = True


class OrderedConsumer(ConsumerThreads):
    """Each lane's messages one after the other, different lanes at once.

    Threads take turns at receiving: whoever finds nothing to run receives, the others wait to be told.
    """

    def __init__(
        self,
        app: PulsarTasks,
        subscription: Subscription,
        executor: Executor,
        *,
        threads: int,
        aside: Mapping[str, str],
    ) -> None:
        super().__init__(app, subscription, threads=threads)
        self._executor = executor
        self._aside = aside
        self._by_key = subscription.mode == "key_shared"
        self._condition = threading.Condition()
        self._lanes = Lanes(ORDERED_BUFFER)
        self._receiving = False

    def asleep(self) -> tuple[int, float | None]:
        with self._condition:
            return self._lanes.asleep(self._app.clock.now()), self._lanes.next_due()

    def stop(self) -> None:
        super().stop()
        with self._condition:
            self._condition.notify_all()

    def _begin(self) -> None:
        super()._begin()
        if self._consumer is not None and self._consumer.can_part:
            name = f"{self.subscription.name}-watch"
            threading.Thread(target=self._watch, args=[self._consumer], name=name, daemon=True).start()

    def _watch(self, consumer: Consumer) -> None:
        """Give back what is held once the broker was lost: it may be with others, who would run it at the same time."""
        while not self._stopping.wait(WATCH_EVERY):
            if consumer.part():
                _log.warning("consumer.parted", subscription=self.subscription.name)
                while not consumer.connected and not self._stopping.wait(WATCH_EVERY):
                    pass  # the client connects again by itself
                self._renew(consumer)

    def _renew(self, consumer: Consumer) -> None:
        tries = 0
        while not self._stopping.is_set():
            try:
                consumer.renew()
            except SubscriptionBusyError:
                self._standing_by.set()
                self._stopping.wait(STAND_BY)
            except Exception as error:  # noqa: BLE001 - a thread that ended in silence would consume nothing for ever
                _log.warning("consumer.refused", subscription=self.subscription.name, error=str(error))
                self._stopping.wait(backoff(tries, factor=0.2, maximum=10.0))
                tries += 1
            else:
                self._standing_by.clear()
                return

    def _work(self, consumer: Consumer) -> None:
        while not self._stopping.is_set():
            held = self._next(consumer)
            if held is not None and self.limit is not None:
                held = self.limit.take(lambda held=held: held, self._stopping)  # type: ignore[misc]
            if held is not None:
                self._execute(held)

    def _execute(self, held: Held) -> None:
        delay = None
        try:
            if not held.delivery.begin():
                return
            delay = self._executor.execute(held.delivery, self.subscription.name, retries=held.retries, in_place=True)
        except BaseException:  # a bug, of a middleware or our own; the lane would wait for it for ever
            held.delivery.release()
            raise
        finally:
            with self._condition:
                if delay is None:
                    self._lanes.done(held)
                else:
                    held.retries += 1
                    held.delivery.hold()
                    self._lanes.postpone(held, self._app.clock.now() + delay)
                self._condition.notify()

    def _next(self, consumer: Consumer) -> Held | None:
        """Something to run; None after a while without."""
        with self._condition:
            if (held := self._lanes.take(self._app.clock.now())) is not None:
                return held
            if self._receiving or self._lanes.full:
                self._condition.wait(self._until_due())
                return None
            self._receiving = True
            timeout = self._until_due()
        delivery = None
        try:
            delivery = consumer.receive(timeout)
            if delivery is not None and message.ETA in delivery.properties and self._moved_aside(delivery):
                delivery = None
        finally:
            with self._condition:
                self._receiving = False
                if delivery is not None:
                    self._hold(Held(delivery, self._lane(delivery)))
                self._condition.notify()
        return None

    def _moved_aside(self, delivery: Delivery) -> bool:
        """Whether a message that is not due for long now waits elsewhere: here it would take the place of others."""
        eta = read_eta(delivery.properties)
        if eta - self._app.clock.now() <= EARLY_TICK:
            return False
        try:
            self._put_back(delivery, eta)
        except PulsarTasksError:
            return False  # then here, after all
        return True

    def _hold(self, held: Held) -> None:
        held.delivery.hold()
        self._executor.receive(held.delivery, self.subscription.name)
        due = read_eta(held.delivery.properties)
        if due > self._app.clock.now():  # Pulsar holds nothing back for exclusive and failover subscriptions
            self._lanes.park(held, due)
        else:
            self._lanes.put(held)

    def _until_due(self) -> float:
        due = self._lanes.next_due()
        return RECEIVE_TIMEOUT if due is None else min(RECEIVE_TIMEOUT, max(0.0, due - self._app.clock.now()))

    def _lane(self, delivery: Delivery) -> Hashable:
        if not self._by_key:
            return delivery.topic
        # Without a key there is no order to keep: such a message is a lane of its own.
        return id(delivery) if delivery.key is None else (delivery.topic, delivery.key)


class Forwarder(ConsumerThreads):
    """Moves due messages to where they run: published and confirmed first, then acknowledged."""

    companion = True

    def __init__(
        self, app: PulsarTasks, subscription: Subscription, destinations: Mapping[str, str], *, threads: int = 1
    ) -> None:
        super().__init__(app, subscription, threads=threads)
        self._destinations = destinations

    def _work(self, consumer: Consumer) -> None:
        while not self._stopping.is_set():
            delivery = consumer.receive(IDLE_TIMEOUT)
            if delivery is not None:
                self._handle(delivery)

    def _handle(self, delivery: Delivery) -> None:
        try:
            if self._wait_until_due(delivery):
                self._forward(delivery)
        except BaseException:  # e.g. it could not be put back; nobody would get the message again
            delivery.release()
            raise

    def _forward(self, delivery: Delivery) -> None:
        properties = dict(delivery.properties)
        if message.untrue(properties) is None:  # else whoever runs it must see why it cannot be run
            properties.pop(message.ETA, None)
        publication = Publication(self._destinations[delivery.topic], delivery.value, delivery.key, properties)
        tries = 0
        while not self._stopping.is_set():
            try:
                self._app.publish(publication)
            except PulsarTasksError as error:
                _log.warning("message.unsettled", error=str(error))
                self._stopping.wait(backoff(tries, factor=0.2, maximum=5.0))
                tries += 1
            else:
                delivery.acknowledge()
                return


def _nothing() -> None:
    """Needs no preparation."""


def _log_failure(error: BaseException) -> None:
    _log.error("consumer.failed", error=str(error))
