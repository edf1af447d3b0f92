"""What a worker knows of messages that were running when a process died, beyond what the conformance suite shows."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks
from pulsartasks.brokers.base import Delivery
from pulsartasks.catalog import CRASHES
from pulsartasks.crashes import CrashReport, Trace
from pulsartasks.message import Publication
from pulsartasks.worker.guard import Guard


def test_good_end_that_cannot_be_told_is_an_end_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSARTASKS_STATE_DIR", str(tmp_path))
    app = PulsarTasks("guarded", f"local://{tmp_path}/broker.db")
    topic = app.own_topic(CRASHES)
    app.declare(topic)
    report = CrashReport("dead", time.time(), [Trace("mail/1", running=True)])
    app.broker.publish(Publication(topic, msgspec.json.encode(report)))
    guard = Guard(app)
    guard.start(1, lambda _: None)
    guard.wait_until_known()
    assert guard.story("mail/1") is not None
    app.broker.close()

    with capture_logs() as logs:
        guard.settled("mail/1", "mail", Delivery("t", "7:1:-1", b"", None, {}, 0.0))

    assert guard.story("mail/1") is None
    assert [entry["event"] for entry in logs] == ["notice.refused"]
    guard.stop()
    app.close()
