"""The pods: what they run is there, what they need is given, and they may do no more than they must."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import click
import pytest
import yaml

from pulsartasks.cli.beat import beat
from pulsartasks.cli.topics import apply
from pulsartasks.cli.worker import worker
from pulsartasks.worker.child import find_app
from pulsartasks.worker.supervisor import LAST_GRACE
from tests.conformance.processes import WorkerProcess
from tests.deploy.manifests import (
    APPS,
    FOLDER,
    ON_AWS,
    WITH_PODS,
    WORKERS,
    Manifest,
    all_of,
    containers_of,
    environment_of,
    labels_of,
    name_of,
    named,
    namespace_of,
    of_kind,
    pod_of,
    render,
    selects,
)
from tests.services import CHECKOUT, LOOPBACK, free_ports, wait_until

COMMANDS: dict[tuple[str, ...], click.Command] = {
    ("pulsartasks", "worker"): worker,
    ("pulsartasks", "beat"): beat,
    ("pulsartasks", "topics", "apply"): apply,
}
IMAGES = {"web", "worker", "transcribe", "images", "beat"}
FOREIGN = {"AWS_REGION", "XDG_CACHE_HOME"}
"""Settings of boto3 and of Whisper's loader."""
OF_DEV = {"database", "blobs"}
"""Programs of others, which have settings of their own."""

every_stage = pytest.mark.parametrize("stage", APPS)


def workloads(stage: str, *kinds: str) -> list[Manifest]:
    """The workloads of the namespace `babblebox`."""
    return list(of_kind(render(APPS[stage]), *(kinds or WITH_PODS)))


def containers(stage: str) -> Iterator[tuple[Manifest, Manifest]]:
    """Each container of our own images, with its workload."""
    for workload in workloads(stage):
        if name_of(workload) not in OF_DEV:
            yield from ((workload, container) for container in containers_of(workload))


@every_stage
def test_pods_are_restricted(stage: str) -> None:
    assert workloads(stage)
    for workload in workloads(stage):
        pod = pod_of(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in containers_of(workload):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
        volumes = [set(volume) - {"name"} for volume in pod["volumes"]]
        assert all(kinds <= {"emptyDir", "projected", "secret", "configMap"} for kinds in volumes)


@every_stage
def test_namespace_of_the_apps_enforces_that(stage: str) -> None:
    labels = named(render(APPS[stage]), "Namespace", "babblebox")["metadata"]["labels"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@every_stage
def test_containers_have_requests_and_a_memory_limit(stage: str) -> None:
    for workload in workloads(stage):
        for container in containers_of(workload):
            resources = container["resources"]
            assert resources["requests"].keys() == {"cpu", "memory"}
            assert resources["limits"].keys() == {"memory"}  # a processor that is idle may be used by whoever wants it


@every_stage
def test_volumes_that_are_mounted_are_there_and_the_others_are_not(stage: str) -> None:
    for workload in workloads(stage):
        claims = {name_of(claim) for claim in workload["spec"].get("volumeClaimTemplates", ())}
        given = {volume["name"] for volume in pod_of(workload)["volumes"]} | claims
        assert given == {mount["name"] for each in containers_of(workload) for mount in each["volumeMounts"]}


@every_stage
def test_images_are_those_that_are_built(stage: str) -> None:
    assert {re.split(r"[/:]", container["image"])[-2] for _, container in containers(stage)} == IMAGES


@every_stage
def test_commands_are_understood(stage: str) -> None:
    understood = 0
    for _, container in containers(stage):
        if command := COMMANDS.get(tuple(container.get("command", ()))):
            context = command.make_context(name_of_command(container), list(container["args"]))
            assert find_app(context.params["app_path"]).tasks
            understood += 1
        elif "command" in container:
            python, option, module = container["command"]
            assert (python, option) == ("python", "-m")
            assert (CHECKOUT / f"{module.replace('.', '/')}.py").exists()

    assert understood == len(WORKERS) + 1 + len(WORKERS)  # workers, beat, and the topics of each app


def name_of_command(container: Manifest) -> str:
    return " ".join(container["command"])


@pytest.mark.parametrize("name", WORKERS)
def test_pod_is_given_longer_than_its_worker_gives_its_tasks(name: str) -> None:
    workload = named(render(APPS["prod"]), "Deployment", name)
    [container] = containers_of(workload)
    grace = worker.make_context(name, list(container["args"])).params["grace"]

    assert pod_of(workload)["terminationGracePeriodSeconds"] >= grace + LAST_GRACE


@every_stage
def test_settings_are_documented(stage: str) -> None:
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|", (CHECKOUT / "docs" / "settings.md").read_text("utf-8"), re.MULTILINE)
    for _, container in containers(stage):
        given = environment_of(container, render(APPS[stage])).keys() | {
            each["name"] for each in container.get("env", ())
        }
        assert given - {*rows} <= FOREIGN


@every_stage
def test_state_and_tokens_are_where_the_settings_say(stage: str) -> None:
    for workload, container in containers(stage):
        given = environment_of(container, render(APPS[stage]))
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        if name_of(workload) == "migrate":  # asks the database alone
            continue
        for setting in ("PULSARTASKS_TLS_CA", "PULSARTASKS_TOKEN_FILE"):
            folder, _, file = given[setting].rpartition("/")
            assert file in _files(workload, mounts[folder]["name"])
        if workload["kind"] == "Deployment":
            assert given["PULSARTASKS_STATE_DIR"] in mounts
            assert "readOnly" not in mounts[given["PULSARTASKS_STATE_DIR"]]


def _files(workload: Manifest, volume: str) -> list[str]:
    (found,) = (each for each in pod_of(workload)["volumes"] if each["name"] == volume)
    return [item["path"] for source in found["projected"]["sources"] for item in source["secret"]["items"]]


def secrets_used(manifests: list[Manifest]) -> Iterator[tuple[str, str, str | None]]:
    """Namespace, name and key of each Secret that something refers to; None: all keys."""
    for workload in of_kind(manifests, *WITH_PODS):
        references = [*_mounted(workload), *(each for one in containers_of(workload) for each in _in_environment(one))]
        yield from ((namespace_of(workload), name, key) for name, key in references)
    for authentication in of_kind(manifests, "TriggerAuthentication"):
        for each in authentication["spec"]["secretTargetRef"]:
            yield namespace_of(authentication), each["name"], each["key"]


def _mounted(workload: Manifest) -> Iterator[tuple[str, str]]:
    for volume in pod_of(workload)["volumes"]:
        for source in [volume, *volume.get("projected", {}).get("sources", ())]:
            if secret := source.get("secret"):
                name = secret.get("secretName") or secret["name"]
                yield from ((name, item["key"]) for item in secret["items"])


def _in_environment(container: Manifest) -> Iterator[tuple[str, str | None]]:
    for source in container.get("envFrom", ()):
        if "secretRef" in source:
            yield source["secretRef"]["name"], None
    for variable in container.get("env", ()):
        if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            yield reference["name"], reference["key"]


@pytest.mark.parametrize("stage", ON_AWS)
def test_secrets_that_are_used_come_from_secrets_manager_and_no_others_do(stage: str) -> None:
    manifests = all_of(stage)
    made = {
        (namespace_of(each), name_of(each), key) for each in of_kind(manifests, "ExternalSecret") for key in _keys(each)
    }

    used = {*secrets_used(manifests)}

    of_the_chart = {
        *(("pulsar", f"pulsar-token-{role}", "TOKEN") for role in ("broker-admin", "proxy-admin")),
        ("pulsar", "pulsar-token-asymmetric-key", "PUBLICKEY"),
    }
    assert made == used | of_the_chart


def _keys(external_secret: Manifest) -> list[str]:
    spec = external_secret["spec"]
    return list(spec.get("target", {}).get("template", {}).get("data", ())) or [
        entry["secretKey"] for entry in spec["data"]
    ]


def test_secrets_that_are_used_on_kind_are_made_there() -> None:
    manifests = all_of("dev")
    script = (FOLDER / "pulsar" / "overlays" / "dev" / "secrets.sh").read_text()
    roles = re.search(r"for role in (.+); do", (FOLDER / "pulsar" / "overlays" / "dev" / "tokens.sh").read_text())
    assert roles is not None
    tokens = {f"pulsar-token-{role}" for role in roles[1].split()}

    for namespace, name, key in secrets_used(manifests):
        if namespace == "babblebox" and name not in tokens:
            made = re.search(rf"(?:once|generic) {name} ((?:[^\\\n]|\\\n)*)", script)
            assert made is not None, name
            assert key is None or f"{key}=" in made[1]
    assert {name for _, name, _ in secrets_used(manifests) if name in tokens} == tokens


@every_stage
def test_service_accounts_are_there(stage: str) -> None:
    manifests = all_of(stage)
    there = {(namespace_of(each), name_of(each)) for each in of_kind(manifests, "ServiceAccount")}

    used = {
        (namespace_of(each), pod_of(each)["serviceAccountName"])
        for each in of_kind(manifests, *WITH_PODS)
        if name_of(each) not in OF_DEV
    }

    assert used == there


@every_stage
def test_every_worker_and_beat_has_a_budget_for_disruptions_and_is_spread_over_zones(stage: str) -> None:
    manifests = render(APPS[stage])
    for name in (*WORKERS, "beat"):
        workload = named(manifests, "Deployment", name)
        budget = named(manifests, "PodDisruptionBudget", name)["spec"]
        [spread] = pod_of(workload)["topologySpreadConstraints"]
        assert budget["maxUnavailable"] == 1  # also when there is one pod: a node can always be emptied
        for selector in (budget["selector"], workload["spec"]["selector"], spread["labelSelector"]):
            assert [name_of(each) for each in of_kind(manifests, *WITH_PODS) if selects(selector, labels_of(each))] == [
                name
            ]


@every_stage
def test_services_lead_to_ports_of_pods(stage: str) -> None:
    manifests = render(APPS[stage])
    for service in of_kind(manifests, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        [workload] = [each for each in of_kind(manifests, *WITH_PODS) if selects(selector, labels_of(each))]
        ports = {port["name"] for container in containers_of(workload) for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_port_that_kind_opens_leads_to_the_web() -> None:
    [node] = yaml.safe_load((FOLDER / "kind.yaml").read_text())["nodes"]
    [opened] = node["extraPortMappings"]
    [port] = named(render(APPS["dev"]), "Service", "web")["spec"]["ports"]

    assert opened["containerPort"] == port["nodePort"]
    assert opened["listenAddress"] == LOOPBACK


@pytest.mark.parametrize("name", WORKERS)
def test_autoscaler_alone_says_how_many_workers_there_are(name: str) -> None:
    assert "replicas" not in named(render(APPS["prod"]), "Deployment", name)["spec"]


@pytest.mark.parametrize("name", ["chat", "images", "beat"])
def test_probes_and_scrapes_are_answered_by_what_the_pod_runs(name: str, tmp_path: Path) -> None:
    """`transcribe` is a worker like the others, and would load a model first."""
    manifests = render(APPS["prod"])
    [container] = containers_of(named(manifests, "Deployment", name))
    [declared] = container["ports"]
    asked = COMMANDS[tuple(container["command"])].make_context(name, list(container["args"])).params
    assert (asked["health_host"], asked["health_port"]) == ("0.0.0.0", declared["containerPort"])
    [monitor] = of_kind(manifests, "PodMonitor")
    [scrape] = monitor["spec"]["podMetricsEndpoints"]
    places = [container["readinessProbe"]["httpGet"], container["livenessProbe"]["httpGet"], scrape]
    assert {place["port"] for place in places} == {declared["name"]}

    [port] = free_ports(1)
    with running(container["command"][1], asked["app_path"], port, tmp_path):
        for path in (place["path"] for place in places):
            wait_until(partial(_answers, port, path), f"{name} does not answer {path}")


@contextmanager
def running(command: str, app: str, port: int, folder: Path) -> Iterator[None]:
    """The process of a pod, for this machine alone."""
    with tempfile.TemporaryDirectory(prefix="pt-") as short:  # Unix sockets are in it
        env = {
            "PULSARTASKS_BROKER": f"local://{short}/broker.db",
            "DATABASE_URL": f"sqlite:///{folder}/chat.db",
            "BLOB_STORE": str(folder),
            "SECRET_KEY": "0" * 32,
        }
        process = WorkerProcess(f"--health-port={port}", app=app, command=command, env=env)
        try:
            yield
        finally:
            process.clean_up()


def _answers(port: int, path: str) -> bool:
    try:
        with urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:  # not yet, or an error
        return False
