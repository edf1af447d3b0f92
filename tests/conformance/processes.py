"""A worker, or beat, as a user starts it: ``pulsartasks worker`` in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from typing_extensions import Self

from tests.services import CHECKOUT, wait_until

TASKS = "tests.conformance.tasks:app"


class WorkerProcess:
    """The supervisor, its children, and what they log; `within` is a command that is to run it, e.g. ``unshare``."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str],
        app: str = TASKS,
        command: str = "worker",
        within: Sequence[str] = (),
    ) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "pulsartasks", command, "-A", app, *arguments],
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def logs(self) -> list[dict[str, Any]]:
        """What was logged, by the supervisor and its children."""
        return [msgspec.json.decode(line) for line in list(self.lines) if line.startswith("{")]

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines of this event that have all of `fields`."""
        wanted = {"event": event, **fields}
        return [line for line in self.logs if wanted.items() <= line.items()]

    def wait_for_log(
        self, event: str, *, count: int = 1, timeout: float = 120.0, **fields: Any
    ) -> list[dict[str, Any]]:
        """Wait until `count` lines of this event were logged; gives them."""
        try:
            wait_until(
                lambda: len(self.logged(event, **fields)) >= count or self._process.poll() is not None,
                f"{event} was not logged",
                timeout,
            )
        except TimeoutError as error:
            raise TimeoutError(f"{error}:\n" + "\n".join(self.lines)) from None
        if self._process.poll() is not None:
            self._reader.join(2.0)
        found = self.logged(event, **fields)
        assert len(found) >= count, "the worker ended:\n" + "\n".join(self.lines)
        return found

    def wait_until_ready(self, processes: int = 1) -> Self:
        """Wait until every child consumes, or stands by."""
        self.wait_for_log("process.ready", count=processes)
        return self

    def children(self) -> list[int]:
        """The process ids of the children that were started, in order."""
        return [line["pid"] for line in self.logged("process.started")]

    def terminate(self) -> None:
        """What a service manager does first."""
        self._process.send_signal(signal.SIGTERM)

    def kill_supervisor(self) -> None:
        self._process.kill()

    def kill(self) -> None:
        """SIGKILL to all of it at once, as the loss of its machine would."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def wait_for_end_of_children(self) -> None:
        """Wait until nobody is left who could write to the log, which the children inherit."""
        self._reader.join(60)
        assert not self._reader.is_alive(), "a child still runs"

    def wait(self, timeout: float = 120.0) -> int:
        """Wait for the end of the supervisor; gives its exit status."""
        status = self._process.wait(timeout)
        self._reader.join(2.0)  # it may have said something last; a child that outlives it holds the stream open
        return status

    def clean_up(self) -> None:
        """Leave nothing behind, however the test ended."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all gone
        self._process.wait(30)
        self._reader.join(30)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.decode().rstrip())
