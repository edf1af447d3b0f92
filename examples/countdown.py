"""Countdown and eta: the broker holds a call until it is due, so no worker has to be there meanwhile."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

from pulsartasks import PulsarTasks
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("countdown")
BEGAN = time.time()


@app.task
def remind(text: str) -> float:
    print(f"{time.time() - BEGAN:4.1f} s  {text}", flush=True)
    return time.time()


def main() -> None:
    in_two_seconds = datetime.now(timezone.utc) + timedelta(seconds=2)
    calls = [
        remind.using(countdown=3).delay("three seconds later"),
        remind.using(eta=in_two_seconds).delay("at an instant"),
        remind.delay("at once"),
    ]
    print(f"{time.time() - BEGAN:4.1f} s  all three are with the broker", flush=True)

    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A countdown:app
    worker.start()
    print("never early:", calls[1].get(timeout=20) >= in_two_seconds.timestamp(), calls[0].get(timeout=20) >= BEGAN + 3)
    worker.stop()


if __name__ == "__main__":
    configure_logging("warning")
    main()
