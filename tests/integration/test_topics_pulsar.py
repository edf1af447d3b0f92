"""``pulsartasks topics`` on a real Pulsar: what is planned is there once it is applied, and roles may do that alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from click.testing import CliRunner, Result

from pulsartasks import AuthorizationError, PulsarTasks
from pulsartasks.beat.forwarding import Forwarding
from pulsartasks.beat.leadership import Leadership
from pulsartasks.cli import main
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.worker.worker import Worker
from tests.secure import OPERATOR, SecurePulsarServer
from tests.services import PulsarServer, wait_until

SHOP = """
from datetime import timedelta

import msgspec

from pulsartasks import PulsarTasks

app = PulsarTasks("NAME")


class Order(msgspec.Struct):
    number: int


placed = app.topic(
    "order-placed",
    schema=Order,
    partitions=PARTITIONS,
    subscriptions=("mail",),
    retention=timedelta(hours=30),
    ttl=timedelta(days=10),
    dispatch_rate=500,
)


@app.task(topic=placed, subscription="stock", start="latest")
def put_aside(order: Order) -> None: ...


@app.task
def double(text: str) -> str:
    return text * 2


@app.task(durable=False)
def hurry(text: str) -> str:
    return text * 2


@app.task(autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0.0)
def fail(text: str) -> None:
    raise ValueError("no")
"""
Topics = Callable[..., Result]
WORKER, CALLER = "worker", "caller"
ROLES = ("--role", f"{WORKER}=work", "--role", f"{CALLER}=call")


@pytest.fixture
def name() -> str:
    return f"t{uuid4().hex[:10]}"


@pytest.fixture
def shop(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Writes the shop's module, with so many partitions, and gives its path for ``-A``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def write(partitions: int = 2) -> str:
        written.append(f"shop_{uuid4().hex[:10]}")
        text = SHOP.replace("NAME", name).replace("PARTITIONS", str(partitions))
        (tmp_path / f"{written[-1]}.py").write_text(text)
        return f"{written[-1]}:app"

    yield write
    for module in written:
        sys.modules.pop(module, None)


@pytest.fixture
def topics(pulsar_server: PulsarServer) -> Topics:
    """Runs ``pulsartasks topics`` with these arguments."""
    url = f"{pulsar_server.service_url}?admin_url={pulsar_server.admin_url}"
    return lambda *arguments: CliRunner(env={"PULSARTASKS_BROKER": url}).invoke(main, ["topics", *arguments])


def test_what_was_applied_is_there_and_is_not_planned_again(
    pulsar_server: PulsarServer, topics: Topics, shop: Callable[..., str], name: str
) -> None:
    path = shop()

    planned = topics("plan", "-A", path, "--check", *ROLES)
    applied = topics("apply", "-A", path, *ROLES)
    again = topics("plan", "-A", path, "--check", *ROLES)

    assert (planned.exit_code, applied.exit_code, again.exit_code) == (2, 0, 0), again.output
    assert applied.stdout == planned.stdout
    assert again.stdout == ""
    assert again.stderr == "Nothing to do.\n"
    topic = f"persistent/public/default/{name}.order-placed"
    assert pulsar_server.admin("GET", f"{topic}/partitions") == {"partitions": 2, "deleted": False}
    assert pulsar_server.admin("GET", f"{topic}/subscriptions") == ["mail", "stock"]
    assert pulsar_server.admin("GET", f"{topic}/retention") == {
        "retentionTimeInMinutes": 1800,
        "retentionSizeInMB": -1,
    }
    assert pulsar_server.admin("GET", f"{topic}/messageTTL") == 864_000
    assert pulsar_server.admin("GET", f"schemas/public/default/{name}.order-placed/schema")
    permissions: Any = pulsar_server.admin("GET", f"persistent/public/default/{name}.double/permissions")
    assert {role: set(actions) for role, actions in permissions.items()} == {
        WORKER: {"consume", "produce"},
        CALLER: {"produce"},
    }


def test_partitions_only_grow(topics: Topics, shop: Callable[..., str], name: str) -> None:
    topics("apply", "-A", shop(2))

    more = topics("apply", "-A", shop(3))
    less = topics("plan", "-A", shop(2), "--check")

    assert more.stdout == f"~ partitions of {name}.order-placed: 2 -> 3\n"
    assert less.exit_code == 0
    assert less.stdout == f"? partitions of {name}.order-placed: 3, not 2: there can only be more, never less\n"


def test_what_is_not_in_the_app_is_told_and_left(
    pulsar_server: PulsarServer, topics: Topics, shop: Callable[..., str], name: str
) -> None:
    path = shop()
    topics("apply", "-A", path)
    pulsar_server.admin("PUT", f"persistent/public/default/{name}.double/subscription/audit")
    pulsar_server.admin("PUT", f"persistent/public/default/{name}.old/subscription/x")

    done = topics("apply", "-A", path)

    assert done.stdout.splitlines() == [
        f"? subscription audit on {name}.double: not among the app's definitions",
        f"? topic {name}.old: not among the app's definitions",
    ]
    assert "audit" in str(pulsar_server.stats(f"persistent://public/default/{name}.double"))


def test_list_shows_what_waits(
    pulsar_server: PulsarServer, topics: Topics, shop: Callable[..., str], name: str
) -> None:
    path = shop()
    topics("apply", "-A", path)
    with closing(PulsarTasks(name, pulsar_server.service_url)) as caller:
        double = caller.task(name="double")(lambda text: text)
        double.delay("a")

    listed = topics("list", "-A", path, "--json")

    rows = {row["topic"]: row for row in map(msgspec.json.decode, listed.stdout.splitlines())}
    row = rows[f"persistent://public/default/{name}.double"]
    assert row["subscriptions"] == {name: {"backlog": 1, "delayed": 0, "consumers": 0}}
    assert rows[f"persistent://public/default/{name}.order-placed"]["partitions"] == 2
    assert not any(row["missing"] for row in rows.values())


# Where roles need permissions


@pytest.fixture
def namespace(secure_pulsar: SecurePulsarServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty one, in which nobody but the operator may do anything."""
    namespace = f"public/n{uuid4().hex[:10]}"
    secure_pulsar.admin("PUT", f"namespaces/{namespace}")
    monkeypatch.setenv("PULSARTASKS_NAMESPACE", namespace)
    return namespace


@pytest.fixture
def topics_as(secure_pulsar: SecurePulsarServer, namespace: str) -> Topics:
    """Runs ``pulsartasks topics`` as a role."""
    return lambda role, *arguments: CliRunner(env={"PULSARTASKS_BROKER": secure_pulsar.url(role)}).invoke(
        main, ["topics", *arguments]
    )


@pytest.fixture
def app_as(secure_pulsar: SecurePulsarServer, name: str) -> Iterator[Callable[[str], PulsarTasks]]:
    """The tasks of the shop, for a role."""
    with ExitStack() as stack:

        def make(role: str) -> PulsarTasks:
            app = stack.enter_context(closing(PulsarTasks(name, secure_pulsar.url(role))))
            app.task(name="double")(_double)
            app.task(name="hurry", durable=False)(_double)
            app.task(name="fail", autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0.0)(_fail)
            return app

        yield make


def _double(text: str) -> str:
    return text * 2


def _fail(text: str) -> None:
    raise ValueError("no")


def test_roles_with_the_planned_permissions_do_their_work_and_no_more(
    topics_as: Topics,
    shop: Callable[..., str],
    app_as: Callable[[str], PulsarTasks],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    applied = topics_as(OPERATOR, "apply", "-A", shop(), *ROLES)
    assert applied.exit_code == 0, applied.output
    working, calling = app_as(WORKER), app_as(CALLER)
    worker = Worker(working, concurrency=2, topics=["double", "fail", "hurry"])
    worker.start()
    try:
        wait_until(lambda: worker.ready, "the worker did not get ready")
        monkeypatch.setenv("PULSARTASKS_REPLY_TO", CALLER)

        assert calling.tasks["double"].delay("ab").get(timeout=120) == "abab"
        assert calling.tasks["double"].using(countdown=0.2).delay("cd").get(timeout=120) == "cdcd"
        with pytest.raises(ValueError, match="no"):
            calling.tasks["fail"].delay("ab").get(timeout=120)
        assert calling.tasks["hurry"].delay("ef").get(timeout=120) == "efef"
        calling.revoke("01890a5d-ac96-774b-bcce-b302099a8057")
        assert len(list(DeadLetters(working, working.tasks["fail"]).list())) == 1
        with pytest.raises(AuthorizationError):
            list(DeadLetters(calling, calling.tasks["fail"]).list())
        with pytest.raises(AuthorizationError):
            calling.read(calling.tasks["double"].topics.calls)
    finally:
        worker.stop(grace=10.0)


def test_caller_that_does_not_say_where_it_may_be_replied_to_is_told(
    topics_as: Topics, shop: Callable[..., str], app_as: Callable[[str], PulsarTasks]
) -> None:
    topics_as(OPERATOR, "apply", "-A", shop(), *ROLES)

    with pytest.raises(AuthorizationError, match=f"the role '{CALLER}' has no permission"):
        app_as(CALLER).tasks["double"].delay("ab").get(timeout=120)


def test_beat_with_the_planned_permissions_leads_and_moves_what_is_due(
    topics_as: Topics, shop: Callable[..., str], app_as: Callable[[str], PulsarTasks]
) -> None:
    applied = topics_as(OPERATOR, "apply", "-A", shop(), *ROLES, "--role", "drum=beat")
    assert applied.exit_code == 0, applied.output
    beating, working = app_as("drum"), app_as(WORKER)
    calls = working.tasks["double"].topics.calls
    app_as(CALLER).tasks["double"].using(countdown=0.2).delay("ab")
    forwarding, failures = Forwarding(beating), list[BaseException]()

    forwarding.start(failures.append)
    with closing(Leadership.take(beating)) as leadership:
        leadership.write({}, {})

    try:
        wait_until(lambda: _backlog(working, calls) == 1 or bool(failures), "the call was not moved")
    finally:
        forwarding.stop()
    assert failures == []


def _backlog(app: PulsarTasks, topic: str) -> int:
    state = app.broker.inspect(topic)
    assert state is not None
    return state.subscriptions[app.name].backlog


def test_missing_permission_stops_at_the_step_and_says_who_may(
    topics_as: Topics, shop: Callable[..., str], namespace: str, secure_pulsar: SecurePulsarServer
) -> None:
    role = f"clerk-{uuid4().hex[:6]}"
    secure_pulsar.admin("POST", f"namespaces/{namespace}/permissions/{role}", ["produce", "consume"])

    done = topics_as(role, "apply", "-A", shop())

    assert done.exit_code == 1
    assert "an administrator of the topic's tenant may" in done.stderr
