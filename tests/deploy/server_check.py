"""What a real Kubernetes API server says to the manifests: ``make k8s-server-check``, which builds one first.

Schemas do not see a selector that does not fit its pods, a volume that is mounted and not there, or what Pod Security
refuses. A server does, when it is asked what it would do (a dry run). It has no nodes and no controllers here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from tests.deploy import chart
from tests.deploy.manifests import (
    APPS,
    FOLDER,
    PULSAR,
    WITH_PODS,
    Manifest,
    labels_of,
    name_of,
    of_kind,
    pod_of,
    render,
)
from tests.services import LOOPBACK, Process, free_ports
from tools import kubernetes

TOKEN = "administrator-of-a-server-that-lives-for-a-minute"
NAMESPACES = {"babblebox": "restricted", "pulsar": "baseline"}
"""With the standard of Pod Security that each enforces."""


class ApiServer:
    """A server with a kubectl that asks it."""

    def __init__(self, programs: Path, folder: Path, port: int) -> None:
        self._kubectl = programs / "kubectl"
        self._config = folder / "kubeconfig"
        cluster = {"server": f"https://{LOOPBACK}:{port}", "insecure-skip-tls-verify": True}  # it made its certificate
        self._config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "here", "cluster": cluster}],
                    "users": [{"name": "admin", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
                    "current-context": "here",
                }
            )
        )

    def ready(self) -> bool:
        return self.ask("get", "--raw", "/readyz") is None

    def ask(self, *arguments: str, manifests: Iterable[Manifest] = ()) -> str | None:
        """What is wrong with what was asked; None: nothing."""
        command: list[str | Path] = [self._kubectl, "--kubeconfig", self._config, *arguments]
        text = yaml.dump_all(manifests, Dumper=yaml.CSafeDumper)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else done.stderr.strip()

    def make(self, manifests: Iterable[Manifest]) -> str | None:
        return self.ask("apply", "--server-side", "-f", "-", manifests=manifests)

    def would_take(self, manifest: Manifest, namespace: str) -> str | None:
        """What is wrong with a manifest, if anything; nothing is changed."""
        where = [] if manifest["metadata"].get("namespace") else ["--namespace", namespace]
        command = ["apply", "--server-side", "--dry-run=server", "--validate=strict", *where, "-f", "-"]
        return self.ask(*command, manifests=[manifest])


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """A server with the kinds of the operators and the two namespaces."""
    programs, etcd = kubernetes.api_server(), kubernetes.etcd()
    with tempfile.TemporaryDirectory(prefix="api-") as name, ExitStack() as stack:
        folder = Path(name)
        store, peers, port = free_ports(3)
        (folder / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        key = folder / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        _start(
            stack,
            folder / "etcd.log",
            str(etcd),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://{LOOPBACK}:{store}",
            f"--advertise-client-urls=http://{LOOPBACK}:{store}",
            f"--listen-peer-urls=http://{LOOPBACK}:{peers}",
            f"--initial-advertise-peer-urls=http://{LOOPBACK}:{peers}",
            f"--initial-cluster=default=http://{LOOPBACK}:{peers}",
            "--unsafe-no-fsync",
        )
        server = _start(
            stack,
            folder / "server.log",
            str(programs / "kube-apiserver"),
            f"--etcd-servers=http://{LOOPBACK}:{store}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            f"--cert-dir={folder / 'certificates'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",  # it waits for accounts that a controller makes
        )
        api = ApiServer(programs, folder, port)
        server.wait_until_ready(api.ready, "kube-apiserver", timeout=120)
        yield api


def _start(stack: ExitStack, log: Path, *command: str) -> Process:
    process = Process(command, log=log)
    stack.callback(process.stop)
    return process


def main() -> int:
    """Say what was asked and what was refused; 1 if something was that should not be, or the other way round."""
    with api_server() as api, tempfile.TemporaryDirectory() as folder:
        report = Report()
        report.tell("definitions of kinds", _definitions(api))
        report.tell("namespaces", [api.make([_namespace(name, level)]) for name, level in NAMESPACES.items()])
        for stage in APPS:
            for name, overlays in (("babblebox", APPS), ("pulsar", PULSAR)):
                overlay = overlays[stage]
                report.tell(f"k8s/{overlay.relative_to(FOLDER)}", _asked(api, render(overlay), name))
        if (named := chart.chart()) is not None:
            copy = chart.without_dependencies(named, Path(folder) / "chart")
            for stage in chart.VALUES:
                report.tell(f"Pulsar's chart, {stage}", _asked(api, chart.render(copy, stage), "pulsar"))
        report.tell_refused("mistakes", [api.would_take(each, "babblebox") for each in _mistakes()])
    return report.failed


class Report:
    """Lines for the terminal, and whether all went as it should."""

    def __init__(self) -> None:
        self.failed = 0

    def tell(self, what: str, answers: Sequence[str | None]) -> None:
        refused = [answer for answer in answers if answer is not None]
        print(f"{what}: {len(answers) - len(refused)} of {len(answers)} accepted", *refused, sep="\n  ")
        self.failed |= bool(refused) or not answers

    def tell_refused(self, what: str, answers: Sequence[str | None]) -> None:
        refused = [answer for answer in answers if answer is not None]
        print(f"{what}: {len(refused)} of {len(answers)} refused", *refused, sep="\n  ")
        self.failed |= len(refused) < len(answers)


def _definitions(api: ApiServer) -> list[str | None]:
    paths = kubernetes.custom_resources()
    answers = [api.ask("apply", "--server-side", "-f", str(path)) for path in paths]
    failed = api.ask("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    return [*answers, *([] if failed is None else [failed])]


def _asked(api: ApiServer, manifests: Sequence[Manifest], namespace: str) -> list[str | None]:
    """What the server says to each manifest, and to a pod of each workload: Pod Security refuses pods alone."""
    pods = [_pod(workload, namespace) for workload in of_kind(manifests, *WITH_PODS)]
    return [api.would_take(each, namespace) for each in (*manifests, *pods)]


def _pod(workload: Manifest, namespace: str) -> Manifest:
    spec = dict(pod_of(workload))
    claims = [
        {"name": name_of(claim), "persistentVolumeClaim": {"claimName": name_of(claim)}}
        for claim in workload["spec"].get("volumeClaimTemplates", ())
    ]
    spec["volumes"] = [*(spec.get("volumes") or ()), *claims]
    where = workload["metadata"].get("namespace", namespace)
    about = {"name": f"pod-of-{name_of(workload)}", "namespace": where, "labels": dict(labels_of(workload))}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec}


def _namespace(name: str, level: str) -> Manifest:
    labels = {"pod-security.kubernetes.io/enforce": level}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _mistakes() -> Iterator[Manifest]:
    """What a server must refuse, or its word would be worth nothing."""
    workload = next(each for each in of_kind(render(APPS["prod"]), "Deployment") if name_of(each) == "chat")
    for path, value in {
        "metadata.name": "Bad_Name",
        "spec.selector": {"matchLabels": {"app.kubernetes.io/name": "other"}},
        "spec.template.spec.volumes": [],
        "spec.replica": 2,
    }.items():
        yield _changed(workload, path, value)
    pod = _pod(workload, "babblebox")
    yield _changed(pod, "spec.securityContext", {})
    yield _changed(pod, "spec.hostNetwork", True)


def _changed(manifest: Manifest, path: str, value: object) -> Manifest:
    copy: Manifest = yaml.safe_load(yaml.safe_dump(manifest))
    *folders, last = path.split(".")
    place = copy
    for folder in folders:
        place = place[folder]
    place[last] = value
    return copy


if __name__ == "__main__":
    sys.exit(main())
