"""Numbers for the rows of an outbox, by which the broker knows one that it has stored already."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeAlias

import sqlalchemy as sa
import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.errors import PulsarTasksError

Coverage: TypeAlias = Literal["all", "keyed", "nothing"]

ASK_AGAIN = 60.0
"""Seconds until a broker that does not say whether it deduplicates is asked again."""

_log = structlog.get_logger("pulsartasks")


class Deduplication:
    """Which topics are deduplicated, and the producers' names and numbers for them.

    The broker drops what has a number not above the last one of its producer. So a number is stored with its row before
    the first try, rows are sent in the order of their numbers, and numbers rise by the clock too: those of a database
    that was made anew, or came back from a backup, are not below those that the broker remembers of the old one.
    """

    def __init__(self, app: PulsarTasks, name: str, shard_table: sa.Table) -> None:
        self._app = app
        self._name = name
        self._shard_table = shard_table
        self._answers: dict[str, tuple[bool | None, Coverage, float]] = {}
        """By topic: what the broker said, what follows, and until when (monotonic seconds) that counts."""

    def covers(self, topic: str) -> Coverage:
        """What of that which is sent to `topic`, which exists from then on, is to be numbered.

        All is, or what has a key, unless the broker says that it does not deduplicate: where nobody who knows can be
        asked, e.g. while the broker starts, such numbers do no harm, and a row that was sent before is recognised only
        by its number.

        Raises:
            PulsarTasksError: the topic is out of reach.
        """
        known, coverage, until = self._answers.get(topic, (None, "nothing", 0.0))
        if time.monotonic() < until:
            return coverage
        self._app.declare(topic)
        answer: bool | None = None
        coverage, until = "keyed", float("inf")
        try:
            answer = self._app.broker.deduplicates(topic, keyed=True)
            if not answer:
                coverage = "nothing"
            elif self._app.broker.deduplicates(topic, keyed=False):
                coverage = "all"
        except PulsarTasksError:
            until = time.monotonic() + ASK_AGAIN
        if topic not in self._answers or answer is not known:
            delivery = "effectively once" if answer else "at least once"
            _log.info("outbox.reached", outbox=self._name, topic=topic, delivery=delivery)
        self._answers[topic] = (answer, coverage, until)
        return coverage

    def producer(self, shard: int) -> str:
        """The name under which all relays of a shard publish; with the app's, as others may have such an outbox."""
        return f"{self._app.name}.{self._name}-{shard}"

    def retire(self, shards: Collection[int]) -> None:
        """Leave the names of these shards to whoever relays them next."""
        for shard in shards:
            try:
                self._app.broker.retire(self.producer(shard))
            except PulsarTasksError:
                return  # the broker is closed, and the names with it

    def number(self, connection: sa.Connection, table: sa.Table, rows: Mapping[int, Sequence[int]]) -> dict[int, int]:
        """Numbers for the ids of rows, by shard and in the order in which they are to be sent; stored on return.

        The shards must be relayed by nobody else.
        """
        numbers: dict[int, int] = {}
        with connection.begin():
            for shard, row_ids in rows.items():
                first = self._draw(connection, shard, len(row_ids))
                numbers.update(zip(row_ids, range(first, first + len(row_ids)), strict=True))
            if numbers:
                store = (
                    table.update().where(table.c.id == sa.bindparam("row")).values(sequence_id=sa.bindparam("number"))
                )
                connection.execute(store, [{"row": row_id, "number": number} for row_id, number in numbers.items()])
        return numbers

    def _draw(self, connection: sa.Connection, shard: int, count: int) -> int:
        """The first of `count` numbers that nobody had before."""
        table = self._shard_table
        last = connection.scalar(sa.select(table.c.sequence_id).where(table.c.shard == shard))
        first = max((last or 0) + 1, time.time_ns() // 1000)
        if last is None:
            connection.execute(table.insert().values(shard=shard, sequence_id=first + count - 1))
        else:
            connection.execute(table.update().where(table.c.shard == shard).values(sequence_id=first + count - 1))
        return first
