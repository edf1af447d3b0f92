"""Taskiq on Redis streams, the broker that its documentation shows first: acknowledged late, as ours; uvloop.

A result backend is not set, so results are dropped. Publishing runs one coroutine after the other on one loop.
"""

import asyncio

from taskiq_redis import RedisStreamBroker

from benchmarks.probe import ran, setting

broker = RedisStreamBroker(url=setting("url"), queue_name=setting("queue"), consumer_group_name=setting("queue"))


@broker.task
async def note(called: float) -> None:
    ran(called)


loop = asyncio.new_event_loop()
started: list[bool] = []


def publish(called: float) -> None:
    if not started:
        loop.run_until_complete(broker.startup())
        started.append(True)
    loop.run_until_complete(note.kiq(called))


def worker(processes: int) -> list[str]:
    return ["taskiq", "worker", "--workers", str(processes), "--log-level", "WARNING", "benchmarks.peers.taskiq:broker"]
