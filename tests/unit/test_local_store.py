"""The tables of the embedded broker: who gets which message, and what is left in the end."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulsartasks.brokers.local.store import Row, Store
from pulsartasks.errors import (
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    SubscriptionBusyError,
)
from pulsartasks.message import Publication
from pulsartasks.options import Mode

TOPIC = "persistent://public/default/t"


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store(None)
    yield store
    store.close()


class Reading:
    """A consumer of one subscription."""

    def __init__(
        self, store: Store, name: str = "s", *, mode: Mode = "shared", process: str = "p", topic: str = TOPIC
    ) -> None:
        self._store = store
        self._mode: Mode = mode
        ids = store.subscription_ids([topic], name)
        [self.subscription] = ids
        self.consumer = store.attach(ids, process=process, mode=mode)

    def take(self, limit: int = 100, now: float | None = None) -> list[str]:
        return [row.value.decode() for row in self.rows(limit, now)]

    def rows(self, limit: int = 100, now: float | None = None) -> list[Row]:
        return self._store.take(
            self.subscription, self.consumer, mode=self._mode, now=time.time() if now is None else now, limit=limit
        )

    def acknowledge(self, *rows: Row) -> None:
        self._store.acknowledge([(self.subscription, row.message_id) for row in rows])


def publish(
    store: Store, *values: str, key: str | None = None, due: float | None = None, topic: str = TOPIC
) -> list[int]:
    ids, _ = store.publish(
        [Publication(topic, value.encode(), key, {"h": value}, deliver_at=due) for value in values], now=time.time()
    )
    return ids


def count(store: Store, table: str) -> int:
    [number] = store._sql.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(number)


def test_message_without_a_subscription_is_not_kept(store: Store) -> None:
    publish(store, "lost")

    assert count(store, "messages") == 0
    assert Reading(store).take() == []


def test_each_subscription_has_every_message_once(store: Store) -> None:
    store.declare(TOPIC, ["s", "other"])
    publish(store, "a", "b")

    one, other = Reading(store), Reading(store, "other")

    assert (one.take(), other.take()) == (["a", "b"], ["a", "b"])
    assert one.take() == []


def test_message_goes_with_its_last_acknowledgement(store: Store) -> None:
    store.declare(TOPIC, ["s", "other"])
    publish(store, "a")
    one, other = Reading(store), Reading(store, "other")

    one.acknowledge(*one.rows())
    assert count(store, "messages") == 1
    rows = other.rows()
    other.acknowledge(*rows)
    other.acknowledge(*rows)  # a second time does no harm

    assert (count(store, "messages"), count(store, "deliveries")) == (0, 0)


def test_consumers_never_get_the_same_message(store: Store) -> None:
    first, second = Reading(store), Reading(store)
    publish(store, *"abcdef")

    assert first.take(2) + second.take(3) + first.take() == list("abcdef")


def test_message_has_its_headers_key_and_instant(store: Store) -> None:
    reading = Reading(store)
    before = time.time()
    publish(store, "a", key="k")

    [row] = reading.rows()

    assert (row.value, row.key, row.properties) == (b"a", "k", {"h": "a"})
    assert before - 0.001 <= row.published_at <= time.time() + 0.001


def test_ids_rise_though_the_clock_stands_still(store: Store) -> None:
    store.declare(TOPIC, ["s"])

    ids = [number for _ in range(50) for number in publish(store, "a", "b")]

    assert ids == sorted(set(ids))


def test_delayed_message_comes_when_it_is_due_and_before_newer_ones(store: Store) -> None:
    reading = Reading(store)
    publish(store, "late", due=2000.0)
    publish(store, "later", due=3000.0)
    publish(store, "now")

    assert reading.take(now=1000.0) == ["now"]
    assert store.next_due(reading.subscription) == 2000.0
    publish(store, "newer")
    assert reading.take(now=2000.0) == ["late", "newer"]
    assert reading.take(now=3000.0) == ["later"]
    assert store.next_due(reading.subscription) is None


def test_key_is_held_by_one_consumer_until_all_of_it_is_settled(store: Store) -> None:
    first, second = Reading(store, mode="key_shared"), Reading(store, mode="key_shared")
    publish(store, "a1", "a2", key="a")
    held = first.rows(1)

    publish(store, "b1", key="b")
    assert second.take() == ["b1"]

    first.acknowledge(*held)
    assert second.take() == ["a2"]


def test_messages_without_a_key_are_free_for_all(store: Store) -> None:
    first, second = Reading(store, mode="key_shared"), Reading(store, mode="key_shared")
    publish(store, "a", "b")

    assert (first.take(1), second.take(1)) == (["a"], ["b"])


def test_what_a_consumer_held_is_given_back_in_order(store: Store) -> None:
    first, second = Reading(store), Reading(store)
    publish(store, "a", "b", "c")
    assert first.take(2) == ["a", "b"]

    store.detach(first.consumer)

    assert second.take() == ["a", "b", "c"]


def test_exclusive_refuses_a_second_consumer(store: Store) -> None:
    first = Reading(store, mode="exclusive")

    with pytest.raises(SubscriptionBusyError, match="holds the subscription as exclusive"):
        Reading(store, mode="exclusive")

    store.detach(first.consumer)
    Reading(store, mode="exclusive")


def test_modes_do_not_mix(store: Store) -> None:
    Reading(store, mode="key_shared")

    with pytest.raises(SubscriptionBusyError, match="key_shared; this one asked for shared"):
        Reading(store)


def test_failover_serves_the_first_and_then_the_next(store: Store) -> None:
    first, second = Reading(store, mode="failover"), Reading(store, mode="failover")
    publish(store, "a", "b")

    assert (second.take(), first.take(1)) == ([], ["a"])
    store.detach(first.consumer)

    assert second.take() == ["a", "b"]


def test_dead_process_is_cleaned_up_behind(store: Store) -> None:
    dead, alive = Reading(store, process="dead"), Reading(store, process="alive")
    publish(store, "a")
    assert dead.take() == ["a"]
    store.add_reader(TOPIC, "reader", "dead")
    publish(store, "b")

    news = store.bury(lambda: ["alive"])

    assert news == {"alive": {alive.subscription}}
    assert alive.take() == ["a", "b"]
    assert count(store, "subscriptions") == 1
    assert store.bury(lambda: ["alive"]) == {}


def test_process_that_enters_while_the_dead_are_looked_for_lives(store: Store) -> None:
    Reading(store, process="dead")

    def alive() -> list[str]:
        """Asked before the other one has entered, answered behind that."""
        store.add_reader(TOPIC, "reader", "entered")
        return []

    store.bury(alive)

    publish(store, "a")
    assert count(store, "subscriptions") == 2
    assert count(store, "deliveries") == 2


def test_subscription_is_never_told_apart_by_a_number_that_another_had(store: Store) -> None:
    gone, _ = store.add_reader(TOPIC, "reader", "process")
    store.remove_reader(gone)

    later, _ = store.add_reader(TOPIC, "another", "process")

    assert later != gone


def test_published_news_name_the_processes_that_listen(store: Store) -> None:
    one, other = Reading(store, process="one"), Reading(store, "other", process="other")
    store.declare(TOPIC, ["nobody"])

    _, news = store.publish([Publication(TOPIC, b"a")], now=time.time())

    assert news == {"one": {one.subscription}, "other": {other.subscription}}


def test_released_message_waits_again(store: Store) -> None:
    reading = Reading(store)
    publish(store, "a")
    [row] = reading.rows()

    store.release([(reading.subscription, row.message_id)])

    assert reading.take() == ["a"]


def test_scan_reads_what_is_kept_from_an_id_on(store: Store) -> None:
    store.declare(TOPIC, ["keeper"])
    first, second, third = publish(store, "a", "b", "c")

    assert [row.message_id for row in store.scan(TOPIC, after=first, limit=10)] == [second, third]
    assert [row.value for row in store.scan(TOPIC, after=0, limit=1)] == [b"a"]


def test_trim_settles_what_is_older(store: Store) -> None:
    store.declare(TOPIC, ["keeper", "other"])
    publish(store, "old")
    border = time.time() + 0.001
    while time.time() <= border + 0.001:
        pass
    publish(store, "new")

    store.trim(TOPIC, "keeper", before=border)

    assert Reading(store, "keeper").take() == ["new"]
    assert Reading(store, "other").take() == ["old", "new"]
    store.trim(TOPIC, "nobody", before=border)


def test_failed_transaction_leaves_nothing_behind(store: Store) -> None:
    reading = Reading(store)

    with pytest.raises(BrokerError):
        store.publish([Publication(TOPIC, b"good"), Publication(TOPIC, object())], now=time.time())  # type: ignore[arg-type]

    assert count(store, "messages") == 0
    publish(store, "next")
    assert reading.take() == ["next"]


def test_full_disk_is_named_and_leaves_no_topic_known_that_is_not_there(store: Store) -> None:
    Reading(store)
    store._sql.execute("PRAGMA max_page_count = 30")

    with pytest.raises(BrokerUnavailableError, match="full"):
        store.publish([Publication("another", b""), *[Publication(TOPIC, b"x" * 9_000)] * 20], now=time.time())

    names = {name for (name,) in store._sql.execute("SELECT name FROM topics")}
    assert names == {TOPIC}
    assert set(store._topic_ids) <= names


def test_instant_before_1970_is_due_at_once(store: Store) -> None:
    reading = Reading(store)

    publish(store, "long ago", due=-62_135_596_800.0)

    assert reading.take() == ["long ago"]


def test_closed_store_says_so(store: Store) -> None:
    store.close()

    for use in (lambda: publish(store, "a"), lambda: store.next_due(1), lambda: store.bury(list)):
        with pytest.raises(ClosedError):
            use()
    store.close()


def test_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    Store(path).close()
    with sqlite3.connect(path) as sql:
        sql.execute("PRAGMA user_version = 99")
    sql.close()

    with pytest.raises(ConfigurationError, match="another version"):
        Store(path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.write_bytes(b"this is a text, and longer than the hundred bytes of a header " * 10)

    with pytest.raises(BrokerError, match="damaged or no database"):
        Store(path)


def test_stores_of_one_file_see_the_same(tmp_path: Path) -> None:
    one, other = Store(tmp_path / "broker.db"), Store(tmp_path / "broker.db", full_sync=True)
    reading = Reading(other)

    publish(one, "a")

    assert reading.take() == ["a"]
    one.close()
    other.close()


def test_threads_share_a_store(store: Store) -> None:
    readings = [Reading(store) for _ in range(4)]
    taken: list[str] = []

    def work(reading: Reading) -> None:
        while rows := reading.rows(3):
            reading.acknowledge(*rows)
            taken.extend(row.value.decode() for row in rows)

    publish(store, *map(str, range(200)))
    threads = [threading.Thread(target=work, args=[reading]) for reading in readings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken, key=int) == [str(number) for number in range(200)]
    assert count(store, "messages") == 0


def test_message_that_its_producer_numbered_is_stored_once(store: Store) -> None:
    store.declare(TOPIC, ["s"])

    def send(value: str, producer: str, number: int) -> list[int]:
        numbered = Publication(TOPIC, value.encode(), producer=producer, sequence=number)
        return store.publish([numbered], now=time.time())[0]

    send("a", "one", 5)
    send("b", "other", 5)
    duplicates = send("a again", "one", 5) + send("older", "one", 4)
    send("c", "one", 6)

    assert duplicates == [-1, -1]
    assert Reading(store).take() == ["a", "b", "c"]


def test_file_from_before_producers_were_counted_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    store = Store(path)
    store._sql.execute("DROP TABLE sequences")
    store.close()

    store = Store(path)
    store.declare(TOPIC, ["s"])
    store.publish([Publication(TOPIC, b"a", producer="one", sequence=1)], now=time.time())
    assert Reading(store).take() == ["a"]
    store.close()
