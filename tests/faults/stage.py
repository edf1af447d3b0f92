"""What a scenario plays on: a broker, a publisher, workers, and the file of what happened."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pulsartasks.dead_letters import DeadLetters
from tests.conformance.processes import WorkerProcess
from tests.faults import tasks
from tests.faults.checker import ACK_WINDOW, Verdict, check
from tests.faults.entries import Entry, EntryFile, Kind
from tests.faults.plan import PLANS
from tests.services import CHECKOUT, PulsarServer, wait_until

QUIET = 1.5
"""Seconds without news after which nothing more is expected to run again: a local broker looks for dead processes once
a second."""
NEARBY = 3.0
"""Seconds before and after a task's last attempt whose faults belong to its story."""
WORKER = "tests.faults.tasks:app"


@dataclass(frozen=True)
class Setting:
    """What is played, and how large."""

    url: str
    tasks: int
    seed: int = 1
    plan: str = "mixed"
    rate: int = 0
    """Tasks a second; 0: as fast as it goes."""
    patience: float = 120.0
    """Seconds that all of it may take."""
    server: PulsarServer | None = None
    short: bool = False
    """Fewer of what takes long."""


class Stage:
    """One run of a scenario."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        self.random = random.Random(setting.seed)
        self.entries = EntryFile(folder / "entries")
        self._name = f"f{uuid4().hex[:10]}"
        self._stack = ExitStack()
        self.app = tasks.make_app(self._name, setting.url, self.entries, PLANS[setting.plan])
        self._history: list[Entry] = []
        self._open: set[int] = set()
        self._published = 0
        self._deadline = time.monotonic() + setting.patience
        self._environment = {
            "PULSARTASKS_BROKER": setting.url,
            tasks.APP: self._name,
            tasks.ENTRIES: str(self.entries.path),
            tasks.PLAN: setting.plan,
        }
        self._publishers: list[subprocess.Popen[bytes]] = []
        self._finished: set[int] = set()

    # Playing

    def publish(self, first: int = 0, *, by: str = "tests.faults.publisher", arguments: Sequence[str] = ()) -> None:
        """Start a process that calls the tasks from `first` on."""
        numbers = (first, self.setting.tasks, self.setting.rate)
        self._publishers.append(self.start(by, *arguments, *map(str, numbers)))

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program of the run, which ends with it at the latest."""
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, cwd=CHECKOUT, env={**os.environ, **self._environment})
        self._stack.callback(_end, process)
        return process

    def start_worker(self, *arguments: str, url: str | None = None) -> WorkerProcess:
        env = {**self._environment, "PULSARTASKS_BROKER": url or self.setting.url}
        worker = WorkerProcess("--health-port", "0", *arguments, env=env, app=WORKER)
        self._stack.callback(worker.clean_up)
        return worker

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call it when the run is over, also when it failed."""
        self._stack.callback(callback)

    @property
    def topics(self) -> list[str]:
        """The topics that the tasks are called through, by their full names."""
        return [topic for t in self.app.tasks.values() for topic in (t.topics.calls, t.topics.retry, t.topics.delayed)]

    @property
    def publisher(self) -> subprocess.Popen[bytes]:
        """The latest publisher."""
        return self._publishers[-1]

    @property
    def going(self) -> bool:
        """Whether something is still to be done, and time to do it."""
        if time.monotonic() > self._deadline:
            return False
        return self.publisher.poll() is None or bool(self.unfinished())

    def progress(self) -> float:
        """The share of the tasks that were done."""
        self._look()
        return len(self._finished) / self.setting.tasks

    def unfinished(self) -> set[int]:
        """The tasks that were confirmed and not done yet."""
        self._look()
        return self._open - self._finished

    def confirmed(self) -> int:
        """The number of the task behind the last one that was confirmed."""
        self._look()
        return max(self._open, default=-1) + 1

    def wait(self, seconds: float) -> None:
        """Let it run on for a while, or until all is done."""
        until = time.monotonic() + seconds
        while self.going and time.monotonic() < until:
            time.sleep(0.02)

    # Faults

    def note(self, kind: Kind, *pids: int, at: float | None = None) -> None:
        """Write down that processes are killed (or stopped), now or just after the instant `at`."""
        self.entries.write(*(Entry(kind, at or time.time(), pid=pid) for pid in pids))

    @contextmanager
    def outage(self, *workers: WorkerProcess, acks: float = ACK_WINDOW) -> Iterator[None]:
        """Write down an outage: from the block's beginning until its end; of `workers`, or of all and the publisher."""
        began = time.time()
        yield
        pids = {pid for worker in workers for pid in worker.children()} or {0}
        now = time.time()
        self.entries.write(*(Entry(Kind.OUTAGE, began, pid=p, run=int(acks * 1000), until=now) for p in pids))

    # The end

    def finish(self) -> Verdict:
        """Wait until nothing more happens, and judge."""
        while self.going:
            time.sleep(0.05)
        quiet_since, seen = time.monotonic(), len(self._history)
        while time.monotonic() - quiet_since < QUIET:
            self._look()
            if len(self._history) != seen:
                quiet_since, seen = time.monotonic(), len(self._history)
            time.sleep(0.05)
        dead = self._dead()
        self._look()
        exact = self.setting.server is None
        return check(self._history, PLANS[self.setting.plan], self.setting.tasks, dead, exact=exact)

    def story(self, number: int) -> list[str]:
        """What happened to one task, for who looks for the cause."""
        mine = [entry for entry in self._history if entry.number == number and entry.kind < Kind.KILLED]
        pids = {entry.pid for entry in mine} | {0}
        last = max((entry.at for entry in mine), default=0.0)
        faults = [e for e in self._history if e.kind >= Kind.KILLED and (e.pid in pids or abs(e.at - last) < NEARBY)]
        return [
            f"{e.at:.3f} {e.kind.name.lower()} attempt {e.attempt} in process {e.pid}"
            + (f" until {e.until:.3f}" if e.until else "")
            for e in sorted(mine + faults, key=lambda entry: entry.at)
        ]

    def close(self) -> None:
        self._stack.close()
        self.app.close()
        self.entries.close()

    def _look(self) -> None:
        new = self.entries.new()
        self._history += new
        self._open.update(entry.number for entry in new if entry.kind is Kind.CONFIRMED)
        self._finished.update(entry.number for entry in new if entry.kind is Kind.DONE)

    def _dead(self) -> list[int]:
        found = []
        kept_of = (task for task in self.app.tasks.values() if task.options.dead_letter)
        for kept in DeadLetters(self.app, *kept_of).list():
            [*_, number], _ = self.app.tasks[kept.task].codec.decode(kept.delivery.value)
            found.append(int(number))
        return found


def wait_until_connected(*workers: WorkerProcess, timeout: float = 90.0) -> None:
    """Wait until the workers say that they consume all their subscriptions."""
    wait_until(lambda: all(_ready(worker) for worker in workers), "the workers did not connect again", timeout)


def _ready(worker: WorkerProcess) -> bool:
    address = next((line.partition("Health: ")[2] for line in worker.lines if line.startswith("Health: ")), None)
    if address is None:
        return False
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(30)
