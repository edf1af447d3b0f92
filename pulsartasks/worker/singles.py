"""Calls that may have been sent twice under one id, by two that did not know of each other: one of them runs.

That is what follows a chord: whoever counted its parts may die after it had sent the body, and its successor counts and
sends it anew. So a worker that has such a call claims it for the message that it got, on ``<app>.chord-bodies``, and
reads back to its own claim: the first one counts. The same message, delivered again, runs again.
"""

from __future__ import annotations

from pulsartasks import message
from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery
from pulsartasks.catalog import CHORD_BODIES
from pulsartasks.worker.once import Recent, recorded_key
from pulsartasks.worker.records import Records
from pulsartasks.worker.run import Run, run_key

REMEMBERED_FOR = 3600.0
"""Seconds between two copies of which one is recognised: a successor counts a chord within seconds."""


class Singles:
    """Knows which message of such a call is the one to run; shared by all threads of a worker process."""

    def __init__(self, app: PulsarTasks) -> None:
        self._first = Recent[str](REMEMBERED_FOR)
        self._records = Records(app, CHORD_BODIES, window=REMEMBERED_FOR, note=self._note)

    def claim(self, run: Run) -> bool:
        """Whether it is this message's turn; waits while the broker cannot say.

        Raises:
            ClosedError: the worker stops and it is not known; the message has to be given back.
        """
        key = run_key(run)
        # A retry is another message of the one that claimed it.
        mine = run.headers.get(message.ORIGIN_MESSAGE_ID) or run.delivery.message_id
        if self._first.find(key) is None:
            self._records.until_done(lambda: self._records.write(key, **{message.ORIGIN_MESSAGE_ID: mine}))
            self._records.until_done(self._records.catch_up)
        return self._first.find(key) in (mine, None)

    def close(self) -> None:
        """Stop waiting for anything. Idempotent."""
        self._records.close()

    def _note(self, record: Delivery) -> None:
        key = recorded_key(record)
        if self._first.find(key) is None:
            self._first.add(key, record.properties.get(message.ORIGIN_MESSAGE_ID, ""))
