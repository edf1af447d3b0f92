"""pulsartasks on Pulsar or on the embedded broker, all defaults but ``ignore_result`` and the level of the log."""

from typing import Any

from benchmarks.probe import now, ran, setting
from pulsartasks import PulsarTasks

app = PulsarTasks(setting("queue"), setting("url"))
options: dict[str, Any] = {"batching": True} if setting("batching") else {}
options |= {"durable": False} if setting("volatile") else {}
options |= {"prefetch": int(setting("prefetch"))} if setting("prefetch") else {}
parts = int(setting("partitions", "0"))
topic = app.topic("happened", schema=float, partitions=parts, subscriptions=[app.name]) if parts else None
options |= {"topic": topic} if topic else {}


@app.task(ignore_result=not setting("results"), **options)
def note(called: float) -> None:
    ran(called)


publish = note.delay


def fill(count: int) -> None:
    delay = float(setting("countdown", "0")) or None
    while count > 0:
        what = topic or note.using(countdown=delay)
        app.publish_many([what.s(now()).publication() for _ in range(min(count, 5000))])
        count -= 5000


def worker(processes: int) -> list[str]:
    return ["pulsartasks", "worker", "-A", "benchmarks.peers.ours:app", "--processes", str(processes), "-l", "warning"]
