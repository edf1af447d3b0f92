"""The services of the test run: started when the first test asks, Pulsar already while the others run.

A service that is absent skips its tests on a laptop and fails them in CI.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from tests import secure, services
from tools import downloads, packages
from tools.terminal import SetupError

T = TypeVar("T")

PULSAR: pytest.StashKey[Future[services.PulsarServer]] = pytest.StashKey()
CLEANUP: pytest.StashKey[ExitStack] = pytest.StashKey()
LONG = ("tests/apps/browser/", "tests/faults/")
"""Tests that are run one after the other and take minutes: first, so that nobody waits for them at the end."""
KILLERS = ("after_the_broker_came_back[killed]", "keeps_a_subscription_through_a_power_cut")
"""Tests that kill the shared Pulsar: at the end, the one that waits longest for its return behind the other."""


def pytest_configure(config: pytest.Config) -> None:
    """Whatever the run starts ends with it."""
    config.stash[CLEANUP] = ExitStack()
    config.add_cleanup(config.stash[CLEANUP].close)
    os.environ["PULSARTASKS_STATE_DIR"] = str(_folder(config) / "state")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, object, object]:
    """Every test with the fixture `pulsar_server` can be chosen by ``-m pulsar``, and `secure_pulsar` by ``-m tls``."""
    for item in items:
        if "pulsar_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.pulsar)
        if "secure_pulsar" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.tls)
        if (group := _group(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    result = yield
    items.sort(key=_turn)
    return result


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts Pulsar beside the first tests, so that hardly anybody waits for it."""
    if session.config.option.collectonly:
        return
    if any(item.get_closest_marker("pulsar") for item in session.items):
        _pulsar(session.config)


def _turn(item: pytest.Item) -> int:
    """Which tests come before which others; those of one turn in any order."""
    # A killed Pulsar says that it is healthy before it can make topics again ("not enough non-faulty bookies"),
    # for a minute at times.
    for turn, name in enumerate(KILLERS, 2):
        if name in item.nodeid:
            return turn
    return 0 if item.nodeid.startswith(LONG) else 1


def _group(item: pytest.Item) -> str | None:
    """Tests of one group are run by one process of several, since they share what is slow to make; None: any may."""
    if any(name in item.nodeid for name in KILLERS):
        return None  # which come behind all groups
    if item.get_closest_marker("tls"):
        return "tls"
    if "assembly" in getattr(item, "fixturenames", ()):
        return "cdk"
    path = item.path.relative_to(services.CHECKOUT / "tests")
    if path.parts[0] in ("conformance", "unit"):
        return None
    return str(path.parent if path.parts[0] == "apps" else path)


@pytest.fixture(scope="session")
def pulsar_server(pytestconfig: pytest.Config) -> services.PulsarServer:
    """A real Pulsar of this test run: `.service_url`, `.admin_url`, `.restart()`, `.unload(topic)`, `.stats(topic)`."""
    return _available(_pulsar(pytestconfig).result)


@pytest.fixture(scope="session")
def java_jars() -> Path:
    """The folder with the jars of Pulsar's Java client; whoever asks for it may run Java's sources."""
    if shutil.which("javac") is None:
        _absent("a JDK is not installed")
    return _available(downloads.pulsar_java_client)


@pytest.fixture(scope="session")
def secure_pulsar(service_folder: Path) -> Iterator[secure.SecurePulsarServer]:
    """A second Pulsar, with TLS, tokens and permissions: `.url(role)`, `.tokens`, `.authority`."""
    server = secure.SecurePulsarServer(_available(downloads.pulsar), service_folder / "secure")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server(service_folder: Path) -> Iterator[services.S3Server]:
    """A real S3 server with one bucket: `.store_url(prefix)`, and `.environment` for the credentials."""
    server = services.S3Server(_available(downloads.versitygw), service_folder / "s3")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(service_folder: Path) -> Iterator[services.PostgresServer]:
    """A real PostgreSQL of this test run."""
    programs = packages.postgres()
    if programs is None:
        _absent("PostgreSQL is not installed")
    server = services.PostgresServer(programs, service_folder / "postgres")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def postgres(postgres_server: services.PostgresServer) -> str:
    """The SQLAlchemy URL of an empty database of this test's own."""
    return postgres_server.new_database()


@pytest.fixture(scope="session")
def speech() -> services.Speech:
    """Recorded speech with its transcripts, and files that are no good."""
    return services.Speech(_available(downloads.speech))


@pytest.fixture(scope="session")
def whisper_weights() -> Callable[[str], Path]:
    """The path of Whisper's tiny.en for an engine, "openai" or "faster"."""
    return lambda engine: _available(lambda: downloads.whisper_weights(engine))


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The browser."""
    return packages.chromium() or _absent("Chromium is not installed")


@pytest.fixture(scope="session")
def compose_spec() -> Path:
    """The program that reads a Compose file as Docker does."""
    return _available(downloads.compose_spec)


@pytest.fixture(scope="session")
def service_folder(pytestconfig: pytest.Config) -> Path:
    """A folder for what the services store; short, and open to the user that PostgreSQL runs as."""
    return _folder(pytestconfig)


def _pulsar(config: pytest.Config) -> Future[services.PulsarServer]:
    if PULSAR not in config.stash:
        folder = _folder(config)

        def start() -> services.PulsarServer:
            server = services.PulsarServer(downloads.pulsar(), folder / "pulsar")
            server.start()
            return server

        pool = ThreadPoolExecutor(1, thread_name_prefix="pulsar")
        config.stash[PULSAR] = pool.submit(start)
        pool.shutdown(wait=False)
        config.stash[CLEANUP].callback(_stop, config.stash[PULSAR])
    return config.stash[PULSAR]


def _stop(starting: Future[services.PulsarServer]) -> None:
    if starting.exception() is None:
        starting.result().stop()


def _folder(config: pytest.Config) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pulsartasks-"))
    folder.chmod(0o755)
    config.stash[CLEANUP].callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _available(get: Callable[[], T]) -> T:
    try:
        return get()
    except SetupError as error:
        _absent(str(error))


def _absent(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
