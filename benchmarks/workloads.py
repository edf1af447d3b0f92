"""The measured programs: ``python -m benchmarks.workloads NAME URL TASKS`` runs one in this process and prints JSON."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict
from urllib.parse import urlsplit
from uuid import uuid4

import pulsar

from pulsartasks import PulsarTasks
from pulsartasks.brokers.base import Subscription
from pulsartasks.options import TaskOptions
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.metrics import Metrics
from pulsartasks.worker.worker import Worker

VALUE = b'{"args":[1,2],"kwargs":{}}'


class Rate(TypedDict):
    """A loop's result."""

    per_second: float
    cpu_us: float
    """Processor microseconds that this process spent on each."""


class Latency(TypedDict):
    """Milliseconds from one to the other, one at a time."""

    p50_ms: float
    p99_ms: float


def timed(count: int, step: Callable[[], object]) -> Rate:
    """The rate of `count` times `step`."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    return Rate(per_second=count / (time.perf_counter() - wall), cpu_us=(time.process_time() - cpu) / count * 1_000_000)


def summarised(seconds: list[float]) -> Latency:
    """The usual two figures."""
    cuts = statistics.quantiles(seconds, n=100)
    return Latency(p50_ms=cuts[49] * 1000, p99_ms=cuts[98] * 1000)


def publish(url: str, count: int) -> Rate:
    """``.delay()``, one after the other."""
    app, add = _publisher(url)
    rate = timed(count, lambda: add.delay(1, 2))
    app.close()
    return rate


def publish_bare(url: str, count: int) -> Rate:
    """The bare client's ``send``, one after the other."""
    client = _client(url)
    producer = client.create_producer(f"bench-{uuid4().hex}")
    producer.send(VALUE)
    rate = timed(count, lambda: producer.send(VALUE))
    client.close()
    return rate


def publish_threads(url: str, count: int) -> Rate:
    """``.delay()`` from 8 threads at once."""
    app, add = _publisher(url)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: add.delay(1, 2), range(8)))
        rate = timed(1, lambda: list(pool.map(lambda _: add.delay(1, 2), range(count))))
    app.close()
    return _each(rate, count)


def publish_async(url: str, count: int) -> Rate:
    """100 ``adelay()`` in flight."""
    app, add = _publisher(url)

    async def all_of_them() -> None:
        for start in range(0, count, 100):
            await asyncio.gather(*[add.adelay(1, 2) for _ in range(start, min(start + 100, count))])

    rate = timed(1, lambda: asyncio.run(all_of_them()))
    app.close()
    return _each(rate, count)


def publish_block(url: str, count: int) -> Rate:
    """``with app.publishing():`` around ten calls each, as a web request does it."""
    app, add = _publisher(url)
    publishing = getattr(app, "publishing")  # noqa: B009 - not in every version that is measured

    def request() -> None:
        with publishing():
            for _ in range(10):
                add.delay(1, 2)

    rate = timed(count // 10, request)
    app.close()
    return _each(rate, 10)


def bulk(url: str, count: int) -> Rate:
    """Many at once: ``.map()``, else `publish_many`, of a task with batching where this version has that."""
    app, add = _publisher(url, batching=True)
    arguments = [(1, 2)] * count

    def send() -> None:
        if hasattr(add, "map"):
            add.map(arguments)
        else:
            app.publish_many([add.s(*each).publication() for each in arguments])

    rate = timed(1, send)
    app.close()
    return _each(rate, count)


def bulk_bare(url: str, count: int) -> Rate:
    """The bare client's ``send_async`` with batching, all confirmed at the end."""
    client = _client(url)
    producer = client.create_producer(f"bench-{uuid4().hex}", batching_enabled=True, block_if_queue_full=True)
    producer.send(VALUE)

    def send() -> None:
        for _ in range(count):
            producer.send_async(VALUE, lambda *_: None)
        producer.flush()

    rate = timed(1, send)
    client.close()
    return _each(rate, count)


def drain(url: str, count: int, *, ignore_result: bool = True) -> Rate:
    """A worker's loop over tasks that do nothing, with everything that is on by default."""
    configure_logging("warning")
    app = PulsarTasks(f"bench-{uuid4().hex}", url)
    done = threading.Event()
    began: list[tuple[float, float]] = []
    ended: list[tuple[float, float]] = []
    left = [count]

    @app.task(ignore_result=ignore_result, prefetch=1000)
    def add(x: int, y: int) -> int:
        if not began:
            began.append((time.perf_counter(), time.process_time()))
        left[0] -= 1
        if not left[0]:
            ended.append((time.perf_counter(), time.process_time()))
            done.set()
        return x + y

    app.publish_many([add.s(1, 2).publication() for _ in range(count)])
    with TemporaryDirectory() as folder:
        worker = Worker(app, concurrency=1, middleware=[Metrics(app.tasks, Path(folder))])
        worker.start()
        done.wait()
        worker.stop()
    app.close()
    wall, cpu = (end - start for start, end in zip(began[0], ended[0], strict=True))
    return Rate(per_second=count / wall, cpu_us=cpu / count * 1_000_000)


def drain_with_results(url: str, count: int) -> Rate:
    """The same with every result kept."""
    return drain(url, count, ignore_result=False)


def drain_bare(url: str, count: int) -> Rate:
    """The bare client's receive and acknowledge, with the same queue."""
    client = _client(url)
    topic = f"bench-{uuid4().hex}"
    consumer = client.subscribe(topic, "bench", consumer_type=pulsar.ConsumerType.Shared, receiver_queue_size=1000)
    consumer.close()
    app = PulsarTasks("bench", url)

    @app.task(topic=f"persistent://public/default/{topic}", subscription="bench", ignore_result=True)
    def add(x: int, y: int) -> int:
        return x + y

    app.publish_many([add.s(1, 2).publication() for _ in range(count)])
    app.close()
    consumer = client.subscribe(topic, "bench", consumer_type=pulsar.ConsumerType.Shared, receiver_queue_size=1000)
    rate = timed(count, lambda: consumer.acknowledge(consumer.receive()))
    client.close()
    return rate


def latency(url: str, count: int) -> Latency:
    """From just before ``.delay()`` to the task's first line, one at a time."""
    configure_logging("warning")
    app = PulsarTasks(f"bench-{uuid4().hex}", url)
    ran: list[float] = []
    arrived = threading.Event()

    @app.task(ignore_result=True)
    def note() -> None:
        ran.append(time.perf_counter())
        arrived.set()

    worker = Worker(app, concurrency=1)
    worker.start()

    def once() -> float:
        arrived.clear()
        began = time.perf_counter()
        note.delay()
        arrived.wait()
        return ran[-1] - began

    once()
    seconds = [once() for _ in range(count)]
    worker.stop()
    app.close()
    return summarised(seconds)


def latency_bare(url: str, count: int) -> Latency:
    """From just before the bare client's ``send`` to ``receive``, one at a time."""
    client = _client(url)
    topic = f"bench-{uuid4().hex}"
    consumer = client.subscribe(topic, "bench", consumer_type=pulsar.ConsumerType.Shared)
    producer = client.create_producer(topic)

    def once() -> float:
        began = time.perf_counter()
        producer.send_async(VALUE, lambda *_: None)
        consumer.acknowledge(consumer.receive())
        return time.perf_counter() - began

    once()
    seconds = [once() for _ in range(count)]
    client.close()
    return summarised(seconds)


def round_trip(url: str, count: int) -> Latency:
    """``.delay().get()``, one at a time."""
    configure_logging("warning")
    app = PulsarTasks(f"bench-{uuid4().hex}", url)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    worker = Worker(app, concurrency=1)
    worker.start()

    def once() -> float:
        began = time.perf_counter()
        add.delay(1, 2).get()
        return time.perf_counter() - began

    once()
    seconds = [once() for _ in range(count)]
    worker.stop()
    app.close()
    return summarised(seconds)


def port_only(url: str, count: int) -> Rate:
    """The broker port without a worker on it: receive and acknowledge."""
    app = PulsarTasks(f"bench-{uuid4().hex}", url)

    @app.task(ignore_result=True)
    def add(x: int, y: int) -> int:
        return x + y

    app.publish_many([add.s(1, 2).publication() for _ in range(count)])
    consumer = app.broker.subscribe(Subscription((add.topics.calls,), add.subscription, prefetch=1000))

    def step() -> None:
        delivery = consumer.receive(10)
        assert delivery is not None
        delivery.acknowledge()

    rate = timed(count, step)
    app.close()
    return rate


def start_up(_url: str, count: int) -> Latency:
    """``import pulsartasks`` in a new process."""
    return _started("import pulsartasks", count)


def start_up_bare(_url: str, count: int) -> Latency:
    """The imports that it cannot do without."""
    return _started("import pulsar, msgspec, structlog", count)


def command_line(_url: str, count: int) -> Latency:
    """``pulsartasks --help``."""
    return _started("from pulsartasks.cli import main; main(['--help'])", count)


WORKLOADS: dict[str, Callable[[str, int], Any]] = {
    function.__name__: function
    for function in (
        publish,
        publish_bare,
        publish_threads,
        publish_async,
        publish_block,
        bulk,
        bulk_bare,
        start_up,
        start_up_bare,
        command_line,
        drain,
        drain_with_results,
        drain_bare,
        port_only,
        latency,
        latency_bare,
        round_trip,
    )
}


def _publisher(url: str, *, batching: bool = False) -> tuple[PulsarTasks, Any]:
    """An app and its task, connected; batching is asked for only where this version has it."""
    app = PulsarTasks(f"bench-{uuid4().hex}", url)
    options: dict[str, Any] = {"ignore_result": True}
    if batching and "batching" in {field.name for field in fields(TaskOptions)}:
        options["batching"] = True

    def add(x: int, y: int) -> int:
        return x + y

    task: Any = app.task(**options)(add)
    task.delay(1, 2)
    return app, task


def _each(rate: Rate, count: int) -> Rate:
    return Rate(per_second=rate["per_second"] * count, cpu_us=rate["cpu_us"] / count)


def _started(program: str, count: int) -> Latency:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    once()
    return summarised([once() for _ in range(count)])


def _client(url: str) -> Any:
    parts = urlsplit(url)
    return pulsar.Client(f"{parts.scheme}://{parts.netloc}", logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))


if __name__ == "__main__":
    _, name, broker_url, tasks = sys.argv
    json.dump(WORKLOADS[name](broker_url, int(tasks)), sys.stdout)
