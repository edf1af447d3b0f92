"""Canvas: what comes after a call travels with it, and is sent before the call's message is acknowledged."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pulsartasks import (
    AsyncResult,
    ChordError,
    ClaimCheck,
    Failure,
    GroupResult,
    Ignore,
    InvalidArgumentsError,
    PulsarTasks,
    ResultTimeoutError,
    TaskContext,
    TaskRevokedError,
    UnconfirmedError,
    chain,
    chord,
    group,
)
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.message import CANVAS, TASK, TASK_ID, Publication
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(2)

PATIENCE = 90.0


@dataclass
class Sums:
    """An app that reckons, and what its tasks were called with."""

    app: PulsarTasks
    seen: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        app, seen = self.app, self.seen

        @app.task
        def add(x: int, y: int) -> int:
            seen.append((x, y))
            return x + y

        @app.task
        def subtract(x: int, y: int = 1) -> int:
            return x - y

        @app.task
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        @app.task
        def fail(*_: int) -> int:
            raise ZeroDivisionError("nobody can")

        @app.task
        def note(failure: Failure, label: str = "") -> None:
            seen.append((failure, label))

        self.add, self.subtract, self.total, self.fail, self.note = add, subtract, total, fail, note

    def failures(self) -> list[tuple[Failure, str]]:
        return [each for each in self.seen if isinstance(each[0], Failure)]


def before(call: AsyncResult[Any]) -> AsyncResult[Any]:
    """The call before it in its chain."""
    assert isinstance(call.parent, AsyncResult)
    return call.parent


@pytest.fixture
def sums(app: PulsarTasks) -> Sums:
    return Sums(app)


@pytest.fixture
def running(sums: Sums, start_worker: Workers) -> Sums:
    """With a worker."""
    start_worker(sums.app)
    return sums


# Signatures


def test_arguments_are_put_before_those_of_a_partial_and_keywords_and_options_take_their_place(running: Sums) -> None:
    subtract = running.subtract
    assert subtract.s(10).delay(30).get(PATIENCE) == 20
    assert subtract.s(10).apply_async((30,)).get(PATIENCE) == 20
    assert subtract.s(y=1).delay(30, y=2).get(PATIENCE) == 28
    assert subtract.s(10).clone((30,)).delay().get(PATIENCE) == 20
    assert subtract.signature((30,), {"y": 3}, task_id="mine").apply_async(task_id="yours").id == "yours"
    assert subtract.s(30, 10)() == 20


def test_immutable_call_takes_no_further_arguments(running: Sums) -> None:
    assert (running.add.s(1, 1) | running.subtract.si(30, 10)).delay().get(PATIENCE) == 20
    with pytest.raises(InvalidArgumentsError, match="immutable"):
        running.add.si(1, 1).delay(2)


# Chains and links


def test_chain_hands_each_result_on_and_its_handle_knows_those_before(running: Sums) -> None:
    result = (running.add.s(4, 16) | running.subtract.s(2) | running.add.s(4)).delay()

    assert result.get(PATIENCE) == 22
    second = before(result)
    assert (second.get(PATIENCE), second.children, before(second).get(PATIENCE)) == (18, [result], 20)


def test_partial_chain_begins_with_the_arguments_it_is_called_with(running: Sums) -> None:
    partial = chain(running.add.s(4), running.subtract.s(8))

    assert partial(16).get(PATIENCE) == 12
    assert (running.add.s(1, 1) | partial | partial).delay().get(PATIENCE) == -6


def test_chain_takes_an_iterable_and_has_the_id_of_its_last_call(running: Sums) -> None:
    result = chain([running.add.s(1, 1), *(running.add.s(n) for n in range(20))]).apply_async(task_id="the last")

    assert result.id == "the last"
    assert running.add.result("the last").get(PATIENCE) == 2 + sum(range(20))


def test_linked_calls_have_the_result_too(running: Sums) -> None:
    result = running.add.apply_async((2, 2), link=[running.add.s(8), running.subtract.s()])

    assert result.get(PATIENCE) == 4
    assert [child.get(PATIENCE) for child in result.children] == [12, 3]
    linked = running.add.using(link=running.add.s(8)).delay(2, 2)
    assert linked.children[0].get(PATIENCE) == 12


def test_errback_has_the_failure_before_its_own_arguments(running: Sums) -> None:
    result = running.fail.apply_async((1,), link=running.add.s(1), link_error=running.note.s("oh"))

    with pytest.raises(ZeroDivisionError):
        result.get(PATIENCE)
    wait_until(lambda: bool(running.failures()), "the errback was not called")
    [(failure, label)] = running.failures()
    assert (failure.task, failure.id, failure.message, label) == ("fail", result.id, "nobody can", "oh")
    assert isinstance(failure.restore(), ZeroDivisionError)
    assert "nobody can" in failure.traceback


def test_chain_that_fails_ends_in_its_error_and_calls_its_errback_once(running: Sums) -> None:
    result = (
        (running.add.s(1, 1) | running.fail.s() | running.add.s(1) | running.add.s(2))
        .on_error(running.note.s("chain"))
        .delay()
    )

    for handle in (result, before(result)):
        with pytest.raises(ZeroDivisionError) as caught:
            handle.get(PATIENCE)
        if sys.version_info >= (3, 11):
            assert any("raised by fail[" in note for note in caught.value.__notes__)
    assert result.state == "FAILURE"
    wait_until(lambda: bool(running.failures()), "the errback was not called")
    running.add.delay(7, 7).get(PATIENCE)
    assert len(running.failures()) == 1
    assert [pair for pair in running.seen if isinstance(pair[0], int)] == [(1, 1), (7, 7)]


def test_step_that_is_retried_goes_on_when_it_succeeds(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0.1)
    def flaky(self: TaskContext, x: int) -> int:
        if self.retries < 2:
            raise ConnectionError(x)
        return x

    start_worker(sums.app)

    assert (flaky.s(3) | sums.add.s(1)).on_error(sums.note.s()).delay().get(PATIENCE) == 4
    assert not sums.failures()


def test_replayed_dead_letter_goes_on_with_its_chain(sums: Sums, start_worker: Workers) -> None:
    repaired = threading.Event()

    @sums.app.task
    def pay(x: int) -> int:
        if not repaired.is_set():
            raise LookupError(x)
        return x

    start_worker(sums.app)
    result = (pay.s(3) | sums.add.s(1)).delay()
    with pytest.raises(LookupError):
        result.get(PATIENCE)
    repaired.set()

    wait_until(lambda: bool(list(DeadLetters(sums.app, pay).replay())), "there is no dead letter")

    wait_until(lambda: sums.add.result(result.id).successful(), "the chain did not go on")
    assert sums.add.result(result.id).get(PATIENCE) == 4


def test_revoked_step_revokes_what_follows_and_calls_no_errback(sums: Sums, start_worker: Workers) -> None:
    sums.app.revoke("unwanted")
    start_worker(sums.app)
    steps = sums.add.s(1, 1) | sums.add.signature((1,), task_id="unwanted") | sums.add.s(1)

    result = steps.on_error(sums.note.s()).delay()

    with pytest.raises(TaskRevokedError):
        result.get(PATIENCE)
    assert result.state == "REVOKED"
    assert (sums.add.delay(7, 7).get(PATIENCE), sums.failures()) == (14, [])


def test_step_that_ignores_its_message_revokes_what_follows(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task
    def pass_over(number: int) -> int:
        raise Ignore

    start_worker(sums.app)
    result = (sums.add.s(1, 1) | pass_over.s() | sums.add.s(1)).on_error(sums.note.s()).delay()

    with pytest.raises(TaskRevokedError, match="ignored"):
        result.get(PATIENCE)
    assert (sums.add.delay(7, 7).get(PATIENCE), sums.failures()) == (14, [])


def test_countdown_of_a_step_counts_from_the_end_of_the_one_before(running: Sums) -> None:
    began = time.time()

    result = (running.add.s(1, 1) | running.add.s(1).set(countdown=0.5) | running.add.s(1)).apply_async(countdown=0.5)

    assert result.get(PATIENCE) == 4
    assert time.time() - began >= 1.0


def test_step_of_an_ordered_task_has_the_key_that_its_task_gives_it(sums: Sums, start_worker: Workers) -> None:
    keys = []

    @sums.app.task(bind=True, mode="key_shared", key=lambda number, account: f"{account}-{number}")
    def book(self: TaskContext, number: int, account: str) -> None:
        keys.append(self.request.key)

    start_worker(sums.app)

    (sums.add.s(1, 1) | book.s("ada")).delay().get(PATIENCE)
    (sums.add.s(1, 1) | book.s("ada").set(key="mine")).delay().get(PATIENCE)
    (sums.add.s(1, 1) | book.si(7, "ada")).delay().get(PATIENCE)

    assert keys == ["ada-2", "mine", "ada-7"]


def test_step_of_another_app_waits_for_its_worker(
    broker: BrokerUnderTest, running: Sums, start_worker: Workers
) -> None:
    other = PulsarTasks(f"{running.app.name}-other", broker.url)
    seen: list[int] = []

    @other.task
    def double(x: int) -> int:
        seen.append(x)
        return 2 * x

    result = (running.add.s(2, 2) | double.s() | running.add.s(1)).delay()
    assert before(before(result)).get(PATIENCE) == 4
    assert broker.backlog(double.topics.calls, double.subscription) <= 1
    worker = start_worker(other)

    assert result.get(PATIENCE) == 9
    assert seen == [4]
    worker.stop()
    other.close()


def test_chain_called_from_asyncio_and_in_a_block_leaves_as_other_calls_do(running: Sums) -> None:
    steps = running.add.s(1, 1) | running.add.s(1)

    async def send() -> int:
        return (await steps.adelay()).get(PATIENCE)

    assert asyncio.run(send()) == 3
    with running.app.publishing():
        inside = steps.delay()
        with pytest.raises(Exception, match="publishing"):
            inside.get(0)
    assert inside.get(PATIENCE) == 3


# Groups


def test_group_gives_its_results_in_order_whatever_ends_first(running: Sums) -> None:
    result = group(running.add.s(n, n) for n in range(50))()

    assert isinstance(result, GroupResult)
    assert result.get(PATIENCE) == [2 * n for n in range(50)]
    assert (result.ready(), result.successful(), result.failed(), result.completed_count()) == (True, True, False, 50)
    assert [part.get(0) for part in result] == [2 * n for n in range(50)]


def test_results_of_a_group_are_seen_as_they_arrive(sums: Sums, start_worker: Workers) -> None:
    go = threading.Event()

    @sums.app.task
    def wait(x: int) -> int:
        return x if go.wait(PATIENCE) else -1

    start_worker(sums.app)
    result = group(wait.s(1), sums.add.s(1, 1), sums.add.s(2, 2))()

    arriving = result.as_completed(PATIENCE)
    first = {next(arriving).get(0), next(arriving).get(0)}
    assert (first, result.waiting()) == ({2, 4}, True)
    with pytest.raises(ResultTimeoutError, match="1 of 3"):
        result.get(0.1)
    go.set()

    assert [part.get(0) for part in arriving] == [1]


def test_group_raises_what_a_part_raised_and_counts_those_that_ended_well(running: Sums) -> None:
    result = group(running.add.s(1, 1), running.fail.s(), running.add.s(2, 2))()

    with pytest.raises(ZeroDivisionError):
        result.get(PATIENCE)
    assert len(list(result.as_completed(PATIENCE))) == 3
    assert (result.completed_count(), result.failed(), result.successful()) == (2, True, False)


def test_group_passes_links_and_errbacks_to_each_of_its_parts(running: Sums) -> None:
    parts = group(running.fail.s(), running.fail.s())
    parts.link_error(running.note.s())

    parts.delay()

    wait_until(lambda: len(running.failures()) == 2, "the errback was not called for each")


def test_group_in_a_chain_gets_the_result_before_it(running: Sums) -> None:
    result = (running.add.s(4, 4) | group(running.add.s(1), running.add.si(1, 1))).delay()

    assert result.get(PATIENCE) == [9, 2]
    assert result.parent is not None
    assert result.parent.get(PATIENCE) == 8


def test_group_of_one_is_that_one_where_something_follows_it(running: Sums) -> None:
    assert chain(running.add.s(2, 2), group(running.add.s(1)), running.add.s(1)).delay().get(PATIENCE) == 6


def test_group_within_a_group_is_part_of_it(running: Sums) -> None:
    nested = group(running.add.s(1, 1), group(running.add.s(2, 2), group(running.add.s(3, 3))))

    assert nested.delay().get(PATIENCE) == [2, 4, 6]


def test_skewed_group_begins_one_part_after_the_other(running: Sums) -> None:
    parts = group(running.add.s(n, n) for n in range(3)).skew(start=0.1, step=0.1)

    began = time.time()
    assert parts.delay().get(PATIENCE) == [0, 2, 4]
    assert time.time() - began >= 0.3


def test_starmap_and_chunks_call_the_task_for_many_in_one_message(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task(bind=True)
    async def negate(self: TaskContext, x: int) -> Any:
        return [self.request.task, -x]

    start_worker(sums.app)

    negated: list[Any] = negate.starmap([(1,), (2,)]).delay().get(PATIENCE)
    assert negated == [["negate.starmap", -1], ["negate.starmap", -2]]
    chunks = sums.add.chunks(zip(range(25), range(25), strict=True), 10)
    assert [len(part) for part in chunks().get(PATIENCE)] == [10, 10, 5]
    assert [len(part) for part in chunks.apply_async().get(PATIENCE)] == [10, 10, 5]
    assert [len(part) for part in chunks.group().skew(0, step=0)().get(PATIENCE)] == [10, 10, 5]
    assert (sums.add.starmap([(1, 1), (2, 2)]) | sums.total.s()).delay().get(PATIENCE) == 6
    with pytest.raises(InvalidArgumentsError, match="'y'"):
        sums.add.starmap([(1, 1), (2, "two")]).delay()


# Replacing


def test_replaced_task_has_the_result_of_what_replaced_it_and_what_follows_goes_on(
    sums: Sums, start_worker: Workers
) -> None:
    @sums.app.task(bind=True)
    def split(self: TaskContext, n: int) -> int:
        raise self.replace(group(sums.add.s(each, each) for each in range(n)) | sums.total.s())

    start_worker(sums.app)

    assert split.delay(4).get(PATIENCE) == 12
    assert (sums.add.s(1, 1) | split.s() | sums.add.s(1)).delay().get(PATIENCE) == 3
    assert chord([split.s(2), split.s(3)], sums.total.s()).delay().get(PATIENCE) == 8


def test_failure_of_what_replaced_a_task_is_the_tasks(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task(bind=True)
    def split(self: TaskContext, n: int) -> int:
        raise self.replace(group(sums.add.s(n, n), sums.fail.s(n)) | sums.total.s())

    @sums.app.task(key=lambda x: 1 // x)
    def odd(x: int) -> int:
        return x

    wrong: list[Any] = [group(sums.add.s(1, 1), sums.add.s(2, 2)), odd.s(0), sums.add.s(1), 7]

    @sums.app.task(bind=True)
    def scatter(self: TaskContext, n: int) -> int:
        raise self.replace(wrong[n])

    start_worker(sums.app)

    result = (split.s(4) | sums.add.s(1)).on_error(sums.note.s()).delay()
    for handle in (result, result.parent):
        with pytest.raises(ChordError, match="part 2 of 2, fail"):
            handle.get(PATIENCE)  # type: ignore[union-attr]
    wait_until(lambda: bool(sums.failures()), "the errback was not called")
    for number, complaint in enumerate(["takes the list", "ZeroDivisionError", "misses the argument y", "not 7"]):
        with pytest.raises(InvalidArgumentsError, match=complaint):
            scatter.delay(number).get(PATIENCE)


# What cannot work


WRONG: dict[str, Callable[[Sums], object]] = {
    "first": lambda sums: (sums.add.s(1) | sums.add.s(1)).delay(),
    "later type": lambda sums: (sums.add.s(1, 1) | sums.add.s("one")).delay(),
    "later number": lambda sums: (sums.add.s(1, 1) | sums.add.s(1, 1)).delay(),
    "in a group": lambda sums: (sums.add.s(1, 1) | group(sums.add.s(1), sums.add.s(1, 2))).delay(),
    "body": lambda sums: chord([sums.add.s(1, 1)], sums.add.s()).delay(),
    "no body": lambda sums: chord([sums.add.s(1, 1)]).delay(),
    "errback": lambda sums: (sums.add.s(1, 1)).on_error(sums.note.s(7)).delay(),
    "link": lambda sums: sums.add.apply_async((1, 1), link="add"),  # type: ignore[arg-type]
    "no call": lambda sums: chain(sums.add.s(1, 1), 7),  # type: ignore[call-overload]
    "nothing": lambda sums: group().delay(),
    "id of a group": lambda sums: group(sums.add.s(1, 1)).apply_async(task_id="mine"),
    "not data": lambda sums: (sums.add.s(1, 1) | sums.add.s(object())).delay(),
    "option": lambda sums: sums.add.s(1, 1).set(colour="red"),  # type: ignore[call-arg]
}


@pytest.mark.guarantee(14)
def test_canvas_that_cannot_work_is_refused_and_nothing_is_sent(broker: BrokerUnderTest, sums: Sums) -> None:
    sums.add.delay(1, 1)

    for wrong, send in WRONG.items():
        with pytest.raises(InvalidArgumentsError):
            pytest.fail(f"{wrong} was sent: {send(sums)}")

    assert broker.backlog(sums.add.topics.work, sums.add.subscription) == 1


def test_step_in_another_namespace_is_refused(broker: BrokerUnderTest, sums: Sums) -> None:
    other = PulsarTasks(f"{sums.app.name}-other", broker.url, namespace="public/elsewhere")

    @other.task
    def double(x: int) -> int:
        return 2 * x

    with pytest.raises(InvalidArgumentsError, match="another namespace"):
        (sums.add.s(1, 1) | double.s()).delay()
    other.close()


def test_event_is_no_step(app: PulsarTasks, sums: Sums) -> None:
    happened = app.topic("happened", schema=int, subscriptions=("somebody",))

    with pytest.raises(InvalidArgumentsError, match="no step of a canvas"):
        (sums.add.s(1, 1) | happened.s(1)).delay()
    with pytest.raises(InvalidArgumentsError, match="nothing can be linked"):
        happened.s(1).set(link=sums.add.s(1)).publication()


def test_result_that_cannot_be_handed_on_fails_its_task(sums: Sums, start_worker: Workers) -> None:
    @sums.app.task
    def grow(size: int) -> str:
        return "x" * size

    start_worker(sums.app)
    result = (grow.s(6_000_000) | sums.fail.s()).on_error(sums.note.s()).delay()

    with pytest.raises(Exception, match="above the limit"):
        result.get(PATIENCE)
    wait_until(lambda: bool(sums.failures()), "the errback was not called")


def test_what_others_wrote_in_place_of_a_canvas_harms_nobody(broker: BrokerUnderTest, running: Sums) -> None:
    elsewhere = "persistent://public/other-namespace/secret"
    step = b'{"do":"call","topic":"%b","headers":{}}' % elsewhere.encode()
    values = [
        b'{"args":[1,1],"kwargs":{},"then":7}',
        b'{"args":[1,1],"kwargs":{}}',
        b'{"args":[1,1],"kwargs":{},"then":{"rest":[%b]}}' % step,
        b'{"args":[1,"one"],"kwargs":{},"then":{"errbacks":[[%b]]}}' % step,
    ]
    topic = running.add.topics.calls

    with capture_logs() as logs:
        for number, value in enumerate(values):
            headers = {TASK: "add", TASK_ID: f"id-{number}", CANVAS: "1"}
            running.app.publish(Publication(topic, value, properties=headers))
        wait_until(lambda: broker.backlog(topic, running.add.subscription) == 0, "they were not settled")

    events = [log["event"] for log in logs]
    assert events.count("canvas.unreadable") == 2
    assert events.count("step.refused") >= 1
    assert [log["reason"] for log in logs if log["event"] == "message.died"].count("failed") == 1


def test_canvas_and_its_values_go_through_the_claim_check_if_they_are_large(
    broker: BrokerUnderTest, name: str, tmp_path: Path, start_worker: Workers
) -> None:
    app = PulsarTasks(name, broker.url, claim_check=ClaimCheck(str(tmp_path), above=500))
    sums = Sums(app)

    @app.task
    def grow(text: str, times: int) -> str:
        return text * times

    @app.task
    def measure(texts: list[str]) -> int:
        return sum(map(len, texts))

    start_worker(app)
    steps = grow.s("x", 1000) | group(grow.s(n) for n in range(10)) | measure.s() | sums.add.s(1)

    assert steps.delay().get(PATIENCE) == 45_001
    app.close()


@pytest.mark.guarantee(1)
def test_chain_goes_on_though_its_workers_are_killed(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    step, count = acting.tasks["shared"], 30
    result = chain(step.si(f"step/{number}", seconds=0.05) for number in range(count)).delay()

    for number in (5, 12, 19):
        worker = start_process("shared", "-c", "1")
        record.wait_for_labels(f"step/{number}", ended=False)
        worker.kill()
    start_process("shared", "-c", "1")

    assert result.get(60).startswith(f"step/{count - 1} by")
    first = list(dict.fromkeys(record.finished()))
    assert first == [f"step/{number}" for number in range(count)]


def test_part_of_a_canvas_that_was_not_confirmed_is_named(sums: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    sums.add.delay(1, 1)
    publish_many = sums.app.broker.publish_many
    refusal = InvalidArgumentsError("not this one")

    def refuse(publications: Any, **options: Any) -> list[Any]:
        return [*publish_many(publications[:-1], **options), refusal]

    monkeypatch.setattr(sums.app.broker, "publish_many", refuse)

    with pytest.raises(UnconfirmedError, match=r"1 of 3 were not confirmed: add\["):
        group(sums.add.s(n, n) for n in range(3)).delay()
