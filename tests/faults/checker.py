"""From what happened to a verdict: what was lost, early, out of order, run twice, and which of that a fault explains.

Pure: entries and a plan in, figures out. A duplicate is held against its own task: it is explained only if that task,
at some fault, was in flight or had just been acknowledged. So a bug cannot hide behind how many those were.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.faults.entries import Entry, Kind
from tests.faults.plan import RETRY_DELAY, Call, Plan

ACK_WINDOW = 0.5
"""Seconds before a kill in which an attempt that ended may not be settled yet: the client keeps acknowledgements for
0.1 s, and on a busy machine a retry is published, or an acknowledgement given to the client, only after some tenths."""


@dataclass(slots=True)
class Run:
    """An attempt."""

    number: int
    attempt: int
    pid: int
    began: float
    ended: float | None = None
    done: bool = False
    settled: float = float("inf")
    """From when on only its acknowledgement was missing."""


@dataclass(slots=True)
class Sending:
    began: float
    due: float
    confirmed: float | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A kill (of one process, without end) or an outage."""

    pid: int
    """0: it struck every process, and the publisher."""
    at: float
    until: float
    acks: float
    """Seconds before `at` whose acknowledgements may have been lost."""
    in_order: bool = False
    """The process stopped as it should, so that only what waited in its place for its next attempt is struck."""

    def strikes(self, run: Run) -> bool:
        """Whether it leaves the broker in doubt of the attempt."""
        if self.in_order:
            return self.pid == run.pid and run.ended is not None and run.settled == float("inf")
        mine = self.pid in (0, run.pid)
        return mine and run.began <= self.until and run.settled >= self.at - self.acks


@dataclass
class History:
    """The entries, put together."""

    runs: dict[int, list[Run]] = field(default_factory=lambda: defaultdict(list))
    """By task, in the order in which they began."""
    sendings: dict[int, list[Sending]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Fault] = field(default_factory=list)
    deaths: dict[int, float] = field(default_factory=dict)
    """When each killed process was killed."""

    @classmethod
    def read(cls, entries: Iterable[Entry], plan: Plan) -> History:
        history = cls()
        runs: dict[int, Run] = {}
        sendings: dict[tuple[int, int], Sending] = {}
        for entry in sorted(entries, key=lambda entry: (entry.at, entry.kind)):
            match entry.kind:
                case Kind.SENT:
                    sending = sendings[entry.run, entry.number] = Sending(entry.at, entry.until)
                    history.sendings[entry.number].append(sending)
                case Kind.CONFIRMED:
                    sendings[entry.run, entry.number].confirmed = entry.at
                case Kind.BEGAN:
                    run = runs[entry.run] = Run(entry.number, entry.attempt, entry.pid, entry.at)
                    history.runs[entry.number].append(run)
                case Kind.DONE | Kind.RAISED:
                    runs[entry.run].ended = entry.at
                    runs[entry.run].done = entry.kind is Kind.DONE
                case Kind.KILLED if entry.pid not in history.deaths:
                    history.deaths[entry.pid] = entry.at
                    history.faults.append(Fault(entry.pid, entry.at, float("inf"), ACK_WINDOW))
                case Kind.STOPPED:
                    history.faults.append(Fault(entry.pid, entry.at, float("inf"), 0.0, in_order=True))
                case Kind.OUTAGE:
                    history.faults.append(Fault(entry.pid, entry.at, entry.until, entry.run / 1000))
        for number, found in history.runs.items():
            _note_settled(found, in_place=plan(number).key is not None)
        return history

    def confirmed(self) -> set[int]:
        """The tasks that a publisher was promised."""
        return {number for number, sent in self.sendings.items() if any(s.confirmed is not None for s in sent)}

    def done(self) -> set[int]:
        return {number for number, runs in self.runs.items() if any(run.done for run in runs)}

    def end(self, run: Run) -> float:
        """When the attempt ended, at the latest with its process."""
        return run.ended if run.ended is not None else self.deaths.get(run.pid, float("inf"))


@dataclass(frozen=True)
class Verdict:
    """What became of the tasks of a run."""

    expected: int
    tasks: int
    """Confirmed by the broker."""
    runs: int
    faults: int
    lost: Sequence[int]
    early: Sequence[int]
    disordered: Sequence[int]
    """Begun before the one before it of its key was done, or while another of its key ran."""
    dead: int
    """Dead letters."""
    duplicates: int
    """Attempts beyond the first of each number of attempt."""
    in_flight: int
    """Attempts and sendings in flight at a fault, and the planned attempts behind them: what may come once more."""
    unsure_acks: int
    """The same for attempts that had ended then, but whose acknowledgement may not have been stored."""
    held: Sequence[int]
    """Tasks that the broker held for a while (delayed or retried), with more duplicates than faults of their own."""
    unexplained: Sequence[int]
    """Other tasks with more duplicates than faults of their own."""
    exact: bool
    """The broker gives nothing out twice by itself."""
    unsent: Sequence[int] = ()
    """Ran, and nobody ever sent them."""

    @property
    def complaints(self) -> list[str]:
        """What must not be; empty after a good run."""
        found: dict[str, Sequence[int]] = {
            "lost": self.lost,
            "early": self.early,
            "never sent": self.unsent,
            "out of order": self.disordered,
            "run twice without a reason": self.unexplained,
        }
        complaints = [f"{len(n)} {what}: {', '.join(map(str, n[:10]))}" for what, n in found.items() if n]
        if self.tasks < self.expected:
            complaints.append(f"only {self.tasks} of {self.expected} tasks were confirmed")
        if len(self.held) > (0 if self.exact else 3 * self.faults):
            complaints.append(f"{len(self.held)} delayed ones run twice without a reason: {self.held[:10]}")
        if self.dead:
            complaints.append(f"{self.dead} dead letters")
        if self.duplicates > self.in_flight + self.unsure_acks + (0 if self.exact else len(self.held)):
            complaints.append(f"{self.duplicates} duplicates, more than {self.in_flight} + {self.unsure_acks}")
        return complaints


def check(
    entries: Iterable[Entry], plan: Plan, expected: int, dead: Collection[int] = (), *, exact: bool = True
) -> Verdict:
    """The verdict on a run of `expected` tasks that has come to rest, of which `dead` ended as dead letters.

    `exact`: the broker gives no message out twice by itself. Pulsar does so with messages that it held until they were
    due, while consumers come and go (seen on 4.0.8: 12 times in 68 kills).
    """
    history = History.read(entries, plan)
    confirmed = history.confirmed()
    extra = {number: _extra(runs, plan(number)) for number, runs in history.runs.items()}
    reasons = {number: _Reasons.of(number, history) for number in history.sendings.keys() | history.runs.keys()}
    doubtful = sorted(
        number
        for number, counts in extra.items()
        if any(count > reasons[number].allow(attempt, plan(number)) for attempt, count in counts.items())
    )
    return Verdict(
        expected=expected,
        tasks=len(confirmed),
        runs=sum(len(runs) for runs in history.runs.values()),
        faults=len(history.faults),
        lost=sorted(confirmed - history.done() - set(dead)),
        early=sorted({number for number, runs in history.runs.items() if _is_early(number, runs, history, plan)}),
        unsent=sorted(history.runs.keys() - history.sendings.keys()),
        disordered=sorted(set(_disordered(history, plan))),
        dead=len(set(dead)),
        duplicates=sum(sum(counts.values()) for counts in extra.values()),
        in_flight=sum(_following(r.in_flight, plan(number).failures) for number, r in reasons.items()),
        unsure_acks=sum(_following(r.unsure_acks, plan(number).failures) for number, r in reasons.items()),
        held=[number for number in doubtful if _is_held(plan(number))],
        unexplained=[number for number in doubtful if not _is_held(plan(number))],
        exact=exact,
    )


@dataclass
class _Reasons:
    """Why a task may run again: by attempt, where 0 stands for its sending."""

    in_flight: Counter[int] = field(default_factory=Counter)
    unsure_acks: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, number: int, history: History) -> _Reasons:
        reasons = cls()
        for sending in history.sendings.get(number, []):
            end = sending.confirmed or float("inf")
            reasons.in_flight[0] += sum(f.pid == 0 and sending.began <= f.until and end >= f.at for f in history.faults)
        reasons.in_flight[0] += max(0, len(history.sendings.get(number, [])) - 1)
        for run in history.runs.get(number, []):
            for fault in history.faults:
                if fault.strikes(run):
                    (reasons.in_flight if run.settled > fault.at else reasons.unsure_acks)[run.attempt] += 1
        return reasons

    def allow(self, attempt: int, call: Call) -> int:
        """How many more runs of `attempt` there may be: what makes an earlier attempt run twice makes this one, too."""
        allowed = sum(n for counter in (self.in_flight, self.unsure_acks) for a, n in counter.items() if a <= attempt)
        if call.key is not None:  # all its attempts are counted as one, and a second sending makes each of them
            allowed += self.in_flight[0] * call.failures
        return allowed


def _following(counts: Counter[int], failures: int) -> int:
    """What is in doubt at one attempt makes that and all later ones run again."""
    return sum(n * (failures + 2 - max(1, attempt)) for attempt, n in counts.items())


def _note_settled(runs: Sequence[Run], *, in_place: bool) -> None:
    for position, run in reversed(list(enumerate(runs))):
        if run.ended is None:
            continue
        if run.done or not in_place:
            run.settled = run.ended
        else:  # settled with the last attempt of the same process; if that dies before, all are made anew
            following = (later.settled for later in runs[position + 1 :] if later.pid == run.pid)
            run.settled = next(following, float("inf"))


def _extra(runs: Sequence[Run], call: Call) -> dict[int, int]:
    """By attempt, how many runs there were beyond those that were planned."""
    if (
        call.key is not None
    ):  # retried in place: after a crash the number of the attempt may begin anew, or leave one out
        return {call.failures + 1: max(0, len(runs) - call.failures - 1)}
    counts = Counter(run.attempt for run in runs)
    return {attempt: count - (attempt <= call.failures + 1) for attempt, count in counts.items()}


def _is_held(call: Call) -> bool:
    return call.countdown > 0 or (call.failures > 0 and call.key is None)


def _is_early(number: int, runs: Sequence[Run], history: History, plan: Plan) -> bool:
    due = min((sending.due for sending in history.sendings.get(number, [])), default=0.0)
    if runs[0].began < due:
        return True
    if plan(number).key is not None:  # in place: the process that saw it fail is the one that waits
        failed_here = {run.pid: run.ended for run in runs if run.ended is not None and not run.done}
        return any(run.began < ended + RETRY_DELAY for run in runs if (ended := failed_here.get(run.pid)) is not None
                   and run.began > ended)  # fmt: skip
    for attempt in range(1, plan(number).failures + 1):
        failed = min((run.ended for run in runs if run.attempt == attempt and run.ended is not None), default=None)
        again = min((run.began for run in runs if run.attempt == attempt + 1), default=None)
        if again is not None and (failed is None or again < failed + RETRY_DELAY):
            return True
    return False


def _disordered(history: History, plan: Plan) -> Iterator[int]:
    keys: dict[str, list[int]] = defaultdict(list)
    for number in sorted(history.runs):
        if (key := plan(number).key) is not None:
            keys[key].append(number)
    for numbers in keys.values():
        for one, next_one in pairwise(numbers):
            done = min((run.ended for run in history.runs[one] if run.ended is not None and run.done), default=None)
            if done is None or history.runs[next_one][0].began < done:
                yield next_one
        yield from _overlapping(history, [run for number in numbers for run in history.runs[number]])


def _overlapping(history: History, runs: list[Run]) -> Iterator[int]:
    """Tasks of one key that ran beside another, unless that one may go on: its connection was lost while it ran."""
    runs.sort(key=lambda run: run.began)
    for one, next_one in pairwise(runs):
        excused = any(f.strikes(one) for f in history.faults if f.until != float("inf"))
        if history.end(one) > next_one.began and not excused:
            yield next_one.number
