"""The order of an outbox: its rows are numbered when they are committed, not when they are added."""

from __future__ import annotations

import zlib
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import event

COMMIT_LOCKS = 64
"""How many keys, about, can be committed at the same instant."""


class CommitOrder:
    """Numbers keyed rows anew while they are being committed, so that their order is that of the commits.

    PostgreSQL draws ids when rows are inserted, but transactions that overlap may commit the other way round, and a
    relay that looks between the two commits would send the later row first. So the last thing that a transaction does
    is to take the locks of its keys, which are released after its rows can be seen, and then to draw their ids anew.
    Nobody is kept waiting while it works, and locks that come last and sorted do not lead to deadlocks.
    """

    def __init__(self, table: sa.Table) -> None:
        self._table = table
        self._added: WeakKeyDictionary[sa.RootTransaction, list[tuple[int, int]]] = WeakKeyDictionary()
        """The lock and id of each row that a transaction added, also of those in a savepoint that was rolled back."""

    def keep(self, connection: sa.Connection, key: str, row_id: int) -> None:
        """Remember a row that was added with `connection` until it commits."""
        transaction = connection.get_transaction()
        if transaction is None:
            return  # committed already, by a connection in autocommit mode
        if transaction not in self._added:
            self._added[transaction] = []
            if not event.contains(connection, "commit", self._renumber):
                event.listen(connection, "commit", self._renumber)
        self._added[transaction].append((stable_hash(key) % COMMIT_LOCKS, row_id))

    def _renumber(self, connection: sa.Connection) -> None:
        transaction = connection.get_transaction()
        added = self._added.pop(transaction, None) if transaction is not None else None
        if not added:
            return
        family = stable_hash(f"{self._table.fullname}.commit", signed=True)
        locks = sorted({lock for lock, _ in added})
        connection.execute(sa.select(*(sa.func.pg_advisory_xact_lock(family, lock) for lock in locks)))
        table = connection.dialect.identifier_preparer.format_table(self._table)
        place = sa.func.nextval(sa.func.pg_get_serial_sequence(table, "id"))
        renumber = self._table.update().where(self._table.c.id == sa.bindparam("old")).values(id=place)
        connection.execute(renumber, [{"old": row_id} for _, row_id in added])


def stable_hash(text: str, *, signed: bool = False) -> int:
    """The same number in every process: 32 bits, as a signed integer where PostgreSQL wants one."""
    number = zlib.crc32(text.encode())
    return number - (number >> 31 << 32) if signed else number
