"""Chord: its body runs once after the last of its parts, also when workers die in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from msgspec import structs

from pulsartasks import ChordError, Ignore, InvalidArgumentsError, PulsarTasks, chain, chord, group
from pulsartasks.canvas import Place
from pulsartasks.message import SINGLE, TASK, TASK_ID, Publication, new_task_id
from pulsartasks.steps import messages
from pulsartasks.topics import COUNTER
from pulsartasks.worker import chords
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.conformance.test_canvas import PATIENCE, Sums
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(2)


@pytest.fixture
def sums(app: PulsarTasks) -> Sums:
    return Sums(app)


@pytest.fixture
def running(broker: BrokerUnderTest, sums: Sums, start_worker: Workers) -> Iterator[Sums]:
    """With a worker; all that it was told of chords is acknowledged in the end."""
    start_worker(sums.app)
    yield sums
    wait_until(lambda: broker.backlog(sums.app.chords, COUNTER) == 0, "the counter has not acknowledged all")


def test_body_has_the_values_of_all_parts_in_their_order(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task
    def numbers(given: list[int]) -> list[int]:
        return given

    start_worker(sums.app)
    result = chord((sums.add.s(n, n) for n in range(100)), numbers.s())()

    assert result.get(PATIENCE) == [2 * n for n in range(100)]
    assert result.parent is not None
    assert result.parent.get(PATIENCE) == [2 * n for n in range(100)]


def test_chord_is_written_in_any_of_celerys_ways(running: Sums) -> None:
    parts = [running.add.s(n, n) for n in range(10)]

    assert chord(parts, running.total.s()).delay().get(PATIENCE) == 90
    assert chord(parts)(running.total.s()).get(PATIENCE) == 90
    assert (group(parts) | running.total.s())().get(PATIENCE) == 90
    assert chord(parts, running.add.si(1, 1)).delay().get(PATIENCE) == 2
    assert chord(parts, running.total.s()).apply_async(task_id="its body").id == "its body"


def test_chord_of_nothing_or_of_one_gives_a_list_too(running: Sums) -> None:
    assert chord([], running.total.s()).delay().get(PATIENCE) == 0
    assert chord([running.add.s(1, 1)], running.total.s()).delay().get(PATIENCE) == 2


def test_chords_groups_and_chains_nest(running: Sums) -> None:
    add, total = running.add, running.total

    in_a_chain = add.s(1, 1) | group(add.s(1), add.s(2)) | total.s() | group(add.s(1), add.s(2)) | total.s()
    in_a_chord = chord([chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s()), add.s(0, 1)], total.s())
    one_after_the_other = group(add.s(1, 1), add.s(2, 2)) | group(total.s(), total.s()) | total.s()
    chords = chord([chord([add.s(n, n), add.s(n, 1)], total.s() | add.s(1)) for n in range(3)], total.s())

    assert in_a_chain.delay().get(PATIENCE) == 17
    assert in_a_chord.delay().get(PATIENCE) == 8
    assert one_after_the_other.delay().get(PATIENCE) == 12
    assert chords.delay().get(PATIENCE) == 15
    assert (group(add.s(1, 1), add.s(2, 2)) | group(total.s(), total.s())).delay().get(PATIENCE) == [6, 6]


def test_part_that_ends_in_a_group_gives_the_list_of_its_results(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task
    def flat(given: list[list[int]]) -> list[int]:
        return [number for each in given for number in each]

    start_worker(sums.app)
    add = sums.add

    result = chord([chain(add.s(1, 1), group(add.s(1), add.s(2))), group(add.s(5, 5)) | group(add.si(1, 1))], flat.s())

    assert result.delay().get(PATIENCE) == [3, 4, 2]


def test_what_is_linked_to_a_chord_is_linked_to_its_body(running: Sums) -> None:
    parts = chord([running.add.s(1, 1), running.add.s(2, 2)], running.total.s())
    parts.link(running.add.s(100))
    parts.link_error(running.note.s("never"))

    result = parts.delay()

    assert result.get(PATIENCE) == 6
    assert [child.get(PATIENCE) for child in result.children] == [106]
    assert not running.failures()


def test_copies_of_a_body_that_cannot_be_read_call_its_errback_once(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    sums = Sums(app)
    call = sums.add.s(1, 1).on_error(sums.note.s())
    [message] = messages(call.plan(Place(), call.draft()).steps, None, now=time.time(), single=True)
    unreadable = structs.replace(message, value=message.value.replace(b"[1,1]", b'[1,"one"]'))
    app.publish_many([unreadable, unreadable])

    start_worker(app)

    wait_until(lambda: broker.backlog(sums.add.topics.calls, sums.add.subscription) == 0, "not both were settled")
    wait_until(lambda: broker.backlog(sums.note.topics.calls, sums.note.subscription) == 0, "not both were settled")
    assert len(sums.failures()) == 1


def test_part_that_fails_fails_the_body_and_calls_its_errback_once(running: Sums) -> None:
    add, body = running.add, running.total.s().on_error(running.note.s("body"))

    result = (chord([add.s(4, 4), running.fail.s(), running.fail.s(), add.s(8, 8)], body) | add.s(1)).delay()

    assert result.parent is not None
    for handle in (result.parent, result):
        with pytest.raises(ChordError, match=r"part [23] of 4, fail\[.*\] raised ZeroDivisionError: nobody can"):
            handle.get(PATIENCE)
    assert "ZeroDivisionError" in (result.traceback or "")
    wait_until(lambda: (8, 8) in running.seen, "the other parts did not run")
    wait_until(lambda: bool(running.failures()), "the errback was not called")
    # What comes after the second failure on both topics was run, too.
    assert chord([add.s(1, 1)], running.total.s()).delay().get(PATIENCE) == 2
    [(failure, label)] = running.failures()
    assert (failure.task, failure.message, label) == ("fail", "nobody can", "body")


def test_errback_of_the_parts_is_called_for_each_that_fails_besides_that_of_the_chord(running: Sums) -> None:
    parts = group(running.fail.s(), running.fail.s(), running.add.s(1, 1)).on_error(running.note.s("part"))

    chord(parts, running.total.s()).on_error(running.note.s("body")).delay()

    wait_until(lambda: len(running.failures()) == 3, "not every errback was called")
    assert sorted(label for _, label in running.failures()) == ["body", "part", "part"]


def test_chord_that_fails_within_another_fails_that_too(running: Sums) -> None:
    inner = chord([running.fail.s(), running.add.s(1, 1)], running.total.s())
    outer = chord([inner, running.add.s(1, 1)], running.total.s()).on_error(running.note.s("outer"))

    with pytest.raises(ChordError, match="part 1 of 2, fail"):
        outer.delay().get(PATIENCE)
    wait_until(lambda: bool(running.failures()), "the errback was not called")
    assert [label for _, label in running.failures()] == ["outer"]


def test_part_that_is_revoked_fails_the_chord(sums: Sums, start_worker: Workers) -> None:
    sums.app.revoke("unwanted")
    start_worker(sums.app)
    body = sums.total.s().on_error(sums.note.s())

    result = chord([sums.add.s(1, 1), sums.add.signature((2, 2), task_id="unwanted")], body).delay()

    with pytest.raises(ChordError, match="TaskRevokedError: revoked"):
        result.get(PATIENCE)
    wait_until(lambda: bool(sums.failures()), "the errback was not called")


def test_part_that_ignores_its_message_fails_the_chord(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task
    def pass_over() -> int:
        raise Ignore

    start_worker(sums.app)
    result = chord([sums.add.s(1, 1), pass_over.s()], sums.total.s().on_error(sums.note.s())).delay()

    with pytest.raises(ChordError, match=r"part 2 of 2, .*pass_over.*TaskRevokedError: ignored"):
        result.get(PATIENCE)
    wait_until(lambda: bool(sums.failures()), "the errback was not called")


def test_results_too_large_for_one_message_fail_the_chord(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task
    def grow(size: int) -> str:
        return "x" * size

    start_worker(sums.app)
    result = chord([grow.s(3_000_000), grow.s(3_000_000)], sums.fail.s().on_error(sums.note.s())).delay()

    with pytest.raises(ChordError, match="above the limit"):
        result.get(PATIENCE)
    wait_until(lambda: bool(sums.failures()), "the errback was not called")


def test_chord_that_never_ends_fails_when_its_time_is_up(
    broker: BrokerUnderTest, name: str, start_worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chords, "LOOK_EVERY", 0.1)
    app = PulsarTasks(name, broker.url, result_expires=4.0)
    sums = Sums(app)
    elsewhere = PulsarTasks(f"{name}-elsewhere", broker.url)

    @elsewhere.task
    def nobody_runs_it(x: int) -> int:
        return x

    start_worker(app)
    body = sums.total.s().on_error(sums.note.s())
    chord([sums.add.s(1, 1), nobody_runs_it.s(2)], body).delay()
    other = chord([sums.add.s(1, 1), sums.add.s(2, 2)], sums.total.s()).delay()

    assert other.get(PATIENCE) == 6
    wait_until(lambda: bool(sums.failures()), "the errback was not called")
    assert "only 1 of 2 parts" in sums.failures()[0][0].message
    wait_until(lambda: broker.backlog(app.chords, COUNTER) == 0, "it is still held")
    app.close()
    elsewhere.close()


def test_what_is_no_report_is_passed_over(broker: BrokerUnderTest, running: Sums) -> None:
    for value in (b"", b"7", b"\xff", b'{"do":"end","chord":"x","number":-1,"value":1}', b'{"do":"open"}'):
        running.app.publish(Publication(running.app.chords, value))

    assert chord([running.add.s(1, 1)], running.total.s()).delay().get(PATIENCE) == 2
    # What is of no chord waits for its opening for a while.
    wait_until(lambda: broker.backlog(running.app.chords, COUNTER) <= 1, "it was not acknowledged")
    running.app.publish(Publication(running.app.chords, b'{"do":"open","chord":"x","count":0,"then":{}}'))


@pytest.mark.guarantee(15)
def test_copies_of_a_body_run_once_in_whatever_process(
    sums: Sums, broker: BrokerUnderTest, start_worker: Workers
) -> None:
    for _ in range(3):
        start_worker(sums.app)
    ids = [new_task_id() for _ in range(30)]
    headers = [{TASK: "add", TASK_ID: task_id, SINGLE: "1"} for task_id in ids for _ in range(2)]

    sums.app.publish_many([Publication(sums.add.topics.calls, b'{"args":[1,1],"kwargs":{}}', None, h) for h in headers])

    wait_until(lambda: broker.backlog(sums.add.topics.calls, sums.add.subscription) == 0, "not all were settled")
    assert len(sums.seen) == 30


def test_chord_that_is_sent_twice_runs_its_body_once(
    broker: BrokerUnderTest, sums: Sums, start_worker: Workers
) -> None:
    """As by whoever settles the step before it and dies before that step is acknowledged."""
    bodies: list[list[int]] = []

    @sums.app.task
    def body(numbers: list[int]) -> None:
        bodies.append(numbers)

    def unsettled() -> int:
        calls = [broker.backlog(task.topics.calls, task.subscription) for task in (sums.add, body)]
        return sum(calls) + broker.backlog(sums.app.chords, COUNTER)

    whole = chord([sums.add.s(n, n) for n in range(20)], body.s())
    sent = list(messages(whole.plan(Place(), whole.draft()).steps, None, now=time.time()))
    sums.app.publish_many([*sent, *sent])

    start_worker(sums.app)

    wait_until(lambda: bool(bodies), "the body did not run")
    wait_until(lambda: unsettled() == 0, "not all was settled")
    assert bodies == [[2 * n for n in range(20)]]


def test_chord_of_tasks_that_keep_no_results_has_their_values(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task(ignore_result=True)
    def double(n: int) -> int:
        return 2 * n

    start_worker(sums.app)

    assert chord([double.s(1), double.s(2)], sums.total.s()).delay().get(PATIENCE) == 6


def test_body_is_retried_and_replayed_though_its_copies_are_dropped(sums: Sums, start_worker: Workers) -> None:
    tries = []

    @sums.app.task(autoretry_for=(OSError,), default_retry_delay=0.1)
    def flaky(numbers: list[int]) -> int:
        tries.append(time.time())
        if len(tries) < 3:
            raise ConnectionError(len(tries))
        return sum(numbers)

    start_worker(sums.app)

    assert chord([sums.add.s(1, 1), sums.add.s(2, 2)], flaky.s()).delay().get(PATIENCE) == 6


@pytest.mark.guarantee(1)
def test_whoever_takes_over_counts_what_the_one_before_had_counted(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    sums, go, ended = Sums(app), threading.Event(), []

    @app.task(concurrency=1)
    def wait(x: int) -> int:
        go.wait(PATIENCE)
        ended.append(x)
        return x

    first = start_worker(app)
    result = chord([sums.add.s(1, 1), sums.add.s(2, 2), wait.s(3)], sums.total.s()).delay()
    wait_until(lambda: len(sums.seen) == 2, "the first parts did not run")
    start_worker(app)
    threading.Thread(target=first.stop).start()
    go.set()

    assert result.get(PATIENCE) == 9
    wait_until(lambda: broker.backlog(app.chords, COUNTER) == 0, "the counter has not acknowledged all")


@pytest.mark.guarantee(1)
def test_chord_survives_the_death_of_the_worker_that_counts(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    shared = acting.tasks["shared"]
    parts = [shared.si(f"part/{number}", seconds=0.5) for number in range(8)]
    first = start_process("shared", "-c", "2").wait_until_ready()
    result = chord(parts, shared.si("body")).delay()
    record.wait_for(3)

    first.kill()
    start_process("shared", "-c", "4")

    assert result.get(60).startswith("body by")
    assert record.labels().count("body") == 1
    assert {label for label in record.finished() if label != "body"} == {f"part/{number}" for number in range(8)}


def test_chord_of_two_thousand_parts(running: Sums) -> None:
    began = time.monotonic()

    result = chord((running.add.s(n, 0) for n in range(2000)), running.total.s()).delay()

    assert result.get(60) == sum(range(2000))
    assert time.monotonic() - began < 60


def test_group_of_more_results_than_are_remembered_is_gathered_in_one_look(
    running: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pulsartasks.results.inbox.REMEMBERED", 100)

    assert group(running.add.s(n, 0) for n in range(1000)).delay().get(60) == list(range(1000))


def test_group_cannot_be_the_body_of_a_replaced_task(running: Sums) -> None:
    with pytest.raises(InvalidArgumentsError, match="list of them"):
        chord([running.add.s(1, 1)], group(running.total.s())).apply_async(task_id="x")  # type: ignore[arg-type]
