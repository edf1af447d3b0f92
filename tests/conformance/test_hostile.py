"""Guarantee 4: whatever is written to its topics, a worker stays up, settles it, and does not grow."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pulsartasks import PulsarTasks
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.message import ETA, LATEST_ETA, TASK, Publication, milliseconds
from pulsartasks.worker.consumer import ORDERED_BUFFER
from tests.conformance import hostile
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.conformance.processes import WorkerProcess
from tests.services import wait_until

pytestmark = pytest.mark.guarantee(4)

SMALL = 5_000
"""Messages of each of two waves."""
GROWTH = 60_000
"""KiB by which a worker may be larger after two waves: its indexes and memories, but no message."""


@dataclass
class Siege:
    """An app under attack, what is sent to it, and what became of that."""

    app: PulsarTasks
    broker: BrokerUnderTest
    ran_file: Path

    def send(self, publications: Sequence[Publication]) -> None:
        confirmed = self.app.broker.publish_many(publications, timeout=60)
        assert not [outcome for outcome in confirmed if isinstance(outcome, Exception)]

    def wait_until_settled(self) -> None:
        places = [(place.topic, self.app.tasks[place.task].subscription) for place in hostile.targets(self.app)]
        wait_until(lambda: not any(self.broker.backlog(*place) for place in places), "not all was settled", 120)

    def ran(self) -> Counter[str]:
        """How often each message ran to its end."""
        return Counter(self.ran_file.read_text().splitlines())

    def died(self) -> tuple[Counter[str], Counter[str]]:
        """How often each message is among the dead letters, and the reasons that these give."""
        letters = list(DeadLetters(self.app, *self.app.tasks.values()).list())
        reasons = Counter(letter.story.reason for letter in letters if letter.story is not None)
        return Counter(letter.delivery.properties.get(hostile.NUMBER, "") for letter in letters), reasons


@pytest.fixture
def siege(broker: BrokerUnderTest, name: str, tmp_path: Path) -> Iterator[Siege]:
    ran = tmp_path / "ran"
    ran.touch()
    app = hostile.make_app(name, broker.url, ran)
    for target in hostile.targets(app):
        app.declare(target.topic)
    yield Siege(app, broker, ran)
    app.close()


@pytest.fixture
def worker(siege: Siege) -> Iterator[WorkerProcess]:
    """A worker process of that app."""
    app = siege.app
    env = {"PULSARTASKS_BROKER": siege.broker.url, hostile.APP: app.name, hostile.RAN: str(siege.ran_file)}
    # Else glibc keeps up to 64 MiB for each thread of what large messages took, and nobody sees what the worker keeps.
    env["MALLOC_MMAP_THRESHOLD_"] = "131072"
    worker = WorkerProcess("-c", "4", env=env, app="tests.conformance.hostile:app")
    yield worker
    worker.clean_up()


def size(worker: WorkerProcess) -> int:
    """KiB of memory that the worker's one process holds."""
    [pid] = worker.children()
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], check=True, capture_output=True).stdout)


@pytest.mark.guarantee(2, 13)
def test_ten_thousand_hostile_messages_are_all_settled_and_the_worker_neither_stops_nor_grows(
    siege: Siege, worker: WorkerProcess
) -> None:
    app = siege.app
    app.broker.declare(app.qualify(hostile.VICTIM), ["victim"])
    waves = [[*hostile.messages(app, seed, SMALL), *hostile.big_messages(app, seed)] for seed in (1, 2)]
    worker.wait_until_ready()
    before = size(worker)

    for wave in waves:
        siege.send(wave)
        siege.wait_until_settled()

    sent = Counter(publication.properties[hostile.NUMBER] for wave in waves for publication in wave)
    ran = siege.ran()
    died, reasons = siege.died()
    assert (sent - ran - died).total() == died.pop("", 0)  # of some the headers were too much for a dead letter
    assert set(ran) | set(died) <= set(sent)
    assert max(*ran.values(), *died.values()) == 1
    assert set(reasons) == {"unreadable", "unknown task", "failed"}
    assert siege.broker.backlog(app.qualify(hostile.VICTIM), "victim") == 0
    assert app.tasks["spread"].delay("still there").get(timeout=120) == "still there"
    assert len(worker.children()) == 1
    assert not worker.logged("consumer.failed")
    wait_until(lambda: size(worker) < before + GROWTH, "the worker grew")


def test_hostile_dead_letters_can_be_listed_and_sent_again(siege: Siege, start_worker: Workers) -> None:
    task = siege.app.tasks["spread"]
    assert task.topics.dead_letter is not None
    siege.app.declare(task.topics.dead_letter)
    letters = hostile.messages(siege.app, 3, 300, [hostile.Target(task.topics.dead_letter, "spread")])
    siege.send(letters)
    sent = Counter(letter.properties[hostile.NUMBER] for letter in letters)
    start_worker(siege.app)

    assert siege.died()[0] == sent
    # What names a task that nobody knows would be waited for.
    assert list(DeadLetters(siege.app, task).replay(lambda letter: letter.task == "spread"))

    siege.wait_until_settled()
    died, _ = siege.died()
    assert set(siege.ran()) | set(died) == set(sent)


@pytest.mark.guarantee(7)
def test_messages_that_are_due_much_later_do_not_take_the_place_of_others(siege: Siege, start_worker: Workers) -> None:
    # Their header says so, but their sender did not ask the broker to hold them.
    work = siege.app.tasks["ordered"].topics.work
    later = {TASK: "ordered", ETA: milliseconds(time.time() + 86_400)}
    siege.send([Publication(work, b'{"args":[1]}', f"k{number}", later) for number in range(ORDERED_BUFFER + 200)])
    start_worker(siege.app)

    assert siege.app.tasks["ordered"].delay("due").get(timeout=120) == "due"
    assert siege.ran_file.read_text().split() == []  # none of them ran; what is due has no number
    wait_until(lambda: siege.broker.backlog(work, siege.app.name) == 0, "they were not put aside", 60)


def test_eta_beyond_all_reason_is_a_dead_letter(siege: Siege, start_worker: Workers) -> None:
    eta = str(int(LATEST_ETA * 1_000_000))
    headers = {TASK: "spread", ETA: eta, hostile.NUMBER: "one"}
    siege.send([Publication(siege.app.tasks["spread"].topics.delayed, b'{"args":[1]}', properties=headers)])
    start_worker(siege.app)

    siege.wait_until_settled()
    [letter] = DeadLetters(siege.app, siege.app.tasks["spread"]).list()
    assert letter.story is not None
    assert (letter.story.reason, ETA in letter.story.exception_message) == ("unreadable", True)
