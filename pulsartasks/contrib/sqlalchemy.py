"""An outbox: messages stored in the application's own transaction, and relayed to the broker after it committed.

There is no message without its row and no row without its message, though the broker be down for an hour::

    outbox = Outbox(metadata)

    with Session(engine) as session:
        session.add(Order(...))
        outbox.add(session, send_invoice.s(17))
        session.commit()

    outbox.relay(app, engine).run(stop)  # in a process of its own
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any, Concatenate, Protocol, TypeAlias, TypeVar

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.pool import ConnectionPoolEntry
from typing_extensions import ParamSpec

from pulsartasks.app import PulsarTasks
from pulsartasks.canvas import Canvas
from pulsartasks.contrib.outbox_order import CommitOrder, stable_hash
from pulsartasks.contrib.outbox_sequences import Coverage, Deduplication
from pulsartasks.errors import (
    TRANSIENT,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    InvalidArgumentsError,
    PublishTimeoutError,
    PulsarTasksError,
)
from pulsartasks.message import TASK_ID, Publication
from pulsartasks.retry import backoff

P = ParamSpec("P")
T = TypeVar("T")
Transaction: TypeAlias = "Session | scoped_session[Any] | sa.Connection"

BATCH = 100
"""Rows that are published together; where the broker does not deduplicate, as many may be sent twice by a kill."""
POLL = 0.1
"""Seconds between two looks for rows that another process committed."""
STAND_BY = 1.0
"""Seconds between two tries to take over from a relay that ended."""
PUBLISH_TIMEOUT = 10.0
LONGEST_REST = 10.0
"""Seconds between two tries to reach a broker or database that is away."""

_IN_DOUBT = (BrokerUnavailableError, PublishTimeoutError, ClosedError)
"""What leaves open whether the message was stored."""

_log = structlog.get_logger("pulsartasks")


class AsyncTransaction(Protocol):
    """SQLAlchemy's AsyncSession or AsyncConnection, which cannot be imported where greenlet is not installed."""

    async def run_sync(self, fn: Callable[Concatenate[Any, P], T], *arg: P.args, **kw: P.kwargs) -> T:
        """Call `fn` with the synchronous session or connection behind it."""


class Outbox:
    """Two tables of `metadata`, which the application creates and migrates with its own.

    Messages are sent at least once: those of a relay that is killed between the broker's confirmation and the
    deletion of their rows are sent again. Where the broker deduplicates (`Broker.deduplicates`) it drops these.

    Rows of the same key reach their topic in the order in which their transactions committed, and within a
    transaction in the order in which they were added. A row that was parked has lost its place. Rows without a key,
    and those of different keys, keep no order.
    """

    def __init__(self, metadata: sa.MetaData, name: str = "pulsartasks_outbox", shards: int = 4) -> None:
        """Define the tables.

        Args:
            metadata: where the application's own tables are defined.
            name: of the table; ``<name>_shards`` is the other one.
            shards: parts that different relays may take, each with whole keys; change it while the outbox is empty.
        """
        if shards < 1:
            raise ConfigurationError(f"outbox {name!r}: shards must be at least 1")
        self.name = name
        self.shards = shards
        self.table = sa.Table(
            name,
            metadata,
            # A row's place: on PostgreSQL it is given anew in the moment of the commit, see `CommitOrder`.
            sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
            sa.Column("shard", sa.Integer, nullable=False),
            sa.Column("topic", sa.Text, nullable=False),
            sa.Column("key", sa.Text),
            sa.Column("value", sa.LargeBinary, nullable=False),
            sa.Column("properties", sa.JSON, nullable=False),
            sa.Column("deliver_at", sa.Double),
            sa.Column("sequence_id", sa.BigInteger),
            sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
            sa.Column("error", sa.Text),
            sqlite_autoincrement=True,  # an id is never used again
        )
        sa.Index(
            f"ix_{name}_waiting",
            self.table.c.id,
            postgresql_where=self.table.c.error.is_(None),
            sqlite_where=self.table.c.error.is_(None),
        )
        self.shard_table = sa.Table(
            f"{name}_shards",
            metadata,
            sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("sequence_id", sa.BigInteger, nullable=False, server_default="0"),
        )
        self._turns = itertools.count()
        self._commit_order = CommitOrder(self.table)

    def add(self, session: Transaction, signature: Canvas[Any]) -> str | None:
        """Store a call or event in the transaction of `session`; it is sent if and when that commits.

        Args:
            session: a synchronous Session or Connection; for asynchronous ones there is `aadd`.
            signature: ``task.s(...)``, ``topic.s(payload)``, or a canvas that begins with one call, like a chain.

        Returns:
            The (first) task's id, for ``task.result(id)``; None for an event.

        Raises:
            InvalidArgumentsError: the arguments do not fit the task or topic, or it begins with several calls; or one
                of these is something else. Nothing was stored.
        """
        if hasattr(session, "run_sync"):
            raise InvalidArgumentsError("the session is asynchronous; write: await outbox.aadd(session, ...)")
        if not isinstance(signature, Canvas):
            raise InvalidArgumentsError(
                f"{signature!r} is no call to be sent later, as what delay() gives has gone out already; "
                "write outbox.add(session, task.s(...))"
            )
        publication = signature.publication()
        connection = _connection_of(session, self.table)
        insert = self.table.insert().values(
            shard=self._shard(publication.key),
            topic=publication.topic,
            key=publication.key,
            value=publication.value,
            properties=dict(publication.properties),
            deliver_at=publication.deliver_at,
        )
        row_id = connection.execute(insert.returning(self.table.c.id)).scalar_one()
        if publication.key is not None and connection.dialect.name == "postgresql":
            self._commit_order.keep(connection, publication.key, row_id)
        connection.info[self.name] = True  # wakes a relay of this process when the connection goes back to its pool
        return publication.properties.get(TASK_ID)

    async def aadd(self, session: AsyncTransaction, signature: Canvas[Any]) -> str | None:
        """`add` for SQLAlchemy's asyncio: an AsyncSession or AsyncConnection."""
        return await session.run_sync(self.add, signature)

    def release(self, session: Transaction) -> int:
        """Let what was parked be sent again, in the transaction of `session`; gives the number of rows."""
        parked = self.table.c.error.is_not(None)
        return (
            _connection_of(session, self.table).execute(self.table.update().where(parked).values(error=None)).rowcount
        )

    def relay(self, app: PulsarTasks, engine: sa.Engine) -> Relay:
        """What forwards the rows to the broker of `app`, which must know all the tasks and topics that are added.

        Raises:
            ConfigurationError: `engine` is neither PostgreSQL nor SQLite.
        """
        return Relay(self, app, engine)

    def relay_in_worker(self, app: PulsarTasks, engine: sa.Engine) -> None:
        """Relay in each process of the workers of `app`, on a thread, from a worker's start until it stops.

        Call it where the tasks are defined, before a worker starts; other programs that import it relay nothing.

        Raises:
            ConfigurationError: `engine` is neither PostgreSQL nor SQLite.
        """
        self.relay(app, engine)  # refused now, not when a worker starts
        running: dict[object, tuple[threading.Event, threading.Thread]] = {}

        def start(sender: object, **_: object) -> None:
            stop, relay = threading.Event(), self.relay(app, engine)
            thread = threading.Thread(target=relay.run, args=[stop], name=f"{self.name}-relay", daemon=True)
            running[sender] = stop, thread
            thread.start()

        def end(sender: object, **_: object) -> None:
            if sender in running:
                stop, thread = running.pop(sender)
                stop.set()
                thread.join()

        app.signals.worker_init.connect(start)
        app.signals.worker_shutdown.connect(end)

    def _shard(self, key: str | None) -> int:
        return (next(self._turns) if key is None else stable_hash(key)) % self.shards


def _connection_of(session: Transaction, table: sa.Table) -> sa.Connection:
    if isinstance(session, sa.Connection):
        return session
    if not hasattr(session, "connection"):
        raise InvalidArgumentsError(f"give a Session or Connection, whose transaction it shares, not {session!r}")
    return session.connection(bind_arguments={"clause": table})


class Relay:
    """Publishes the committed rows of an outbox, confirmed by the broker, and then deletes them.

    Any number of processes may run one: each shard is relayed by one at a time. On PostgreSQL they share the shards, on
    SQLite one has them all and the others stand by. The claim to a shard ends with the process that holds it, however
    that ends: on PostgreSQL it is an advisory lock (so the engine must not go through a pooler that shares connections
    between transactions, such as PgBouncer's transaction mode), on SQLite the lock of a file beside the database.

    Rows that this process committed are seen at once, those of others within 0.1 s.
    """

    def __init__(self, outbox: Outbox, app: PulsarTasks, engine: sa.Engine) -> None:
        if engine.dialect.name not in _CLAIMS:
            known = " or ".join(_CLAIMS)
            raise ConfigurationError(f"outbox {outbox.name!r} is relayed from {known}, not from {engine.dialect.name}")
        self._outbox = outbox
        self._app = app
        self._engine = engine
        self._committed = threading.Event()
        self._published: set[int] = set()
        """Rows that the broker has confirmed and the database has not deleted yet."""
        self._unsent: dict[int, str | None] = {}
        """Rows that lose their number, as the database does not know yet: why they are parked, or None to try again."""
        self._resting: dict[str, _Rest] = {}
        self._interruptions = 0
        self._deduplication = Deduplication(app, outbox.name, outbox.shard_table)
        self._unsure = True
        """There may be rows with a number that were sent already, or not; these come first."""

    def run(self, stop: threading.Event) -> None:
        """Forward rows until `stop` is set, at most 10 s longer; an absent broker or database is waited for.

        Raises:
            ConfigurationError: the database is SQLite in memory, which other connections cannot see.
        """
        _log.info("outbox.started", outbox=self._outbox.name)
        with self._hearing_commits():
            while not stop.is_set():
                self._attend(stop)
        _log.info("outbox.stopped", outbox=self._outbox.name)

    def _attend(self, stop: threading.Event) -> None:
        """Look again and again over one connection, until it breaks."""
        try:
            with self._engine.connect() as connection, self._claim(connection) as claim, self._naming() as known:
                while not stop.is_set():
                    if (shards := set(claim())) != known:
                        _log.info("outbox.claimed", outbox=self._outbox.name, shards=tuple(shards))
                        self._deduplication.retire(known - shards)
                        known.clear()
                        known.update(shards)
                        self._unsure = True
                    self._look(connection, shards, stop)
                    self._interruptions = 0
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            delay = backoff(self._interruptions, factor=POLL, maximum=LONGEST_REST)
            self._interruptions += 1
            said = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            _log.warning("outbox.interrupted", outbox=self._outbox.name, error=str(said), delay=delay)
            stop.wait(delay)

    @contextmanager
    def _naming(self) -> Iterator[set[int]]:
        """The shards in whose names is published, until others may."""
        shards: set[int] = set()
        try:
            yield shards
        finally:
            self._deduplication.retire(shards)

    def _look(self, connection: sa.Connection, shards: Collection[int], stop: threading.Event) -> None:
        """Look once: publish what waits in `shards`, delete what was confirmed, wait if there was little to do."""
        self._settle(connection)  # what the broker answered before the database went away
        rows = self._number(connection, self._waiting(connection, shards)) if shards else []
        by_topic: dict[str, list[_Row]] = defaultdict(list)
        for row in rows:
            by_topic[row.publication.topic].append(row)
        for topic, of_topic in by_topic.items():
            if not stop.is_set():
                self._publish(topic, of_topic)
        self._settle(connection)
        if len(rows) < BATCH and not stop.is_set():
            self._committed.wait(self._pause() if shards else STAND_BY)
            self._committed.clear()

    def _waiting(self, connection: sa.Connection, shards: Collection[int]) -> list[_Row]:
        """The next rows in their order, without those of topics that rest."""
        columns = self._outbox.table.c
        resting = [topic for topic, rest in self._resting.items() if rest.until > time.monotonic()]
        query = (
            sa.select(columns.id, columns.shard, columns.sequence_id)
            .add_columns(columns.topic, columns.value, columns.key, columns.properties, columns.deliver_at)
            .where(columns.error.is_(None), columns.shard.in_(shards))
            .limit(BATCH)
        )
        if resting:
            query = query.where(columns.topic.not_in(resting))
        with connection.begin():
            rows: Sequence[sa.Row[Any]] = ()
            if self._unsure:
                numbered = query.where(columns.sequence_id.is_not(None)).order_by(columns.sequence_id)
                rows = connection.execute(numbered).all()
                self._unsure = bool(rows or self._resting)
            rows = rows or connection.execute(query.order_by(columns.id)).all()
        return [
            _Row(
                row.id,
                row.shard,
                row.sequence_id,
                Publication(row.topic, row.value, row.key, row.properties, row.deliver_at),
            )
            for row in rows
        ]

    def _number(self, connection: sa.Connection, rows: Sequence[_Row]) -> list[_Row]:
        """The rows as they are to be published, without those of topics that are out of reach."""
        covered: dict[str, Coverage] = {}
        for topic in dict.fromkeys(row.publication.topic for row in rows):
            try:
                covered[topic] = self._deduplication.covers(topic)
            except TRANSIENT as error:
                self._note(topic, error)
            except PulsarTasksError:
                covered[topic] = "nothing"  # publishing will say what is wrong
        rows = [row for row in rows if row.publication.topic in covered]
        counted = {row.id for row in rows if row.counts(covered[row.publication.topic])}
        new: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            if row.number is None and row.id in counted:
                new[row.shard].append(row.id)
        numbers = self._deduplication.number(connection, self._outbox.table, new) if new else {}
        return [self._named(row, numbers.get(row.id, row.number)) if row.id in counted else row for row in rows]

    def _named(self, row: _Row, number: int | None) -> _Row:
        producer = self._deduplication.producer(row.shard)
        return replace(row, publication=msgspec.structs.replace(row.publication, producer=producer, sequence=number))

    def _publish(self, topic: str, rows: Sequence[_Row]) -> None:
        """Send rows of one topic in their order, and note what became of them."""
        trouble: Exception | None = None
        answers = self._send(topic, rows)
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, str):
                self._published.add(row.id)
            elif _passes(answer):
                trouble = trouble or answer
            else:
                error = self._unsent[row.id] = f"{type(answer).__name__}: {answer}"
                _log.error("outbox.parked", outbox=self._outbox.name, topic=topic, row=row.id, error=error)
        self._unsent.update(dict.fromkeys(_overtaken(rows, answers)))
        self._note(topic, trouble)

    def _send(self, topic: str, rows: Sequence[_Row]) -> Sequence[str | Exception]:
        """For each row the id of its message, or why it has none."""
        try:
            return self._app.publish_many([row.publication for row in rows], timeout=PUBLISH_TIMEOUT)
        except PulsarTasksError as error:
            return [error] * len(rows)
        except Exception as error:  # noqa: BLE001 - such as an instant that the client cannot express: find the row
            if len(rows) == 1:
                return [error]
            answers: list[str | Exception] = []
            for row in rows:  # what is behind one that has to wait waits too: it would use up the number of that one
                waits = answers and _passes(answers[-1])
                answers += answers[-1:] if waits else self._send(topic, [row])
            return answers

    def _note(self, topic: str, trouble: Exception | None) -> None:
        """Leave a topic that is out of reach alone for a while, so that the others go on."""
        if trouble is None:
            self._resting.pop(topic, None)
            return
        self._unsure = True  # a row that is seen only now may have a smaller id than those that have their numbers
        failures = self._resting[topic].failures + 1 if topic in self._resting else 0
        delay = backoff(failures, factor=POLL, maximum=LONGEST_REST)
        self._resting[topic] = _Rest(failures, until=time.monotonic() + delay)
        _log.warning("outbox.delayed", outbox=self._outbox.name, topic=topic, error=str(trouble), delay=delay)

    def _settle(self, connection: sa.Connection) -> None:
        """Delete what the broker has confirmed, mark what it refused, and take away numbers that are used up."""
        if not self._published and not self._unsent:
            return
        table = self._outbox.table
        with connection.begin():
            connection.execute(table.delete().where(table.c.id.in_(self._published)))
            for row_id, error in self._unsent.items():
                connection.execute(table.update().where(table.c.id == row_id).values(error=error, sequence_id=None))
        self._published.clear()
        self._unsent.clear()

    def _pause(self) -> float:
        """Seconds until the next look: sooner when a topic's rest ends, later while what rests makes looking costly."""
        now = time.monotonic()
        rests = [rest.until - now for rest in self._resting.values()]
        return min(STAND_BY, max(POLL, min(rests))) if rests else POLL

    def _claim(self, connection: sa.Connection) -> AbstractContextManager[Callable[[], Collection[int]]]:
        return _CLAIMS[self._engine.dialect.name](self._outbox, connection)

    @contextmanager
    def _hearing_commits(self) -> Iterator[None]:
        """Be woken when a connection with which rows were added goes back to the engine's pool."""

        def hear(_: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
            if record.info.pop(self._outbox.name, False):
                self._committed.set()

        event.listen(self._engine, "checkin", hear)
        try:
            yield
        finally:
            event.remove(self._engine, "checkin", hear)


@dataclass(frozen=True, slots=True)
class _Row:
    id: int
    shard: int
    number: int | None
    """Where the broker deduplicates: stored with the row before the first try to send it."""
    publication: Publication

    def counts(self, coverage: Coverage) -> bool:
        """Whether the broker is to be told its number."""
        return coverage == "all" or (coverage == "keyed" and self.publication.key is not None)


def _passes(answer: str | Exception) -> bool:
    """Whether the row is to be sent again later; not for just any ``OSError``, such as a middleware's missing file."""
    return isinstance(answer, PulsarTasksError) and isinstance(answer, TRANSIENT)


def _overtaken(rows: Sequence[_Row], answers: Sequence[str | Exception]) -> Iterator[int]:
    """The ids of rows that were not stored while one behind them was, or may have been.

    Their numbers are used up: the broker would take them for what it has. What is in doubt keeps its number. A producer
    is answered in order, so nothing that came to the same partition was confirmed behind it.
    """
    ahead: set[int] = set()
    for row, answer in zip(reversed(rows), reversed(answers), strict=True):
        if isinstance(answer, (str, *_IN_DOUBT)):
            ahead.add(row.shard)
        elif row.shard in ahead and _passes(answer):
            yield row.id


@dataclass(frozen=True, slots=True)
class _Rest:
    """A topic that is out of reach is left alone."""

    failures: int
    until: float
    """By the monotonic clock."""


@contextmanager
def _claim_in_postgresql(outbox: Outbox, connection: sa.Connection) -> Iterator[Callable[[], Collection[int]]]:
    """Advisory locks of `connection`: they end with it, so it is closed and not given back to its pool.

    Once a second each relay counts all of them, and gives back what is more than its share.
    """
    connection.detach()
    with connection.begin():  # the server notices within half a minute that a relay's machine is gone
        for setting, value in (("idle", "10"), ("interval", "5"), ("count", "4")):
            connection.execute(sa.select(sa.func.set_config(f"tcp_keepalives_{setting}", value, False)))
    family = stable_hash(f"{outbox.table.fullname}.relay", signed=True)
    locks = sa.table("pg_locks", *map(sa.column, ("locktype", "database", "classid", "objid")))
    databases = sa.table("pg_database", *map(sa.column, ("oid", "datname")))
    present = (
        sa.select(sa.func.count())
        .join_from(locks, databases, locks.c.database == databases.c.oid)  # the server shows those of all
        .where(databases.c.datname == sa.func.current_database())
        .where(locks.c.locktype == "advisory", locks.c.classid == family % 2**32, locks.c.objid == outbox.shards)
    )
    with connection.begin():  # a lock beyond those of the shards, which all relays share
        connection.execute(sa.select(sa.func.pg_advisory_lock_shared(family, outbox.shards)))
    held: set[int] = set()
    next_try = 0.0

    def claim() -> Collection[int]:
        nonlocal next_try
        if time.monotonic() >= next_try:
            next_try = time.monotonic() + STAND_BY
            with connection.begin():
                share = math.ceil(outbox.shards / connection.execute(present).scalar_one())
                for shard in sorted(held)[share:]:
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(family, shard)))
                    held.remove(shard)
                for shard in set(range(outbox.shards)) - held:
                    if len(held) < share and connection.scalar(sa.select(sa.func.pg_try_advisory_lock(family, shard))):
                        held.add(shard)
        return held

    yield claim


@contextmanager
def _claim_in_sqlite(outbox: Outbox, connection: sa.Connection) -> Iterator[Callable[[], Collection[int]]]:
    """The lock of a file beside the database, for all shards: with SQLite's one writer, more relays are no faster."""
    with connection.begin():
        database = connection.execute(sa.text("PRAGMA database_list")).first()
    path = database[2] if database else ""
    if not path:
        raise ConfigurationError(f"outbox {outbox.name!r}: a relay needs a database in a file, not one in memory")
    with _lock_file(f"{path}-{outbox.name}.lock") as file:
        held = False

        def claim() -> Collection[int]:
            nonlocal held
            if not held:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return ()
                held = True
            return range(outbox.shards)

        yield claim


_lock_files: set[IO[str]] = set()


@contextmanager
def _lock_file(path: str) -> Iterator[IO[str]]:
    """An open file, whose lock ends with the block, and with this process."""
    with open(path, "a") as file:  # noqa: PTH123 - the database's name with a suffix
        _lock_files.add(file)
        try:
            yield file
        finally:
            _lock_files.discard(file)
            fcntl.flock(file, fcntl.LOCK_UN)


def _let_go() -> None:
    for file in _lock_files:
        file.close()
    _lock_files.clear()


# A forked child would hold the locks as well, and beyond the end of this process.
os.register_at_fork(after_in_child=_let_go)

_CLAIMS = {"postgresql": _claim_in_postgresql, "sqlite": _claim_in_sqlite}
"""By dialect: how the shards are claimed that are free; they stay this relay's until the context ends."""
