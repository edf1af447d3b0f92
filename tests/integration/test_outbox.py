"""What the outbox promises, on real SQLite and real PostgreSQL, with the embedded broker and a real Pulsar."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from structlog.testing import capture_logs

from pulsartasks import group
from pulsartasks.brokers.base import MAX_MESSAGE_SIZE
from pulsartasks.claims import ClaimCheck
from pulsartasks.contrib import sqlalchemy as contrib
from pulsartasks.contrib.blobs import BlobStoreUnavailableError
from pulsartasks.contrib.sqlalchemy import BATCH, Outbox
from pulsartasks.errors import (
    AuthorizationError,
    BrokerUnavailableError,
    ConfigurationError,
    InvalidArgumentsError,
    PulsarTasksError,
)
from pulsartasks.message import TASK_ID, Publication
from pulsartasks.middleware.base import Middleware, Publish
from tests.integration.shop import Order, Shop, killed_before_deletion, numbers_by_key, orders, relay_process, running
from tests.services import PulsarServer, free_ports, wait_until


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db" if request.param == "sqlite" else request.getfixturevalue("postgres")


@pytest.fixture
def broker_url(tmp_path: Path) -> str:
    return f"local://{tmp_path}/broker.db"


@pytest.fixture
def shop(database_url: str, broker_url: str) -> Iterator[Shop]:
    yield from _open(Shop(database_url, broker_url))


@pytest.fixture
def postgres_shop(postgres: str, broker_url: str) -> Iterator[Shop]:
    yield from _open(Shop(postgres, broker_url))


def _open(shop: Shop) -> Iterator[Shop]:
    shop.metadata.create_all(shop.engine)
    yield shop
    shop.close()


def test_committed_rows_arrive_and_are_deleted(shop: Shop) -> None:
    sent = orders(3 * BATCH)
    shop.send(*sent)

    with running(shop.relay()):
        arrived = shop.receive(len(sent))
        shop.wait_until_empty()

    assert Counter(arrived) == Counter(sent)


def test_rolled_back_rows_never_arrive(shop: Shop) -> None:
    with Session(shop.engine) as session:
        shop.outbox.add(session, shop.ordered.s(Order("a", 1)))
        session.rollback()
    with Session(shop.engine) as session, session.begin():
        shop.outbox.add(session, shop.ordered.s(Order("a", 2)))
        with session.begin_nested() as savepoint:
            shop.outbox.add(session, shop.ordered.s(Order("a", 3)))
            savepoint.rollback()
        shop.outbox.add(session, shop.ordered.s(Order("a", 4)))

    with running(shop.relay()):
        arrived = shop.receive(2)
        shop.wait_until_empty()

    assert [order.number for order in arrived] == [2, 4]


@pytest.mark.parametrize("kind", ["session", "scoped session", "connection"])
def test_every_kind_of_synchronous_transaction_will_do(shop: Shop, kind: str) -> None:
    signature = shop.ordered.s(Order("a", 1))
    if kind == "connection":
        with shop.engine.begin() as connection:
            shop.outbox.add(connection, signature)
    elif kind == "session":
        with Session(shop.engine) as session, session.begin():
            shop.outbox.add(session, signature)
    else:
        scoped = scoped_session(sessionmaker(shop.engine))
        shop.outbox.add(scoped, signature)
        scoped.commit()
        scoped.remove()

    with running(shop.relay()):
        assert shop.receive(1) == [Order("a", 1)]


def test_call_is_stored_as_it_would_be_sent(shop: Shop) -> None:
    @shop.app.task(key=lambda number: f"order-{number}")
    def pay(number: int) -> None: ...

    with Session(shop.engine) as session, session.begin():
        task_id = shop.outbox.add(session, pay.using(countdown=3600, headers={"colour": "red"}).s(17))

    (row,) = shop.rows()
    assert row.topic == pay.topics.delayed
    assert row.key == "order-17"
    assert msgspec.json.decode(row.value) == {"args": [17], "kwargs": {}}
    assert row.properties["colour"] == "red"
    assert row.properties[TASK_ID] == task_id
    assert row.deliver_at == pytest.approx(row.created_at.timestamp() + 3600, abs=86_400), "SQLite drops the time zone"


def test_canvas_is_stored_if_it_begins_with_one_call(shop: Shop) -> None:
    @shop.app.task
    def pay(number: int) -> int:
        return number

    with Session(shop.engine) as session, session.begin():
        task_id = shop.outbox.add(session, pay.s(17) | group(pay.s(), pay.s()) | pay.si(18))
        with pytest.raises(InvalidArgumentsError, match="begins with 2 messages"):
            shop.outbox.add(session, group(pay.s(1), pay.s(2)))

    (row,) = shop.rows()
    assert (row.topic, row.properties[TASK_ID]) == (pay.topics.calls, task_id)
    assert len(msgspec.json.decode(row.value)["then"]["rest"]) == 2


def test_event_has_no_task_id(shop: Shop) -> None:
    with Session(shop.engine) as session:
        assert shop.outbox.add(session, shop.ordered.s(Order("a", 1))) is None


def test_call_that_was_sent_is_refused(shop: Shop) -> None:
    @shop.app.task
    def pay(number: int) -> None: ...

    for wrong in (pay.result("7"), pay):
        with Session(shop.engine) as session, pytest.raises(InvalidArgumentsError, match=r"write outbox\.add"):
            shop.outbox.add(session, cast("Any", wrong))

    assert shop.rows() == []


def test_what_has_no_transaction_is_refused(shop: Shop) -> None:
    for wrong in (shop.engine, sessionmaker(shop.engine), None):
        with pytest.raises(
            InvalidArgumentsError, match=r"give a Session or Connection, whose transaction it shares, not "
        ):
            shop.outbox.add(cast("Any", wrong), shop.ordered.s(Order("a", 1)))

    assert shop.rows() == []


def test_wrong_arguments_are_refused_before_anything_is_stored(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin(), pytest.raises(InvalidArgumentsError):
        shop.outbox.add(session, shop.ordered.s(Order("a", cast("int", "one"))))

    assert shop.rows() == []


def test_adding_needs_no_broker(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for shop in _open(Shop(f"sqlite:///{tmp_path}/shop.db", f"pulsar://127.0.0.1:{port}")):

        @shop.app.task
        def pay(number: int) -> None: ...

        with Session(shop.engine) as session, session.begin():
            shop.outbox.add(session, pay.s(17))
            shop.outbox.add(session, shop.ordered.s(Order("a", 1)))

        assert len(shop.rows()) == 2


def test_rows_of_a_key_arrive_in_their_order(shop: Shop) -> None:
    sent = orders(500, keys=7)
    with running(shop.relay()):
        for start in range(0, len(sent), 20):
            shop.send(*sent[start : start + 20])
        arrived = shop.receive(len(sent))

    assert numbers_by_key(arrived) == numbers_by_key(sent)


def test_rows_of_a_key_arrive_in_the_order_of_the_commits(shop: Shop) -> None:
    """Every transaction adds its row first, and then queues for the lock that decides when it commits."""
    counter = sa.Table("counter", sa.MetaData(), sa.Column("value", sa.Integer, nullable=False))
    counter.create(shop.engine)
    with shop.engine.begin() as connection:
        connection.execute(counter.insert().values(value=0))
    committed: dict[int, int] = {}

    def work(worker: int) -> None:
        for turn in range(15):
            number = worker * 1000 + turn
            with Session(shop.engine) as session, session.begin():
                shop.outbox.add(session, shop.ordered.s(Order("a", number)))
                place = session.scalar(counter.update().values(value=counter.c.value + 1).returning(counter.c.value))
                assert place is not None
                committed[place] = number

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    with running(shop.relay()):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        arrived = shop.receive(60)

    assert [order.number for order in arrived] == [number for _, number in sorted(committed.items())]


def test_transaction_that_began_first_and_commits_last_is_last(postgres_shop: Shop) -> None:
    shop = postgres_shop
    with Session(shop.engine) as first, Session(shop.engine) as second:
        shop.outbox.add(first, shop.ordered.s(Order("a", 1)))
        shop.outbox.add(second, shop.ordered.s(Order("a", 2)))
        shop.outbox.add(second, shop.ordered.s(Order("a", 3)))
        second.commit()
        first.commit()

    with running(shop.relay()):
        assert [order.number for order in shop.receive(3)] == [2, 3, 1]


def test_adding_leads_to_no_deadlock(postgres_shop: Shop) -> None:
    """Transactions add the same keys in different orders, before or after they lock a row that all of them want."""
    counter = sa.Table("counter", sa.MetaData(), sa.Column("value", sa.Integer, nullable=False))
    counter.create(postgres_shop.engine)
    with postgres_shop.engine.begin() as connection:
        connection.execute(counter.insert().values(value=0))
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        lock_first, reverse = worker & 1, worker & 2
        try:
            for turn in range(15):
                pair = [Order("a", worker * 1000 + turn), Order("b", worker * 1000 + turn)]
                with Session(postgres_shop.engine) as session, session.begin():
                    if lock_first:
                        session.execute(counter.update().values(value=counter.c.value + 1))
                    for order in reversed(pair) if reverse else pair:
                        postgres_shop.outbox.add(session, postgres_shop.ordered.s(order))
                    if not lock_first:
                        session.execute(counter.update().values(value=counter.c.value + 1))
        except BaseException as error:
            failures.append(error)
            raise

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert failures == []
    assert postgres_shop.count_rows() == 120


def test_row_added_in_this_process_is_relayed_without_waiting_for_the_next_look(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrib, "POLL", 3600.0)
    with running(shop.relay()) as stop:
        shop.send(Order("a", 1))
        assert shop.receive(1) == [Order("a", 1)]
        with shop.engine.begin() as connection:
            shop.outbox.add(connection, shop.ordered.s(Order("a", 2)))
        assert shop.receive(1) == [Order("a", 2)]
        stop.set()
        shop.send(Order("a", 3))


def test_rows_of_another_process_are_seen_by_looking(shop: Shop) -> None:
    """Another engine is as good as another process: nothing is heard of its commits."""
    other = Shop(shop.database_url, shop.broker_url)
    with running(shop.relay()):
        other.send(Order("a", 1))
        assert shop.receive(1) == [Order("a", 1)]
    other.close()


def test_two_relays_send_each_row_once(shop: Shop) -> None:
    sent = orders(1000, keys=50)
    other = sa.create_engine(shop.database_url)
    with running(shop.relay(), shop.relay(other)):
        for start in range(0, len(sent), 50):
            shop.send(*sent[start : start + 50])
        arrived = shop.receive(len(sent))
        shop.wait_until_empty()
    other.dispose()

    assert len(arrived) == len(sent)
    assert numbers_by_key(arrived) == numbers_by_key(sent)


def test_relays_share_the_shards_and_the_last_one_has_them_all(postgres_shop: Shop) -> None:
    shop = postgres_shop

    def claims() -> list[tuple[int, ...]]:
        return [entry["shards"] for entry in logs if entry["event"] == "outbox.claimed"]

    with capture_logs() as logs, running(shop.relay()):
        wait_until(lambda: claims() == [(0, 1, 2, 3)], "the first relay has not all shards")
        other = sa.create_engine(shop.database_url)
        with running(shop.relay(other)):
            wait_until(lambda: {(0, 1), (2, 3)} <= set(claims()[1:]), "the relays do not share the shards")
            shop.send(*orders(200, keys=20))
            arrived = shop.receive(200)
        wait_until(lambda: claims()[-1] == (0, 1, 2, 3), "the last relay has not all shards")
        other.dispose()

    assert numbers_by_key(arrived) == numbers_by_key(orders(200, keys=20))


def test_stand_by_takes_over_from_a_relay_that_stops(shop: Shop) -> None:
    other = sa.create_engine(shop.database_url)
    with running(shop.relay(other)):
        with running(shop.relay()):
            shop.send(Order("a", 1))
            shop.receive(1)
        shop.send(Order("a", 2))
        assert shop.receive(1) == [Order("a", 2)]
    other.dispose()


def test_child_that_a_killed_relay_has_forked_does_not_keep_its_claim(tmp_path: Path, broker_url: str) -> None:
    """To a database in SQLite."""
    note = tmp_path / "child"
    for shop in _open(Shop(f"sqlite:///{tmp_path}/shop.db", broker_url)):
        shop.send(Order("a", 1))
        with relay_process(shop, "leaves-a-child", str(note)) as process:
            assert process.wait(60) == -signal.SIGKILL
        try:
            shop.send(Order("a", 2))
            with running(shop.relay()):
                assert [order.number for order in shop.receive(2)] == [1, 2]
        finally:
            os.kill(int(note.read_text()), signal.SIGKILL)


def test_relay_can_run_again_after_it_stopped(shop: Shop) -> None:
    relay = shop.relay()
    for number in range(3):
        with running(relay):
            shop.send(Order("a", number))
            assert shop.receive(1) == [Order("a", number)]


def test_relay_killed_before_it_deleted_sends_nothing_again(shop: Shop) -> None:
    sent, arrived = killed_before_deletion(shop)

    assert Counter(arrived) == Counter(sent)


def test_outbox_that_was_made_anew_is_not_taken_for_the_old_one(shop: Shop) -> None:
    with running(shop.relay()):
        shop.send(*orders(50))
        shop.receive(50)
        shop.wait_until_empty()
    shop.metadata.drop_all(shop.engine)
    shop.metadata.create_all(shop.engine)

    with running(shop.relay()):
        shop.send(*orders(50, start=50))
        assert len(shop.receive(50)) == 50


def test_rows_that_were_numbered_come_before_those_that_were_not(shop: Shop) -> None:
    """A row whose id is smaller was committed later: with its number the broker would drop what has a smaller one."""
    shop.send(*(Order("a", number) for number in range(3)))
    _, *numbered = shop.rows()
    with shop.engine.begin() as connection:
        table = shop.outbox.table
        for number, row in enumerate(numbered, 1):
            connection.execute(table.update().where(table.c.id == row.id).values(sequence_id=number))

    with running(shop.relay()):
        assert [order.number for order in shop.receive(3)] == [1, 2, 0]


def test_row_released_while_others_wait_for_the_broker_makes_it_drop_none_of_them(shop: Shop) -> None:
    """It has the smallest id and no number; sent first it would get one above those of the rows that wait."""
    topic = shop.ordered.full_name
    with running(shop.relay()):
        shop.send(Order("a", 1))
        shop.receive(1)
        shop.app.failures[topic] = AuthorizationError("may not produce")
        shop.send(Order("a", 2))
        wait_until(lambda: any(row.error for row in shop.rows()), "not parked")
        shop.app.failures[topic] = BrokerUnavailableError("away")
        shop.send(Order("a", 3))
        wait_until(lambda: shop.rows()[-1].sequence_id is not None, "not numbered")
        with Session(shop.engine) as session, session.begin():
            assert shop.outbox.release(session) == 1
        shop.app.failures.clear()

        assert [order.number for order in shop.receive(2)] == [3, 2]


def test_row_committed_late_while_others_wait_for_the_broker_makes_it_drop_none_of_them(postgres_shop: Shop) -> None:
    """Without a key it keeps its id, which is smaller than those of rows that have their numbers already."""
    shop = Shop(postgres_shop.database_url, postgres_shop.broker_url)
    shop.outbox.shards = 1
    with running(shop.relay()):
        shop.send(Order(None, 1))
        shop.receive(1)
        shop.app.failures[shop.ordered.full_name] = BrokerUnavailableError("away")
        with Session(shop.engine) as late, late.begin():
            shop.outbox.add(late, shop.ordered.s(Order(None, 2)))
            shop.send(Order(None, 3))
            wait_until(lambda: shop.rows()[-1].sequence_id is not None, "not numbered")
        shop.app.failures.clear()

        assert [order.number for order in shop.receive(2)] == [3, 2]
    shop.close()


class _ReluctantBlobs:
    """A blob store that is away at first."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self.tries = 0

    def put(self, key: str, data: bytes, content_type: str = "") -> None:
        self.tries += 1
        if self.tries == 1:
            raise BlobStoreUnavailableError("away")
        self._blobs[key] = data

    def get(self, key: str) -> Any:
        return SimpleNamespace(data=self._blobs[key])


def test_row_whose_payload_could_not_be_stored_is_not_dropped_for_the_one_behind_it(shop: Shop) -> None:
    """That one was sent under a higher number, so the first gets another."""
    shop.app.claims = ClaimCheck(_ReluctantBlobs(), above=1000)
    shop.send(Order("a", 1, text="x" * 2000), Order("a", 2))

    with running(shop.relay()):
        assert [order.number for order in shop.receive(2)] == [2, 1]
        shop.wait_until_empty()


def test_relays_killed_while_they_work_lose_nothing(shop: Shop) -> None:
    """Three are killed, one after the other, amid a stream of rows."""
    sent: list[Order] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            batch = orders(20, start=len(sent))
            shop.send(*batch)
            sent.extend(batch)
            wait_until(lambda: stop.is_set() or shop.count_rows() < 3 * BATCH, "the relays stand still")

    worker = threading.Thread(target=work)
    worker.start()
    arrived: list[Order] = []
    kills = 3
    try:
        for _ in range(kills):
            with relay_process(shop) as process:
                arrived += shop.receive(30)
                process.kill()
    finally:
        stop.set()
        worker.join()
    with running(shop.relay()):
        shop.wait_until_empty()
        arrived += shop.receive(len(set(sent) - set(arrived)))

    assert set(arrived) == set(sent)
    assert len(arrived) - len(sent) <= kills * BATCH
    first_arrivals = list(dict.fromkeys(arrived))
    assert numbers_by_key(first_arrivals) == numbers_by_key(sent)


def test_rows_wait_for_a_broker_that_is_away(shop: Shop) -> None:
    shop.app.failures[shop.ordered.full_name] = BrokerUnavailableError("away")
    sent = orders(2 * BATCH)
    shop.send(*sent)
    with capture_logs() as logs, running(shop.relay()):
        wait_until(lambda: shop.app.attempts >= 3, "no attempts")
        assert shop.count_rows() == len(sent)
        shop.app.failures.clear()
        arrived = shop.receive(len(sent))
        shop.wait_until_empty()

    assert numbers_by_key(arrived) == numbers_by_key(sent)
    delays = [entry["delay"] for entry in logs if entry["event"] == "outbox.delayed"]
    assert delays[:3] == [0.1, 0.2, 0.4]


def test_topic_out_of_reach_does_not_hold_up_another(shop: Shop) -> None:
    paid = shop.add_topic("shop.paid")
    shop.app.failures[shop.ordered.full_name] = BrokerUnavailableError("away")
    shop.send(*orders(2 * BATCH))
    shop.send(*orders(10), topic=paid)

    with running(shop.relay()):
        assert len(shop.receive(10, topic=paid)) == 10
        wait_until(lambda: shop.count_rows() == 2 * BATCH, "what was sent is still there")


def test_row_that_is_too_large_is_parked_and_the_next_goes_on(shop: Shop) -> None:
    shop.send(Order("a", 1), Order("a", 2, text="x" * MAX_MESSAGE_SIZE), Order("a", 3))

    with capture_logs() as logs, running(shop.relay()):
        assert [order.number for order in shop.receive(2)] == [1, 3]
        wait_until(lambda: shop.count_rows() == 1, "rows are left in the outbox")

    (row,) = shop.rows()
    assert row.error.startswith("MessageTooLargeError: ")
    (entry,) = [entry for entry in logs if entry["event"] == "outbox.parked"]
    assert (entry["log_level"], entry["row"], entry["topic"]) == ("error", row.id, shop.ordered.full_name)


def test_row_that_the_client_chokes_on_is_parked_and_the_others_go_on(shop: Shop) -> None:
    shop.send(Order("a", 1), Order("a", 2), Order("a", 3))
    (_, second, _) = shop.rows()
    with shop.engine.begin() as connection:
        table = shop.outbox.table
        connection.execute(table.update().where(table.c.id == second.id).values(properties=["no", "mapping"]))

    with running(shop.relay()):
        assert {order.number for order in shop.receive(2)} == {1, 3}
        wait_until(lambda: [row.id for row in shop.rows()] == [second.id], "the bad row is not alone")

    assert shop.rows()[0].error is not None


class _TwoTroubles(Middleware):
    """Chokes on the first that is sent, and then finds no broker, for one call each."""

    def __init__(self) -> None:
        self._calls = itertools.count(1)

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        call = next(self._calls)
        if call == 1:
            raise ZeroDivisionError
        return [BrokerUnavailableError("away") for _ in publications] if call == 2 else call_next(publications)


def test_broker_that_goes_away_while_a_bad_row_is_looked_for_drops_none(shop: Shop) -> None:
    """The rows are then sent one by one, and those behind one that has to wait do as well."""
    shop.app.middleware = (_TwoTroubles(),)
    shop.send(*(Order("a", number) for number in range(3)))

    with running(shop.relay()):
        assert [order.number for order in shop.receive(3)] == [0, 1, 2]


def test_rows_wait_for_a_topic_that_is_full(
    database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrib, "PUBLISH_TIMEOUT", 0.1)
    for shop in _open(Shop(database_url, f"{broker_url}?max_backlog=1")):
        with capture_logs() as logs, running(shop.relay()):
            shop.send(Order("a", 1))
            shop.wait_until_empty()
            shop.send(Order("a", 2))
            wait_until(lambda: any(entry["event"] == "outbox.delayed" for entry in logs), "no attempt")
            assert [order.number for order in shop.receive(2)] == [1, 2]


def test_refused_row_is_parked_until_it_is_released(shop: Shop) -> None:
    shop.app.failures[shop.ordered.full_name] = AuthorizationError("may not produce")
    shop.send(Order("a", 1))

    with running(shop.relay()):
        wait_until(lambda: shop.rows()[0].error is not None, "not parked")
        assert shop.rows()[0].error == "AuthorizationError: may not produce"
        shop.app.failures.clear()
        with Session(shop.engine) as session, session.begin():
            assert shop.outbox.release(session) == 1
        assert shop.receive(1) == [Order("a", 1)]


def test_relay_survives_a_database_that_cuts_its_connections(postgres_shop: Shop) -> None:
    shop = postgres_shop
    cut = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> :me"
    )
    with running(shop.relay(sa.create_engine(shop.database_url, poolclass=sa.NullPool))):
        for number in range(3):
            shop.send(Order("a", number))
            assert Order("a", number) in shop.receive(1)
            with shop.engine.begin() as connection:
                me = connection.scalar(sa.text("SELECT pg_backend_pid()"))
                connection.execute(cut, {"me": me})
            shop.engine.dispose()


def test_tables_that_are_made_later_are_waited_for(database_url: str, broker_url: str) -> None:
    shop = Shop(database_url, broker_url)
    with capture_logs() as logs, running(shop.relay()):
        wait_until(lambda: any(entry["event"] == "outbox.interrupted" for entry in logs), "no complaint")
        shop.metadata.create_all(shop.engine)
        shop.send(Order("a", 1))
        assert shop.receive(1) == [Order("a", 1)]
    shop.close()


def test_database_in_memory_is_refused(broker_url: str) -> None:
    shop = Shop("sqlite://", broker_url)

    with pytest.raises(ConfigurationError, match="a database in a file"):
        shop.relay().run(threading.Event())


def test_rows_without_a_key_are_spread_and_a_key_stays_in_its_shard(shop: Shop) -> None:
    shop.send(*(Order(None, number) for number in range(8)), *(Order("a", number) for number in range(8)))

    rows = shop.rows()
    assert {row.shard for row in rows if row.key is None} == set(range(shop.outbox.shards))
    assert len({row.shard for row in rows if row.key == "a"}) == 1


def test_other_databases_are_refused_at_start(shop: Shop) -> None:
    engine = cast("sa.Engine", sa.create_mock_engine("mysql+pymysql://", executor=lambda *_: None))

    with pytest.raises(ConfigurationError, match="postgresql or sqlite, not from mysql"):
        shop.outbox.relay(shop.app, engine)


def test_outbox_needs_a_shard() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        Outbox(sa.MetaData(), shards=0)


def test_rows_wait_for_a_pulsar_that_is_down(postgres: str, pulsar_server: PulsarServer) -> None:
    for shop in _open(Shop(postgres, pulsar_server.service_url)):
        before, while_away = orders(10), orders(2 * BATCH, start=10)
        shop.send(*before)
        with capture_logs() as logs, running(shop.relay()):
            arrived = shop.receive(len(before))
            shop.wait_until_empty()  # what was not confirmed would rightly stay
            pulsar_server.stop()
            shop.send(*while_away)
            wait_until(lambda: any(entry["event"] == "outbox.delayed" for entry in logs), "no attempt")
            assert shop.count_rows() == len(while_away)
            pulsar_server.start()
            arrived += shop.receive(len(while_away))
            shop.wait_until_empty()

        first_arrivals = list(dict.fromkeys(arrived))
        assert numbers_by_key(first_arrivals) == numbers_by_key(before + while_away)
