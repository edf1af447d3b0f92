"""A Java service with Pulsar's plain client, and our workers: they understand each other's messages."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from pulsartasks import PulsarTasks, TaskContext
from pulsartasks.cli import main
from pulsartasks.message import milliseconds
from pulsartasks.worker.worker import Worker
from tests.conformance.records import Record
from tests.integration.conftest import StartProcess
from tests.integration.java_client import QUICK, JavaClient, Received
from tests.services import CHECKOUT, PulsarServer, wait_until

APP = ("-A", "tests.conformance.tasks:app", "-t", "shared")
PROGRAM = re.compile(r"^```\w+\n(?:#|//) ([\w.]+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
Start = Callable[[PulsarTasks], Worker]


@pytest.fixture(scope="module")
def java(java_jars: Path, pulsar_server: PulsarServer) -> Iterator[JavaClient]:
    """The Java service."""
    client = JavaClient(java_jars, pulsar_server.service_url)
    yield client
    client.close()


@pytest.fixture
def environment(environment: dict[str, str], pulsar_server: PulsarServer) -> dict[str, str]:
    """That of all integration tests, with Pulsar instead of a file."""
    return {**environment, "PULSARTASKS_BROKER": f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}"}


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a worker in this process."""
    with ExitStack() as stack:

        def start_one(app: PulsarTasks) -> Worker:
            worker = Worker(app)
            stack.callback(worker.stop)
            worker.start()
            wait_until(lambda: worker.ready, "the worker did not get ready")
            return worker

        yield start_one


@pytest.fixture
def call_topic(acting: PulsarTasks) -> str:
    """Of the task `shared`."""
    return declared(acting, "shared")


@dataclass(frozen=True)
class Order:
    number: int
    customer: str


def test_event_of_java_is_handled(java: JavaClient, acting: PulsarTasks, start: Start) -> None:
    topic = acting.topic(f"{acting.name}.ordered", schema=Order)
    handled: set[tuple[Order, str | None, str | None]] = set()
    every_one = threading.Event()

    @acting.task(bind=True, topic=topic, subscription="mail")
    def mail(self: TaskContext, order: Order) -> None:
        handled.add((order, self.request.key, self.request.headers.get("tenant")))
        if len(handled) == 4:
            every_one.set()

    acting.declare(topic.full_name)
    java.publish(topic.full_name, '{"number": 7, "customer": "Alan"}', key="Alan", tenant="acme")
    java.publish_orders(topic.full_name, "Ada", "Grace", "Zoë")
    start(acting)

    assert every_one.wait(30), handled
    assert handled == {
        (Order(7, "Alan"), "Alan", "acme"),
        (Order(1, "Ada"), "Ada", None),
        (Order(2, "Grace"), "Grace", None),
        (Order(3, "Zoë"), "Zoë", None),
    }


def test_event_of_ours_is_read_by_java(java: JavaClient, acting: PulsarTasks) -> None:
    topic = acting.topic(f"{acting.name}.ordered", schema=Order, key=lambda order: order.customer)
    consumer = java.subscribe(topic.full_name, "java")
    topic.publish(Order(7, "Zoë"), headers={"tenant": "acme"})

    event = consumer.receive()

    assert (event.value, event.key) == ('{"number":7,"customer":"Zoë"}', "Zoë")
    assert event.headers == {"tenant": "acme"}


def test_java_reads_events_of_both_as_its_own_type(java: JavaClient, acting: PulsarTasks) -> None:
    topic = acting.topic(f"{acting.name}.ordered", schema=Order, subscriptions=("java",))
    acting.declare(topic.full_name)
    java.publish_orders(topic.full_name, "Ada")  # which makes the schema known to the broker
    topic.publish(Order(2, "Zoë"))

    assert java.read_orders(topic.full_name, "java", 2) == ["Ada", "Zoë"]


def test_java_calls_a_task_by_its_keywords_and_reads_the_result_that_is_kept(
    java: JavaClient, acting: PulsarTasks, call_topic: str, start: Start
) -> None:
    results = java.subscribe(acting.qualify(f"{acting.name}.results"), "java")
    java.publish(call_topic, '{"label": "one"}', pt_id="order-17")
    start(acting)

    result = results.receive()
    assert (result.key, result.headers["pt-id"]) == ("order-17", "order-17")
    told = msgspec.json.decode(result.value)
    assert (told["id"], told["task"], told["state"]) == ("order-17", "shared", "SUCCESS")
    assert told["value"].startswith("one by ")
    assert acting.tasks["shared"].result("order-17").get(timeout=120) == told["value"]


def test_java_calls_a_task_by_its_name_and_is_told_the_result(
    java: JavaClient, acting: PulsarTasks, call_topic: str, start: Start
) -> None:
    reply_to = f"non-persistent://public/default/{acting.name}.results-java"
    replies = java.subscribe(reply_to, "java")
    call = '{"args": ["one"], "kwargs": {"deed": "raise"}}'
    java.publish(call_topic, call, pt_task="shared", pt_id="order-18", pt_reply_to=reply_to)
    start(acting)

    reply = replies.receive()
    told = msgspec.json.decode(reply.value)
    assert (reply.headers["pt-id"], told["state"]) == ("order-18", "FAILURE")
    assert (told["error"]["type"], told["error"]["message"]) == ("builtins:ValueError", "one")


def test_call_of_java_with_an_eta_is_not_early(
    java: JavaClient, acting: PulsarTasks, record: Record, start: Start
) -> None:
    delayed = acting.tasks["shared"].topics.delayed
    acting.declare(delayed)
    eta = time.time() + 1.0
    java.publish(delayed, '{"label": "one"}', pt_eta=milliseconds(eta))
    start(acting)

    [run] = record.wait_for(1)
    assert run.began >= eta


def test_java_reads_a_dead_letter_and_its_story(
    java: JavaClient, acting: PulsarTasks, call_topic: str, start: Start
) -> None:
    value = '{"label": "one", "deed": "raise"}'
    message_id = java.publish(call_topic, value, key="Ada", tenant="acme")
    start(acting)

    letter = java.subscribe(f"{call_topic}-{acting.name}-DLQ", "java").receive()
    assert (letter.value, letter.key, letter.headers["tenant"]) == (value, "Ada", "acme")
    assert origin(letter) == (call_topic, acting.name, message_id)
    assert (letter.headers["pt-reason"], letter.headers["pt-attempts"]) == ("failed", "1")
    assert (letter.headers["pt-exception-type"], letter.headers["pt-exception-message"]) == ("ValueError", "one")
    assert "raise ValueError(label)" in letter.headers["pt-traceback"]


@pytest.mark.parametrize("mode", ["shared", "key_shared"])
def test_worker_goes_on_where_java_reconsumed_later(
    mode: str, java: JavaClient, acting: PulsarTasks, record: Record, start: Start
) -> None:
    call_topic = declared(acting, mode)
    message_id = java.publish(call_topic, '{"label": "one", "deed": "retry", "times": 9}', key="Ada")
    consumer = java.subscribe(call_topic, acting.name, retries=5)
    consumer.receive()
    consumer.reconsume_later(0.0)
    assert consumer.receive().headers["RECONSUMETIMES"] == "1"
    consumer.reconsume_later(0.5)
    consumer.close()
    start(acting)

    letter = java.subscribe(f"{call_topic}-{acting.name}-DLQ", "java").receive()
    assert [run.attempt for run in record.runs()] == [3, 4]
    assert (letter.headers["pt-attempts"], letter.key) == ("4", "Ada")
    assert origin(letter) == (call_topic, acting.name, message_id)


def test_java_goes_on_where_a_worker_retried(
    java: JavaClient, acting: PulsarTasks, record: Record, call_topic: str, start: Start
) -> None:
    message_id = java.publish(call_topic, '{"label": "one", "deed": "retry", "seconds": 2.5}', key="Ada")
    worker = start(acting)
    record.wait_for(1, ended=False)
    worker.stop()  # after this attempt

    consumer = java.subscribe(call_topic, acting.name, retries=5)
    ours = consumer.receive()
    consumer.reconsume_later(0.0)
    theirs = consumer.receive()
    consumer.acknowledge()

    assert (ours.headers["RECONSUMETIMES"], ours.headers["DELAY_TIME"]) == ("1", "300")
    assert theirs.headers["RECONSUMETIMES"] == "2"
    for copy in (ours, theirs):
        assert (copy.topic, copy.key) == (f"{call_topic}-{acting.name}-RETRY", "Ada")
        assert origin(copy) == (call_topic, acting.name, message_id)


@pytest.mark.parametrize("how", ["reconsumeLater", "negativeAcknowledge"])
def test_dead_letter_of_java_is_listed_shown_and_replayed(
    how: str, java: JavaClient, acting: PulsarTasks, call_topic: str, environment: dict[str, str], start: Start
) -> None:
    call = acting.tasks["shared"].delay("one")
    consumer = java.subscribe(call_topic, acting.name, retries=1)
    for _ in range(2):
        consumer.receive()
        consumer.nack() if how == "negativeAcknowledge" else consumer.reconsume_later(0.0)
    wait_until(lambda: f"{call.id}  shared  " in dlq(environment, "list"), "there is no dead letter")
    consumer.close()

    shown = dlq(environment, "show", call.id)
    assert "task       shared\n" in shown
    assert f"header     REAL_TOPIC: {call_topic}\n" in shown
    assert dlq(environment, "replay", call.id) == f"replayed shared {call.id}\n"
    start(acting)
    assert call.get(timeout=120).startswith("one by ")


def test_page_on_other_languages_does_what_it_says(
    java_jars: Path, environment: dict[str, str], start_process: StartProcess, tmp_path: Path
) -> None:
    page = (CHECKOUT / "docs" / "other-languages.md").read_text("utf-8")
    for name, program in PROGRAM.findall(page):
        (tmp_path / name).write_text(program, "utf-8")
    worker = start_process(app="shop:app", PYTHONPATH=str(tmp_path)).wait_until_ready()

    command = [
        "java",
        *QUICK,
        "-cp",
        f"{java_jars}/*",
        "Shop.java",
        environment["PULSARTASKS_BROKER"].partition("?")[0],
    ]
    java = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=200)

    assert '"task":"charge","state":"SUCCESS","value":6,' in java.stdout
    worker.wait_for_log("message.succeeded", task="send_mail")


def declared(app: PulsarTasks, task: str) -> str:
    """The call topic of a task, with its companions there too."""
    topics = app.tasks[task].topics
    for topic in (topics.work, topics.retry, topics.dead_letter):
        assert topic is not None
        app.declare(topic)
    return topics.work


def origin(copy: Received) -> tuple[str, str, str]:
    """Where a copy says that it was first."""
    return copy.headers["REAL_TOPIC"], copy.headers["REAL_SUBSCRIPTION"], copy.headers["ORIGIN_MESSAGE_ID"]


def dlq(environment: dict[str, str], command: str, *arguments: str) -> str:
    """What ``pulsartasks dlq`` prints."""
    done = CliRunner(env=environment).invoke(main, ["dlq", command, *APP, *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout
