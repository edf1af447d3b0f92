"""Progress: a task says how far it is, and whoever knows its id can ask, while it runs and after its end."""

from __future__ import annotations

import time

from pulsartasks import PulsarTasks, TaskContext
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("progress")
PAGES = 40


@app.task(bind=True, track_started=True)
def print_book(self: TaskContext) -> str:
    for page in range(1, PAGES + 1):
        time.sleep(0.05)
        self.progress(page, PAGES, f"page {page}")  # as often as you like: at most two a second are sent
    return "the book is done"


def main() -> None:
    book = print_book.delay()
    print("sent:   ", book.state)
    shown = None
    while not book.ready():  # asks nobody: what there is to know was pushed here
        if book.progress is not None and book.progress != shown:
            shown = book.progress
            print(f"running: {book.state}, {shown.done} of {shown.total}, {shown.message}", flush=True)
        time.sleep(0.01)
    print("ended:  ", book.state, book.get())
    print("at last:", book.progress)


if __name__ == "__main__":
    configure_logging("warning")
    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A progress:app
    worker.start()
    main()
    worker.stop()
