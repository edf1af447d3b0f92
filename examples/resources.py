"""Resources: what is slow to make is made once in each worker process, and handed to the tasks that name its type."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from pulsartasks import INJECTED, PulsarTasks
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("resources")


@dataclass
class Dictionary:
    words: dict[str, str] = field(default_factory=dict)


@app.resource
def dictionary() -> Iterator[Dictionary]:
    print("loading the dictionary takes a second ...", flush=True)
    time.sleep(1)
    yield Dictionary({"hello": "bonjour", "task": "tâche", "world": "monde"})
    print("... and it is put away when the worker ends", flush=True)


@app.task
def translate(word: str, dictionary: Dictionary = INJECTED) -> str:  # the worker's to give
    return dictionary.words[word]


def main() -> None:
    calls = [translate.delay(word) for word in ("hello", "world", "task")]
    print("translated:", " ".join(call.get(timeout=30) for call in calls))


if __name__ == "__main__":
    configure_logging("warning")
    worker = Worker(app, concurrency=3)  # on threads of this process; otherwise: pulsartasks worker -A resources:app
    worker.start()
    main()
    worker.stop()
