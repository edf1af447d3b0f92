"""A small application with an outbox, for its tests: ``python -m tests.integration.shop`` is its relay process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pulsartasks import PulsarTasks, Topic
from pulsartasks.brokers.base import Consumer, Subscription
from pulsartasks.contrib.sqlalchemy import BATCH, Outbox, Relay
from pulsartasks.errors import PulsarTasksError
from tests.services import CHECKOUT, wait_until

READER = "reader"


class Order(msgspec.Struct, frozen=True):
    key: str | None
    number: int
    text: str = ""


class FailingApp(PulsarTasks):
    """An app that cannot reach some of its topics."""

    def __init__(self, name: str, broker: str) -> None:
        super().__init__(name, broker)
        self.failures: dict[str, PulsarTasksError] = {}
        """By topic."""
        self.attempts = 0

    def declare(self, topic: str) -> None:
        if topic in self.failures:
            self.attempts += 1
            raise self.failures[topic]
        super().declare(topic)


class Shop:
    """A small application: a database with an outbox, an event topic, and somebody who reads it."""

    def __init__(self, database_url: str, broker_url: str, *, topic: str = "shop.ordered", partitions: int = 0) -> None:
        self.database_url = database_url
        self.broker_url = broker_url
        self.metadata = sa.MetaData()
        self.outbox = Outbox(self.metadata)
        self.engine = sa.create_engine(database_url)
        self.app = FailingApp("shop", broker_url)
        self.ordered = self.add_topic(topic, partitions)
        self._consumers: dict[str, Consumer] = {}

    def add_topic(self, name: str, partitions: int = 0) -> Topic[Order]:
        return self.app.topic(
            name, schema=Order, key=lambda order: order.key, subscriptions=[READER], partitions=partitions
        )

    def send(self, *orders: Order, topic: Topic[Order] | None = None) -> None:
        """Commits orders in one transaction."""
        with Session(self.engine) as session, session.begin():
            for order in orders:
                self.outbox.add(session, (topic or self.ordered).s(order))

    def receive(self, count: int, topic: Topic[Order] | None = None) -> list[Order]:
        """Waits until `count` different orders arrived; gives all that did, in their order and repeated ones too."""
        arrived: list[Order] = []
        consumer = self._consumer(topic or self.ordered)

        def enough() -> bool:
            while delivery := consumer.receive(0.05):
                value = self.app.claims.fetch(delivery.value, delivery.properties)
                arrived.append(msgspec.json.decode(value, type=Order))
                delivery.acknowledge()
            return len(set(arrived)) >= count

        try:
            wait_until(enough, "not all orders arrived", timeout=60)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {len(set(arrived))} of {count}") from None
        return arrived

    def rows(self) -> Sequence[sa.Row[Any]]:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(self.outbox.table).order_by(self.outbox.table.c.id)).all()

    def count_rows(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(self.outbox.table)) or 0

    def wait_until_empty(self) -> None:
        wait_until(lambda: self.count_rows() == 0, "rows are left in the outbox")

    def relay(self, engine: sa.Engine | None = None) -> Relay:
        return self.outbox.relay(self.app, engine or self.engine)

    def close(self) -> None:
        for consumer in self._consumers.values():
            consumer.close()
        self.app.close()
        self.engine.dispose()

    def _consumer(self, topic: Topic[Order]) -> Consumer:
        if topic.name not in self._consumers:
            self.app.declare(topic.full_name)
            wanted = Subscription((topic.full_name,), READER, mode="exclusive", prefetch=100)
            self._consumers[topic.name] = self.app.broker.subscribe(wanted)
        return self._consumers[topic.name]


@contextmanager
def running(*relays: Relay) -> Iterator[threading.Event]:
    """The relays at work in threads; on leaving, they stop in time and without an error."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(relay: Relay) -> None:
        try:
            relay.run(stop)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(relay,)) for relay in relays]
    for thread in threads:
        thread.start()
    try:
        yield stop
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


def orders(count: int, keys: int = 5, start: int = 0) -> list[Order]:
    return [Order(f"key-{number % keys}", number) for number in range(start, start + count)]


def numbers_by_key(arrived: Sequence[Order]) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for order in arrived:
        found.setdefault(order.key, []).append(order.number)
    return found


@contextmanager
def relay_process(shop: Shop, *how: str) -> Iterator[subprocess.Popen[bytes]]:
    """A relay in a process of its own, that ends with the block at the latest."""
    command = [sys.executable, "-m", "tests.integration.shop", shop.database_url, shop.broker_url]
    command += [shop.ordered.name, *how]
    process = subprocess.Popen(command, cwd=CHECKOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def killed_before_deletion(shop: Shop) -> tuple[list[Order], list[Order]]:
    """Kill a relay between the broker's confirmation and the deletion, and let another go on.

    Gives what was sent and what arrived, up to a last one.
    """
    sent = orders(3 * BATCH)
    shop.send(*sent)
    with relay_process(shop, "dies-before-deletion") as process:
        assert process.wait(60) == -signal.SIGKILL
    assert shop.count_rows() == len(sent)

    with running(shop.relay()):
        arrived = shop.receive(len(sent))
        shop.wait_until_empty()
        shop.send(Order("last", 0))
        arrived += shop.receive(1)
    return [*sent, Order("last", 0)], arrived


class _DyingRelay(Relay):
    """Is killed in the moment between the broker's confirmation and the deletion."""

    def _settle(self, connection: sa.Connection) -> None:
        if self._published:
            os.kill(os.getpid(), signal.SIGKILL)


def _leave_a_child(shop: Shop, note: Path) -> None:
    """Relay until the outbox is empty, fork, and be killed; `note` says which process the child is."""
    threading.Thread(target=shop.relay().run, args=[threading.Event()], daemon=True).start()
    shop.wait_until_empty()
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        signal.pause()
    note.write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def _relay_in_this_process(database_url: str, broker_url: str, topic: str, how: str = "", note: str = "") -> None:
    shop = Shop(database_url, broker_url, topic=topic)
    if how == "leaves-a-child":
        _leave_a_child(shop, Path(note))
    kind: Callable[[Outbox, PulsarTasks, sa.Engine], Relay] = _DyingRelay if how else Relay
    kind(shop.outbox, shop.app, shop.engine).run(threading.Event())


if __name__ == "__main__":
    _relay_in_this_process(*sys.argv[1:])
