"""Celery on Redis or RabbitMQ: prefork, as its "Optimizing" guide advises for many short tasks.

Results, events, gossip, mingle and heartbeats off; prefetch 128 per process; early acknowledgement, Celery's default:
faster, and a task is lost with its worker, which ours is not. RabbitMQ: durable queue, persistent, confirmed.
"""

from celery import Celery
from kombu import Queue

from benchmarks.probe import ran, setting

app = Celery("bench", broker=setting("url"), backend=setting("url") if setting("results") else None)
app.conf.update(
    task_ignore_result=not setting("results"),
    task_default_queue=setting("queue"),
    task_queues=[Queue(setting("queue"), routing_key=setting("queue"))],
    worker_prefetch_multiplier=128,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True} if setting("url").startswith("amqp") else {},
)


@app.task
def note(called: float) -> None:
    ran(called)


publish = note.delay


def worker(processes: int) -> list[str]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "warning"]
    return ["celery", "-A", "benchmarks.peers.celery", "worker", "-c", str(processes), *quiet]
