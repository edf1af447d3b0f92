"""Dramatiq on Redis or RabbitMQ: 8 threads for each process, its default; late acknowledgement, as ours.

RabbitMQ: durable queue, persistent, with ``confirm_delivery`` as its guide advises where a message must not be lost.
"""

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from benchmarks.probe import ran, setting

broker = (
    RedisBroker(url=setting("url"), namespace=setting("queue"))
    if setting("url").startswith("redis")
    else RabbitmqBroker(url=setting("url"), confirm_delivery=True)
)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=setting("queue"))
def note(called: float) -> None:
    ran(called)


publish = note.send


def worker(processes: int) -> list[str]:

    return ["dramatiq", "benchmarks.peers.dramatiq:broker", "-p", str(processes), "-t", "8"]
