"""Results in a database: which one counts, what is let go of, and what a database may do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from pulsartasks import ClaimCheck, ConfigurationError, PulsarTasks
from pulsartasks.app import open_results
from pulsartasks.brokers.local import LocalBroker
from pulsartasks.contrib.blobs import DirectoryBlobStore
from pulsartasks.errors import ResultStoreError
from pulsartasks.message import new_task_id
from pulsartasks.results import sqlalchemy as database
from pulsartasks.results.base import Place, Progress, RemoteError, Reported, Result, State
from pulsartasks.results.sqlalchemy import SQLAlchemyResults, TableResults
from tests.services import free_ports, wait_until

TOPIC = "persistent://public/default/shop.results"


class Hands:
    """A clock that a test holds."""

    time = 1_000_000.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/results.db"
    found: str = request.getfixturevalue("postgres")
    return found


@pytest.fixture
def open_store(url: str, hands: Hands, tmp_path: Path) -> Iterator[Callable[[], TableResults]]:
    """Opens the store as a process does."""
    with ExitStack() as stack:
        broker = LocalBroker(tmp_path / "broker.db")
        stack.callback(broker.close)

        def open_store() -> TableResults:
            store = SQLAlchemyResults(url).open(Place(broker, TOPIC, expires=100.0, clock=hands))
            stack.callback(store.close)
            return store

        yield open_store


@pytest.fixture
def store(open_store: Callable[[], TableResults]) -> TableResults:
    return open_store()


def ended(task_id: str, value: object = None, state: State = "SUCCESS") -> Result:
    error = None if state == "SUCCESS" else RemoteError.capture(ValueError(value))
    return Result(task_id, "add", state, value=msgspec.Raw(msgspec.json.encode(value)), error=error)


def progress(task_id: str, done: int, *, retries: int = 0) -> Reported:
    state = Result(task_id, "add", "PROGRESS", progress=Progress(done, 10), retries=retries, at=float(done))
    return Reported(state, None)


def value(store: TableResults, task_id: str) -> object:
    found = store.find(task_id)
    return None if found is None else msgspec.json.decode(found.value)


def test_success_stays_and_of_failures_the_last_one_counts(store: TableResults) -> None:
    task_id = new_task_id()
    kept = []
    for each in (
        ended(task_id, "1", "FAILURE"),
        ended(task_id, "2", "FAILURE"),
        ended(task_id, "3"),
        ended(task_id, "4"),
        ended(task_id, "5", "FAILURE"),
    ):
        store.keep(each, reply_to=None)
        kept.append(value(store, task_id))

    assert kept == ["1", "2", "3", "3", "3"]


def test_newest_report_counts_until_there_is_a_result(store: TableResults) -> None:
    task_id = new_task_id()
    store.report([progress(task_id, 9), progress(task_id, 2, retries=1)])
    store.report([progress(task_id, 10), progress(task_id, 1, retries=1)])

    assert store.find_state(task_id) == progress(task_id, 2, retries=1).state
    assert store.find(task_id) is None

    store.keep(ended(task_id, 5), reply_to=None)
    store.report([progress(task_id, 3, retries=2)])
    assert store.find_state(task_id) is None
    assert value(store, task_id) == 5


def test_many_are_looked_up_at_once_as_they_come(
    store: TableResults, open_store: Callable[[], TableResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ASKED", 3)
    ids = [new_task_id() for _ in range(10)]
    worker = open_store()
    worker.store([worker.pack(ended(task_id, number), reply_to=None) for number, task_id in enumerate(ids[1:])])

    arriving = store.each(ids, 30, pushed=False)
    first = {next(arriving).id for _ in range(9)}
    worker.keep(ended(ids[0]), reply_to=None)

    assert first == set(ids[1:])
    assert [one.id for one in arriving] == ids[:1]


def test_expired_results_are_deleted_in_batches_and_count_no_more_before(
    store: TableResults, hands: Hands, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BATCH", 4)
    old, forgotten, young = [new_task_id() for _ in range(10)], new_task_id(), new_task_id()
    for task_id in old:
        store.keep(ended(task_id, "old"), reply_to=None)
    store.forget(forgotten)
    hands.time += 101
    store.keep(ended(young, "young"), reply_to=None)
    store.keep(ended(old[0], "anew", "FAILURE"), reply_to=None)

    assert [value(store, task_id) for task_id in (old[0], old[1], young)] == ["anew", None, "young"]
    store.expire()

    engine = sa.create_engine(url)
    with engine.connect() as connection:
        rows = connection.execute(sa.text(f"SELECT task_id FROM {database.TABLE}"))
        assert set(rows.scalars()) == {old[0], young, forgotten}
    engine.dispose()


def test_forgotten_result_stays_so_though_its_task_ends_later(store: TableResults) -> None:
    task_id = new_task_id()
    store.report([progress(task_id, 1)])

    store.forget(task_id)
    store.report([progress(task_id, 2)])
    store.keep(ended(task_id), reply_to=None)

    assert (store.find(task_id), store.find_state(task_id)) == (None, None)


def test_processes_that_come_first_make_the_table_together(open_store: Callable[[], TableResults]) -> None:
    stores = [open_store() for _ in range(8)]
    together = threading.Barrier(len(stores))
    failed: list[Exception] = []

    def keep(store: TableResults) -> None:
        together.wait(30)
        try:
            store.keep(ended(new_task_id()), reply_to=None)
        except ResultStoreError as error:
            failed.append(error)

    threads = [threading.Thread(target=keep, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failed == []


@pytest.mark.parametrize("task_id", ["\0", "a\0b", "é" * 200, "'; DROP TABLE pulsartasks_results; --"])
def test_any_id_can_be_kept(store: TableResults, task_id: str) -> None:
    store.keep(ended(task_id, 5), reply_to=None)

    assert value(store, task_id) == 5


def test_large_result_goes_by_claim(url: str, tmp_path: Path) -> None:
    claims = ClaimCheck(DirectoryBlobStore(tmp_path / "blobs"), above=1000)
    app = PulsarTasks("shop", "memory://", results=f"sqlalchemy+{url}", claim_check=claims)

    app.results.keep(ended("large", "x" * 10_000), reply_to=None)

    found = app.results.find("large")
    assert found is not None
    assert msgspec.json.decode(found.value) == "x" * 10_000
    app.close()


def test_database_that_is_away_is_said_without_its_secrets(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"postgresql+psycopg://ada:secret@127.0.0.1:{port}/shop"
    broker = LocalBroker(tmp_path / "broker.db")
    store = SQLAlchemyResults(url).open(Place(broker, TOPIC))

    with pytest.raises(ResultStoreError, match="the database of results: ") as refused:
        store.find("x")
    [error] = store.store([store.pack(ended("x", "private"), reply_to=None)])

    assert isinstance(error, ResultStoreError)
    assert "secret" not in str(refused.value)
    assert "private" not in str(error)
    store.close()
    broker.close()


def test_worker_goes_on_when_the_database_is_back(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = PulsarTasks("shop", results=f"sqlalchemy+{url}")
    away = threading.Event()
    refused = threading.Event()
    write = TableResults._write

    def fail(self: TableResults, *arguments: object) -> None:
        if away.is_set():
            refused.set()
            raise ResultStoreError("away")
        write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TableResults, "_write", fail)

    @app.task
    def double(number: int) -> int:
        return 2 * number

    with app.testing():
        away.set()
        call = double.delay(2)
        wait_until(refused.is_set, "nothing was stored")
        away.clear()
        assert call.get(timeout=120) == 4


def test_engine_of_the_applications_own_is_left_open(url: str, tmp_path: Path) -> None:
    engine = sa.create_engine(url)
    app = PulsarTasks("shop", "memory://", results=SQLAlchemyResults(engine, table="ours"))

    app.results.keep(ended("x"), reply_to=None)
    app.close()

    assert engine.pool.checkedin() >= 1  # type: ignore[attr-defined]
    assert sa.inspect(engine).has_table("ours")
    engine.dispose()


@pytest.mark.parametrize(
    ("results", "complaint"),
    [
        ("sqlite:///x.db", r"did you mean 'sqlalchemy\+sqlite:///x.db'"),
        ("postgresql+psycopg://host/x", "there is no 'postgresql' among the results; known are: sqlalchemy, topic"),
        ("inbox", "there is no 'inbox' among the results"),
        ("topic+x", "a topic needs no 'x'"),
        ("sqlalchemy+sqlite://", "SQLite in memory is another database in each thread"),
        ("sqlalchemy+mysql://host/x", "mysql is not a database for them; use postgresql or sqlite"),
        ("sqlalchemy", "is not a URL of SQLAlchemy's"),
    ],
)
def test_wrong_place_is_refused(results: str, complaint: str, tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path / "broker.db")
    with pytest.raises(ConfigurationError, match=complaint):
        open_results(results, Place(broker, TOPIC))
    broker.close()


def test_what_is_no_place_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="results= is a URL or what has"):
        PulsarTasks("shop", results=5)  # type: ignore[arg-type]
