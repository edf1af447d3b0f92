"""Our values for the official Pulsar chart, as far as they can be judged without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.deploy.chart import VALUES, values_of
from tests.deploy.manifests import APPS, ON_AWS, PULSAR, name_of, of_kind, render
from tests.services import PULSAR_SETTINGS

OF_THE_TESTS = {
    "bindAddress",
    "brokerDeleteInactiveTopicsFrequencySeconds",
    "delayedDeliveryTickTimeMillis",
    "managedLedgerCacheEvictionFrequency",
    "numHttpServerThreads",
    "numIOThreads",
}
"""What saves time or memory in tests, and is as Pulsar has it in production."""
UNITS = {"m": 1 / 1024, "g": 1.0, "Mi": 1 / 1024, "Gi": 1.0}
BESIDE_THE_HEAP = 0.2
"""GiB that a JVM needs at least for threads, code and classes."""


def values(stage: str) -> dict[str, Any]:
    """As Helm lays one file on the other."""
    merged: dict[str, Any] = {}
    for path in values_of(stage):
        merged = _merge(merged, yaml.safe_load(path.read_text()))
    return merged


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merge(below[key], above[key]) for key in below if isinstance(above.get(key), Mapping)}
    return {**below, **above, **both}


@pytest.mark.parametrize("stage", VALUES)
def test_brokers_are_set_as_in_the_tests_of_the_promises(stage: str) -> None:
    given = values(stage)["broker"]["configData"]

    wanted = {name: value for name, value in PULSAR_SETTINGS.items() if name not in OF_THE_TESTS}

    assert wanted
    assert wanted.items() <= given.items()


@pytest.mark.parametrize("stage", VALUES)
def test_everything_speaks_tls_and_proves_who_it_is(stage: str) -> None:
    given = values(stage)

    assert all(given["tls"][part]["enabled"] for part in ("proxy", "broker", "bookie", "zookeeper"))
    assert all(given["auth"][kind]["enabled"] for kind in ("authentication", "authorization"))
    assert given["auth"]["authentication"]["jwt"]["usingSecretKey"] is False
    assert given["auth"]["authentication"]["jwt"]["generateSecrets"]["enabled"] is (stage == "dev")
    assert given["victoria-metrics-k8s-stack"]["enabled"] is False


@pytest.mark.parametrize("stage", [stage for stage in VALUES if stage != "dev"])
def test_a_bookie_less_is_no_stop(stage: str) -> None:
    given = values(stage)
    broker = given["broker"]["configData"]
    ensemble, written, confirmed = (
        int(broker[f"managedLedgerDefault{name}"]) for name in ("EnsembleSize", "WriteQuorum", "AckQuorum")
    )

    assert ensemble < given["bookkeeper"]["replicaCount"]
    assert 2 <= confirmed <= written <= ensemble
    assert given["zookeeper"]["replicaCount"] == 3
    assert given["broker"]["replicaCount"] > 1
    assert given["proxy"]["replicaCount"] > 1


@pytest.mark.parametrize("stage", [stage for stage in VALUES if stage != "dev"])
def test_memory_of_each_part_holds_its_heap_and_its_buffers(stage: str) -> None:
    given = values(stage)
    for name in ("zookeeper", "bookkeeper", "broker", "proxy", "autorecovery"):
        part = given[name]
        options = part["configData"].get("PULSAR_MEM") or part["configData"]["BOOKIE_MEM"]
        sizes = re.findall(r"(?:-Xmx|MaxDirectMemorySize=)(\d+)(m|g)", options)
        limit = part["resources"]["limits"]["memory"]
        assert limit == part["resources"]["requests"]["memory"]
        assert sum(int(number) * UNITS[unit] for number, unit in sizes) + BESIDE_THE_HEAP <= _gib(limit)


def _gib(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


@pytest.mark.parametrize("stage", ON_AWS)
def test_certificate_of_the_proxy_is_for_the_name_that_fargate_knows(stage: str) -> None:
    assert values(stage)["tls"]["proxy"]["dnsNames"] == [f"pulsar.{stage}.babblebox.internal"]


@pytest.mark.parametrize("stage", ON_AWS)
def test_issuer_authority_and_volumes_are_those_of_the_overlay(stage: str) -> None:
    given, around = values(stage), render(PULSAR[stage])
    authority = given["certs"]["issuers"]["ca"]

    [issuer] = of_kind(around, authority["kind"])
    assert (name_of(issuer), issuer["apiVersion"].partition("/")[0]) == (authority["name"], authority["group"])
    assert authority["secretName"] in {name_of(each) for each in of_kind(around, "ExternalSecret")}
    [storage] = of_kind(around, "StorageClass")
    volumes = [given["zookeeper"]["volumes"]["data"], *given["bookkeeper"]["volumes"].values()]
    assert {volume["storageClassName"] for volume in volumes} == {name_of(storage)}
    assert storage["parameters"]["encrypted"] == "true"


@pytest.mark.parametrize("stage", ON_AWS)
def test_superusers_have_tokens_of_secrets_manager(stage: str) -> None:
    """The names of the chart's values, the Secrets, and what Secrets Manager calls them."""
    secrets = {name_of(each): each for each in of_kind(render(PULSAR[stage]), "ExternalSecret")}
    for role in values(stage)["auth"]["superUsers"].values():
        [entry] = secrets[f"pulsar-token-{role}"]["spec"]["data"]
        assert entry == {"secretKey": "TOKEN", "remoteRef": {"key": f"babblebox/{stage}/pulsar-token/{role}"}}
    [key] = secrets["pulsar-token-asymmetric-key"]["spec"]["data"]
    assert key["secretKey"] == "PUBLICKEY"  # the private one stays where tokens are made


def test_on_kind_the_authority_has_the_same_name() -> None:
    assert values("dev")["certs"]["issuers"]["selfsigning"]["secretName"] == "pulsar-ca"


@pytest.mark.parametrize("stage", APPS)
def test_apps_ask_the_proxy_over_tls(stage: str) -> None:
    [config] = of_kind(render(APPS[stage]), "ConfigMap")

    assert config["data"]["PULSARTASKS_BROKER"].startswith("pulsar+ssl://pulsar-proxy.pulsar.svc.cluster.local:6651")
    assert config["data"]["PULSARTASKS_ADMIN_URL"] == "https://pulsar-proxy.pulsar.svc.cluster.local"
