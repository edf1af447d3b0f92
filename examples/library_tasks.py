"""Library tasks: a module that knows no app defines tasks; the app that includes it runs them."""

from __future__ import annotations

import sys

from pulsartasks import PulsarTasks, shared_task
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

# As a library has it, in a module of its own


@shared_task(autoretry_for=(ConnectionError,), retry_backoff=True)
def resize(picture: str, width: int = 320) -> str:
    return f"{picture} at {width}"


@shared_task
def resize_all(pictures: list[str]) -> int:
    for picture in pictures:
        resize.delay(picture)  # in the app that runs this
    return len(pictures)


# As an app has it, elsewhere

app = PulsarTasks("library")
app.include(sys.modules[__name__])  # otherwise: app.include("thumbnails.tasks")


def main() -> None:
    print("tasks of the app:", ", ".join(app.tasks))
    print("called through it:", resize.delay("cat.jpg", 640).get(timeout=30))
    print("pictures sent on:", resize_all.delay(["dog.jpg", "owl.jpg"]).get(timeout=30))


if __name__ == "__main__":
    configure_logging("warning")
    worker = Worker(app)
    worker.start()
    main()
    worker.stop()
