"""On a Pulsar with TLS, tokens and permissions: who is let in, who is told why not, and what nobody else can read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pulsar
import pytest
from structlog.testing import capture_logs

from pulsartasks import AuthenticationError, AuthorizationError, BrokerError, BrokerUnavailableError, PulsarTasks
from pulsartasks.brokers.base import Broker, Delivery, Subscription
from pulsartasks.brokers.pulsar import open_broker
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.message import Publication
from pulsartasks.worker.worker import Worker
from tests.conformance import tasks
from tests.conformance.processes import WorkerProcess
from tests.conformance.records import Record
from tests.secure import CLERK, CONSUMER, NAMESPACE, PRODUCER, Authority, KeyPair, SecurePulsarServer, TokenKey
from tests.services import PulsarServer, wait_until

AT_ONCE = 20.0
"""Seconds that are less than the half minute after which the client says that time is up."""
LIFETIME = 10.0
"""Seconds of a token that is to expire while a worker runs, which has to start meanwhile."""
WRONG_HOST = "127.1"
"""The same address, written as no certificate has it."""
QUIET = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")


@pytest.fixture
def topic() -> str:
    return f"persistent://{NAMESPACE}/t{uuid4().hex[:10]}"


@pytest.fixture
def opened() -> Iterator[Callable[[str], Broker]]:
    """Opens a broker that is closed at the end."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(closing(open_broker(url)))


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], PulsarTasks]]:
    """An app in the namespace `NAMESPACE` with a task that doubles, and one that fails after a retry."""
    monkeypatch.setenv("PULSARTASKS_NAMESPACE", NAMESPACE)
    name = f"t{uuid4().hex[:10]}"
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(closing(_app(name, url)))


@pytest.fixture
def start_worker() -> Iterator[Callable[[PulsarTasks], Worker]]:
    """Starts a worker in this process; gives it when it is ready."""
    with ExitStack() as stack:

        def start(app: PulsarTasks) -> Worker:
            worker = Worker(app, concurrency=2)
            stack.callback(worker.stop, grace=10.0)
            worker.start()
            wait_until(lambda: worker.ready, "the worker did not get ready")
            return worker

        yield start


@pytest.fixture
def start_process(record: Record, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts ``pulsartasks worker`` for the shared task of `tests.conformance.tasks` on a broker."""
    with ExitStack() as stack:

        def start(url: str, **environment: str) -> WorkerProcess:
            env = {"PULSARTASKS_BROKER": url, tasks.APP: f"t{uuid4().hex[:10]}", tasks.RECORD: str(record.path)}
            worker = WorkerProcess("-Q", "shared", env={**env, **environment})
            stack.callback(worker.clean_up)
            return worker

        yield start


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that the broker does not know."""
    return Authority(tmp_path_factory.mktemp("stranger") / "authority")


@pytest.fixture(scope="module")
def key_pair(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return KeyPair(tmp_path_factory.mktemp("encryption") / "keys")


def _app(name: str, url: str) -> PulsarTasks:
    app = PulsarTasks(name, url)

    @app.task
    def double(text: str) -> str:
        return text * 2

    @app.task(autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0.0)
    def fail(text: str) -> None:
        raise ValueError("no")

    return app


# Who is not let in is told why, at once


def _wrong_authority(server: SecurePulsarServer, stranger: Authority, folder: Path) -> str:
    return server.url(CLERK, tls_ca=stranger.certificate)


def _wrong_host(server: SecurePulsarServer, stranger: Authority, folder: Path) -> str:
    return server.url(CLERK).replace("//127.0.0.1:", f"//{WRONG_HOST}:")


def _no_tls(server: SecurePulsarServer, stranger: Authority, folder: Path) -> str:
    return server.url(CLERK).replace("pulsar+ssl://", "pulsar://")


def _expired_token(server: SecurePulsarServer, stranger: Authority, folder: Path) -> str:
    return server.url(token=server.tokens.token(CLERK, valid_for=-60))


def _wrong_token(server: SecurePulsarServer, stranger: Authority, folder: Path) -> str:
    return server.url(token=TokenKey(folder / "other").token(CLERK))


def _no_token(server: SecurePulsarServer, stranger: Authority, folder: Path) -> str:
    return server.url(token=None)


def _unknown_certificate(server: SecurePulsarServer, stranger: Authority, folder: Path) -> str:
    certificate, key = stranger.issue(f"clerk-{uuid4().hex}")
    return server.url(token=None, tls_cert=certificate, tls_key=key)


REFUSED = [
    (_wrong_authority, BrokerUnavailableError, "certificate is not trusted by tls_ca=.*names the file"),
    (_wrong_host, BrokerUnavailableError, f"certificate is not for the host name '{WRONG_HOST}'"),
    (_no_tls, BrokerUnavailableError, r"uses TLS; write pulsar\+ssl://"),
    (_expired_token, AuthenticationError, r"the token expired at \d{4}-\d\d-\d\d .* put a new one"),
    (_wrong_token, AuthenticationError, "does not accept the token: was it made for this cluster"),
    (_no_token, AuthenticationError, "no token is set; give token_file="),
    (_unknown_certificate, AuthenticationError, "refuses the client certificate .*trusts another authority"),
]


@pytest.mark.parametrize(("make_url", "error", "words"), REFUSED)
def test_who_is_refused_is_told_the_cause_at_once(
    secure_pulsar: SecurePulsarServer,
    stranger: Authority,
    tmp_path: Path,
    opened: Callable[[str], Broker],
    app: Callable[[str], PulsarTasks],
    topic: str,
    make_url: Callable[..., str],
    error: type[Exception],
    words: str,
) -> None:
    url = make_url(secure_pulsar, stranger, tmp_path)
    began = time.monotonic()

    with pytest.raises(error, match=words):
        opened(url).subscribe(Subscription((topic,), "s"))
    with pytest.raises(error, match=words):
        opened(url).read(topic)
    with pytest.raises(error, match=words):
        app(url).tasks["double"].delay("ab")

    assert time.monotonic() - began < AT_ONCE


def test_tls_to_a_port_without_is_told(
    pulsar_server: PulsarServer, opened: Callable[[str], Broker], topic: str
) -> None:
    broker = opened(pulsar_server.service_url.replace("pulsar://", "pulsar+ssl://"))

    with pytest.raises(BrokerUnavailableError, match="does not use TLS; write pulsar://"):
        broker.read(topic)


def test_token_file_that_cannot_be_read_is_told(
    secure_pulsar: SecurePulsarServer, opened: Callable[[str], Broker], topic: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("words")
    broker = opened(secure_pulsar.url(token=None, token_file=tmp_path / "token"))
    (tmp_path / "token").unlink()

    with pytest.raises(AuthenticationError, match=r"the token_file .* cannot be read: .*No such file"):
        broker.read(topic)


def test_partitions_without_the_right_to_make_them_are_told(
    secure_pulsar: SecurePulsarServer, opened: Callable[[str], Broker], topic: str
) -> None:
    advice = r"could not make the partitions .* an administrator of its tenant may; .* create-partitioned-topic -p 2"
    with pytest.raises(AuthorizationError, match=advice):
        opened(secure_pulsar.url(CLERK)).declare(topic, ["s"], partitions=2)


@pytest.mark.parametrize("role", [PRODUCER, CONSUMER, CLERK])
def test_missing_permission_is_told_with_the_role_and_what_it_needs(
    secure_pulsar: SecurePulsarServer, opened: Callable[[str], Broker], topic: str, role: str
) -> None:
    broker = opened(secure_pulsar.url(role))
    elsewhere = topic.replace(NAMESPACE, "public/default")
    expected = rf"could not .*: the role '{role}' has no permission; .* 'produce' and 'consume'"

    if role != CONSUMER:
        with pytest.raises(AuthorizationError, match=expected):
            broker.subscribe(Subscription((topic if role == PRODUCER else elsewhere,), "s"))
    if role != PRODUCER:
        with pytest.raises(AuthorizationError, match=expected):
            broker.publish(Publication(topic if role == CONSUMER else elsewhere, b"1"))


def seconds_from_start(worker: WorkerProcess, line: Mapping[str, Any]) -> float:
    """How long after the start of its child the worker logged `line`: how long it took to start is not meant."""
    [started] = worker.logged("process.started")
    began, ended = (datetime.fromisoformat(each["timestamp"]) for each in (started, line))
    return (ended - began).total_seconds()


@pytest.mark.parametrize("cause", ["expired token", "no permission"])
def test_worker_that_is_refused_for_good_says_why_in_one_line_and_ends(
    secure_pulsar: SecurePulsarServer, start_process: Callable[..., WorkerProcess], cause: str
) -> None:
    expired = secure_pulsar.tokens.token(CLERK, valid_for=-60)
    url = secure_pulsar.url(token=expired) if cause == "expired token" else secure_pulsar.url(CLERK)

    worker = start_process(url)

    [line] = worker.wait_for_log("worker.failed")
    assert worker.wait() == 78
    assert seconds_from_start(worker, line) < AT_ONCE
    assert ("expired at" if cause == "expired token" else "the role 'clerk' has no permission") in line["error"]
    assert "exception" not in line


def test_worker_that_cannot_trust_its_broker_says_why_and_goes_on_trying(
    secure_pulsar: SecurePulsarServer, stranger: Authority, start_process: Callable[..., WorkerProcess]
) -> None:
    worker = start_process(secure_pulsar.url(CLERK, tls_ca=stranger.certificate))

    lines = worker.wait_for_log("consumer.refused", count=2)

    assert seconds_from_start(worker, lines[1]) < AT_ONCE
    assert "its certificate is not trusted by tls_ca=" in lines[0]["error"]


# Who is let in


def test_role_of_one_namespace_runs_an_app_there(
    secure_pulsar: SecurePulsarServer, start_process: Callable[..., WorkerProcess], record: Record
) -> None:
    url = secure_pulsar.url(CLERK, admin_url="")
    name = f"t{uuid4().hex[:10]}"
    start_process(url, PULSARTASKS_NAMESPACE=NAMESPACE, **{tasks.APP: name})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PULSARTASKS_NAMESPACE", NAMESPACE)
        with closing(tasks.make_app(name, url, record)) as caller:
            result = caller.tasks["shared"].delay("call").get(timeout=120)

            assert result.startswith("call by ")
            assert caller.tasks["shared"].topics.work == f"persistent://{NAMESPACE}/{name}.shared"


def test_client_certificate_proves_the_role(
    secure_pulsar: SecurePulsarServer,
    app: Callable[[str], PulsarTasks],
    start_worker: Callable[[PulsarTasks], Worker],
    opened: Callable[[str], Broker],
    topic: str,
) -> None:
    certificate, key = secure_pulsar.authority.issue(CLERK)
    url = secure_pulsar.url(token=None, tls_cert=certificate, tls_key=key)
    doubling = app(url)
    start_worker(doubling)

    assert doubling.tasks["double"].delay("ab").get(timeout=120) == "abab"
    with pytest.raises(AuthorizationError):
        opened(url).subscribe(Subscription((topic.replace(NAMESPACE, "public/default"),), "s"))


def test_token_that_is_replaced_in_its_file_keeps_everything_going(
    secure_pulsar: SecurePulsarServer,
    app: Callable[[str], PulsarTasks],
    start_worker: Callable[[PulsarTasks], Worker],
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    expires = time.time() + LIFETIME
    file.write_text(secure_pulsar.tokens.token(CLERK, valid_for=LIFETIME))
    url = secure_pulsar.url(token=None, token_file=file)
    doubling = app(url)
    worker = start_worker(doubling)
    before = [doubling.tasks["double"].delay(str(number)) for number in range(3)]

    file.write_text(secure_pulsar.tokens.token(CLERK))
    wait_until(lambda: time.time() > expires + 2, "the first token did not expire")  # and the broker has looked

    during = [doubling.tasks["double"].delay(str(number)) for number in range(3)]
    newcomer = app(url)
    after = [newcomer.tasks["double"].delay(str(number)) for number in range(3)]
    assert [result.get(timeout=120) for result in before + during + after] == [str(n) * 2 for n in range(3)] * 3
    wait_until(lambda: worker.ready, "the worker did not get ready again")


def test_worker_whose_token_expired_says_so_and_goes_on_with_a_new_one(
    secure_pulsar: SecurePulsarServer,
    app: Callable[[str], PulsarTasks],
    start_worker: Callable[[PulsarTasks], Worker],
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text(secure_pulsar.tokens.token(CLERK, valid_for=LIFETIME))
    with capture_logs() as logs:
        start_worker(app(secure_pulsar.url(token=None, token_file=file)))
        wait_until(lambda: any(line["event"] == "consumer.failed" for line in logs), "nothing was said")
        file.write_text(secure_pulsar.tokens.token(CLERK))

        result = app(secure_pulsar.url(CLERK)).tasks["double"].delay("ab").get(timeout=120)

    assert result == "abab"
    assert any(f"the token in {file} expired at" in line.get("error", "") for line in logs)


# What nobody else can read


@pytest.fixture
def encrypted(secure_pulsar: SecurePulsarServer, key_pair: KeyPair) -> str:
    """The URL of who has both keys."""
    return secure_pulsar.url(
        CLERK,
        encryption_key="app",
        encryption_public_key=key_pair.public,
        encryption_private_key=key_pair.private,
    )


def test_encrypted_calls_results_retries_and_dead_letters_work(
    encrypted: str, app: Callable[[str], PulsarTasks], start_worker: Callable[[PulsarTasks], Worker]
) -> None:
    working = app(encrypted)
    start_worker(working)

    assert working.tasks["double"].delay("ab").get(timeout=120) == "abab"
    with pytest.raises(ValueError, match="no"):
        working.tasks["fail"].delay("ab").get(timeout=120)
    assert working.tasks["double"].using(countdown=0.2).delay("cd").get(timeout=120) == "cdcd"
    [letter] = DeadLetters(working, working.tasks["fail"]).list()
    assert b'"ab"' in letter.delivery.value


def test_encrypted_payload_is_not_readable_on_the_topic(
    secure_pulsar: SecurePulsarServer, encrypted: str, opened: Callable[[str], Broker], topic: str
) -> None:
    broker = opened(encrypted)
    broker.declare(topic, ["s"])
    broker.publish(Publication(topic, b"a secret"))

    token = secure_pulsar.tokens.token(CLERK)
    with _client(secure_pulsar, token) as client:
        reader = client.create_reader(
            topic, pulsar.MessageId.earliest, crypto_failure_action=pulsar.ConsumerCryptoFailureAction.CONSUME
        )
        raw = reader.read_next(10_000).data()

    assert b"secret" not in raw
    assert _receive(broker, topic).value == b"a secret"


def test_consumer_without_the_key_loses_nothing(
    secure_pulsar: SecurePulsarServer, encrypted: str, opened: Callable[[str], Broker], topic: str
) -> None:
    broker = opened(encrypted)
    broker.declare(topic, ["s"])
    broker.publish(Publication(topic, b"a secret"))
    blind = opened(secure_pulsar.url(CLERK))
    consumer = blind.subscribe(Subscription((topic,), "s"))

    assert consumer.receive(1.0) is None

    consumer.close()
    assert _receive(broker, topic).value == b"a secret"


def test_who_has_only_the_public_key_can_publish(
    secure_pulsar: SecurePulsarServer,
    encrypted: str,
    key_pair: KeyPair,
    opened: Callable[[str], Broker],
    topic: str,
) -> None:
    url = secure_pulsar.url(CLERK, encryption_key="app", encryption_public_key=key_pair.public)
    publisher = opened(url)
    publisher.declare(topic, ["s"])

    publisher.publish(Publication(topic, b"a secret"))

    assert _receive(opened(encrypted), topic).value == b"a secret"


def test_public_key_that_is_none_is_told_and_nothing_is_sent(
    secure_pulsar: SecurePulsarServer, opened: Callable[[str], Broker], topic: str, tmp_path: Path
) -> None:
    (tmp_path / "public.pem").write_text("words")
    url = secure_pulsar.url(CLERK, encryption_key="app", encryption_public_key=tmp_path / "public.pem")
    broker = opened(url)
    broker.declare(topic, ["s"])

    with pytest.raises(BrokerError, match=r"CryptoError .*public"):
        broker.publish(Publication(topic, b"a secret"))


def _client(server: SecurePulsarServer, token: str) -> closing[pulsar.Client]:
    return closing(
        pulsar.Client(
            server.service_url,
            authentication=pulsar.AuthenticationToken(token),
            tls_trust_certs_file_path=str(server.authority.certificate),
            logger=QUIET,
        )
    )


def _receive(broker: Broker, topic: str) -> Delivery:
    with closing(broker.subscribe(Subscription((topic,), "s"))) as consumer:
        delivery = consumer.receive(30)
        assert delivery is not None
        delivery.acknowledge()
        return delivery
