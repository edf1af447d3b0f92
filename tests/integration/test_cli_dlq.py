"""``pulsartasks dlq``: dead letters for people and for programs."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import msgspec
import pytest
from click.testing import CliRunner, Result

from pulsartasks import PulsarTasks
from pulsartasks.cli import main
from pulsartasks.worker.worker import Worker
from tests.conformance.records import Record
from tests.services import wait_until

APP = ["-A", "tests.conformance.tasks:app"]
Dlq = Callable[..., Result]


@pytest.fixture
def dlq(environment: dict[str, str]) -> Dlq:
    """Runs ``pulsartasks dlq`` with these arguments."""
    return lambda *arguments: CliRunner(env=environment).invoke(main, ["dlq", *arguments])


@pytest.fixture
def dead(acting: PulsarTasks) -> dict[str, str]:
    """The ids of three calls that failed, by label: two shared ones and one by key."""
    worker = Worker(acting, topics=["shared", "key_shared"])
    worker.start()
    calls = [acting.tasks["shared"].delay(label, "raise") for label in ("one", "two")]
    calls.append(acting.tasks["key_shared"].delay("key/three", "raise"))
    wait_until(lambda: all(call.failed() for call in calls), "they did not fail")
    worker.stop()
    return dict(zip(("one", "two", "three"), (call.id for call in calls), strict=True))


def test_list_is_a_line_for_each_and_their_number(dlq: Dlq, dead: dict[str, str]) -> None:
    done = dlq("list", *APP)

    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 3
    assert all(task_id in done.stdout for task_id in dead.values())
    assert "failed after 1: ValueError: one" in done.stdout
    assert done.stderr == "3 dead letters.\n"


def test_list_of_nothing_says_so(dlq: Dlq) -> None:
    done = dlq("list", *APP, "-t", "shared")

    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "0 dead letters.\n")


def test_list_of_one_task(dlq: Dlq, dead: dict[str, str]) -> None:
    done = dlq("list", *APP, "-t", "key_shared", "--json")

    [letter] = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert (letter["id"], letter["task"], letter["key"]) == (dead["three"], "key_shared", "key")
    assert msgspec.json.decode(letter["value"]) == {"args": ["key/three", "raise"], "kwargs": {}}
    assert letter["dead_letter"]["exception_type"] == "ValueError"
    assert done.stderr == ""


def test_show_tells_the_whole_story(dlq: Dlq, dead: dict[str, str]) -> None:
    done = dlq("show", *APP, dead["one"])

    assert done.exit_code == 0
    for part in (dead["one"], "ValueError: one", "attempts   1", '{"args":["one","raise"],"kwargs":{}}', "Traceback"):
        assert part in done.stdout


def test_show_of_what_is_not_there_fails(dlq: Dlq, dead: dict[str, str]) -> None:
    done = dlq("show", *APP, "nobody")

    assert done.exit_code == 1
    assert "no dead letter nobody" in done.stderr


def test_replay_sends_one_again_and_leaves_the_others(
    dlq: Dlq, dead: dict[str, str], acting: PulsarTasks, record: Record
) -> None:
    before = len(record.labels())

    done = dlq("replay", *APP, dead["two"])

    assert (done.exit_code, done.stdout) == (0, f"replayed shared {dead['two']}\n")
    worker = Worker(acting, topics=["shared"])
    worker.start()
    record.wait_for(before + 1)
    wait_until(lambda: len(dlq("list", *APP).stdout.splitlines()) == 3, "it did not fail again")
    worker.stop()
    assert record.labels()[before:] == ["two"]


def test_replay_of_all_of_a_task_leaves_those_of_others(dlq: Dlq, dead: dict[str, str]) -> None:
    done = dlq("replay", *APP, "--all", "-t", "shared")

    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 2
    assert dead["three"] in dlq("list", *APP).stdout
    assert len(dlq("list", *APP).stdout.splitlines()) == 1


def test_replay_of_all(dlq: Dlq, dead: dict[str, str]) -> None:
    done = dlq("replay", *APP, "--all")

    assert (done.exit_code, done.stderr) == (0, "3 replayed.\n")
    assert dlq("list", *APP).stdout == ""


def test_replay_of_all_of_a_task_without_any_replays_nothing(dlq: Dlq, dead: dict[str, str]) -> None:
    done = dlq("replay", *APP, "--all", "-t", "exclusive")

    assert (done.exit_code, done.stderr) == (0, "0 replayed.\n")
    assert len(dlq("list", *APP).stdout.splitlines()) == 3


def test_replay_of_what_is_not_there_fails(dlq: Dlq, dead: dict[str, str]) -> None:
    done = dlq("replay", *APP, dead["one"], "nobody")

    assert done.exit_code == 1
    assert "not among the dead letters: nobody" in done.stderr
    assert f"replayed shared {dead['one']}" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--all", "some-id"]])
def test_replay_wants_ids_or_all(arguments: list[str], dlq: Dlq) -> None:
    done = dlq("replay", *APP, *arguments)

    assert done.exit_code == 2
    assert "give the ids of dead letters, or --all" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([*APP, "-t", "sharde"], "no task 'sharde'; known are: batch, early, exclusive, failover, key_shared, "),
        (["-A", "tests.no_such_module"], "no module 'tests.no_such_module'"),
    ],
)
def test_wrong_task_or_app_is_said_in_a_line(arguments: list[str], reason: str, dlq: Dlq) -> None:
    done = dlq("list", *arguments)

    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert reason in done.stderr


def test_broker_that_is_away_is_said_in_a_line(environment: dict[str, str]) -> None:
    environment["PULSARTASKS_BROKER"] = f"local:///proc/{uuid4().hex}/broker.db"

    done = CliRunner(env=environment).invoke(main, ["dlq", "list", *APP])

    assert done.exit_code == 1
    assert done.stderr.startswith("Error: the local broker's folder")
