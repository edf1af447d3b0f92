"""The Job that makes the tenant: what its script asks of pulsar-admin is asked of a real broker by Pulsar's own shell.

The shell knows the same commands and runs all of them in one process. A pulsar-admin for each takes half a minute.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.deploy.manifests import FOLDER, PULSAR, containers_of, environment_of, named, render
from tests.secure import ADMIN, SecurePulsarServer
from tests.services import PULSAR_ENVIRONMENT
from tools import downloads

SCRIPTS = FOLDER / "pulsar" / "base"


def test_tenant_and_namespace_are_made_with_their_policies(secure_pulsar: SecurePulsarServer, tmp_path: Path) -> None:
    tenant = "babblebox-of-a-job"
    (tmp_path / "token").write_text(secure_pulsar.tokens.token(ADMIN))
    config = (SCRIPTS / "client.conf").read_text()
    for there, here in {
        "https://pulsar-proxy.pulsar.svc.cluster.local": secure_pulsar.admin_url,
        "/pulsar/certs/ca/ca.crt": str(secure_pulsar.authority.certificate),
        "/pulsar/tokens/admin/token": str(tmp_path / "token"),
    }.items():
        assert there in config
        config = config.replace(there, here)
    (tmp_path / "client.conf").write_text(config)
    [container] = containers_of(named(render(PULSAR["prod"]), "Job", "tenant"))
    given = environment_of(container, ())
    assert given["NAMESPACE"] == "babblebox/apps"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pulsar-admin").write_text('#!/bin/sh\necho admin "$@" >>asked\n')
    (tmp_path / "bin" / "pulsar-admin").chmod(0o755)
    env = {**os.environ, **given, "CLUSTER": "standalone", "NAMESPACE": f"{tenant}/apps"}

    subprocess.run(["bash", SCRIPTS / "tenant.sh"], cwd=tmp_path, env=env, check=True)
    shell: list[str | Path] = ["bin/pulsar-shell", "--config", tmp_path / "client.conf", "--no-progress"]
    shell += [
        "--filename",
        tmp_path / "asked",
    ]  # not --fail-on-error: it ends after the first command, whatever that says
    options = f"{PULSAR_ENVIRONMENT['PULSAR_EXTRA_OPTS']} -Duser.home={tmp_path}"  # where it keeps its history
    env = {**os.environ, **PULSAR_ENVIRONMENT, "PULSAR_EXTRA_OPTS": options, "PULSAR_LOG_DIR": str(tmp_path)}
    done = subprocess.run(shell, cwd=downloads.pulsar(), env=env, capture_output=True, text=True, check=False)

    assert "Reason:" not in done.stdout + done.stderr
    assert secure_pulsar.admin("GET", f"tenants/{tenant}") == {
        "adminRoles": ["topics"],
        "allowedClusters": ["standalone"],
    }
    policies = secure_pulsar.admin("GET", f"namespaces/{tenant}/apps")
    assert isinstance(policies, dict)
    assert policies["deduplicationEnabled"] is True
    assert policies["retention_policies"] == {"retentionTimeInMinutes": 3 * 24 * 60, "retentionSizeInMB": 20 * 1024}
    [quota] = policies["backlog_quota_map"].values()
    assert (quota["limitSize"], quota["policy"]) == (10 * 1024**3, "producer_request_hold")
    assert policies["delayed_delivery_policies"]["active"] is True
    assert policies["inactive_topic_policies"]["deleteWhileInactive"] is False
    assert policies["offload_policies"]["managedLedgerOffloadThresholdInBytes"] == 5 * 1024**3
