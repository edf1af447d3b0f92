"""The alert rules: each comes when it has to, and asks for metrics that somebody really exports."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from pulsartasks.worker import metrics
from tests.deploy.manifests import APPS, Manifest, named, render
from tests.services import CHECKOUT, PulsarServer, wait_until
from tools import go, kubernetes

ALERTS = Path(__file__).with_name("alerts.yaml")
WORDS = {"babblebox", "by", "sum", "min", "max", "and", "or", "absent", "rate", "increase", "time", "le"}
EXPORTED_BY = {
    "certmanager_": ("github.com/cert-manager/cert-manager@", "internal/collectors"),
    "externalsecret_": ("github.com/external-secrets/external-secrets@", "pkg/controllers/externalsecret"),
    "keda_": ("github.com/kedacore/keda/v2@", "pkg/metricscollector"),
}
"""Whose sources have a metric, which some put together from words."""
OF_KUBERNETES = {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
OF_PROMETHEUS = {"up"}


def rules() -> list[Manifest]:
    groups = named(render(APPS["prod"]), "PrometheusRule", "babblebox")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metric_names() -> Iterator[str]:
    """Every metric that a rule asks for."""
    for rule in rules():
        expression = re.sub(r'"[^"]*"', "", rule["expr"])
        for name in re.findall(r"\b([a-z][a-z0-9_]+)\b(?=\{|\[|\))", expression):
            if "_" in name or name in OF_PROMETHEUS:
                yield name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the rules as Prometheus itself reads them, and their tests."""
    spec = named(render(APPS["prod"]), "PrometheusRule", "babblebox")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    shutil.copy(ALERTS, tmp_path)
    return tmp_path


def promtool(folder: Path, *arguments: str) -> str:
    done = subprocess.run([kubernetes.promtool(), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_are_well_formed(folder: Path) -> None:
    assert f"{len(rules())} rules found" in promtool(folder, "check", "rules", "rules.yaml")


def test_alerts_come_when_they_have_to_and_not_before(folder: Path) -> None:
    promtool(folder, "test", "rules", ALERTS.name)


def test_every_alert_is_tested_both_ways_or_says_who_is_to_look() -> None:
    tested = yaml.safe_load(ALERTS.read_text())["tests"]
    shown = {case["alertname"] for test in tested for case in test["alert_rule_test"] if case.get("exp_alerts")}

    assert shown == {rule["alert"] for rule in rules()}
    assert {rule["labels"]["severity"] for rule in rules()} == {"page", "ticket"}


def test_every_alert_and_no_other_is_on_the_page() -> None:
    page = (CHECKOUT / "docs" / "kubernetes.md").read_text("utf-8")
    told = {
        name
        for row in re.findall(r"^\| (`[A-Z]\w+`.*?) \|", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }

    assert told == {rule["alert"] for rule in rules()}


def test_worker_exports_what_the_rules_ask_of_it(tmp_path: Path) -> None:
    metrics.Metrics(["charge"], tmp_path)
    exported = {sample.name for family in metrics.collect(tmp_path) for sample in family.samples}

    asked = {name for name in metric_names() if name.startswith("pulsartasks_")}

    assert asked
    assert asked <= exported


def test_pulsar_exports_what_the_rules_ask_of_it(pulsar_server: PulsarServer) -> None:
    topic = "persistent://public/default/alerts"
    pulsar_server.admin("PUT", f"{topic.replace('://', '/')}/subscription/somebody")
    asked = {name for name in metric_names() if name.startswith("pulsar_")}

    def all_there() -> bool:
        with urlopen(f"{pulsar_server.admin_url}/metrics/", timeout=30) as answer:
            return asked <= set(re.findall(r"^([a-z0-9_]+)\{", answer.read().decode(), re.MULTILINE))

    assert asked
    wait_until(all_there, f"not all of {', '.join(sorted(asked))} are exported")


def test_operators_export_what_the_rules_ask_of_them() -> None:
    """As far as their sources tell."""
    asked = {name for name in metric_names() if name.startswith(tuple(EXPORTED_BY))}
    for prefix, (module, place) in EXPORTED_BY.items():
        (source,) = (each for each in kubernetes.CUSTOM_RESOURCES if each.startswith(module))
        text = "".join(path.read_text() for path in (go.sources(source) / place).rglob("*.go"))
        mine = {name for name in asked if name.startswith(prefix)}
        assert mine
        for name in mine:
            assert f'"{name}"' in text or _put_together(name, text), name

    known = (*EXPORTED_BY, "pulsartasks_", "pulsar_")
    assert {name for name in metric_names() if not name.startswith(known)} == OF_KUBERNETES | OF_PROMETHEUS


def _put_together(name: str, text: str) -> bool:
    """Whether the words of a name stand there, as namespace, subsystem and name: ``keda``, ``scaler``, ``errors``."""
    words = name.split("_")
    splits = ((a, b) for a in range(1, len(words)) for b in range(a, len(words)))
    return any(
        all(f'"{"_".join(part)}"' in text for part in (words[:a], words[a:b], words[b:]) if part) for a, b in splits
    )
