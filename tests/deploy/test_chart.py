"""The official Pulsar chart with our values, where somebody has named a copy of it by PULSAR_CHART_DIR.

The chart is not ours and in no package registry. What can be said without it is in test_values.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy import chart
from tests.deploy.manifests import (
    APPS,
    PULSAR,
    WITH_PODS,
    Manifest,
    containers_of,
    flaws_of,
    labels_of,
    name_of,
    named,
    of_kind,
    pod_of,
    selects,
)
from tests.deploy.manifests import render as ours

every_stage = pytest.mark.parametrize("stage", chart.VALUES)
PLAIN = ("pulsar://", "http://", ":2181", ":6650", ":8080/")
"""What an address without TLS has."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart that can be rendered."""
    folder = chart.chart()
    assert folder is not None
    return chart.without_dependencies(folder, tmp_path_factory.mktemp("chart") / "pulsar")


def overlay_of(stage: str) -> str:
    return stage.partition(",")[0]


@every_stage
def test_what_it_renders_to_fits_the_schemas(copy: Path, stage: str) -> None:
    count, found = flaws_of(chart.rendered(copy, stage))

    assert found == []
    assert count > 40


@every_stage
def test_secrets_that_its_pods_mount_are_made_by_somebody(copy: Path, stage: str) -> None:
    manifests = chart.render(copy, stage)
    made = {each["spec"]["secretName"] for each in of_kind(manifests, "Certificate")}
    made |= {name_of(each) for each in of_kind(ours(PULSAR[overlay_of(stage)]), "ExternalSecret")}
    if named(manifests, "ConfigMap", "pulsar-broker") and "jwt-secret-init" in yaml.safe_dump(manifests):
        made |= {f"pulsar-token-{name}" for name in ("asymmetric-key", "broker-admin", "proxy-admin", "admin")}

    mounted = {
        volume["secret"]["secretName"]
        for workload in of_kind(manifests, *WITH_PODS)
        for volume in pod_of(workload).get("volumes") or ()
        if "secret" in volume
    }

    assert "pulsar-ca" in mounted
    assert mounted <= made


@every_stage
def test_nothing_but_metrics_and_probes_is_without_tls(copy: Path, stage: str) -> None:
    manifests = chart.render(copy, stage)
    for name in ("broker", "proxy", "bookie", "recovery", "zookeeper"):
        data = named(manifests, "ConfigMap", f"pulsar-{name}")["data"]
        assert not [value for value in data.values() if any(word in value for word in PLAIN)]
    assert named(manifests, "ConfigMap", "pulsar-broker")["data"]["brokerServicePort"] == ""
    ports = {port["name"] for port in named(manifests, "Service", "pulsar-proxy")["spec"]["ports"]}
    assert ports == {"https", "pulsarssl"}


@every_stage
def test_proxy_answers_where_the_apps_look_for_it(copy: Path, stage: str) -> None:
    manifests = chart.render(copy, stage)
    [config] = of_kind(ours(APPS[overlay_of(stage)]), "ConfigMap")
    service = named(manifests, "Service", "pulsar-proxy")
    ports = {port["port"]: port["targetPort"] for port in service["spec"]["ports"]}
    names = named(manifests, "Certificate", "pulsar-tls-proxy")["spec"]["dnsNames"]

    for setting, port in (("PULSARTASKS_BROKER", 6651), ("PULSARTASKS_ADMIN_URL", 443)):
        host, _, given = config["data"][setting].rpartition("//")[2].partition(":")
        assert host in names
        assert int(given or 443) == port
        assert port in ports
    if stage != "dev":
        assert f"pulsar.{overlay_of(stage)}.babblebox.internal" in names


@every_stage
def test_policies_are_for_its_pods_and_their_ports(copy: Path, stage: str) -> None:
    manifests = chart.render(copy, stage)
    proxy = named(manifests, "StatefulSet", "pulsar-proxy")
    [container] = containers_of(proxy)[-1:]
    serves = {port["containerPort"] for port in container["ports"]}

    for policy in of_kind(ours(PULSAR[overlay_of(stage)]), "NetworkPolicy"):
        if name_of(policy) in ("clients", "load-balancer"):
            assert selects(policy["spec"]["podSelector"], labels_of(proxy))
            opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            assert opened == {6651, 8443} <= serves
        if name_of(policy) == "metrics":
            opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            assert opened == {*_scraped(manifests)}
    for workload in of_kind(manifests, "StatefulSet"):
        assert labels_of(workload)["app"] == "pulsar"


def _scraped(manifests: list[Manifest]) -> Iterator[int]:
    for monitor in of_kind(manifests, "PodMonitor"):
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        for workload in of_kind(manifests, "StatefulSet"):
            if selects(monitor["spec"]["selector"], labels_of(workload)):
                ports = {port["name"]: port["containerPort"] for port in containers_of(workload)[-1]["ports"]}
                yield ports[endpoint["port"]]


@every_stage
def test_what_is_ours_fits_its_names(copy: Path, stage: str) -> None:
    """The cluster of the tenant, the account that has a right on the bucket, the class of the volumes, the jobs."""
    manifests, around = chart.render(copy, stage), ours(PULSAR[overlay_of(stage)])
    tenant = containers_of(named(around, "Job", "tenant"))[0]
    assert {"name": "CLUSTER", "value": "pulsar"} in tenant["env"]
    broker = named(manifests, "StatefulSet", "pulsar-broker")
    assert named(manifests, "ConfigMap", "pulsar-broker")["data"]["clusterName"] == "pulsar"
    assert tenant["image"] == containers_of(broker)[-1]["image"]
    assert pod_of(broker)["serviceAccountName"] == "pulsar-broker-acct"
    if stage != "dev":
        classes = {name_of(each) for each in of_kind(around, "StorageClass")}
        for workload in of_kind(manifests, "StatefulSet"):
            for claim in workload["spec"].get("volumeClaimTemplates", ()):
                assert claim["spec"]["storageClassName"] in classes
    components = {labels_of(each)["component"] for each in of_kind(manifests, "StatefulSet")}
    assert {"proxy", "broker", "bookie", "zookeeper", "recovery"} <= components


def test_version_is_the_one_that_the_values_are_for(copy: Path) -> None:
    about = yaml.safe_load((copy / "Chart.yaml").read_text())

    assert about["version"].startswith("4.7.")
    assert os.environ["PULSAR_CHART_DIR"]
