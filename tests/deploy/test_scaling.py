"""The autoscaler watches what the apps declare, all of it, and nothing that is not due; roles may do what they must."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

from pulsartasks import catalog
from pulsartasks.cli.topics import apply
from pulsartasks.roles import Role
from tests.deploy.declared import Declared, declared
from tests.deploy.manifests import (
    APPS,
    PULSAR,
    WORKERS,
    Manifest,
    containers_of,
    environment_of,
    name_of,
    named,
    of_kind,
    pod_of,
    render,
)
from tests.secure import NAMESPACE, SecurePulsarServer


def namespace() -> str:
    [config] = of_kind(render(APPS["prod"]), "ConfigMap")
    return str(config["data"]["PULSARTASKS_NAMESPACE"])


def topics_of(name: str) -> dict[str, Declared]:
    """The topics of one app, or with `tasks` of all of them, by name."""
    path = "apps.tasks:app" if name == "tasks" else f"apps.{name}.tasks:app"
    return {topic.name: topic for topic in declared(path, namespace())}


def watched(name: str) -> set[tuple[str, str]]:
    triggers = named(render(APPS["prod"]), "ScaledObject", name)["spec"]["triggers"]
    return {(trigger["metadata"]["topic"], trigger["metadata"]["subscription"]) for trigger in triggers}


@pytest.mark.parametrize("name", WORKERS)
def test_autoscaler_watches_all_that_the_worker_consumes_when_it_is_due(name: str) -> None:
    consumed = {(topic.name, subscription) for topic in topics_of(name).values() for subscription in topic.consumed_by}

    assert watched(name) == consumed
    assert consumed


@pytest.mark.parametrize("name", WORKERS)
def test_autoscaler_watches_subscriptions_that_are_declared(name: str) -> None:
    topics = topics_of("tasks")
    for topic, subscription in watched(name):
        assert subscription in topics[topic].subscriptions
        assert {catalog.EVENTS, catalog.CALLS} & {*topics[topic].kinds}
        assert not topics[topic].partitions  # else isPartitionedTopic would have to be set


def test_autoscaler_watches_nothing_that_waits_to_be_due() -> None:
    assert not [topic for name in WORKERS for topic, _ in watched(name) if topic.endswith(("-RETRY", "-DELAYED"))]


@pytest.mark.parametrize("stage", APPS)
def test_autoscaler_scales_what_is_there_and_asks_where_pulsar_answers(stage: str) -> None:
    manifests = render(APPS[stage])
    [config] = of_kind(manifests, "ConfigMap")
    for scaled in of_kind(manifests, "ScaledObject"):
        spec = scaled["spec"]
        assert name_of(named(manifests, "Deployment", spec["scaleTargetRef"]["name"])) in WORKERS
        assert spec["minReplicaCount"] <= spec["fallback"]["replicas"]
        for trigger in spec["triggers"]:
            assert trigger["metadata"]["adminURL"] == config["data"]["PULSARTASKS_ADMIN_URL"]
            assert trigger["authenticationRef"]["name"] == name_of(next(of_kind(manifests, "TriggerAuthentication")))


def test_transcribe_alone_goes_to_zero_and_beat_stays() -> None:
    least = {name: named(render(APPS["prod"]), "ScaledObject", name)["spec"]["minReplicaCount"] for name in WORKERS}

    assert least.pop("transcribe") == 0
    assert all(least.values())
    assert named(render(APPS["prod"]), "Deployment", "beat")["spec"]["replicas"] == 2


def applied() -> Iterator[tuple[str, tuple[str, ...]]]:
    """For each container of the Job `topics` its app and the roles."""
    for container in containers_of(named(render(APPS["prod"]), "Job", "topics")):
        asked = apply.make_context("apply", list(container["args"])).params
        yield asked["app_path"], asked["roles"]


def permitted(role: str) -> dict[str, set[str]]:
    """What the Job `topics` permits a role, by topic."""
    found: dict[str, set[str]] = {}
    for app, roles in applied():
        for topic in declared(app, namespace(), roles):
            if role in topic.permissions:
                found.setdefault(topic.name, set()).update(topic.permissions[role])
    return found


def test_each_role_that_gets_permissions_has_a_token() -> None:
    roles = {Role.parse(role).name for _, roles in applied() for role in roles}
    script = (PULSAR["dev"] / "tokens.sh").read_text()

    tokens = {role for words in re.findall(r"for role in (.+); do", script) for role in words.split()}

    assert tokens == roles | {_token_of(named(render(APPS["prod"]), "Job", "topics"))}


def test_autoscaler_may_see_each_backlog_that_it_watches() -> None:
    may = permitted("keda")

    assert {topic for name in WORKERS for topic, _ in watched(name)} <= may.keys()
    assert {action for actions in may.values() for action in actions} == {"consume"}


def test_pulsar_shows_a_backlog_to_who_may_consume_and_to_nobody_else(secure_pulsar: SecurePulsarServer) -> None:
    """What makes `watch` the least that an autoscaler can do with; the request is the one of KEDA."""
    topic = f"persistent/{NAMESPACE}/{uuid4().hex}"
    secure_pulsar.admin("PUT", f"{topic}/subscription/transcribe")
    secure_pulsar.admin("POST", f"{topic}/permissions/keda", ["consume"])
    context = ssl.create_default_context(cafile=str(secure_pulsar.authority.certificate))

    def asks(role: str) -> Any:
        headers = {"Authorization": f"Bearer {secure_pulsar.tokens.token(role)}"}
        request = Request(f"{secure_pulsar.admin_url}/admin/v2/{topic}/stats", headers=headers)
        with urlopen(request, timeout=30, context=context) as answer:
            return json.loads(answer.read())

    assert asks("keda")["subscriptions"]["transcribe"]["msgBacklog"] == 0
    with pytest.raises(HTTPError) as refused:
        asks("somebody")
    refused.value.close()
    assert refused.value.code in (401, 403)


@pytest.mark.parametrize("name", WORKERS)
def test_worker_may_consume_what_it_is_for_and_not_what_others_are_called_with(name: str) -> None:
    may = permitted(name)
    of_others = {
        topic.name
        for topic in topics_of("tasks").values()
        if {catalog.CALLS, catalog.RETRY, catalog.DELAYED} & {*topic.kinds} and name not in topic.subscriptions
    }

    assert all("consume" in may[topic] for topic, _ in watched(name))
    assert of_others
    assert not of_others & may.keys()


def test_web_may_call_and_publish_and_read_nothing_but_events_and_results() -> None:
    may = permitted("web")

    for topic in topics_of("tasks").values():
        if {catalog.EVENTS, catalog.CALLS} & {*topic.kinds} and topic.name in may:
            assert "produce" in may[topic.name]
        if {catalog.CALLS, catalog.RETRY, catalog.DELAYED} & {*topic.kinds}:
            assert "consume" not in may.get(topic.name, ())


def test_beat_may_move_what_is_due() -> None:
    may = permitted("beat")
    for topic in topics_of("tasks").values():
        if {catalog.RETRY, catalog.DELAYED} & {*topic.kinds}:
            assert may[topic.name] == {"consume", "produce"}
        elif catalog.CALLS in topic.kinds:
            assert may[topic.name] == {"produce"}


@pytest.mark.parametrize("name", [*WORKERS, "web"])
def test_process_that_may_wait_for_results_uses_the_reply_topic_of_its_role(name: str) -> None:
    manifests = render(APPS["dev"])
    for workload in of_kind(manifests, "Deployment"):
        token = _token_of(workload)
        if token == name:
            [container] = containers_of(workload)
            assert environment_of(container, manifests)["PULSARTASKS_REPLY_TO"] == Role(name, frozenset()).reply_name


def _token_of(workload: Manifest) -> str:
    (volume,) = (each for each in pod_of(workload)["volumes"] if each["name"] == "pulsar")
    (name,) = (
        source["secret"]["name"]
        for source in volume["projected"]["sources"]
        if source["secret"]["name"].startswith("pulsar-token-")
    )
    return str(name).removeprefix("pulsar-token-")
