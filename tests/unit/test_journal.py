"""The journal of a process, its reports, and the gate for suspects."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from pulsartasks.crashes import FINISHED_FOR, REMEMBERED_FOR, CrashLedger, CrashReport, Trace, message_name
from pulsartasks.worker.gate import Gate
from pulsartasks.worker.journal import Journal, JournalView, dead_journal, journals
from tests.services import wait_until


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journals", threads=2)


def test_journal_tells_what_runs_waits_and_has_just_finished(journal: Journal) -> None:
    journal.begin("mail/1", retries=0, alone=True, time_limit=None)
    journal.postpone("mail/2", 3)
    journal.postpone("mail/3", 1)
    journal.finish("mail/3", "mail/17:4:-1:-1")

    report = journal.report()

    assert report.traces == [Trace("mail/1", running=True, alone=True), Trace("mail/2", retries=3, cause="none")]
    assert report.finished == ["mail/17:4:-1:-1"]


def test_what_ended_is_not_reported(journal: Journal) -> None:
    journal.begin("mail/1", retries=0, alone=False, time_limit=None)
    journal.end()

    assert journal.report().traces == []


def test_threads_do_not_disturb_each_other(journal: Journal) -> None:
    journal.begin("mail/1", retries=0, alone=False, time_limit=None)
    other = threading.Thread(
        target=journal.begin, args=["mail/2"], kwargs={"retries": 1, "alone": False, "time_limit": 9.0}
    )
    other.start()
    other.join()

    journal.end()

    assert [trace.id for trace in journal.report().traces] == ["mail/2"]


def test_journal_of_the_living_is_not_taken_for_that_of_the_dead(journal: Journal) -> None:
    with dead_journal(journal.path) as report:
        assert report is None
    assert journal.path.exists()


def test_journal_of_the_dead_is_reported_and_removed(journal: Journal) -> None:
    journal.begin("mail/1", retries=0, alone=False, time_limit=None)
    journal.let_go()

    with dead_journal(journal.path) as report:
        assert report is not None
        assert (report.process, [trace.id for trace in report.traces]) == (journal.process, ["mail/1"])

    assert journals(journal.path.parent) == []


def test_journal_stays_until_it_could_be_reported(journal: Journal) -> None:
    journal.let_go()

    with pytest.raises(ConnectionError), dead_journal(journal.path):
        raise ConnectionError

    assert journals(journal.path.parent) == [journal.path]


def test_file_that_is_no_journal_reports_nothing(tmp_path: Path) -> None:
    path = tmp_path / "odd.journal"
    path.write_bytes(b"anything")

    with dead_journal(path) as report:
        assert report is not None
        assert (report.traces, report.finished) == ([], [])


def test_run_past_its_limit_is_convicted_and_its_neighbours_are_not(journal: Journal) -> None:
    journal.begin("mail/1", retries=0, alone=False, time_limit=1e-9)
    other = threading.Thread(
        target=journal.begin, args=["mail/2"], kwargs={"retries": 0, "alone": False, "time_limit": 60.0}
    )
    other.start()
    other.join()

    assert JournalView(journal.path).convict() == ["mail/1"]
    assert {trace.id: trace.cause for trace in journal.report().traces} == {"mail/1": "time limit", "mail/2": "none"}


def test_runs_that_begin_together_are_convicted_together(journal: Journal) -> None:
    slots = []

    def begin(id_: str) -> None:
        journal.begin(id_, retries=0, alone=False, time_limit=None)
        slots.append(journal.slot)

    for id_ in ("mail/1", "mail/2"):
        thread = threading.Thread(target=begin, args=[id_])
        thread.start()
        thread.join()
    view = JournalView(journal.path)
    assert view.convict() == []

    journal.limit(slots, 0.0)

    assert view.convict() == ["mail/1", "mail/2"]


def test_who_is_killed_on_purpose_leaves_no_suspects(journal: Journal) -> None:
    journal.begin("mail/1", retries=0, alone=False, time_limit=None)

    JournalView(journal.path).excuse()

    ledger = CrashLedger()
    ledger.apply(journal.report())
    assert ledger.stories == {}


def test_closed_journal_leaves_nothing_behind(journal: Journal, tmp_path: Path) -> None:
    journal.close()

    assert list(tmp_path.iterdir()) == []


def running(*names: str, alone: bool = False) -> list[Trace]:
    return [Trace(name, running=True, alone=alone) for name in names]


def test_report_that_comes_twice_counts_once() -> None:
    ledger = CrashLedger()
    for _ in range(2):
        ledger.apply(CrashReport("one", 1.0, running("mail/1")))

    assert ledger.stories["mail/1"].crashes == 1


def test_second_crash_beside_others_proves_nothing() -> None:
    ledger = CrashLedger()
    for process in ("one", "two", "three"):
        ledger.apply(CrashReport(process, 1.0, running("mail/1", "mail/2")))

    assert ledger.stories["mail/1"].crashes == 1


def test_what_ran_by_itself_in_its_process_was_alone() -> None:
    ledger = CrashLedger()
    for process in ("one", "two"):
        ledger.apply(CrashReport(process, 1.0, running("mail/1")))

    assert ledger.stories["mail/1"].crashes == 2


def test_settled_message_has_no_story_any_more() -> None:
    ledger = CrashLedger()
    ledger.apply(CrashReport("one", 1.0, running("mail/1")))

    ledger.apply(CrashReport(settled="mail/1"))

    assert ledger.stories == {}


def test_old_reports_are_forgotten() -> None:
    ledger = CrashLedger()
    ledger.apply(CrashReport("one", 1.0, running("mail/1"), ["mail/17:4:-1:-1"]))

    ledger.forget(1.5 + FINISHED_FOR)
    assert (set(ledger.stories), ledger.finished) == ({"mail/1"}, {})
    ledger.forget(1.5 + REMEMBERED_FOR)
    assert ledger.stories == {}


def test_long_or_odd_ids_have_a_name_that_fits() -> None:
    for id_ in ("x" * 10_000, "\N{SNOWMAN}" * 100, "\ud800"):
        assert len(message_name("mail", id_).encode()) == 64


def test_suspect_waits_for_the_others_and_they_for_it() -> None:
    gate = Gate()
    events: list[str] = []
    gate.enter()

    def suspect() -> None:
        gate.close()
        events.append("suspect")
        gate.open()

    def other() -> None:
        gate.enter()
        events.append("other")
        gate.leave()

    threads = [threading.Thread(target=suspect)]
    threads[0].start()
    wait_until(lambda: gate.closed, "the gate was not closed")
    threads.append(threading.Thread(target=other))
    threads[1].start()
    events.append("first")
    gate.leave()
    for thread in threads:
        thread.join(10)

    assert events == ["first", "suspect", "other"]


def test_nothing_begins_behind_a_stopped_gate_and_what_waited_there_goes() -> None:
    gate = Gate()
    begun: list[bool] = []
    gate.enter()
    threads = [threading.Thread(target=lambda: begun.append(gate.close())) for _ in range(2)]
    threads.append(threading.Thread(target=lambda: begun.append(gate.enter())))
    for thread in threads:
        thread.start()
    wait_until(lambda: gate.closed, "the gate was not closed")

    gate.stop()
    for thread in threads:
        thread.join(10)

    assert begun == [False] * 3
    gate.leave()
    assert (gate.enter(), gate.close()) == (False, False)


def test_report_of_more_attempts_than_can_be_counted_is_none() -> None:
    report = msgspec.json.encode({"process": "p", "traces": [{"id": "mail/1", "running": True, "retries": 2**33}]})

    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(report, type=CrashReport)
