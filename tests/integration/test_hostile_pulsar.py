"""What only a bare Pulsar client can write: a worker settles that as well."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pulsar
import pytest

from pulsartasks import PulsarTasks
from pulsartasks.dead_letters import DeadLetters, Kept
from pulsartasks.message import CUT
from pulsartasks.worker.worker import Worker
from tests.conformance import hostile
from tests.services import PulsarServer, wait_until

QUIET = pulsar.ConsoleLogger(pulsar.LoggerLevel.Error)
GOOD = b'{"value": 1}'
"""The bare keyword arguments of `spread` and `ordered`."""


@pytest.fixture
def app(pulsar_server: PulsarServer, tmp_path: Path) -> Iterator[PulsarTasks]:
    url = f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}"
    app = hostile.make_app(f"t{uuid4().hex[:10]}", url, tmp_path / "ran")
    worker = Worker(app, concurrency=4)
    worker.start()
    wait_until(lambda: worker.ready, "the worker did not get ready")
    yield app
    worker.stop()
    app.close()


@pytest.fixture
def bare(pulsar_server: PulsarServer) -> Iterator[pulsar.Client]:
    client = pulsar.Client(pulsar_server.service_url, logger=QUIET)
    yield client
    client.close()


def settled(app: PulsarTasks, server: PulsarServer, *names: str) -> list[Kept]:
    """The dead letters, when nothing is left on the topics of these tasks."""

    def settled_there(topic: str) -> bool:
        found: Any = server.stats(topic)["subscriptions"]
        return not any(subscription["msgBacklog"] for subscription in found.values())

    for name in names:
        topics = app.tasks[name].topics
        for topic in {topics.work, topics.calls, topics.retry, topics.delayed}:
            wait_until(partial(settled_there, topic), f"{topic} was not settled", 60)
    return list(DeadLetters(app, *[app.tasks[name] for name in names]).list())


def ran(app: PulsarTasks, tmp_path: Path) -> int:
    file = tmp_path / "ran"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize("task", ["spread", "ordered"])
def test_odd_metadata_are_settled(
    task: str, app: PulsarTasks, bare: pulsar.Client, pulsar_server: PulsarServer, tmp_path: Path
) -> None:
    producer = bare.create_producer(app.tasks[task].topics.work)
    odd: list[dict[str, Any]] = [
        {"properties": {"x": b"\xff"}},
        {"properties": {"pt-task": b"\xff", "pt-id": b"\xfe"}},
        {"partition_key": "\x00"},
        {"partition_key": "k", "ordering_key": "another"},
        {"sequence_id": 2**62},
        {"event_timestamp": 2**62},
        {"deliver_at": 1},
        {"replication_clusters": ["nowhere"]},
    ]
    for metadata in odd:
        producer.send(GOOD, **metadata)
    producer.send(None, partition_key="k")  # a tombstone

    letters = settled(app, pulsar_server, task)

    assert [letter.delivery.value for letter in letters] == [b""]
    assert ran(app, tmp_path) == len(odd)


@pytest.mark.parametrize("task", ["spread", "ordered"])
def test_batches_of_good_and_bad_are_settled_one_by_one(
    task: str, app: PulsarTasks, bare: pulsar.Client, pulsar_server: PulsarServer, tmp_path: Path
) -> None:
    producer = bare.create_producer(
        app.tasks[task].topics.work, batching_enabled=True, compression_type=pulsar.CompressionType.ZSTD
    )
    for number in range(200):
        producer.send_async(GOOD if number % 2 else b"\xff", None, properties={"number": str(number)})
    producer.flush()

    letters = settled(app, pulsar_server, task)

    assert (len(letters), ran(app, tmp_path)) == (100, 100)


def test_message_too_large_for_a_dead_letter_is_kept_in_part(
    app: PulsarTasks, bare: pulsar.Client, pulsar_server: PulsarServer
) -> None:
    topic = app.tasks["spread"].topics.work
    bare.create_producer(topic).send(b"x" * (5 * 1024 * 1024 - 1_000), partition_key="k" * 500)
    bare.create_producer(topic, chunking_enabled=True).send(b"y" * 11_000_000, properties={"pt-id": "big"})

    # Two threads ran them, so either may have died first.
    letters = sorted(settled(app, pulsar_server, "spread"), key=lambda letter: int(letter.delivery.properties[CUT]))

    assert [letter.delivery.properties[CUT] for letter in letters] == ["5241880", "11000000"]
    assert [letter.delivery.value for letter in letters] == [b"x" * 1024 * 1024, b"y" * 1024 * 1024]
    assert [letter.story.reason for letter in letters if letter.story is not None] == ["unreadable"] * 2


def test_encrypted_messages_do_not_stop_the_others(
    app: PulsarTasks, bare: pulsar.Client, tmp_path: Path, pulsar_server: PulsarServer
) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genrsa", "-out", private, "2048"], check=True, capture_output=True)
    subprocess.run(["openssl", "rsa", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    producer = bare.create_producer(
        app.tasks["spread"].topics.work,
        encryption_key="key",
        crypto_key_reader=pulsar.CryptoKeyReader(str(public), str(private)),
    )
    for _ in range(100):
        producer.send(GOOD)
    topic = app.tasks["spread"].topics.work

    assert app.tasks["spread"].delay("clear").get(timeout=120) == "clear"
    left: Any = pulsar_server.stats(topic)["subscriptions"]
    assert left[app.name]["msgBacklog"] == 100  # for whoever has the key
