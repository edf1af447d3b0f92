"""Protection from messages that kill their worker, and from running again what a dead worker had finished.

Each process keeps a `Journal`. Whoever finds one whose owner is dead publishes what it says, and all workers draw the
same conclusions from it (`pulsartasks.crashes`): what ran is a suspect and next runs alone, what did that too often is
given up, what had finished is acknowledged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

import msgspec
import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import Delivery
from pulsartasks.catalog import CRASHES
from pulsartasks.crashes import REMEMBERED_FOR, CrashLedger, CrashReport, CrashStory
from pulsartasks.errors import PulsarTasksError
from pulsartasks.serializers import UNREADABLE
from pulsartasks.worker.gate import Gate
from pulsartasks.worker.journal import Journal, dead_journal, journals
from pulsartasks.worker.notices import Notices

_log = structlog.get_logger("pulsartasks")
_decode = msgspec.json.Decoder(CrashReport).decode


class Guard:
    """The journal of this process and what is known from those of others.

    On a broker that ends with the process there is nobody to know anything, so all of it does nothing.
    """

    def __init__(self, app: PulsarTasks) -> None:
        self._app = app
        self._gate = Gate()
        self._ledger = CrashLedger()
        self._threads = 0
        self._journal_begun: Callable[[Path], object] = lambda _: None
        self._folder: Path | None = None
        self._journal: Journal | None = None
        self._notices = Notices(
            app,
            app.own_topic(CRASHES),
            kept_for=REMEMBERED_FOR,
            learn=self._learn,
            before=self._begin,
            idle=self._look_around,
        )

    def start(self, threads: int, journal_begun: Callable[[Path], object]) -> None:
        """Begin the journal, for so many threads, and to learn of the dead; returns before the broker is reached.

        Without a place for the journal, tasks run all the same and a warning says what is missing.
        """
        self._threads = threads
        self._journal_begun = journal_begun
        self._notices.start()

    def wait_until_known(self) -> None:
        """Returns when all deaths are known that were to be known."""
        self._notices.wait_until_known()

    def stop(self) -> None:
        """From now on let nothing begin, and learn of nobody."""
        self._gate.stop()
        self._notices.stop()

    def close(self, *, finished: bool) -> None:
        """End the journal. What still waits in its place is reported, so that its attempts go on counting elsewhere;
        what still runs, if not all is `finished`, is nobody's fault.
        """
        if self._journal is None:
            return
        self._journal.excuse()
        if not finished:
            return  # threads still write to it; whoever finds it reports it
        if self._journal.waiting():
            try:
                self._publish(self._journal.report())
            except PulsarTasksError:
                self._journal.let_go()
                return
        self._journal.close()

    def trim(self) -> None:
        if self._folder is not None:
            self._notices.trim()

    @property
    def alone(self) -> bool:
        """Whether a suspect runs alone, or is about to: nothing else begins."""
        return self._gate.closed

    # For each message

    def story(self, name: str) -> CrashStory | None:
        """What happened to the message before; None for nearly all."""
        return self._ledger.stories.get(name)

    def finished_elsewhere(self, subscription: str, delivery: Delivery) -> bool:
        """Whether a process settled the delivery and died before the broker knew."""
        known = self._ledger.finished
        return bool(known) and f"{subscription}/{delivery.message_id}" in known

    def begin(self, name: str, *, retries: int, time_limit: float | None, alone: bool) -> bool:
        """Before the run of a message; with `alone`, waits until nothing else runs, and nothing does until `end`.

        Whether it may begin: not if the worker stops.
        """
        if not (self._gate.close() if alone else self._gate.enter()):
            return False
        try:
            if self._journal is not None:
                self._journal.begin(name, retries=retries, alone=alone, time_limit=time_limit)
        except BaseException:  # nobody would open the gate again
            self._leave(alone=alone)
            raise
        return True

    @property
    def slot(self) -> int:
        """What this thread's run is known by to `limit`."""
        return 0 if self._journal is None else self._journal.slot

    def limit(self, slots: Iterable[int], time_limit: float | None) -> None:
        """What runs there begins together, and has so many seconds for it (None: any time)."""
        if self._journal is not None and time_limit is not None:
            self._journal.limit(slots, time_limit)

    def end(self, *, alone: bool) -> None:
        """After it."""
        if self._journal is not None:
            self._journal.end()
        self._leave(alone=alone)

    def postpone(self, name: str, retries: int) -> None:
        """The message waits in its place for its next attempt, after so many that failed."""
        if self._journal is not None:
            self._journal.postpone(name, retries)

    def settled(self, name: str, subscription: str, delivery: Delivery) -> None:
        """The message is dealt with; called just before the broker is told."""
        if self._journal is not None:
            self._journal.finish(name, f"{subscription}/{delivery.message_id}")
        if self._ledger.stories.pop(name, None) is not None:
            try:
                self._publish(CrashReport(settled=name))
            except PulsarTasksError as error:
                # Its result or dead letter stands; to run it again for this would be worse than to be remembered.
                _log.warning("notice.refused", topic=self._notices.topic, error=str(error))

    # Internals

    def _leave(self, *, alone: bool) -> None:
        if alone:
            self._gate.open()
        else:
            self._gate.leave()

    def _publish(self, report: CrashReport) -> None:
        self._notices.publish(msgspec.json.encode(report))

    def _learn(self, delivery: Delivery) -> None:
        try:
            self._ledger.apply(_decode(delivery.value))
        except UNREADABLE as error:
            _log.warning("notice.unreadable", topic=delivery.topic, error=str(error))

    def _begin(self) -> None:
        """Before all else: the journal, and the reports that are due."""
        address = self._app.broker.address
        if address is None:
            self._notices.stop()
            return
        if self._folder is None:
            digest = sha256(f"{address}\0{self._app.qualify(self._app.name)}".encode()).hexdigest()
            self._folder = state_folder() / digest[:16]
            try:
                self._journal = Journal(self._folder, self._threads)
            except OSError as error:
                _log.warning("journal.refused", folder=str(self._folder), error=str(error))
            else:
                self._journal_begun(self._journal.path)
        self._find_dead(self._folder)

    def _look_around(self) -> None:
        if self._folder is not None:
            self._find_dead(self._folder)
        self._ledger.forget(time.time())

    def _find_dead(self, folder: Path) -> None:
        own = None if self._journal is None else self._journal.path
        for path in journals(folder):
            if path != own:
                with dead_journal(path) as report:
                    if report is not None and (report.traces or report.finished):
                        self._publish(report)
                        running = [trace.id for trace in report.traces if trace.running]
                        _log.warning("death.reported", process=report.process, running=running)


def state_folder() -> Path:
    """Where journals are kept: ``PULSARTASKS_STATE_DIR``, else the user's own place for such things."""
    return Path(os.environ.get("PULSARTASKS_STATE_DIR") or Path.home() / ".local" / "state" / "pulsartasks")
