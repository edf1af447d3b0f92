"""The writer and the relays of outboxes: ``python -m tests.faults.outbox_programs relay|write``."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pulsartasks import PulsarTasks
from pulsartasks.contrib.sqlalchemy import Outbox
from pulsartasks.worker.logs import configure_logging
from tests.faults import tasks
from tests.faults.entries import Entry, EntryFile, Kind, new_id
from tests.faults.plan import KEYS, PLANS

WRITERS = 2
"""Threads that write to each database, each with keys of its own, so that their order is that of the numbers."""
ROLLED_BACK = 10
"""One of so many transactions is, with numbers beyond those of the plan."""


class Database:
    """One with an outbox and a table beside it, which both are written to in each transaction."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url
        self._metadata = sa.MetaData()
        self.outbox = Outbox(self._metadata, name)
        self.orders = sa.Table("orders", self._metadata, sa.Column("number", sa.BigInteger, primary_key=True))
        self.engine = sa.create_engine(url)

    def __str__(self) -> str:
        return f"{self.name}={self._url}"

    @classmethod
    def parse(cls, text: str) -> Database:
        name, _, url = text.partition("=")
        return cls(name, url)

    def create(self) -> None:
        self._metadata.create_all(self.engine)

    def is_empty(self) -> bool:
        """Whether all that was committed has been relayed."""
        with self.engine.connect() as connection:
            return not connection.scalar(sa.select(sa.func.count()).select_from(self.outbox.table))

    def write(self, app: PulsarTasks, number: int, *, commit: bool = True) -> None:
        """Store an order and the call for it in one transaction."""
        task = app.tasks["shared" if PLANS["keyed"](number).key is None else "keyed"]
        with Session(self.engine) as session:
            session.execute(self.orders.insert().values(number=number))
            self.outbox.add(session, task.s(number))
            (session.commit if commit else session.rollback)()

    def close(self) -> None:
        self.engine.dispose()


def main(arguments: Sequence[str]) -> None:
    """Relay one outbox until killed, or write what is asked for into several."""
    entries = EntryFile(Path(os.environ[tasks.ENTRIES]))
    app = tasks.make_app(os.environ[tasks.APP], None, entries, PLANS[os.environ[tasks.PLAN]])
    command, *rest = arguments
    if command == "relay":
        configure_logging("error")
        database = Database.parse(rest[0])
        database.outbox.relay(app, database.engine).run(threading.Event())
    else:
        *names, _, end, rate = rest
        _write_all(app, entries, [Database.parse(name) for name in names], int(end), float(rate))


def _write_all(app: PulsarTasks, entries: EntryFile, databases: Sequence[Database], end: int, rate: float) -> None:
    """The numbers up to `end`, `rate` a second, spread over the databases and their writers."""
    count = WRITERS * len(databases)
    assert KEYS % count == 0, "a key has one writer"

    def write(place: int) -> None:
        database, began = databases[place % len(databases)], time.monotonic()
        for number in range(place, end, count):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            sent = Entry(Kind.SENT, time.time(), number, pid=os.getpid(), run=new_id())
            entries.write(sent)
            database.write(app, number)
            entries.write(sent._replace(kind=Kind.CONFIRMED, at=time.time()))
            if number // count % ROLLED_BACK == 0:
                database.write(app, end + number, commit=False)

    with ThreadPoolExecutor(count) as pool:
        for writer in [pool.submit(write, place) for place in range(count)]:
            writer.result()


if __name__ == "__main__":
    main(sys.argv[1:])
