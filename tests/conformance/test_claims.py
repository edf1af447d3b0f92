"""Claim check: what is too large for a message travels through a blob store, and its claim goes wherever it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from pulsartasks import ClaimCheck, MessageTooLargeError, PulsarTasks, TaskContext, UnreadableMessageError
from pulsartasks.brokers.base import Broker
from pulsartasks.contrib.blobs import (
    OCTETS,
    Blob,
    BlobStore,
    BlobStoreRefusedError,
    BlobStoreUnavailableError,
    DirectoryBlobStore,
)
from pulsartasks.dead_letters import DeadLetters, Kept
from pulsartasks.message import CLAIM, Publication
from pulsartasks.task import Task
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(14)

LARGE = "x" * 6_000_000
"""More than any broker here takes."""


class Order(msgspec.Struct, frozen=True):
    customer: str
    letter: str = ""


class OnAndOff:
    """A blob store that may be away."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.trouble: Exception | None = None

    def put(self, key: str, data: bytes, content_type: str = OCTETS) -> None:
        self._check()
        self.store.put(key, data, content_type)

    def get(self, key: str) -> Blob:
        self._check()
        return self.store.get(key)

    def delete(self, key: str) -> None:
        self.store.delete(key)

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder: Path) -> OnAndOff:
    return OnAndOff(DirectoryBlobStore(folder))


@pytest.fixture
def app(broker: BrokerUnderTest, name: str, blobs: OnAndOff) -> Iterator[PulsarTasks]:
    """An app with a claim check."""
    app = PulsarTasks(name, broker.url, claim_check=ClaimCheck(blobs, above=10_000))
    yield app
    app.close()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def kept_of(broker: Broker, topic: str, subscription: str) -> Mapping[str, str]:
    """The headers of what waits on a subscription."""
    reader = broker.read(topic, since=0.0)
    delivery = reader.receive(10)
    reader.close()
    assert delivery is not None
    assert delivery.value == b"null"
    return delivery.properties


def dead_letter(app: PulsarTasks, task: Task[..., None]) -> Kept:
    found: list[Kept] = []

    def look() -> bool:
        found[:] = DeadLetters(app, task).list()
        return bool(found)

    wait_until(look, "it is no dead letter")
    return found[0]


def test_large_call_and_its_large_result_arrive(app: PulsarTasks, start_worker: Workers, folder: Path) -> None:
    @app.task
    def double(text: str) -> str:
        return text * 2

    start_worker(app)
    result = double.delay(LARGE)

    assert result.get(timeout=120) == LARGE * 2
    assert double.result(result.id).get(timeout=120) == LARGE * 2
    assert len(files(folder)) == 2


def test_large_result_that_came_before_anybody_asked_is_there(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def make(size: int) -> str:
        return "x" * size

    start_worker(app)
    make.delay(1).get(timeout=120)  # so that this process listens
    large = make.delay(20_000)
    wait_until(lambda: make.result(large.id).successful(), "it did not run")

    assert large.get(timeout=120) == "x" * 20_000


def test_large_result_whose_blob_is_gone_or_away_says_so(
    app: PulsarTasks, start_worker: Workers, blobs: OnAndOff, folder: Path
) -> None:
    @app.task
    def make(size: int) -> str:
        return "x" * size

    start_worker(app)
    make.delay(1).get(timeout=120)  # so that this process listens
    large = make.delay(20_000)
    wait_until(lambda: make.result(large.id).successful(), "it did not run")

    blobs.trouble = BlobStoreUnavailableError("it is away")
    with pytest.raises(BlobStoreUnavailableError):
        large.get(timeout=120)
    blobs.trouble = None
    for file in files(folder):
        file.unlink()
    with pytest.raises(UnreadableMessageError, match="not in the blob store"):
        large.get(timeout=120)


def test_message_carries_the_claim_and_the_blob_lies_under_the_day(
    app: PulsarTasks, blobs: OnAndOff, broker: BrokerUnderTest
) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("billing",))

    ordered.publish(Order("ada", "x" * 20_000), headers={"colour": "red"})

    headers = kept_of(app.broker, ordered.full_name, "billing")
    claim = msgspec.json.decode(headers[CLAIM])
    today = datetime.now(timezone.utc).date()
    assert claim["key"] == f"claims/{today}/{claim['sha256']}"
    assert headers["colour"] == "red"
    stored = blobs.get(claim["key"])
    assert (len(stored.data), stored.content_type) == (claim["size"], "application/json")
    assert msgspec.json.decode(stored.data) == {"customer": "ada", "letter": "x" * 20_000}


def test_large_event_reaches_every_subscription_and_whoever_follows_the_topic(
    app: PulsarTasks, start_worker: Workers, record: Record, folder: Path
) -> None:
    ordered = app.topic("ordered", schema=Order, subscriptions=("one", "two"))
    for subscription in ("one", "two"):

        @app.task(topic=ordered, subscription=subscription, name=subscription, bind=True)
        def handle(context: TaskContext, order: Order) -> None:
            with record.attempt(f"{context.request.subscription}: {len(order.letter)}"):
                pass

    start_worker(app)
    with ordered.tail() as tail:
        ordered.publish(Order("ada", LARGE))
        assert tail.receive(30) == Order("ada", LARGE)

    record.wait_for_labels("one: 6000000", "two: 6000000")
    assert len(files(folder)) == 1


@pytest.mark.guarantee(4)
def test_retries_and_the_dead_letter_keep_the_claim_and_a_replay_runs(
    app: PulsarTasks, start_worker: Workers, record: Record, folder: Path
) -> None:
    mended = False

    @app.task(autoretry_for=(OSError,), max_retries=2, default_retry_delay=0.05, ignore_result=True, bind=True)
    def read(context: TaskContext, text: str) -> None:
        with record.attempt(str(len(text)), context.retries + 1):
            if not mended:
                raise OSError("not yet")

    start_worker(app)
    read.delay(LARGE)
    letter = dead_letter(app, read)
    mended = True
    list(DeadLetters(app, read).replay())

    record.wait_for(4)
    assert CLAIM in letter.delivery.properties
    assert [run.attempt for run in record.runs()] == [1, 2, 3, 1]
    assert len(files(folder)) == 1


def test_message_whose_blob_is_gone_is_a_dead_letter_that_says_so(
    app: PulsarTasks, start_worker: Workers, record: Record, folder: Path
) -> None:
    @app.task(autoretry_for=(Exception,))
    def read(text: str) -> None:
        with record.attempt("ran"):
            pass

    read.delay(LARGE)
    for file in files(folder):
        file.unlink()
    start_worker(app)

    story = dead_letter(app, read).story
    assert story is not None
    assert (story.reason, story.attempts) == ("unreadable", 1)
    assert "not in the blob store (any more): There is no blob 'claims/" in story.exception_message
    assert record.labels() == []


@pytest.mark.parametrize(
    "trouble",
    [BlobStoreUnavailableError("it is away"), BlobStoreRefusedError("no permission yet")],
    ids=["unavailable", "refused"],
)
def test_message_waits_while_the_store_is_not_to_be_had(
    app: PulsarTasks, start_worker: Workers, record: Record, blobs: OnAndOff, trouble: Exception
) -> None:
    @app.task(max_retries=0, ignore_result=True)
    def read(text: str) -> None:
        with record.attempt(str(len(text))):
            pass

    read.delay(LARGE)
    blobs.trouble = trouble
    with capture_logs() as logs:
        start_worker(app)
        wait_until(lambda: any(log["event"] == "message.retried" for log in logs), "it was not put off")
    blobs.trouble = None

    record.wait_for_labels("6000000")


def test_key_waits_for_its_large_message_while_the_store_is_away(
    app: PulsarTasks, start_worker: Workers, record: Record, blobs: OnAndOff
) -> None:
    @app.task(mode="key_shared", key=lambda text: text[0], max_retries=0, ignore_result=True)
    def read(text: str) -> None:
        with record.attempt(f"{text[0]}{len(text)}"):
            pass

    read.delay("a" * 20_000)
    read.delay("a")
    read.delay("b")
    blobs.trouble = BlobStoreUnavailableError("it is away")
    start_worker(app)
    record.wait_for_labels("b1")
    blobs.trouble = None

    record.wait_for_labels("a20000", "a1")
    assert record.labels() == ["b1", "a20000", "a1"]


def test_call_is_refused_while_the_store_is_away_and_small_ones_go(
    app: PulsarTasks, broker: BrokerUnderTest, blobs: OnAndOff
) -> None:
    @app.task
    def read(text: str) -> None: ...

    blobs.trouble = BlobStoreUnavailableError("it is away")

    with pytest.raises(BlobStoreUnavailableError):
        read.delay(LARGE)
    refused, sent = app.publish_many([read.s(LARGE).publication(), read.s("small").publication()])

    assert isinstance(refused, BlobStoreUnavailableError)
    assert isinstance(sent, str)
    assert broker.backlog(read.topics.work, read.subscription) == 1


def test_claim_to_another_payload_is_a_dead_letter(
    app: PulsarTasks, start_worker: Workers, record: Record, blobs: OnAndOff
) -> None:
    @app.task(ignore_result=True)
    def read(text: str) -> None:
        with record.attempt(text):
            pass

    blobs.put("secret", b'{"text": "secret"}')
    claim = '{"key":"secret","size":18,"sha256":"0000"}'
    app.publish(Publication(read.topics.work, b"null", properties={CLAIM: claim}))
    start_worker(app)

    story = dead_letter(app, read).story
    assert story is not None
    assert "is not the payload that was sent" in story.exception_message
    assert record.labels() == []


def test_app_without_a_claim_check_keeps_the_message_as_a_dead_letter_for_one_that_has_it(
    broker: BrokerUnderTest, name: str, app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    def define(app: PulsarTasks) -> Task[[str], None]:
        @app.task(ignore_result=True)
        def read(text: str) -> None:
            with record.attempt(str(len(text))):
                pass

        return read

    plain = PulsarTasks(name, broker.url)
    define(app).delay(LARGE)
    task = define(plain)
    worker = start_worker(plain)
    story = dead_letter(plain, task).story
    worker.stop()
    plain.close()
    assert story is not None
    assert "give this app claim_check=" in story.exception_message

    list(DeadLetters(app, app.tasks["read"]).replay())
    start_worker(app)
    record.wait_for_labels("6000000")


def test_large_call_without_the_option_is_refused_by_its_name(
    broker: BrokerUnderTest, name: str, start_worker: Workers
) -> None:
    app = PulsarTasks(name, broker.url)

    @app.task
    def read(text: str) -> None: ...

    with pytest.raises(MessageTooLargeError, match="claim_check="):
        read.delay(LARGE)
    app.close()
