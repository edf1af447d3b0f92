"""Huey on Redis or SQLite: process workers, as its guide advises for work that takes the processor; no results.

A task is popped before it runs, so it is lost with its worker, which ours is not. The scheduler's periodic tasks are
off. SQLite as Huey sets it up: write-ahead log, ``synchronous`` as SQLite has it.
"""

from huey import RedisHuey, SqliteHuey

from benchmarks.probe import ran, setting

app = (
    RedisHuey(setting("queue"), url=setting("url"), results=False)
    if setting("url").startswith("redis")
    else SqliteHuey(setting("queue"), filename=setting("url"), results=False)
)


@app.task()
def note(called: float) -> None:
    ran(called)


publish = note


def worker(processes: int) -> list[str]:
    quiet = ["--quiet", "--no-periodic"]
    return ["huey_consumer", "benchmarks.peers.huey.app", "-k", "process", "-w", str(processes), *quiet]
