"""Programs and schemas by which the manifests in `k8s/` are checked, each of a pinned version and kept in the cache.

Nothing here talks to a cluster, and nothing is downloaded from where the projects put binaries: Go builds them, and
verifies what it builds them from.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from tools.cache import ATTEMPTS, make_whole, run
from tools.terminal import say

KUBERNETES = "1.35.4"
"""Of the cluster, as cdk/ asks for it: the schemas are of its minor version, the API server is this one."""
LIBRARIES = KUBERNETES.replace("1.", "v0.", 1)
"""The version of the modules that Kubernetes publishes beside itself, k8s.io/api and the like."""
SERVER_PROGRAMS = ("kube-apiserver", "kubectl")


def api_server() -> Path:
    """A folder with `kube-apiserver` and `kubectl`; built in ten minutes, so only `make k8s-server-check` wants it."""
    return make_whole(f"bin/kubernetes-{KUBERNETES}", _build_api_server)


def _build_api_server(target: Path) -> None:
    say(f"Building kube-apiserver and kubectl {KUBERNETES} (ten minutes or more) ...")
    sources = target.parent / "sources"
    sources.mkdir()
    kubernetes = go_module(f"k8s.io/kubernetes@v{KUBERNETES}")
    (sources / "go.mod").write_text(_own_module((kubernetes / "go.mod").read_text()))
    (sources / "go.sum").write_bytes((kubernetes / "go.sum").read_bytes())
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


def go_module(module: str) -> Path:
    """The unpacked sources of ``path@version``, which Go has verified.

    Raises:
        SetupError: they could not be had.
    """
    run(["go", "mod", "download", module], cwd=Path("/"), attempts=ATTEMPTS)
    command = ["go", "mod", "download", "-json", module]
    told = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    return Path(json.loads(told.stdout)["Dir"])
