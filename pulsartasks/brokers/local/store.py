"""The broker's tables, and every statement on them.

A message is stored once, with one delivery for each subscription of its topic. A delivery waits (``consumer_id``
null), is held by a consumer, or is gone because it was acknowledged; the message goes with its last delivery. Message
ids are microseconds since the epoch, taken inside the writing transaction, so they rise in commit order and tell when
a message was published.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pulsartasks.brokers.base import SubscriptionState
from pulsartasks.brokers.local import sequences
from pulsartasks.errors import (
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    IncompatibleSchemaError,
    SubscriptionBusyError,
)
from pulsartasks.message import Publication
from pulsartasks.options import Mode
from pulsartasks.schemas import Schema, differences
from pulsartasks.topics import COUNTER, DEAD_LETTERS, KEEPER

VERSION = 1
BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process's transaction."""

_SCHEMA = """
CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never that of one which is gone: somebody may still read by it
    topic_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    process TEXT,  -- whose reader this is; it goes when that process does. Null: durable
    UNIQUE (topic_id, name)
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    topic_id INTEGER NOT NULL,
    key TEXT,
    value BLOB NOT NULL,
    properties BLOB NOT NULL,
    pending INTEGER NOT NULL  -- deliveries that are not acknowledged
);
CREATE TABLE deliveries (
    subscription_id INTEGER NOT NULL,
    message_id INTEGER NOT NULL,
    key TEXT,
    due REAL NOT NULL,  -- 0: at once
    consumer_id INTEGER,
    PRIMARY KEY (subscription_id, message_id)
) WITHOUT ROWID;
CREATE INDEX waiting ON deliveries (subscription_id, due, message_id) WHERE consumer_id IS NULL;
CREATE INDEX held ON deliveries (subscription_id, key, consumer_id) WHERE consumer_id IS NOT NULL;
CREATE TABLE consumers (id INTEGER PRIMARY KEY AUTOINCREMENT, process TEXT NOT NULL, mode TEXT NOT NULL);
CREATE TABLE attachments (
    subscription_id INTEGER NOT NULL, consumer_id INTEGER NOT NULL, PRIMARY KEY (subscription_id, consumer_id)
) WITHOUT ROWID;
"""
# Asked of every file, since those of an earlier version have none.
_SCHEMAS = """
CREATE TABLE IF NOT EXISTS schemas (
    topic_id INTEGER NOT NULL, version INTEGER NOT NULL, name TEXT NOT NULL, definition TEXT NOT NULL,
    PRIMARY KEY (topic_id, version)
) WITHOUT ROWID
"""

_TAKE = """
SELECT d.message_id, m.key, m.value, m.properties FROM deliveries d JOIN messages m ON m.id = d.message_id
WHERE d.subscription_id = :subscription AND d.consumer_id IS NULL AND d.due {due} {keys}
ORDER BY d.due, d.message_id LIMIT :limit
"""
_FREE_KEYS = """
AND (d.key IS NULL OR NOT EXISTS (
    SELECT 1 FROM deliveries h
    WHERE h.subscription_id = d.subscription_id AND h.key = d.key AND h.consumer_id IS NOT NULL AND h.consumer_id <>
    :consumer
))
"""
# What was delayed and is due comes before what was never delayed: it has waited longer, and must not starve behind a
# backlog.
_TAKE_DUE = _TAKE.format(due="> 0 AND d.due <= :now", keys="")
_TAKE_PROMPT = _TAKE.format(due="= 0", keys="")
_TAKE_DUE_BY_KEY = _TAKE.format(due="> 0 AND d.due <= :now", keys=_FREE_KEYS)
_TAKE_PROMPT_BY_KEY = _TAKE.format(due="= 0", keys=_FREE_KEYS)

_STATES = """
SELECT s.name, COUNT(d.message_id), COALESCE(SUM(d.due > :now), 0),
    (SELECT COUNT(*) FROM attachments a WHERE a.subscription_id = s.id)
FROM subscriptions s LEFT JOIN deliveries d ON d.subscription_id = s.id
WHERE s.process IS NULL AND s.topic_id = (SELECT id FROM topics WHERE name = :topic)
GROUP BY s.id ORDER BY s.name
"""

_CONSUMED = """
subscription_id IN (
    SELECT a.subscription_id FROM attachments a JOIN subscriptions s ON s.id = a.subscription_id WHERE s.process IS NULL
)
"""

_decode_properties = msgspec.json.Decoder(dict[str, str]).decode


@dataclass(frozen=True, slots=True)
class Row:
    """A stored message as a consumer or reader gets it."""

    message_id: int
    key: str | None
    value: bytes
    properties: dict[str, str]

    @property
    def published_at(self) -> float:
        return self.message_id / 1_000_000


class Store:
    """One process's connection to the tables; its methods are transactions, and may be called from any thread."""

    def __init__(self, path: Path | None, *, full_sync: bool = False) -> None:
        self._lock = threading.RLock()
        self._topic_ids: dict[str, int] = {}
        self._closed = False
        self._path = None if path is None else path.absolute()
        with _mapped_errors(path):
            self._sql = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=BUSY_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,
            )
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
            self._create(path)
        self._file = _file_at(self._path)

    def check(self) -> None:
        """Refuse to go on in a file that nobody else sees, as SQLite would.

        Raises:
            BrokerUnavailableError: the database was removed, or another file is in its place now.
        """
        if _file_at(self._path) != self._file:
            raise BrokerUnavailableError(
                f"the local broker's database {self._path} was removed while it was in use; start this process anew"
            )

    def _create(self, path: Path | None) -> None:
        with self._transaction():
            [version] = self._sql.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    self._sql.execute(statement)
                self._sql.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise ConfigurationError(
                    f"{path} was written by another version of pulsartasks (format {version}, not {VERSION}); "
                    "let that version finish its work, or choose another path"
                )
            self._sql.execute(_SCHEMAS)
            self._sql.execute(sequences.TABLE)

    # Topics and subscriptions

    def declare(self, topic: str, subscriptions: Collection[str]) -> None:
        with self._transaction():
            topic_id = self._topic_id(topic)
            self._sql.executemany(
                "INSERT OR IGNORE INTO subscriptions (topic_id, name) VALUES (?, ?)",
                [(topic_id, name) for name in subscriptions],
            )

    def register(self, topic: str, schema: Schema) -> None:
        """Add a schema to those of the topic, if it is new.

        Raises:
            IncompatibleSchemaError: it does not fit the newest one.
        """
        with self._transaction():
            topic_id = self._topic_id(topic)
            known = self._sql.execute(
                "SELECT definition FROM schemas WHERE topic_id = ? ORDER BY version", (topic_id,)
            ).fetchall()
            if (schema.definition,) in known:
                return
            if known and (found := differences(known[-1][0], schema.definition)):
                raise IncompatibleSchemaError(
                    f"could not publish to {topic}: its schema does not fit: {'; '.join(found)}"
                )
            row = (topic_id, len(known), schema.name, schema.definition)
            self._sql.execute("INSERT INTO schemas VALUES (?, ?, ?, ?)", row)

    def add_reader(self, topic: str, name: str, process: str) -> tuple[int, int]:
        """A subscription that lives as long as `process`; gives its id, and that of the newest message before it."""
        with self._transaction():
            cursor = self._sql.execute(
                "INSERT INTO subscriptions (topic_id, name, process) VALUES (?, ?, ?)",
                (self._topic_id(topic), name, process),
            )
            return cursor.lastrowid or 0, self._newest()

    def remove_reader(self, subscription_id: int) -> None:
        with self._transaction():
            self._remove_subscription(subscription_id)

    def subscription_ids(self, topics: Iterable[str], name: str) -> dict[int, str]:
        """The ids of the subscription called `name` on `topics`, each with its topic; made where it is missing."""
        ids = {}
        with self._transaction():
            for topic in topics:
                topic_id = self._topic_id(topic)
                self._sql.execute(
                    "INSERT OR IGNORE INTO subscriptions (topic_id, name) VALUES (?, ?)", (topic_id, name)
                )
                [subscription_id] = self._sql.execute(
                    "SELECT id FROM subscriptions WHERE topic_id = ? AND name = ?", (topic_id, name)
                ).fetchone()
                ids[subscription_id] = topic
        return ids

    def inspect(self, topic: str, *, now: float) -> dict[str, SubscriptionState] | None:
        """The topic's subscriptions that outlive their consumers; None if there is no such topic."""
        with self._transaction():
            if self._sql.execute("SELECT 1 FROM topics WHERE name = ?", (topic,)).fetchone() is None:
                return None
            rows = self._sql.execute(_STATES, {"topic": topic, "now": now}).fetchall()
        return {name: SubscriptionState(backlog, delayed, consumers) for name, backlog, delayed, consumers in rows}

    # Messages

    def publish(self, publications: Sequence[Publication], *, now: float) -> tuple[list[int], dict[str, set[int]]]:
        """Store all in one transaction; gives their ids, and per process the subscriptions that have news."""
        self.check()
        ids, news = [], set()
        with self._transaction():
            message_id = max(self._newest(), int(now * 1_000_000))
            subscriptions = {p.topic: self._subscriptions_of(p.topic) for p in publications}
            for publication in publications:
                if publication.producer and not sequences.advance(
                    self._sql, self._topic_id(publication.topic), publication
                ):
                    ids.append(sequences.DUPLICATE)
                    continue
                message_id += 1
                ids.append(message_id)
                if subscription_ids := subscriptions[publication.topic]:
                    self._insert(message_id, publication, subscription_ids)
                    news.update(subscription_ids)
            return ids, self._listeners(news)

    def take(self, subscription_id: int, consumer_id: int, *, mode: Mode, now: float, limit: int) -> list[Row]:
        """Up to `limit` waiting messages, in order, that are from now on held by the consumer."""
        by_key = mode == "key_shared"
        values = {"subscription": subscription_id, "consumer": consumer_id, "now": now, "limit": limit}
        with self._transaction():
            if mode == "failover" and not self._is_first(subscription_id, consumer_id):
                return []
            rows = self._sql.execute(_TAKE_DUE_BY_KEY if by_key else _TAKE_DUE, values).fetchall()
            if len(rows) < limit:
                values["limit"] = limit - len(rows)
                rows += self._sql.execute(_TAKE_PROMPT_BY_KEY if by_key else _TAKE_PROMPT, values).fetchall()
            self._sql.executemany(
                "UPDATE deliveries SET consumer_id = ? WHERE subscription_id = ? AND message_id = ?",
                [(consumer_id, subscription_id, row[0]) for row in rows],
            )
        return [_row(row) for row in rows]

    def next_due(self, subscription_id: int) -> float | None:
        """When the next message that waits is due: 0 if it is now, None if none waits."""
        self.check()
        with self._lock, _mapped_errors():
            row = self._sql.execute(
                "SELECT due FROM deliveries WHERE subscription_id = ? AND consumer_id IS NULL ORDER BY due LIMIT 1",
                (subscription_id,),
            ).fetchone()
        return row[0] if row else None

    def acknowledge(self, deliveries: Collection[tuple[int, int]]) -> None:
        """Settle pairs of subscription and message id."""
        if not deliveries:
            return
        with self._transaction():
            for subscription_id, message_id in deliveries:
                gone = self._sql.execute(
                    "DELETE FROM deliveries WHERE subscription_id = ? AND message_id = ?", (subscription_id, message_id)
                )
                if gone.rowcount:
                    self._settle_message(message_id)

    def release(self, deliveries: Collection[tuple[int, int]]) -> dict[str, set[int]]:
        """Have held pairs of subscription and message id wait again; gives the news for who consumes them."""
        if not deliveries:
            return {}
        with self._transaction():
            self._sql.executemany(
                "UPDATE deliveries SET consumer_id = NULL WHERE subscription_id = ? AND message_id = ?", deliveries
            )
            return self._listeners({subscription_id for subscription_id, _ in deliveries})

    def trim(self, topic: str, subscription: str, *, before: float) -> None:
        """Settle what waits on the subscription and was published before the instant `before`."""
        with self._transaction():
            row = self._sql.execute(
                "SELECT id FROM subscriptions WHERE topic_id = ? AND name = ?", (self._topic_id(topic), subscription)
            ).fetchone()
            if row:
                self._remove_deliveries(row[0], before=int(before * 1_000_000))

    def scan(self, topic: str, *, after: int, limit: int) -> list[Row]:
        """Messages of the topic that some subscription still keeps, in order, from behind the id `after` on."""
        with self._lock, _mapped_errors():
            rows = self._sql.execute(
                "SELECT id, key, value, properties FROM messages WHERE id IN ("
                " SELECT message_id FROM deliveries WHERE subscription_id IN ("
                "  SELECT id FROM subscriptions WHERE topic_id = (SELECT id FROM topics WHERE name = ?)"
                " ) AND message_id > ? ORDER BY message_id LIMIT ?) ORDER BY id",
                (topic, after, limit),
            ).fetchall()
        return [_row(row) for row in rows]

    def backlog(self, topic: str, *, limit: int) -> int:
        """Messages that are not settled on that subscription of the topic which has most, counted up to `limit`.

        Keepers do not count, nor readers.
        """
        with self._lock, _mapped_errors():
            subscriptions = self._sql.execute(
                "SELECT s.id FROM subscriptions s JOIN topics t ON t.id = s.topic_id"
                " WHERE t.name = ? AND s.process IS NULL AND s.name NOT IN (?, ?, ?)",
                (topic, KEEPER, DEAD_LETTERS, COUNTER),
            ).fetchall()
            counts = [
                self._sql.execute(
                    "SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE subscription_id = ? LIMIT ?)", (*row, limit)
                ).fetchone()[0]
                for row in subscriptions
            ]
        return max(counts, default=0)

    def unsettled(self, *, due_by: float) -> int:
        """Messages that wait, and are due by that instant, or run on the subscriptions that have consumers, readers not
        counted.
        """
        with self._lock, _mapped_errors():
            [count] = self._sql.execute(
                f"SELECT count(*) FROM deliveries WHERE {_CONSUMED} AND (consumer_id IS NOT NULL OR due <= ?)",  # noqa: S608 - two constants
                (due_by,),
            ).fetchone()
        return int(count)

    def next_instant(self, *, after: float) -> float | None:
        """When the first message behind that instant is due on the same subscriptions; None if there is none."""
        with self._lock, _mapped_errors():
            [due] = self._sql.execute(
                f"SELECT min(due) FROM deliveries WHERE {_CONSUMED} AND consumer_id IS NULL AND due > ?",  # noqa: S608
                (after,),
            ).fetchone()
        return due  # type: ignore[no-any-return]

    # Consumers

    def attach(self, subscription_ids: Collection[int], *, process: str, mode: Mode) -> int:
        """Register a consumer; gives its id.

        Raises:
            SubscriptionBusyError: another consumer is there in exclusive or another mode, or is there and this is
                exclusive.
        """
        with self._transaction():
            for subscription_id in subscription_ids:
                row = self._sql.execute(
                    "SELECT c.mode FROM attachments a JOIN consumers c ON c.id = a.consumer_id"
                    " WHERE a.subscription_id = ?",
                    (subscription_id,),
                ).fetchone()
                if row and (row[0] != mode or mode == "exclusive"):
                    raise SubscriptionBusyError(
                        f"another consumer holds the subscription as {row[0]}; this one asked for {mode}"
                    )
            cursor = self._sql.execute("INSERT INTO consumers (process, mode) VALUES (?, ?)", (process, mode))
            consumer_id = cursor.lastrowid or 0
            self._sql.executemany("INSERT INTO attachments VALUES (?, ?)", [(s, consumer_id) for s in subscription_ids])
            return consumer_id

    def detach(self, consumer_id: int) -> dict[str, set[int]]:
        """Remove a consumer and give back what it held; gives the news for others."""
        with self._transaction():
            return self._listeners(self._detach(consumer_id))

    def bury(self, alive: Callable[[], Collection[str]]) -> dict[str, set[int]]:
        """Clean up behind every process that is not `alive`; gives the news for those that are.

        That is asked behind the look for who is known here, so that whoever enters meanwhile is not taken for dead.
        """
        news: set[int] = set()
        with self._lock, _mapped_errors():
            known = self._sql.execute(
                "SELECT process FROM consumers UNION SELECT process FROM subscriptions WHERE process IS NOT NULL"
            ).fetchall()
        dead = {process for (process,) in known} - set(alive())
        if not dead:
            return {}
        with self._transaction():
            for process in dead:
                for (consumer_id,) in self._sql.execute(
                    "SELECT id FROM consumers WHERE process = ?", (process,)
                ).fetchall():
                    news |= self._detach(consumer_id)
                for (reader,) in self._sql.execute(
                    "SELECT id FROM subscriptions WHERE process = ?", (process,)
                ).fetchall():
                    self._remove_subscription(reader)
            return self._listeners(news)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._sql.close()

    # Steps of a transaction

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, _mapped_errors():
            if self._closed:
                raise ClosedError("the local broker was closed")
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._sql.execute("COMMIT")
            except BaseException:
                self._topic_ids.clear()
                if self._sql.in_transaction:  # SQLite has rolled back by itself if the disk is full, for one
                    self._sql.execute("ROLLBACK")
                raise

    def _topic_id(self, name: str) -> int:
        if name not in self._topic_ids:
            self._sql.execute("INSERT OR IGNORE INTO topics (name) VALUES (?)", (name,))
            [self._topic_ids[name]] = self._sql.execute("SELECT id FROM topics WHERE name = ?", (name,)).fetchone()
        return self._topic_ids[name]

    def _subscriptions_of(self, topic: str) -> list[int]:
        rows = self._sql.execute("SELECT id FROM subscriptions WHERE topic_id = ?", (self._topic_id(topic),))
        return [subscription_id for (subscription_id,) in rows]

    def _newest(self) -> int:
        [newest] = self._sql.execute("SELECT max(id) FROM messages").fetchone()
        return newest or 0

    def _insert(self, message_id: int, publication: Publication, subscription_ids: list[int]) -> None:
        self._sql.execute(
            "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
            (
                message_id,
                self._topic_id(publication.topic),
                publication.key,
                publication.value,
                msgspec.json.encode(publication.properties),
                len(subscription_ids),
            ),
        )
        self._sql.executemany(
            "INSERT INTO deliveries VALUES (?, ?, ?, ?, NULL)",
            # An instant before 1970 is due at once, like any other that is past.
            [(s, message_id, publication.key, max(0.0, publication.deliver_at or 0.0)) for s in subscription_ids],
        )

    def _settle_message(self, message_id: int) -> None:
        last = self._sql.execute("DELETE FROM messages WHERE id = ? AND pending = 1", (message_id,))
        if not last.rowcount:
            self._sql.execute("UPDATE messages SET pending = pending - 1 WHERE id = ?", (message_id,))

    def _listeners(self, subscription_ids: Iterable[int]) -> dict[str, set[int]]:
        listeners: dict[str, set[int]] = {}
        for subscription_id in subscription_ids:
            for (process,) in self._sql.execute(
                "SELECT c.process FROM attachments a JOIN consumers c ON c.id = a.consumer_id"
                " WHERE a.subscription_id = ?",
                (subscription_id,),
            ):
                listeners.setdefault(process, set()).add(subscription_id)
        return listeners

    def _is_first(self, subscription_id: int, consumer_id: int) -> bool:
        row = self._sql.execute(
            "SELECT 1 FROM attachments WHERE subscription_id = ? AND consumer_id < ?", (subscription_id, consumer_id)
        )
        return row.fetchone() is None

    def _detach(self, consumer_id: int) -> set[int]:
        rows = self._sql.execute(
            "SELECT subscription_id FROM attachments WHERE consumer_id = ?", (consumer_id,)
        ).fetchall()
        subscription_ids = {subscription_id for (subscription_id,) in rows}
        for subscription_id in subscription_ids:
            self._sql.execute(
                "UPDATE deliveries SET consumer_id = NULL"
                " WHERE subscription_id = ? AND consumer_id IS NOT NULL AND consumer_id = ?",
                (subscription_id, consumer_id),
            )
            self._sql.execute(
                "DELETE FROM attachments WHERE subscription_id = ? AND consumer_id = ?", (subscription_id, consumer_id)
            )
        self._sql.execute("DELETE FROM consumers WHERE id = ?", (consumer_id,))
        return subscription_ids

    def _remove_subscription(self, subscription_id: int) -> None:
        self._remove_deliveries(subscription_id)
        self._sql.execute("DELETE FROM subscriptions WHERE id = ?", (subscription_id,))

    def _remove_deliveries(self, subscription_id: int, *, before: int = 2**63 - 1) -> None:
        rows = self._sql.execute(
            "SELECT message_id FROM deliveries WHERE subscription_id = ? AND message_id < ?", (subscription_id, before)
        ).fetchall()
        for (message_id,) in rows:
            self._settle_message(message_id)
        self._sql.execute(
            "DELETE FROM deliveries WHERE subscription_id = ? AND message_id < ?", (subscription_id, before)
        )


def _row(row: tuple[int, str | None, bytes, bytes]) -> Row:
    message_id, key, value, properties = row
    return Row(message_id, key, value, _decode_properties(properties))


def _file_at(path: Path | None) -> tuple[int, int] | None:
    """What tells the file at `path` from one that is put there later; None without one."""
    try:
        status = None if path is None else path.stat()
    except OSError:
        return None
    return None if status is None else (status.st_dev, status.st_ino)


@contextmanager
def _mapped_errors(path: Path | None = None) -> Iterator[None]:
    """SQLite's errors in the words of the port."""
    where = "" if path is None else f" {path}"
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise ClosedError(f"the local broker was closed ({error})") from error
    except sqlite3.OperationalError as error:
        raise BrokerUnavailableError(f"the local broker's database{where} cannot be used: {error}") from error
    except sqlite3.Error as error:
        raise BrokerError(f"the local broker's database{where} is damaged or no database: {error}") from error
