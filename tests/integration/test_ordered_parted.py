"""Guarantee 6 on a broken network: what a worker holds of a key it does not begin once others may have it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks
from pulsartasks.options import Mode
from pulsartasks.topic import Topic
from pulsartasks.worker.worker import Worker
from tests.faults.proxy import Proxy
from tests.services import LOOPBACK, PulsarServer, wait_until

MESSAGES = 12


@pytest.fixture
def proxy(pulsar_server: PulsarServer) -> Iterator[Proxy]:
    proxy = Proxy(int(pulsar_server.service_url.rpartition(":")[2]))
    yield proxy
    proxy.close()


@pytest.mark.parametrize(("mode", "partitions"), [("key_shared", 0), ("key_shared", 2), ("exclusive", 0)])
def test_worker_that_lost_the_broker_begins_nothing_that_it_held(
    mode: Mode, partitions: int, proxy: Proxy, pulsar_server: PulsarServer
) -> None:
    begun: list[tuple[str, int]] = []
    ended: list[int] = []
    may_end = threading.Semaphore(0)
    name = f"t{uuid4().hex[:10]}"

    with ExitStack() as stack:

        def start(who: str, port: int) -> Topic[int]:
            app = PulsarTasks(name, f"pulsar://{LOOPBACK}:{port}?admin_url={pulsar_server.admin_url}")
            topic = app.topic("numbers", schema=int, key=lambda _: "one", subscriptions=("s",), partitions=partitions)

            @app.task(topic=topic, subscription="s", mode=mode)
            def note(number: int) -> None:
                begun.append((who, number))
                assert may_end.acquire(timeout=120)
                ended.append(number)

            worker = Worker(app, concurrency=2)
            worker.start()
            stack.callback(app.close)
            stack.callback(worker.stop, 5.0)
            wait_until(lambda: worker.ready, f"{who} is not ready")
            return topic

        logs = stack.enter_context(capture_logs())
        stack.callback(may_end.release, 10 * MESSAGES)
        topic = start("cut off", proxy.port)
        for number in range(MESSAGES):
            topic.publish(number)
        wait_until(lambda: len(begun) == 1, "nothing began")
        start("other", int(pulsar_server.service_url.rpartition(":")[2]))

        proxy.cut()
        wait_until(lambda: ("other", 0) in begun, "it did not come again")
        wait_until(lambda: any(log["event"] == "consumer.parted" for log in logs), "it was not noticed")
        proxy.restore()
        may_end.release(10 * MESSAGES)

        wait_until(lambda: set(ended) == set(range(MESSAGES)), f"not all of them ended: {begun}")
        assert [number for _, number in begun] == [0, *range(MESSAGES)]
