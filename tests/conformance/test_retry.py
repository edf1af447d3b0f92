"""Guarantee 3: a retry is held by the broker, on a topic of its subscription alone, and comes when it is due."""

from __future__ import annotations

from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks, Retry, TaskContext
from pulsartasks.brokers.base import Subscription
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.errors import MaxRetriesExceededError
from pulsartasks.message import Publication
from tests.conformance.conftest import BrokerUnderTest, StartProcess, Workers
from tests.conformance.records import Record
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(3)


@pytest.mark.wire
def test_failed_message_runs_again_until_it_succeeds(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True, autoretry_for=(ConnectionError,), default_retry_delay=0.0)
    def connect(context: TaskContext) -> int:
        if context.retries < 2:
            raise ConnectionError
        return context.retries

    start_worker(app)

    assert connect.delay().get(timeout=120) == 2


def test_error_that_is_not_named_is_not_retried(app: PulsarTasks, start_worker: Workers, record: Record) -> None:
    @app.task(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,), default_retry_delay=0.0)
    def fail(kind: str) -> None:
        with record.attempt(kind):
            raise {"value": ValueError, "missing": FileNotFoundError}[kind]

    start_worker(app)

    for kind, error in (("value", ValueError), ("missing", FileNotFoundError)):
        with pytest.raises(error):
            fail.delay(kind).get(timeout=120)
    assert record.labels() == ["value", "missing"]


@pytest.mark.parametrize("mode", ["shared", "exclusive", "failover", "key_shared"])
def test_retry_does_not_come_before_its_delay(
    mode: str, acting: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    start_worker(acting, topics=[mode])

    acting.tasks[mode].delay("message", "retry", times=2)

    runs = record.wait_for(3)
    assert [run.attempt for run in runs] == [1, 2, 3]
    for earlier, later in pairwise(runs):
        assert earlier.ended is not None
        assert later.began - earlier.ended >= 0.3


def test_backoff_doubles_and_is_logged(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=0.1, retry_jitter=False)
    def connect(context: TaskContext) -> None:
        if context.retries < 3:
            raise ConnectionError

    with capture_logs() as logs:
        start_worker(app)
        connect.delay().get(timeout=120)

    assert [entry["delay"] for entry in logs if entry["event"] == "message.retried"] == [0.1, 0.2, 0.4]


def test_task_asks_for_its_own_retry(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(bind=True, max_retries=1)
    def ask(context: TaskContext, error: bool) -> int:
        if context.retries < 1 or error:
            raise context.retry(countdown=0.0, exc=KeyError("mine") if error else None)
        return context.retries

    start_worker(app)

    assert ask.delay(error=False).get(timeout=120) == 1
    with pytest.raises(KeyError, match="mine"):
        ask.delay(error=True).get(timeout=120)


def test_task_that_goes_on_asking_without_a_reason_fails_as_out_of_retries(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(bind=True, max_retries=2)
    def ask(context: TaskContext) -> None:
        raise context.retry(countdown=0.0)

    @app.task(max_retries=2)
    def ask_by_hand(error: bool) -> None:
        raise Retry(0.0, KeyError("mine") if error else None)

    start_worker(app)

    for call in (ask.delay(), ask_by_hand.delay(error=False)):
        with pytest.raises(MaxRetriesExceededError, match="failed 3 times"):
            call.get(timeout=120)
    with pytest.raises(KeyError, match="mine"):
        ask_by_hand.delay(error=True).get(timeout=120)


def test_waiting_retry_is_a_message_on_the_subscriptions_retry_topic_with_the_java_clients_names(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(
        topic="work",
        subscription="mail",
        bind=True,
        autoretry_for=(OSError,),
        default_retry_delay=2.0,
        key=lambda n: "k",
    )
    def send(context: TaskContext, number: int) -> dict[str, str]:
        if context.retries < 1:
            raise OSError
        return dict(context.request.headers)

    retry = f"{app.qualify('work')}-mail-RETRY"
    worker = start_worker(app)
    result = send.using(headers={"colour": "red"}).delay(7)
    wait_until(lambda: broker.backlog(retry, "mail") == 1, "no retry is waiting")
    wait_until(lambda: broker.backlog(app.qualify("work"), "mail") == 0, "the original was not acknowledged")
    worker.stop()

    with_headers = start_worker(app)
    headers = result.get(timeout=120)

    assert headers["RECONSUMETIMES"] == "1"
    assert headers["DELAY_TIME"] == "2000"
    assert headers["REAL_TOPIC"] == app.qualify("work")
    assert headers["REAL_SUBSCRIPTION"] == "mail"
    assert headers["ORIGIN_MESSAGE_ID"]
    assert headers["colour"] == "red"
    with_headers.stop()
    assert broker.backlog(retry, "mail") == 0


def test_event_has_the_same_id_in_every_attempt_and_as_a_dead_letter(app: PulsarTasks, start_worker: Workers) -> None:
    happened = app.topic("happened", schema=str, subscriptions=("mail",))
    ids: list[str] = []

    @app.task(
        topic=happened, subscription="mail", bind=True, max_retries=2, autoretry_for=(OSError,), default_retry_delay=0.0
    )
    def fail(context: TaskContext, text: str) -> None:
        ids.append(context.id)
        raise OSError

    start_worker(app)
    published = happened.publish("once")

    wait_until(lambda: len(ids) == 3, "it did not run three times")
    wait_until(lambda: [letter.id for letter in DeadLetters(app, fail).list()] == [published], "no such dead letter")
    assert ids == [published] * 3

    assert len(list(DeadLetters(app, fail).replay())) == 1
    wait_until(lambda: len(ids) == 6, "it did not run three times again")
    wait_until(lambda: [letter.id for letter in DeadLetters(app, fail).list()] == [published], "no such dead letter")
    assert ids == [published] * 6


def test_copy_of_a_client_that_does_not_say_whose_it_is_keeps_its_origin(
    app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(topic="work", subscription="mail", max_retries=1, autoretry_for=(OSError,))
    def fail() -> None:
        raise OSError

    as_go_says_it = {"RECONSUMETIMES": "1", "REAL_TOPIC": fail.topics.work, "ORIGIN_MESSAGE_IDY_TIME": "17:4:-1"}
    app.publish(Publication(fail.topics.retry, b"{}", properties=as_go_says_it))
    start_worker(app)

    wait_until(lambda: any(DeadLetters(app, fail).list()), "there is no dead letter")
    [letter] = DeadLetters(app, fail).list()
    assert letter.story is not None
    assert (letter.story.attempts, letter.story.topic, letter.story.subscription) == (2, fail.topics.work, "mail")
    assert letter.delivery.properties["ORIGIN_MESSAGE_ID"] == "17:4:-1"


def test_retry_of_one_subscription_is_not_seen_by_another(
    app: PulsarTasks, start_worker: Workers, record: Record
) -> None:
    happened = app.topic("happened", schema=str, subscriptions=("calm", "troubled"))

    @app.task(topic=happened, subscription="calm")
    def calm(text: str) -> None:
        with record.attempt(f"calm/{text}"):
            pass

    @app.task(topic=happened, subscription="troubled", bind=True, autoretry_for=(OSError,), default_retry_delay=0.1)
    def troubled(context: TaskContext, text: str) -> None:
        with record.attempt(f"troubled/{text}", context.retries + 1):
            if context.retries < 2:
                raise OSError

    start_worker(app)
    happened.publish("once")
    record.wait_for(4)
    happened.publish("twice")

    runs = record.wait_for(8)
    seen = sorted((run.label, run.attempt) for run in runs)
    assert seen == sorted(
        [("calm/once", 1), ("calm/twice", 1)]
        + [(f"troubled/{text}", attempt) for text in ("once", "twice") for attempt in (1, 2, 3)]
    )


@pytest.mark.guarantee(1)
def test_retry_survives_the_death_of_all_workers(
    broker: BrokerUnderTest,
    acting: PulsarTasks,
    start_process: StartProcess,
    start_worker: Workers,
    record: Record,
) -> None:
    shared = acting.tasks["shared"]
    worker = start_process("shared")
    shared.delay("message", "retry later", times=1)
    worker.wait_for_log("message.retried")
    wait_until(lambda: broker.backlog(shared.topics.work, shared.subscription) == 0, "the original is still there")

    worker.kill()
    start_worker(acting, topics=["shared"])

    runs = record.wait_for(2)
    assert [run.attempt for run in runs] == [1, 2]


@pytest.mark.guarantee(2)
def test_message_with_no_retry_left_becomes_a_dead_letter(app: PulsarTasks, start_worker: Workers) -> None:
    @app.task(autoretry_for=(OSError,), max_retries=2, default_retry_delay=0.0)
    def fail() -> None:
        raise OSError("still away")

    start_worker(app)
    with pytest.raises(OSError, match="still away"):
        fail.delay().get(timeout=120)

    [letter] = DeadLetters(app, fail).list()
    assert letter.story is not None
    assert letter.story.attempts == 3


@pytest.mark.guarantee(2)
def test_nothing_is_left_of_a_message_that_succeeded_at_last(
    broker: BrokerUnderTest, app: PulsarTasks, start_worker: Workers
) -> None:
    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0.0)
    def connect(context: TaskContext) -> None:
        if context.retries < 1:
            raise OSError

    worker = start_worker(app)
    connect.delay().get(timeout=120)
    worker.stop()

    topics = connect.topics
    assert [broker.backlog(topic, connect.subscription) for topic in (topics.work, topics.retry)] == [0, 0]
    consumer = app.broker.subscribe(Subscription((topics.retry,), connect.subscription))
    assert consumer.receive(0.2) is None
    consumer.close()
