"""BabbleBox as people run it: all its processes, one of them watched or killed by a test."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pulsartasks.contrib.blobs import BlobStore, open_blob_store
from tests.services import LOOPBACK, Process, free_ports, wait_until

START = 120.0


class RunningBabbleBox:
    """A copy of BabbleBox with a state, a port and settings of its own."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.state = folder / "state"
        self.log = folder / "babblebox.log"
        self._env = dict(env)
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and return when it says that it is ready."""
        command = [sys.executable, "-m", "apps.run", "--state", str(self.state), "--port", str(self.port)]
        self.log.write_bytes(b"")
        self._process = Process(command, env={"BABBLEBOX_DEMO": "0", **self._env}, log=self.log)
        self._process.wait_until_ready(lambda: "BabbleBox is ready" in self.log_text, "BabbleBox", START)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it as Ctrl-C does, or a service manager."""
        if self._process is not None:
            self._process.stop(how)
            self._process = None

    @property
    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    @property
    def blobs(self) -> BlobStore:
        """Its blob store, for a test that makes things go wrong in it."""
        return open_blob_store(self._env.get("BLOB_STORE", str(self.state / "blobs")))

    def worker_pid(self, name: str) -> int:
        """The process of a worker that runs its tasks now."""
        started = re.findall(rf"^{name} +\| process\.started .*pid=(\d+)", self.log_text, re.MULTILINE)
        return int(started[-1])

    def kill_worker(self, name: str) -> None:
        """``kill -9`` of the process that runs a worker's tasks; returns when another one has taken its place."""
        before = self.worker_pid(name)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: self.worker_pid(name) != before, f"no new {name} process was started")

    @contextmanager
    def worker_suspended(self, name: str) -> Iterator[None]:
        """A worker does not move while the block runs."""
        pid = self.worker_pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # stopped for good meanwhile
                os.kill(pid, signal.SIGCONT)

    @property
    def deaths(self) -> list[str]:
        """The lines that tell of parts or workers which ended without being asked to."""
        return re.findall(r"^.*(?:ended with status|process\.died).*$", self.log_text, re.MULTILINE)
