"""What k8s/ renders to, and questions about it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.services import CHECKOUT
from tools import kubernetes

Manifest = dict[str, Any]

FOLDER = CHECKOUT / "k8s"
APPS = {stage: FOLDER / "overlays" / stage for stage in ("dev", "beta", "prod")}
PULSAR = {stage: FOLDER / "pulsar" / "overlays" / stage for stage in ("dev", "beta", "prod")}
ON_AWS = ("beta", "prod")
WORKERS = ("chat", "transcribe", "images")
WITH_PODS = ("Deployment", "StatefulSet", "Job")


@cache
def render(overlay: Path) -> tuple[Manifest, ...]:
    """The manifests of an overlay."""
    done = subprocess.run([kubernetes.kustomize(), "build", overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def all_of(stage: str) -> list[Manifest]:
    """Everything of ours in a stage: the apps, and what is around Pulsar's chart."""
    return [*render(APPS[stage]), *render(PULSAR[stage])]


def of_kind(manifests: Iterable[Manifest], *kinds: str) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest["kind"] in kinds)


def named(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (each for each in of_kind(manifests, kind) if name_of(each) == name)
    return found


def name_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def namespace_of(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("namespace", ""))


def pod_of(workload: Manifest) -> Manifest:
    """The pod's specification."""
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def labels_of(workload: Manifest) -> Mapping[str, str]:
    """The labels of the pods."""
    labels: Mapping[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers_of(workload: Manifest) -> list[Manifest]:
    pod = pod_of(workload)
    return [*(pod.get("initContainers") or ()), *pod["containers"]]  # a chart may leave the first one empty


def environment_of(container: Manifest, manifests: Iterable[Manifest]) -> dict[str, str]:
    """The variables with a value that is known here: those of ConfigMaps, and the container's own."""
    maps = {name_of(each): each["data"] for each in of_kind(manifests, "ConfigMap")}
    sources = [each["configMapRef"]["name"] for each in container.get("envFrom", ()) if "configMapRef" in each]
    found = {name: value for source in sources for name, value in maps[source].items()}
    return {**found, **{each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes pods with these labels; an empty one takes all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    expressions = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in expressions)
    return all(labels.get(each["key"]) in each["values"] for each in expressions)


def flaws(manifests: Sequence[Manifest]) -> list[str]:
    """What the schemas find wrong: a line for each manifest."""
    count, found = flaws_of(yaml.dump_all(manifests, Dumper=yaml.CSafeDumper))
    assert count == len(manifests)
    return found


def flaws_of(text: str) -> tuple[int, list[str]]:
    """How many manifests there are in `text`, and what is wrong with them; that a key stands there twice is, too."""
    location = kubernetes.schemas() / "{{.Group}}_{{.ResourceKind}}_{{.ResourceAPIVersion}}.json"
    command: list[str | Path] = [
        kubernetes.kubeconform(),
        "-strict",
        "-output",
        "json",
        "-schema-location",
        str(location),
        "-summary",
    ]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert told["summary"]["skipped"] == 0
    found = [f"{each['kind']} {each['name']}: {each['msg']}" for each in told["resources"]]
    return sum(told["summary"].values()), found
