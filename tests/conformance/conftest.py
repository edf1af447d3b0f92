"""The same tests on the embedded broker and on a real Pulsar: every test with the fixture `broker` runs on both."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

from pulsartasks import PulsarTasks, dead_letters
from pulsartasks.worker.worker import Worker
from tests.conformance import tasks
from tests.conformance.processes import WorkerProcess
from tests.conformance.records import Record
from tests.secure import SecurePulsarServer
from tests.services import PulsarServer, wait_until


class BrokerUnderTest(Protocol):
    """One of the brokers, as a place that tests may look into."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...

    def backlog(self, topic: str, subscription: str) -> int:
        """Messages that are not acknowledged on the subscription, those in a worker's hands included."""
        ...

    def subscriptions(self, topic: str) -> set[str]:
        """The names of the topic's subscriptions."""
        ...

    def topics(self) -> set[str]:
        """The full names of all topics in the default namespace."""
        ...

    def schemas(self, topic: str) -> list[str]:
        """The definitions that are registered for the topic, the oldest first."""
        ...


@dataclass
class Local:
    folder: Path
    name: str = "local"

    @property
    def url(self) -> str:
        return f"local://{self.folder}/broker.db"

    def backlog(self, topic: str, subscription: str) -> int:
        [(count,)] = self._select(
            "SELECT count(*) FROM deliveries WHERE subscription_id IN (SELECT s.id FROM subscriptions s"
            " JOIN topics t ON t.id = s.topic_id WHERE t.name = ? AND s.name = ?)",
            topic,
            subscription,
        )
        return int(count)

    def subscriptions(self, topic: str) -> set[str]:
        rows = self._select(
            "SELECT s.name FROM subscriptions s JOIN topics t ON t.id = s.topic_id WHERE t.name = ?", topic
        )
        return {name for (name,) in rows}

    def topics(self) -> set[str]:
        return {name for (name,) in self._select("SELECT name FROM topics")}

    def schemas(self, topic: str) -> list[str]:
        query = (
            "SELECT definition FROM schemas WHERE topic_id = (SELECT id FROM topics WHERE name = ?) ORDER BY version"
        )
        return [definition for (definition,) in self._select(query, topic)]

    def _select(self, query: str, *values: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "broker.db", timeout=30)) as sql:
            return sql.execute(query, values).fetchall()


@dataclass
class Pulsar:
    server: PulsarServer
    url: str
    name: str = "pulsar"

    def backlog(self, topic: str, subscription: str) -> int:
        return int(self._stats(topic)[subscription]["msgBacklog"])

    def subscriptions(self, topic: str) -> set[str]:
        return set(self._stats(topic))

    def topics(self) -> set[str]:
        found: Any = self.server.admin("GET", "persistent/public/default")
        return set(found)

    def schemas(self, topic: str) -> list[str]:
        found: Any = self.server.admin("GET", f"schemas/{topic.removeprefix('persistent://')}/schemas")
        return [each["data"] for each in found["getSchemaResponses"]]

    def _stats(self, topic: str) -> Any:
        return self.server.stats(topic)["subscriptions"]


LOCAL, PULSAR = "local", pytest.param("pulsar", marks=pytest.mark.pulsar)
TLS = pytest.param("tls", marks=pytest.mark.tls)


STORES = [
    ("local", "topic"),
    ("local", "sqlite"),
    ("local", "postgres"),
    pytest.param("pulsar", "topic", marks=pytest.mark.pulsar),
    pytest.param("pulsar", "postgres", marks=pytest.mark.pulsar),
]
"""Brokers, and where results are kept, for tests with the fixture `results`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests run on both brokers, and some with each store of results; those marked `wire`, and all with
    PULSARTASKS_TEST_TLS, on a Pulsar with TLS.
    """
    if "broker" in metafunc.fixturenames:
        brokers = [LOCAL, PULSAR]
        if metafunc.definition.get_closest_marker("wire"):
            brokers.append(TLS)
        only_tls = os.environ.get("PULSARTASKS_TEST_TLS")
        if "results" in metafunc.fixturenames:
            metafunc.parametrize("broker, results", [(TLS, "topic")] if only_tls else STORES, indirect=True)
        else:
            metafunc.parametrize("broker", [TLS] if only_tls else brokers, indirect=True)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerUnderTest]:
    """Each broker in turn."""
    if request.param == "pulsar":
        server: PulsarServer = request.getfixturevalue("pulsar_server")
        yield Pulsar(server, f"{server.service_url}?admin_url={server.admin_url}")
    elif request.param == "tls":
        secure: SecurePulsarServer = request.getfixturevalue("secure_pulsar")
        yield Pulsar(secure, secure.url())
    else:
        # Not pytest's folder: the path of a Unix socket beside the database must be short.
        with tempfile.TemporaryDirectory(prefix="pt-") as folder:
            yield Local(Path(folder))


@pytest.fixture
def results(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where results are kept, as `PulsarTasks` takes it: on the broker, or in a database."""
    if request.param == "sqlite":
        return f"sqlalchemy+sqlite:///{tmp_path}/results.db"
    if request.param == "postgres":
        return f"sqlalchemy+{request.getfixturevalue('postgres')}"
    return "topic"


@pytest.fixture(autouse=True)
def _quick_end_of_topic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs to wait for further dead letters where all are in the same file."""
    if "broker" in request.fixturenames and request.getfixturevalue("broker").name == "local":
        monkeypatch.setattr(dead_letters, "END_OF_TOPIC", 0.05)


@pytest.fixture
def name() -> str:
    """An app's name that no other test has, so that tests can share a broker."""
    return f"t{uuid4().hex[:10]}"


@pytest.fixture
def app(broker: BrokerUnderTest, name: str) -> Iterator[PulsarTasks]:
    """An app without tasks yet, for those of the test itself."""
    app = PulsarTasks(name, broker.url)
    yield app
    app.close()


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """What ran."""
    return Record(tmp_path / "runs.jsonl")


@pytest.fixture
def acting(broker: BrokerUnderTest, name: str, record: Record) -> Iterator[PulsarTasks]:
    """The app of `tests.conformance.tasks`, as worker processes have it too."""
    app = tasks.make_app(name, broker.url, record)
    yield app
    app.close()


@dataclass
class Workers:
    """Starts workers in this process, and sees to it that all are stopped and none failed."""

    _stack: ExitStack
    _failures: list[BaseException] = field(default_factory=list)

    def __call__(self, app: PulsarTasks, *, concurrency: int = 4, **options: Any) -> Worker:
        worker = Worker(app, concurrency=concurrency, **options)
        self._stack.callback(worker.stop, grace=10.0)
        worker.start(self._failures.append)
        wait_until(lambda: worker.ready or bool(self._failures), "the worker did not get ready")
        if self._failures:
            raise self._failures[0]
        return worker


@pytest.fixture
def start_worker(broker: BrokerUnderTest) -> Iterator[Workers]:
    """Starts a worker in this process; gives it when it is ready."""
    with ExitStack() as stack:
        yield Workers(stack)


StartProcess = Callable[..., WorkerProcess]


@pytest.fixture
def start_process(broker: BrokerUnderTest, name: str, record: Record) -> Iterator[StartProcess]:
    """Starts ``pulsartasks worker`` on the app of `tests.conformance.tasks`; `mode` says for which of its tasks."""
    with ExitStack() as stack:

        def start(mode: str, *arguments: str) -> WorkerProcess:
            env = {"PULSARTASKS_BROKER": broker.url, tasks.APP: name, tasks.RECORD: str(record.path)}
            worker = WorkerProcess("-Q", mode, *arguments, env=env)
            stack.callback(worker.clean_up)
            return worker

        yield start
