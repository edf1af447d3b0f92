"""The official Pulsar chart, rendered with our values; it is not ours, so a copy of it has to be named."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.deploy.manifests import FOLDER, Manifest
from tools import kubernetes

VALUES = {
    "dev": ("common", "dev"),
    "beta": ("common", "aws", "beta"),
    "prod": ("common", "aws", "prod"),
    "prod, load balancer": ("common", "aws", "load-balancer", "prod"),
}
"""The files of values of each stage, in their order."""
GIVEN = {"broker.storageOffload.bucket": "offloaded", "broker.storageOffload.region": "eu-central-1"}
"""What an installation on AWS adds."""


def values_of(stage: str) -> list[Path]:
    return [FOLDER / "pulsar" / "values" / f"{name}.yaml" for name in VALUES[stage]]


def chart() -> Path | None:
    """The chart's folder, where somebody has named one."""
    named = os.environ.get("PULSAR_CHART_DIR")
    return Path(named) if named else None


def without_dependencies(chart: Path, target: Path) -> Path:
    """A copy without the charts that it would include, which our values turn off, and which a copy need not have."""
    copy = shutil.copytree(chart, target)
    about = yaml.safe_load((copy / "Chart.yaml").read_text())
    (copy / "Chart.yaml").write_text(yaml.safe_dump({**about, "dependencies": []}))
    return copy


def rendered(copy: Path, stage: str) -> str:
    """What the release `pulsar` in the namespace `pulsar` would install, hooks included."""
    command: list[str | Path] = [kubernetes.helm(), "template", "pulsar", copy, "--namespace", "pulsar"]
    command += ["--kube-version", kubernetes.KUBERNETES]
    for values in values_of(stage):
        command += ["--values", values]
    if "aws" in VALUES[stage]:
        command += [f"--set={name}={value}" for name, value in GIVEN.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(copy: Path, stage: str) -> list[Manifest]:
    """The same, as manifests."""
    return [manifest for manifest in yaml.load_all(rendered(copy, stage), Loader=yaml.CSafeLoader) if manifest]
