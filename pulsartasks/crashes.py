"""What is known of messages whose worker process died: rules that every worker applies to the same reports.

A report says what a dead process had in its hands. All workers read all reports in the same order, so they come to the
same conclusions without asking one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Literal

import msgspec

Cause = Literal["crash", "time limit", "none"]

REMEMBERED_FOR = 7 * 86_400.0
"""Seconds for which a report counts; a message that long unsettled begins anew."""
FINISHED_FOR = 300.0
"""Seconds after a report for which what had finished is not run again: it comes back at once, if it does."""


LONGEST_NAME = 200
"""Bytes of an id in a report; a longer one is known by its digest."""


def message_name(subscription: str, id_: str) -> str:
    """What one subscription's message is called in reports, the same in every delivery and attempt.

    >>> message_name("mail", "01890a5d-ac96-774b-bcce-b302099a8057")
    'mail/01890a5d-ac96-774b-bcce-b302099a8057'
    """
    name = f"{subscription}/{id_}"
    if name.isascii() and len(name) <= LONGEST_NAME:
        return name
    return sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message in the hands of a process that died."""

    id: str
    """What `message_name` gives."""
    retries: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    """Attempts that had failed before."""
    running: bool = False
    """Else it waited in its place for its next attempt."""
    alone: bool = False
    """Nothing else was allowed to run beside it."""
    cause: Cause = "crash"
    """What the death has to do with it: ``none`` for the bystanders of a known culprit, or of an order to stop."""


class CrashReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """A dead process, or (with `settled`) the good end of what it left behind."""

    process: str = ""
    """Names the dead, so that what two finders report counts once."""
    at: float = 0.0
    """When it was found, in seconds since the epoch."""
    traces: list[Trace] = []
    finished: list[str] = []
    """``subscription/message id`` of what was settled, though the broker may not have heard of it."""
    settled: str = ""
    """The id of a message that is dealt with: what was reported of it is forgotten."""


@dataclass(slots=True)
class CrashStory:
    """What happened to one message so far."""

    crashes: int = 0
    """Deaths that count against it: its first, and those while it ran alone."""
    retries: int = 0
    """Attempts that failed in a process that has died since."""
    time_limit_hit: int | None = None
    """The attempt (0 for the first) that was ended by its hard time limit."""
    changed: float = 0.0


@dataclass(slots=True)
class CrashLedger:
    """All that reports have told.

    >>> ledger = CrashLedger()
    >>> both = [Trace("mail/1", running=True), Trace("mail/2", running=True)]
    >>> ledger.apply(CrashReport("first", 10.0, both))
    >>> ledger.apply(CrashReport("second", 11.0, [Trace("mail/1", running=True, alone=True)]))
    >>> ledger.stories["mail/1"].crashes, ledger.stories["mail/2"].crashes
    (2, 1)
    """

    stories: dict[str, CrashStory] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)
    """What must not run again, and when that was reported."""
    _processes: dict[str, float] = field(default_factory=dict)

    def apply(self, report: CrashReport) -> None:
        """Learn from a report; one that was learnt from before changes nothing."""
        if report.settled:
            self.stories.pop(report.settled, None)
        if not report.process or report.process in self._processes:
            return
        self._processes[report.process] = report.at
        running = sum(trace.running for trace in report.traces)
        for trace in report.traces:
            self._count(trace, alone=trace.alone or running == 1, at=report.at)
        self.finished.update(dict.fromkeys(report.finished, report.at))

    def forget(self, now: float) -> None:
        """Let go of what has become too old."""
        for old in list(_older(self._processes, now - REMEMBERED_FOR)):
            del self._processes[old]
        for old in list(_older(self.finished, now - FINISHED_FOR)):
            del self.finished[old]
        for id_ in [id_ for id_, story in self.stories.items() if story.changed < now - REMEMBERED_FOR]:
            del self.stories[id_]

    def _count(self, trace: Trace, *, alone: bool, at: float) -> None:
        guilty = trace.running and trace.cause != "none"
        if not guilty and not trace.retries:
            return
        story = self.stories.setdefault(trace.id, CrashStory())
        story.changed = at
        story.retries = max(story.retries, trace.retries)
        if guilty and trace.cause == "time limit":
            story.time_limit_hit = trace.retries
        elif guilty and (alone or not story.crashes):
            # Who ran beside others a second time did so before the first report was known: that proves nothing.
            story.crashes += 1


def _older(instants: dict[str, float], than: float) -> Iterator[str]:
    return (name for name, at in instants.items() if at < than)
