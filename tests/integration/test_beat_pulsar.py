"""Beat on Pulsar: a leader that is cut off or held up sends nothing any more; a policy makes doubts short."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from pulsartasks import PulsarTasks, every
from pulsartasks.beat import term as term_module
from pulsartasks.beat.leadership import Leadership, Seen, Sending, log_topic, read_newest
from pulsartasks.beat.term import HOLD, Term
from pulsartasks.clock import FrozenClock
from tests.conformance import schedules
from tests.conformance.processes import WorkerProcess
from tests.conformance.schedules import Ticks, watching
from tests.faults.proxy import Proxy
from tests.services import LOOPBACK, PulsarServer, wait_until

Start = Callable[..., WorkerProcess]


@pytest.fixture
def app(pulsar_server: PulsarServer) -> Iterator[PulsarTasks]:
    url = f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}"
    with closing(schedules.make_app(f"t{uuid4().hex[:10]}", url)) as app:
        yield app


@pytest.fixture
def ticks(app: PulsarTasks) -> Iterator[Ticks]:
    task = app.tasks["often"]
    with watching(app, task.topics.calls, task.subscription) as found:
        yield found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(app: PulsarTasks) -> Iterator[Start]:
    """Starts a copy of beat."""
    with ExitStack() as stack:

        def start(url: str | None = None) -> WorkerProcess:
            copy = schedules.start_beat(app, url=url)
            stack.callback(copy.clean_up)
            return copy

        yield start


def contiguous(ticks: Ticks) -> bool:
    """Whether each second had its tick, and one."""
    return bool(ticks.look()) and set(ticks.gaps) <= {1000}


def test_leader_that_is_cut_off_leads_no_more_and_every_tick_comes_once(
    app: PulsarTasks, start: Start, ticks: Ticks
) -> None:
    port = urlsplit(app.broker_url).port
    assert port is not None
    proxy = Proxy(port)
    with closing(proxy):
        url = app.broker_url.replace(f"{LOOPBACK}:{port}", f"{LOOPBACK}:{proxy.port}", 1)
        leader = start(url)
        leader.wait_for_log("tick.sent")
        other = start()
        other.wait_for_log("beat.stood_by")

        proxy.cut()

        other.wait_for_log("tick.sent", count=3, timeout=90)
        leader.wait_for_log("beat.interrupted")
        sent = len(leader.logged("tick.sent"))
        proxy.restore()
        leader.wait_for_log("beat.stood_by")
        other.wait_for_log("tick.sent", count=len(other.logged("tick.sent")) + 2)
        assert len(leader.logged("tick.sent")) == sent
        wait_until(lambda: contiguous(ticks), f"ticks are missing, or came twice: {ticks.seen}", HOLD + 5)


def test_leader_that_was_held_up_sends_nothing_any_more(app: PulsarTasks, start: Start, ticks: Ticks) -> None:
    leader = start()
    leader.wait_for_log("tick.sent")
    other = start()
    other.wait_for_log("beat.stood_by")

    os.kill(leader.pid, signal.SIGSTOP)
    try:
        other.wait_for_log("tick.sent", count=3, timeout=90)
    finally:
        os.kill(leader.pid, signal.SIGCONT)

    leader.wait_for_log("beat.stood_by")
    assert contiguous(ticks), ticks.seen
    assert _instant(other, "beat.elected") < _instant(leader, "beat.stood_by")


def test_ticks_go_on_while_their_log_and_their_topic_move(
    app: PulsarTasks, start: Start, ticks: Ticks, pulsar_server: PulsarServer
) -> None:
    for _ in range(2):
        start()
    wait_until(lambda: len(ticks.look()) > 1, "nothing was sent")

    for topic in (log_topic(app), app.tasks["often"].topics.calls, log_topic(app)):
        pulsar_server.unload(topic)
        came = len(ticks.seen)
        wait_until(lambda came=came: len(ticks.look()) > came + 1, "nothing is sent any more")  # type: ignore[misc]

    wait_until(lambda: contiguous(ticks), f"ticks are missing, or came twice: {ticks.seen}", HOLD + 5)


def _instant(copy: WorkerProcess, event: str) -> datetime:
    return datetime.fromisoformat(copy.logged(event)[0]["timestamp"]).astimezone(timezone.utc)


def test_tick_without_a_key_that_was_sent_before_is_found_whichever_partition_has_it(
    app: PulsarTasks, pulsar_server: PulsarServer, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    """Each partition would know only its own. The leader is killed after it had sent the ticks of ten entries."""
    monkeypatch.setattr(term_module, "HOLD", 0.0)
    app = stack.enter_context(closing(PulsarTasks(f"{app.name}d", app.broker_url)))
    topic = app.topic("divided", schema=dict, subscriptions=("s",), partitions=4)
    for number in range(10):
        app.schedule(f"entry-{number}", every(3600.0), topic.s({}))
    app.declare(topic.full_name)
    pulsar_server.admin("POST", f"{topic.full_name.replace('://', '/')}/deduplicationEnabled", True)
    wait_until(lambda: app.broker.deduplicates(topic.full_name, keyed=True), "the policy is not in force")
    app.clock = clock = FrozenClock(datetime(2026, 6, 1, 12, tzinfo=timezone.utc))

    with watching(app, topic.full_name, "s") as ticks:
        with closing(Leadership.take(app)) as leadership, closing(Term(app, leadership)) as term:
            for _ in range(2):
                term.round()
                clock.move(3600)
            with monkeypatch.context() as death:
                death.setattr(Term, "_settle", _die)
                with pytest.raises(KeyboardInterrupt):
                    term.round()
        with closing(Leadership.take(app)) as leadership, closing(Term(app, leadership)) as term:
            term.round()
            assert not read_newest(app).sending

        assert Counter(tick.partition("@")[0] for tick in ticks.look(20, timeout=1.0)) == dict.fromkeys(
            app.scheduled, 2
        )


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_where_the_broker_deduplicates_a_tick_in_doubt_is_sent_at_once_and_stored_once(
    app: PulsarTasks, ticks: Ticks, pulsar_server: PulsarServer
) -> None:
    topic = app.tasks["often"].topics.calls
    pulsar_server.admin("POST", f"{topic.replace('://', '/')}/deduplicationEnabled", True)
    wait_until(lambda: app.broker.deduplicates(topic, keyed=True), "the policy is not in force")
    now = int(app.clock.now()) * 1000
    schedule = str(app.scheduled["often"].schedule)
    for _ in range(3):  # leaders that were killed after they had sent it
        with closing(Leadership.take(app)) as leadership:
            leadership.write({"often": Seen(now - 1000, schedule)}, {"often": Sending([now], now)})
        with closing(Leadership.take(app)) as leadership, closing(Term(app, leadership)) as term:
            term.round()
            assert not read_newest(app).sending

    ticks.look(timeout=1.0)
    assert ticks.instants.count(now) == 1
    assert set(ticks.gaps) <= {1000}
