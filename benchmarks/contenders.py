"""All contenders through the same steps: publish, fill, drain with 1 and 2 processes, latency alone and loaded."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.probe import Reader
from benchmarks.processes import answer, cpu_seconds, pss_mb, running, tree, wait_for
from benchmarks.servers import Servers
from tools import environment

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Contender:
    """A line of the table."""

    name: str
    peer: str
    """Its file in `benchmarks.peers`."""

    server: str
    share: float
    """Of the tasks asked for: as many as it does in some seconds."""

    lasting: str
    """What outlives a power cut, and a worker's death."""

    settings: tuple[tuple[str, str], ...] = ()
    parts: str = "all"
    """Or only ``drain``, or only ``latency``."""


IDLE = 2.0
HALF_LOAD = 1.5
"""Seconds for which a worker is left alone, and for which tasks come at half the rate of the drain."""

DURABLE = "confirmed on disk; a worker's death loses nothing"
SECOND = "a power cut may lose a second"
AT_MOST_ONCE = "nothing: at most once"
NOT_STORED = (("volatile", "yes"), ("prefetch", "1000"))  # what does not fit into the consumer's queue is lost
CELERY_REDIS = f"{SECOND}; a worker's death loses its tasks"
CONTENDERS = (
    Contender("pulsartasks, Pulsar", "ours", "pulsar", 1, DURABLE),
    Contender("pulsartasks, prefetch=1000", "ours", "pulsar", 1, DURABLE, (("prefetch", "1000"),), "drain"),
    Contender("pulsartasks, batching=True", "ours", "pulsar", 1, DURABLE, (("batching", "yes"),), "drain"),
    Contender("pulsartasks, durable=False", "ours", "pulsar", 0.1, AT_MOST_ONCE, (("volatile", "yes"),), "latency"),
    Contender("pulsartasks, with results", "ours", "pulsar", 0.5, DURABLE, (("results", "yes"),), "drain"),
    Contender("bare client, queue of 16", "bare", "pulsar", 1, DURABLE),
    Contender("bare client, queue of 1000", "bare", "pulsar", 1, DURABLE, (("prefetch", "1000"),), "drain"),
    Contender("bare client, batched", "bare", "pulsar", 1, DURABLE, (("batching", "yes"),), "drain"),
    Contender("bare client, non-persistent", "bare", "pulsar", 0.1, AT_MOST_ONCE, NOT_STORED, "latency"),
    Contender(
        "pulsartasks, local", "ours", "local", 0.5, "as SQLite's write-ahead log; a worker's death loses nothing"
    ),
    Contender("Celery, Redis", "celery", "redis", 0.15, CELERY_REDIS),
    Contender("Celery, Redis, with results", "celery", "redis", 0.1, CELERY_REDIS, (("results", "yes"),), "drain"),
    Contender("Celery, RabbitMQ", "celery", "rabbitmq", 0.15, "confirmed; a worker's death loses its tasks"),
    Contender("Dramatiq, Redis", "dramatiq", "redis", 0.3, f"{SECOND}; a worker's death loses nothing"),
    Contender("Dramatiq, RabbitMQ", "dramatiq", "rabbitmq", 0.3, "confirmed; a worker's death loses nothing"),
    Contender("Taskiq, Redis", "taskiq", "redis", 0.2, f"{SECOND}; a worker's death loses nothing"),
    Contender("Huey, Redis", "huey", "redis", 0.3, f"{SECOND}; a worker's death loses its task"),
    Contender("Huey, SQLite", "huey", "sqlite", 0.1, "as SQLite's write-ahead log; a worker's death loses its task"),
)


class Trial:
    """One queue of a contender, new and empty, with the notes of what ran on it."""

    def __init__(self, contender: Contender, servers: Servers, folder: Path) -> None:
        self._contender = contender
        self._log = folder / "worker.log"
        queue = f"bench-{uuid4().hex[:12]}"
        notes = folder / queue
        notes.mkdir()
        programs = environment.PYTHON.parent if contender.peer in ("ours", "bare") else environment.peers()
        self._env = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PULSARTASKS_STATE_DIR": str(folder / "state"),
            "BENCH_FOLDER": str(notes),
            "BENCH_QUEUE": queue,
            "BENCH_URL": servers.url(contender.server, queue),
            **{f"BENCH_{name.upper()}": value for name, value in contender.settings},
        }
        self._python = str(programs / "python")
        self._env["PYTHONPATH"] = str(environment.CHECKOUT)
        self.reader = Reader(notes)

    def publisher(self, action: str, count: int, rate: float = 0, settings: Mapping[str, str] | None = None) -> Any:
        """Runs the calling side to its end and gives what it printed."""
        words = ["-m", "benchmarks.publisher", self._contender.peer, action, str(count), str(rate)]
        return answer([self._python, *words], {**self._env, **(settings or {})}, timeout=900)

    def worker(self, processes: int) -> tuple[list[str], Mapping[str, str], Path]:
        """What `running` needs, as the contender's own file says."""
        command: list[str] = self.publisher("command", processes)
        return [_located(command[0], self._env["PATH"]), *command[1:]], self._env, self._log

    def ran(self, total: int) -> None:
        """Waits until so many tasks have run in all."""
        wait_for(lambda: self.reader.poll() >= total, f"{total} tasks of {self._contender.name} did not run")


def warm_up(servers: Servers) -> None:
    """Lets the broker that compiles as it goes do so before anybody is measured on it."""
    bare = next(one for one in CONTENDERS if one.peer == "bare" and one.parts == "drain")
    measure(bare, servers, 5000)


def measure(contender: Contender, servers: Servers, tasks: int) -> Figures:
    """All figures of one run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if contender.parts == "latency":
            return _latencies(Trial(contender, servers, folder), {})
        count = max(200, int(tasks * contender.share))
        first, second = (Trial(contender, servers, folder) for _ in range(2))
        figures: dict[str, float] = {}
        one_by_one = 0
        if contender.parts == "all":
            one_by_one = min(count, 400 if contender.server == "pulsar" else 1000)
            figures["publish"] = first.publisher("one_by_one", one_by_one)["per_second"]
        first.publisher("fill", count - one_by_one)
        figures |= _drained(first, count, 1, then_latencies=contender.parts == "all")
        second.publisher("fill", count)
        return {**figures, **_drained(second, count, 2)}


def _drained(trial: Trial, count: int, processes: int, *, then_latencies: bool = False) -> dict[str, float]:
    with running(*trial.worker(processes)) as pid:
        trial.ran(1)
        cpu = cpu_seconds(pid)
        already = len(trial.reader.records)
        trial.ran(count)
        cpu = cpu_seconds(pid) - cpu
        instants = [ran for _, ran in trial.reader.records]
        rate = (count - 1) / (max(instants) - min(instants))
        figures = {f"drain_{processes}": rate, f"cpu_us_{processes}": cpu / max(1, count - already) * 1_000_000}
        return {**figures, **_idle(trial, pid, rate)} if then_latencies else figures


def _latencies(trial: Trial, figures: dict[str, float]) -> dict[str, float]:
    with running(*trial.worker(1)) as pid:
        time.sleep(3)  # nothing can be waiting for it
        return {**figures, **_idle(trial, pid, 2000)}


def _idle(trial: Trial, pid: int, drain: float) -> dict[str, float]:
    """Latency one at a time, what a worker that waits takes, then latency at half the drain's rate."""
    before = trial.reader.poll()
    trial.publisher("alone", 100)
    trial.ran(before + 100)
    figures = {"pss_mb": pss_mb(tree(pid)), "largest_mb": max(pss_mb([one]) for one in tree(pid))} | _quantiles(
        trial, before, "alone"
    )
    cpu = cpu_seconds(pid)
    time.sleep(IDLE)
    figures["idle_cpu"] = (cpu_seconds(pid) - cpu) / IDLE * 100
    before = trial.reader.poll()
    count = max(50, int(drain / 2 * HALF_LOAD))
    figures["half_rate"] = trial.publisher("paced", count, drain / 2)["per_second"]
    trial.ran(before + count)
    return figures | _quantiles(trial, before, "half")


def _quantiles(trial: Trial, start: int, name: str) -> dict[str, float]:
    records = sorted(trial.reader.records[start:])[1:]  # the first call of a publisher connects
    waits = [(ran - called) * 1000 for called, ran in records]
    cuts = statistics.quantiles(waits, n=100)
    return {f"{name}_p50": cuts[49], f"{name}_p99": cuts[98]}


def _located(program: str, path: str) -> str:
    """On the contender's own PATH; `subprocess` would look on ours."""
    places = (Path(folder, program) for folder in path.split(os.pathsep))
    return program if program == sys.executable else str(next(place for place in places if place.exists()))
