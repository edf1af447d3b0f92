"""The scenario of the outboxes: their relays are killed, and the broker is away, while transactions go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec

from pulsartasks.brokers.base import Subscription
from tests.faults.entries import Entry, Kind
from tests.faults.outbox_programs import Database
from tests.faults.stage import Stage
from tests.services import PostgresServer, wait_until
from tools import packages

RELAYS = 2
"""For each database."""
EVERY = 3.0
"""Seconds between two kills."""
DOWN = 60.0
"""Seconds that a Pulsar is away, and some more until it serves again."""


def kill_relays(stage: Stage) -> None:
    """One relay every three seconds, and in the middle the broker, for a minute; what arrived is read at the end."""
    databases = _databases(stage)
    _deduplicate(stage)
    relays = [_relay(stage, database) for database in databases for _ in range(RELAYS)]
    stage.publish(by="tests.faults.outbox_programs", arguments=["write", *map(str, databases)])
    wait_until(lambda: stage.confirmed() > stage.setting.tasks // 10, "nothing is written")
    with ThreadPoolExecutor(1) as pool:
        outage = pool.submit(_outage, stage)
        while stage.going and not (outage.done() and stage.publisher.poll() is not None):
            stage.wait(EVERY / 3 if stage.setting.short else EVERY)
            place = stage.random.randrange(len(relays))
            stage.note(Kind.KILLED, relays[place].pid)
            relays[place].kill()
            relays[place].wait(30)
            relays[place] = _relay(stage, databases[place // RELAYS])
        outage.result()
    if stage.publisher.poll() != 0:
        raise RuntimeError(f"the writer got as far as {stage.confirmed():,}, and ended with {stage.publisher.poll()}")
    for database in databases:
        wait_until(database.is_empty, f"rows are left {database.name}", timeout=stage.setting.patience)
    _read(stage)


def _databases(stage: Stage) -> Sequence[Database]:
    """One on a PostgreSQL of its own, one of SQLite."""
    programs = packages.postgres()
    assert programs is not None, "PostgreSQL is not installed"
    folder = Path(tempfile.mkdtemp(prefix="pt-"))
    folder.chmod(0o755)  # PostgreSQL may have to run as somebody else
    stage.on_end(lambda: shutil.rmtree(folder, ignore_errors=True))
    postgres = PostgresServer(programs, folder / "postgres")
    postgres.start()
    stage.on_end(postgres.stop)
    databases = [
        Database("in_postgres", postgres.new_database()),
        Database("in_sqlite", f"sqlite:///{folder}/sqlite.db"),
    ]
    for database in databases:
        stage.on_end(database.close)
        database.create()
    return databases


def _deduplicate(stage: Stage) -> None:
    """By a policy of the topics, which begins to hold a moment later; a local broker always does."""
    topics = _topics(stage)
    for topic in topics:
        stage.app.declare(topic)
        if stage.setting.server is not None:
            stage.setting.server.admin("POST", f"{topic.replace('://', '/')}/deduplicationEnabled", True)
    deduplicates = stage.app.broker.deduplicates
    wait_until(lambda: all(deduplicates(topic, keyed=True) for topic in topics), "the policy is not in force")


def _outage(stage: Stage) -> None:
    if stage.setting.server is not None:
        began = time.time()
        stage.setting.server.restart(kill=True, down=1.0 if stage.setting.short else DOWN)
        # It strikes the relays, not what is sent: with deduplication nothing may come twice.
        stage.entries.write(Entry(Kind.OUTAGE, began, pid=os.getpid(), until=time.time()))


def _relay(stage: Stage, database: Database) -> subprocess.Popen[bytes]:
    return stage.start("tests.faults.outbox_programs", "relay", str(database))


def _read(stage: Stage) -> None:
    """All that arrived, in its order: each message is written down as an attempt, so that one too many is seen."""
    wanted = Subscription(_topics(stage), stage.app.name, mode="exclusive", prefetch=1000)
    with closing(stage.app.broker.subscribe(wanted)) as consumer:
        while (delivery := consumer.receive(1.0)) or stage.going:
            if delivery:
                number = msgspec.json.decode(delivery.value)["args"][0]
                with stage.entries.attempt(number, 1):
                    delivery.acknowledge()


def _topics(stage: Stage) -> tuple[str, ...]:
    return tuple(task.topics.calls for task in stage.app.tasks.values())
