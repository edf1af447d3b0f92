"""Results in a database: PostgreSQL, or SQLite for one machine.

A look-up goes by an index, so it costs the same however many there are; the push stays on the broker.

``PulsarTasks(results="sqlalchemy+postgresql+psycopg://user@host/database")``, or ``results=SQLAlchemyResults(engine)``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from pulsartasks.errors import ConfigurationError, PulsarTasksError, ResultStoreError
from pulsartasks.message import CLAIM
from pulsartasks.results.base import ENDED, PackedResult, Place, Reported, Result
from pulsartasks.results.inbox import PushedResults, pushes

TABLE = "pulsartasks_results"
POLL = 0.5
"""Seconds between two look-ups of a wait for a call that another process made."""
BATCH = 1000
"""Rows that are deleted in one transaction."""
ASKED = 500
"""Ids that are looked up in one statement."""
PUSH_TIMEOUT = 10.0
"""Seconds to wait until the broker has passed on what is pushed; it is kept by then."""
FORGOTTEN = "FORGOTTEN"
"""The state of a row whose result is not to be had any more."""


class SQLAlchemyResults:
    """Keeps the results of an app in a table, which it makes if it is not there.

    Args:
        engine: of PostgreSQL or SQLite, or the URL for one.
        table: its name; several apps may share it, since ids are unique.

    Raises:
        ConfigurationError: it is no URL, another database, or one in memory.
    """

    def __init__(self, engine: sa.Engine | str, *, table: str = TABLE) -> None:
        self._given = engine if isinstance(engine, sa.Engine) else None
        try:
            self._url = sa.make_url(engine) if isinstance(engine, str) else engine.url
        except sa.exc.ArgumentError as error:
            raise ConfigurationError(f"results: {engine!r} is not a URL of SQLAlchemy's") from error
        self._table = table
        self._pid = os.getpid()
        name = self._url.get_backend_name()
        if name not in ("postgresql", "sqlite"):
            raise ConfigurationError(f"results: {name} is not a database for them; use postgresql or sqlite")
        if name == "sqlite" and self._url.database in (None, "", ":memory:"):
            raise ConfigurationError("results: SQLite in memory is another database in each thread; name a file")

    def open(self, place: Place) -> TableResults:
        """The store of this process."""
        if self._given is None:
            options = {"connect_args": {"timeout": 30.0}} if self._url.get_backend_name() == "sqlite" else {}
            return TableResults(sa.create_engine(self._url, pool_pre_ping=True, **options), self._table, place)
        if self._pid != os.getpid():
            self._given.dispose(close=False)  # its connections were inherited through a fork, and are the parent's
        return TableResults(self._given, self._table, place, owner=False)


def open_results(url: str, place: Place) -> TableResults:
    """The store at an URL of SQLAlchemy's."""
    return SQLAlchemyResults(url).open(place)


class TableResults(PushedResults):
    """One row for each task: its result, or how far it is.

    A success stays, of other ends the last one counts, and any end is above how far a task was.
    """

    def __init__(self, engine: sa.Engine, table: str, place: Place, *, owner: bool = True) -> None:
        super().__init__(place)
        self._engine = engine
        self._owner = owner
        self._ready = False
        self._table = sa.Table(
            table,
            sa.MetaData(),
            sa.Column("task_id", sa.Text, primary_key=True),
            sa.Column("state", sa.Text, nullable=False),
            sa.Column("retries", sa.Integer, nullable=False),
            sa.Column("at", sa.Double, nullable=False),
            sa.Column("value", sa.LargeBinary, nullable=False),
            sa.Column("claim", sa.Text),
            sa.Column("stored_at", sa.Double, nullable=False, index=True),
        )

    def store(self, results: Sequence[PackedResult]) -> Sequence[PulsarTasksError | None]:
        columns = self._table.c
        replaceable = _none_of(columns.state, ["SUCCESS", FORGOTTEN]) | self._is_old(columns)
        try:
            self._write([_row(each, each.state, now=self._clock.now()) for each in results], replaceable)
        except ResultStoreError as error:
            return [error] * len(results)
        self._push(results)
        return [None] * len(results)

    def report(self, states: Sequence[Reported]) -> None:
        columns, new = self._table.c, self._insert().excluded
        earlier = sa.tuple_(columns.retries, columns.at) <= sa.tuple_(new.retries, new.at)
        replaceable = _none_of(columns.state, [*ENDED, FORGOTTEN]) & earlier | self._is_old(columns)
        packed = [self.pack_state(each) for each in states]
        rows = {  # of several states of a task the newest
            each.id: _row(each, state.state, now=self._clock.now(), retries=state.retries, at=state.at)
            for each, (state, _) in zip(packed, states, strict=True)
        }
        self._write(list(rows.values()), replaceable)
        self._push(packed)

    def find_state(self, task_id: str) -> Result | None:
        return next(self._select([task_id], ended=False), None)

    def follow(self, task_ids: Collection[str], *, until: float) -> Generator[Result, None, None]:
        """Look up what is kept, and then again and again."""
        left = dict.fromkeys(task_ids)
        while left:
            for result in self._select(list(left), ended=True):
                del left[result.id]
                yield result
            if (patience := until - time.monotonic()) <= 0:
                return
            if left:
                time.sleep(min(POLL, patience))

    def forget(self, task_id: str) -> None:
        row = _row(PackedResult(task_id, b"", {}, None, "REVOKED"), FORGOTTEN, now=self._clock.now())
        self._write([row], sa.true())

    def expire(self) -> None:
        columns = self._table.c
        # What was forgotten stays for longer: its task may not have ended by then.
        lasting = sa.case((columns.state == FORGOTTEN, 2 * self._expires), else_=self._expires)
        old = sa.select(columns.task_id).where(columns.stored_at < self._clock.now() - lasting).limit(BATCH)
        delete = self._table.delete().where(columns.task_id.in_(old.with_for_update(skip_locked=True)))
        deleted = BATCH
        while deleted == BATCH:
            with self._transaction() as connection:
                deleted = connection.execute(delete).rowcount

    def close(self) -> None:
        super().close()
        if self._owner:
            self._engine.dispose()

    def _write(self, rows: list[dict[str, Any]], replaceable: sa.ColumnElement[bool]) -> None:
        insert = self._insert()
        names = [name for name in rows[0] if name != "task_id"]
        upsert = insert.on_conflict_do_update(
            index_elements=["task_id"], set_={name: insert.excluded[name] for name in names}, where=replaceable
        )
        rows.sort(key=lambda row: str(row["task_id"]))  # so that no two workers wait for each other's rows
        with self._transaction() as connection:
            connection.execute(upsert, rows)

    def _select(self, task_ids: Sequence[str], *, ended: bool) -> Iterator[Result]:
        columns = self._table.c
        fits = columns.state.in_(ENDED) if ended else _none_of(columns.state, [*ENDED, FORGOTTEN])
        for start in range(0, len(task_ids), ASKED):
            keys = [_key(task_id) for task_id in task_ids[start : start + ASKED]]
            query = sa.select(columns.value, columns.claim).where(columns.task_id.in_(keys), fits)
            with self._transaction() as connection:
                rows = connection.execute(query.where(~self._is_old(columns))).all()
            for value, claim in rows:
                result = self._read(bytes(value), {} if claim is None else {CLAIM: claim})
                if result is not None and result.id in task_ids:
                    yield result

    def _is_old(self, columns: Any) -> sa.ColumnElement[bool]:
        old: sa.ColumnElement[bool] = columns.stored_at < self._clock.now() - self._expires
        return old

    def _insert(self) -> Any:
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(self._table)

    def _push(self, results: Sequence[PackedResult]) -> None:
        with suppress(PulsarTasksError):  # who waits looks at what is kept
            self._broker.publish_many(list(pushes(results)), timeout=PUSH_TIMEOUT)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            if not self._ready:
                self._create()
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error).partition("\n")[0]  # without the values
            raise ResultStoreError(f"the database of results: {cause}") from error

    def _create(self) -> None:
        try:
            self._table.metadata.create_all(self._engine)
        except sa.exc.DBAPIError:
            if not sa.inspect(self._engine).has_table(self._table.name):  # else another process was first
                raise
        self._ready = True


def _row(packed: PackedResult, state: str, *, now: float, retries: int = 0, at: float = 0.0) -> dict[str, Any]:
    return {
        "task_id": _key(packed.id),
        "state": state,
        "retries": retries,
        "at": at,
        "value": packed.value,
        "claim": packed.headers.get(CLAIM),
        "stored_at": now,
    }


def _none_of(column: Any, values: Collection[str]) -> sa.ColumnElement[bool]:
    """``NOT IN``, as statements can have it that are executed for many rows."""
    return sa.and_(*(column != value for value in values))


def _key(task_id: str) -> str:
    """The id as PostgreSQL takes it: anybody may have chosen it."""
    return task_id.replace("\0", "\N{REPLACEMENT CHARACTER}")
