"""pulsartasks on Pulsar or on the embedded broker, all defaults but ``ignore_result`` and the level of the log."""

from benchmarks.probe import now, ran, setting
from pulsartasks import PulsarTasks

app = PulsarTasks(setting("queue"), setting("url"))
options = {"batching": True} if setting("batching") else {"durable": False} if setting("volatile") else {}


@app.task(ignore_result=True, **options)
def note(called: float) -> None:
    ran(called)


publish = note.delay


def fill(count: int) -> None:
    app.publish_many([note.s(now()).publication() for _ in range(count)])


def worker(processes: int) -> list[str]:
    return ["pulsartasks", "worker", "-A", "benchmarks.peers.ours:app", "--processes", str(processes), "-l", "warning"]
