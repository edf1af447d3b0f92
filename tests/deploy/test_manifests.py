"""The overlays render, and what they render to is what Kubernetes and its operators take."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import APPS, FOLDER, ON_AWS, PULSAR, Manifest, all_of, flaws, named, of_kind, render
from tools import kubernetes

OF_THE_STACK = {
    "AWS_REGION": "eu-central-1",
    "BLOB_STORE": "s3://blobs-of-the-stack",
    "PCA_ARN": "arn:aws:acm-pca:eu-central-1:111122223333:certificate-authority/0123",
    "REGISTRY": "111122223333.dkr.ecr.eu-central-1.amazonaws.com",
    "TAG": "0123abc",
}
"""What a deployment writes into stack.yaml; the account is the one of AWS' own examples."""


@pytest.mark.parametrize("overlay", [*APPS.values(), *PULSAR.values()], ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_manifest_fits_the_schemas(overlay: Path) -> None:
    assert flaws(render(overlay)) == []


def _of(kind: str, name: str) -> Callable[[], Manifest]:
    return lambda: deepcopy(named(all_of("prod"), kind, name))


def _certificate() -> Manifest:
    spec = {"secretName": "tls", "dnsNames": ["a.example"], "issuerRef": {"name": "pulsar-pca"}}
    return {"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": {"name": "tls"}, "spec": spec}


@pytest.mark.parametrize(
    ("manifest", "path", "value", "complaint"),
    [
        (_of("Deployment", "chat"), "spec.replica", 2, "'replica' not allowed"),
        (_of("Deployment", "chat"), "spec.template.spec.containers.0.ports.0.containerPort", "9090", "want integer"),
        (_of("Deployment", "chat"), "spec.template.spec.containers.0.resources.limits.memory", "1Gx", "match pattern"),
        (_of("NetworkPolicy", "blobs"), "spec.policyType", ["Egress"], "'policyType' not allowed"),
        (_of("ScaledObject", "chat"), "spec.pollInterval", 15, "'pollInterval' not allowed"),
        (_of("ExternalSecret", "database"), "spec.secretStoreRef.type", "AWS", "'type' not allowed"),
        (_of("PodMonitor", "babblebox"), "spec.podMetricsEndpoints.0.interval", "often", "match pattern"),
        (_of("PrometheusRule", "babblebox"), "spec.groups.0.rules.0.alerts", "Down", "'alerts' not allowed"),
        (_of("AWSPCAClusterIssuer", "pulsar-pca"), "spec.zone", "eu-central-1a", "'zone' not allowed"),
        (_certificate, "spec.dnsName", "a.example", "'dnsName' not allowed"),
    ],
)
def test_mistake_in_a_manifest_is_seen(
    manifest: Callable[[], Manifest], path: str, value: object, complaint: str
) -> None:
    mistaken = manifest()
    assert flaws([mistaken]) == []
    *folders, last = path.split(".")
    place: Any = mistaken
    for key in folders:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value

    [flaw] = flaws([mistaken])

    assert complaint in flaw


def test_kind_without_a_schema_is_seen() -> None:
    assert flaws([{"apiVersion": "example.org/v1", "kind": "Unknown", "metadata": {"name": "x"}}]) != []


@pytest.mark.parametrize("stage", ON_AWS)
def test_what_the_stack_knows_gets_where_it_belongs(stage: str, tmp_path: Path) -> None:
    copy = shutil.copytree(FOLDER, tmp_path / "k8s")
    for folder in (copy / "overlays" / stage, copy / "pulsar" / "overlays" / stage):
        stack = yaml.safe_load((folder / "stack.yaml").read_text())
        stack["data"] |= {key: value for key, value in OF_THE_STACK.items() if key in stack["data"]}
        (folder / "stack.yaml").write_text(yaml.safe_dump(stack))

    apps, pulsar = render(copy / "overlays" / stage), render(copy / "pulsar" / "overlays" / stage)

    text = yaml.safe_dump_all([*apps, *pulsar])
    assert not [word for word in ("invalid", "STAGE", ": none", "0.0.0.0/32") if word in text]
    images = {word for word in text.split() if "babblebox/" in word and word.startswith(OF_THE_STACK["REGISTRY"])}
    names = ("beat", "images", "transcribe", "web", "worker")
    assert images == {f"{OF_THE_STACK['REGISTRY']}/babblebox/{name}:{OF_THE_STACK['TAG']}" for name in names}
    assert OF_THE_STACK["BLOB_STORE"] in [each["data"].get("BLOB_STORE") for each in of_kind(apps, "ConfigMap")]
    assert named(pulsar, "AWSPCAClusterIssuer", "pulsar-pca")["spec"]["arn"] == OF_THE_STACK["PCA_ARN"]
    keys = {
        entry["remoteRef"]["key"]
        for secret in of_kind([*apps, *pulsar], "ExternalSecret")
        for entry in secret["spec"]["data"]
    }
    assert all(key.startswith(f"babblebox/{stage}/") for key in keys)
    assert "ConfigMap stack" not in {f"{each['kind']} {each['metadata']['name']}" for each in [*apps, *pulsar]}


def test_schemas_are_of_the_kubernetes_that_is_named() -> None:
    assert kubernetes.LIBRARIES == "v0.35.4"
    assert (kubernetes.schemas() / "apps_deployment_v1.json").exists()
