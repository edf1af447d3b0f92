"""``pulsartasks topics`` on a broker that has subscriptions and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from click.testing import CliRunner, Result

from pulsartasks import PulsarTasks
from pulsartasks.cli import main

APP = ["-A", "tests.conformance.tasks:app"]
Topics = Callable[..., Result]


@pytest.fixture
def topics(environment: dict[str, str]) -> Topics:
    """Runs ``pulsartasks topics`` with these arguments."""
    return lambda *arguments: CliRunner(env=environment).invoke(main, ["topics", *arguments])


def test_apply_makes_the_subscriptions_and_says_that_there_is_no_more(topics: Topics, acting: PulsarTasks) -> None:
    planned = topics("plan", *APP, "--check")
    dry = topics("apply", *APP, "--dry-run", "--role", "w=work")
    applied = topics("apply", *APP)
    again = topics("plan", *APP, "--check")

    assert (planned.exit_code, dry.exit_code, applied.exit_code, again.exit_code) == (2, 0, 0, 0)
    assert planned.stdout == dry.stdout == applied.stdout
    assert f"+ subscription {acting.name} on {acting.name}.shared from the earliest\n" in applied.stdout
    assert "permission" not in dry.stdout
    assert "has subscriptions only: no partitions, policies or permissions" in applied.stderr
    assert (again.stdout, again.stderr.splitlines()[-1]) == ("", "Nothing to do.")


def test_list_shows_what_is_missing_and_what_waits(topics: Topics, acting: PulsarTasks) -> None:
    acting.tasks["shared"].delay("now")
    acting.tasks["shared"].using(countdown=3600).delay("later")

    listed = topics("list", *APP)
    rows = [msgspec.json.decode(line) for line in topics("list", *APP, "--json").stdout.splitlines()]

    lines = [line.split() for line in listed.stdout.splitlines()]
    assert lines[0] == ["topic", "kind", "subscription", "backlog", "delayed", "consumers"]
    assert [f"{acting.name}.shared", "calls", acting.name, "1", "0", "0"] in lines
    assert [f"{acting.name}.shared-{acting.name}-DELAYED", "delayed", acting.name, "1", "1", "0"] in lines
    assert [f"{acting.name}.early", "calls", acting.name, "missing"] in lines
    by_topic = {row["topic"].rpartition("/")[2]: row for row in rows}
    assert by_topic[f"{acting.name}.shared"]["subscriptions"][acting.name]["backlog"] == 1
    assert by_topic[f"{acting.name}.early"] == {
        "topic": acting.tasks["early"].topics.calls,
        "kinds": ["calls"],
        "exists": False,
        "partitions": 0,
        "subscriptions": {},
        "missing": [acting.name],
    }


def test_plan_for_programs_is_an_object_a_line(topics: Topics, acting: PulsarTasks) -> None:
    rows = [msgspec.json.decode(line) for line in topics("plan", *APP, "--json").stdout.splitlines()]

    assert {"sign": "+", "what": f"topic {acting.name}.shared"} in rows


def test_role_that_cannot_be_is_said_in_a_line(topics: Topics) -> None:
    done = topics("plan", *APP, "--role", "web=cook")

    assert done.exit_code == 1
    assert done.stderr.endswith("write ROLE=DUTY,... with duties among call, tail, watch, work, beat\n")
