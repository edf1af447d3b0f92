"""Beat: of any number of copies one leads, a tick is sent once though leaders change, and what is due is moved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks, TaskContext, crontab, every
from pulsartasks.beat import term as term_module
from pulsartasks.beat.beat import Beat
from pulsartasks.beat.forwarding import Forwarding
from pulsartasks.beat.leadership import Leadership, LeadershipLostError, Record, Seen, Sending, log_topic, read_newest
from pulsartasks.beat.term import Term
from pulsartasks.errors import BacklogFullError, PublishTimeoutError, PulsarTasksError, SubscriptionBusyError
from pulsartasks.message import TICK, Publication, tick_id
from pulsartasks.middleware.base import Middleware, Publish
from tests.conformance import schedules
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.conformance.processes import WorkerProcess
from tests.conformance.records import Record as Runs
from tests.conformance.schedules import Ticks, watching
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(16)

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc).timestamp()
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
TAKE_OVER = 5.0
"""Seconds within which another copy leads when a leader was killed; a second, but for a busy machine."""
MODES = ["shared", "exclusive", "failover", "key_shared"]


class Hands:
    """A clock that stands still unless it is moved."""

    def __init__(self, now: float = NOON) -> None:
        self.at = now

    def now(self) -> float:
        return self.at


@contextmanager
def office(app: PulsarTasks, clock: Hands) -> Iterator[Term]:
    """What a leader does, round by round."""
    ticking, app.clock = app.clock, clock
    try:
        with closing(Leadership.take(app)) as leadership, closing(Term(app, leadership)) as term:
            yield term
    finally:
        app.clock = ticking


@contextmanager
def beating(app: PulsarTasks) -> Iterator[Beat]:
    """A copy of beat on a thread of this process."""
    beat, stop = Beat(app), threading.Event()
    thread = threading.Thread(target=beat.run, args=[stop])
    thread.start()
    try:
        yield beat
    finally:
        stop.set()
        thread.join(30)


@pytest.fixture
def ticks(app: PulsarTasks) -> Iterator[Ticks]:
    """What the task `purge` is sent."""

    @app.task
    def purge(what: str = "all") -> str:
        return what

    with watching(app, purge.topics.calls, purge.subscription) as found:
        yield found


def call(app: PulsarTasks) -> Any:
    return app.tasks["purge"].s("old")


def ms(instant: float) -> int:
    return int(instant * 1000)


# Ticks


@pytest.mark.wire
def test_a_tick_is_sent_when_it_is_due_and_once(app: PulsarTasks, ticks: Ticks) -> None:
    app.schedule("hourly", every(HOUR), call(app))
    clock = Hands(NOON - 1)
    with office(app, clock) as term:
        assert term.round() == pytest.approx(1.0)
        assert ticks.look() == []
        for later in (0, 0, 0.5, HOUR - 0.5):
            clock.at += 1 if later == 0 and clock.at < NOON else later
            term.round()

    assert ticks.look(2) == [f"hourly@{ms(NOON)}", f"hourly@{ms(NOON + HOUR)}"]
    assert ticks.ids == [tick_id(app.name, "hourly", ms(NOON)), tick_id(app.name, "hourly", ms(NOON + HOUR))]


def test_what_a_tick_calls_is_run_and_its_result_is_found_by_its_id(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task
    def purge(what: str) -> str:
        return f"purged {what}"

    app.schedule("hourly", every(HOUR), purge.s("old"))
    now = float(int(time.time() / HOUR) * HOUR)
    clock = Hands(now - 1)
    with office(app, clock) as term:
        term.round()
        clock.at = now
        term.round()
    start_worker(app)

    assert purge.result(tick_id(app.name, "hourly", ms(now))).get(timeout=120) == "purged old"


def test_an_event_can_be_scheduled(app: PulsarTasks) -> None:
    struck = app.topic("struck", schema=int, subscriptions=("clock",))
    app.schedule("bell", every(HOUR), struck.s(12))
    clock = Hands(NOON - 1)
    with watching(app, struck.full_name, "clock") as ticks:
        with office(app, clock) as term:
            term.round()
            clock.at = NOON
            term.round()

        assert ticks.look(1) == [f"bell@{ms(NOON)}"]
        assert ticks.ids == [""]


def test_an_entry_that_cannot_be_sent_does_not_hold_up_the_others(app: PulsarTasks, ticks: Ticks) -> None:
    app.schedule("wrong", every(MINUTE), app.tasks["purge"].s(1, 2, 3))
    app.schedule("right", every(MINUTE), call(app))
    clock = Hands(NOON - 1)
    with office(app, clock) as term, capture_logs() as logs:
        term.round()
        for minute in range(3):
            clock.at = NOON + minute * MINUTE
            term.round()

    assert ticks.look(3) == [f"right@{ms(NOON + minute * MINUTE)}" for minute in range(3)]
    assert [line["tick"] for line in logs if line["event"] == "tick.refused"] == ["wrong"] * 3
    assert read_newest(app).seen["wrong"].last is None
    assert read_newest(app).seen["right"].last == ms(NOON + 2 * MINUTE)


class Unconfirmed(Middleware):
    """Nobody is told that some ticks were stored, if they were."""

    def __init__(self, error: PulsarTasksError, *, stored: bool) -> None:
        self._error = error
        self._stored = stored
        self._left = 2

    def publish(self, publications: Sequence[Publication], call_next: Publish) -> list[str | PulsarTasksError]:
        if not self._left or not any(p.properties.get(TICK, "").startswith("bad") for p in publications):
            return call_next(publications)
        self._left -= 1
        outcomes = call_next([p for p in publications if self._stored or not p.properties[TICK].startswith("bad")])
        return [self._error if p.properties[TICK].startswith("bad") else outcomes[-1] for p in publications]


@pytest.mark.parametrize(
    ("error", "stored"),
    [
        (PublishTimeoutError("nobody knows"), False),
        (PublishTimeoutError("nobody knows"), True),
        (BacklogFullError("later"), False),
    ],
)
def test_a_tick_that_was_not_confirmed_is_stored_once_and_holds_up_no_other_entry(
    error: PulsarTasksError, stored: bool, broker: BrokerUnderTest, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(term_module, "AGAIN", 0.1)
    app = PulsarTasks(name, broker.url, middleware=[Unconfirmed(error, stored=stored)])

    @app.task
    def purge(what: str) -> None: ...

    for entry in ("bad", "good"):
        app.schedule(entry, every(MINUTE), purge.s("old"))
    clock = Hands(NOON - 1)
    with closing(app), watching(app, purge.topics.calls, purge.subscription) as ticks:
        with office(app, clock) as term:
            term.round()
            clock.at = NOON
            term.round()
            assert [tick for tick in ticks.look(2 if stored else 1) if tick.startswith("good")] == [f"good@{ms(NOON)}"]
            wait_until(lambda: term.round() > 1, "it was not sent in the end")
            clock.at = NOON + MINUTE
            term.round()

        expected = [f"{entry}@{ms(instant)}" for entry in ("bad", "good") for instant in (NOON, NOON + MINUTE)]
        assert sorted(ticks.look(4)) == expected


# Leaders


def test_the_next_leader_goes_on_where_the_last_one_ended(app: PulsarTasks, ticks: Ticks) -> None:
    app.schedule("often", every(10), call(app))
    clock = Hands(NOON)
    for _ in range(4):
        with office(app, clock) as term:
            term.round()
            clock.at += 15
            term.round()
        clock.at += 15  # nobody leads meanwhile

    sent = [NOON + 10 * number for number in range(1, 11)]
    assert ticks.look(10) == [f"often@{ms(instant)}" for instant in sent]


@pytest.mark.parametrize(("missed", "expected"), [("skip", []), ("run_once", [NOON - 3 * DAY + HOUR])])
def test_what_was_missed_while_nobody_led_is_skipped_or_sent_once(
    missed: Any, expected: list[float], app: PulsarTasks, ticks: Ticks
) -> None:
    app.schedule("nightly", crontab("0 13 * * *"), call(app), missed=missed)
    clock = Hands(NOON - 3 * DAY)
    with office(app, clock) as term:
        term.round()
    clock.at = NOON
    with office(app, clock) as term, capture_logs() as logs:
        term.round()
        term.round()
    assert [line["entry"] for line in logs if line["event"] == "tick.missed"] == ["nightly"] * (not expected)
    with office(app, clock) as term:
        term.round()
        assert ticks.look(len(expected)) == [f"nightly@{ms(instant)}" for instant in expected]
        clock.at = NOON + HOUR
        term.round()

    assert ticks.look(len(expected) + 1)[-1] == f"nightly@{ms(NOON + HOUR)}"


def test_nothing_is_sent_for_the_time_before_an_entry_or_its_schedule_was_known(
    app: PulsarTasks, ticks: Ticks, broker: BrokerUnderTest
) -> None:
    app.schedule("nightly", crontab("0 3 * * *"), call(app), missed="run_once")
    clock = Hands()
    with office(app, clock) as term:
        term.round()
    changed = PulsarTasks(app.name, broker.url)
    changed.schedule("nightly", crontab("0 13 * * *"), call(app), missed="run_once")
    clock.at = NOON + 2 * HOUR
    with closing(changed), office(changed, clock) as term:
        term.round()
        assert ticks.look() == []
        clock.at = NOON + HOUR + DAY
        term.round()

    assert ticks.look(1) == [f"nightly@{ms(NOON + HOUR + DAY)}"]


def put_in_doubt(app: PulsarTasks, instant: float) -> None:
    """Leave what a leader leaves that was killed between writing down and sending."""
    with closing(Leadership.take(app)) as leadership:
        seen = {"hourly": Seen(ms(instant) - 1, str(app.scheduled["hourly"].schedule))}
        leadership.write(seen, {"hourly": Sending([ms(instant)], ms(instant))})


def settle_doubts(app: PulsarTasks, clock: Hands) -> None:
    with office(app, clock) as term:
        wait_until(lambda: term.round() > 0 and not read_newest(app).sending, "it was not found out")


@pytest.fixture
def _soon_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody of whom one would have to wait is there."""
    monkeypatch.setattr(term_module, "HOLD", 0.5)


@pytest.mark.usefixtures("_soon_found_out")
def test_a_tick_that_the_leader_before_did_not_send_any_more_is_sent(app: PulsarTasks, ticks: Ticks) -> None:
    app.schedule("hourly", every(HOUR), call(app))
    put_in_doubt(app, NOON)

    settle_doubts(app, Hands(NOON + 1))

    assert ticks.look(1) == [f"hourly@{ms(NOON)}"]


@pytest.mark.usefixtures("_soon_found_out")
@pytest.mark.parametrize("taken", [False, True])
def test_a_tick_that_the_leader_before_did_send_is_not_sent_again(
    taken: bool, app: PulsarTasks, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.schedule("hourly", every(HOUR), call(app))
    clock = Hands(NOON - 1)
    with monkeypatch.context() as death, office(app, clock) as term:
        term.round()
        clock.at = NOON
        death.setattr(Term, "_settle", _die)  # after sending, before it is written down
        with pytest.raises(KeyboardInterrupt):
            term.round()
    if taken:
        assert ticks.look(1) == [f"hourly@{ms(NOON)}"]

    settle_doubts(app, clock)

    assert ticks.look(1) == [f"hourly@{ms(NOON)}"]


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_one_copy_leads_at_a_time(app: PulsarTasks, broker: BrokerUnderTest) -> None:
    other = PulsarTasks(app.name, broker.url)
    with closing(other), closing(Leadership.take(app)), pytest.raises(SubscriptionBusyError):
        Leadership.take(other)


@pytest.mark.wire
def test_another_copy_takes_over_when_the_leader_stops(app: PulsarTasks, broker: BrokerUnderTest, ticks: Ticks) -> None:
    other = PulsarTasks(app.name, broker.url)
    with closing(other), ExitStack() as stack:
        with beating(app) as first:
            wait_until(lambda: first.leading, "it was not elected")
            second = stack.enter_context(beating(other))
            wait_until(lambda: second.ready, "it does not stand by")
            assert not second.leading
        wait_until(lambda: second.leading, "it did not take over", TAKE_OVER)
        assert not first.ready


def test_a_leader_that_hears_of_another_one_sends_nothing_any_more(app: PulsarTasks, ticks: Ticks) -> None:
    app.schedule("hourly", every(HOUR), call(app))
    clock = Hands(NOON - 1)
    with office(app, clock) as term:
        term.round()
        app.broker.publish(Publication(log_topic(app), msgspec.json.encode(Record("other", 1, epoch=9))))
        clock.at = NOON

        with pytest.raises(LeadershipLostError, match="another copy leads"):
            term.round()

    assert ticks.look(timeout=0.3) == []


def test_a_leader_steps_down_while_it_waits_for_the_next_tick(app: PulsarTasks) -> None:
    with closing(Leadership.take(app)) as leadership:
        leadership.watch(0.1)
        app.broker.publish(Publication(log_topic(app), msgspec.json.encode(Record("other"))))

        with pytest.raises(LeadershipLostError, match="another copy leads"):
            leadership.watch(30)


def test_what_a_former_leader_wrote_too_late_does_not_count(app: PulsarTasks) -> None:
    late = Record("former", 7, epoch=1, seen={"hourly": Seen(1, "late")})
    with closing(Leadership.take(app)) as former:
        former.write({"hourly": Seen(5, "right")}, {})
    with closing(Leadership.take(app)) as leader:
        app.broker.publish(Publication(log_topic(app), msgspec.json.encode(late)))
        leader.write({"hourly": Seen(6, "right")}, {})
        app.broker.publish(Publication(log_topic(app), msgspec.json.encode(late)))
        leader.write({"hourly": Seen(7, "right")}, {})
    app.broker.publish(Publication(log_topic(app), msgspec.json.encode(late)))

    with closing(Leadership.take(app)) as next_one:
        assert next_one.record.seen == {"hourly": Seen(7, "right")}
        assert next_one.record.epoch == 2


def test_something_else_in_the_log_does_not_stop_anybody(app: PulsarTasks) -> None:
    for value in (b"", b"\xff", b'{"leader": 5}', b"[]"):
        app.broker.declare(log_topic(app), ["beat"])
        app.broker.publish(Publication(log_topic(app), value))

    with closing(Leadership.take(app)) as leadership:
        app.broker.publish(Publication(log_topic(app), b"nonsense"))
        leadership.write({"hourly": Seen(5, "right")}, {})

    assert read_newest(app).seen == {"hourly": Seen(5, "right")}


def test_only_the_newest_record_is_kept(app: PulsarTasks, broker: BrokerUnderTest) -> None:
    with closing(Leadership.take(app)) as leadership:
        for number in range(20):
            leadership.write({"hourly": Seen(number, "right")}, {})

    wait_until(lambda: broker.backlog(log_topic(app), "beat") == 1, "old records were kept")
    with closing(Leadership.take(app)) as leadership:
        assert leadership.record.seen == {"hourly": Seen(19, "right")}


def test_a_stand_by_takes_over_soon_after_the_leader_was_killed(broker: BrokerUnderTest, name: str) -> None:
    app = schedules.make_app(name, broker.url)
    task = app.tasks["often"]
    with closing(app), watching(app, task.topics.calls, task.subscription) as ticks, ExitStack() as stack:
        leader = _start(stack, app)
        leader.wait_for_log("tick.sent")
        other = _start(stack, app)
        other.wait_for_log("beat.stood_by")

        leader.kill()
        killed = time.time()

        other.wait_for_log("tick.sent", timeout=30)
        elected = datetime.fromisoformat(other.logged("beat.elected")[0]["timestamp"]).timestamp()
        assert elected - killed < TAKE_OVER
        other.wait_for_log("tick.sent", count=3)
        ticks.look(4)

    assert len(ticks.seen) > 3
    assert set(ticks.gaps) == {1000}


def _start(stack: ExitStack, app: PulsarTasks) -> WorkerProcess:
    process = schedules.start_beat(app)
    stack.callback(process.clean_up)
    return process


# What is due


@pytest.fixture
def forward(app: PulsarTasks) -> Iterator[Callable[[PulsarTasks], None]]:
    """Starts to move what is due."""
    with ExitStack() as stack:

        def start(app: PulsarTasks) -> None:
            forwarding = Forwarding(app)
            failures: list[BaseException] = []
            stack.callback(forwarding.stop)
            forwarding.start(failures.append)
            wait_until(lambda: forwarding.ready or bool(failures), "it did not get ready")
            assert failures == []

        yield start


@pytest.mark.guarantee(7)
@pytest.mark.parametrize("mode", MODES)
def test_due_calls_are_moved_without_any_worker(
    mode: str,
    acting: PulsarTasks,
    broker: BrokerUnderTest,
    forward: Callable[[PulsarTasks], None],
    start_worker: Workers,
    record: Runs,
) -> None:
    task = acting.tasks[mode]
    acting.declare(task.topics.calls)
    due = time.time() + 0.7
    handle = task.using(countdown=0.7).delay("key/due")
    task.using(countdown=3600).delay("key/later")

    forward(acting)

    wait_until(lambda: broker.backlog(task.topics.calls, task.subscription) == 1, "it was not moved")
    assert time.time() >= due
    wait_until(lambda: broker.backlog(task.topics.delayed, task.subscription) == 1, "it was moved and kept")
    start_worker(acting, topics=[mode])
    handle.get(timeout=120)
    assert record.labels() == ["key/due"]


@pytest.mark.guarantee(3)
@pytest.mark.parametrize("event", [False, True])
def test_a_retry_that_was_moved_keeps_its_count_its_key_and_its_id(
    event: bool,
    app: PulsarTasks,
    broker: BrokerUnderTest,
    forward: Callable[[PulsarTasks], None],
    start_worker: Workers,
) -> None:
    attempts: list[tuple[int, tuple[str | None, str, int]]] = []
    struck = app.topic("struck", schema=int, key=str, subscriptions=("clock",))
    options: Any = {"topic": struck, "subscription": "clock"} if event else {"key": str}

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=4.0, max_retries=2, **options)
    def strike(self: TaskContext, hour: int) -> None:
        attempts.append((self.retries, (self.request.key, self.request.id, hour)))
        raise ConnectionError

    assert strike.topics.dead_letter is not None
    for topic in (strike.topics.retry, strike.topics.calls, strike.topics.dead_letter):
        app.declare(topic)
    worker = start_worker(app)
    struck.publish(12) if event else strike.delay(12)
    wait_until(lambda: len(attempts) >= 1, "it did not run")
    wait_until(lambda: broker.backlog(strike.topics.retry, strike.subscription) == 1, "no retry")
    worker.stop()
    forward(app)
    wait_until(lambda: broker.backlog(strike.topics.calls, strike.subscription) == 1, "the retry was not moved")
    start_worker(app)
    wait_until(lambda: broker.backlog(str(strike.topics.dead_letter), "dead-letters") == 1, "it was not given up")

    assert [retries for retries, _ in attempts] == [0, 1, 2]
    assert {who for _, who in attempts} == {("12", attempts[0][1][1], 12)}


@pytest.mark.guarantee(3)
def test_a_retry_that_was_moved_twice_runs_once(
    app: PulsarTasks,
    broker: BrokerUnderTest,
    forward: Callable[[PulsarTasks], None],
    start_worker: Workers,
) -> None:
    attempts: list[int] = []

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=4.0)
    def strike(self: TaskContext) -> None:
        attempts.append(self.retries)
        if not self.retries:
            raise ConnectionError

    topics = strike.topics
    for topic in (topics.retry, topics.calls):
        app.declare(topic)
    worker = start_worker(app)
    strike.delay()
    wait_until(lambda: broker.backlog(topics.retry, strike.subscription) == 1, "no retry")
    worker.stop()
    with closing(app.broker.read(topics.retry, since=0.0)) as reader:
        retry = reader.receive(10)
    assert retry is not None
    forward(app)
    app.broker.publish(Publication(topics.calls, retry.value, retry.key, retry.properties))  # as another copy would
    wait_until(lambda: broker.backlog(topics.calls, strike.subscription) == 2, "the retry was not moved")

    start_worker(app)

    wait_until(lambda: broker.backlog(topics.calls, strike.subscription) == 0, "the copies were not settled")
    assert attempts == [0, 1]


def test_retries_of_calls_that_are_not_stored_are_left_to_workers(app: PulsarTasks) -> None:
    @app.task(durable=False)
    def fleeting() -> None: ...

    assert Forwarding(app)._forwarders == []
