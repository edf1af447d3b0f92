"""What the broker has stored of producers that count their messages, so that none of these is stored twice."""

from __future__ import annotations

import sqlite3

from pulsartasks.message import Publication

DUPLICATE = -1
"""Stands for the id of a message that was there already."""

# Not part of the format: versions that do not know it go on without.
TABLE = """
CREATE TABLE IF NOT EXISTS sequences (
    topic_id INTEGER NOT NULL, producer TEXT NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (topic_id, producer)
) WITHOUT ROWID
"""


def advance(sql: sqlite3.Connection, topic_id: int, publication: Publication) -> bool:
    """Whether the publication is new, which makes its sequence the producer's last one on that topic."""
    advanced = sql.execute(
        "INSERT INTO sequences VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET last = excluded.last"
        " WHERE excluded.last > sequences.last",
        (topic_id, publication.producer, publication.sequence or 0),
    )
    return advanced.rowcount > 0
