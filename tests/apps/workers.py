"""One app's worker as a process of its own, on a broker and a blob store that the test shares with it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from apps.events import app
from pulsartasks.contrib.blobs import BlobStore, open_blob_store
from tests.services import Process

START = 150.0
PATIENCE = 150.0
"""Seconds until a test gives up waiting for an event."""


@dataclass(frozen=True)
class RunningWorker:
    """What a test needs of it."""

    blobs: BlobStore
    blob_folder: Path
    log: Path

    def kill(self) -> None:
        """``kill -9`` of the process that runs the tasks; the worker starts another one."""
        told = [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.startswith("{")]
        os.kill([line["pid"] for line in told if line["event"] == "process.started"][-1], signal.SIGKILL)


@contextmanager
def running_worker(name: str, folder: Path, env: Mapping[str, str] | None = None) -> Iterator[RunningWorker]:
    """Run `apps.NAME` until the block ends; inside, this process's events go to its broker."""
    broker, blobs, log = f"local://{folder / 'broker.db'}", folder / "blobs", folder / "worker.log"
    process = Process(
        [sys.executable, "-m", "pulsartasks", "worker", "-A", f"apps.{name}.tasks:app", "-c", "2", "--grace", "5"],
        env={"PULSARTASKS_BROKER": broker, "BLOB_STORE": str(blobs), **(env or {})},
        log=log,
    )
    try:
        process.wait_until_ready(lambda: "process.ready" in log.read_text("utf-8"), f"the worker of {name}", START)
        with app.on_broker(broker):
            yield RunningWorker(open_blob_store(str(blobs)), blobs, log)
    finally:
        process.stop()
