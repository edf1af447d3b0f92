"""compose.yaml, read as Docker reads it: it holds together, and agrees with the Dockerfile, the docs and the tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pulsartasks.worker.supervisor import LAST_GRACE
from tests.deploy import dockerfile
from tests.services import CHECKOUT, PULSAR_SETTINGS, S3Server
from tools import downloads

OURS = {"web", "relay", "migrate", "bucket", "topics", "chat", "transcribe", "images", "beat"}
ONCE = {"migrate", "bucket", "topics"}
HERE_ONLY = {"bindAddress", "brokerDeleteInactiveTopicsFrequencySeconds", "numHttpServerThreads", "numIOThreads"}
"""Settings of the Pulsar that the tests start, which are not for a container."""
UNITS = {"s": 1, "m": 60}

Service = dict[str, Any]


@pytest.fixture(scope="module")
def services(compose_spec: Path) -> dict[str, Service]:
    env = {"PATH": os.environ["PATH"]}  # what a developer may have set is not asked
    command = [str(compose_spec), "--format", "json", "compose.yaml"]
    told = subprocess.run(command, env=env, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    services: dict[str, Service] = json.loads(told.stdout)["services"]
    return services


def test_all_of_babblebox_is_there(services: dict[str, Service]) -> None:
    assert services.keys() == OURS | {"pulsar", "postgres", "s3"}
    assert {services[name]["build"]["target"] for name in OURS} == set(dockerfile.TARGETS)


def test_no_service_may_do_more_than_it_must(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert "cap_add" not in service, name
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name


def test_secrets_say_that_they_are_for_development(services: dict[str, Service]) -> None:
    secret = re.compile("PASSWORD|SECRET|ACCESS_KEY")
    given = {(n, v) for service in services.values() for n, v in service["environment"].items() if secret.search(n)}

    assert given
    assert {value for name, value in given if "development-only" not in value} == set()


def test_what_our_services_are_told_is_in_the_docs(services: dict[str, Service]) -> None:
    documented = set(
        re.findall(r"^\| `([A-Z0-9_]+)` \|", (CHECKOUT / "docs" / "settings.md").read_text(), re.MULTILINE)
    )
    told = {name for service in OURS for name in services[service]["environment"]}

    assert {name for name in told - documented if not name.startswith("AWS_")} == set()


def test_everything_waits_for_what_it_needs_and_that_can_be_asked(services: dict[str, Service]) -> None:
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}

    for name in OURS - ONCE:
        assert waits[name].keys() == ONCE, name
        assert {wait["condition"] for wait in waits[name].values()} == {"service_completed_successfully"}, name
    for name in ONCE:
        assert {wait["condition"] for wait in waits[name].values()} == {"service_healthy"}, name
        assert all("test" in services[other]["healthcheck"] for other in waits[name]), name
    assert {name for name in OURS if services[name]["healthcheck"].get("disable")} == {*ONCE, "relay"}


def test_a_worker_has_the_time_that_it_gives_its_tasks(services: dict[str, Service]) -> None:
    for name in ("chat", "transcribe", "images"):
        command = dockerfile.read().last(services[name]["build"]["target"], "CMD").words
        grace = next((float(w.partition("=")[2]) for w in command if w.startswith("--grace")), 30.0)
        spans = re.findall(r"(\d+)([ms])", services[name]["stop_grace_period"])

        assert sum(int(number) * UNITS[unit] for number, unit in spans) > grace + LAST_GRACE, name


def test_pulsar_and_s3_are_what_the_tests_run_with(services: dict[str, Service]) -> None:
    settings = dict(line.split("=", 1) for line in services["pulsar"]["environment"]["SETTINGS"].split())

    assert services["pulsar"]["image"].endswith(f":{downloads.PULSAR_VERSION}")
    assert services["s3"]["image"].endswith(f":{downloads.VERSITYGW.rpartition('@')[2]}")
    assert {n: v for n, v in PULSAR_SETTINGS.items() if n not in HERE_ONLY}.items() <= settings.items()


def test_bucket_is_made_and_may_be_there(services: dict[str, Service], s3_server: S3Server) -> None:
    python, *words = services["bucket"]["command"]
    command = [word.replace("http://s3:7070", s3_server.endpoint_url).replace("babblebox", "another") for word in words]
    assert python == "python"

    for _ in range(2):
        subprocess.run([sys.executable, *command], env={**os.environ, **s3_server.environment}, check=True)


def test_topics_of_all_apps_are_made(services: dict[str, Service], tmp_path: Path) -> None:
    program, *words = services["topics"]["command"]
    env = {**os.environ, "PULSARTASKS_BROKER": f"local://{tmp_path / 'broker.db'}"}

    said = subprocess.run(
        [Path(sys.executable).with_name(program), *words],
        cwd=CHECKOUT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    for topic, subscription in (
        ("message-created", "transcribe"),
        ("message-created", "images"),
        ("image-ready", "chat"),
    ):
        assert f"subscription {subscription} on babblebox.{topic} " in said
    assert "babblebox.message-created-transcribe-DLQ" in said
