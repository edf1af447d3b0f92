"""The policies let through what the pods need, and nothing else."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.deploy.manifests import (
    APPS,
    ON_AWS,
    PULSAR,
    WITH_PODS,
    labels_of,
    name_of,
    namespace_of,
    of_kind,
    render,
    selects,
)

APPS_NAMESPACE, PULSAR_NAMESPACE = "babblebox", "pulsar"


@dataclass(frozen=True)
class Place:
    """A pod, or an address outside the cluster."""

    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    address: str = ""


PROXY = Place(PULSAR_NAMESPACE, (("app", "pulsar"), ("component", "proxy")))
BROKER = Place(PULSAR_NAMESPACE, (("app", "pulsar"), ("component", "broker")))
DNS = Place("kube-system", (("k8s-app", "kube-dns"),))
PROMETHEUS = Place("monitoring", (("app.kubernetes.io/name", "prometheus"),))
KEDA = Place("keda", (("app", "keda-operator"),))
S3 = Place(address="52.95.150.1")
CREDENTIALS = Place(address="169.254.170.23")
NODE_METADATA = Place(address="169.254.169.254")
IN_VPC = {"beta": Place(address="10.20.3.4"), "prod": Place(address="10.30.3.4")}
ELSEWHERE = Place(address="10.99.3.4")


def pod(stage: str, name: str) -> Place:
    (workload,) = (each for each in of_kind(render(APPS[stage]), *WITH_PODS) if name_of(each) == name)
    return Place(APPS_NAMESPACE, tuple(labels_of(workload).items()))


def passes(stage: str, source: Place, target: Place, port: int) -> bool:
    """Whether traffic from one place to the other gets out, and in; what no policy selects may do all."""
    policies = [each for each in (*render(APPS[stage]), *render(PULSAR[stage])) if each["kind"] == "NetworkPolicy"]
    return _lets(policies, source, "Egress", target, port) and _lets(policies, target, "Ingress", source, port)


def _lets(policies: list[dict[str, Any]], at: Place, direction: str, other: Place, port: int) -> bool:
    selecting = [
        policy["spec"]
        for policy in policies
        if at.namespace == namespace_of(policy)
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], dict(at.labels))
    ]
    return not selecting or any(_rule_lets(rule, at, other, port) for rule in _rules(selecting, direction))


def _rules(specs: list[dict[str, Any]], direction: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    for spec in specs:
        for rule in spec.get(direction.lower(), ()):
            yield rule, "to" if direction == "Egress" else "from"


def _rule_lets(rule: tuple[Mapping[str, Any], str], at: Place, other: Place, port: int) -> bool:
    given, peers = rule
    ports = given.get("ports")
    if ports is not None and port not in [each["port"] for each in ports]:
        return False
    return peers not in given or any(_is(peer, at.namespace, other) for peer in given[peers])


def _is(peer: Mapping[str, Any], namespace: str, place: Place) -> bool:
    if block := peer.get("ipBlock"):
        if not place.address:
            return False
        address = ipaddress.ip_address(place.address)
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(each) for each in block.get("except", ()))
    if place.address:
        return False
    if "namespaceSelector" in peer:
        here = {"kubernetes.io/metadata.name": place.namespace}
        if not selects(peer["namespaceSelector"], here):
            return False
    elif place.namespace != namespace:
        return False
    return selects(peer.get("podSelector", {}), dict(place.labels))


@pytest.mark.parametrize("stage", APPS)
@pytest.mark.parametrize("name", ["chat", "transcribe", "images", "beat", "topics"])
def test_who_has_a_token_comes_to_the_proxy_and_to_no_broker(stage: str, name: str) -> None:
    for port in (6651, 8443):
        assert passes(stage, pod(stage, name), PROXY, port)
        assert not passes(stage, pod(stage, name), BROKER, port)
    assert passes(stage, pod(stage, name), DNS, 53)
    assert not passes(stage, pod(stage, name), PROXY, 8080)


@pytest.mark.parametrize("stage", ON_AWS)
def test_database_is_for_the_chat_alone(stage: str) -> None:
    database = IN_VPC[stage]
    for name in ("chat", "migrate"):
        assert passes(stage, pod(stage, name), database, 5432)
        assert not passes(stage, pod(stage, name), ELSEWHERE, 5432)
        assert not passes(stage, pod(stage, name), S3, 443)
    for name in ("transcribe", "images", "beat", "topics"):
        assert not passes(stage, pod(stage, name), database, 5432)


@pytest.mark.parametrize("stage", ON_AWS)
def test_blobs_are_for_those_who_work_on_them(stage: str) -> None:
    for name in ("transcribe", "images"):
        assert passes(stage, pod(stage, name), S3, 443)
        assert passes(stage, pod(stage, name), CREDENTIALS, 80)
        assert not passes(stage, pod(stage, name), NODE_METADATA, 80)
        assert not passes(stage, pod(stage, name), IN_VPC[stage], 443)
    assert not passes(stage, pod(stage, "beat"), S3, 443)


@pytest.mark.parametrize("stage", ON_AWS)
def test_prometheus_scrapes_and_nobody_else_comes_in(stage: str) -> None:
    for name in ("chat", "transcribe", "images", "beat"):
        assert passes(stage, PROMETHEUS, pod(stage, name), 9090)
        assert not passes(stage, pod(stage, "chat"), pod(stage, name), 9090)
        assert not passes(stage, IN_VPC[stage], pod(stage, name), 9090)
    assert passes(stage, PROMETHEUS, BROKER, 8080)
    assert not passes(stage, IN_VPC[stage], BROKER, 8080)


@pytest.mark.parametrize("stage", ON_AWS)
def test_load_balancer_and_keda_come_to_the_proxy(stage: str) -> None:
    assert passes(stage, IN_VPC[stage], PROXY, 6651)
    assert passes(stage, IN_VPC[stage], PROXY, 8443)
    assert not passes(stage, ELSEWHERE, PROXY, 6651)
    assert passes(stage, KEDA, PROXY, 8443)
    assert not passes(stage, KEDA, PROXY, 6651)
    assert passes(stage, PROXY, BROKER, 6651)
    assert passes(stage, BROKER, S3, 443)
    assert not passes(stage, PROXY, S3, 443)


def test_on_kind_web_and_relay_reach_what_they_use() -> None:
    web, relay = pod("dev", "web"), pod("dev", "relay")
    database, blobs = pod("dev", "database"), pod("dev", "blobs")

    for port in (6651, 8443):
        assert passes("dev", web, PROXY, port)
        assert passes("dev", relay, PROXY, port)
    for source in (web, relay, pod("dev", "chat"), pod("dev", "migrate")):
        assert passes("dev", source, database, 5432)
    for source in (web, pod("dev", "transcribe"), pod("dev", "images")):
        assert passes("dev", source, blobs, 7070)
    assert passes("dev", ELSEWHERE, web, 8000)
    assert not passes("dev", relay, blobs, 7070)
    assert not passes("dev", pod("dev", "images"), database, 5432)
