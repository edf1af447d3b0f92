"""What many messages, many subscriptions and slow neighbours cost: only ours, each a figure that should stay flat."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from benchmarks.contenders import CONTENDERS, Contender, Trial
from benchmarks.probe import now
from benchmarks.processes import cpu_seconds, pss_mb, running, tree
from benchmarks.servers import Servers
from pulsartasks import PulsarTasks
from pulsartasks.message import new_task_id
from pulsartasks.results.base import Result
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker
from tests.services import wait_until

Figures = Mapping[str, float]


def delayed(servers: Servers, count: int) -> Figures:
    """What `count` tasks that are due in an hour change about a worker's memory."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(_ours(), servers, Path(folder))
        with running(*trial.worker(1)) as pid:
            trial.publisher("alone", 20)
            before = pss_mb(tree(pid))
            began = now()
            trial.publisher("fill", count, settings={"BENCH_COUNTDOWN": "3600"})
            seconds = now() - began
            trial.publisher("alone", 20)
            return {"delayed": count, "grown_mb": pss_mb(tree(pid)) - before, "published_per_second": count / seconds}


def backlog(servers: Servers, count: int, prefetch: str = "1000") -> Figures:
    """The drain of `count` waiting tasks: how fast, and what the worker's memory was at the start and at the end."""
    with tempfile.TemporaryDirectory() as folder:
        contender = replace(_ours(), settings=(("prefetch", prefetch),))
        trial = Trial(contender, servers, Path(folder))
        trial.publisher("fill", count)
        with running(*trial.worker(1)) as pid:
            trial.ran(min(count, 5000))
            before = pss_mb(tree(pid))
            trial.ran(count)
            instants = [ran for _, ran in trial.reader.records]
            rate = (count - 1) / (max(instants) - min(instants))
            return {"backlog": count, "per_second": rate, "grown_mb": pss_mb(tree(pid)) - before}


def processes(servers: Servers, count: int, partitions: str = "0") -> Figures:
    """The drain by 1 to 4 processes on one topic, and what publishing and draining cost the server."""
    figures: dict[str, float] = {}
    for number in range(1, 5):
        with tempfile.TemporaryDirectory() as folder:
            contender = replace(_ours(), settings=(("prefetch", "1000"), ("partitions", partitions)))
            trial = Trial(contender, servers, Path(folder))
            server = _server_seconds()
            trial.publisher("fill", count)
            figures["server_us_publish"] = (_server_seconds() - server) / count * 1_000_000
            with running(*trial.worker(number)) as pid:
                trial.ran(1)
                already, worker, server = len(trial.reader.records), cpu_seconds(pid), _server_seconds(pid)
                trial.ran(count)
                worker, server = cpu_seconds(pid) - worker, _server_seconds(pid) - server
            instants = sorted(ran for _, ran in trial.reader.records)
            figures |= {
                f"per_second_{number}": (count - 1) / (instants[-1] - instants[0]),
                f"worker_us_{number}": worker / (count - already) * 1_000_000,
                f"server_us_{number}": server / (count - already) * 1_000_000,
            }
    return figures


def _server_seconds(worker: int | None = None) -> float:
    """Processor time of all that was started here and still runs, but the worker."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    others = time.process_time() + ended.ru_utime + ended.ru_stime + (cpu_seconds(worker) if worker else 0.0)
    return cpu_seconds(os.getpid()) - others


def look_up(servers: Servers, count: int) -> Figures:
    """How long it takes to find a result by its id, as another process would, among `count` that are kept."""
    app = _app(servers)
    ids: list[str] = []
    began = now()
    for _ in range(0, count, 1000):
        new = [new_task_id() for _ in range(1000)]
        results = [Result(task_id, "note", "SUCCESS") for task_id in new]
        confirmed = app.results.store([app.results.pack(result, reply_to=None) for result in results])
        assert not any(confirmed)
        ids += new
    stored = now() - began
    waits = []
    for task_id in ids[:: len(ids) // 20]:
        began = now()
        assert app.results.find(task_id) is not None
        waits.append((now() - began) * 1000)
    app.close()
    return {"results": count, "stored_per_second": count / stored, "p50_ms": sorted(waits)[10], "max_ms": max(waits)}


def fan_out(servers: Servers, count: int) -> Figures:
    """One event topic, five subscriptions, each handled in this process: handlers run per second, of `count` events."""
    app, ran = _app(servers), [0] * 5  # each handler has one thread, so a number of its own
    topic = app.topic("happened", schema=int, subscriptions=[f"s{index}" for index in range(5)])

    def handler(index: int) -> None:
        @app.task(topic=topic, subscription=f"s{index}", name=f"handler{index}", ignore_result=True)
        def handle(_event: int) -> None:
            ran[index] += 1

    for index in range(5):
        handler(index)
    for event in range(count):
        topic.publish(event)
    worker = Worker(app, concurrency=1)
    began = now()
    with closing(app), _started(worker):
        wait_until(lambda: min(ran) >= count, "the events")
        seconds = now() - began
    return {"events": count, "handled_per_second": sum(ran) / seconds}


def fairness(servers: Servers, count: int) -> Figures:
    """How long tasks of 1 ms wait at 50 a second, alone and beside tasks of 1 s that take half of 8 threads."""
    alone, beside = _waits(servers, count, every=count + 1), _waits(servers, count, every=12)
    return {
        "alone_p50_ms": alone[49],
        "alone_p99_ms": alone[98],
        "beside_p50_ms": beside[49],
        "beside_p99_ms": beside[98],
    }


def burst(servers: Servers, count: int) -> Figures:
    """How long the first and the last of six tasks of 0.1 s wait, sent together to 8 threads with nothing to do."""
    app = _app(servers)
    waits: list[float] = []

    @app.task(ignore_result=True)
    def hold(called: float) -> None:
        waits.append((now() - called) * 1000)
        time.sleep(0.1)

    bursts = []
    with closing(app), _started(Worker(app, concurrency=8)):
        for _ in range(count + 1):
            time.sleep(0.2)
            waits.clear()
            hold.map([(now(),)] * 6)
            wait_until(lambda: len(waits) == 6, "the burst")
            bursts.append((waits[0], waits[-1]))
    first, last = zip(*bursts[1:], strict=True)  # the first one opened the producer
    return {"first_p50_ms": statistics.median(first), "last_p50_ms": statistics.median(last), "last_max_ms": max(last)}


def _waits(servers: Servers, count: int, *, every: int) -> list[float]:
    app = _app(servers)
    waits: list[float] = []

    @app.task(ignore_result=True)
    def quick(called: float) -> None:
        waits.append((now() - called) * 1000)
        time.sleep(0.001)

    @app.task(ignore_result=True)
    def slow() -> None:
        time.sleep(1)

    with closing(app), _started(Worker(app, concurrency=8)):
        for number in range(1, count + 1):
            if number % every == 0:
                slow.delay()
            quick.delay(now())
            time.sleep(0.02)
        wait_until(lambda: len(waits) >= count, "the quick tasks")
    return statistics.quantiles(waits, n=100)


def _ours() -> Contender:
    return CONTENDERS[0]


@contextmanager
def _started(worker: Worker) -> Iterator[None]:
    """It works during the block."""
    worker.start()
    try:
        yield
    finally:
        worker.stop()


def _app(servers: Servers) -> PulsarTasks:
    configure_logging("warning")
    name = f"bench-{uuid4().hex[:12]}"
    os.environ.setdefault("PULSARTASKS_STATE_DIR", tempfile.mkdtemp())
    return PulsarTasks(name, servers.url("pulsar", name))
