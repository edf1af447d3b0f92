"""The Job that makes the tenant: its script, run by Pulsar's own pulsar-admin against a real broker."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.deploy.manifests import FOLDER, PULSAR, containers_of, environment_of, named, render
from tests.secure import ADMIN, SecurePulsarServer
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
    env = {
        **os.environ,
        **given,
        "CLUSTER": "standalone",
        "NAMESPACE": f"{tenant}/apps",
        "PULSAR_CLIENT_CONF": str(tmp_path / "client.conf"),
        "PULSAR_EXTRA_OPTS": "-XX:TieredStopAtLevel=1",
        "PULSAR_LOG_DIR": str(tmp_path),
    }

    command: list[str | Path] = ["bash", SCRIPTS / "tenant.sh"]
    done = subprocess.run(command, cwd=downloads.pulsar(), env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
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
