"""Programs and schemas by which the manifests in `k8s/` are checked, each of a pinned version and kept in the cache.

Nothing here talks to a cluster.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from tools import environment, go, packages
from tools.cache import make_whole, run
from tools.terminal import say

KUBERNETES = "1.35.4"
"""Of the cluster, as cdk/ asks for it: what has schemas and API server here."""
LIBRARIES = KUBERNETES.replace("1.", "v0.", 1)
"""The version of the modules that Kubernetes publishes beside itself, k8s.io/api and the like."""
SERVER_PROGRAMS = ("kube-apiserver", "kubectl")

KUBECONFORM = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1"
HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"

CUSTOM_RESOURCES = {
    "github.com/cert-manager/cert-manager@v1.21.2": "deploy/crds",
    "github.com/cert-manager/aws-privateca-issuer@v1.11.0": "config/crd/bases",
    "github.com/external-secrets/external-secrets@v1.3.2": "config/crds/bases",
    "github.com/kedacore/keda/v2@v2.21.0": "config/crd/bases",
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": "example/prometheus-operator-crd",
}
"""Where the operators that the manifests need define their kinds, by module."""


def kubeconform() -> Path:
    """Compares manifests with schemas."""
    return go.program(KUBECONFORM, takes="half a minute")


def kustomize() -> Path:
    """Renders overlays."""
    return go.program(KUSTOMIZE, takes="a minute")


def helm() -> Path:
    """Renders charts; only wanted where there is one (PULSAR_CHART_DIR)."""
    return go.program(HELM, takes="five minutes")


def promtool() -> Path:
    """Checks and tries alert rules."""
    if found := shutil.which("promtool"):
        return Path(found)
    return packages.unpacked("prometheus", why="promtool, for the tests of the alert rules,") / "usr/bin/promtool"


def etcd() -> Path:
    """What the API server stores in."""
    if found := shutil.which("etcd"):
        return Path(found)
    return packages.unpacked("etcd-server", why="etcd, for the API server,") / "usr/bin/etcd"


def custom_resources() -> list[Path]:
    """The files that define the kinds of the operators."""
    folders = (go.sources(module) / folder for module, folder in CUSTOM_RESOURCES.items())
    return sorted(path for folder in folders for path in folder.glob("*_*.yaml"))


def schemas() -> Path:
    """A folder with a strict JSON schema for each kind; needs the environment, which has a parser of YAML."""
    return make_whole(f"kubernetes/schemas-{_digest()}", _make_schemas)


def _digest() -> str:
    """Another one when the versions, or the way the schemas are made, change."""
    made_by = (environment.CHECKOUT / "tests" / "deploy" / "schemas.py").read_bytes()
    return hashlib.sha256(made_by + repr((KUBERNETES, CUSTOM_RESOURCES)).encode()).hexdigest()[:16]


def _make_schemas(target: Path) -> None:
    say(f"Making the schemas of Kubernetes {KUBERNETES} and of what else the manifests need ...")
    swagger = go.sources(f"k8s.io/kubernetes@v{KUBERNETES}") / "api/openapi-spec/swagger.json"
    command: list[str | Path] = [environment.PYTHON, "-m", "tests.deploy.schemas", target, swagger, *custom_resources()]
    run(command, cwd=environment.CHECKOUT)


def api_server() -> Path:
    """A folder with `kube-apiserver` and `kubectl`; built in ten minutes, so only `make k8s-server-check` wants it."""
    return make_whole(f"bin/kubernetes-{KUBERNETES}", _build_api_server)


def _build_api_server(target: Path) -> None:
    say(f"Building kube-apiserver and kubectl {KUBERNETES} (ten minutes or more) ...")
    sources = target.parent / "sources"
    sources.mkdir()
    published = go.sources(f"k8s.io/kubernetes@v{KUBERNETES}")
    (sources / "go.mod").write_text(_own_module((published / "go.mod").read_text()))
    (sources / "go.sum").write_bytes((published / "go.sum").read_bytes())
    target.mkdir()
    version = f"-s -w -X k8s.io/component-base/version.gitVersion=v{KUBERNETES}"
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
    for program in SERVER_PROGRAMS:
        source = f"k8s.io/kubernetes/cmd/{program}"
        run(["go", "build", "-ldflags", version, "-o", target / program, source], cwd=sources, env=env)


def _own_module(published: str) -> str:
    r"""A go.mod from which Kubernetes can be built.

    Its own one takes a part of itself from folders that only its repository has; the same parts are published as
    modules. `go install` refuses a module that replaces others.

    >>> "  k8s.io/api => k8s.io/api v0.35.4" in _own_module("module a\nreplace (\n  k8s.io/api => ./staging/api\n)\n")
    True
    """
    renamed = re.sub(r"(?m)^module .*", "module pulsartasks/kubernetes", published)
    replaced = re.sub(r"(?m)^(\s+)(\S+) => \./staging/\S+", rf"\1\2 => \2 {LIBRARIES}", renamed)
    return f"{replaced}\nrequire k8s.io/kubernetes v{KUBERNETES}\n"
