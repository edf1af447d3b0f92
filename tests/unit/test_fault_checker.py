"""The fault suite's checker finds each kind of harm in a record that has it, and nothing in one that has none."""

from __future__ import annotations

from itertools import count

import pytest

from tests.faults.checker import ACK_WINDOW, Verdict, check
from tests.faults.entries import Entry, Kind
from tests.faults.plan import RETRY_DELAY, Call

PLAIN, DELAYED, RETRIED, FIRST, SECOND, RETRIED_IN_PLACE = range(6)
CALLS = {
    PLAIN: Call(),
    DELAYED: Call(countdown=5.0),
    RETRIED: Call(failures=1),
    FIRST: Call(key="k"),
    SECOND: Call(key="k"),
    RETRIED_IN_PLACE: Call(key="other", failures=1),
}


class Story:
    """A record, made up: instants are seconds from its beginning."""

    def __init__(self, *numbers: int) -> None:
        self._ids = count(1)
        self._entries: list[Entry] = []
        for number in numbers:
            self.sent(number)

    def sent(self, number: int, at: float = 0.0, confirmed: float | None = 0.1) -> Story:
        due = at + CALLS[number].countdown if CALLS[number].countdown else 0.0
        sending = next(self._ids)
        self._entries.append(Entry(Kind.SENT, at, number, run=sending, until=due))
        if confirmed is not None:
            self._entries.append(Entry(Kind.CONFIRMED, confirmed, number, run=sending))
        return self

    def ran(
        self, number: int, began: float, ended: float | None, *, attempt: int = 1, pid: int = 1, done: bool = True
    ) -> Story:
        run = next(self._ids)
        self._entries.append(Entry(Kind.BEGAN, began, number, attempt, pid, run))
        if ended is not None:
            self._entries.append(Entry(Kind.DONE if done else Kind.RAISED, ended, number, attempt, pid, run))
        return self

    def killed(self, pid: int, at: float) -> Story:
        self._entries.append(Entry(Kind.KILLED, at, pid=pid))
        return self

    def stopped(self, pid: int, at: float) -> Story:
        self._entries.append(Entry(Kind.STOPPED, at, pid=pid))
        return self

    def outage(self, at: float, until: float, *, pid: int = 0, acks: float = 0.25) -> Story:
        self._entries.append(Entry(Kind.OUTAGE, at, pid=pid, run=int(acks * 1000), until=until))
        return self

    def verdict(self, *dead: int, exact: bool = True) -> Verdict:
        expected = len({entry.number for entry in self._entries if entry.kind is Kind.SENT})
        return check(self._entries, CALLS.__getitem__, expected, dead, exact=exact)


def test_good_run_has_no_complaints() -> None:
    story = Story(*CALLS).ran(PLAIN, 1, 2).ran(DELAYED, 5, 6).ran(FIRST, 1, 2).ran(SECOND, 2, 3)
    story.ran(RETRIED, 1, 2, done=False).ran(RETRIED, 2 + RETRY_DELAY, 3, attempt=2)
    story.ran(RETRIED_IN_PLACE, 1, 2, done=False).ran(RETRIED_IN_PLACE, 2 + RETRY_DELAY, 3, attempt=2)

    verdict = story.verdict()

    assert verdict.complaints == []
    assert (verdict.tasks, verdict.runs, verdict.duplicates) == (6, 8, 0)


def test_confirmed_task_that_never_ran_is_lost() -> None:
    verdict = Story(PLAIN).verdict()

    assert verdict.lost == [PLAIN]
    assert verdict.complaints == ["1 lost: 0"]


def test_task_that_only_began_or_failed_is_lost() -> None:
    verdict = Story(PLAIN, RETRIED).ran(PLAIN, 1, None).killed(1, 2).ran(RETRIED, 1, 2, done=False, pid=2).verdict()

    assert verdict.lost == [PLAIN, RETRIED]


def test_task_that_was_never_confirmed_is_not_lost_but_missed() -> None:
    verdict = Story().sent(PLAIN, confirmed=None).verdict()

    assert verdict.lost == []
    assert verdict.complaints == ["only 0 of 1 tasks were confirmed"]


def test_task_that_ran_and_that_nobody_sent_is_complained_about() -> None:
    assert Story().ran(PLAIN, 1, 2).verdict().complaints == ["1 never sent: 0"]


def test_dead_letter_is_neither_done_nor_lost_but_complained_about() -> None:
    verdict = Story(PLAIN).verdict(PLAIN)

    assert (verdict.lost, verdict.dead) == ([], 1)
    assert verdict.complaints == ["1 dead letters"]


def test_delayed_task_before_its_instant_is_early() -> None:
    assert Story(DELAYED).ran(DELAYED, 4.999, 6).verdict().complaints == ["1 early: 1"]


def test_retry_before_its_delay_is_early() -> None:
    story = Story(RETRIED).ran(RETRIED, 1, 2, done=False).ran(RETRIED, 2 + RETRY_DELAY - 0.01, 3, attempt=2)

    assert story.verdict().complaints == ["1 early: 2"]


def test_task_begun_before_the_one_before_it_of_its_key_was_done_is_out_of_order() -> None:
    swapped = Story(FIRST, SECOND).ran(SECOND, 1, 2).ran(FIRST, 2, 3).verdict()
    passed = Story(FIRST, SECOND).ran(FIRST, 1, None).killed(1, 2).ran(SECOND, 3, 4, pid=2).ran(FIRST, 4, 5, pid=2)

    assert swapped.complaints == ["1 out of order: 4"]
    assert passed.verdict().complaints == ["1 out of order: 4"]


def test_two_of_a_key_at_once_are_out_of_order_also_when_one_runs_again() -> None:
    story = Story(FIRST, SECOND).ran(FIRST, 1, 2).ran(SECOND, 2, 4).ran(FIRST, 3, 5, pid=2).killed(1, 2.1)

    assert story.verdict().disordered == [FIRST]


def test_what_ran_when_the_connection_was_lost_may_overlap_its_redelivery() -> None:
    story = Story(FIRST).ran(FIRST, 1, 4).ran(FIRST, 2, 3, pid=2).outage(1.5, 1.6)

    assert story.verdict().complaints == []


def test_second_run_without_a_fault_is_unexplained() -> None:
    verdict = Story(PLAIN).ran(PLAIN, 1, 2).ran(PLAIN, 3, 4).verdict()

    assert (verdict.duplicates, verdict.unexplained) == (1, [PLAIN])
    assert "1 run twice without a reason: 0" in verdict.complaints
    assert "1 duplicates, more than 0 + 0" in verdict.complaints


def test_second_run_is_not_explained_by_a_fault_of_another_task() -> None:
    story = Story(PLAIN, FIRST).ran(PLAIN, 1, 2).ran(PLAIN, 3, 4, pid=2).ran(FIRST, 1, None).killed(1, 3)
    story.ran(FIRST, 4, 5, pid=2)

    verdict = story.verdict()

    assert (verdict.duplicates, verdict.in_flight) == (2, 1)
    assert verdict.unexplained == [PLAIN]


def test_what_ran_in_a_killed_process_may_run_again_once() -> None:
    story = Story(PLAIN).ran(PLAIN, 1, None).killed(1, 2).ran(PLAIN, 3, 4, pid=2)

    verdict = story.verdict()
    again = story.ran(PLAIN, 5, 6, pid=2).verdict()

    assert (verdict.complaints, verdict.in_flight, verdict.unsure_acks) == ([], 1, 0)
    assert again.unexplained == [PLAIN]


@pytest.mark.parametrize(("before", "explained"), [(ACK_WINDOW - 0.01, True), (ACK_WINDOW + 0.01, False)])
def test_what_ended_just_before_the_kill_may_run_again(before: float, explained: bool) -> None:
    verdict = Story(PLAIN).ran(PLAIN, 1, 2).killed(1, 2 + before).ran(PLAIN, 3, 4, pid=2).verdict()

    assert verdict.unsure_acks == int(explained)
    assert verdict.unexplained == ([] if explained else [PLAIN])


def test_kill_of_another_process_explains_nothing() -> None:
    verdict = Story(PLAIN).ran(PLAIN, 1, 2).killed(2, 2).ran(PLAIN, 6, 7, pid=3).verdict(exact=False)

    assert verdict.unexplained == [PLAIN]


@pytest.mark.parametrize(("exact", "complaints"), [(True, 2), (False, 0)])
def test_second_run_of_what_the_broker_held_is_counted_apart_and_is_the_fault_of_pulsar_alone(
    exact: bool, complaints: int
) -> None:
    story = Story(PLAIN, DELAYED).ran(PLAIN, 1, None, pid=3).killed(3, 1.9).ran(PLAIN, 4, 5)
    story.ran(DELAYED, 5, 6).ran(DELAYED, 5, 6, pid=2)

    verdict = story.verdict(exact=exact)

    assert (verdict.held, verdict.unexplained) == ([DELAYED], [])
    assert len(verdict.complaints) == complaints


def test_any_of_those_without_a_fault_are_too_many() -> None:
    story = Story(DELAYED, RETRIED).ran(DELAYED, 5, 6).ran(DELAYED, 5, 6, pid=2)
    story.ran(RETRIED, 1, 2, done=False).ran(RETRIED, 3, 4, attempt=2).ran(RETRIED, 3, 4, attempt=2, pid=2)

    complaints = story.verdict(exact=False).complaints

    assert f"2 delayed ones run twice without a reason: [{DELAYED}, {RETRIED}]" in complaints


@pytest.mark.parametrize(("pid", "explained"), [(0, True), (1, True), (2, False)])
def test_outage_explains_what_ran_meanwhile_in_whom_it_struck(pid: int, explained: bool) -> None:
    verdict = Story(PLAIN).ran(PLAIN, 1, 3).outage(2, 2.5, pid=pid).ran(PLAIN, 4, 5, pid=2).verdict()

    assert verdict.unexplained == ([] if explained else [PLAIN])


@pytest.mark.parametrize(("began", "ended"), [(0.5, 1.0), (4.0, 5.0)])
def test_outage_explains_nothing_that_was_settled_before_or_began_after(began: float, ended: float) -> None:
    story = Story(PLAIN).ran(PLAIN, began, ended).ran(PLAIN, 6, 7, pid=2).outage(2, 3, acks=0.9)

    assert story.verdict().unexplained == [PLAIN]


def test_sending_in_doubt_explains_a_second_run() -> None:
    again = Story().sent(PLAIN, 0.0, confirmed=None).sent(PLAIN, 1.0, confirmed=1.1)
    during = Story().sent(PLAIN, 0.0, confirmed=2.0).outage(1.0, 1.5)

    for story in (again, during):
        verdict = story.ran(PLAIN, 3, 4).ran(PLAIN, 5, 6).verdict()
        assert (verdict.complaints, verdict.in_flight) == ([], 1)


@pytest.mark.parametrize("number", [RETRIED, RETRIED_IN_PLACE])
def test_sending_in_doubt_explains_all_attempts_of_the_copy(number: int) -> None:
    story = Story().sent(number, 0.0, confirmed=None).sent(number, 1.0, confirmed=1.1)
    for began in (2.0, 3.0):
        story.ran(number, began, began + 0.1, done=False).ran(number, began + 0.5, began + 0.6, attempt=2)

    verdict = story.verdict()

    assert (verdict.complaints, verdict.duplicates, verdict.in_flight) == ([], 2, 2)


def test_attempt_that_runs_again_explains_its_retry_running_again() -> None:
    story = Story(RETRIED).ran(RETRIED, 1, None).killed(1, 1.5)
    for began in (2.0, 3.0):
        story.ran(RETRIED, began, began + 0.1, pid=2, done=False)
        story.ran(RETRIED, began + 0.5, began + 0.6, pid=2, attempt=2)

    verdict = story.verdict()

    assert verdict.duplicates == 3
    assert verdict.held == [RETRIED]  # three runs of attempt 1, where one kill allows two


def test_attempt_waiting_in_place_begins_anew_after_a_kill() -> None:
    story = Story(RETRIED_IN_PLACE).ran(RETRIED_IN_PLACE, 1, 1.1, done=False).killed(1, 1.9)
    story.ran(RETRIED_IN_PLACE, 2, 2.1, pid=2, done=False).ran(RETRIED_IN_PLACE, 3, 4, pid=2, attempt=2)

    verdict = story.verdict()

    assert verdict.complaints == []
    assert (verdict.duplicates, verdict.in_flight) == (1, 2)


def test_crash_in_a_retry_in_place_has_all_attempts_made_anew() -> None:
    story = Story(RETRIED_IN_PLACE).ran(RETRIED_IN_PLACE, 1, 1.1, done=False)
    story.ran(RETRIED_IN_PLACE, 1.5, None, attempt=2).killed(1, 1.9)
    story.ran(RETRIED_IN_PLACE, 2, 2.1, pid=2, done=False).ran(RETRIED_IN_PLACE, 3, 4, pid=2, attempt=2)

    verdict = story.verdict()

    assert verdict.complaints == []
    assert (verdict.duplicates, verdict.in_flight) == (2, 3)


def test_attempt_in_place_may_be_numbered_on_after_a_kill() -> None:
    story = Story(RETRIED_IN_PLACE).ran(RETRIED_IN_PLACE, 1, 1.1, done=False).killed(1, 1.2)
    story.ran(RETRIED_IN_PLACE, 1.25, 1.3, pid=2, done=False).ran(RETRIED_IN_PLACE, 1.7, 1.8, pid=2, attempt=3)

    assert story.verdict().complaints == []


def test_retry_in_place_before_its_delay_is_early() -> None:
    story = Story(RETRIED_IN_PLACE).ran(RETRIED_IN_PLACE, 1, 1.1, done=False)
    story.ran(RETRIED_IN_PLACE, 1.3, 1.4, attempt=2)

    assert story.verdict().early == [RETRIED_IN_PLACE]


def test_third_run_of_a_retry_in_place_without_a_fault_is_unexplained() -> None:
    story = Story(RETRIED_IN_PLACE).ran(RETRIED_IN_PLACE, 1, 1.1, done=False)
    for began in (2.0, 3.0):
        story.ran(RETRIED_IN_PLACE, began, began + 0.1, attempt=2)

    assert story.verdict().unexplained == [RETRIED_IN_PLACE]


def test_stop_in_order_explains_only_what_waited_in_its_place() -> None:
    story = Story(RETRIED_IN_PLACE, PLAIN).ran(RETRIED_IN_PLACE, 1, 1.1, done=False).ran(PLAIN, 1, 1.2)
    story.stopped(1, 1.2).ran(RETRIED_IN_PLACE, 2, 2.1, pid=2, done=False).ran(PLAIN, 2, 3, pid=2)
    story.ran(RETRIED_IN_PLACE, 3, 4, pid=2, attempt=2)

    assert story.verdict().unexplained == [PLAIN]


def test_more_attempts_than_planned_are_unexplained() -> None:
    story = Story(PLAIN).ran(PLAIN, 1, 2, done=False).ran(PLAIN, 3, 4, attempt=2)

    assert story.verdict().unexplained == [PLAIN]
